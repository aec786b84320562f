"""Linear algebra beyond products: diagonals, traces, outer and cross products, norms of vectors."""

from __future__ import annotations

from typing import Any

from gpunet.errors import ShapeError
from gpunet.ops.elementwise import conj
from gpunet.ops.op import op
from gpunet.ops.reduce import sum
from gpunet.ops.shape import astype, axes_of, expand_dims, reshape


@op(view=True)
def diagonal(xp, x, *, offset=0):
    """The diagonal of each matrix (..., M, N), `offset` places above the main one."""
    return xp.linalg.diagonal(x, offset=offset)


@diagonal.vjp
def _(xp, g, _y, _x, *, offset):
    return _embed_diagonal(g, offset=offset, shape=_x.shape)


@op
def _embed_diagonal(xp, d, *, offset, shape):
    """Zeros of `shape` with d on a diagonal of each matrix."""
    out = xp.zeros(shape, dtype=d.dtype)
    i = xp.arange(d.shape[-1])
    out[..., i + max(-offset, 0), i + max(offset, 0)] = d
    return out


@_embed_diagonal.vjp
def _(xp, g, _y, _d, *, offset, shape):
    return diagonal(g, offset=offset)


def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Any:
    """The sum of a diagonal of each matrix (..., M, N), `offset` places above the main one, added up in `dtype`."""
    return sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


def outer(x1: Any, x2: Any, /) -> Any:
    """All products of an element of the vector x1 (M,) and one of x2 (N,): (M, N).

    Raises:
        ShapeError: an argument is no vector.
    """
    if x1.ndim != 1 or x2.ndim != 1:
        raise ShapeError(f"outer: expected two vectors, got shapes {tuple(x1.shape)} and {tuple(x2.shape)}")
    return reshape(x1, shape=(-1, 1)) * reshape(x2, shape=(1, -1))


@op
def _cross(xp, a, b, *, axis):
    return xp.cross(a, b, axis=axis)


@_cross.vjp
def _(xp, g, _y, a, b, *, axis):
    return (lambda: _cross(b, g, axis=axis)), (lambda: _cross(g, a, axis=axis))


def cross(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
    """The cross product of vectors of three elements, which lie along an axis; the other axes broadcast.

    Args:
        x1, x2: of length 3 along `axis`.
        axis: counted from the last one, so negative.

    Raises:
        ShapeError: the vectors do not have three elements, or there is no such axis.
    """
    for x in (x1, x2):
        if not -x.ndim <= axis < 0 or x.shape[axis] != 3:
            raise ShapeError(
                f"cross: expected a negative axis of length 3, got axis {axis} of shapes {tuple(x1.shape)} and "
                f"{tuple(x2.shape)}"
            )
    return _cross(x1, x2, axis=axis)


@op
def vector_norm(xp, x, *, axis=None, keepdims=False, ord=2):
    """The norm of order `ord` (a number, inf, -inf) of vectors along the given axes, or of all elements.

    Real, also of complex numbers. Of 16-bit numbers it is computed in float32: squares overflow float16 from 256 on.
    At the origin it has no derivative; 0 is taken, a subgradient.
    """
    if x.dtype.itemsize == 2:
        y = vector_norm(xp.astype(x, xp.float32), axis=axis, keepdims=keepdims, ord=ord)
        return xp.astype(xp.asarray(y), x.dtype)
    if ord == 0:
        return xp.astype(xp.asarray(xp.sum(x != 0, axis=axis, keepdims=keepdims)), xp.real(x).dtype)
    if ord == 2 and x.dtype.kind != "c":
        return xp.sqrt(xp.sum(x * x, axis=axis, keepdims=keepdims))
    size = xp.abs(x)
    if ord in (float("inf"), float("-inf")):
        return (xp.max if ord > 0 else xp.min)(size, axis=axis, keepdims=keepdims)
    if ord == 1:
        return xp.sum(size, axis=axis, keepdims=keepdims)
    return xp.sum(size**ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


@vector_norm.vjp
def _(xp, g, y, x, *, axis, keepdims, ord):
    if not keepdims and x.ndim:
        axes = axes_of(axis, x.ndim)
        g, y = expand_dims(g, axis=axes), expand_dims(y, axis=axes)
    if ord == 0:
        return xp.zeros_like(x)
    size = xp.abs(x)
    if ord in (float("inf"), float("-inf")):
        hits = astype(size == y, dtype=y.dtype)
        return g * _phase(xp, x, size) * (hits / xp.sum(hits, axis=axis, keepdims=True))
    if ord == 1:
        return g * _phase(xp, x, size)
    safe = xp.where(y == 0, 1.0, y)
    if ord == 2:
        return g * (conj(x) if x.dtype.kind == "c" else x) / safe
    return g * _phase(xp, x, size) * (xp.where(size == 0, 1.0, size) / safe) ** (ord - 1) * (size > 0)


def _phase(xp: Any, x: Any, size: Any) -> Any:
    """The derivative of |x|, which is `size`: the sign of x, or conj(x) / |x|; zero at zero."""
    return xp.sign(x) if x.dtype.kind != "c" else conj(x) / xp.where(size == 0, 1.0, size)
