"""Losses that are better computed in one piece than composed."""

from __future__ import annotations

from typing import Any

from gpunet.ops.index import one_hot
from gpunet.ops.op import op
from gpunet.ops.shape import expand_dims
from gpunet.ops.softmax import log_softmax, softmax, softmax_grad


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
def cross_entropy(xp, x, target, weight=None, *, label_smoothing=0.0, ignore_index=-100):
    """The cross-entropy of each row: -log softmax(x)[target], from the logits, so that nothing overflows.

    Args:
        x: (N, C) logits, floating-point.
        target: (N,) class indices in [0, C), or `ignore_index`, whose rows have loss and gradient zero.
        weight: (C,) factors of the classes, or None.
        label_smoothing: the share of the target that is spread evenly over all classes (Szegedy et al., 2016).
        ignore_index: see target.

    Returns:
        (N,) losses.
    """
    log_p = log_softmax(x, axis=1)
    if weight is None and not label_smoothing:
        kept = target != ignore_index
        picked = xp.take_along_axis(log_p, xp.where(kept, target, 0)[:, None], axis=1)[:, 0]
        return xp.where(kept, -picked, xp.zeros((), dtype=x.dtype))
    return -xp.sum(log_p * _wanted(xp, x, target, weight, label_smoothing, ignore_index), axis=1)


@cross_entropy.vjp
def _(xp, g, _y, x, target, weight, *, label_smoothing, ignore_index):
    how = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    return (lambda: cross_entropy_grad(g, x, target, weight, **how)), None, None


@op
def cross_entropy_grad(xp, g, x, target, weight=None, *, label_smoothing, ignore_index):
    """The gradient (N, C) of `cross_entropy` with respect to x, given that of the losses, g (N,)."""
    p = softmax(x, axis=1)
    if weight is None and not label_smoothing:
        kept = target != ignore_index
        p[xp.arange(x.shape[0]), xp.where(kept, target, 0)] -= 1.0
        p *= (g * kept)[:, None]
        return p
    q = _wanted(xp, x, target, weight, label_smoothing, ignore_index)
    return (p * xp.sum(q, axis=1, keepdims=True) - q) * g[:, None]


@cross_entropy_grad.vjp
def _(xp, gg, _y, g, x, target, weight, *, label_smoothing, ignore_index):
    q = _wanted(xp, x, target, weight, label_smoothing, ignore_index)
    p = softmax(x, axis=1)
    total = xp.sum(q, axis=1, keepdims=True)
    return (
        lambda: xp.sum(gg * (p * total - q), axis=1),
        lambda: softmax_grad(gg * expand_dims(g, axis=1) * total, p, axis=1),
        None,
        None,
    )


@op
def binary_cross_entropy(xp, x, target):
    """-(target * log(x) + (1 - target) * log(1 - x)), element by element, the logarithms limited to -100.

    Args:
        x: probabilities, floating-point.
        target: of the shape of x, in [0, 1].
    """
    return (target - 1.0) * _log(xp, 1.0 - x) - target * _log(xp, x)


@binary_cross_entropy.vjp
def _(xp, g, _y, x, target):
    def to_x() -> Any:
        least = max(1e-12, float(xp.finfo(x.dtype).tiny))  # keeps it finite where x is 0 or 1
        return g * (x - target) / xp.maximum(x * (1.0 - x), least)

    return to_x, (lambda: g * (_log(xp, 1.0 - x) - _log(xp, x)))


def _log(xp: Any, p: Any) -> Any:
    """log(p), but not below -100; NaN where p is."""
    zero = p <= 0
    return xp.where(zero, -100.0, xp.maximum(xp.log(xp.where(zero, 1.0, p)), -100.0))
