"""Reading, writing and finding elements by position."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops import index_kernels as cuda
from gpunet.ops import launch, sort_kernels
from gpunet.ops.op import Traced, kernel_launcher, op, raw
from gpunet.ops.shape import axis_of, expand_dims


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
    if isinstance(index, np.ndarray) and not isinstance(x, np.ndarray):
        backend = backend_of_type(type(x))
        return backend.from_numpy(index, backend.device_of(x))
    return index


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
def take(xp, x, indices, *, axis=None):
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
def take_along_axis(xp, x, indices, *, axis=-1):
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
def argsort(xp, x, *, axis=-1, descending=False, stable=True):
    """The indices that put x in order along an axis; equal elements keep theirs."""
    if descending:
        x = xp.flip(x, axis=axis)
        order = xp.flip(xp.argsort(x, axis=axis, stable=True), axis=axis)
        return x.shape[axis] - 1 - order
    return xp.argsort(x, axis=axis, stable=True)


def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """x in ascending (or descending) order along an axis. Differentiable."""
    return take_along_axis(x, argsort(x, axis=axis, descending=descending), axis=axis)


@op
def searchsorted(xp, x, values, *, side="left"):
    """Where each of `values` would be inserted into the sorted one-dimensional x to keep it sorted."""
    return xp.searchsorted(x, values, side=side)


@op
def nonzero(xp, x):
    """For each axis, the indices of the elements that are not zero, as a tuple of arrays."""
    return tuple(xp.nonzero(x))


@op
def unique_values(xp, x):
    """The distinct elements, in ascending order."""
    return xp.unique_values(x)


@op
def unique_counts(xp, x):
    """The distinct elements, in ascending order, and how often each occurs."""
    values, counts = xp.unique_counts(x)
    return values, counts


@op
def isin(xp, x, values):
    """For each element of x, whether it is among `values`."""
    return xp.isin(x, values)


@op
def bincount(xp, x, *, minlength=0):
    """How often each non-negative integer occurs in the one-dimensional x."""
    return xp.bincount(x, minlength=minlength)


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


@one_hot.kernel("index")
def _(launcher, x, *, num_classes, dtype):
    return cuda.one_hot(launcher, x, num_classes, np.dtype(dtype or np.int64))
