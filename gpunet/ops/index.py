"""Reading, writing and finding elements by position."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.errors import DeviceError, DTypeError, ShapeError
from gpunet.ops import index_kernels as cuda
from gpunet.ops import launch, sort_kernels
from gpunet.ops.elementwise import not_equal, subtract
from gpunet.ops.op import Traced, kernel_launcher, op, raw
from gpunet.ops.shape import axis_of, concat, expand_dims, reshape


def raw_key(x: Any, key: Any) -> Any:
    """An index expression for x, with its Tensors, sequences and NumPy arrays replaced by raw arrays where x is.

    The arrays are copies: a derivative will read them, and they may be changed before.
    """
    return tuple(_raw_index(x, k) for k in key) if isinstance(key, tuple) else _raw_index(x, key)


def _raw_index(x: Any, index: Any) -> Any:
    if isinstance(index, (list, tuple, range)):
        index = np.asarray(index, dtype=None if len(index) else np.int64)
    elif isinstance(index, (Traced, np.ndarray)):
        index = raw(index).copy()
        if not isinstance(index, (np.ndarray, type(x))):
            raise DeviceError(
                f"an index is on {_device_of(index)} and the array on {_device_of(x)}; move it there first"
            )
    if isinstance(index, np.ndarray) and not isinstance(x, np.ndarray):
        backend = backend_of_type(type(x))
        return backend.from_numpy(index, backend.device_of(x))
    return index


def _device_of(x: Any) -> Any:
    return backend_of_type(type(x)).device_of(x)


def _selects_once(key: Any) -> bool:
    """Whether an index expression reads each element at most once: it has no integer arrays."""
    return not any(getattr(k, "ndim", 0) and k.dtype.kind in "iu" for k in (key if isinstance(key, tuple) else (key,)))


@op(view=True)
def getitem(xp, x, *, key):
    """x[key], for the index expressions that NumPy knows."""
    return x[key]


@getitem.vjp
def _(xp, g, _y, _x, *, key):
    return _scatter(g, key=key, shape=_x.shape)


@op
def _scatter(xp, g, *, key, shape):
    """Zeros of `shape`, with g added at [key]: what x[key] does to a gradient."""
    out = xp.zeros(shape, dtype=g.dtype)
    if _selects_once(key):
        out[key] = g
    else:
        backend_of_type(type(g)).scatter_add(out, key, g)
    return out


@_scatter.vjp
def _(xp, g, _y, _g, *, key, shape):
    return getitem(g, key=key)


@op
def setitem(xp, x, value, *, key):
    """A copy of x with x[key] replaced by `value`, which broadcasts."""
    y = x.copy()
    y[key] = value
    return y


def _write(xp: Any, target: Any, value: Any, params: dict[str, Any]) -> None:
    launcher = kernel_launcher(target)
    if launcher is None or not cuda.assign(launcher, target, params["key"], value):
        target[params["key"]] = value


setitem.write = _write


@setitem.vjp
def _(xp, g, _y, _x, _value, *, key):
    def to_value() -> Any:
        part = getitem(g, key=key)
        return part if _selects_once(key) else part * _last_written(raw(g), key)

    return (lambda: setitem(g, 0.0, key=key)), to_value


def _last_written(x: Any, key: Any) -> Any:
    """For each element of a value written to x[key]: whether it stayed there, or an equal index overwrote it."""
    xp = backend_of_type(type(x)).xp
    writers = xp.zeros(x.shape, dtype="int64")
    numbers = xp.arange(writers[key].size).reshape(writers[key].shape)
    writers[key] = numbers
    return writers[key] == numbers


def _check_integers(name: str, indices: Any) -> None:
    given = getattr(indices, "dtype", None)
    if given is None or given.kind not in "iu":
        raise DTypeError(f"{name}: indices must be an array of integers, got {given or type(indices).__name__}")


@op
def take(xp, x, indices, /, *, axis=None):
    """The elements at `indices` (integers) along an axis, which may be left out for one-dimensional x.

    Raises:
        DTypeError: `indices` is no array of integers.
        IndexError: an index is out of range (on the CPU; CuPy wraps around).
    """
    if axis is None and x.ndim != 1:
        raise ShapeError(f"take: needs an axis unless x is one-dimensional; x has shape {x.shape}")
    _check_integers("take", indices)
    return xp.take(x, indices, axis=axis)


@take.vjp
def _(xp, g, _y, _x, indices, *, axis):
    key = (slice(None),) * ((axis or 0) % _x.ndim) + (raw(indices),)
    return _scatter(g, key=key, shape=_x.shape), None


@op
def take_along_axis(xp, x, indices, /, *, axis=-1):
    """For each position, the element of x at `indices` (integers, as many axes as x) along `axis`.

    Raises:
        DTypeError: `indices` is no array of integers.
    """
    _check_integers("take_along_axis", indices)
    return xp.take_along_axis(x, indices, axis=axis)


@take_along_axis.vjp
def _(xp, g, _y, _x, indices, *, axis):
    return _scatter_along(g, indices, axis=axis, shape=_x.shape), None


@op
def _scatter_along(xp, g, indices, *, axis, shape):
    """Zeros of `shape`, with g added at `indices` along `axis`: what take_along_axis does to a gradient."""
    return _scatter.reference(xp, g, key=_along(indices, shape, axis), shape=shape)


@_scatter_along.vjp
def _(xp, g, _y, _g, indices, *, axis, shape):
    return take_along_axis(g, indices, axis=axis), None


def _along(indices: Any, shape: tuple[int, ...], axis: int) -> tuple[Any, ...]:
    """The index expression that take_along_axis stands for."""
    xp = backend_of_type(type(indices)).xp
    axis %= len(shape)
    key = []
    for a, n in enumerate(indices.shape):
        line = (1,) * a + (-1,) + (1,) * (len(shape) - a - 1)
        key.append(indices if a == axis else xp.reshape(xp.arange(n, device=indices.device), line))
    return tuple(key)


@op
def argsort(xp, x, /, *, axis=-1, descending=False, stable=True):
    """The indices that put x in order along an axis; equal elements keep theirs. NaN counts as the largest number.

    Raises:
        ShapeError: there is no such axis.
    """
    axis = axis_of("argsort", axis, x.ndim)
    if descending:
        x = xp.flip(x, axis=axis)
        order = xp.flip(xp.argsort(x, axis=axis, stable=True), axis=axis)
        return x.shape[axis] - 1 - order
    return xp.argsort(x, axis=axis, stable=True)


def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """x in ascending (or descending) order along an axis, NaN as the largest number. Differentiable.

    Raises:
        ShapeError: there is no such axis.
    """
    axis = axis_of("sort", axis, x.ndim)
    return take_along_axis(x, argsort(x, axis=axis, descending=descending), axis=axis)


class TopK(NamedTuple):
    """What `top_k` finds."""

    values: Any
    indices: Any


def top_k(x: Any, k: int, /, *, axis: int = -1, largest: bool = True) -> TopK:
    """The k largest (or smallest) elements along an axis, and where they are. The values are differentiable.

    Args:
        x: any shape S, real.
        k: how many, from 0 to the length of the axis.
        axis: which one.
        largest: False: the smallest ones.

    Returns:
        (values, indices), each of shape S with k in the place of the axis: from the largest (or smallest) on, equal
        ones in their order. NaN counts as the largest number.

    Raises:
        ShapeError: there is no such axis, or it has fewer than k elements.
    """
    axis = axis_of("top_k", axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ShapeError(f"top_k: expected k from 0 to {x.shape[axis]} along axis {axis} of {tuple(x.shape)}, got {k}")
    indices = argsort(x, axis=axis, descending=largest)[(slice(None),) * axis + (slice(k),)]
    return TopK(take_along_axis(x, indices, axis=axis), indices)


@op
def _searchsorted(xp, x1, x2, *, side):
    x1, x2 = _as_arrays(xp, x1, x2)
    dtype = np.result_type(x1.dtype, x2.dtype)
    return xp.searchsorted(xp.astype(x1, dtype, copy=False), xp.astype(x2, dtype, copy=False), side=side)


def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None) -> Any:
    """Where each element of x2 would be inserted into x1 to keep it sorted.

    Args:
        x1: (N,), in ascending order, NaN last.
        x2: any shape S, or a number.
        side: "left": before elements of x1 that are equal to it; "right": after them.
        sorter: (N,), integers: the indices that sort x1, if it is not sorted itself.

    Returns:
        S, int64: indices from 0 to N.

    Raises:
        ShapeError: x1 is not one-dimensional.
        ValueError: `side` is neither of the two.
    """
    if getattr(x1, "ndim", None) != 1:
        raise ShapeError(f"searchsorted: expected a one-dimensional x1, got shape {getattr(x1, 'shape', ())}")
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side must be "left" or "right", got {side!r}')
    return _searchsorted(x1 if sorter is None else take(x1, sorter), x2, side=side)


def _as_arrays(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Two arguments, one of which may be a Python number, as arrays."""
    if not hasattr(a, "dtype"):
        a = xp.asarray(a, dtype=np.result_type(b.dtype, a))
    if not hasattr(b, "dtype"):
        b = xp.asarray(b, dtype=np.result_type(a.dtype, b))
    return a, b


@op
def nonzero(xp, x, /):
    """For each axis, the indices of the elements that are not zero, as a tuple of arrays.

    Raises:
        ShapeError: x has no axes.
    """
    if not x.ndim:
        raise ShapeError("nonzero: expected an array of at least one axis, got shape ()")
    return tuple(xp.nonzero(x))


@op
def _unique(xp, x, *, indices=False, inverse=False, counts=False):
    """The distinct elements, in ascending order, and on demand where each is first, where each element of x is among
    them, and how often each occurs."""
    found = xp.unique(
        xp.reshape(x, (-1,)), return_index=indices, return_inverse=inverse, return_counts=counts, equal_nan=False
    )
    found = list(found) if isinstance(found, (tuple, list)) else [found]
    if inverse:
        found[1 + indices] = xp.reshape(found[1 + indices], x.shape)
    return tuple(found)


@_unique.vjp
def _(xp, gs, _ys, x, *, indices, inverse, counts):
    """The gradient of a value goes to the first of the elements that are equal to it."""
    _, first = _unique(raw(x), indices=True)
    flat = _scatter(gs[0], key=(first,), shape=(x.size,))
    return reshape(flat, shape=x.shape)


class UniqueAll(NamedTuple):
    """What `unique_all` finds."""

    values: Any
    indices: Any
    inverse_indices: Any
    counts: Any


class UniqueCounts(NamedTuple):
    """What `unique_counts` finds."""

    values: Any
    counts: Any


class UniqueInverse(NamedTuple):
    """What `unique_inverse` finds."""

    values: Any
    inverse_indices: Any


def unique_all(x: Any, /) -> UniqueAll:
    """The distinct elements, and everything about them. Each NaN is distinct from all others.

    Args:
        x: any shape S.

    Returns:
        values: (n,), in ascending order, of x's dtype. Differentiable: of equal elements, the first gets the gradient.
        indices: (n,), int64: where each is first, in the flattened x.
        inverse_indices: S, int64: for each element of x, which of the values it is.
        counts: (n,), int64: how often each occurs.
    """
    return UniqueAll(*_unique(x, indices=True, inverse=True, counts=True))


def unique_counts(x: Any, /) -> UniqueCounts:
    """The distinct elements, in ascending order, and how often each occurs; see `unique_all`."""
    return UniqueCounts(*_unique(x, counts=True))


def unique_inverse(x: Any, /) -> UniqueInverse:
    """The distinct elements, in ascending order, and for each of x which it is; see `unique_all`."""
    return UniqueInverse(*_unique(x, inverse=True))


def unique_values(x: Any, /) -> Any:
    """The distinct elements, in ascending order; see `unique_all`."""
    return _unique(x)[0]


@op
def isin(xp, x1, x2, /, *, invert=False):
    """For each element of x1, whether it is among those of x2. Either may be a number.

    Args:
        x1: any shape.
        x2: any shape.
        invert: say whether it is not.

    Returns:
        Booleans of the shape of x1.
    """
    for number, array in ((x1, x2), (x2, x1)):
        if isinstance(number, int) and array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)
            if not limits.min <= number <= limits.max:
                return xp.full(getattr(x1, "shape", ()), invert)
    x1, x2 = _as_arrays(xp, x1, x2)
    return xp.isin(x1, x2, invert=invert)


def diff(x: Any, /, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """The differences x[i + 1] - x[i] along an axis, n times over; of booleans, whether they differ. Differentiable.

    By position the arguments are NumPy's, which is how scikit-learn gives n; the standard has them by name.

    Args:
        x: any shape.
        n: how many times.
        axis: which one.
        prepend: joined before x along the axis at first: an array of the shape of x but for the axis.
        append: likewise, after x.

    Returns:
        x's shape, with n elements less along the axis (none, if there are no more than n).

    Raises:
        ShapeError: there is no such axis.
        ValueError: n is negative, or what is to be joined does not fit.
    """
    axis = axis_of("diff", axis, x.ndim)
    if n < 0:
        raise ValueError(f"diff: n must not be negative, got {n}")
    if prepend is not None or append is not None:
        x = concat([part for part in (prepend, x, append) if part is not None], axis=axis)
    before = (slice(None),) * axis
    for _ in range(n):
        minuend, subtrahend = x[(*before, slice(1, None))], x[(*before, slice(-1))]
        x = (not_equal if x.dtype.kind == "b" else subtract)(minuend, subtrahend)
    return x


@op
def _bincount(xp, x, weights, *, minlength):
    return xp.bincount(x, weights=weights, minlength=minlength)


@_bincount.vjp
def _(xp, g, _y, x, _weights, *, minlength):
    return None, lambda: take(g, x)


def bincount(x: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    """How often each integer from zero on occurs in x, or the sum of the weights of those that are equal to it.

    Args:
        x: (N,), integers, none of them negative.
        weights: (N,), of the elements; differentiable.
        minlength: how many integers to count, if x has no larger ones.

    Returns:
        int64, or with weights float64, as many as `minlength`, or the largest of x and one.

    Raises:
        ShapeError: x is not one-dimensional, or the weights are not of its shape.
        DTypeError: x is no array of integers.
        ValueError: one is negative.
    """
    if x.ndim != 1 or (weights is not None and weights.shape != x.shape):
        given = "" if weights is None else f" and weights of shape {tuple(weights.shape)}"
        raise ShapeError(f"bincount: expected one axis, and as many weights as elements, got {tuple(x.shape)}{given}")
    _check_integers("bincount", x)
    return _bincount(x, weights, minlength=minlength)


@op
def one_hot(xp, x, *, num_classes, dtype=None):
    """For each class index in x, a row of `num_classes` entries: one at the index, zero elsewhere.

    Args:
        x: integers in [0, num_classes), any shape S.
        num_classes: length of the new last axis.
        dtype: of the result; default int64.
    """
    return (expand_dims(x, axis=-1) == xp.arange(num_classes, device=x.device)).astype(dtype or "int64")


# --- on a GPU


@getitem.kernel("index")
def _(launcher, x, *, key):
    return cuda.getitem(launcher, x, key)


@_scatter.kernel("index")
def _(launcher, g, *, key, shape):
    return cuda.scatter(launcher, g, key, shape)


@setitem.kernel("index")
def _(launcher, x, value, *, key):
    y = launch.copy(launcher, x)
    return y if y is not NotImplemented and cuda.assign(launcher, y, key, value) else NotImplemented


@take.kernel("index")
def _(launcher, x, indices, *, axis):
    if axis is None and x.ndim != 1:
        return NotImplemented  # the reference says what is wrong
    _check_integers("take", indices)
    return cuda.gather(launcher, x, (slice(None),) * axis_of("take", axis or 0, x.ndim) + (indices,))


@take_along_axis.kernel("index")
def _(launcher, x, indices, *, axis):
    _check_integers("take_along_axis", indices)
    return cuda.along(launcher, x, indices, axis_of("take_along_axis", axis, x.ndim))


@_scatter_along.kernel("index")
def _(launcher, g, indices, *, axis, shape):
    return cuda.scatter_along(launcher, g, indices, axis % len(shape), shape)


@argsort.kernel("sort")
def _(launcher, x, *, axis, descending, stable):
    return sort_kernels.argsort(launcher, x, axis_of("argsort", axis, x.ndim), descending)


@_bincount.kernel("index")
def _(launcher, x, weights, *, minlength):
    """Weights are added up in their order, where CuPy would in any."""
    if weights is None:
        return NotImplemented
    least, most = (int(x.min()), int(x.max())) if x.size else (0, -1)
    if least < 0:
        raise ValueError(f"bincount: expected no negative integers, got {least}")
    return cuda.scatter(launcher, weights.astype("float64"), (x,), (max(most + 1, minlength),))


@one_hot.kernel("index")
def _(launcher, x, *, num_classes, dtype):
    return cuda.one_hot(launcher, x, num_classes, np.dtype(dtype or np.int64))
