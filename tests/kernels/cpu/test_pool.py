"""The CPU's pooling kernels against their references and PyTorch: odd sizes, layouts, what is not finite, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.nn import functional as F
from gpunet.ops import pool
from tests.kernels.cpu.layouts import laid

rng = np.random.default_rng(7)
SHAPES = [(2, 3, 7, 9), (1, 1, 5, 40), (3, 17, 8, 8), (2, 16, 6, 5), (1, 80, 4, 3), (2, 4, 12, 70), (2, 5, 33)]
WINDOWS: dict[str, dict[str, Any]] = {
    "pairs": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)},
    "pairs, ceil": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": True},
    "overlapping": {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)},
    "every place": {"kernel": (3, 2), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
    "dilated": {"kernel": (2, 3), "stride": (1, 3), "padding": (1, 1), "dilation": (2, 1), "ceil_mode": True},
    "apart": {"kernel": (1, 1), "stride": (2, 3), "padding": (0, 0), "dilation": (1, 1)},
    "long": {"kernel": (2, 9), "stride": (1, 4), "padding": (1, 4), "dilation": (1, 1), "ceil_mode": True},
}
LAYOUTS = ["channels-first", "channels-last", "strided"]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def windows(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Options for an input of that shape, which it is large enough for."""
    options = dict(WINDOWS[name], ceil_mode=WINDOWS[name].get("ceil_mode", False))
    axes = len(shape) - 2
    options.update({k: v[-axes:] for k, v in options.items() if isinstance(v, tuple)})
    try:
        with gn.kernels("off"):
            pool.max_values(np.zeros(shape, np.float32), **options)
    except gn.errors.ShapeError:
        pytest.skip("larger than the input")
    return options


def both(op: Any, *arrays: np.ndarray, **options: Any) -> tuple[Any, Any]:
    """What the kernel gives, and the reference."""
    with gn.kernels("force"):
        found = op(*arrays, **options)
    with gn.kernels("off"), np.errstate(invalid="ignore"):
        return found, op(*arrays, **options)


def lies_as(a: np.ndarray, x: np.ndarray) -> bool:
    return (a.strides[1] == a.itemsize) == (x.strides[1] == x.itemsize) or 1 in (a.shape[1], *a.shape[2:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_maximum(name: str, shape: tuple[int, ...], layout: str) -> None:
    options = windows(name, shape)
    x = laid(rng.integers(-3, 3, shape).astype(np.float32), layout)  # many a maximum is there twice
    (y, offsets), (wanted, places) = both(pool.max_with_offsets, x, **options)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(offsets, places)
    assert y.dtype == np.float32 and offsets.dtype == np.uint8 and lies_as(y, x) and lies_as(offsets, x)
    np.testing.assert_array_equal(both(pool.max_values, x, **options)[0], wanted)

    del options["ceil_mode"]
    g = laid(normal(*y.shape), layout)
    for arrays in ((g, offsets), (normal(*y.shape), offsets)):  # one that lies otherwise, too
        dx, dx_wanted = both(pool.unpool, *arrays, shape=x.shape, **options)
        np.testing.assert_allclose(dx, dx_wanted, rtol=0, atol=2e-6)
        assert dx.dtype == np.float32 and dx.shape == x.shape and lies_as(dx, offsets)
    np.testing.assert_allclose(*both(pool.unpool_relu, g, y, offsets, shape=x.shape, **options), rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [n for n in WINDOWS if n != "dilated"])
def test_sum(name: str, shape: tuple[int, ...], layout: str) -> None:
    options = windows(name, shape)
    del options["dilation"]
    x = laid(normal(*shape), layout)
    y, wanted = both(pool.window_sum, x, **options, factor=0.3)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=2e-6)
    assert y.dtype == np.float32 and lies_as(y, x)
    g = laid(normal(*y.shape), layout)
    dx, dx_wanted = both(pool.spread, g, shape=x.shape, **options, factor=0.3)
    np.testing.assert_allclose(dx, dx_wanted, rtol=0, atol=2e-6)
    assert dx.dtype == np.float32 and lies_as(dx, g)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape, size", [((2, 5, 7, 9), (3, 4)), ((1, 40, 8, 5), (1, 5)), ((2, 3, 3, 4), (7, 2))], ids=str
)
def test_adaptive(shape: tuple[int, ...], size: tuple[int, ...], layout: str) -> None:
    x = laid(normal(*shape), layout)
    y, wanted = both(pool.adaptive_mean, x, size=size)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=2e-6)
    g = laid(normal(*y.shape), layout)
    np.testing.assert_allclose(*both(pool.adaptive_mean_grad, g, shape=shape), rtol=0, atol=2e-6)
    assert y.dtype == np.float32 and lies_as(y, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 20, 9, 11), (2, 3, 40, 40)], ids=str)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_as_torch(name: str, shape: tuple[int, ...], layout: str) -> None:
    torch = pytest.importorskip("torch")
    a = laid(normal(*shape), layout)
    for how in ((2,), (3, 2, 1), (3, 1, 1)):
        x, theirs = gn.asarray(a), torch.tensor(np.ascontiguousarray(a))
        x.requires_grad = theirs.requires_grad = True
        y, wanted = getattr(F, name)(x, *how), getattr(torch.nn.functional, name)(theirs, *how)
        np.testing.assert_allclose(y.detach().numpy(), wanted.detach().numpy(), rtol=0, atol=1e-6)
        (y * y).sum().backward()
        (wanted * wanted).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), theirs.grad.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["pairs", "overlapping", "every place"])
def test_what_is_not_finite(name: str, layout: str) -> None:
    options = windows(name, (1, 18, 8, 8))
    x = normal(1, 18, 8, 8)
    x[0, 2, 2, 2] = x[0, 3, 5, 5] = np.nan
    x[0, 4, 1, 1] = np.inf
    x[0, 5] = -np.inf
    found, wanted = both(pool.max_with_offsets, laid(x, layout), **options)
    for a, b in zip(found, wanted):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(found[0][0, 2]).any() and np.isinf(found[0][0, 4]).any()
    del options["dilation"]
    np.testing.assert_allclose(*both(pool.window_sum, laid(x, layout), **options), rtol=1e-5, atol=1e-5)


def test_what_the_kernels_do_not_take() -> None:
    options = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
    for x in (np.zeros((0, 3, 4, 4), np.float32), np.ones((1, 2, 4, 4)), np.ones((1, 2, 4, 4), np.int32)):
        y, offsets = pool.max_with_offsets(x, **options)
        assert y.dtype == x.dtype and y.shape == offsets.shape == (x.shape[0], x.shape[1], 2, 2)
    large = {**options, "kernel": (16, 16), "stride": (16, 16)}  # with more places than a byte can number
    x = normal(1, 2, 16, 16)
    y, offsets = pool.max_with_offsets(x, **large)
    assert (x.reshape(1, 2, -1).argmax(-1) == offsets[..., 0, 0]).all()
    with pytest.raises(gn.errors.ShapeError, match="larger than the input"):
        pool.max_with_offsets(x, **{**options, "kernel": (2, 17)})
    with pytest.raises(gn.errors.ShapeError, match="take an input of 4 axes"):
        pool.max_with_offsets(x[0], **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["pairs", "overlapping", "every place"])
def test_any_number_of_threads_gives_the_same_bits(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SPREAD", 1)  # so that small arrays are divided too
    x = laid(normal(3, 20, 13, 17), layout)
    options = windows(name, x.shape)
    how = {k: v for k, v in options.items() if k != "ceil_mode"}
    average = {k: v for k, v in options.items() if k != "dilation"}
    before = gn.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            gn.set_num_threads(count)
            with gn.kernels("force"):
                y, offsets = pool.max_with_offsets(x, **options)
                results.append(
                    [
                        y,
                        offsets,
                        pool.unpool(y, offsets, shape=x.shape, **how),
                        pool.window_sum(x, **average),
                        pool.spread(y, shape=x.shape, **average, factor=0.5),
                    ]
                )
    finally:
        gn.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)
