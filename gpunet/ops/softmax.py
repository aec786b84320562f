"""Softmax and its logarithm."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.dtypes import float32
from gpunet.ops.op import Traced, op
from gpunet.ops.shape import axes_of, expand_dims


def _is_of_rows(x: Any, *, axis: int) -> bool:
    """Whether the CPU's kernels take x, whose rows along `axis` must each lie in one piece."""
    return x.dtype == float32 and axis in (-1, x.ndim - 1) and x.size > 0 and x.flags.c_contiguous


def _are_of_rows(g: Any, y: Any, *, axis: int) -> bool:
    return _is_of_rows(y, axis=axis) and g.dtype == float32 and g.shape == y.shape


def _by_rows(function: Any, *arrays: Any) -> np.ndarray:
    """Call a function of kernels/cpu/softmax.cpp on `arrays`, on several threads if they are large."""
    y = np.empty_like(arrays[-1])
    columns = y.shape[-1]
    threads.split(y.size // columns, partial(function, *arrays, y, columns), y.size // 2)
    return y


@op
def softmax(xp, x, *, axis=-1):
    """exp(x) over the sum of exp(x) along an axis; the largest element is subtracted first, so nothing overflows."""
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    e /= xp.sum(e, axis=axis, keepdims=True)
    return e


@softmax.kernel("softmax", platform="cpu", when=_is_of_rows)
def _(native, x, *, axis):
    return _by_rows(native.softmax, x)


@softmax.vjp
def _(xp, g, y, _x, *, axis):
    return softmax_grad(g, y, axis=axis)


@op
def softmax_grad(xp, g, y, *, axis):
    """The gradient of softmax with respect to its input: y * (g - sum(g * y))."""
    return y * (g - xp.sum(g * y, axis=axis, keepdims=True))


@softmax_grad.kernel("softmax", platform="cpu", when=_are_of_rows)
def _(native, g, y, *, axis):
    return _by_rows(native.softmax_grad, np.ascontiguousarray(g), y)


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


@log_softmax.kernel("softmax", platform="cpu", when=_is_of_rows)
def _(native, x, *, axis):
    return _by_rows(native.log_softmax, x)


@log_softmax.vjp
def _(xp, g, y, _x, *, axis):
    if isinstance(g, Traced):
        return log_softmax_grad.reference(xp, g, y, axis=axis)
    return log_softmax_grad(g, y, axis=axis)


@op
def log_softmax_grad(xp, g, y, *, axis):
    """The gradient of log_softmax with respect to its input: g - exp(y) * sum(g). Not differentiable."""
    return g - xp.exp(y) * xp.sum(g, axis=axis, keepdims=True)


@log_softmax_grad.kernel("softmax", platform="cpu", when=_are_of_rows)
def _(native, g, y, *, axis):
    return _by_rows(native.log_softmax_grad, np.ascontiguousarray(g), y)


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
