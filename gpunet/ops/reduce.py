"""Over some or all axes: sums, means, extremes, and their positions.

`axis` is an int, a tuple of ints, or None for all axes; with `keepdims` the reduced axes stay, with length one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunet.dtypes import default_dtype
from gpunet.errors import ShapeError
from gpunet.ops import reduce_kernels as cuda
from gpunet.ops.chain import fused
from gpunet.ops.op import op
from gpunet.ops.shape import astype, axes_of, axis_of, broadcast_to, expand_dims, flip


def _expand(y: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    """`y`, a reduction of `x`, with the reduced axes put back with length one."""
    if keepdims or axis is None:  # what has no axes at all needs none put back to broadcast
        return y
    return expand_dims(y, axis=axes_of(axis, x.ndim))


def _length(x: Any, axis: Any) -> int:
    if axis is None:
        return math.prod(x.shape)
    n = 1
    for a in axes_of(axis, x.ndim):
        n *= x.shape[a]
    return n


def _wide(x: Any, dtype: Any) -> Any:
    """The type to add up in: float32 for float16, whose sums would lose most of their digits."""
    return "float32" if dtype is None and x.dtype.char == "e" else dtype


@op
def sum(xp, x, *, axis=None, dtype=None, keepdims=False):
    """The sum of the elements. float16 is added up in float32."""
    y = xp.sum(x, axis=axis, dtype=_wide(x, dtype), keepdims=keepdims)
    return xp.astype(xp.asarray(y), x.dtype) if dtype is None and x.dtype.char == "e" else y


@sum.vjp
def _(xp, g, _y, _x, *, axis, dtype, keepdims):
    return _spread(g, 1.0, _x, axis, keepdims)


def _spread(g: Any, factor: float, x: Any, axis: Any, keepdims: bool) -> Any:
    """The gradient of a sum over some axes of what is like x, times a factor; without a copy, unless it is small."""
    if axis is None and (type(g) is np.ndarray or isinstance(g, np.generic)) and math.prod(x.shape) < _SMALL:
        y = np.empty(x.shape, g.dtype)
        y.fill(g.item() * factor)
        return y
    g = _expand(g, x, axis, keepdims)
    return broadcast_to(g if factor == 1.0 else _scaled(None, g, factor), shape=x.shape)


_scaled = fused(lambda xp, g, factor: g * factor)
_along_centred = fused(lambda xp, g, x, mean, factor: g * (x - mean) * factor)
_along_deviation = fused(lambda xp, g, y, x, mean, factor: g / y * (x - mean) * factor)
_hits = fused(lambda xp, x, y: (x == y) * 1.0)
_shared = fused(lambda xp, g, hits, count: g * hits / count)


_SMALL = 2000  # elements that are written as fast as a view is made, and then read faster


@op
def mean(xp, x, *, axis=None, keepdims=False):
    """The arithmetic mean of the elements; of integers, in the default floating-point type."""
    if x.dtype.kind in "iub":
        return xp.mean(xp.astype(x, default_dtype()), axis=axis, keepdims=keepdims)
    return xp.mean(x, axis=axis, keepdims=keepdims)


@mean.vjp
def _(xp, g, _y, _x, *, axis, keepdims):
    return _spread(g, 1.0 / (_length(_x, axis) or 1), _x, axis, keepdims)


@op
def var(xp, x, *, axis=None, correction=0.0, keepdims=False):
    """The variance: the squared distances from the mean, added up and divided by n - correction.

    Of integers, in the default floating-point type; of float16, computed in float32.
    """
    return _statistic(xp, xp.var, x, axis=axis, correction=correction, keepdims=keepdims)


@var.vjp
def _(xp, g, _y, x, *, axis, correction, keepdims):
    factor = 2.0 * _one_over(_length(x, axis) - correction)
    return _along_centred(xp, _expand(g, x, axis, keepdims), x, mean(x, axis=axis, keepdims=True), factor)


@op
def std(xp, x, *, axis=None, correction=0.0, keepdims=False):
    """The standard deviation: the square root of the variance."""
    return _statistic(xp, xp.std, x, axis=axis, correction=correction, keepdims=keepdims)


@std.vjp
def _(xp, g, y, x, *, axis, correction, keepdims):
    g, y = _expand(g, x, axis, keepdims), _expand(y, x, axis, keepdims)
    factor = _one_over(_length(x, axis) - correction)
    return _along_deviation(xp, g, y, x, mean(x, axis=axis, keepdims=True), factor)


def _statistic(xp: Any, function: Any, x: Any, **options: Any) -> Any:
    if x.dtype.kind in "iub":
        return function(xp.astype(x, default_dtype()), **options)
    if x.dtype == "float16":  # squares overflow it from 256 on
        return xp.astype(xp.asarray(function(xp.astype(x, "float32"), **options)), x.dtype)
    return function(x, **options)


def _one_over(degrees: float) -> float:
    """1 / degrees of freedom; NaN, as the variance is, where there are none."""
    return 1.0 / degrees if degrees > 0 else math.nan


def _extreme_vjp(xp: Any, g: Any, y: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    """The gradient goes to the extreme element; where several are equal, they share it evenly."""
    hits = _hits(xp, x, _expand(y, x, axis, keepdims))
    if hits.dtype != x.dtype:
        hits = astype(hits, dtype=x.dtype)
    return _shared(xp, _expand(g, x, axis, keepdims), hits, sum(hits, axis=axis, keepdims=True))


@op
def max(xp, x, *, axis=None, keepdims=False):
    """The largest element; NaN if there is one. Equal ones share the gradient evenly."""
    return xp.max(x, axis=axis, keepdims=keepdims)


@op
def min(xp, x, *, axis=None, keepdims=False):
    """The smallest element; NaN if there is one. Equal ones share the gradient evenly."""
    return xp.min(x, axis=axis, keepdims=keepdims)


max.vjp(_extreme_vjp)
min.vjp(_extreme_vjp)


@op
def prod(xp, x, *, axis=None, dtype=None, keepdims=False):
    """The product of the elements."""
    return xp.prod(x, axis=axis, dtype=dtype, keepdims=keepdims)


@prod.vjp
def _(xp, g, y, x, *, axis, dtype, keepdims):
    g, y = _expand(g, x, axis, keepdims), _expand(y, x, axis, keepdims)
    if not bool(xp.any(x == 0)):
        return g * y / x
    # With zeros, dividing y by x loses what the others multiply to: form each product of the others.
    axes = axes_of(axis, x.ndim)
    rest = [a for a in range(x.ndim) if a not in axes]
    rows = xp.permute_dims(x, axes=tuple(rest) + axes)
    kept = rows.shape[: len(rest)]
    n = _length(x, axis)
    rows = xp.reshape(rows, shape=(*kept, 1, n))
    others = prod(xp.where(xp.eye(n, dtype=xp.bool, device=x.device), 1.0, rows), axis=-1)
    others = xp.reshape(others, shape=kept + tuple(x.shape[a] for a in axes))
    order = tuple(rest) + axes
    return g * xp.permute_dims(others, axes=tuple(order.index(a) for a in range(x.ndim)))


@op
def all(xp, x, *, axis=None, keepdims=False):
    """Whether all elements are true."""
    return xp.all(x, axis=axis, keepdims=keepdims)


@op
def any(xp, x, *, axis=None, keepdims=False):
    """Whether some element is true."""
    return xp.any(x, axis=axis, keepdims=keepdims)


@op
def count_nonzero(xp, x, *, axis=None, keepdims=False):
    """How many elements are not zero."""
    return xp.sum(x != 0, axis=axis, keepdims=keepdims)


@op
def argmax(xp, x, *, axis=None, keepdims=False):
    """The index (int64) of the first largest element; without `axis`, in the flattened array."""
    return xp.argmax(x, axis=axis, keepdims=keepdims)


@op
def argmin(xp, x, *, axis=None, keepdims=False):
    """The index (int64) of the first smallest element; without `axis`, in the flattened array."""
    return xp.argmin(x, axis=axis, keepdims=keepdims)


@op
def cumulative_sum(xp, x, *, axis=None, dtype=None, include_initial=False):
    """Running sums along `axis`, which may be left out for one-dimensional x; `include_initial` puts a zero first.

    They are of type `dtype`; by default that of x, or int64 and uint64 for smaller integers.
    """
    return _running(xp, x, axis, dtype, include_initial, "cumsum", xp.zeros)


@cumulative_sum.vjp
def _(xp, g, _y, _x, *, axis, dtype, include_initial):
    axis = _only_axis(_x, axis)
    if include_initial:
        g = g[(slice(None),) * axis + (slice(1, None),)]
    return flip(cumulative_sum(flip(g, axis=axis), axis=axis), axis=axis)


@op
def cumulative_prod(xp, x, *, axis=None, dtype=None, include_initial=False):
    """Running products along `axis`, which one-dimensional x does not need; `include_initial` puts a one first.

    They are of type `dtype`; by default that of x, or int64 and uint64 for smaller integers.
    """
    return _running(xp, x, axis, dtype, include_initial, "cumprod", xp.ones)


@cumulative_prod.vjp
def _(xp, g, y, x, *, axis, dtype, include_initial):
    axis = _only_axis(x, axis)
    if include_initial:
        later = (slice(None),) * axis + (slice(1, None),)
        g, y = g[later], y[later]
    if not bool(xp.any(x == 0)):
        return flip(cumulative_sum(flip(g * y, axis=axis), axis=axis), axis=axis) / x
    # With zeros, as in `prod`: the running products of the others, for each element in turn.
    g, rows = xp.moveaxis(g, axis, -1), xp.moveaxis(x, axis, -1)
    ones = xp.ones((rows.shape[-1],) * 2, dtype=xp.bool, device=x.device)
    others = xp.where(xp.tril(xp.triu(ones)), 1.0, expand_dims(rows, axis=-2))
    running = xp.where(xp.triu(ones), cumulative_prod(others, axis=-1), 0.0)
    return xp.moveaxis(sum(expand_dims(g, axis=-2) * running, axis=-1), -1, axis)


def _only_axis(x: Any, axis: int | None) -> int:
    if axis is None:
        if x.ndim != 1:
            raise ShapeError(
                f"a running sum or product needs an axis unless x is one-dimensional; x has shape {x.shape}"
            )
        return 0
    return axis_of("a running sum or product", axis, x.ndim)


def _running(xp: Any, x: Any, axis: int | None, dtype: Any, include_initial: bool, name: str, initial: Any) -> Any:
    axis = _only_axis(x, axis)
    y = getattr(xp, name)(x, axis=axis, dtype=dtype)  # NumPy 2.0 does not have the standard's names for these yet
    if include_initial:
        first = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        y = xp.concat([initial(first, dtype=y.dtype), y], axis=axis)
    return y


# --- on a GPU


def _attach(reduction: Any) -> None:
    name = reduction.name

    @reduction.kernel("reduce")
    def _(launcher, x, *, axis, keepdims, **options):
        return cuda.reduce(launcher, name, x, axis, keepdims, **options)


for _op in (sum, mean, var, std, max, min, prod, all, any, count_nonzero, argmax, argmin):
    _attach(_op)


@cumulative_sum.kernel("reduce")
def _(launcher, x, *, axis, dtype, include_initial):
    return cuda.scan(launcher, "Sum", x, _only_axis(x, axis), dtype, include_initial)


@cumulative_prod.kernel("reduce")
def _(launcher, x, *, axis, dtype, include_initial):
    return cuda.scan(launcher, "Product", x, _only_axis(x, axis), dtype, include_initial)
