"""Random numbers and dropout on a device with kernels: those of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation
from gpunet.ops import launch, random_kernels
from gpunet.ops import random as draw

rng = np.random.default_rng(0)
KEYS = [draw.Key(0, (0, 0, 0), 0), draw.Key(2**64 - 3, (5, 2**64 - 1, 2**64 - 1), 2**64 - 4)]  # the second one carries
SHAPES = [(), (1,), (7,), (8,), (37, 5), (0, 3)]


def both(function: Any, backend: Backend, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a device draws and what the CPU does."""
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        y = backend.to_numpy(function(*args, Device(backend.name)))
    assert log or y.size == 0 or backend.name != "emulated"
    return y, function(*args, Device("cpu"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_uniform(dtype: str, kernel_device: Backend) -> None:
    for key in KEYS:
        for shape in SHAPES:
            for low, high in [(0.0, 1.0), (-0.3, 0.7), (2.0, 2.001), (1.0, -1.0)]:
                got, expected = both(draw.uniform, kernel_device, key, shape, low, high, np.dtype(dtype))
                assert got.dtype == expected.dtype and got.shape == shape
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("dtype", "ulps"), [("float16", 1), ("float32", 1), ("float64", 8)])
def test_normal(dtype: str, ulps: int, kernel_device: Backend) -> None:
    for key in KEYS:
        for shape in SHAPES:
            got, expected = both(draw.normal, kernel_device, key, shape, 0.5, 2.0, np.dtype(dtype))
            assert got.dtype == expected.dtype and got.shape == shape
            epsilon = ulps * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(got, expected, rtol=epsilon, atol=epsilon)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32"])
def test_integers(dtype: str, kernel_device: Backend) -> None:
    for low, high in [(0, 1), (3, 200), (0, 255)] + (
        [(-(2**52), 2**52), (2**62, 2**62 + 9)] if dtype == "int64" else []
    ):
        got, expected = both(draw.integers, kernel_device, KEYS[1], (53,), low, high, np.dtype(dtype))
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_bernoulli(kernel_device: Backend) -> None:
    for p in (0.0, 0.3, 1.0):
        got, expected = both(draw.bernoulli, kernel_device, KEYS[0], (61,), p)
        assert got.dtype == bool
        np.testing.assert_array_equal(got, expected)


def test_generators_draw_the_same_on_every_device(kernel_device: Backend) -> None:
    drawn = []
    for device in ("cpu", kernel_device.name):
        source = gn.random.Generator(7)
        drawn.append(
            [
                source.uniform((3, 5), device=device),
                source.randint(10, shape=9, device=device),
                source.permutation(40, device=device),
                source.bernoulli(0.5, 11, device=device),
                source.uniform(3, -1, 1, dtype=gn.float64, device=device),
            ]
        )
    for a, b in zip(*drawn):
        assert str(b.device).startswith(kernel_device.name)
        np.testing.assert_array_equal(b.cpu().numpy(), a.numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("shape", [(), (5,), (16, 32), (3, 7, 5), (0, 4)], ids=str)
def test_dropout_keeps_what_the_cpu_keeps(shape: tuple[int, ...], dtype: str, kernel_device: Backend) -> None:
    x = rng.standard_normal(shape).astype(dtype)
    moved = kernel_device.from_numpy(x, Device(kernel_device.name))
    for view, host in [(moved, x), (moved.T, x.T), (moved[1:], x[1:])] if shape else [(moved, x)]:
        with gn.kernels("force"):
            got = draw.dropout(view, p=0.3, key=KEYS[0])
        with gn.kernels("off"):
            expected = draw.dropout(host, p=0.3, key=KEYS[0])
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(kernel_device.to_numpy(got), expected)


def test_dropouts_gradient_draws_its_mask_again(kernel_device: Backend) -> None:
    x = gn.asarray(rng.standard_normal((6, 9)).astype(np.float32), device=kernel_device.name).requires_grad_()
    kept: list[Any] = []
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        y = draw.dropout(x, p=0.5, key=KEYS[0], kept=kept)
        y.backward(gn.ones((6, 9), device=kernel_device.name))
    assert kept == []
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.cpu().numpy(), np.where(y.detach().cpu().numpy() != 0, 2.0, 0.0))
    if kernel_device.name == "emulated":
        assert [name for name, _ in log if name.startswith("dropout")] == ["dropout<float>"] * 2


def test_what_is_not_finite_meets_zero(kernel_device: Backend) -> None:
    x = kernel_device.from_numpy(np.full(64, np.inf, np.float32), Device(kernel_device.name))
    with gn.kernels("force"):
        y = kernel_device.to_numpy(draw.dropout(x, p=0.5, key=KEYS[0]))
    assert set(np.isnan(y)) == {True, False} and np.isposinf(y[~np.isnan(y)]).all()


def test_an_offset_in_the_devices_memory(kernel_device: Backend) -> None:
    """As graphs need it: what is launched stays the same, and the numbers change."""
    launcher = kernel_device.launcher("random")  # type: ignore[misc]
    more = kernel_device.from_numpy(np.array([11], np.uint64), Device(kernel_device.name))
    y = launcher.empty((16,), np.dtype(np.float32))
    args = random_kernels.pack_draw(KEYS[0], launcher.pointer(more))
    args += random_kernels._UNIFORM.pack(launcher.pointer(y), 16, 0.0, 1.0, 1.0, 0)
    launcher.launch(random_kernels.Variant("random", "uniform<float>", 256), launch.grid_of(launcher, 2, 256), args)
    expected = draw.host_uniform(KEYS[0]._replace(offset=11), (16,), np.float32)
    np.testing.assert_array_equal(kernel_device.to_numpy(y), expected)


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_blocks_in_any_order(order: str, kernel_device: Backend) -> None:
    x = kernel_device.from_numpy(rng.standard_normal(5000).astype(np.float32), Device(kernel_device.name))
    expected = draw.dropout(x, p=0.5, key=KEYS[0])
    with emulation(order=order, seed=1):
        assert draw.dropout(x, p=0.5, key=KEYS[0]).tobytes() == expected.tobytes()
