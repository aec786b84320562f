"""The CPU's normalization kernels against float64, in every layout, and with any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.nn import functional as F
from gpunet.ops import norm
from tests.kernels.cpu.layouts import laid

rng = np.random.default_rng(3)
SHAPES = [
    (2, 1),
    (7, 3),
    (64, 33),
    (3, 5, 7),
    (2, 16, 3, 5),
    (5, 3, 4, 4),
    (2, 100, 1, 3),
    (4, 64, 32, 32),
    (3, 257, 5),
]
ROWS = [((3, 1), 1), ((2, 3, 5), 1), ((7, 16), 1), ((4, 9, 33), 2), ((70, 128), 1), ((1, 1000), 1), ((1, 3, 5), 2)]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def exact(x: Any, g: Any, w: Any, b: Any, axes: tuple[int, ...], eps: float) -> list[np.ndarray]:
    """The result and the gradients of x, w and b, in float64."""
    x, g, w, b = (np.asarray(a, np.float64) for a in (x, g, w, b))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    scale = 1 / np.sqrt(variance + eps)
    hat = (x - mean) * scale
    gw = g * w
    dx = (gw - gw.mean(axes, keepdims=True) - hat * (gw * hat).mean(axes, keepdims=True)) * scale
    others = axes if 0 in axes else tuple(range(x.ndim - w.ndim))  # those that w does not have
    return [hat * w + b, dx, (g * hat).sum(others).reshape(w.shape), g.sum(others).reshape(w.shape)]


def check(found: list[Any], wanted: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("layout", ["channels-first", "channels-last", "strided"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels(shape: tuple[int, ...], layout: str) -> None:
    axes = (0, *range(2, len(shape)))
    x, g = laid(normal(*shape), layout), normal(*shape)
    w, b = (normal(shape[1], *(1,) * (len(shape) - 2)) for _ in range(2))
    with gn.kernels("force"):
        y = norm.normalize(x, w, b, axes=axes, eps=0.1)
        gradients = norm.normalize_grad(g, x, w, axes=axes, eps=0.1)
        statistics = norm.moments(x, axes=axes)
        again = norm.normalize_grad(g, x, w, axes=axes, eps=0.1, statistics=statistics)
    check([y, *gradients], exact(x, g, w, b, axes, 0.1))
    for first, second in zip(gradients, again):
        np.testing.assert_array_equal(first, second)
    check(list(statistics), [x.mean(axes, np.float64, keepdims=True), x.var(axes, np.float64, keepdims=True)])
    if layout == "channels-last":
        assert y.strides == gradients[0].strides == x.strides


@pytest.mark.parametrize("shape, k", ROWS, ids=str)
def test_rows(shape: tuple[int, ...], k: int) -> None:
    axes = tuple(range(len(shape) - k, len(shape)))
    x, g, w, b = normal(*shape), normal(*shape), normal(*shape[-k:]), normal(*shape[-k:])
    with gn.kernels("force"):
        y = norm.normalize(x, w, b, axes=axes, eps=0.1)
        gradients = norm.normalize_grad(g, x, w, axes=axes, eps=0.1)
    check([y, *gradients], exact(x, g, w, b, axes, 0.1))


@pytest.mark.parametrize(
    "axes, layout", [((0, 2, 3), "channels-first"), ((0, 2, 3), "channels-last"), ((2, 3), "rows")]
)
def test_without_weight_and_bias(axes: tuple[int, ...], layout: str) -> None:
    x, g = laid(normal(3, 6, 5, 4), layout), normal(3, 6, 5, 4)
    with gn.kernels("force"):
        y, dx = norm.normalize(x, axes=axes, eps=0.1), norm.normalize_grad(g, x, axes=axes, eps=0.1)[0]
    w = np.ones((6, 1, 1) if 0 in axes else (5, 4))
    check([y, dx], exact(x, g, w, 0 * w, axes, 0.1)[:2])


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
def test_a_large_mean_costs_no_accuracy(layout: str) -> None:
    x = normal(8, 24, 17, 19) + np.float32(3000)
    x[0] += 50  # the first sample is no guide to the mean
    x = laid(x, layout)
    with gn.kernels("force"):
        mean, variance = norm.moments(x, axes=(0, 2, 3))
    np.testing.assert_allclose(mean, x.mean((0, 2, 3), np.float64, keepdims=True), rtol=1e-7)
    np.testing.assert_allclose(variance, np.float64(x).var((0, 2, 3), keepdims=True), rtol=2e-5)


@pytest.mark.parametrize("axes", [(0, 2, 3), (3,)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_group_alone(axes: tuple[int, ...], wrong: float) -> None:
    x, g = normal(2, 3, 4, 20), normal(2, 3, 4, 20)
    x[1, 1, 1, 1] = wrong
    with gn.kernels("force"):
        y, dx = norm.normalize(x, axes=axes, eps=0.1), norm.normalize_grad(g, x, axes=axes, eps=0.1)[0]
    spoilt = np.zeros(x.shape, bool)
    spoilt[(slice(None), 1) if axes == (0, 2, 3) else (1, 1, 1)] = True
    np.testing.assert_array_equal(np.isfinite(y), ~spoilt)
    np.testing.assert_array_equal(np.isfinite(dx), ~spoilt)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SPREAD", 1)  # so that small arrays are divided too
    cases = [(laid(normal(16, 40, 33, 17), how), (0, 2, 3), (40, 1, 1)) for how in ("channels-last", "channels-first")]
    cases.append((normal(999, 257), (1,), (257,)))
    before = gn.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            gn.set_num_threads(count)
            with gn.kernels("force"):
                results.append(
                    [
                        a
                        for x, axes, shape in cases
                        for w in [np.ones(shape, np.float32)]
                        for a in (
                            norm.normalize(x, w, w, axes=axes, eps=0.1),
                            *norm.normalize_grad(x * x, x, w, axes=axes, eps=0.1),
                        )
                    ]
                )
    finally:
        gn.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
def test_gradients_of_other_layouts_and_broadcast_ones(layout: str) -> None:
    a, w = laid(normal(4, 6, 5, 5), layout), normal(6)
    results = []
    for mode in ("auto", "off"):
        x, weight, bias = (gn.asarray(t) for t in (a, w, w))
        for t in (x, weight, bias):
            t.requires_grad = True
        with gn.kernels(mode):
            y = F.batch_norm(x, None, None, weight, bias, training=True)
            y.mean().backward(retain_graph=True)  # whose gradient has strides of 0
            (y * gn.asarray(np.ascontiguousarray(a)) ** 2).sum().backward()
        results.append([t.grad.numpy() for t in (x, weight, bias)])
    for fast, reference in zip(*results):
        np.testing.assert_allclose(fast, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("layout", ["channels-first", "channels-last", "strided"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_by_given_statistics(shape: tuple[int, ...], layout: str) -> None:
    x, mean, w, b = laid(normal(*shape), layout), *(normal(shape[1]) for _ in range(3))
    variance = mean * mean
    along = (-1,) + (1,) * (len(shape) - 2)
    wanted = (x - np.float64(mean.reshape(along))) / np.sqrt(np.float64(variance.reshape(along)) + 0.1)
    with gn.kernels("force"):
        check([norm.normalize_by(x, mean, variance, eps=0.1)], [wanted])
        y = norm.normalize_by(x, mean, variance, w, b, eps=0.1)
    check([y], [wanted * w.reshape(along) + b.reshape(along)])


def test_running_statistics() -> None:
    x = normal(9, 5, 3) + 2
    for dtype, mode in ((np.float32, "force"), (np.float64, "off")):
        mean, variance = np.full(5, 1, dtype), np.full(5, 3, dtype)
        with gn.kernels(mode):
            found = norm.moments(x.astype(dtype), axes=(0, 2))
            norm.update_running(*found, mean, variance, momentum=0.25, unbias=27 / 26)
        np.testing.assert_allclose(mean, 0.75 + 0.25 * x.mean((0, 2)), rtol=1e-5)
        np.testing.assert_allclose(variance, 0.75 * 3 + 0.25 * x.var((0, 2), ddof=1), rtol=1e-5)
