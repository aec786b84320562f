"""Arrays that lie in memory in other ways than C order."""

from __future__ import annotations

import numpy as np


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def laid(x: np.ndarray, how: str) -> np.ndarray:
    """The same values, otherwise in memory."""
    if how == "channels-last":
        return channels_last(x)
    if how == "strided":
        return np.repeat(x, 2, axis=-1)[..., ::2]
    return x
