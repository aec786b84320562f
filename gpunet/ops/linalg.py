"""Linear algebra beyond products: traces, diagonals, outer products and norms."""

from __future__ import annotations

from typing import Any

from gpunet.errors import ShapeError
from gpunet.ops.op import op
from gpunet.ops.reduce import sum
from gpunet.ops.shape import axes_of, expand_dims, reshape


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


def trace(x: Any, /, *, offset: int = 0) -> Any:
    """The sum of a diagonal of each matrix (..., M, N)."""
    return sum(diagonal(x, offset=offset), axis=-1)


def outer(a: Any, b: Any, /) -> Any:
    """All products of an element of the vector a (M,) and one of b (N,): (M, N).

    Raises:
        ShapeError: an argument is no vector.
    """
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"outer: expected two vectors, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return reshape(a, shape=(-1, 1)) * reshape(b, shape=(1, -1))


@op
def vector_norm(xp, x, *, axis=None, keepdims=False, ord=2):
    """The norm of order `ord` (a number, inf, -inf) of vectors along the given axes, or of all elements.

    Of float16 it is computed in float32: squares overflow float16 from 256 on.
    """
    if x.dtype == "float16":
        y = vector_norm(xp.astype(x, "float32"), axis=axis, keepdims=keepdims, ord=ord)
        return xp.astype(xp.asarray(y), x.dtype)
    if ord == 2:
        return xp.sqrt(xp.sum(x * x, axis=axis, keepdims=keepdims))
    if ord in (float("inf"), float("-inf")):
        return (xp.max if ord > 0 else xp.min)(xp.abs(x), axis=axis, keepdims=keepdims)
    if ord == 0:
        return xp.sum(x != 0, axis=axis, keepdims=keepdims).astype(x.dtype)
    if ord == 1:
        return xp.sum(xp.abs(x), axis=axis, keepdims=keepdims)
    return xp.sum(xp.abs(x) ** ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


@vector_norm.vjp
def _(xp, g, y, x, *, axis, keepdims, ord):
    if not keepdims and x.ndim:
        axes = axes_of(axis, x.ndim)
        g, y = expand_dims(g, axis=axes), expand_dims(y, axis=axes)
    if ord in (float("inf"), float("-inf")):
        hits = (xp.abs(x) == y) * 1.0
        return g * xp.sign(x) * hits / xp.sum(hits, axis=axis, keepdims=True)
    if ord == 0:
        return x * 0.0
    if ord == 1:
        return g * xp.sign(x)
    safe = xp.where(y == 0, 1.0, y)  # at the origin the norm has no derivative; 0 is a subgradient
    if ord == 2:
        return g * x / safe
    size = xp.abs(x)
    return g * xp.sign(x) * (xp.where(size == 0, 1.0, size) / safe) ** (ord - 1) * (size > 0)
