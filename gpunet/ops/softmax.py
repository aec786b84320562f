"""Softmax and its logarithm."""

from __future__ import annotations

from gpunet.ops.op import op
from gpunet.ops.shape import axes_of, expand_dims


@op
def softmax(xp, x, *, axis=-1):
    """exp(x) over the sum of exp(x) along an axis; the largest element is subtracted first, so nothing overflows."""
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    e /= xp.sum(e, axis=axis, keepdims=True)
    return e


@softmax.vjp
def _(xp, g, y, _x, *, axis):
    return softmax_grad(g, y, axis=axis)


@op
def softmax_grad(xp, g, y, *, axis):
    """The gradient of softmax with respect to its input: y * (g - sum(g * y))."""
    return y * (g - xp.sum(g * y, axis=axis, keepdims=True))


@softmax_grad.vjp
def _(xp, gg, _out, g, y, *, axis):
    inner = xp.sum(gg * y, axis=axis, keepdims=True)
    return (lambda: y * (gg - inner)), (lambda: gg * (g - xp.sum(g * y, axis=axis, keepdims=True)) - g * inner)


@op
def log_softmax(xp, x, *, axis=-1):
    """The logarithm of softmax(x), computed without forming it: x - logsumexp(x)."""
    z = x - xp.max(x, axis=axis, keepdims=True)
    z -= xp.log(xp.sum(xp.exp(z), axis=axis, keepdims=True))
    return z


@log_softmax.vjp
def _(xp, g, y, _x, *, axis):
    return g - xp.exp(y) * xp.sum(g, axis=axis, keepdims=True)


@op
def logsumexp(xp, x, *, axis=None, keepdims=False):
    """log(sum(exp(x))) along one or more axes, without overflow."""
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros((), dtype=x.dtype))
    y = xp.log(xp.sum(xp.exp(x - top), axis=axis, keepdims=True)) + top
    return y if keepdims else xp.reshape(y, xp.max(x, axis=axis).shape)


@logsumexp.vjp
def _(xp, g, y, x, *, axis, keepdims):
    if not keepdims and x.ndim:
        axes = axes_of(axis, x.ndim)
        g, y = expand_dims(g, axis=axes), expand_dims(y, axis=axes)
    return g * xp.exp(x - y)
