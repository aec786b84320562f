"""Sums that the CPU computes as products, against float64."""

from __future__ import annotations

import numpy as np
import pytest

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
