"""Softmax and its logarithm."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.dtypes import float32
from gpunet.ops import launch, row_kernels
from gpunet.ops.launch import FLOATING, NUMBERS
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


def _along(launcher: Launcher, kind: str, axis: int, *inputs: Any) -> Any:
    """What the kernel of that kind (kernels/softmax.cu) makes of `inputs`, arrays of one shape, along an axis.

    Returns:
        A new array of their shape, or NotImplemented.
    """
    x = inputs[-1]
    if not _suit(axis, *inputs):
        return NotImplemented
    axis %= x.ndim
    y = launch.empty_like(launcher, x)
    if not y.size:
        return y
    rows = row_kernels.make_rows(launcher, axis, inputs, y)
    if rows is None:
        inputs = tuple(launch.contiguous(launcher, a) for a in inputs)
        y = launcher.empty(x.shape, x.dtype)
        rows = row_kernels.make_rows(launcher, axis, inputs, y)
        if rows is None:
            return NotImplemented
    row_kernels.run(launcher, "softmax", _body(kind, x.dtype.name), rows)
    return y


def _suit(axis: Any, *inputs: Any) -> bool:
    """Whether the CUDA kernels take these; what is wrong with them, the reference says."""
    x = inputs[-1]
    return (
        isinstance(axis, int)
        and -x.ndim <= axis < x.ndim
        and x.shape[axis] > 0
        and x.dtype.name in FLOATING
        and all(a.dtype == x.dtype and a.shape == x.shape for a in inputs)
    )


def _body(kind: str, dtype: str) -> str:
    return f"Softmax<{kind}, {NUMBERS[dtype]}>"


@op
def softmax(xp, x, *, axis=-1):
    """exp(x) over the sum of exp(x) along an axis; the largest element is subtracted first, so nothing overflows."""
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    e /= xp.sum(e, axis=axis, keepdims=True)
    return e


@softmax.kernel("softmax", platform="cpu", when=_is_of_rows)
def _(native, x, *, axis):
    return _by_rows(native.softmax, x)


@softmax.kernel("softmax")
def _(launcher, x, *, axis):
    return _along(launcher, "SOFTMAX", axis, x)


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


@softmax_grad.kernel("softmax")
def _(launcher, g, y, *, axis):
    return _along(launcher, "SOFTMAX_GRAD", axis, g, y)


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


@log_softmax.kernel("softmax")
def _(launcher, x, *, axis):
    return _along(launcher, "LOG_SOFTMAX", axis, x)


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


@log_softmax_grad.kernel("softmax")
def _(launcher, g, y, *, axis):
    return _along(launcher, "LOG_SOFTMAX_GRAD", axis, g, y)


@op
def logsumexp(xp, x, *, axis=None, keepdims=False):
    """log(sum(exp(x))) along one or more axes, without overflow."""
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros((), dtype=x.dtype))
    y = xp.log(xp.sum(xp.exp(x - top), axis=axis, keepdims=True)) + top
    return y if keepdims else xp.reshape(y, xp.max(x, axis=axis).shape)


@logsumexp.kernel("softmax")
def _(launcher, x, *, axis, keepdims):
    axes = axes_of(axis, x.ndim)
    moved = _as_rows(launcher, x, axes)
    if moved is NotImplemented or not _suit(-1, moved):
        return NotImplemented
    y = launcher.empty(moved.shape[:-1], x.dtype)
    if y.size:
        rows = row_kernels.make_rows(launcher, moved.ndim - 1, (moved,), y)
        rows = rows or row_kernels.make_rows(launcher, moved.ndim - 1, (launch.contiguous(launcher, moved),), y)
        if rows is None:
            return NotImplemented
        row_kernels.run(launcher, "softmax", _body("LOGSUMEXP", x.dtype.name), rows)
    return expand_dims(y, axis=axes) if keepdims else y


def _as_rows(launcher: Launcher, x: Any, axes: tuple[int, ...]) -> Any:
    """x with these axes as one, the last; a copy where several do not lie as one."""
    kept = [i for i in range(x.ndim) if i not in axes]
    moved = x.transpose(*kept, *axes)
    if len(axes) == 1:
        return moved
    if not moved.flags.c_contiguous:
        moved = launch.copy(launcher, moved)
        if moved is NotImplemented:
            return moved
    return moved.reshape((*(x.shape[i] for i in kept), -1)) if x.size else moved


@logsumexp.vjp
def _(xp, g, y, x, *, axis, keepdims):
    if not keepdims and x.ndim:
        axes = axes_of(axis, x.ndim)
        g, y = expand_dims(g, axis=axes), expand_dims(y, axis=axes)
    if isinstance(g, Traced):
        return g * xp.exp(x - y)
    return logsumexp_grad(g, y, x)


@op
def logsumexp_grad(xp, g, y, x):
    """The gradient of logsumexp with respect to its input: g * exp(x - y). Not differentiable.

    Args:
        g, y: that of its result, and its result, with axes of length 1 where it summed.
        x: its input.
    """
    return g * xp.exp(x - y)


@logsumexp_grad.kernel("softmax")
def _(launcher, g, y, x):
    if not (g.dtype == y.dtype == x.dtype and x.dtype.name in FLOATING and g.shape == y.shape):
        return NotImplemented
    axes = tuple(i for i in range(x.ndim) if y.shape[i] != x.shape[i]) or (x.ndim - 1,)
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    if not x.ndim or any(y.shape[i] != 1 for i in axes):
        return NotImplemented
    moved = _as_rows(launcher, x, axes)
    if moved is NotImplemented:
        return NotImplemented
    dx = launch.empty_like(launcher, moved)
    if x.size:
        per_row = tuple(a.transpose(*kept, *axes)[(..., *[0] * len(axes))] for a in (y, g))
        rows = row_kernels.make_rows(launcher, moved.ndim - 1, (moved,), dx, per_row)
        if rows is None:
            return NotImplemented
        row_kernels.run(launcher, "softmax", _body("LOGSUMEXP_GRAD", x.dtype.name), rows)
    order = (*kept, *axes)
    return dx.reshape([x.shape[i] for i in order]).transpose(*(order.index(i) for i in range(x.ndim)))


@register_variants
def _variants() -> Iterable[Variant]:
    """Every way to keep rows, and what else differs only in what is computed of them in one of the ways."""
    for dtype, vector in (("float32", 4), ("bfloat16", 8)):
        for kind in ("SOFTMAX", "SOFTMAX_GRAD"):
            body = _body(kind, dtype)
            for lanes, per in row_kernels.REGISTER_ROWS:
                yield row_kernels.register_variant("softmax", body, vector, lanes, per)
            for held in (0, 64 << 10):
                yield row_kernels.long_variant("softmax", body, vector, held)
            for side, per in row_kernels.COLUMNS:
                yield row_kernels.column_variant("softmax", body, vector, side, per)
    for kind in ("LOG_SOFTMAX", "LOG_SOFTMAX_GRAD", "LOGSUMEXP", "LOGSUMEXP_GRAD"):
        yield row_kernels.register_variant("softmax", _body(kind, "float32"), 4, 32, 4)
    for dtype, vector in (("float64", 2), ("float16", 8), ("float32", 1)):
        yield row_kernels.register_variant("softmax", _body("SOFTMAX_GRAD", dtype), vector, 256, 4)
