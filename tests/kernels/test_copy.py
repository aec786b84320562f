"""Copies between layouts and types, and constants, on a device with kernels."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from gpunet.backends import Backend, Device
from gpunet.ops import launch

rng = np.random.default_rng(0)
SHAPES = [(), (1,), (64,), (3, 5, 7), (2, 40, 33), (1, 6, 1, 4), (4, 8, 16, 8), (2, 3, 1, 2, 3, 2), (0, 3)]


def on(backend: Backend, x: np.ndarray) -> Any:
    return backend.from_numpy(x, Device(backend.name))


def check(backend: Backend, x: Any, dtype: Any = None) -> None:
    y = launch.copy(backend.launcher("copy"), x, dtype)
    assert y.flags.c_contiguous
    expected = backend.to_numpy(x)
    np.testing.assert_array_equal(backend.to_numpy(y), expected if dtype is None else expected.astype(dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copies_of_every_layout(shape: tuple[int, ...], kernel_device: Backend) -> None:
    x = on(kernel_device, rng.standard_normal(shape).astype(np.float32))
    orders = list(permutations(range(len(shape))))
    for order in orders[:: max(1, len(orders) // 12)]:
        turned = x.transpose(order)
        check(kernel_device, turned)
        if len(shape) > 1:
            check(kernel_device, turned[..., ::2])
            check(kernel_device, turned[::-1])
            check(kernel_device, turned[..., 1:])


@pytest.mark.parametrize("to", ["float16", "float64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("source", ["float32", "float16", "int64", "bool"])
def test_copies_of_another_type(source: str, to: str, kernel_device: Backend) -> None:
    x = on(kernel_device, rng.integers(0, 4, (6, 40)).astype(source))
    check(kernel_device, x, np.dtype(to))
    check(kernel_device, x.T, np.dtype(to))


def test_what_is_broadcast_or_written_to_a_view(kernel_device: Backend) -> None:
    launcher = kernel_device.launcher("copy")
    y = launch.full(launcher, (5, 12, 4), -1.0, np.dtype(np.float32))
    x = rng.standard_normal((6, 1)).astype(np.float32)
    assert launch.copy_into(launcher, y[1:4, ::2], on(kernel_device, x))
    expected = np.full((5, 12, 4), -1, np.float32)
    expected[1:4, ::2] = x
    np.testing.assert_array_equal(kernel_device.to_numpy(y), expected)


@pytest.mark.parametrize(("value", "dtype"), [(1.5, "float32"), (True, "bool"), (-7, "int64"), (2.5, "float16")])
@pytest.mark.parametrize("n", [1, 5, 5000])
def test_constants(value: Any, dtype: str, n: int, kernel_device: Backend) -> None:
    launcher = kernel_device.launcher("copy")
    y = launch.full(launcher, (n + 1,), 0, np.dtype(dtype))
    launch.fill(launcher, y[1:], value)  # which need not be aligned
    assert kernel_device.to_numpy(y).tolist() == [0] + [value] * n


def test_what_kernels_cannot_address(kernel_device: Backend) -> None:
    x = on(kernel_device, np.zeros((2, 2), np.complex64))
    assert launch.copy(kernel_device.launcher("copy"), x) is NotImplemented
    record = np.zeros(4, np.dtype([("a", np.float32), ("b", np.uint8)]))
    assert launch.axes_of((4,), record["a"]) is None  # its strides are no multiples of an element


def test_axes_are_merged() -> None:
    x, row = np.zeros((2, 3, 4, 5)), np.zeros((4, 5))
    assert launch.axes_of(x.shape, x) == ((120,), ((1,),))
    assert launch.axes_of(x.shape, x, row) == ((6, 20), ((20, 1), (0, 1)))
    assert launch.axes_of(x.shape, x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), x) == (
        (2, 20, 3),
        ((60, 3, 1), (60, 1, 20)),
    )
    assert launch.axes_of((0, 3), np.zeros((0, 3))) is None
    assert launch.is_dense(x.transpose(3, 1, 0, 2)) and not launch.is_dense(x[..., ::2])


def test_how_many_elements_are_moved_at_once() -> None:
    whole, odd = np.zeros((5, 36), np.float32), np.zeros((5, 37), np.float32)[:, 1:]
    for x, addresses, expected in [(whole, (64, 64), 4), (whole, (64, 72), 2), (whole, (4, 64), 1), (odd, (64, 64), 1)]:
        axes = launch.axes_of(x.shape, whole, x)
        assert axes is not None
        assert launch.vector_of(axes, (4, 4), iter(addresses)) == expected
