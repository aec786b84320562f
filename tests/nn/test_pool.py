"""Pooling layers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.nn.layers import check_against_torch, check_layer

rng = np.random.default_rng(0)

MAX: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("MaxPool2d", (2,), {}),
    ("MaxPool2d", (3, 2, 1), {}),
    ("MaxPool2d", ((2, 3),), {"stride": (1, 2), "dilation": (2, 1)}),
    ("MaxPool2d", (2,), {"stride": 3, "ceil_mode": True}),
    ("MaxPool1d", (2,), {}),
    ("MaxPool1d", (3, 2, 1), {"dilation": 2, "ceil_mode": True}),
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
]


def image(make: str) -> np.ndarray:
    """Values that are not close to each other, so that maxima are differentiable."""
    shape = (2, 3, 7, 6) if make.endswith("2d") else (2, 3, 8)
    return rng.permutation(np.linspace(-3, 3, int(np.prod(shape)))).reshape(shape)


@pytest.mark.parametrize(("make", "args", "options"), [case for case in MAX + AVG if "ceil_mode" not in case[2]])
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


@pytest.mark.parametrize(("make", "args", "options"), MAX + AVG)
def test_gradients(make: str, args: Any, options: Any, device: str) -> None:
    check_layer(getattr(nn, make)(*args, **options), image(make), device=device)


@pytest.mark.parametrize(("make", "args", "options"), MAX + AVG)
def test_against_torch(make: str, args: Any, options: Any) -> None:
    check_against_torch(make, image(make).astype("float32"), *args, **options)


def test_a_last_window_may_hang_over() -> None:
    x = gn.tensor([[[1.0, 2.0, 3.0, 4.0, 6.0]]])
    assert nn.MaxPool1d(2)(x).tolist() == [[[2.0, 4.0]]]
    assert nn.MaxPool1d(2, ceil_mode=True)(x).tolist() == [[[2.0, 4.0, 6.0]]]
    assert nn.AvgPool1d(2, ceil_mode=True)(x).tolist() == [[[1.5, 3.5, 6.0]]]


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        ("MaxPool2d", {"kernel_size": 0}, "MaxPool2d: kernel_size must be at least 1, got 0"),
        ("MaxPool2d", {"kernel_size": 2, "stride": 0}, "MaxPool2d: stride must be at least 1, got 0"),
        ("MaxPool2d", {"kernel_size": 2, "padding": 2}, r"padding must be at most half of kernel_size, got \(2, 2\)"),
        ("AvgPool1d", {"kernel_size": 3, "padding": -1}, "AvgPool1d: padding must be at least 0, got -1"),
        ("MaxPool1d", {"kernel_size": 3, "dilation": 0}, "MaxPool1d: dilation must be at least 1, got 0"),
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
