"""Softmax and its relatives on a device with kernels, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation
from gpunet.errors import DeviceError
from gpunet.ops import row_kernels, softmax
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "float16": 2e-3}
# Rows and an axis: each way to keep a row, lengths that end within a vector and that begin anywhere in one.
ROWS = [((5, 10), 1), ((3, 7, 65), -1), ((2, 501), 1), ((2, 602), 1), ((1, 2501), 1), ((2, 9002), 1)]
COLUMNS = [((4, 7, 5), 1), ((2, 40, 12), 1), ((70, 8), 0), ((260, 3, 4), 0), ((1, 1100, 4), 1)]
REFERENCE = {
    "softmax": lambda x, axis: np.exp(x - x.max(axis, keepdims=True)) / _sum(x, axis),
    "log_softmax": lambda x, axis: x - x.max(axis, keepdims=True) - np.log(_sum(x, axis)),
    "logsumexp": lambda x, axis: np.squeeze(np.log(_sum(x, axis)) + x.max(axis, keepdims=True), axis),
}
GRADIENT = {
    "softmax": lambda g, y, axis: y * (g - (g * y).sum(axis, keepdims=True)),
    "log_softmax": lambda g, y, axis: g - np.exp(y) * g.sum(axis, keepdims=True),
}


def _sum(x: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(x - x.max(axis, keepdims=True)).sum(axis, keepdims=True)


def on(backend: Backend, x: np.ndarray) -> gn.Tensor:
    return gn.asarray(x, device=backend.name)


def check(backend: Backend, name: str, x: np.ndarray, axis: int, view: Any = lambda x: x) -> None:
    """Compare the op of that name, and its gradient, on a view of x with what float64 gives."""
    exact = REFERENCE[name](view(x).astype(np.float64), axis)
    tolerance = TOLERANCE[x.dtype.name]
    with gn.kernels("force"):
        y = getattr(softmax, name)(view(on(backend, x)), axis=axis)
        np.testing.assert_allclose(y.cpu().numpy(), exact, rtol=20 * tolerance, atol=tolerance)
        if name in GRADIENT:
            g = rng.standard_normal(y.shape).astype(x.dtype)
            dx = getattr(softmax, f"{name}_grad")(on(backend, g), y, axis=axis)
            exact = GRADIENT[name](g.astype(np.float64), y.cpu().numpy().astype(np.float64), axis)
            np.testing.assert_allclose(dx.cpu().numpy(), exact, rtol=20 * tolerance, atol=8 * tolerance)


@pytest.mark.parametrize(("shape", "axis"), ROWS + COLUMNS, ids=str)
def test_softmax_along_every_kind_of_axis(shape: tuple[int, ...], axis: int, kernel_device: Backend) -> None:
    check(kernel_device, "softmax", 3 * rng.standard_normal(shape).astype(np.float32), axis)


@pytest.mark.parametrize("name", ["log_softmax", "logsumexp"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 7, 65), -1), ((2, 9002), 1), ((2, 40, 12), 1)], ids=str)
def test_logarithms(name: str, shape: tuple[int, ...], axis: int, kernel_device: Backend) -> None:
    check(kernel_device, name, 30 * rng.standard_normal(shape).astype(np.float32), axis)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 101), 1), ((2, 40, 16), 1)], ids=str)
def test_other_types(dtype: str, shape: tuple[int, ...], axis: int, kernel_device: Backend) -> None:
    check(kernel_device, "softmax", rng.standard_normal(shape).astype(dtype), axis)


def test_bfloat16(kernel_device: Backend) -> None:
    """NumPy and CuPy have bfloat16 through ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")
    x = rng.standard_normal((3, 101)).astype(ml_dtypes.bfloat16)
    with gn.kernels("force"):
        y = softmax.softmax(on(kernel_device, x), axis=1).cpu().numpy()
    np.testing.assert_allclose(y.astype(np.float64), REFERENCE["softmax"](x.astype(np.float64), 1), rtol=2**-8)


def test_views(kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 9, 40)).astype(np.float32)
    check(kernel_device, "softmax", x, 1, lambda a: a[::2, :, 1:])  # rows apart, not at multiples of 16 bytes
    check(kernel_device, "softmax", x, 2, lambda a: a[::-1, 1:8])
    check(kernel_device, "softmax", x, 0, lambda a: a[..., ::3])  # no axis has adjacent elements
    check(kernel_device, "log_softmax", x, 2, lambda a: gn.permute_dims(a, (2, 0, 1)) if a is not x else _turned(a))


def _turned(a: np.ndarray) -> np.ndarray:
    return a.transpose(2, 0, 1)


def test_no_number_and_infinities(kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 40)).astype(np.float32)
    x[1, 3], x[2, 5], x[3, 7], x[4] = np.nan, np.inf, -np.inf, -np.inf
    for a, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        with gn.kernels("force"):
            got = [getattr(softmax, name)(on(kernel_device, a), axis=axis).cpu().numpy() for name in REFERENCE]
        with np.errstate(invalid="ignore", divide="ignore"):
            for y, op in zip(got, (softmax.softmax, softmax.log_softmax, softmax.logsumexp)):
                np.testing.assert_allclose(y, op.reference(np, a, axis=axis), rtol=2e-6, atol=2e-6)


def test_rows_longer_than_shared_memory(kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_kernels, "most_held", lambda launcher: 0)
    check(kernel_device, "softmax", 9 * rng.standard_normal((2, 9002)).astype(np.float32), 1)


def test_sums_along_several_axes(kernel_device: Backend) -> None:
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    with gn.kernels("force"):
        for axis in (None, (0, 2), (1, 2)):
            t = on(kernel_device, x)
            t.requires_grad = True
            y = softmax.logsumexp(t, axis=axis)
            gn.sum(y).backward()
            exact = np.log(np.exp(x.astype(np.float64)).sum(axis, keepdims=True))
            np.testing.assert_allclose(y.detach().cpu().numpy(), np.squeeze(exact, axis), rtol=1e-6)
            np.testing.assert_allclose(t.grad.cpu().numpy(), np.exp(x - exact), rtol=1e-5)


def test_empty_arrays(kernel_device: Backend) -> None:
    with gn.kernels("force"):
        y = softmax.softmax(gn.zeros((0, 3), device=kernel_device.name), axis=1)
        assert y.shape == (0, 3)
        assert softmax.logsumexp(gn.zeros((2, 0, 3), device=kernel_device.name), axis=2).shape == (2, 0)
    with pytest.raises(ValueError, match="zero-size|identity"):
        softmax.softmax(gn.zeros((2, 0), device=kernel_device.name), axis=1)


def test_what_no_kernel_takes(kernel_device: Backend) -> None:
    with gn.kernels("force"), pytest.raises(DeviceError, match="softmax: none of its kernels applies"):
        softmax.softmax(gn.zeros((2, 2), dtype=gn.complex64, device=kernel_device.name))


@pytest.mark.parametrize(("shape", "axis"), [((9, 10), 1), ((3, 2501), 1), ((2, 40, 12), 1)], ids=str)
def test_the_same_bits_in_every_order(shape: tuple[int, ...], axis: int, kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("a GPU chooses the order itself")
    x = on(kernel_device, rng.standard_normal(shape).astype(np.float32))
    results = []
    for order, processors in (("forward", 4), ("reverse", 1), ("random", 2)):
        with emulation(order=order, seed=1, processors=processors), gn.kernels("force"):
            y = softmax.softmax(x, axis=axis)
            results.append(softmax.softmax_grad(x, y, axis=axis).cpu().numpy().tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] in ("softmax", "log_softmax", "logsumexp")])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)
