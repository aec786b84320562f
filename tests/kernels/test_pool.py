"""Pooling on a device with kernels, beside its references on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation
from gpunet.errors import DeviceError, ShapeError
from gpunet.ops import pool
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
OPS = (
    "max_with_offsets", "window_sum", "unpool", "pick", "unpool_relu", "spread", "window_norm", "place_maxima",
    "adaptive_mean", "adaptive_max",
)  # fmt: skip

# shape, windows
WINDOWS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "side by side": ((2, 8, 7, 9), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
    "overlapping": ((2, 6, 9, 8), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
    "apart": ((2, 3, 9, 11), {"kernel": (2, 3), "stride": (3, 4), "padding": (1, 0)}),
    "one axis": ((3, 4, 13), {"kernel": (3,), "stride": (1,), "padding": (1,)}),
    "three axes": ((1, 4, 5, 6, 7), {"kernel": (2, 3, 2), "stride": (1, 2, 2), "padding": (1, 1, 0)}),
    "large": ((2, 4, 40, 8), {"kernel": (12, 5), "stride": (3, 2), "padding": (3, 1)}),
    "more than a byte": ((1, 2, 20, 18), {"kernel": (17, 16), "stride": (2, 1), "padding": (2, 0)}),
}
LAYOUTS = ("channels last", "channels first", "neither")


def normal(*shape: int, dtype: Any = "float32", layout: str = "channels first") -> np.ndarray:
    x = rng.standard_normal(shape).astype(dtype)
    if layout == "channels last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, 0, -1)), 0, -1) if layout == "neither" else x


def on(backend: Backend, x: np.ndarray) -> Any:
    return backend.from_numpy(x, Device(backend.name))


def check(backend: Backend, op: Any, *arrays: np.ndarray, exactly: bool = False, **how: Any) -> Any:
    """What the op makes of arrays on the CPU, which its kernels must make of them too."""
    wide = arrays if exactly else tuple(a.astype("float64") if a.dtype.kind == "f" else a for a in arrays)
    with gn.kernels("off"):
        expected = op(*wide, **how)
    with gn.kernels("force"):
        found = op(*(on(backend, a) for a in arrays), **how)
    one = not isinstance(expected, tuple)
    for y, wanted in zip(*(((t,) if one else t) for t in (found, expected))):
        y, wanted = backend.to_numpy(y), np.asarray(wanted)
        assert y.dtype.kind == wanted.dtype.kind
        if exactly or y.dtype.kind != "f":
            np.testing.assert_array_equal(y, wanted)
        else:
            assert y.dtype == arrays[0].dtype
            epsilon = np.finfo(y.dtype).eps
            np.testing.assert_allclose(y, wanted, rtol=8 * epsilon, atol=8 * epsilon * max(1, np.abs(wanted).max()))
    return expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WINDOWS)
def test_every_kind_of_window(name: str, layout: str, kernel_device: Backend) -> None:
    shape, how = WINDOWS[name]
    x = normal(*shape, layout=layout)
    dilation = {"dilation": (1,) * len(how["kernel"])}
    for ceil in (False, True):
        y, numbers = check(kernel_device, pool.max_with_offsets, x, exactly=True, **how, **dilation, ceil_mode=ceil)
        check(kernel_device, pool.max_values, x, exactly=True, **how, **dilation, ceil_mode=ceil)
        g = normal(*y.shape, layout=layout)
        check(kernel_device, pool.unpool, g, numbers, shape=shape, **how, **dilation)
        check(kernel_device, pool.pick, x, numbers, exactly=True, **how, **dilation)
        check(kernel_device, pool.numbered_places, numbers, shape=shape, **how, **dilation)
        for divided_by in (None, "inside", "padded"):
            options = {**how, "ceil_mode": ceil, "divided_by": divided_by, "factor": 0.5}
            check(kernel_device, pool.window_sum, x, **options)
            check(kernel_device, pool.spread, g, shape=shape, **options)


def test_dilation(kernel_device: Backend) -> None:
    shape = (2, 4, 9, 8)
    how: dict[str, Any] = {"kernel": (2, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (3, 2)}
    y, numbers = check(kernel_device, pool.max_with_offsets, normal(*shape), exactly=True, **how, ceil_mode=False)
    check(kernel_device, pool.unpool, normal(*y.shape), numbers, shape=shape, **how)
    check(kernel_device, pool.numbered_places, numbers, shape=shape, **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 4, 7, 9), (3, 4)), ((1, 3, 5), (8,)), ((1, 4, 5, 3, 4), (2, 2, 3)), ((2, 2, 9, 8), (1, 1))]
)
def test_adaptive_windows(shape: tuple[int, ...], size: tuple[int, ...], layout: str, kernel_device: Backend) -> None:
    x = normal(*shape, layout=layout)
    y, numbers = check(kernel_device, pool.adaptive_max, x, exactly=True, size=size)
    check(kernel_device, pool.adaptive_pick, x, numbers, exactly=True)
    g = normal(*y.shape, layout=layout)
    check(kernel_device, pool.adaptive_unpool, g, numbers, shape=shape)
    check(kernel_device, pool.adaptive_mean, x, size=size)
    check(kernel_device, pool.adaptive_mean_grad, g, shape=shape)


@pytest.mark.parametrize("order", [2.0, 3.0])
def test_norms(order: float, kernel_device: Backend) -> None:
    how: dict[str, Any] = {"order": order, "kernel": (2, 3), "stride": (2, 2), "padding": (0, 0), "ceil_mode": True}
    x = np.abs(normal(2, 4, 7, 8, layout="channels last"))
    x[0, 0] = 0
    y = check(kernel_device, pool.window_norm, x, **how)
    g = normal(*y.shape, layout="channels last")
    check(kernel_device, pool.window_norm_grad, g, x, y.astype("float32"), **how)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types(dtype: str, kernel_device: Backend) -> None:
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        kind: Any = ml_dtypes.bfloat16
    else:
        kind = np.dtype(dtype)
    how: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    x = normal(2, 16, 5, 6, layout="channels last").astype(kind)
    launch = {"dilation": (1, 1), "ceil_mode": False}
    with gn.kernels("force"):
        found = on(kernel_device, x)
        y, numbers = pool.max_with_offsets(found, **how, **launch)
        total = pool.window_sum(found, **how, factor=1 / 9)
        back = pool.unpool(y, numbers, shape=x.shape, **how, dilation=(1, 1))
    wide = x.astype("float32")
    expected, offsets = pool.max_with_offsets(wide, **how, **launch)
    assert y.dtype == total.dtype == back.dtype == kind
    np.testing.assert_array_equal(kernel_device.to_numpy(y).astype("float32"), expected)
    np.testing.assert_array_equal(kernel_device.to_numpy(numbers), offsets)
    tolerance = {"float64": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    sums = pool.window_sum(wide, **how, factor=1 / 9)
    np.testing.assert_allclose(kernel_device.to_numpy(total).astype("float32"), sums, rtol=tolerance, atol=tolerance)
    spread = pool.unpool(expected, offsets, shape=x.shape, **how, dilation=(1, 1))
    np.testing.assert_allclose(kernel_device.to_numpy(back).astype("float32"), spread, rtol=tolerance, atol=tolerance)


def test_integers(kernel_device: Backend) -> None:
    x = rng.integers(-100, 100, (2, 3, 6, 5)).astype("int32")
    how: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    check(kernel_device, pool.max_with_offsets, x, exactly=True, **how, ceil_mode=True)


@pytest.mark.parametrize("kernel", [(3, 3), (8, 8)])
def test_what_is_not_finite(kernel: tuple[int, int], kernel_device: Backend) -> None:
    x = normal(1, 6, 11, 9)
    x[0, 0, 2:4, 2] = np.nan
    x[0, 1, 1, 1] = np.inf
    x[0, 2] = -np.inf
    x[0, 3, 5, 5] = x[0, 3, 5, 6] = np.nan
    for layout in (x, np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)):
        how: dict[str, Any] = {"kernel": kernel, "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
        check(kernel_device, pool.max_with_offsets, layout, exactly=True, **how, ceil_mode=True)
        check(kernel_device, pool.adaptive_max, layout, exactly=True, size=(2, 4))


def test_a_maximum_of_minus_infinity_is_inside(kernel_device: Backend) -> None:
    x = on(kernel_device, np.full((1, 1, 4), -np.inf, "float32"))
    how: dict[str, Any] = {"kernel": (3,), "stride": (2,), "padding": (1,), "dilation": (1,)}
    with gn.kernels("force"):
        _y, numbers = pool.max_with_offsets(x, **how, ceil_mode=False)
        back = pool.unpool(on(kernel_device, np.ones((1, 1, 2), "float32")), numbers, shape=(1, 1, 4), **how)
    assert kernel_device.to_numpy(back).tolist() == [[[1, 1, 0, 0]]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maxima_put_back(layout: str, kernel_device: Backend) -> None:
    x = normal(2, 4, 2, 3, layout=layout)
    places = np.stack([rng.permutation(20)[:6] for _ in range(8)]).reshape(x.shape)
    check(kernel_device, pool.place_maxima, x, places, exactly=True, size=(4, 5))
    check(kernel_device, pool.place_maxima, x, places // 6, exactly=True, size=(4, 5))  # the last one stays
    places[1, 2, 1, 1] = 20
    with gn.kernels("force"):
        y = kernel_device.to_numpy(pool.place_maxima(on(kernel_device, x), on(kernel_device, places), size=(4, 5)))
    assert np.isnan(y[1, 2, 0, 0]) and np.isnan(y).sum() == 1


def test_unpool_relu(kernel_device: Backend) -> None:
    how: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    g, y = normal(2, 4, 3, 3, layout="channels last"), np.maximum(normal(2, 4, 3, 3), 0)
    numbers = rng.integers(0, 4, y.shape).astype("uint8")
    check(kernel_device, pool.unpool_relu, g, y, numbers, exactly=True, shape=(2, 4, 7, 6), **how)


def test_unaligned_and_empty_arrays(kernel_device: Backend) -> None:
    how: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    flat = on(kernel_device, normal(2 * 6 * 6 * 8 + 1))
    x = flat[1:].reshape(2, 6, 6, 8).transpose(0, 3, 1, 2)  # channels last, and begins between multiples of 16 bytes
    with gn.kernels("force"):
        y = kernel_device.to_numpy(pool.max_values(x, **how, ceil_mode=False))
        for shape in ((0, 3, 6, 6), (2, 0, 6, 6)):
            empty = pool.max_with_offsets(on(kernel_device, normal(*shape)), **how, ceil_mode=False)
            assert all(e.shape == (*shape[:2], 3, 3) for e in empty)
            assert pool.unpool(*empty, shape=shape, **how).shape == shape
            assert pool.adaptive_mean(on(kernel_device, normal(*shape)), size=(4, 4)).shape == (*shape[:2], 4, 4)
    np.testing.assert_array_equal(y, pool.max_values(kernel_device.to_numpy(x), **how, ceil_mode=False))


def test_bits_do_not_depend_on_the_order_of_blocks(kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device has orders")
    x, (_shape, how) = normal(2, 8, 20, 18, layout="channels last"), WINDOWS["overlapping"]
    places = rng.integers(0, 9, (2, 8, 10, 9))
    results = []
    for options in ({}, {"order": "reverse"}, {"order": "random", "seed": 3}, {"order": "random", "seed": 4}):
        with emulation(processors=2, **options), gn.kernels("force"):  # type: ignore[arg-type]
            y, numbers = pool.max_with_offsets(on(kernel_device, x), **how, dilation=(1, 1), ceil_mode=False)
            back = pool.unpool(y, numbers, shape=x.shape, **how, dilation=(1, 1))
            mean = pool.adaptive_mean(on(kernel_device, x), size=(1, 1))
            spread = pool.spread(y, shape=x.shape, **how)
            placed = pool.place_maxima(y, on(kernel_device, places), size=(3, 3))
            results.append([kernel_device.to_numpy(a).tobytes() for a in (y, numbers, back, mean, spread, placed)])
    assert all(r == results[0] for r in results[1:])


@pytest.mark.parametrize("name", [name for name in CASES if name.split(":")[0] in OPS])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d((3, 2)),
        nn.LPPool2d(2, 2),
    ],
    ids=repr,
)
def test_layers_launch_one_kernel_each_way(layer: nn.Module, kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device keeps a log of launches")
    a = normal(2, 4, 7, 8, layout="channels last")
    x, wanted = gn.tensor(a, device="emulated", requires_grad=True), gn.tensor(a, requires_grad=True)
    log: list[Any] = []
    host: list[str] = []
    with emulation(log=log, host=host), gn.kernels("force"):
        y = layer(x)
        launches = len(log)
        y.backward(y.detach())
    assert (launches, len(log)) == (1, 2) and host == []
    z = layer(wanted)
    z.backward(z.detach())
    assert x.grad is not None and wanted.grad is not None
    np.testing.assert_allclose(x.grad.cpu().numpy(), wanted.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_what_no_kernel_takes(kernel_device: Backend) -> None:
    how: dict[str, Any] = {"kernel": (2,), "stride": (2,), "padding": (0,)}
    with gn.kernels("force"):
        with pytest.raises(DeviceError, match="window_sum: none of its kernels applies"):
            pool.window_sum(on(kernel_device, np.zeros((1, 1, 4), "int32")), **how)
        with pytest.raises(ShapeError, match=r"windows \(2,\) are larger than the input of shape \(1, 1, 1\)"):
            pool.window_sum(on(kernel_device, np.zeros((1, 1, 1), "float32")), **how)
