"""Reductions and running sums on a device with kernels, beside NumPy: every axis, layout and type."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation, prebuild
from gpunet.errors import DeviceError
from gpunet.ops import reduce, reduce_kernels
from gpunet.ops.op import Op
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
OPS = [getattr(reduce, name) for name in reduce_kernels.REDUCTIONS]
ARITHMETIC = ("sum", "prod", "mean", "var", "std")


@pytest.fixture(scope="module", autouse=True)
def compiled(kernel_device: Backend) -> None:
    """The kernels of most tests, built side by side."""
    if kernel_device.name == "emulated":
        names = [("float32", "float32")] * 7 + [("float32", "bool")] * 2 + [("float32", "int64")] * 3
        variants = [
            reduce_kernels.variant_of(r.functor, computed, result, "float32", 1, group)
            for r, (computed, result) in zip(reduce_kernels.REDUCTIONS.values(), names)
            for group in (0, 4)
        ]
        prebuild(variants)


def on(backend: Backend, x: Any) -> Any:
    return backend.from_numpy(np.asarray(x), Device(backend.name))


def compare(op: Op, backend: Backend, x: Any, **params: Any) -> None:
    """A reduction of a device's array beside that of the same numbers in float64."""
    with gn.kernels("force"):
        got = op(x, **params)
        got = backend.to_numpy(backend.array_from(got))
    host = backend.to_numpy(x)
    with gn.kernels("off"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = op(host, **params)
        dtype, shape = expected.dtype, np.shape(expected)
        if dtype.kind == "f":
            expected = op(host.astype(np.float64), **params).astype(dtype)
    assert (got.dtype, got.shape) == (dtype, shape)
    if dtype.kind == "f" and op.name in ARITHMETIC:
        epsilon = np.finfo(dtype).eps
        close = 8 * epsilon * max(4.0, (host.size / max(1, got.size)) ** 0.5)  # terms cancel
        np.testing.assert_allclose(got, expected, rtol=32 * epsilon, atol=close, err_msg=op.name)
    else:
        np.testing.assert_array_equal(got, expected, err_msg=op.name)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_reduction(op: Op, kernel_device: Backend) -> None:
    x = on(kernel_device, rng.integers(-3, 4, (3, 5, 7)).astype(np.float32) / 2)
    for axis in (0, 1, 2, -1, None) if op.name.startswith("arg") else (0, 1, 2, (0, 2), (1, 2), (0, 1), (), None):
        for keepdims in (False, True):
            compare(op, kernel_device, x, axis=axis, keepdims=keepdims)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16", "int64", "bool"])
def test_types(dtype: str, kernel_device: Backend) -> None:
    x = on(kernel_device, rng.integers(0, 2 if dtype == "bool" else 50, (7, 12)).astype(dtype))
    for op in (reduce.sum, reduce.mean, reduce.max, reduce.argmin):
        compare(op, kernel_device, x, axis=0)
        compare(op, kernel_device, x, axis=1)
    compare(reduce.any, kernel_device, x)
    compare(reduce.var, kernel_device, x, correction=1.0)
    compare(reduce.sum, kernel_device, x, axis=0, dtype=np.dtype(np.float64))


def test_bfloat16(kernel_device: Backend) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")
    x = rng.standard_normal((6, 40)).astype(ml_dtypes.bfloat16)
    with gn.kernels("force"):
        got = kernel_device.to_numpy(reduce.sum(on(kernel_device, x), axis=1))
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(got, x.astype(np.float64).sum(axis=1).astype(x.dtype))


def layouts(x: np.ndarray, backend: Backend) -> dict[str, Any]:
    moved = on(backend, x)
    return {
        "C": moved,
        "channels last": on(backend, x.transpose(0, 2, 3, 1).copy()).transpose(0, 3, 1, 2),
        "strided": moved[:, ::2, :, ::-1],
        "turned": moved.transpose(3, 1, 0, 2),
        "broadcast": backend.xp.broadcast_to(moved[:, :1], x.shape),
        "shifted": moved[..., 1:],
    }


@pytest.mark.parametrize("layout", ["C", "channels last", "strided", "turned", "broadcast", "shifted"])
def test_layouts(layout: str, kernel_device: Backend) -> None:
    x = layouts(rng.standard_normal((3, 8, 5, 12)).astype(np.float32), kernel_device)[layout]
    for axis in (0, 1, 3, (0, 2, 3), (2, 3), (0, 1), None):
        compare(reduce.sum, kernel_device, x, axis=axis)
    compare(reduce.argmax, kernel_device, x, axis=None)
    compare(reduce.argmax, kernel_device, x, axis=1)


@pytest.mark.parametrize("shape", [(1, 70001), (70001, 1), (3, 20000), (5000, 12), (33, 4100)], ids=str)
@pytest.mark.parametrize("name", ["sum", "std", "argmax"])
def test_large_ones_are_reduced_in_parts(name: str, shape: tuple[int, int], kernel_device: Backend) -> None:
    x = rng.standard_normal(shape).astype(np.float32)
    op = getattr(reduce, name)
    moved = on(kernel_device, x)
    for axis in (0, 1, None):
        compare(op, kernel_device, moved, axis=axis)
    if kernel_device.name == "emulated":
        log: list[Any] = []
        with gn.kernels("force"), emulation(log=log):
            op(moved, axis=None)
        assert [entry.split("<")[0] for entry, _ in log] == ["reduce_rows", "reduce_parts"]


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_nans_are_extreme(name: str, kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 40)).astype(np.float32)
    x[0, 5] = x[0, 30] = x[1, 0] = x[2, 39] = np.nan
    x[3, 7], x[4, 2], x[5] = np.inf, -np.inf, -np.inf if "max" in name else np.inf
    for axis in (0, 1, None):
        compare(getattr(reduce, name), kernel_device, on(kernel_device, x), axis=axis)


def test_a_variance_far_from_zero(kernel_device: Backend) -> None:
    x = (rng.standard_normal((4, 3000)) + 10000).astype(np.float32)
    with gn.kernels("force"):
        got = reduce.var(on(kernel_device, x), axis=1)
    np.testing.assert_allclose(kernel_device.to_numpy(got), x.astype(np.float64).var(axis=1), rtol=1e-4)


def test_nothing(kernel_device: Backend) -> None:
    x = on(kernel_device, np.zeros((0, 3), np.float32))
    for op in OPS:
        if op.name in ("max", "min", "argmax", "argmin"):
            with pytest.raises(ValueError, match=rf"{op.name}: there are no elements along axis 0"):
                op(x, axis=0)
        else:
            compare(op, kernel_device, x, axis=0)
        compare(op, kernel_device, x, axis=1)
    with gn.kernels("force"), pytest.raises(ValueError, match="axis 2 is out of bounds"):
        reduce.sum(x, axis=2)


def test_complex_numbers_are_left_to_the_reference(kernel_device: Backend) -> None:
    x = on(kernel_device, np.ones(3, np.complex64))
    assert complex(reduce.sum(x)) == 3
    with gn.kernels("force"), pytest.raises(DeviceError, match="sum: none of its kernels applies"):
        reduce.sum(x)


@pytest.mark.parametrize("shape", [(5, 2500), (300, 6), (4, 7, 3), (1, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_prod"])
def test_running_sums(name: str, shape: tuple[int, ...], kernel_device: Backend) -> None:
    op = getattr(reduce, name)
    x = (1 + 0.01 * rng.standard_normal(shape)).astype(np.float32)
    for view in (x, x.T, x[::-1, ..., ::2]):
        for axis in range(view.ndim):
            for include_initial in (False, True):
                with gn.kernels("force"):
                    got = op(on(kernel_device, view), axis=axis, include_initial=include_initial)
                expected = op(view.astype(np.float64), axis=axis, include_initial=include_initial)
                np.testing.assert_allclose(kernel_device.to_numpy(got), expected, rtol=2e-5)
    whole = on(kernel_device, np.arange(1, 9, dtype=np.int8))
    with gn.kernels("force"):
        assert op(whole, axis=None).dtype == np.int64


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_blocks_in_any_order(order: str, kernel_device: Backend) -> None:
    x = on(kernel_device, rng.standard_normal((33, 4100)).astype(np.float32))

    def results() -> list[bytes]:
        with gn.kernels("force"):
            sums = [reduce.sum(x, axis=axis) for axis in (0, 1, None)]
            return [a.tobytes() for a in (*sums, reduce.var(x, axis=1), reduce.cumulative_sum(x, axis=1))]

    expected = results()
    with emulation(order=order, seed=5):
        assert results() == expected


NAMES = {*reduce_kernels.REDUCTIONS, "cumulative_sum", "cumulative_prod"}


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] in NAMES])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)
