"""Products through ops on a device with kernels: what users meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation
from gpunet.errors import DeviceError, DTypeError, ShapeError
from gpunet.ops import gemm
from gpunet.ops.matmul import linear
from gpunet.ops.softmax import softmax
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)


def on(backend: Backend, *shape: int, dtype: Any = np.float32) -> gn.Tensor:
    return gn.asarray(rng.standard_normal(shape).astype(dtype), device=backend.name)


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] in ("matmul", "linear", "feed_forward")])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)


def test_views_are_read_where_they_are(kernel_device: Backend) -> None:
    x, y = on(kernel_device, 12, 20), on(kernel_device, 9, 14)
    with gn.kernels("force"):
        for a, b in [(x.T, x), (x[::2, ::3], y[:7].T[::2]), (x[::-1, 3:12], y[:, ::-1]), (x[:, 4:5], y[2:3])]:
            expected = a.cpu().numpy() @ b.cpu().numpy()
            np.testing.assert_allclose((a @ b).cpu().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_empty_products(kernel_device: Backend) -> None:
    with gn.kernels("force"):
        for a, b in [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((4, 2, 0), (0, 3)), ((0, 2, 3), (3, 4)), ((0,), (0, 5))]:
            y = on(kernel_device, *a) @ on(kernel_device, *b)
            np.testing.assert_array_equal(y.cpu().numpy(), np.zeros(a) @ np.zeros(b))
        y = linear(on(kernel_device, 2, 0), on(kernel_device, 3, 0), gn.ones(3, device=kernel_device.name))
        np.testing.assert_array_equal(y.cpu().numpy(), np.ones((2, 3)))


def test_what_does_not_fit_is_an_error(kernel_device: Backend) -> None:
    with pytest.raises(ShapeError, match=r"matmul: the inner dimensions of \(2, 3\) and \(4, 2\) differ"):
        on(kernel_device, 2, 3) @ on(kernel_device, 4, 2)
    with pytest.raises(ShapeError, match=r"linear: a weight of shape \(5, 4\) takes an input of shape \(..., 4\), got"):
        linear(on(kernel_device, 2, 3), on(kernel_device, 5, 4))
    with pytest.raises(ValueError, match="matmul"):
        on(kernel_device, 2, 2, 3) @ on(kernel_device, 3, 3, 2)


def test_types_that_no_kernel_has(kernel_device: Backend) -> None:
    single, double = on(kernel_device, 2, 3), on(kernel_device, 3, 2, dtype=np.float64)
    assert (single @ double).dtype == gn.float64
    whole = gn.asarray(np.arange(6).reshape(2, 3), device=kernel_device.name)
    np.testing.assert_array_equal((whole @ whole.T).cpu().numpy(), [[5, 14], [14, 50]])
    with gn.kernels("force"):
        message = r"matmul: none of its kernels applies to \(2, 3\) float32 and \(3, 2\) float64"
        with pytest.raises(DeviceError, match=message):
            single @ double


def test_the_reference_is_used_where_kernels_are_off(kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device keeps a log of launches")
    log: list[Any] = []
    a = on(kernel_device, 8, 8)
    with emulation(log=log):
        with gn.kernels("off"):
            a @ a
        assert log == []
        a @ a
        assert len(log) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("adjacent", ["k", "mn"])
def test_offsets_beyond_32_bits(dtype: Any, adjacent: str, kernel_device: Backend) -> None:
    """Rows so far from each other that their offsets, in elements, have more than 31 bits. Only what is touched of the
    memory exists."""
    if kernel_device.name != "emulated":
        pytest.skip("takes memory that is not there until it is touched")
    far, lines, length = 2**30 + 8, 4, 8
    itemsize = np.dtype(dtype).itemsize
    memory = np.zeros((lines - 1) * far + length, dtype)  # the operating system's lazy zeros
    sparse = np.lib.stride_tricks.as_strided(memory, (lines, length), (far * itemsize, itemsize))
    sparse[...] = rng.standard_normal((lines, length))
    a = sparse if adjacent == "k" else sparse.T
    b = rng.standard_normal((a.shape[1], 8)).astype(dtype)
    launcher = kernel_device.launcher("matmul")  # type: ignore[misc]
    problem = gemm.make_problem(a, b, (a.ctypes.data & ~15, b.ctypes.data & ~15))
    assert problem is not None
    for choice in gemm.kernels(problem, launcher.architecture):
        addresses = a.ctypes.data, b.ctypes.data
        if choice.variant.file in ("matmul_wgmma", "matmul_mma") and (addresses[0] | addresses[1]) % 16:
            continue
        plan = gemm.plan_of((a.shape[0], 8), problem, choice, gemm.Epilogue(), launcher.processors)
        out = launcher.empty(plan.shape, dtype)
        gemm.run(launcher, plan, addresses, out, None, None, None)
        np.testing.assert_allclose(out, a.astype(np.float64) @ b, rtol=1e-2, atol=1e-2, err_msg=str(choice))


def test_bfloat16_products(kernel_device: Backend) -> None:
    """NumPy and CuPy have bfloat16 through ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")
    a, b = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((40, 72), (72, 24)))
    with gn.kernels("force"):
        y = gn.asarray(a, device=kernel_device.name) @ gn.asarray(b, device=kernel_device.name)
    assert y.dtype == a.dtype
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(y.cpu().numpy().astype(np.float64), exact, rtol=2**-8, atol=1e-4)


def test_explain_says_which_kernel_would_run(kernel_device: Backend) -> None:
    a, b = on(kernel_device, 8, 16), on(kernel_device, 16, 24)
    text = gn.kernels.explain(gn.matmul, a, b)
    assert text.startswith(f"matmul of (8, 16) float32 and (16, 24) float32 on {kernel_device.name}:\n")
    assert "runs kernel matmul: matmul_simt<float" in text and "on a grid of" in text
    assert "     reference" in text
    whole = gn.asarray(np.ones((2, 2), np.int64), device=kernel_device.name)
    text = gn.kernels.explain(gn.matmul, whole, whole)
    assert "kernel matmul: declines" in text and "runs reference" in text
    if kernel_device.name == "emulated":
        log: list[Any] = []
        with emulation(log=log):
            gn.kernels.explain(gn.matmul, a, b)
        assert log == []


def test_explain_on_the_cpu() -> None:
    x = gn.asarray(np.ones((2, 3), np.float64))
    text = gn.kernels.explain(softmax, x, axis=-1)
    assert "does not apply, as its condition does not hold: x.dtype == float32" in text and "runs reference" in text
    with pytest.raises(DTypeError, match="explain: expected at least one Tensor or array for softmax"):
        gn.kernels.explain(softmax, 1.0)
    with pytest.raises(TypeError, match="explain: expected an op, such as gpunet.matmul, got <built-in function max>"):
        gn.kernels.explain(max, x)  # type: ignore[arg-type]


def test_explain_knows_what_an_op_would_not_try() -> None:
    few, many = gn.ones(10), gn.ones(100_000)
    text = gn.kernels.explain(gn.add, few, few)
    assert "as the first argument is no array of" in text and "runs reference" in text
    assert "runs kernel" in gn.kernels.explain(gn.add, many, many)
    with gn.kernels("off"):
        text = gn.kernels.explain(gn.add, many, many)
    assert ": kernels are off" in text and "runs reference" in text
