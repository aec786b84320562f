"""Pooling in one, two or three dimensions: the maximum, the sum or the average of each window.

Max-pooling remembers where in its window each maximum was, as a small number; the gradient goes there (`unpool`), and
the gradient of that is read from there (`pick`). Sums and their gradients (`spread`) are each other's transpose.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpunet.backends import backend_of_type, threads
from gpunet.dtypes import float32, is_floating
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
    return -xp.inf if is_floating(dtype) else xp.iinfo(dtype).min


def max_pool(x: Any, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False) -> Any:
    """The maximum of each window; NaN where the window has one.

    Args:
        x: (N, C, *spatial).
        kernel, stride, padding, dilation: one int for each spatial axis; what is padded never is the maximum.
        ceil_mode: whether a last window may hang over the end.

    Returns:
        (N, C, *output).
    """
    if getattr(x, "requires_grad", False):
        return max_with_offsets(
            x, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
        )[0]
    return max_values(x, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)


@op
def max_values(xp, x, *, kernel, stride, padding, dilation, ceil_mode):
    """`max_pool` where no gradient is wanted. Not differentiable."""
    out, covered = _geometry(x.shape, kernel, stride, padding, dilation, ceil_mode)
    source = _padded(xp, x, padding, covered, _least(xp, x.dtype))
    first, *others = (source[window] for window in _windows(kernel, stride, dilation, out))
    if not others:
        return first.copy()
    y = xp.maximum(first, others[0])
    for other in others[1:]:
        xp.maximum(y, other, out=y)
    return y


@op
def max_with_offsets(xp, x, *, kernel, stride, padding, dilation, ceil_mode):
    """`max_pool`, and of each maximum where in its window it is, as `max_offsets` says."""
    how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    y = max_values(x, **how, ceil_mode=ceil_mode)
    return y, max_offsets(x, y, **how)


@max_with_offsets.vjp
def _(xp, gs, ys, _x, *, kernel, stride, padding, dilation, ceil_mode):
    return unpool(gs[0], ys[1], shape=_x.shape, kernel=kernel, stride=stride, padding=padding, dilation=dilation)


@op
def max_offsets(xp, x, y, *, kernel, stride, padding, dilation):
    """The number, within its window in C order, of the first place where x has the maximum y, or of the last that is
    NaN: uint8 if it fits."""
    covered = _covered(x.shape[2:], y.shape[2:], kernel, stride, padding, dilation)
    source = _padded(xp, x, padding, covered, _least(xp, x.dtype))
    offsets = xp.zeros_like(y, dtype=numbers_dtype(kernel))
    windows = _windows(kernel, stride, dilation, y.shape[2:])
    # How many places in a row, from the first one on, are not it: Horner's scheme, from the last place but one.
    for window in windows[-2::-1]:
        offsets += 1
        offsets *= source[window] != y
    if is_floating(x.dtype) and (y != y).any():
        nan = _padded(xp, x != x, padding, covered, False)
        for number, window in enumerate(windows):
            offsets[nan[window]] = number
    return offsets


def numbers_dtype(kernel: Ints) -> np.dtype:
    """What the numbers of the places in a window are stored as."""
    return np.dtype(np.uint8 if prod(kernel) <= 255 else np.int32)


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
def unpool_relu(xp, g, y, offsets, *, shape, kernel, stride, padding, dilation):
    """`unpool` of what `relu` with the result y makes of its gradient g."""
    how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return unpool(g * (y > 0), offsets, shape=shape, **how)


@unpool_relu.vjp
def _(xp, gg, _y, _g, y, offsets, *, shape, kernel, stride, padding, dilation):
    how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return pick(gg, offsets, **how) * (y > 0), None, None


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
def window_sum(xp, x, *, kernel, stride, padding, ceil_mode=False, factor=1.0):
    """The sum of each window, times a factor; what is padded counts as zero."""
    ones = (1,) * len(kernel)
    out, covered = _geometry(x.shape, kernel, stride, padding, ones, ceil_mode)
    source = _padded(xp, x, padding, covered, 0)
    y = None
    for window in _windows(kernel, stride, ones, out):
        if y is None:
            y = source[window].copy()
        else:
            y += source[window]
    return y if factor == 1 else y * factor


@window_sum.vjp
def _(xp, g, _y, _x, *, kernel, stride, padding, ceil_mode, factor):
    how = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode, "factor": factor}
    return spread(g, shape=_x.shape, **how)


@op
def spread(xp, g, *, shape, kernel, stride, padding, ceil_mode, factor):
    """Zeros of `shape`, with each element of g, times a factor, added to every place of its window: the transpose of
    `window_sum`."""
    if factor != 1:
        g = g * factor
    ones = (1,) * len(kernel)
    out = _empty_like_layout(xp, g, _covered(shape[2:], g.shape[2:], kernel, stride, padding, ones))
    out[...] = 0
    for window in _windows(kernel, stride, ones, g.shape[2:]):
        out[window] += g
    return out[_inside(shape[2:], padding)]


@spread.vjp
def _(xp, gg, _y, _g, *, shape, kernel, stride, padding, ceil_mode, factor):
    return window_sum(gg, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode, factor=factor)


def avg_pool(
    x: Any, *, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool = False, count_include_pad: bool = True
) -> Any:
    """The average of each window of x (N, C, *spatial).

    Args:
        kernel, stride, padding: one int for each spatial axis.
        ceil_mode: whether a last window may hang over the end; what hangs over counts for nothing.
        count_include_pad: whether padded zeros count as elements of the average.
    """
    how: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    shares = _shares(tuple(x.shape), **how, count_include_pad=count_include_pad)
    if not isinstance(shares, float):
        total = window_sum(x, **how)
        return total * _constant(shares, total)
    return window_sum(x, **how, factor=shares) if x.dtype.kind == "f" else window_sum(x, **how) * shares


@lru_cache(maxsize=1024)
def _shares(
    shape: Ints, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool, count_include_pad: bool
) -> float | np.ndarray:
    """One by how many elements are in each window; a number where that is the same for all."""
    sizes = _geometry(shape, kernel, stride, padding, (1,) * len(kernel), ceil_mode)[0]
    counts = np.ones(())
    for n, k, s, p, out in zip(shape[2:], kernel, stride, padding, sizes):
        start = np.arange(out) * s - p
        end = np.minimum(start + k, n + p if count_include_pad else n)
        along = end - (start if count_include_pad else np.maximum(start, 0))
        counts = counts[..., None] * along
    first = counts.flat[0]
    return 1.0 / float(first) if (counts == first).all() else 1.0 / counts


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
    return adaptive_mean(x, size=tuple(output_size))


@op
def adaptive_mean(xp, x, *, size):
    """`adaptive_avg_pool` to any size."""
    for axis, weights in enumerate(map(_adaptive_weights, x.shape[2:], size), start=2):
        x = moveaxis(tensordot(x, _constant(weights, x), axes=((axis,), (0,))), source=-1, destination=axis)
    return x


@adaptive_mean.vjp
def _(xp, g, _y, _x, *, size):
    return adaptive_mean_grad(g, shape=_x.shape)


@op
def adaptive_mean_grad(xp, g, *, shape):
    """The gradient of `adaptive_mean` with respect to its input, of `shape`; its transpose."""
    for axis, weights in enumerate(map(_adaptive_weights, shape[2:], g.shape[2:]), start=2):
        g = moveaxis(tensordot(g, _constant(weights, g), axes=((axis,), (1,))), source=-1, destination=axis)
    return g


@adaptive_mean_grad.vjp
def _(xp, gg, _y, _g, *, shape):
    return adaptive_mean(gg, size=_g.shape[2:])


@lru_cache(maxsize=1024)
def _adaptive_weights(length: int, size: int) -> np.ndarray:
    """The share that each of `length` elements has in each of `size` averages."""
    weights = np.zeros((length, size))
    for i in range(size):
        window = slice(i * length // size, -(-(i + 1) * length // size))
        weights[window, i] = 1.0 / (window.stop - window.start)
    return weights


def _constant(values: Any, like: Any) -> Any:
    """A NumPy array as a raw array of the dtype and on the device of `like`, a Tensor or a raw array."""
    array = raw(like)
    backend = backend_of_type(type(array))
    return backend.from_numpy(values.astype(array.dtype), backend.device_of(array))


# --- the CPU's kernels


def _fits(x: Any, kernel: Ints = ()) -> bool:
    """Whether the CPU's kernels take an array (N, C, *spatial) and windows of it."""
    return x.dtype == float32 and x.ndim in (3, 4) and x.size > 0 and prod(kernel) <= 255


@lru_cache(maxsize=1024)
def _plan(
    shape: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Ints, np.ndarray]:
    """The number of windows along each spatial axis of x, of `shape`, and a Geometry for kernels/cpu/pool.cpp."""
    out, _covered = _geometry(shape, kernel, stride, padding, dilation, ceil_mode)
    return out, _axes(shape[2:], out, kernel, stride, padding, dilation)


@lru_cache(maxsize=1024)
def _axes(lengths: Ints, out: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> np.ndarray:
    """A Geometry for kernels/cpu/pool.cpp; one spatial axis becomes the second."""
    axes = list(zip(lengths, out, kernel, stride, padding, dilation))
    return np.array([(1, 1, 1, 1, 0, 1), *axes][-2:], np.int64)


@lru_cache(maxsize=1024)
def _adaptive_axes(lengths: Ints, out: Ints) -> np.ndarray:
    """The same for windows of different sizes, as of `adaptive_mean`."""
    longest = tuple(int((_adaptive_weights(n, size) > 0).sum(axis=0).max()) for n, size in zip(lengths, out))
    return _axes(lengths, out, longest, (0,) * len(out), (0,) * len(out), (1,) * len(out))


def _is_last(a: Any) -> bool:
    """Whether the channels are side by side in memory."""
    return a.strides[1] == a.itemsize and a.shape[1] > 1


def _lying(a: Any, last: bool) -> Any:
    """a as (N, C, H, W) with the channels side by side in memory, or else the columns; a copy if it is not so."""
    if a.strides[1 if last else -1] != a.itemsize:
        a, source = _new(a.shape, last, a.dtype), a
        a[...] = source
    return a if a.ndim == 4 else a[:, :, None]


def _new(shape: Ints, last: bool, dtype: Any = float32) -> np.ndarray:
    """A new array (N, C, *spatial), channels-last in memory or as its axes say."""
    if not last:
        return np.empty(shape, dtype)
    n, c, *spatial = shape
    return np.empty((n, *spatial, c), dtype).transpose(0, len(spatial) + 1, *range(1, len(spatial) + 1))


def _max(native: Any, x: Any, numbered: bool, plan: tuple[Ints, np.ndarray]) -> tuple[Any, Any]:
    """`max_with_offsets` of the CPU; without the offsets if not so wanted."""
    out, about = plan
    last, shape = _is_last(x), x.shape[:2] + out
    y, offsets = _new(shape, last), _new(shape, last, np.uint8) if numbered else None
    work = partial(native.pool_max, _lying(x, last), y, offsets, about, last)
    threads.split(_rows(y, 1 if last else shape[1]), work, x.size)
    return y, offsets


def _rows(a: Any, planes: int = 1) -> int:
    """How many rows a (N, C, *spatial) has, in as many planes for each sample."""
    return a.shape[0] * planes * (a.shape[2] if a.ndim == 4 else 1)


def _unpool(native: Any, g: Any, offsets: Any, y: Any, shape: Ints, about: np.ndarray) -> Any:
    """`unpool` of the CPU; where y is positive, unless it is None."""
    last = _is_last(offsets)
    dx = _new(shape, last)
    y = None if y is None else _lying(y, last)
    work = partial(native.pool_unpool, _lying(g, last), _lying(offsets, last), y, dx, about, last)
    threads.split(_rows(dx) if last else prod(shape[:2]), work, dx.size)
    return dx


@max_values.kernel("pool", platform="cpu", when=lambda x, *, kernel, **_: _fits(x, kernel))
def _(native, x, *, kernel, stride, padding, dilation, ceil_mode):
    return _max(native, x, False, _plan(x.shape, kernel, stride, padding, dilation, ceil_mode))[0]


@max_with_offsets.kernel("pool", platform="cpu", when=lambda x, *, kernel, **_: _fits(x, kernel))
def _(native, x, *, kernel, stride, padding, dilation, ceil_mode):
    return _max(native, x, True, _plan(x.shape, kernel, stride, padding, dilation, ceil_mode))


@unpool.kernel("pool", platform="cpu", when=lambda g, offsets, *, kernel, **_: _fits_back(g, offsets, kernel))
def _(native, g, offsets, *, shape, kernel, stride, padding, dilation):
    about = _axes(shape[2:], g.shape[2:], kernel, stride, padding, dilation)
    return _unpool(native, g, offsets, None, shape, about)


def _fits_back(g: Any, offsets: Any, kernel: Ints) -> bool:
    return _fits(g, kernel) and offsets.dtype == np.uint8 and offsets.shape == g.shape


@unpool_relu.kernel(
    "pool",
    platform="cpu",
    when=lambda g, y, offsets, *, kernel, **_: (
        _fits_back(g, offsets, kernel) and y.dtype == float32 and y.shape == g.shape
    ),
)
def _(native, g, y, offsets, *, shape, kernel, stride, padding, dilation):
    about = _axes(shape[2:], g.shape[2:], kernel, stride, padding, dilation)
    return _unpool(native, g, offsets, y, shape, about)


def _sum(native: Any, x: Any, out: Ints, about: np.ndarray, factor: float) -> Any:
    last = _is_last(x)
    y = _new((*x.shape[:2], *out), last)
    work = partial(native.pool_sum, _lying(x, last), y, about, factor, last)
    threads.split(_rows(y, 1 if last else y.shape[1]), work, x.size)
    return y


def _hand_back(native: Any, g: Any, shape: Ints, about: np.ndarray, factor: float) -> Any:
    """The transpose of `_sum`."""
    last = _is_last(g)
    dx = _new(shape, last)
    work = partial(native.pool_spread, _lying(g, last), dx, about, factor, last)
    threads.split(_rows(dx) if last else prod(shape[:2]), work, dx.size)
    return dx


@window_sum.kernel("pool", platform="cpu", when=lambda x, **_: _fits(x))
def _(native, x, *, kernel, stride, padding, ceil_mode, factor):
    out, about = _plan(x.shape, kernel, stride, padding, (1,) * len(kernel), ceil_mode)
    return _sum(native, x, out, about, factor)


@spread.kernel("pool", platform="cpu", when=lambda g, **_: _fits(g))
def _(native, g, *, shape, kernel, stride, padding, ceil_mode, factor):
    about = _axes(shape[2:], g.shape[2:], kernel, stride, padding, (1,) * len(kernel))
    return _hand_back(native, g, shape, about, factor)


@adaptive_mean.kernel("pool", platform="cpu", when=lambda x, **_: _fits(x))
def _(native, x, *, size):
    return _sum(native, x, size, _adaptive_axes(x.shape[2:], size), 1.0)


@adaptive_mean_grad.kernel("pool", platform="cpu", when=lambda g, **_: _fits(g))
def _(native, g, *, shape):
    return _hand_back(native, g, shape, _adaptive_axes(shape[2:], g.shape[2:]), 1.0)
