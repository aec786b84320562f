"""Pooling layers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.gradcheck import check_gradients
from tests.nn.layers import check_against_torch, check_layer

rng = np.random.default_rng(0)

MAX: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("MaxPool2d", (2,), {}),
    ("MaxPool2d", (3, 2, 1), {}),
    ("MaxPool2d", ((2, 3),), {"stride": (1, 2), "dilation": (2, 1)}),
    ("MaxPool2d", (2,), {"stride": 3, "ceil_mode": True}),
    ("MaxPool1d", (2,), {}),
    ("MaxPool1d", (3, 2, 1), {"dilation": 2, "ceil_mode": True}),
    ("MaxPool3d", (2,), {}),
    ("MaxPool3d", ((2, 3, 2), (1, 2, 2), (0, 1, 1)), {"ceil_mode": True}),
]
AVG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("AvgPool2d", (2,), {}),
    ("AvgPool2d", (3, 2, 1), {}),
    ("AvgPool2d", ((2, 3),), {"stride": (1, 2), "padding": (1, 0), "count_include_pad": False}),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True}),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False}),
    ("AvgPool1d", (2,), {}),
    ("AvgPool1d", (4, 3, 2), {"ceil_mode": True}),
    ("AdaptiveAvgPool2d", (1,), {}),
    ("AdaptiveAvgPool2d", ((3, 4),), {}),
    ("AdaptiveAvgPool2d", ((None, 2),), {}),
    ("AdaptiveAvgPool2d", (9,), {}),
    ("AdaptiveAvgPool1d", (3,), {}),
    ("AdaptiveAvgPool3d", ((3, 2, None),), {}),
    ("AvgPool2d", (3, 2, 1), {"divisor_override": 5}),
    ("AvgPool3d", (2,), {}),
    ("AvgPool3d", ((2, 3, 2), 2, (0, 1, 1)), {"ceil_mode": True, "count_include_pad": False}),
]
OTHERS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("AdaptiveMaxPool1d", (3,), {}),
    ("AdaptiveMaxPool1d", (4,), {}),
    ("AdaptiveMaxPool2d", ((3, 4),), {}),
    ("AdaptiveMaxPool2d", ((None, 9),), {}),
    ("AdaptiveMaxPool3d", (1,), {}),
    ("AdaptiveMaxPool3d", ((3, 2, 4),), {}),
    ("LPPool1d", (2, 3), {"stride": 2, "ceil_mode": True}),
    ("LPPool2d", (2, 2), {}),
    ("LPPool2d", (2, (2, 3)), {"stride": 1}),
    ("LPPool3d", (2, 2), {}),
]


def image(make: str) -> np.ndarray:
    """Values that are not close to each other, so that maxima are differentiable."""
    shape = {"1d": (2, 3, 8), "2d": (2, 3, 7, 6), "3d": (2, 2, 5, 4, 6)}[make[-2:]]
    return rng.permutation(np.linspace(-3, 3, int(np.prod(shape)))).reshape(shape)


@pytest.mark.parametrize(
    ("make", "args", "options"),
    [case for case in MAX + AVG if not {"ceil_mode", "divisor_override"} & set(case[2])],
)
def test_values(make: str, args: Any, options: Any, device: str) -> None:
    layer, x = getattr(nn, make)(*args, **options), image(make)
    y = layer(gn.tensor(x, device=device)).cpu().numpy()
    if make.startswith("Adaptive"):
        size = y.shape[2:]
        for place in product(*map(range, size)):
            part = tuple(slice(i * n // s, -(-(i + 1) * n // s)) for i, n, s in zip(place, x.shape[2:], size))
            expected = x[(..., *part)].mean(axis=tuple(range(2, x.ndim)))
            np.testing.assert_allclose(y[(..., *place)], expected, rtol=1e-12, atol=1e-14)
        return
    is_max = make.startswith("Max")
    padded = np.pad(
        x, [(0, 0), (0, 0), *((p, p) for p in layer.padding)], constant_values=-np.inf if is_max else np.nan
    )
    dilation = getattr(layer, "dilation", (1,) * (x.ndim - 2))
    geometry = list(zip(padded.shape[2:], layer.kernel_size, layer.stride, dilation))
    assert y.shape[2:] == tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in geometry)
    for place in product(*map(range, y.shape[2:])):
        part = tuple(slice(i * s, i * s + d * (k - 1) + 1, d) for i, (_n, k, s, d) in zip(place, geometry))
        window = padded[(..., *part)].reshape(*x.shape[:2], -1)
        if is_max:
            expected = window.max(-1)
        else:
            count = window.shape[-1] if layer.count_include_pad else (~np.isnan(window)).sum(-1)
            expected = np.nansum(window, axis=-1) / count
        np.testing.assert_allclose(y[(..., *place)], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("make", "args", "options"), MAX + AVG + OTHERS)
def test_gradients(make: str, args: Any, options: Any, device: str) -> None:
    check_layer(getattr(nn, make)(*args, **options), image(make), device=device)


@pytest.mark.parametrize(("make", "args", "options"), MAX + AVG + OTHERS)
def test_against_torch(make: str, args: Any, options: Any) -> None:
    check_against_torch(make, image(make).astype("float32"), *args, **options)


def test_a_last_window_may_hang_over() -> None:
    x = gn.tensor([[[1.0, 2.0, 3.0, 4.0, 6.0]]])
    assert nn.MaxPool1d(2)(x).tolist() == [[[2.0, 4.0]]]
    assert nn.MaxPool1d(2, ceil_mode=True)(x).tolist() == [[[2.0, 4.0, 6.0]]]
    assert nn.AvgPool1d(2, ceil_mode=True)(x).tolist() == [[[1.5, 3.5, 6.0]]]


@pytest.mark.parametrize(("make", "args", "options"), MAX)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_indices_and_unpooling(make: str, args: Any, options: Any, last: bool) -> None:
    torch = pytest.importorskip("torch")
    a = image(make).astype(np.float32)
    a[0, 0] = -np.inf
    a[-1, 1].flat[3] = a[-1, 1].flat[5] = np.nan
    laid = np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if last else a
    ours, theirs = (
        kind(*args, return_indices=True, **options) for kind in (getattr(nn, make), getattr(torch.nn, make))
    )
    y, at = ours(gn.tensor(laid))
    z, there = theirs(torch.tensor(a))
    np.testing.assert_array_equal(y.numpy(), z.numpy())
    np.testing.assert_array_equal(at.numpy(), there.numpy())
    if ours.dilation[0] == 1:
        how = ours.kernel_size, ours.stride, ours.padding
        name = make.replace("Pool", "Unpool")
        if all(k <= s for k, s in zip(ours.kernel_size, ours.stride)):  # of equal indices, PyTorch may take any
            back = getattr(nn, name)(*how)(y, at, output_size=a.shape)
            np.testing.assert_array_equal(back.numpy(), getattr(torch.nn, name)(*how)(z, there, output_size=a.shape))


def test_gradients_of_unpooling(device: str) -> None:
    indices = gn.asarray(np.array([[[3, 0, 5]], [[1, 4, 2]]]), device=device)
    check_gradients(lambda x: nn.MaxUnpool1d(2)(x, indices) ** 2, [rng.standard_normal((2, 1, 3))], device=device)
    layer = nn.AdaptiveMaxPool2d((2, 3), return_indices=True)
    check_gradients(lambda x: layer(x)[0], [image("2d")], device=device)


def test_indices_that_do_not_fit() -> None:
    x, layer = gn.zeros((1, 2, 3)), nn.MaxUnpool1d(2)
    with pytest.raises(ValueError, match=r"max_unpool1d: the index 6 at \(0, 1, 2\) is outside of the 6 places"):
        layer(x, gn.asarray(np.array([[[0, 1, 2], [3, 4, 6]]])))
    with pytest.raises(gn.errors.DTypeError, match="the indices must be int64, got float32"):
        layer(x, x)
    with pytest.raises(gn.errors.ShapeError, match=r"the indices must have the shape of the input, \(1, 2, 3\)"):
        layer(x, gn.zeros((1, 2, 2), dtype="int64"))
    with pytest.raises(ValueError, match=r"output_size must be 1 lengths less than the stride \(2,\) away from \(6,\)"):
        layer(x, gn.zeros((1, 2, 3), dtype="int64"), output_size=(8,))


@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_functions_against_torch(name: str, n: int) -> None:
    torch = pytest.importorskip("torch")
    x = np.abs(image(f"{n}d")).astype(np.float32)
    args: tuple[Any, ...] = (3.0, 2) if name == "lp_pool" else (3,)
    y = getattr(nn.functional, f"{name}{n}d")(gn.asarray(x), *args)
    expected = getattr(torch.nn.functional, f"{name}{n}d")(torch.tensor(x), *args)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-6)


def test_a_norm_of_zero_has_no_gradient() -> None:
    x = gn.tensor(np.zeros((1, 1, 4)), requires_grad=True)
    nn.LPPool1d(2, 2)(x).sum().backward()
    assert x.grad.tolist() == [[[0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        ("MaxPool2d", {"kernel_size": 0}, "MaxPool2d: kernel_size must be at least 1, got 0"),
        ("MaxPool2d", {"kernel_size": 2, "stride": 0}, "MaxPool2d: stride must be at least 1, got 0"),
        ("MaxPool2d", {"kernel_size": 2, "padding": 2}, r"padding must be at most half of kernel_size, got \(2, 2\)"),
        ("AvgPool1d", {"kernel_size": 3, "padding": -1}, "AvgPool1d: padding must be at least 0, got -1"),
        ("MaxPool1d", {"kernel_size": 3, "dilation": 0}, "MaxPool1d: dilation must be at least 1, got 0"),
        ("LPPool2d", {"norm_type": 0, "kernel_size": 2}, "LPPool2d: norm_type must not be zero"),
        ("AvgPool3d", {"kernel_size": 2, "divisor_override": 0}, "AvgPool3d: divisor_override must not be zero"),
        ("AdaptiveMaxPool1d", {"output_size": -1}, "AdaptiveMaxPool1d: output_size must be at least 1, got -1"),
        ("AdaptiveAvgPool2d", {"output_size": 0}, "AdaptiveAvgPool2d: output_size must be at least 1, got 0"),
        ("AdaptiveAvgPool2d", {"output_size": (1, 2, 3)}, "output_size must be an int or 2 of them"),
    ],
)
def test_bad_arguments(make: str, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        getattr(nn, make)(**options)


@pytest.mark.parametrize("layer", [nn.MaxPool2d(3), nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(1)])
def test_bad_inputs(layer: nn.Module) -> None:
    name = type(layer).__name__
    with pytest.raises(
        gn.errors.ShapeError, match=name + r"\(.*\): expected an input of shape \(N, C, H, W\), got \(2, 9\)"
    ):
        layer(gn.zeros((2, 9)))
    if not name.startswith("Adaptive"):
        with pytest.raises(gn.errors.ShapeError, match=name + r"\(.*windows \(3, 3\) are larger than the input"):
            layer(gn.zeros((2, 1, 8, 2)))
