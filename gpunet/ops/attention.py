"""Scaled dot-product attention, as one op, which on the CPU keeps no matrix of scores in memory.

What it keeps for its derivative is the logarithm of each row's sum of exponentials, from which the scores' softmax is
computed again (Dao et al., "FlashAttention", 2022). The gradient is an op of its own, which runs on raw arrays. To be
differentiated again it runs, the same words, on Tensors: it needs nothing but arguments and results of the op, all of
which are differentiable.
"""

from __future__ import annotations

import sys
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpunet.backends import backend_of_type, threads
from gpunet.dtypes import accumulation_dtype, float32
from gpunet.errors import ShapeError
from gpunet.ops import attention_kernels, random
from gpunet.ops.elementwise import exp, where
from gpunet.ops.matmul import matmul
from gpunet.ops.op import Traced, op, raw
from gpunet.ops.reduce import sum
from gpunet.ops.shape import astype, evenly_spaced, expand_dims, matrix_transpose

_INFINITY = float("inf")


def _wide(a: Any) -> Any:
    """float16 as float32, in which all is computed; anything else as it is."""
    dtype = accumulation_dtype(a.dtype)
    return a if a.dtype == dtype else astype(a, dtype=dtype)


def _check(q: Any, k: Any, v: Any) -> None:
    """Raise ShapeError if the arguments of the op do not fit each other."""
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            "attention: expected q (..., L, E), k (..., S, E) and v (..., S, Ev), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )


def _scores(q: Any, k: Any, mask: Any, scale: float, causal: bool) -> Any:
    """q @ kᵀ * scale, with -inf for keys that do not take part."""
    scores = matmul(q, matrix_transpose(k)) * scale
    if mask is not None:
        scores = where(mask, scores, -_INFINITY) if mask.dtype == "bool" else scores + _wide(mask)
    if causal:
        xp = backend_of_type(type(raw(q))).xp
        seen = xp.expand_dims(xp.arange(scores.shape[-2]), axis=1) >= xp.arange(scores.shape[-1])
        scores = where(seen, scores, -_INFINITY)
    return scores


def _dropped(a: Any, dropout: float, key: Any) -> Any:
    return random.dropout(a, p=dropout, key=key) if dropout else a


@op
def attention(xp, q, k, v, mask=None, *, scale, causal=False, dropout=0.0, key=None):
    """softmax(q @ kᵀ * scale) @ v (Vaswani et al., 2017). A row of queries that no key takes part in gives zeros.

    Args:
        q: (..., L, E), floating-point.
        k: (..., S, E).
        v: (..., S, Ev), finite also where the mask has its keys take no part. The leading axes of all broadcast.
        mask: broadcasts to (..., L, S): bool, true for keys that take part; or added to the scores. Or None.
        scale: what the products are multiplied by.
        causal: query i sees keys 0 to i only.
        dropout, key: as p and key of `random.dropout`, which is applied to the result of the softmax.

    Returns:
        (..., L, Ev); and for each query log(sum(exp(scores))) (..., L), inf if there is no key for it. Of float16,
        the latter is float32, in which all is computed.

    Raises:
        ShapeError: the arguments do not fit each other.
    """
    _check(q, k, v)
    dtype, q, k, v = q.dtype, *map(_wide, (q, k, v))
    scores = _scores(q, k, mask, scale, causal)
    if not scores.shape[-1]:
        return xp.astype(matmul(scores, v), dtype), xp.full(scores.shape[:-1], _INFINITY, dtype=scores.dtype)
    top = xp.max(scores, axis=-1, keepdims=True)
    top = xp.where(top == -_INFINITY, xp.zeros_like(top), top)
    weights = xp.exp(scores - top)
    total = xp.sum(weights, axis=-1, keepdims=True)
    none = total == 0.0
    total = xp.where(none, xp.ones_like(total), total)
    logarithm = xp.where(none, xp.full_like(total, _INFINITY), xp.log(total) + top)
    y = matmul(_dropped(weights / total, dropout, key), v)
    return xp.astype(y, dtype), xp.squeeze(logarithm, axis=-1)


def attention_weights(
    q: Any, k: Any, logarithm: Any, mask: Any = None, *,
    scale: float, causal: bool = False, dropout: float = 0.0, key: Any = None,
) -> Any:  # fmt: skip
    """The weights (..., L, S) with which `attention` with the same arguments took the mean of the values.

    Args:
        logarithm: the second of its results.
        others: what it was given.
    """
    scores = _scores(_as_wide(q), _as_wide(k), _as_wide(mask), scale, causal)
    weights = _dropped(exp(scores - expand_dims(logarithm, axis=-1)), dropout, key)
    return weights if weights.dtype == q.dtype else astype(weights, dtype=q.dtype)


@attention.vjp
def _(xp, gs, ys, q, k, v, mask, *, scale, causal, dropout, key):
    args = (*gs, *ys, q, k, v, mask)
    how = {"scale": scale, "causal": causal, "dropout": dropout, "key": key}
    found: list[Any] = []  # once they were asked for

    def gradient(i: int) -> Any:
        if not found:
            again = any(isinstance(g, Traced) for g in gs)
            found.extend(attention_grad.reference(xp, *args, **how) if again else attention_grad(*args, **how))
        return found[i]

    to_mask = None
    if mask is not None and mask.dtype != "bool":
        to_mask = lambda: _score_gradient(*map(_as_wide, args), **how)[1]  # noqa: E731
    return (lambda: gradient(0)), (lambda: gradient(1)), (lambda: gradient(2)), to_mask


@op
def attention_grad(xp, g, g_logarithm, y, logarithm, q, k, v, mask=None, *, scale, causal, dropout, key):
    """The gradients of `attention` with respect to q, k and v, given those of its results. Not differentiable.

    They may have the shape that the leading axes broadcast to. Of float16, they are float32.

    Args:
        g, g_logarithm: the gradients of what it returned; None for zeros.
        y, logarithm, q, k, v, mask: what it returned and was given.
        scale, causal, dropout, key: likewise.
    """
    args = tuple(map(_as_wide, (g, g_logarithm, y, logarithm, q, k, v, mask)))
    g, q, k = args[0], args[4], args[5]
    weights, d = _score_gradient(*args, scale=scale, causal=causal, dropout=dropout, key=key)
    to_values = xp.zeros_like(args[6]) if g is None else matmul(matrix_transpose(_dropped(weights, dropout, key)), g)
    return matmul(d, k) * scale, matmul(matrix_transpose(d), q) * scale, to_values


def _as_wide(a: Any) -> Any:
    return a if a is None or a.dtype == "bool" else _wide(a)


def _score_gradient(
    g: Any, g_logarithm: Any, y: Any, logarithm: Any, q: Any, k: Any, v: Any, mask: Any, *,
    scale: float, causal: bool, dropout: float, key: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """The softmax of the scores, and the gradient of these."""
    weights = exp(_scores(q, k, mask, scale, causal) - expand_dims(logarithm, axis=-1))
    if g is None:
        return weights, weights * expand_dims(g_logarithm, axis=-1)
    shared = sum(g * y, axis=-1)
    if g_logarithm is not None:
        shared = shared - g_logarithm
    return weights, weights * (_dropped(matmul(g, matrix_transpose(v)), dropout, key) - expand_dims(shared, axis=-1))


# --- kernels


def _leading(*arrays: np.ndarray) -> tuple[int, ...]:
    """What the axes before the last two broadcast to."""
    first = arrays[0].shape[:-2]
    if all(a.shape[:-2] == first for a in arrays):
        return first
    return np.broadcast_shapes(*(a.shape[:-2] for a in arrays))


def _fit(q: Any, k: Any, v: Any, mask: Any) -> bool:
    """Whether the CPU's kernels take these; where shapes do not fit, the reference says so."""
    return (
        q.dtype == k.dtype == v.dtype == float32
        and sys.byteorder == "little"
        and (mask is None or mask.dtype in (float32, "bool"))
        and q.size > 0 and k.size > 0 and v.size > 0
        and min(q.ndim, k.ndim, v.ndim) >= 2
        and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    )  # fmt: skip


def _as_rows(a: np.ndarray, leading: tuple[int, ...]) -> np.ndarray:
    """a with these leading axes, each of its rows in one piece."""
    if a.strides[-1] != 4 and a.shape[-1] > 1:
        a = np.ascontiguousarray(a)
    return a if a.shape[:-2] == leading else np.broadcast_to(a, leading + a.shape[-2:])


def _mask_for(mask: Any, leading: tuple[int, ...], q: np.ndarray, k: np.ndarray) -> Any:
    return None if mask is None else np.broadcast_to(mask, (*leading, q.shape[-2], k.shape[-2]))


def _kind(mask: Any) -> int:
    """What the kernels call the type of a mask."""
    return 0 if mask is None else 1 if mask.dtype == "bool" else 2


def _draw(dropout: float, key: Any) -> tuple[Any, ...]:
    """The probability and the key, as the kernels take them."""
    return (dropout, key.seed, *key.stream, key.offset) if dropout else (0.0, 0, 0, 0, 0, 0)


def _by_position(q: np.ndarray, features: int) -> np.ndarray:
    """An empty array (*leading, length, features), with the leading axes and the length of q, in whose memory heads lie
    within positions, so that to put them side by side is no work; and positions within samples, or as they do in q.
    """
    *leading, length, _features = q.shape
    if len(leading) < 2:
        return np.empty((*leading, length, features), float32)
    last = len(leading)
    if q.strides[-2] > q.strides[0]:
        return np.empty((length, *leading, features), float32).transpose(*range(1, last + 1), 0, last + 1)
    memory = np.empty((leading[0], length, *leading[1:], features), float32)
    return memory.transpose(0, *range(2, last + 1), 1, last + 1)


def _split(work: Any, units: int, items: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, products: int) -> None:
    """Run a kernel in ranges; 40 multiplications count as much as a number that is read or written."""
    multiplications = q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1]) * products // 2
    threads.split(units, work, items * multiplications // 40)


@attention.kernel("attention", platform="cpu", when=lambda q, k, v, mask=None, **_: _fit(q, k, v, mask))
def _(native, q, k, v, mask=None, *, scale, causal, dropout, key):
    leading = _leading(q, k, v)
    if mask is not None:
        leading = np.broadcast_shapes(leading, mask.shape[:-2])
        mask = _mask_for(mask, leading, q, k)
    q, k, v = _as_rows(q, leading), _as_rows(k, leading), _as_rows(v, leading)
    y = _by_position(q, v.shape[-1])
    logarithm = np.empty(y.shape[:-1], float32)
    items = prod(leading)
    how = (_kind(mask), causal, scale, *_draw(dropout, key))
    work = partial(native.attention, q, k, v, mask, y, logarithm, *how)
    _split(work, items * native.attention_blocks(q), items, q, k, v, 2)
    return y, logarithm


@attention_grad.kernel(
    "attention",
    platform="cpu",
    when=lambda g, g_logarithm, y, logarithm, q, k, v, mask=None, **_: (
        g is not None and g_logarithm is None and g.dtype == float32 and _fit(q, k, v, mask)
    ),
)
def _(native, g, _g_logarithm, y, logarithm, q, k, v, mask=None, *, scale, causal, dropout, key):
    leading = y.shape[:-2]
    mask = _mask_for(mask, leading, q, k)
    g, q, k, v = (_as_rows(a, leading) for a in (g, q, k, v))
    gradients = _gradients_for(q, k, v)
    items = prod(leading)
    how = (_kind(mask), causal, scale, *_draw(dropout, key))
    work = partial(native.attention_grad, g, q, k, v, mask, y, logarithm, *gradients, *how)
    _split(work, items, items, q, k, v, 5)
    return gradients


@attention.kernel("attention")
def _(launcher, q, k, v, mask=None, *, scale, causal, dropout, key):
    _check(q, k, v)
    return attention_kernels.forward(launcher, q, k, v, mask, scale=scale, causal=causal, dropout=dropout, key=key)


@attention_grad.kernel("attention")
def _(launcher, g, g_logarithm, y, logarithm, q, k, v, mask=None, *, scale, causal, dropout, key):
    how = {"scale": scale, "causal": causal, "dropout": dropout, "key": key}
    return attention_kernels.backward(launcher, g, g_logarithm, y, logarithm, q, k, v, mask, **how)


def _gradients_for(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Empty arrays for the gradients of q, k and v, with axes in memory as theirs.

    Where these are evenly spaced in one array, as those that come of one projection are, so are their gradients: to
    join them again is no work.
    """
    step = evenly_spaced(inputs)
    if step:
        whole = _empty_like(as_strided(inputs[0], (3, *inputs[0].shape), (step, *inputs[0].strides)))
        return whole[0], whole[1], whole[2]
    return tuple(map(_empty_like, inputs))


def _empty_like(a: np.ndarray) -> np.ndarray:
    """A dense array with its axes in memory as those of a, but for the last, whose elements are side by side."""
    like = np.empty_like(a)
    return like if like.strides[-1] == like.itemsize else np.empty(a.shape, a.dtype)
