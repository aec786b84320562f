"""Normalization: groups of elements shifted to mean 0 and scaled to variance 1, then scaled and shifted as learned."""

from __future__ import annotations

from math import prod
from typing import Any

from gpunet.dtypes import float32
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops.op import Traced, op


def _moments(xp: Any, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """The mean of x over `axes` and its (biased) variance, the axes kept; in two passes, which loses nothing."""
    mean = xp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    return mean, xp.mean(centred * centred, axis=axes, keepdims=True)


def _wide(xp: Any, x: Any) -> Any:
    """float16 as float32, in which statistics of it are computed."""
    return xp.astype(x, float32) if x.dtype == "float16" else x


@op
def moments(xp, x, *, axes):
    """The mean and the biased variance of x over `axes`, which are kept with length one. Not differentiable.

    Of float16 they are float32: squares overflow float16 from 256 on.
    """
    return _moments(xp, _wide(xp, x), axes)


@op
def normalize(xp, x, weight=None, bias=None, *, axes, eps, statistics=None):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and biased variance of x over `axes`.

    Batch normalization (Ioffe and Szegedy, 2015) takes them over all axes but the channels', layer normalization (Ba,
    Kiros and Hinton, 2016) over the last ones.

    Args:
        x: floating-point, any shape.
        weight, bias: of shapes that broadcast with x, or None for 1 and 0.
        axes: the axes that the statistics are taken over.
        eps: added to the variance.
        statistics: (mean, variance) as `moments(x, axes=axes)` gives them, if they are known already.

    Raises:
        DTypeError: x is not floating-point.
    """
    if x.dtype.kind != "f":
        raise DTypeError(f"normalize: expected a floating-point input, got {x.dtype}")
    wide = _wide(xp, x)
    mean, variance = statistics or _moments(xp, wide, axes)
    y = wide - mean
    y *= 1.0 / xp.sqrt(variance + eps)
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y if y.dtype == x.dtype else xp.astype(y, x.dtype)


@normalize.vjp
def _(xp, g, _y, x, weight, _bias, *, axes, eps, statistics):
    g, x = _wide(xp, g), _wide(xp, x)
    if statistics is None or isinstance(g, Traced):  # to be differentiated again, they must be functions of x
        statistics = _moments(xp, x, axes)
    mean, variance = statistics
    scale = 1.0 / xp.sqrt(variance + eps)
    n = prod(x.shape[a] for a in axes)
    hat = (x - mean) * scale
    gw = g if weight is None else g * weight

    def to_input() -> Any:
        shared = xp.sum(gw, axis=axes, keepdims=True) + hat * xp.sum(gw * hat, axis=axes, keepdims=True)
        return (gw - shared * (1.0 / n)) * scale

    return to_input, (lambda: g * hat), (lambda: g)


def batch_norm(x: Any, weight: Any, bias: Any, *, eps: float, statistics: Any) -> Any:
    """`normalize` of x (N, C, *) over all axes but the channels', with weight and bias (C,) or None."""
    axes = (0, *range(2, x.ndim))
    return normalize(x, _along_channels(weight, x), _along_channels(bias, x), axes=axes, eps=eps, statistics=statistics)


def _along_channels(p: Any, x: Any) -> Any:
    return p if p is None or x.ndim == 2 else p.reshape((p.shape[0],) + (1,) * (x.ndim - 2))


def layer_norm(x: Any, normalized_shape: tuple[int, ...], weight: Any, bias: Any, *, eps: float) -> Any:
    """`normalize` of x (*, *normalized_shape) over its last axes, with weight and bias of that shape or None.

    Raises:
        ShapeError: x does not end in normalized_shape.
    """
    k = len(normalized_shape)
    if tuple(x.shape[x.ndim - k :]) != tuple(normalized_shape):
        raise ShapeError(
            f"layer_norm: expected an input of shape (..., {', '.join(map(str, normalized_shape))}), got {x.shape}"
        )
    return normalize(x, weight, bias, axes=tuple(range(x.ndim - k, x.ndim)), eps=eps)
