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
    count, channels, height, width = x.shape
    angle = np.radians(degrees)[:, None, None]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    down = np.arange(height, dtype=x.dtype)[:, None] - (height - 1) / 2
    right = np.arange(width, dtype=x.dtype) - (width - 1) / 2
    # Where in the old image each new pixel lies: the turn backwards (y points down).
    columns = cos * right - sin * down + (width - 1) / 2
    rows = sin * right + cos * down + (height - 1) / 2
    # With a border of `fill`, as wide as interpolation reaches, every place outside is a place on the border.
    bordered = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)), constant_values=fill)
    rows, columns = np.clip(rows, -1, height) + 1, np.clip(columns, -1, width) + 1
    pixels = bordered.transpose(1, 0, 2, 3).reshape(channels, -1)  # so that a place is one index for all channels
    first = np.arange(count)[:, None, None] * ((height + 3) * (width + 3))

    def look_up(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return pixels.take(first + row * (width + 3) + column, axis=1)

    if bilinear:
        top, left = rows.astype(np.intp), columns.astype(np.intp)
        v, u = (rows - top).astype(x.dtype), (columns - left).astype(x.dtype)
        above, below = (look_up(row, left) * (1 - u) + look_up(row, left + 1) * u for row in (top, top + 1))
        out = above * (1 - v) + below * v
    else:
        out = look_up(np.rint(rows).astype(np.intp), np.rint(columns).astype(np.intp))
    return np.ascontiguousarray(out.transpose(1, 0, 2, 3))


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
