"""Image arithmetic on NumPy arrays, for `transforms`: every function takes a batch (N, C, H, W) of floats."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# ITU-R BT.601 luma, PIL's weights for grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@lru_cache(maxsize=64)
def _triangle_weights(size: int, new_size: int, antialias: bool) -> np.ndarray:
    """(new_size, size): row i holds the weights with which the old pixels make the new pixel i.

    A triangle around the new pixel's centre, two old pixels wide; when shrinking with antialias, two new pixels wide,
    so that no old pixel is skipped. Cut off and rescaled at the borders. PIL's and torch's (align_corners=False) rule.
    """
    scale = size / new_size
    reach = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new_size) + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / reach, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize_bilinear(x: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
    """Linear interpolation along each axis: as matrix products, one for the columns and one for the rows."""
    columns = x @ _triangle_weights(x.shape[3], size[1], antialias).T
    return _triangle_weights(x.shape[2], size[0], antialias) @ columns


def resize_nearest(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The old pixel under each new pixel's centre (torch's "nearest-exact", PIL's NEAREST). Any dtype."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(np.intp), old - 1)
        for old, new in zip(x.shape[2:], size)
    )
    return x[:, :, rows[:, None], columns]


def rotate(x: np.ndarray, degrees: np.ndarray, bilinear: bool, fill: float) -> np.ndarray:
    """Each image turned counter-clockwise about its centre by its own angle; `fill` where it has no pixels."""
    count, _, height, width = x.shape
    angle = np.radians(degrees)[:, None, None]
    down = np.arange(height)[:, None] - (height - 1) / 2
    right = np.arange(width) - (width - 1) / 2
    # Where in the old image each new pixel lies: the turn backwards (y points down).
    columns = np.cos(angle) * right - np.sin(angle) * down + (width - 1) / 2
    rows = np.sin(angle) * right + np.cos(angle) * down + (height - 1) / 2

    def pixels(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        places = np.where(inside, row * width + column, 0).astype(np.intp).reshape(count, 1, -1)
        values = np.take_along_axis(x.reshape(count, -1, height * width), places, axis=2).reshape(x.shape)
        return np.where(inside[:, None], values, np.asarray(fill, x.dtype))

    if not bilinear:
        return pixels(np.rint(rows), np.rint(columns))
    top, left = np.floor(rows), np.floor(columns)
    v, u = ((rows - top)[:, None].astype(x.dtype), (columns - left)[:, None].astype(x.dtype))
    above = pixels(top, left) * (1 - u) + pixels(top, left + 1) * u
    below = pixels(top + 1, left) * (1 - u) + pixels(top + 1, left + 1) * u
    return above * (1 - v) + below * v


def grey(x: np.ndarray) -> np.ndarray:
    """(N, 1, H, W): the luma of RGB images; grey images as they are."""
    return x if x.shape[1] == 1 else np.einsum("c,nchw->nhw", _LUMA.astype(x.dtype), x)[:, None]


def blend(x: np.ndarray, other: np.ndarray | float, factor: np.ndarray) -> np.ndarray:
    """`other` at factor 0, x at 1, beyond it above; one factor for each image, values kept in [0, 1]."""
    factor = factor.astype(x.dtype)[:, None, None, None]
    return np.clip(factor * x + (1 - factor) * other, 0, 1)


def shift_hue(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """RGB images in [0, 1] with their hue moved by `turn` (N,), in whole turns of the colour circle.

    A. R. Smith, "Color gamut transform pairs" (1978): HSV, of which value and chroma stay and only the hue changes.
    """
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    value = x.max(axis=1)
    chroma = value - x.min(axis=1)
    safe = np.where(chroma == 0, 1, chroma)
    sextant = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sextant = sextant + 6 * turn.astype(x.dtype)[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sextant) % 6
        channels.append(value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, axis=1)
