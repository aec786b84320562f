"""Normalization: groups of elements shifted to mean 0 and scaled to variance 1, then scaled and shifted as learned."""

from __future__ import annotations

from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.dtypes import float32, is_floating
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops import launch
from gpunet.ops import norm_kernels as cuda
from gpunet.ops.elementwise import lying_as, relu
from gpunet.ops.op import Traced, op
from gpunet.ops.reduce import sum


def _moments(xp: Any, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """The mean of x over `axes` and its (biased) variance, the axes kept; in two passes, which loses nothing."""
    mean = xp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    return mean, xp.mean(centred * centred, axis=axes, keepdims=True)


def _wide(xp: Any, x: Any) -> Any:
    """float16 and bfloat16 as float32, in which statistics of it are computed."""
    return xp.astype(x, float32) if x.dtype.itemsize == 2 else x


def _check_floating(name: str, x: Any) -> None:
    if not is_floating(x.dtype):
        raise DTypeError(f"{name}: expected a floating-point input, got {x.dtype}")


def _is_of_channels(x: Any, axes: tuple[int, ...], *parameters: Any) -> bool:
    """Whether the CPU's kernels for channels take x (N, C, *) and what goes with it: (C, 1, …) or None."""
    if x.dtype != float32 or x.ndim < 2 or axes != (0, *range(2, x.ndim)) or not x.size:
        return False
    shape = (x.shape[1],) + (1,) * (x.ndim - 2)
    return all(_is_plain(p, shape) for p in parameters)


def _is_of_rows(x: Any, axes: tuple[int, ...], *parameters: Any) -> bool:
    """Whether the CPU's kernels for rows take x (*, D) and what goes with it: (D) or None, for one or more axes D."""
    first = x.ndim - len(axes)
    if x.dtype != float32 or axes != tuple(range(first, x.ndim)) or not x.size or not x.flags.c_contiguous:
        return False
    shape = x.shape[first:]
    return all(_is_plain(p, shape) for p in parameters)


def _is_plain(p: Any, shape: tuple[int, ...]) -> bool:
    return p is None or (p.shape == shape and p.dtype == float32 and p.flags.c_contiguous)


def _in_blocks(native: Any, x: np.ndarray) -> tuple[np.ndarray, int]:
    """x as the kernels for channels take it, a copy if need be; and how many blocks they divide it into."""
    blocks = native.norm_blocks(x)
    if not blocks:
        x = np.ascontiguousarray(x)
        blocks = native.norm_blocks(x)
    return x, blocks


@op
def moments(xp, x, *, axes):
    """The mean and the biased variance of x over `axes`, which are kept with length one. Not differentiable.

    Of float16 and bfloat16 they are float32: squares overflow float16 from 256 on.
    """
    return _moments(xp, _wide(xp, x), axes)


@moments.kernel("norm", platform="cpu", when=lambda x, *, axes: _is_of_channels(x, axes))
def _(native, x, *, axes):
    return _channel_moments(native, *_in_blocks(native, x))


def _channel_moments(native: Any, x: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    channels = x.shape[1]
    partials = np.empty((blocks, 2, channels), float32)
    threads.split(blocks, partial(native.norm_moments, x, partials), x.size // 3)
    mean = np.empty((1, channels, *(1,) * (x.ndim - 2)), float32)
    variance = np.empty_like(mean)
    native.norm_combine(x, partials, mean, variance)
    return mean, variance


@op
def update_running(xp, mean, variance, running_mean=None, running_var=None, *, momentum, unbias):
    """Move running statistics (C,), in place, towards the mean and variance (1, C, …) of a batch.

    Args:
        running_mean, running_var: None where one is not kept.
        momentum: new = (1 - momentum) * old + momentum * the batch's.
        unbias: what the variance is multiplied by first.
    """
    if running_mean is not None:
        running_mean += (mean.reshape(-1) - running_mean) * momentum
    if running_var is not None:
        running_var += (variance.reshape(-1) * unbias - running_var) * momentum


@update_running.kernel(
    "norm",
    platform="cpu",
    when=lambda *arrays, **_: all(a is not None and a.dtype == float32 and a.flags.c_contiguous for a in arrays),
)
def _(native, mean, variance, running_mean, running_var, *, momentum, unbias):
    native.norm_running(running_mean, running_var, mean, variance, momentum, unbias)


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
    _check_floating("normalize", x)
    wide = _wide(xp, x)
    mean, variance = statistics or _moments(xp, wide, axes)
    y = wide - mean
    y *= 1.0 / xp.sqrt(variance + eps)
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y if y.dtype == x.dtype else xp.astype(y, x.dtype)


@normalize.kernel(
    "norm", platform="cpu", when=lambda x, weight, bias, *, axes, **_: _is_of_channels(x, axes, weight, bias)
)
def _(native, x, weight, bias, *, axes, eps, statistics):
    x, blocks = _in_blocks(native, x)
    mean, variance = statistics or _channel_moments(native, x, blocks)
    y = np.empty_like(x)
    threads.split(blocks, partial(native.norm_apply, x, mean, variance, weight, bias, y, eps), x.size // 3)
    return y


@normalize.kernel(
    "norm",
    platform="cpu",
    when=lambda x, weight, bias, *, axes, statistics, **_: statistics is None and _is_of_rows(x, axes, weight, bias),
)
def _(native, x, weight, bias, *, axes, eps, statistics):
    columns = prod(x.shape[a] for a in axes)
    y = np.empty_like(x)
    threads.split(x.size // columns, partial(native.rows_apply, x, weight, bias, y, columns, eps), x.size // 2)
    return y


@normalize.vjp
def _(xp, g, _y, x, weight, _bias, *, axes, eps, statistics):
    if isinstance(g, Traced):  # to be differentiated again, the statistics must be functions of x
        return _gradients(xp, g, x, weight, axes, eps, None)
    found = cache(lambda: normalize_grad(g, x, weight, axes=axes, eps=eps, statistics=statistics))
    return (lambda: found()[0]), (lambda: found()[1]), (lambda: found()[2])


@op
def normalize_grad(xp, g, x, weight=None, *, axes, eps, statistics=None):
    """The gradients of `normalize` with respect to x, weight and bias, given that of its result. Not differentiable.

    Those of weight and bias may have the shape that these broadcast to.
    """
    return tuple(find() for find in _gradients(xp, g, x, weight, axes, eps, statistics))


def _gradients(xp: Any, g: Any, x: Any, weight: Any, axes: Any, eps: float, statistics: Any) -> Any:
    """What finds the gradients of x, weight and bias."""
    g, x = _wide(xp, g), _wide(xp, x)
    mean, variance = statistics or _moments(xp, x, axes)
    scale = 1.0 / xp.sqrt(variance + eps)
    n = prod(x.shape[a] for a in axes)
    hat = (x - mean) * scale
    gw = g if weight is None else g * weight

    def to_input() -> Any:
        shared = xp.sum(gw, axis=axes, keepdims=True) + hat * xp.sum(gw * hat, axis=axes, keepdims=True)
        return (gw - shared * (1.0 / n)) * scale

    return to_input, (lambda: g * hat), (lambda: g)


@normalize_grad.kernel("norm", platform="cpu", when=lambda g, x, weight, *, axes, **_: _is_of_channels(x, axes, weight))
def _(native, g, x, weight, *, axes, eps, statistics):
    x, blocks = _in_blocks(native, x)
    g = lying_as(x, g)
    mean, variance = statistics or _channel_moments(native, x, blocks)
    partials = np.empty((blocks, 2, x.shape[1]), float32)
    threads.split(blocks, partial(native.norm_grad_sums, g, x, mean, partials), x.size // 3)
    grad_weight = np.empty(mean.shape[1:], float32)
    grad_bias = np.empty_like(grad_weight)
    native.norm_grad_combine(partials, variance, grad_weight, grad_bias, eps)
    dx = np.empty_like(x)
    work = partial(native.norm_grad_apply, g, x, mean, variance, weight, grad_weight, grad_bias, dx, eps)
    threads.split(blocks, work, x.size // 3)
    return dx, grad_weight, grad_bias


@normalize_grad.kernel(
    "norm",
    platform="cpu",
    when=lambda g, x, weight, *, axes, statistics, **_: statistics is None and _is_of_rows(x, axes, weight),
)
def _(native, g, x, weight, *, axes, eps, statistics):
    columns = prod(x.shape[a] for a in axes)
    rows = x.size // columns
    height = max(16, -(-rows // 64))  # of a block, whose sums are found on their own: the results depend on no threads
    blocks = -(-rows // height)
    g = lying_as(x, g)
    dx = np.empty_like(x)
    partials = np.empty((blocks, 2, columns), float32)
    work = partial(native.rows_grad, g, x, weight, dx, partials, rows, columns, height, eps)
    threads.split(blocks, work, x.size // 2)
    grad_weight = np.empty(x.shape[x.ndim - len(axes) :], float32)
    grad_bias = np.empty_like(grad_weight)
    native.rows_grad_combine(partials, grad_weight, grad_bias)
    return dx, grad_weight, grad_bias


@op
def normalize_by(xp, x, mean, variance, weight=None, bias=None, *, eps):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with statistics that do not depend on x.

    Args:
        x: (N, C, *), floating-point.
        mean, variance: (C,).
        weight, bias: (C,), or None for 1 and 0.
        eps: added to the variance.
    """
    wide = _wide(xp, x)
    y = (wide - _along_channels(mean, x)) * _scale(xp, variance, weight, x, eps)
    if bias is not None:
        y = y + _along_channels(bias, x)
    return y if y.dtype == x.dtype else xp.astype(y, x.dtype)


def _scale(xp: Any, variance: Any, weight: Any, x: Any, eps: float) -> Any:
    scale = 1.0 / xp.sqrt(variance + eps)
    return _along_channels(scale if weight is None else scale * weight, x)


@normalize_by.kernel(
    "norm",
    platform="cpu",
    when=lambda x, *parameters, eps: (
        x.dtype == float32 and x.ndim > 1 and x.size > 0 and all(_is_plain(p, x.shape[1:2]) for p in parameters)
    ),
)
def _(native, x, mean, variance, weight, bias, *, eps):
    x, blocks = _in_blocks(native, x)
    y = np.empty_like(x)
    threads.split(blocks, partial(native.norm_apply, x, mean, variance, weight, bias, y, eps), x.size // 3)
    return y


@normalize_by.vjp
def _(xp, g, _y, x, mean, variance, weight, _bias, *, eps):
    return _gradients_by(xp, g, x, mean, variance, weight, eps)


def _gradients_by(xp: Any, g: Any, x: Any, mean: Any, variance: Any, weight: Any, eps: float) -> Any:
    """What finds the gradients of x, mean, variance, weight and bias."""
    g, x = _wide(xp, g), _wide(xp, x)
    axes = (0, *range(2, x.ndim))

    def along() -> Any:
        """The sum of g times what x is away from the mean, for each channel."""
        return sum(g * (x - _along_channels(mean, x)), axis=axes)

    def to_variance() -> Any:
        scale = (variance + eps) ** -1.5 * -0.5
        return along() * (scale if weight is None else scale * weight)

    return (
        lambda: g * _scale(xp, variance, weight, x, eps),
        lambda: sum(-g * _scale(xp, variance, weight, x, eps), axis=axes),
        to_variance,
        lambda: along() / xp.sqrt(variance + eps),
        lambda: sum(g, axis=axes),
    )


@op
def normalize_relu(xp, x, weight=None, bias=None, residual=None, *, axes, eps, statistics=None):
    """ReLU of `normalize`, to which a residual of the shape of x is added first unless it is None."""
    y = normalize(x, weight, bias, axes=axes, eps=eps, statistics=statistics)
    return relu(y if residual is None else y + residual)


@normalize_relu.vjp
def _(xp, g, y, x, weight, bias, _residual, *, axes, eps, statistics):
    if isinstance(g, Traced):
        g = g * (y > 0)
        return *_gradients(xp, g, x, weight, axes, eps, None), lambda: g
    how = {"axes": axes, "eps": eps, "statistics": statistics, "added": _residual is not None}
    found = cache(lambda: normalize_relu_grad(g, y, x, weight, bias, **how))
    return (lambda: found()[0]), (lambda: found()[1]), (lambda: found()[2]), (lambda: found()[3])


@op
def normalize_relu_grad(xp, g, y, x, weight=None, bias=None, *, axes, eps, statistics, added):
    """The gradients of `normalize_relu`, whose result was y, with respect to x, weight, bias and, if one was added, the
    residual, which is None otherwise. Not differentiable."""
    g = g * (y > 0)
    return *normalize_grad(g, x, weight, axes=axes, eps=eps, statistics=statistics), g if added else None


@op
def normalize_by_relu(xp, x, mean, variance, weight=None, bias=None, residual=None, *, eps):
    """ReLU of `normalize_by`, to which a residual of the shape of x is added first unless it is None."""
    y = normalize_by(x, mean, variance, weight, bias, eps=eps)
    return relu(y if residual is None else y + residual)


@normalize_by_relu.vjp
def _(xp, g, y, x, mean, variance, weight, _bias, _residual, *, eps):
    g = g * (y > 0)
    return *_gradients_by(xp, g, x, mean, variance, weight, eps), lambda: g


@op
def rms_normalize(xp, x, weight=None, *, axes, eps):
    """x / sqrt(mean of its squares over `axes` + eps) * weight (Zhang and Sennrich, 2019).

    Args:
        x: floating-point, any shape.
        weight: of a shape that broadcasts with x, or None for 1.

    Raises:
        DTypeError: x is not floating-point.
    """
    _check_floating("rms_normalize", x)
    y = _wide(xp, x)
    y = y * _rms_scale(xp, y, axes, eps)
    if weight is not None:
        y = y * weight
    return y if y.dtype == x.dtype else xp.astype(y, x.dtype)


def _rms_scale(xp: Any, x: Any, axes: tuple[int, ...], eps: float) -> Any:
    return 1.0 / xp.sqrt(xp.mean(x * x, axis=axes, keepdims=True) + eps)


@rms_normalize.vjp
def _(xp, g, _y, x, weight, *, axes, eps):
    if isinstance(g, Traced):
        return _rms_gradients(xp, g, x, weight, axes, eps)
    found = cache(lambda: rms_normalize_grad(g, x, weight, axes=axes, eps=eps))
    return (lambda: found()[0]), (lambda: found()[1])


@op
def rms_normalize_grad(xp, g, x, weight=None, *, axes, eps):
    """The gradients of `rms_normalize` with respect to x and weight. Not differentiable.

    That of the weight may have the shape that it broadcasts to.
    """
    return tuple(find() for find in _rms_gradients(xp, g, x, weight, axes, eps))


def _rms_gradients(xp: Any, g: Any, x: Any, weight: Any, axes: Any, eps: float) -> Any:
    g, x = _wide(xp, g), _wide(xp, x)
    scale = _rms_scale(xp, x, axes, eps)
    hat = x * scale

    def to_input() -> Any:
        gw = g if weight is None else g * weight
        return (gw - hat * xp.mean(gw * hat, axis=axes, keepdims=True)) * scale

    return to_input, (lambda: g * hat)


def batch_norm(
    x: Any, weight: Any, bias: Any, *, eps: float, statistics: Any, relu: bool = False, residual: Any = None
) -> Any:
    """`normalize` of x (N, C, *) over all axes but the channels', with weight and bias (C,) or None.

    relu: whether it is followed by ReLU, before which a residual is added unless that is None.
    """
    weight, bias = _along_channels(weight, x), _along_channels(bias, x)
    how: dict[str, Any] = {"axes": (0, *range(2, x.ndim)), "eps": eps, "statistics": statistics}
    return normalize_relu(x, weight, bias, residual, **how) if relu else normalize(x, weight, bias, **how)


def group_norm(x: Any, groups: int, weight: Any, bias: Any, *, eps: float) -> Any:
    """`normalize` of each of so many groups of channels of x (N, C, *), with weight and bias (C,) or None.

    Raises:
        ShapeError: the channels do not divide into the groups, or weight or bias are not of the channels.
    """
    n, c, *spatial = x.shape
    if c % groups:
        raise ShapeError(f"group_norm: {c} channels of an input of shape {x.shape} do not divide into {groups} groups")
    for what, p in (("weight", weight), ("bias", bias)):
        if p is not None and p.shape != (c,):
            raise ShapeError(f"group_norm: {what} of shape {p.shape} does not fit an input of shape {x.shape}")
    if groups == c and spatial:
        split, axes = (n, c, *spatial), tuple(range(2, x.ndim))
        parameters: tuple[int, ...] = (c, *(1,) * len(spatial))
    else:
        split, axes = (n, groups, c // groups, *spatial), tuple(range(2, x.ndim + 1))
        parameters = (groups, c // groups, *(1,) * len(spatial))
    weight, late = (None if p is None else p.reshape(parameters) for p in (weight, bias))
    bias, late = (None, late) if weight is None else (late, None)  # a bias alone would not tell how x is divided
    y = normalize(x.reshape(split), weight, bias, axes=axes, eps=eps)
    return (y if late is None else y + late).reshape(x.shape)


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


def rms_norm(x: Any, normalized_shape: tuple[int, ...], weight: Any, *, eps: float) -> Any:
    """`rms_normalize` of x (*, *normalized_shape) over its last axes, with a weight of that shape or None.

    Raises:
        ShapeError: x does not end in normalized_shape.
    """
    k = len(normalized_shape)
    if tuple(x.shape[x.ndim - k :]) != tuple(normalized_shape):
        raise ShapeError(
            f"rms_norm: expected an input of shape (..., {', '.join(map(str, normalized_shape))}), got {x.shape}"
        )
    return rms_normalize(x, weight, axes=tuple(range(x.ndim - k, x.ndim)), eps=eps)


# --- CUDA's kernels


def _columns_of(x: Any, axes: tuple[int, ...], *parameters: Any) -> int:
    """How many adjacent elements of x are normalized together, if x and its parameters lie so; else 0."""
    first = x.ndim - len(axes)
    if axes != tuple(range(first, x.ndim)) or not axes:
        return 0
    if any(p is not None and p.shape != x.shape[first:] for p in parameters):
        return 0
    return min(prod(x.shape[first:]), 2**31 - 1)


@moments.kernel("norm", when=lambda x, *, axes: cuda.takes(x))
def _(launcher, x, *, axes):
    how = cuda.channels_of(x, axes)
    return NotImplemented if how is None else cuda.moments(launcher, x, how)


@update_running.kernel(
    "norm",
    when=lambda mean, variance, running_mean, running_var, **_: (
        (running_mean is not None or running_var is not None)
        and all(r is None or (cuda.takes(r) and r.flags.c_contiguous) for r in (running_mean, running_var))
        and len({r.dtype for r in (running_mean, running_var) if r is not None}) == 1
        and cuda.statistics_dtype(running_mean if running_mean is not None else running_var) == mean.dtype
    ),
)
def _(launcher, mean, variance, running_mean, running_var, *, momentum, unbias):
    cuda.update_running(launcher, mean, variance, running_mean, running_var, momentum, unbias)


@normalize.kernel("norm", when=lambda x, weight, bias, **_: cuda.takes(x, weight, bias))
def _(launcher, x, weight, bias, *, axes, eps, statistics):
    columns = _columns_of(x, axes, weight, bias)
    if columns and statistics is None and (x.flags.c_contiguous or weight is not None):
        return cuda.rows(launcher, launch.contiguous(launcher, x), weight, bias, columns, eps, rms=False)
    how = cuda.channels_of(x, axes, weight, bias)
    if how is None:
        return NotImplemented
    return cuda.channels(launcher, x, weight, bias, how, eps, statistics)


@normalize_grad.kernel("norm", when=lambda g, x, weight, **_: cuda.takes(x, weight) and g.dtype == x.dtype)
def _(launcher, g, x, weight, *, axes, eps, statistics):
    columns = _columns_of(x, axes, weight)
    if columns and statistics is None and (x.flags.c_contiguous or weight is not None):
        g, x = launch.contiguous(launcher, g), launch.contiguous(launcher, x)
        dx, *others = cuda.rows_grad(launcher, g, x, weight, columns, eps, rms=False)
        return dx, *(p.reshape(x.shape[x.ndim - len(axes) :]) for p in others)
    how = cuda.channels_of(x, axes, weight)
    if how is None:
        return NotImplemented
    return cuda.channels_grad(launcher, g, x, weight, how, eps, statistics)[:3]


@normalize_relu.kernel(
    "norm",
    when=lambda x, weight, bias, residual, **_: (
        cuda.takes(x, weight, bias) and (residual is None or (residual.dtype == x.dtype and residual.shape == x.shape))
    ),
)
def _(launcher, x, weight, bias, residual, *, axes, eps, statistics):
    how = cuda.channels_of(x, axes, weight, bias)
    if how is None:
        return NotImplemented
    return cuda.channels(launcher, x, weight, bias, how, eps, statistics, residual, relu=True)


@normalize_relu_grad.kernel(
    "norm", when=lambda g, y, x, weight, bias, **_: cuda.takes(x, weight, bias) and g.dtype == x.dtype
)
def _(launcher, g, y, x, weight, bias, *, axes, eps, statistics, added):
    how = cuda.channels_of(x, axes, weight, bias)
    if how is None:
        return NotImplemented
    output = y if added else None
    return cuda.channels_grad(launcher, g, x, weight, how, eps, statistics, bias=bias, relu=True, output=output)


def _takes_given(x: Any, mean: Any, variance: Any, *parameters: Any) -> bool:
    """Whether CUDA's kernels normalize x by a mean and a variance that are given."""
    if x.ndim < 2 or not x.size or not cuda.takes(x, *parameters) or not cuda.takes(x, mean, variance):
        return False
    return all(p is None or p.shape == x.shape[1:2] for p in (mean, variance, *parameters))


@normalize_by.kernel("norm", when=lambda x, *parameters, eps: _takes_given(x, *parameters))
def _(launcher, x, mean, variance, weight, bias, *, eps):
    how = cuda.by_channel(x)
    return cuda.channels(launcher, x, weight, bias, how, eps, (mean, variance))


@normalize_by_relu.kernel(
    "norm",
    when=lambda x, mean, variance, weight, bias, residual, *, eps: (
        _takes_given(x, mean, variance, weight, bias)
        and (residual is None or (residual.dtype == x.dtype and residual.shape == x.shape))
    ),
)
def _(launcher, x, mean, variance, weight, bias, residual, *, eps):
    how = cuda.by_channel(x)
    return cuda.channels(launcher, x, weight, bias, how, eps, (mean, variance), residual, relu=True)


@rms_normalize.kernel("norm", when=lambda x, weight, **_: cuda.takes(x, weight))
def _(launcher, x, weight, *, axes, eps):
    columns = _columns_of(x, axes, weight)
    if not columns:
        return NotImplemented
    return cuda.rows(launcher, launch.contiguous(launcher, x), weight, None, columns, eps, rms=True)


@rms_normalize_grad.kernel("norm", when=lambda g, x, weight, **_: cuda.takes(x, weight) and g.dtype == x.dtype)
def _(launcher, g, x, weight, *, axes, eps):
    columns = _columns_of(x, axes, weight)
    if not columns:
        return NotImplemented
    g, x = launch.contiguous(launcher, g), launch.contiguous(launcher, x)
    dx, to_weight, _to_bias = cuda.rows_grad(launcher, g, x, weight, columns, eps, rms=True)
    return dx, to_weight.reshape(x.shape[x.ndim - len(axes) :])
