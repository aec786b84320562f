"""Attention and its gradients on a device with kernels, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation
from gpunet.dtypes import get_float32_precision
from gpunet.errors import DeviceError, ShapeError
from gpunet.nn import functional as F
from gpunet.ops import random
from gpunet.ops.attention import attention, attention_grad
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
KEY = random.Key(3, (1, 2, 3), 5)
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "tf32": 3e-3, "float16": 4e-3, "bfloat16": 3e-2}

# Shapes of q, k and v: sizes that end within tiles, leading axes that broadcast, values of another width.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "heads": ((2, 3, 70, 20), (2, 3, 90, 20), (2, 3, 90, 16)),
    "square": ((2, 70, 20), (2, 70, 20), (2, 70, 30)),
    "grouped": ((2, 2, 3, 37, 20), (2, 2, 1, 41, 20), (2, 2, 1, 41, 16)),
    "crossed": ((2, 1, 37, 20), (1, 3, 41, 20), (1, 3, 41, 16)),
    "one query": ((3, 1, 32), (3, 70, 32), (3, 70, 32)),
    "no leading axes": ((5, 7), (6, 7), (6, 1)),
}


def on(backend: Backend, *arrays: Any) -> list[Any]:
    return [None if a is None else gn.asarray(a, device=backend.name).data for a in arrays]


def exact(a: Any) -> Any:
    return a if a is None or a.dtype == "bool" else a.astype(np.float64)


def close(got: Any, wanted: np.ndarray, tolerance: float) -> None:
    """Compare with what float64 gives, relative to the largest; a gradient may be of the whole that is broadcast."""
    got = np.asarray(got).astype(np.float64)
    if got.shape != wanted.shape:
        ahead = wanted.ndim - got.ndim
        axes = [i for i in range(wanted.ndim) if i < ahead or got.shape[i - ahead] != wanted.shape[i]]
        wanted = wanted.sum(tuple(axes), keepdims=True).reshape(got.shape)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~finite], wanted[~finite])
    scale = max(1.0, np.abs(wanted[finite]).max(initial=0.0))
    np.testing.assert_allclose(got[finite], wanted[finite], rtol=0, atol=tolerance * scale)


def check(
    backend: Backend, shapes: tuple[tuple[int, ...], ...], mask: Any = None, dtype: Any = "float32", **how: Any
) -> None:
    how = {"scale": 0.3, "causal": False, "dropout": 0.0, "key": None, **how}
    dtype = np.dtype(dtype)
    tolerance = TOLERANCE["tf32" if dtype == "float32" and get_float32_precision() == "high" else dtype.name]
    inputs = [rng.standard_normal(s).astype(dtype) for s in shapes]
    if mask is not None and mask.dtype != "bool":
        mask = mask.astype(dtype)
    with gn.kernels("off"):
        y, logarithm = attention(*map(exact, (*inputs, mask)), **how)
        g, g_logarithm = (rng.standard_normal(a.shape).astype(t) for a, t in ((y, dtype), (logarithm, "float32")))
        wanted = attention_grad(*map(exact, (g, g_logarithm, y, logarithm, *inputs, mask)), **how)
    with gn.kernels("force"):
        got = attention(*on(backend, *inputs, mask), **how)
        close(got[0], y, tolerance)
        close(got[1], logarithm, tolerance)
        assert got[0].dtype == dtype and got[1].dtype == ("float64" if dtype == "float64" else "float32")
        g, g_logarithm, *arrays = on(backend, g, g_logarithm.astype(got[1].dtype), *inputs, mask)
        gradients = attention_grad(g, g_logarithm, *got, *arrays, **how)
    for a, b in zip(gradients, wanted):
        close(a, b, 4 * tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_plain(name: str, kernel_device: Backend) -> None:
    check(kernel_device, SHAPES[name])


@pytest.mark.parametrize("name", ["heads", "square", "grouped"])
def test_causal(name: str, kernel_device: Backend) -> None:
    check(kernel_device, SHAPES[name], causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["heads", "grouped"])
def test_dropout_is_that_of_the_cpu(name: str, causal: bool, kernel_device: Backend) -> None:
    check(kernel_device, SHAPES[name], dropout=0.3, key=KEY, causal=causal)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [(37, 41), (2, 1, 37, 41), (2, 3, 37, 1), (41,), ()], ids=str)
def test_masks(shape: tuple[int, ...], kind: str, kernel_device: Backend) -> None:
    mask = rng.random(shape) < 0.3 if kind == "bool" else rng.standard_normal(shape)
    check(kernel_device, SHAPES["crossed"], np.asarray(mask))


def test_a_query_that_no_key_takes_part_for(kernel_device: Backend) -> None:
    mask = np.ones((37, 41), bool)
    mask[[3, 36]] = False
    check(kernel_device, SHAPES["crossed"], mask)
    check(kernel_device, SHAPES["crossed"], np.where(mask, 0.0, -np.inf))


@pytest.mark.parametrize("width", [64, 100, 256])
def test_wider_heads(width: int, kernel_device: Backend) -> None:
    check(kernel_device, ((1, 37, width), (1, 35, width), (1, 35, width)))


@pytest.mark.parametrize("name", ["heads", "grouped"])
def test_doubles(name: str, kernel_device: Backend) -> None:
    check(kernel_device, SHAPES[name], dtype="float64", causal=True)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, architecture: str, kernel_device: Backend) -> None:
    """By multiply-adds, and on tensor cores."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16
    with emulation(architecture=architecture):
        check(kernel_device, SHAPES["heads"], dtype=dtype, causal=True)
        check(kernel_device, SHAPES["grouped"], dtype=dtype, dropout=0.3, key=KEY)
        check(kernel_device, SHAPES["crossed"], rng.random((37, 41)) < 0.3, dtype=dtype)


@pytest.mark.parametrize("width", [100, 200])
def test_wider_heads_in_half_precision(width: int, kernel_device: Backend) -> None:
    check(kernel_device, ((1, 70, width), (1, 66, width), (1, 66, width)), dtype="float16")
    check(kernel_device, ((2, 70, 128), (2, 66, 128), (2, 66, 128)), dtype="float16", causal=True)  # aligned rows


@pytest.fixture
def tf32() -> Iterator[None]:
    gn.set_float32_precision("high")
    yield
    gn.set_float32_precision("highest")


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("name", ["heads", "grouped"])
def test_tf32(name: str, kernel_device: Backend) -> None:
    check(kernel_device, SHAPES[name], causal=True)
    check(kernel_device, SHAPES[name], dropout=0.3, key=KEY)


@pytest.mark.usefixtures("tf32")
def test_wider_heads_in_tf32(kernel_device: Backend) -> None:
    check(kernel_device, ((1, 70, 64), (1, 66, 64), (1, 66, 64)))


def test_views_are_read_where_they_are(kernel_device: Backend) -> None:
    """q, k and v as they come out of one projection: (N, L, 3, H, E)."""
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device keeps a log of launches")
    x = rng.standard_normal((2, 19, 3, 2, 8)).astype(np.float32)
    parts = [x[:, :, i].swapaxes(1, 2) for i in range(3)]
    with gn.kernels("off"):
        wanted = attention(*parts, scale=0.5)[0]
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        whole = gn.asarray(x, device=kernel_device.name).data
        y, _ = attention(*(whole[:, :, i].swapaxes(1, 2) for i in range(3)), scale=0.5)
    assert len(log) == 1
    assert y.swapaxes(1, 2).flags.c_contiguous  # heads side by side: merging them copies nothing
    np.testing.assert_allclose(np.asarray(y), wanted, rtol=1e-5, atol=1e-6)
    turned = gn.asarray(np.ascontiguousarray(parts[0].swapaxes(-1, -2)), device=kernel_device.name).data
    with gn.kernels("force"):  # features apart: copied first
        y, _ = attention(turned.swapaxes(-1, -2), *(whole[:, :, i].swapaxes(1, 2) for i in (1, 2)), scale=0.5)
    np.testing.assert_allclose(np.asarray(y), wanted, rtol=1e-5, atol=1e-6)


def test_grouped_heads_through_the_functional(kernel_device: Backend) -> None:
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((2, 6, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8)))
    results = []
    for device in ("cpu", kernel_device.name):
        tensors = [gn.tensor(a, device=device, requires_grad=True) for a in (q, k, v)]
        y = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
        (y * y).sum().backward()
        results.append([y.detach(), *(t.grad for t in tensors)])
    for a, b in zip(*results):
        np.testing.assert_allclose(b.cpu().numpy(), a.numpy(), rtol=1e-4, atol=1e-5)


def test_no_number_stays_in_its_row(kernel_device: Backend) -> None:
    q, k, v = (rng.standard_normal((5, 8)).astype(np.float32) for _ in range(3))
    q[2, 3] = np.nan
    with gn.kernels("force"):
        y, logarithm = attention(*on(kernel_device, q, k, v), scale=1.0)
    rows = np.isnan(np.asarray(y)).all(-1)
    assert rows.tolist() == np.isnan(np.asarray(logarithm)).tolist() == [False, False, True, False, False]
    assert not np.isnan(np.asarray(y)[~rows]).any()


def test_empty_arrays(kernel_device: Backend) -> None:
    with gn.kernels("force"):
        y, logarithm = attention(
            *on(kernel_device, *(np.zeros(s, np.float32) for s in ((2, 3), (0, 3), (0, 4)))), scale=1
        )
        np.testing.assert_array_equal(np.asarray(y), np.zeros((2, 4)))
        assert np.isposinf(np.asarray(logarithm)).all()
        empty = on(kernel_device, *(np.zeros((0, 2, 3), np.float32),) * 3)
        y, logarithm = attention(*empty, scale=1)
        assert y.shape == (0, 2, 3) and logarithm.shape == (0, 2)
        gradients = attention_grad(y, None, y, logarithm, *empty, scale=1, causal=False, dropout=0.0, key=None)
        assert [g.shape for g in gradients] == [(0, 2, 3)] * 3


def test_what_is_refused(kernel_device: Backend) -> None:
    with pytest.raises(ShapeError, match=r"attention: expected q \(\.\.\., L, E\)"):
        attention(*on(kernel_device, *(np.zeros(s, np.float32) for s in ((3, 4), (5, 3), (5, 2)))), scale=1.0)
    wide = on(kernel_device, *(np.ones((2, 257), np.float32),) * 3)
    with gn.kernels("force"), pytest.raises(DeviceError, match="attention: none of its kernels applies"):
        attention(*wide, scale=1.0)
    np.testing.assert_array_equal(np.asarray(attention(*wide, scale=1.0)[0]), np.ones((2, 257)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_same_bits_in_every_order(dtype: str, kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("a GPU chooses the order itself")
    arrays = on(kernel_device, *(rng.standard_normal(s).astype(dtype) for s in SHAPES["grouped"]))
    how = {"scale": 0.3, "causal": True, "dropout": 0.3, "key": KEY}
    results = []
    for order, late in (("forward", False), ("reverse", False), ("random", True)):
        with emulation(order=order, seed=1, late=late), gn.kernels("force"):
            got = attention(*arrays, **how)
            got += attention_grad(got[0], None, *got, *arrays, **how)
            results.append(b"".join(a.tobytes() for a in got))
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] == "attention"])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)
