"""Sums that the CPU computes as products, against float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gpunet.backends import Device, get_backend
from gpunet.ops import reduce

rng = np.random.default_rng(17)


@pytest.mark.parametrize("channels", [0, 1, 3, 64])
@pytest.mark.parametrize("sizes", [(), (0,), (5,), (6, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_over_all_axes_but_the_channels(dtype: type, sizes: tuple[int, ...], channels: int) -> None:
    x = (rng.standard_normal((9, *sizes, channels)) * 10).astype(dtype)
    axes = (0, *range(2, x.ndim))
    for a in (np.moveaxis(x, -1, 1), np.ascontiguousarray(np.moveaxis(x, -1, 1)), np.moveaxis(x, -1, 1)[::2]):
        found = reduce.sum(a, axis=axes)
        assert found.dtype == x.dtype and found.shape == (channels,)
        np.testing.assert_allclose(found, a.astype(np.float64).sum(axes), rtol=2e-3 if dtype == np.float16 else 1e-4)
        assert reduce.sum(a, axis=axes, keepdims=True).shape == (1, channels, *(1 for _ in sizes))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (3, 0)])
def test_means_and_sums_of_everything(dtype: type, shape: tuple[int, ...]) -> None:
    x = (rng.standard_normal(shape) * 10).astype(dtype)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no numbers there is no mean
        found, expected = reduce.mean(x), np.mean(x.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype is np.float16 else 1e-5)
    assert found.dtype == (x.dtype if x.dtype.kind == "f" else np.float32)
    np.testing.assert_allclose(reduce.sum(x), np.sum(x.astype(np.float64)), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_gradient_of_a_mean_is_read_only_and_costs_no_memory(dtype: type) -> None:
    x = np.ones((400, 300), dtype)
    gradient = reduce.mean.derivative(get_backend(Device("cpu")).xp, dtype(3.0), None, x, axis=None, keepdims=False)
    assert gradient.shape == x.shape and gradient.dtype == dtype and gradient.strides == (0, 0)
    assert not gradient.flags.writeable
    np.testing.assert_allclose(gradient, np.full(x.shape, 3.0 / x.size), rtol=1e-2)
