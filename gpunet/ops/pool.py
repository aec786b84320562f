"""Pooling in one, two or three dimensions: the maximum, the sum or the average of each window.

Max-pooling remembers where in its window each maximum was, as a small number; the gradient goes there (`unpool`), and
the gradient of that is read from there (`pick`). Sums and their gradients (`spread`) are each other's transpose.

Where the size of the output is given, windows are adaptive: window i of an axis of length n runs from
floor(i * n / size) to ceil((i + 1) * n / size). The number of a place in one counts as if all were as long as the
longest.
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
from gpunet.ops import pool_kernels as cuda
from gpunet.ops.elementwise import where
from gpunet.ops.index import take_along_axis
from gpunet.ops.matmul import tensordot
from gpunet.ops.op import Traced, op, raw
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


def max_pool_with_indices(
    x: Any, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> tuple[Any, Any]:
    """`max_pool`, and where in the input the maxima are, as `max_indices` says."""
    how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    y, numbers = max_with_offsets(x, **how, ceil_mode=ceil_mode)
    return y, max_indices(numbers, x.shape, kernel, stride, padding, dilation)


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
    offsets = xp.zeros_like(y, dtype=cuda.numbers_dtype(kernel))
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
def window_sum(xp, x, *, kernel, stride, padding, ceil_mode=False, divided_by=None, factor=1.0):
    """The sum of each window, times a factor; what is padded counts as zero.

    Args:
        divided_by: "inside" or "padded" for the average of a window's elements, those inside of the input or of the
            padded input; None for the sum.
    """
    ones = (1,) * len(kernel)
    out, covered = _geometry(x.shape, kernel, stride, padding, ones, ceil_mode)
    source = _padded(xp, x, padding, covered, 0)
    y = None
    for window in _windows(kernel, stride, ones, out):
        if y is None:
            y = source[window].copy()
        else:
            y += source[window]
    return _scaled(y, x.shape, kernel, stride, padding, ceil_mode, divided_by, factor)


@window_sum.vjp
def _(xp, g, _y, _x, *, kernel, stride, padding, ceil_mode, divided_by, factor):
    how = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return spread(g, shape=_x.shape, **how, divided_by=divided_by, factor=factor)


@op
def spread(xp, g, *, shape, kernel, stride, padding, ceil_mode=False, divided_by=None, factor=1.0):
    """Zeros of `shape`, with each element of g, times a factor, added to every place of its window: the transpose of
    `window_sum`."""
    g = _scaled(g, shape, kernel, stride, padding, ceil_mode, divided_by, factor)
    ones = (1,) * len(kernel)
    out = _empty_like_layout(xp, g, _covered(shape[2:], g.shape[2:], kernel, stride, padding, ones))
    out[...] = 0
    for window in _windows(kernel, stride, ones, g.shape[2:]):
        out[window] += g
    return out[_inside(shape[2:], padding)]


@spread.vjp
def _(xp, gg, _y, _g, *, shape, kernel, stride, padding, ceil_mode, divided_by, factor):
    how = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return window_sum(gg, **how, divided_by=divided_by, factor=factor)


def _scaled(
    y: Any,
    shape: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    divided_by: str | None,
    factor: float,
) -> Any:
    """y, an element for each window of an array of `shape`, times what `window_sum` multiplies its sums by."""
    if divided_by is not None:
        shares = _shares(tuple(shape), kernel, stride, padding, ceil_mode, divided_by == "padded")
        if not isinstance(shares, float):
            return y * _constant(shares * factor, y)
        factor *= shares
    return y if factor == 1 else y * factor


def avg_pool(
    x: Any,
    *,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Any:
    """The average of each window of x (N, C, *spatial), floating-point.

    Args:
        kernel, stride, padding: one int for each spatial axis.
        ceil_mode: whether a last window may hang over the end; what hangs over counts for nothing.
        count_include_pad: whether padded zeros count as elements of the average.
        divisor: what sums are divided by, if not the number of elements.
    """
    how: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    if divisor is not None:
        return window_sum(x, **how, factor=1.0 / divisor)
    divided_by = "padded" if count_include_pad else "inside"
    shares = _shares(tuple(x.shape), **how, count_include_pad=count_include_pad)
    if not isinstance(shares, float):
        return window_sum(x, **how, divided_by=divided_by)
    return window_sum(x, **how, factor=shares) if is_floating(x.dtype) else window_sum(x, **how) * shares


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


@op
def window_norm(xp, x, *, order, kernel, stride, padding, ceil_mode):
    """The norm of each window: (the sum of x**order) ** (1 / order), without the absolute values that a norm of odd
    order would have. The sum of a window that hangs over the end is scaled up to a whole one."""
    return window_sum(x**order, **_norm_sum(kernel, stride, padding, ceil_mode)) ** (1.0 / order)


@window_norm.vjp
def _(xp, g, y, x, *, order, kernel, stride, padding, ceil_mode):
    how = {"order": order, "kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return (_window_norm_grad if isinstance(g, Traced) else window_norm_grad)(g, x, y, **how)


@op
def window_norm_grad(xp, g, x, y, *, order, kernel, stride, padding, ceil_mode):
    """The gradient of `window_norm` with the result y; zero from windows whose norm is. Not differentiable."""
    return _window_norm_grad(g, x, y, order, kernel, stride, padding, ceil_mode)


def _window_norm_grad(
    g: Any, x: Any, y: Any, order: float, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool
) -> Any:
    zero = y == 0
    slope = where(zero, 0, g * where(zero, 1, y) ** (1.0 - order))
    return spread(slope, shape=x.shape, **_norm_sum(kernel, stride, padding, ceil_mode)) * x ** (order - 1.0)


def _norm_sum(kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool) -> dict[str, Any]:
    """How `window_norm` sums."""
    how = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return how | {"divided_by": "padded", "factor": float(prod(kernel))}


def max_indices(numbers: Any, shape: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Any:
    """Where in an input of `shape` the places are that `numbers` name in their windows, counted along all its spatial
    axes: int64. Windows with strides of 0 are adaptive.

    The number of a place before the input, which only a window without any number but -inf has, means the first place
    that is in it.
    """
    return numbered_places(
        numbers, shape=tuple(shape), kernel=kernel, stride=stride, padding=padding, dilation=dilation
    )


@op
def numbered_places(xp, numbers, *, shape, kernel, stride, padding, dilation):
    """`max_indices`. Not differentiable."""
    backend = backend_of_type(type(numbers))
    places = xp.zeros(numbers.shape, dtype=xp.int64)
    rest = numbers.astype(xp.int64)
    for axis, (n, out, k, s, p, d) in enumerate(zip(shape[2:], numbers.shape[2:], kernel, stride, padding, dilation)):
        weight = prod(kernel[axis + 1 :])
        begins = _begins(n, out) if s == 0 else np.arange(out) * s - p
        begins = begins.reshape(-1, *(1,) * (len(kernel) - axis - 1))
        at = rest // weight % k * d + backend.from_numpy(begins, backend.device_of(numbers))
        places = places * n + xp.where(at < 0, at % d, at)
    return places


@op
def place_maxima(xp, x, indices, *, size):
    """Zeros (N, C, *size) with the elements of x (N, C, *) at the places, counted along all axes of `size`, that the
    indices say; of several for one place, the last in C order."""
    planes = prod(x.shape[:2])
    y = xp.zeros((planes, prod(size)), dtype=x.dtype)
    length = prod(x.shape[2:])
    y[xp.arange(planes)[:, None], indices.reshape(planes, length)] = x.reshape(planes, length)
    return y.reshape(*x.shape[:2], *size)


@place_maxima.vjp
def _(xp, g, _y, _x, indices, *, size):
    planes = *_x.shape[:2], prod(size)
    at = indices.reshape((*_x.shape[:2], prod(_x.shape[2:])))
    return take_along_axis(g.reshape(planes), at, axis=2).reshape(_x.shape), None


# --- adaptive windows


def _check_adaptive(name: str, x: Any, size: Ints) -> None:
    """Raise ShapeError unless x has an axis for each of the sizes, and these are positive."""
    if x.ndim != len(size) + 2:
        raise ShapeError(f"{name}: sizes {size} take an input of {len(size) + 2} axes, got {tuple(x.shape)}")
    if min(size) < 1:
        raise ShapeError(f"{name}: the output sizes must be positive, got {size}")
    if min(x.shape[2:]) < 1:
        raise ShapeError(f"{name}: the spatial axes must not be empty, got {tuple(x.shape)}")


def _even_windows(x: Any, size: Ints) -> dict[str, Any] | None:
    """Ordinary windows, side by side, that the adaptive ones are where the sizes divide the lengths."""
    if any(n % out for n, out in zip(x.shape[2:], size)):
        return None
    step = tuple(n // out for n, out in zip(x.shape[2:], size))
    return {"kernel": step, "stride": step, "padding": (0,) * len(step)}


def _begins(length: int, size: int) -> np.ndarray:
    """Where the adaptive windows along an axis begin."""
    return np.arange(size) * length // size


def _ends(length: int, size: int) -> np.ndarray:
    return -(-np.arange(1, size + 1) * length // size)


@lru_cache(maxsize=1024)
def adaptive_windows(lengths: Ints, out: Ints) -> cuda.Windows:
    """The windows of `adaptive_mean` and `adaptive_max`."""
    longest = tuple(int((_ends(n, size) - _begins(n, size)).max()) for n, size in zip(lengths, out))
    zeros, ones = (0,) * len(out), (1,) * len(out)
    return cuda.Windows(tuple(lengths), tuple(out), longest, zeros, zeros, ones)


def _adaptive_places(xp: Any, x: Any, lengths: Ints, size: Ints) -> Any:
    """For each place in a window, by its number: where it lies in an array (N, C, *lengths) for all windows, and
    whether it is in them at all. What is not lies at the window's end."""
    backend = backend_of_type(type(x))
    windows = adaptive_windows(tuple(lengths), tuple(size))
    for place in product(*map(range, windows.kernel)):
        at, inside = [], np.ones((), bool)
        for n, out, k in zip(lengths, size, place):
            axis = _begins(n, out) + k
            at.append(np.minimum(axis, _ends(n, out) - 1))
            inside = inside[..., None] & (axis < _ends(n, out))
        device = backend.device_of(x)
        grid = tuple(backend.from_numpy(a, device) for a in np.ix_(*at))
        yield (slice(None), slice(None), *grid), backend.from_numpy(inside, device)


def adaptive_avg_pool(x: Any, *, output_size: Ints) -> Any:
    """The average of adaptive windows of x (N, C, *spatial): (N, C, *output_size)."""
    _check_adaptive("adaptive_avg_pool", x, output_size)
    even = _even_windows(x, output_size)
    return adaptive_mean(x, size=tuple(output_size)) if even is None else avg_pool(x, **even)


def adaptive_max_pool(x: Any, *, output_size: Ints) -> Any:
    """The maximum of adaptive windows of x (N, C, *spatial): (N, C, *output_size)."""
    _check_adaptive("adaptive_max_pool", x, output_size)
    even = _even_windows(x, output_size)
    if even is None:
        return adaptive_max(x, size=tuple(output_size))[0]
    return max_pool(x, **even, dilation=(1,) * len(output_size))


def adaptive_max_pool_with_indices(x: Any, *, output_size: Ints) -> tuple[Any, Any]:
    """`adaptive_max_pool`, and where in the input the maxima are, as `max_indices` says."""
    _check_adaptive("adaptive_max_pool", x, output_size)
    y, numbers = adaptive_max(x, size=tuple(output_size))
    windows = adaptive_windows(tuple(x.shape[2:]), tuple(output_size))
    return y, max_indices(numbers, x.shape, windows.kernel, windows.stride, windows.padding, windows.dilation)


@op
def adaptive_max(xp, x, *, size):
    """The maximum of each adaptive window, and its number in it: the first that has it, or the last that is NaN."""
    y: Any = None
    numbers: Any = None
    dtype = cuda.numbers_dtype(adaptive_windows(x.shape[2:], tuple(size)).kernel)
    for number, (at, inside) in enumerate(_adaptive_places(xp, x, x.shape[2:], size)):
        values = x[at]
        if y is None:
            y, numbers = values, xp.zeros(values.shape, dtype=dtype)
        else:
            instead = ((values > y) | (values != values)) & inside
            y = xp.where(instead, values, y)
            numbers[instead] = number
    return y, numbers


@adaptive_max.vjp
def _(xp, gs, ys, _x, *, size):
    return adaptive_unpool(gs[0], ys[1], shape=tuple(_x.shape))


@op
def adaptive_unpool(xp, g, numbers, *, shape):
    """Zeros of `shape`, with each element of g added at the place in its adaptive window that is numbered."""
    out = xp.zeros(shape, dtype=g.dtype)
    backend = backend_of_type(type(g))
    for number, (at, _inside) in enumerate(_adaptive_places(xp, g, shape[2:], g.shape[2:])):
        backend.scatter_add(out, at, g * (numbers == number))
    return out


@adaptive_unpool.vjp
def _(xp, gg, _y, _g, numbers, *, shape):
    return adaptive_pick(gg, numbers), None


@op
def adaptive_pick(xp, x, numbers):
    """The element of each adaptive window of x that is numbered."""
    y = xp.zeros(numbers.shape, dtype=x.dtype)
    for number, (at, _inside) in enumerate(_adaptive_places(xp, x, x.shape[2:], numbers.shape[2:])):
        y += x[at] * (numbers == number)
    return y


@adaptive_pick.vjp
def _(xp, g, _y, _x, numbers):
    return adaptive_unpool(g, numbers, shape=tuple(_x.shape)), None


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
    """The same for adaptive windows."""
    return _axes(*adaptive_windows(lengths, out))


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
def _(native, x, *, kernel, stride, padding, ceil_mode, divided_by, factor):
    out, about = _plan(x.shape, kernel, stride, padding, (1,) * len(kernel), ceil_mode)
    if divided_by is None:
        return _sum(native, x, out, about, factor)
    y = _sum(native, x, out, about, 1.0)
    return _scaled(y, x.shape, kernel, stride, padding, ceil_mode, divided_by, factor)


@spread.kernel("pool", platform="cpu", when=lambda g, **_: _fits(g))
def _(native, g, *, shape, kernel, stride, padding, ceil_mode, divided_by, factor):
    about = _axes(shape[2:], g.shape[2:], kernel, stride, padding, (1,) * len(kernel))
    if divided_by is not None:
        g = _scaled(g, shape, kernel, stride, padding, ceil_mode, divided_by, factor)
        factor = 1.0
    return _hand_back(native, g, shape, about, factor)


@adaptive_mean.kernel("pool", platform="cpu", when=lambda x, **_: _fits(x))
def _(native, x, *, size):
    return _sum(native, x, size, _adaptive_axes(x.shape[2:], size), 1.0)


@adaptive_mean_grad.kernel("pool", platform="cpu", when=lambda g, **_: _fits(g))
def _(native, g, *, shape):
    return _hand_back(native, g, shape, _adaptive_axes(shape[2:], g.shape[2:]), 1.0)


@adaptive_max.kernel(
    "pool", platform="cpu", when=lambda x, *, size: _is_last(x) and _fits_adaptive(x, x.shape[2:], size)
)
def _(native, x, *, size):
    return _max(native, x, True, (size, _adaptive_axes(x.shape[2:], size)))


@adaptive_unpool.kernel(
    "pool", platform="cpu", when=lambda g, numbers, *, shape: _fits_adaptive(g, shape[2:], g.shape[2:])
)
def _(native, g, numbers, *, shape):
    return _unpool(native, g, numbers, None, shape, _adaptive_axes(shape[2:], g.shape[2:]))


def _fits_adaptive(a: Any, lengths: Ints, size: Ints) -> bool:
    return _fits(a, adaptive_windows(lengths, size).kernel)


# --- CUDA's kernels


def _windows_of(x: Any, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> cuda.Windows:
    """The windows of an input x.

    Raises:
        ShapeError: as `_geometry`.
    """
    return _windows_in(x.shape, kernel, stride, padding, dilation, ceil_mode)


@lru_cache(maxsize=1024)
def _windows_in(
    shape: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> cuda.Windows:
    out, _covered = _geometry(shape, kernel, stride, padding, dilation, ceil_mode)
    return cuda.Windows(shape[2:], out, kernel, stride, padding, dilation)


def _ones(kernel: Ints) -> Ints:
    return (1,) * len(kernel)


@max_values.kernel("pool")
def _(launcher, x, *, kernel, stride, padding, dilation, ceil_mode):
    windows = _windows_of(x, kernel, stride, padding, dilation, ceil_mode)
    return cuda.largest(launcher, x, windows, None)[0] if cuda.takes(x, floating=False) else NotImplemented


@max_with_offsets.kernel("pool")
def _(launcher, x, *, kernel, stride, padding, dilation, ceil_mode):
    windows = _windows_of(x, kernel, stride, padding, dilation, ceil_mode)
    if not cuda.takes(x, floating=False):
        return NotImplemented
    return cuda.largest(launcher, x, windows, cuda.numbers_dtype(kernel))


@unpool.kernel("pool", when=lambda g, offsets, **_: cuda.takes(g))
def _(launcher, g, offsets, *, shape, kernel, stride, padding, dilation):
    windows = cuda.Windows(tuple(shape[2:]), g.shape[2:], kernel, stride, padding, dilation)
    return cuda.unpool(launcher, g, offsets, None, tuple(shape), windows)


@unpool_relu.kernel("pool", when=lambda g, y, offsets, **_: cuda.takes(g, y))
def _(launcher, g, y, offsets, *, shape, kernel, stride, padding, dilation):
    windows = cuda.Windows(tuple(shape[2:]), g.shape[2:], kernel, stride, padding, dilation)
    return cuda.unpool(launcher, g, offsets, y, tuple(shape), windows)


@pick.kernel("pool", when=lambda x, offsets, **_: cuda.takes(x, floating=False))
def _(launcher, x, offsets, *, kernel, stride, padding, dilation):
    windows = cuda.Windows(x.shape[2:], offsets.shape[2:], kernel, stride, padding, dilation)
    return cuda.pick(launcher, x, offsets, windows)


@window_sum.kernel("pool")
def _(launcher, x, *, kernel, stride, padding, ceil_mode, divided_by, factor):
    windows = _windows_of(x, kernel, stride, padding, _ones(kernel), ceil_mode)
    return cuda.total(launcher, x, windows, divided_by, factor) if cuda.takes(x) else NotImplemented


@spread.kernel("pool", when=lambda g, **_: cuda.takes(g))
def _(launcher, g, *, shape, kernel, stride, padding, ceil_mode, divided_by, factor):
    windows = cuda.Windows(tuple(shape[2:]), g.shape[2:], kernel, stride, padding, _ones(kernel))
    return cuda.spread(launcher, g, tuple(shape), windows, divided_by, factor)


@window_norm.kernel("pool")
def _(launcher, x, *, order, kernel, stride, padding, ceil_mode):
    windows = _windows_of(x, kernel, stride, padding, _ones(kernel), ceil_mode)
    return cuda.norm(launcher, x, windows, "padded", prod(kernel), order) if cuda.takes(x) else NotImplemented


@window_norm_grad.kernel("pool", when=lambda g, x, y, **_: cuda.takes(g, x, y))
def _(launcher, g, x, y, *, order, kernel, stride, padding, ceil_mode):
    windows = cuda.Windows(x.shape[2:], g.shape[2:], kernel, stride, padding, _ones(kernel))
    return cuda.norm_grad(launcher, g, x, y, windows, "padded", prod(kernel), order)


@numbered_places.kernel("pool")
def _(launcher, numbers, *, shape, kernel, stride, padding, dilation):
    windows = cuda.Windows(shape[2:], numbers.shape[2:], kernel, stride, padding, dilation)
    return cuda.indices(launcher, numbers, windows)


@place_maxima.kernel("pool", when=lambda x, indices, **_: cuda.takes(x) and indices.dtype == np.int64)
def _(launcher, x, indices, *, size):
    return cuda.place(launcher, x, indices, tuple(size))


@adaptive_mean.kernel("pool", when=lambda x, *, size: cuda.takes(x) and cuda.takes_adaptive(x.shape, size))
def _(launcher, x, *, size):
    return cuda.total(launcher, x, adaptive_windows(x.shape[2:], tuple(size)), "inside", 1.0)


@adaptive_mean_grad.kernel("pool", when=lambda g, *, shape: cuda.takes(g) and cuda.takes_adaptive(shape, g.shape[2:]))
def _(launcher, g, *, shape):
    windows = adaptive_windows(tuple(shape[2:]), g.shape[2:])
    return cuda.spread(launcher, g, tuple(shape), windows, "inside", 1.0)


@adaptive_max.kernel(
    "pool", when=lambda x, *, size: cuda.takes(x, floating=False) and cuda.takes_adaptive(x.shape, size)
)
def _(launcher, x, *, size):
    windows = adaptive_windows(x.shape[2:], tuple(size))
    return cuda.largest(launcher, x, windows, cuda.numbers_dtype(windows.kernel))


@adaptive_unpool.kernel(
    "pool", when=lambda g, numbers, *, shape: cuda.takes(g) and cuda.takes_adaptive(shape, g.shape[2:])
)
def _(launcher, g, numbers, *, shape):
    windows = adaptive_windows(tuple(shape[2:]), g.shape[2:])
    return cuda.unpool(launcher, g, numbers, None, tuple(shape), windows)


@adaptive_pick.kernel(
    "pool", when=lambda x, numbers: cuda.takes(x, floating=False) and cuda.takes_adaptive(x.shape, numbers.shape[2:])
)
def _(launcher, x, numbers):
    return cuda.pick(launcher, x, numbers, adaptive_windows(x.shape[2:], numbers.shape[2:]))
