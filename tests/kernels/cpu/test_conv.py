"""The CPU's convolution kernels against float64: every algorithm, layout, odd size, and number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.backends.native import library
from gpunet.ops import conv as ops
from tests.kernels.cpu.layouts import channels_last

pytestmark = pytest.mark.skipif(not library("conv").usable(), reason="needs a C++ compiler")

rng = np.random.default_rng(5)


def case(n: int, channels: int, outputs: int, size: tuple[int, ...], kernel: tuple[int, ...], **how: Any) -> Any:
    ones = (1,) * len(size)
    defaults = {"stride": ones, "padding": tuple((0, 0) for _ in size), "dilation": ones, "groups": 1}
    how = defaults | how
    return (n, channels, *size), (outputs, channels // how["groups"], *kernel), how


AROUND = ((1, 1), (1, 1))
CASES = {
    # along the pixels of each image
    "one channel": case(2, 1, 16, (28, 28), (3, 3), padding=AROUND),
    "three channels, odd size": case(3, 3, 16, (9, 10), (3, 3), padding=AROUND),
    "odd channels": case(2, 5, 7, (12, 9), (3, 3), padding=AROUND),
    "1 x 1": case(3, 64, 10, (12, 14), (1, 1)),
    "1 x 1, strided": case(3, 64, 10, (12, 14), (1, 1), stride=(2, 2)),
    "first of a residual network": case(1, 3, 64, (32, 32), (7, 7), stride=(2, 2), padding=((3, 3), (3, 3))),
    "large kernel, many channels": case(2, 100, 96, (10, 10), (7, 7), padding=((3, 3), (3, 3))),
    "uneven in everything": case(3, 8, 12, (17, 15), (5, 3), stride=(2, 3), padding=((2, 1), (0, 2)), dilation=(2, 1)),
    "more padding than kernel": case(2, 4, 6, (5, 5), (3, 3), padding=((4, 4), (4, 4))),
    "stride larger than kernel": case(2, 4, 6, (9, 9), (3, 3), stride=(4, 4)),
    "groups": case(3, 8, 12, (12, 14), (3, 3), padding=AROUND, groups=4),
    "groups of whole vectors": case(2, 32, 64, (9, 9), (3, 3), padding=AROUND, groups=2),
    "one axis": case(2, 5, 7, (50,), (7,), stride=(2,), padding=((3, 3),), dilation=(2,)),
    "one axis, one pixel": case(1, 16, 32, (3,), (3,)),
    # a pixel of several images at a time
    "small images": case(7, 12, 24, (2, 2), (3, 3), padding=AROUND),
    "small images, many": case(50, 32, 130, (4, 4), (3, 3), padding=AROUND, dilation=(2, 2)),
    "small images, groups, strided": case(7, 8, 12, (7, 9), (3, 3), stride=(2, 2), padding=AROUND, groups=4),
    # Winograd's
    "tiles": case(3, 64, 64, (16, 16), (3, 3), padding=AROUND),
    "tiles, odd size": case(3, 16, 48, (17, 11), (3, 3), padding=AROUND),
    "tiles, uneven padding": case(2, 32, 16, (19, 18), (3, 3), padding=((0, 2), (2, 0))),
    "tiles, no padding, many channels": case(2, 160, 128, (14, 14), (3, 3)),
    # depthwise
    "depthwise": case(3, 40, 40, (13, 22), (3, 3), padding=AROUND, groups=40),
    "depthwise, strided": case(3, 130, 130, (9, 12), (3, 3), stride=(2, 2), padding=AROUND, groups=130),
    "depthwise, uneven": case(
        2, 19, 19, (12, 15), (5, 2), stride=(1, 3), padding=((4, 1), (0, 2)), dilation=(2, 1), groups=19
    ),
    "depthwise, one axis": case(2, 64, 64, (21,), (4,), padding=((3, 0),), groups=64),
    "depthwise, two outputs of each": case(2, 16, 32, (7, 7), (3, 3), padding=AROUND, groups=16),
    # a single image and a weight with many outputs, which is read where it lies
    "single image": case(1, 32, 256, (4, 4), (3, 3), padding=AROUND),
}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def kernel_first(weight: np.ndarray) -> np.ndarray:
    """(O, I, *kernel) that lies (*kernel, I, O), as layers hold it."""
    order = (*range(2, weight.ndim), 1, 0)
    return np.ascontiguousarray(weight.transpose(order)).transpose(np.argsort(order))


LAYOUTS: dict[str, tuple[Any, Any]] = {
    "channels first": (np.asarray, np.asarray),
    "channels last": (channels_last, kernel_first),
    "strided": (lambda x: np.repeat(x, 2, axis=1)[:, ::2], lambda w: np.repeat(w, 2, axis=-1)[..., ::2]),
}


def exact(op: Any, *arrays: np.ndarray, **how: Any) -> Any:
    """What the reference makes of the arrays in float64."""
    with gn.kernels("off"):
        return op(*(a.astype(np.float64) for a in arrays), **how)


def check(found: np.ndarray, wanted: np.ndarray, terms: int) -> None:
    """That an error is what rounding explains, for sums of so many terms."""
    assert found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * (1 + terms**0.5 / 16) * np.abs(wanted).max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_against_float64(name: str, layout: str) -> None:
    shape, weight_shape, how = CASES[name]
    lay_x, lay_weight = LAYOUTS[layout]
    x, weight, bias = lay_x(normal(*shape)), lay_weight(normal(*weight_shape)), normal(weight_shape[0])
    terms = int(np.prod(weight_shape[1:]))
    with gn.kernels("force"):
        y = ops.conv(x, weight, bias, **how)
        g = lay_x(normal(*y.shape))
        dx = ops.conv_input_grad(g, weight, shape=x.shape, **how)
        dw = ops.conv_weight_grad(x, g, shape=weight.shape, **how)
        rectified = ops.conv_relu(x, weight, **how)
    wanted = exact(ops.conv, x, weight, bias, **how)
    check(y, wanted, terms)
    check(rectified, np.maximum(exact(ops.conv, x, weight, **how), 0), terms)
    check(dx, exact(ops.conv_input_grad, g, weight, shape=x.shape, **how), weight.size // weight.shape[1])
    check(dw, exact(ops.conv_weight_grad, x, g, shape=weight.shape, **how), g.size // g.shape[1])


IMAGES = [name for name, (shape, _, how) in CASES.items() if len(shape) == 4 and how["groups"] != shape[1]]


@pytest.mark.parametrize("name", IMAGES)
def test_pooled(name: str) -> None:
    shape, weight_shape, how = CASES[name]
    x, weight, bias = channels_last(normal(*shape)), kernel_first(normal(*weight_shape)), normal(weight_shape[0])
    with gn.kernels("force"):
        whole = ops.conv_relu(x, weight, bias, **how)
        if min(whole.shape[2:]) < 2:
            with pytest.raises(gn.errors.ShapeError, match="too small to be pooled"):
                ops.conv_relu_pool(x, weight, bias, **how)
            return
        y, offsets = ops.conv_relu_pool(x, weight, bias, **how)
    height, width = (size // 2 * 2 for size in whole.shape[2:])
    parts = np.stack([whole[:, :, i // 2 : height : 2, i % 2 : width : 2] for i in range(4)])
    np.testing.assert_array_equal(y, parts.max(axis=0))
    assert offsets.dtype == np.uint8
    np.testing.assert_array_equal(offsets, parts.argmax(axis=0))  # the first of equal ones


def test_the_three_ops_are_each_others_transposes() -> None:
    """<y(x), g> = <x, dx(g)> = <w, dw(x, g)>, which no scale or order of axes that is wrong would leave true."""
    shape, weight_shape, how = CASES["tiles, odd size"]
    x, weight = normal(*shape), normal(*weight_shape)
    with gn.kernels("force"):
        y = ops.conv(x, weight, **how)
        g = normal(*y.shape)
        dx = ops.conv_input_grad(g, weight, shape=x.shape, **how)
        dw = ops.conv_weight_grad(x, g, shape=weight.shape, **how)
    products = [np.vdot(a.astype(np.float64), b) for a, b in ((y, g), (x, dx), (weight, dw))]
    np.testing.assert_allclose(products, products[0], rtol=1e-5)


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_winograd_is_no_less_accurate_than_direct_sums(channels: int) -> None:
    """The worst and the mean error, beside those of the same convolution summed directly, which a stride of 2 makes."""
    x, weight = channels_last(normal(2, channels, 16, 16)), normal(32, channels, 3, 3)
    how = {"padding": AROUND, "dilation": (1, 1), "groups": 1}
    with gn.kernels("force"):
        tiles = ops.conv(x, weight, stride=(1, 1), **how)
        direct = ops.conv(x, weight, stride=(2, 2), **how)
    wanted = exact(ops.conv, x, weight, stride=(1, 1), **how)
    of_tiles = np.abs(tiles - wanted)[:, :, ::2, ::2]
    of_direct = np.abs(direct - wanted[:, :, ::2, ::2])
    assert of_tiles.mean() < 1.2 * of_direct.mean() and of_tiles.max() < 2 * of_direct.max()


@pytest.mark.parametrize("name", ["tiles, odd size", "small images", "groups", "one channel", "depthwise"])
def test_any_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and input gradients have the same bits; weight gradients, sums over images, are rounded otherwise."""
    shape, weight_shape, how = CASES[name]
    x, weight = normal(*shape), normal(*weight_shape)
    before, found = gn.get_num_threads(), []
    monkeypatch.setattr(threads, "_SPREAD", 1)
    try:
        for count in (1, 2, 3, 2):
            gn.set_num_threads(count)
            with gn.kernels("force"):
                y = ops.conv(x, weight, **how)
                dx = ops.conv_input_grad(y, weight, shape=x.shape, **how)
                found.append((y, dx, ops.conv_weight_grad(x, y, shape=weight.shape, **how)))
    finally:
        gn.set_num_threads(before)
    for y, dx, dw in found[1:]:
        assert y.tobytes() == found[0][0].tobytes() and dx.tobytes() == found[0][1].tobytes()
        np.testing.assert_allclose(dw, found[0][2], rtol=0, atol=1e-5 * np.abs(dw).max())
    assert found[1][2].tobytes() == found[3][2].tobytes()


@pytest.mark.parametrize("name", ["one channel", "small images", "tiles", "depthwise"])
def test_what_is_not_finite_stays_where_it_is_seen(name: str) -> None:
    """A NaN reaches every window that it is in, and, with tiles, no further than the windows beside them."""
    shape, weight_shape, how = CASES[name]
    x, weight = np.zeros(shape, np.float32), normal(*weight_shape)
    x[0, 0, 1, 0] = np.nan
    with gn.kernels("force"):
        y = ops.conv(x, weight, **how)
        rectified = ops.conv_relu(x, weight, **how)
    pooled, _offsets = ops.conv_relu_pool(x, weight, **how)
    with gn.kernels("off"):
        seen = np.isnan(ops.conv(x, weight, **how))
    assert np.isnan(y[seen]).all() and np.isnan(rectified[seen]).all()
    assert np.isnan(pooled[:, :, 0, 0][seen[:, :, :2, :2].any(axis=(2, 3))]).all()
    assert np.isfinite(y[1:]).all() and np.isfinite(y[:, :, 4:]).all() and np.isfinite(y[..., 4:]).all()


def test_no_images() -> None:
    x, weight = np.zeros((0, 16, 8, 8), np.float32), normal(32, 16, 3, 3)
    how = CASES["tiles"][2]
    with gn.kernels("force"):
        y = ops.conv(x, weight, **how)
        assert y.shape == (0, 32, 8, 8)
        assert ops.conv_input_grad(y, weight, shape=x.shape, **how).shape == x.shape
        np.testing.assert_array_equal(ops.conv_weight_grad(x, y, shape=weight.shape, **how), np.zeros(weight.shape))
        assert ops.conv_relu_pool(x, weight, **how)[0].shape == (0, 32, 4, 4)


def test_a_layers_weight_is_read_where_it_lies_and_its_gradient_lies_likewise() -> None:
    layer = gn.nn.Conv2d(16, 64, 3, padding=1)
    x = gn.asarray(normal(2, 16, 12, 12))
    weight = layer.weight.data
    assert np.shares_memory(ops._packed(library("conv"), weight, 1), weight)
    layer(x).sum().backward()
    assert layer.weight.grad.data.strides == weight.strides
