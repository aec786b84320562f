"""Losses that are better computed in one piece than composed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.dtypes import accumulation_dtype, finfo, float32, int64
from gpunet.ops import loss_kernels
from gpunet.ops.index import one_hot
from gpunet.ops.op import Traced, op
from gpunet.ops.shape import expand_dims
from gpunet.ops.softmax import softmax, softmax_grad


def _wanted(xp: Any, x: Any, target: Any, weight: Any, label_smoothing: float, ignore_index: int) -> Any:
    """The coefficients q (N, C) of the loss -sum(q * log_softmax(x)): smoothed, weighted one-hot rows of `target`."""
    classes = x.shape[1]
    kept = target != ignore_index
    q = one_hot(xp.where(kept, target, 0), num_classes=classes, dtype=x.dtype)
    if label_smoothing:
        q = q * (1.0 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        q = q * weight
    return q * expand_dims(kept, axis=1)


@op
def first_outside(xp, indices, *, n, ignore=0):
    """The position in C order of the first index that is neither from 0 to n - 1 nor `ignore`; -1 if there is none.

    An int, so the host waits for the device.
    """
    wrong = ((indices < 0) | (indices >= n)) & (indices != ignore)
    return int(xp.argmax(wrong)) if bool(xp.any(wrong)) else -1


@first_outside.kernel(
    "loss", platform="cpu", when=lambda indices, **_: indices.dtype == int64 and indices.flags.c_contiguous
)
def _(native, indices, *, n, ignore):
    return native.first_outside(indices, indices.size, n, ignore)


def _is_plain(x: Any, target: Any, weight: Any, label_smoothing: float) -> bool:
    """Whether the CPU's kernels take these arguments."""
    return (
        weight is None
        and not label_smoothing
        and x.dtype == float32
        and target.dtype == int64
        and x.ndim == 2
        and x.shape[1] > 0
        and target.shape == x.shape[:1]
        and x.flags.c_contiguous
        and target.flags.c_contiguous
    )


@op
def cross_entropy(xp, x, target, weight=None, *, label_smoothing=0.0, ignore_index=-100, reduction="none", kept=None):
    """The cross-entropy of each row: -log softmax(x)[target], from the logits, so that nothing overflows.

    Args:
        x: (N, C) logits, floating-point.
        target: (N,) class indices in [0, C), or `ignore_index`, whose rows have loss and gradient zero.
        weight: (C,) factors of the classes, or None.
        label_smoothing: the share of the target that is spread evenly over all classes (Szegedy et al., 2016).
        ignore_index: see target.
        reduction: "none" for the losses (N,), "sum" for their sum, "mean" for the sum divided by that of
            weight[target] over the rows that are not ignored, or by their number; NaN if there are none.
        kept: None, or an empty list, into which a kernel may put the gradient with respect to x, computed in the same
            pass, but for the factor that is the gradient of the result.

    Raises:
        IndexError: a class is out of range, without weights and smoothing, on a CPU. On a GPU its loss is NaN instead.
    """
    outside = None
    if type(x) is not np.ndarray:
        outside = ((target < 0) | (target >= x.shape[1])) & (target != ignore_index)
        target = xp.where(outside, ignore_index, target)
    shifted = x - xp.max(x, axis=1, keepdims=True)
    log_sum = xp.log(xp.sum(xp.exp(shifted), axis=1))
    if weight is None and not label_smoothing:
        kept = target != ignore_index
        wanted = xp.where(target < 0, x.shape[1], target)  # a negative one is none that counts from the end
        losses = log_sum - shifted[xp.arange(x.shape[0]), xp.where(kept, wanted, 0)]
        losses = xp.where(kept, losses, xp.zeros((), dtype=x.dtype))
    else:
        q = _wanted(xp, x, target, weight, label_smoothing, ignore_index)
        losses = -xp.sum((shifted - log_sum[:, None]) * q, axis=1)
    if outside is not None:
        losses = xp.where(outside, xp.asarray(float("nan"), dtype=x.dtype), losses)
    if reduction == "none":
        return losses
    total = xp.sum(losses, dtype=accumulation_dtype(x.dtype))
    if reduction == "mean":
        with np.errstate(divide="ignore", invalid="ignore"):  # 0/0, where nothing counts, is the NaN that is promised
            total = total * _per_row(xp, x, target, weight, ignore_index)
    return total.astype(x.dtype)


def _per_row(xp: Any, x: Any, target: Any, weight: Any, ignore_index: int) -> Any:
    """What a row's loss is multiplied by in the mean: 1 over how much counts; infinity if nothing does."""
    counts = target != ignore_index
    if weight is not None:
        counts = counts * xp.take(weight, xp.where(counts, target, 0), axis=0)
    return 1.0 / xp.sum(counts, dtype=accumulation_dtype(x.dtype))


@cross_entropy.kernel(
    "loss",
    platform="cpu",
    when=lambda x, target, weight, *, label_smoothing, **_: _is_plain(x, target, weight, label_smoothing),
)
def _(native, x, target, weight, *, label_smoothing, ignore_index, reduction, kept):
    losses = np.empty(x.shape[0], float32)
    if x.size < _FEW and reduction != "none":
        total = np.empty((), float32)
        if native.cross_entropy_of_all(x, target, losses, total, ignore_index, reduction == "mean"):
            raise IndexError("a class is out of range")
        return total

    def work(start: int, stop: int) -> None:
        if native.cross_entropy(x, target, losses, ignore_index, start, stop):
            raise IndexError("a class is out of range")

    threads.split(x.shape[0], work, x.size // 2)
    if reduction == "none":
        return losses
    total = np.empty((), float32)
    native.cross_entropy_total(losses, target, total, ignore_index, reduction == "mean")
    return total


_FEW = 10_000  # logits that are certainly not worth dividing among threads


@cross_entropy.kernel("loss")
def _(launcher, x, target, weight, *, label_smoothing, ignore_index, reduction, kept):
    return loss_kernels.cross_entropy(launcher, x, target, weight, label_smoothing, ignore_index, reduction, kept)


@cross_entropy.vjp
def _(xp, g, _y, x, target, weight, *, label_smoothing, ignore_index, reduction, kept):
    how = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}

    def to_x() -> Any:
        if kept and not isinstance(g, Traced):
            return scaled(kept.pop(), g)  # a second time, it is computed again
        return cross_entropy_grad(g, x, target, weight, **how)

    return to_x, None, None


@op
def scaled(xp, x, factor):
    """x * factor, of a 0-d factor; x may be overwritten. Not differentiable."""
    return x * factor


@scaled.kernel("loss")
def _(launcher, x, factor):
    return loss_kernels.scaled(launcher, x, factor)


@op
def cross_entropy_grad(xp, g, x, target, weight=None, *, label_smoothing, ignore_index, reduction):
    """The gradient (N, C) of `cross_entropy` with respect to x, given that of its result."""
    if reduction == "mean":
        with np.errstate(divide="ignore"):
            g = (g * _per_row(xp, x, target, weight, ignore_index)).astype(x.dtype)
    rows = g[:, None] if reduction == "none" else g
    if type(x) is not np.ndarray:
        outside = ((target < 0) | (target >= x.shape[1])) & (target != ignore_index)
        target = xp.where(outside, 0, target)
        rows = xp.where(outside[:, None], xp.asarray(float("nan"), dtype=x.dtype), rows)
    p = softmax(x, axis=1)
    if weight is None and not label_smoothing:
        kept = target != ignore_index
        p[xp.arange(x.shape[0]), xp.where(kept, target, 0)] -= 1.0
        p *= rows * kept[:, None]
        return p
    q = _wanted(xp, x, target, weight, label_smoothing, ignore_index)
    return (p * xp.sum(q, axis=1, keepdims=True) - q) * rows


@cross_entropy_grad.kernel(
    "loss",
    platform="cpu",
    when=lambda g, x, target, weight, *, label_smoothing, **_: (
        g.dtype == float32 and _is_plain(x, target, weight, label_smoothing)
    ),
)
def _(native, g, x, target, weight, *, label_smoothing, ignore_index, reduction):
    dx = np.empty_like(x)
    if x.size < _FEW:
        native.cross_entropy_grad(np.asarray(g), x, target, dx, ignore_index, reduction == "mean", 0, x.shape[0])
        return dx
    work = partial(native.cross_entropy_grad, np.asarray(g), x, target, dx, ignore_index, reduction == "mean")
    threads.split(x.shape[0], work, x.size // 2)
    return dx


@cross_entropy_grad.kernel("loss")
def _(launcher, g, x, target, weight, *, label_smoothing, ignore_index, reduction):
    return loss_kernels.cross_entropy_grad(launcher, g, x, target, weight, label_smoothing, ignore_index, reduction)


@cross_entropy_grad.vjp
def _(xp, gg, _y, g, x, target, weight, *, label_smoothing, ignore_index, reduction):
    q = _wanted(xp, x, target, weight, label_smoothing, ignore_index)
    p = softmax(x, axis=1)
    total = xp.sum(q, axis=1, keepdims=True)
    share = _per_row(xp, x, target, weight, ignore_index) if reduction == "mean" else 1.0

    def to_g() -> Any:
        rows = xp.sum(gg * (p * total - q), axis=1)
        return rows if reduction == "none" else xp.sum(rows) * share

    rows = expand_dims(g, axis=1) if reduction == "none" else g * share
    return to_g, (lambda: softmax_grad(gg * rows * total, p, axis=1)), None, None


@op
def binary_cross_entropy(xp, x, target):
    """-(target * log(x) + (1 - target) * log(1 - x)), element by element, the logarithms limited to -100.

    Args:
        x: probabilities, floating-point.
        target: of the shape of x, in [0, 1].
    """
    return (target - 1.0) * _log(xp, 1.0 - x) - target * _log(xp, x)


@binary_cross_entropy.kernel("loss")
def _(launcher, x, target):
    return loss_kernels.binary_cross_entropy(launcher, x, target)


@binary_cross_entropy.vjp
def _(xp, g, _y, x, target):
    if isinstance(g, Traced):
        to_x = lambda: binary_cross_entropy_grad.reference(xp, g, x, target)  # noqa: E731
    else:
        to_x = lambda: binary_cross_entropy_grad(g, x, target)  # noqa: E731
    return to_x, (lambda: g * (_log(xp, 1.0 - x) - _log(xp, x)))


@op
def binary_cross_entropy_grad(xp, g, x, target):
    """The gradient of `binary_cross_entropy` with respect to x. Not differentiable."""
    least = max(1e-12, finfo(x.dtype).smallest_normal)  # keeps it finite where x is 0 or 1
    return g * (x - target) / xp.maximum(x * (1.0 - x), least)


@binary_cross_entropy_grad.kernel("loss")
def _(launcher, g, x, target):
    return loss_kernels.binary_cross_entropy(launcher, x, target, g)


def _log(xp: Any, p: Any) -> Any:
    """log(p), but not below -100; NaN where p is."""
    zero = p <= 0
    return xp.where(zero, -100.0, xp.maximum(xp.log(xp.where(zero, 1.0, p)), -100.0))
