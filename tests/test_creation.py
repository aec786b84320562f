"""New Tensors, the default device and the default dtype."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DeviceError, DTypeError, ShapeError


def test_dtypes_of_python_data() -> None:
    assert gn.asarray(1.5).dtype == gn.float32 and gn.asarray([1.0, 2]).dtype == gn.float32
    assert gn.asarray([1, 2]).dtype == gn.int64 and gn.asarray([True]).dtype == gn.bool
    assert gn.asarray([1 + 2j]).dtype == gn.complex128
    assert gn.asarray(np.ones(2)).dtype == gn.float64  # NumPy's arrays keep theirs
    assert gn.asarray(np.float64(1.0)).dtype == gn.float64
    assert gn.asarray([gn.ones(2), gn.zeros(2)]).shape == (2, 2)
    with pytest.raises(DTypeError, match="cannot make an array of numbers from str"):
        gn.asarray("text")
    with pytest.raises(ValueError, match="inhomogeneous"):
        gn.asarray([[1, 2], [3]])


def test_default_dtype() -> None:
    try:
        gn.set_default_dtype(gn.float64)
        assert gn.asarray(1.5).dtype == gn.zeros(2).dtype == gn.exp(gn.arange(2)).dtype == gn.float64
        with pytest.raises(DTypeError, match="expected a real floating-point dtype, got int64"):
            gn.set_default_dtype(gn.int64)
    finally:
        gn.set_default_dtype(gn.float32)


def test_copies() -> None:
    a = np.ones(3)
    assert gn.asarray(a).data is a
    assert gn.asarray(a, copy=True).data is not a and gn.tensor(a).data is not a
    t = gn.asarray(a)
    assert gn.asarray(t) is t and gn.asarray(t, copy=True) is not t
    with pytest.raises(ValueError, match="copy=False forbids"):
        gn.asarray(a, dtype=gn.float32, copy=False)
    with pytest.raises(ValueError, match="copy=False forbids"):
        gn.asarray(t, dtype=gn.float32, copy=False)
    w = gn.tensor([1.0], requires_grad=True)
    assert gn.asarray(w) is w and gn.asarray(w, dtype=gn.float64).requires_grad and not gn.tensor(w).requires_grad


def test_dlpack() -> None:
    a = np.arange(4.0)
    x = gn.from_dlpack(a)
    assert np.shares_memory(x.data, a)
    torch = pytest.importorskip("torch")
    t = torch.arange(3.0)
    y = gn.asarray(t)
    y += 1.0
    assert t.tolist() == [1.0, 2.0, 3.0]
    assert torch.from_dlpack(gn.ones(2)).tolist() == [1.0, 1.0]


CASES = {
    "zeros": (lambda **k: gn.zeros((2, 3), **k), np.zeros((2, 3), np.float32)),
    "ones": (lambda **k: gn.ones(2, **k), np.ones(2, np.float32)),
    "full": (lambda **k: gn.full((2,), 7, **k), np.full(2, 7)),
    "full float": (lambda **k: gn.full((2,), 7.5, **k), np.full(2, 7.5, np.float32)),
    "arange": (lambda **k: gn.arange(5, **k), np.arange(5)),
    "arange step": (lambda **k: gn.arange(1, 2, 0.25, **k), np.arange(1, 2, 0.25, dtype=np.float32)),
    "linspace": (lambda **k: gn.linspace(0, 1, 5, **k), np.linspace(0, 1, 5, dtype=np.float32)),
    "eye": (lambda **k: gn.eye(2, 3, k=1, **k), np.eye(2, 3, k=1, dtype=np.float32)),
}


@pytest.mark.parametrize("name", CASES)
def test_filled(name: str, device: str) -> None:
    make, expected = CASES[name]
    x = make(device=device)
    np.testing.assert_array_equal(x.cpu().numpy(), expected)
    assert x.dtype == expected.dtype and x.device == device
    assert make(device=device, dtype=gn.float16).dtype == gn.float16


def test_like(device: str) -> None:
    x = gn.full((2, 3), 5, dtype=gn.int16, device=device)
    for make, value in ((gn.zeros_like, 0), (gn.ones_like, 1)):
        y = make(x)
        assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device) and (y == value).all()
    assert gn.full_like(x, 2).dtype == gn.int16 and gn.empty_like(x).shape == gn.empty((2, 3)).shape


def test_meshgrid() -> None:
    a, b, c = np.arange(2), np.arange(3), np.arange(4)
    for indexing in ("xy", "ij"):
        got = gn.meshgrid(*map(gn.asarray, (a, b, c)), indexing=indexing)
        for x, y in zip(got, np.meshgrid(a, b, c, indexing=indexing)):
            np.testing.assert_array_equal(x.numpy(), y)
    with pytest.raises(ValueError, match="indexing must be"):
        gn.meshgrid(gn.arange(2), indexing="ab")


def test_default_device() -> None:
    try:
        gn.set_default_device("strict")
        assert gn.zeros(2).device == gn.asarray([1.0]).device == gn.random.uniform(3).device == "strict"
    finally:
        gn.set_default_device("cpu")
    assert gn.default_device() == "cpu" and gn.zeros(2).device == "cpu"


def test_devices() -> None:
    assert gn.Device("cuda") == gn.Device("cuda:0") == "cuda:0" and gn.Device("cuda:1") != "cuda"
    assert repr(gn.Device("cuda:1")) == "Device('cuda:1')" and len({gn.Device("cuda"), gn.Device("cuda:0")}) == 1
    assert "cpu" in gn.available_devices() and gn.zeros(1, device="auto").device == gn.available_devices()[-1]
    with pytest.raises(DeviceError, match='expected a device such as "cpu"'):
        gn.Device("GPU 1")
    with pytest.raises(DeviceError, match='one "cpu" device'):
        gn.Device("cpu:1")
    with pytest.raises(DeviceError, match="unknown device type 'tpu'; known: 'cpu', 'cuda'"):
        gn.zeros(1, device="tpu")


@pytest.mark.skipif(len(gn.available_devices()) > 1, reason="this machine has a GPU")
def test_asking_for_cuda_without_one() -> None:
    for ask in (lambda: gn.zeros(1, device="cuda"), lambda: gn.ones(1).cuda(), lambda: gn.set_default_device("cuda")):
        with pytest.raises(
            DeviceError, match=r'device "cuda" needs (CuPy, .*pip install "gpunet\[cuda\]"|an NVIDIA GPU)'
        ):
            ask()
    assert gn.default_device() == "cpu"


def test_import_is_light() -> None:
    """The import must not pull in what only some programs need (its time is in benchmarks/overhead.py)."""
    heavy = "{'cupy', 'torch', 'matplotlib', 'safetensors', 'scipy', 'tensorboardX', 'multiprocessing.pool', 'tqdm'}"
    code = f"import sys, gpunet; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_subclasses_of_numpys_array_are_plain_arrays(tmp_path) -> None:
    np.ones(4, np.float32).tofile(tmp_path / "ones")
    mapped = np.memmap(tmp_path / "ones", np.float32, "r+")
    x = gn.asarray(mapped)
    assert (x + gn.ones(4)).numpy().tolist() == [2.0] * 4 and np.shares_memory(x.data, mapped)
    assert type(gn.asarray(np.ma.array([1.0])).data) is np.ndarray


def test_arrays_of_no_numbers_are_refused() -> None:
    for array in (np.array(["a"]), np.array([None])):
        with pytest.raises(DTypeError, match="asarray: cannot make an array of numbers from an array of"):
            gn.asarray(array)
    with pytest.raises(ShapeError, match="asarray: the nested sequences do not all have the same lengths"):
        gn.asarray([[1], [1, 2]])
