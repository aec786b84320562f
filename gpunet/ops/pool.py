"""Pooling in one, two or three dimensions: the maximum, the sum or the average of each window.

Max-pooling remembers where in its window each maximum was, as a small number; the gradient goes there (`unpool`), and
the gradient of that is read from there (`pick`). Sums and their gradients (`spread`) are each other's transpose.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.errors import ShapeError
from gpunet.ops.matmul import tensordot
from gpunet.ops.op import op, raw
from gpunet.ops.shape import moveaxis

Ints = tuple[int, ...]


def output_size(n: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows an axis of length n has. With `ceil_mode` a last window may hang over the end, provided that
    it starts inside the input or the padding before it."""
    free = n + 2 * pad - dilation * (kernel - 1) - 1
    out = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= n + pad:
        out -= 1
    return out


def _windows(kernel: Ints, stride: Ints, dilation: Ints, out: Ints) -> list[tuple[slice, ...]]:
    """For each place in a window, in C order: where it lies in a padded input (N, C, *spatial), for all windows."""
    return [
        (slice(None), slice(None), *(slice(i * d, i * d + s * (n - 1) + 1, s) for i, s, d, n in axes))
        for axes in (zip(k, stride, dilation, out) for k in product(*map(range, kernel)))
    ]


def _geometry(x: Any, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> tuple[Ints, Ints]:
    """The number of windows along each spatial axis, and the lengths of the padded input that they cover.

    Raises:
        ShapeError: an input without the right number of axes, or smaller than a window.
    """
    if len(x) != len(kernel) + 2:
        raise ShapeError(
            f"pool: windows {kernel} take an input of {len(kernel) + 2} axes, (N, C, *spatial), got {tuple(x)}"
        )
    if min(stride) < 1 or min(dilation) < 1 or min(kernel) < 1:
        raise ShapeError(f"pool: kernel {kernel}, stride {stride} and dilation {dilation} must be positive")
    if any(2 * p > k for p, k in zip(padding, kernel)) or min(padding) < 0:
        raise ShapeError(f"pool: the padding {padding} must be between zero and half of the kernel {kernel}")
    out = tuple(
        output_size(n, k, s, p, d, ceil_mode) for n, k, s, p, d in zip(x[2:], kernel, stride, padding, dilation)
    )
    if min(out) < 1:
        raise ShapeError(f"pool: windows {kernel} are larger than the input of shape {tuple(x)} with padding {padding}")
    return out, _covered(x[2:], out, kernel, stride, padding, dilation)


def _covered(lengths: Ints, out: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Ints:
    """The lengths of the padded input as far as the windows reach, or the input itself."""
    return tuple(
        max((o - 1) * s + d * (k - 1) + 1, n + p)
        for o, s, d, k, n, p in zip(out, stride, dilation, kernel, lengths, padding)
    )


def _padded(xp: Any, x: Any, padding: Ints, covered: Ints, value: Any) -> Any:
    """x with `value` around it, up to the lengths `covered`, in the same order in memory."""
    if tuple(x.shape[2:]) == covered:
        return x
    out = _empty_like_layout(xp, x, covered)
    out[...] = value
    out[_inside(x.shape[2:], padding)] = x
    return out


def _empty_like_layout(xp: Any, x: Any, spatial: Ints) -> Any:
    """A new array (N, C, *spatial), channels-last in memory where x is."""
    n, c = x.shape[:2]
    if c > 1 and x.strides[1] == x.dtype.itemsize:
        return xp.moveaxis(xp.empty((n, *spatial, c), dtype=x.dtype), -1, 1)
    return xp.empty((n, c, *spatial), dtype=x.dtype)


def _inside(lengths: Ints, padding: Ints) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(p, p + n) for n, p in zip(lengths, padding)))


def _least(xp: Any, dtype: Any) -> Any:
    """What is no larger than any number of `dtype`, so that padding never is the maximum."""
    return -xp.inf if dtype.kind == "f" else xp.iinfo(dtype).min


@op
def max_pool(xp, x, *, kernel, stride, padding, dilation, ceil_mode=False):
    """The maximum of each window; NaN where the window has one.

    Args:
        x: (N, C, *spatial).
        kernel, stride, padding, dilation: one int for each spatial axis; what is padded never is the maximum.
        ceil_mode: whether a last window may hang over the end.

    Returns:
        (N, C, *output).
    """
    out, covered = _geometry(x.shape, kernel, stride, padding, dilation, ceil_mode)
    source = _padded(xp, x, padding, covered, _least(xp, x.dtype))
    first, *others = (source[window] for window in _windows(kernel, stride, dilation, out))
    if not others:
        return first.copy()
    y = xp.maximum(first, others[0])
    for other in others[1:]:
        xp.maximum(y, other, out=y)
    return y


@max_pool.vjp
def _(xp, g, y, x, *, kernel, stride, padding, dilation, ceil_mode):
    how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return unpool(g, max_offsets(x, y, **how), shape=x.shape, **how)


@op
def max_offsets(xp, x, y, *, kernel, stride, padding, dilation):
    """The number, within its window in C order, of the first place where x has the maximum y: uint8 if it fits.

    Where the maximum is NaN, which equals nothing, it is the last place of the window.
    """
    dtype = xp.uint8 if prod(kernel) <= 255 else xp.int32
    covered = _covered(x.shape[2:], y.shape[2:], kernel, stride, padding, dilation)
    source = _padded(xp, x, padding, covered, _least(xp, x.dtype))
    offsets = xp.zeros_like(y, dtype=dtype)
    # How many places in a row, from the first one on, are not it: Horner's scheme, from the last place but one.
    for window in _windows(kernel, stride, dilation, y.shape[2:])[-2::-1]:
        offsets += 1
        offsets *= source[window] != y
    return offsets


@op
def unpool(xp, g, offsets, *, shape, kernel, stride, padding, dilation):
    """Zeros of `shape`, with each element of g added at the place in its window that `offsets` names."""
    covered = _covered(shape[2:], g.shape[2:], kernel, stride, padding, dilation)
    out = _empty_like_layout(xp, g, covered)
    out[...] = 0
    disjoint = all(s >= d * (k - 1) + 1 for s, d, k in zip(stride, dilation, kernel))
    for number, window in enumerate(_windows(kernel, stride, dilation, g.shape[2:])):
        if disjoint:
            xp.multiply(g, offsets == number, out=out[window])
        else:
            out[window] += g * (offsets == number)
    return out[_inside(shape[2:], padding)]


@unpool.vjp
def _(xp, gg, _y, _g, offsets, *, shape, kernel, stride, padding, dilation):
    return pick(gg, offsets, kernel=kernel, stride=stride, padding=padding, dilation=dilation), None


@op
def pick(xp, x, offsets, *, kernel, stride, padding, dilation):
    """The element of each window of x that `offsets` names."""
    covered = _covered(x.shape[2:], offsets.shape[2:], kernel, stride, padding, dilation)
    source = _padded(xp, x, padding, covered, 0)
    y = xp.zeros(offsets.shape, dtype=x.dtype)
    for number, window in enumerate(_windows(kernel, stride, dilation, offsets.shape[2:])):
        y += source[window] * (offsets == number)
    return y


@pick.vjp
def _(xp, g, _y, _x, offsets, *, kernel, stride, padding, dilation):
    how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return unpool(g, offsets, shape=_x.shape, **how), None


@op
def window_sum(xp, x, *, kernel, stride, padding, ceil_mode=False):
    """The sum of each window; what is padded counts as zero."""
    ones = (1,) * len(kernel)
    out, covered = _geometry(x.shape, kernel, stride, padding, ones, ceil_mode)
    source = _padded(xp, x, padding, covered, 0)
    y = None
    for window in _windows(kernel, stride, ones, out):
        if y is None:
            y = source[window].copy()
        else:
            y += source[window]
    return y


@window_sum.vjp
def _(xp, g, _y, _x, *, kernel, stride, padding, ceil_mode):
    return spread(g, shape=_x.shape, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)


@op
def spread(xp, g, *, shape, kernel, stride, padding, ceil_mode):
    """Zeros of `shape`, with each element of g added to every place of its window: the transpose of `window_sum`."""
    ones = (1,) * len(kernel)
    out = _empty_like_layout(xp, g, _covered(shape[2:], g.shape[2:], kernel, stride, padding, ones))
    out[...] = 0
    for window in _windows(kernel, stride, ones, g.shape[2:]):
        out[window] += g
    return out[_inside(shape[2:], padding)]


@spread.vjp
def _(xp, gg, _y, _g, *, shape, kernel, stride, padding, ceil_mode):
    return window_sum(gg, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)


def avg_pool(
    x: Any, *, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool = False, count_include_pad: bool = True
) -> Any:
    """The average of each window of x (N, C, *spatial).

    Args:
        kernel, stride, padding: one int for each spatial axis.
        ceil_mode: whether a last window may hang over the end; what hangs over counts for nothing.
        count_include_pad: whether padded zeros count as elements of the average.
    """
    total = window_sum(x, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)
    counts = np.ones(())
    for n, k, s, p, out in zip(x.shape[2:], kernel, stride, padding, total.shape[2:]):
        start = np.arange(out) * s - p
        end = np.minimum(start + k, n + p if count_include_pad else n)
        along = end - (start if count_include_pad else np.maximum(start, 0))
        counts = counts[..., None] * along
    if (counts == counts.flat[0]).all():
        return total * (1.0 / float(counts.flat[0]))
    return total * _constant(1.0 / counts, total)


def adaptive_avg_pool(x: Any, *, output_size: Ints) -> Any:
    """The average of windows so chosen that the result is (N, C, *output_size): window i of an axis of length n runs
    from floor(i * n / size) to ceil((i + 1) * n / size)."""
    lengths = tuple(x.shape[2:])
    if len(lengths) != len(output_size):
        raise ShapeError(
            f"adaptive_avg_pool: sizes {output_size} take an input of {len(output_size) + 2} axes, got {tuple(x.shape)}"
        )
    if min(output_size) < 1:
        raise ShapeError(f"adaptive_avg_pool: the output sizes must be positive, got {output_size}")
    if not any(n % size for n, size in zip(lengths, output_size)):
        step = tuple(n // size for n, size in zip(lengths, output_size))
        return avg_pool(x, kernel=step, stride=step, padding=(0,) * len(step))
    for axis, (n, size) in enumerate(zip(lengths, output_size), start=2):
        weights = np.zeros((n, size))
        for i in range(size):
            window = slice(i * n // size, -(-(i + 1) * n // size))
            weights[window, i] = 1.0 / (window.stop - window.start)
        x = moveaxis(tensordot(x, _constant(weights, x), axes=((axis,), (0,))), source=-1, destination=axis)
    return x


def _constant(values: Any, like: Any) -> Any:
    """A NumPy array as a raw array of the dtype and on the device of `like`, a Tensor or a raw array."""
    array = raw(like)
    backend = backend_of_type(type(array))
    return backend.from_numpy(values.astype(array.dtype), backend.device_of(array))
