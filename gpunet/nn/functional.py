"""The functions behind the layers: maps, convolution and pooling, normalization, activations, losses.

Names, arguments, defaults and definitions are PyTorch's, with `axis` where PyTorch says `dim`. All are differentiable
any number of times. Where a batch of images is meant, its shape is (N, C, H, W): samples, channels, height, width.

Values that are checked, rather than shapes (class indices, probabilities), are looked at on the CPU only, where a wrong
one raises an error that names it. On a GPU, looking would make every call wait for all work queued before it. There a
wrong value makes the result NaN at its place, and so its gradient, instead: it can never pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import gpunet as gn
from gpunet import random
from gpunet.autograd import is_grad_enabled, mark_written
from gpunet.dtypes import accumulation_dtype, float32, int64, is_floating
from gpunet.errors import DTypeError, ShapeError
from gpunet.nn.arguments import (
    check_array,
    check_batch,
    check_channels,
    check_floating,
    integers,
    named_padding,
    probability,
)
from gpunet.ops import attention as attention_ops
from gpunet.ops import conv as conv_ops
from gpunet.ops import elementwise as ew
from gpunet.ops import index, linalg, norm, pool, reduce
from gpunet.ops import loss as loss_ops
from gpunet.ops import random as random_ops
from gpunet.ops.elementwise import elu, leaky_relu, relu, sigmoid, silu, tanh
from gpunet.ops.matmul import linear
from gpunet.ops.op import raw
from gpunet.ops.softmax import log_softmax, softmax
from gpunet.tensor import Tensor

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "batch_norm", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "conv1d", "conv2d", "conv3d", "cosine_similarity", "cross_entropy", "dropout",
    "elu", "embedding", "gelu", "group_norm", "hardsigmoid", "hardswish", "hardtanh", "huber_loss", "instance_norm",
    "kl_div", "l1_loss", "layer_norm", "leaky_relu", "linear", "log_softmax", "logsigmoid", "lp_pool1d", "lp_pool2d",
    "lp_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "max_unpool1d", "max_unpool2d", "max_unpool3d", "mish",
    "mse_loss", "nll_loss", "normalize", "one_hot", "prelu", "relu", "relu6", "rms_norm",
    "scaled_dot_product_attention", "selu", "sigmoid", "silu", "smooth_l1_loss", "softmax", "softplus", "tanh",
]  # fmt: skip

IntOrTuple = int | tuple[int, ...]

# --- convolution and pooling


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) along one axis: as `conv2d`, of x (N, C, L) and weight (O, C / groups, K)."""
    return _conv("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) of images.

    Args:
        x: (N, C, H, W).
        weight: (O, C / groups, KH, KW).
        bias: (O,), or None.
        stride: how far apart the windows are; one int, or one for each of H and W. So are the next two.
        padding: how many zeros are put around the image; or "valid" for none, or "same" for as many as keep its size
            (then the stride must be 1; an odd one goes after).
        dilation: how far apart the elements of a window are.
        groups: channels fall into this many groups, which do not see each other.

    Returns:
        (N, O, H', W') with H' = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, and W' likewise.

    Raises:
        ShapeError: the shapes do not fit each other.
        ValueError: "same" with a stride, or another word.
    """
    return _conv("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) along three axes: as `conv2d`, of x (N, C, D, H, W) and weight
    (O, C / groups, KD, KH, KW)."""
    return _conv("conv3d", 3, x, weight, bias, stride, padding, dilation, groups)


def _conv(
    name: str,
    n: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
) -> Tensor:
    _check_batch(name, x, n)
    if weight.ndim != n + 2:
        raise ShapeError(f"{name}: the weight must have {n + 2} axes, (O, C / groups, *kernel), got {weight.shape}")
    with _told_by(name):
        check_channels(x, "weight", weight.shape[1] * groups)
    stride, dilation = integers(name, "stride", stride, n), integers(name, "dilation", dilation, n)
    if isinstance(padding, str):
        around = named_padding(name, padding, weight.shape[2:], stride, dilation)
    else:
        around = tuple((p, p) for p in integers(name, "padding", padding, n, 0))
    return conv_ops.conv(x, weight, bias, stride=stride, padding=around, dilation=dilation, groups=groups)


def max_pool1d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window along one axis: as `max_pool2d`, of x (N, C, L)."""
    return _max_pool("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of the images x (N, C, H, W).

    Args:
        x: (N, C, H, W).
        kernel_size: the windows' size; one int, or one for each of H and W. So are the next three.
        stride: how far apart the windows are; None: as far as they are large, so that they do not overlap.
        padding: how far windows may reach over the edge, at most half of their size; what is there does not count.
        dilation: how far apart the elements of a window are.
        ceil_mode: whether a last window may hang over the end, instead of leaving elements out.
        return_indices: whether to tell where the maxima are, too.

    Returns:
        (N, C, H', W') with H' = (H + 2 padding - dilation (kernel_size - 1) - 1) // stride + 1, and W' likewise. With
        `return_indices`, that and the indices of the maxima in H x W, int64, as `max_unpool2d` takes them: of equal
        ones the first, of NaNs the last.

    Raises:
        ShapeError: x has another number of axes, or is smaller than a window.
    """
    return _max_pool("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window along three axes: as `max_pool2d`, of x (N, C, D, H, W)."""
    return _max_pool("max_pool3d", 3, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool(
    name: str,
    n: int,
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None,
    padding: IntOrTuple,
    dilation: IntOrTuple,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    windows = _windows(name, n, x, kernel_size, stride, padding)
    call = pool.max_pool_with_indices if return_indices else pool.max_pool
    return call(x, **windows, dilation=integers(name, "dilation", dilation, n), ceil_mode=ceil_mode)


def max_unpool1d(
    x: Tensor,
    indices: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    output_size: tuple[int, ...] | None = None,
) -> Tensor:
    """What `max_pool1d` loses put back as zeros: as `max_unpool2d`, of x (N, C, L)."""
    return _max_unpool("max_unpool1d", 1, x, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    x: Tensor,
    indices: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    output_size: tuple[int, ...] | None = None,
) -> Tensor:
    """Images of zeros with the elements of x at the places that `max_pool2d` took them from.

    Args:
        x, indices: (N, C, H, W): what `max_pool2d` gives with `return_indices`. Of elements with the same index the
            last one is taken.
        kernel_size, stride, padding: as of `max_pool2d`.
        output_size: (H', W'), or a whole shape that ends in them. None: H' = (H - 1) stride - 2 padding + kernel_size,
            and W' likewise. Given sizes must be less than a stride away from these.

    Returns:
        (N, C, H', W').

    Raises:
        ShapeError, DTypeError, ValueError: the indices do not have the shape of x, are no int64, or outside of H' x W'
            (see this module's docstring); an output size that does not fit.
    """
    return _max_unpool("max_unpool2d", 2, x, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    x: Tensor,
    indices: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    output_size: tuple[int, ...] | None = None,
) -> Tensor:
    """What `max_pool3d` loses put back as zeros: as `max_unpool2d`, of x (N, C, D, H, W)."""
    return _max_unpool("max_unpool3d", 3, x, indices, kernel_size, stride, padding, output_size)


def _max_unpool(
    name: str,
    n: int,
    x: Tensor,
    indices: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None,
    padding: IntOrTuple,
    output_size: tuple[int, ...] | None,
) -> Tensor:
    windows = _windows(name, n, x, kernel_size, stride, padding)
    if indices.shape != x.shape:
        raise ShapeError(f"{name}: the indices must have the shape of the input, {x.shape}, got {indices.shape}")
    if indices.dtype != int64:
        raise DTypeError(f"{name}: the indices must be int64, got {indices.dtype}")
    geometry = list(zip(x.shape[2:], windows["kernel"], windows["stride"], windows["padding"]))
    size = usual = tuple((length - 1) * s - 2 * p + k for length, k, s, p in geometry)
    if output_size is not None:
        size = tuple(output_size[-n:])
        if len(output_size) not in (n, n + 2) or any(
            abs(a - b) >= s for a, b, s in zip(size, usual, windows["stride"])
        ):
            raise ValueError(
                f"{name}: output_size must be {n} lengths less than the stride {windows['stride']} away from {usual}, "
                f"got {output_size}"
            )
    if min(size) < 1:
        raise ShapeError(f"{name}: an input of shape {x.shape} leaves no output, {size}")
    places = int(np.prod(size))
    if indices.device.type == "cpu":
        wrong = (indices < 0) | (indices >= places)
        if wrong.any():
            at = int(wrong.reshape(-1).argmax())
            raise ValueError(
                f"{name}: the index {_item(indices, at)}{_place(indices, at)} is outside of the {places} places of an "
                f"output of size {size}"
            )
    return pool.place_maxima(x, indices, size=size)


def avg_pool1d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The average of each window along one axis: as `avg_pool2d`, of x (N, C, L)."""
    return _avg_pool("avg_pool1d", 1, x, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of the images x (N, C, H, W).

    Args:
        x, kernel_size, stride, padding, ceil_mode: as of `max_pool2d`; the padding is zeros.
        count_include_pad: whether those zeros count as elements of the average.
        divisor_override: what sums are divided by; None: by the number of elements.

    Raises:
        ShapeError: x has another number of axes, or is smaller than a window.
        ValueError: a divisor of zero.
    """
    return _avg_pool("avg_pool2d", 2, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window along three axes: as `avg_pool2d`, of x (N, C, D, H, W)."""
    return _avg_pool("avg_pool3d", 3, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _avg_pool(
    name: str,
    n: int,
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None,
    padding: IntOrTuple,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    windows = _windows(name, n, x, kernel_size, stride, padding)
    if divisor == 0:
        raise ValueError(f"{name}: divisor_override must not be zero")
    return pool.avg_pool(x, **windows, ceil_mode=ceil_mode, count_include_pad=count_include_pad, divisor=divisor)


def lp_pool1d(
    x: Tensor,
    norm_type: float,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The norm of each window along one axis: as `lp_pool2d`, of x (N, C, L)."""
    return _lp_pool("lp_pool1d", 1, x, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    x: Tensor,
    norm_type: float,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The norm of each window of the images x (N, C, H, W): (the sum of x ** norm_type) ** (1 / norm_type).

    As in PyTorch there are no absolute values: with an odd order, a negative sum gives NaN. With `ceil_mode`, the sum
    of a window that hangs over the end is scaled up to that of a whole one. Windows whose norm is zero have no
    gradient.

    Args:
        norm_type: the order of the norm, not zero.
        x, kernel_size, stride, ceil_mode: as of `max_pool2d`.
    """
    return _lp_pool("lp_pool2d", 2, x, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    x: Tensor,
    norm_type: float,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The norm of each window along three axes: as `lp_pool2d`, of x (N, C, D, H, W)."""
    return _lp_pool("lp_pool3d", 3, x, norm_type, kernel_size, stride, ceil_mode)


def _lp_pool(
    name: str,
    n: int,
    x: Tensor,
    order: float,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None,
    ceil_mode: bool,
) -> Tensor:
    windows = _windows(name, n, x, kernel_size, stride, 0)
    if order == 0:
        raise ValueError(f"{name}: norm_type must not be zero")
    return pool.window_norm(x, order=float(order), **windows, ceil_mode=ceil_mode)


def adaptive_avg_pool1d(x: Tensor, output_size: IntOrTuple) -> Tensor:
    """The average of windows so chosen that x (N, C, L) becomes (N, C, output_size)."""
    return pool.adaptive_avg_pool(x, output_size=_output_size("adaptive_avg_pool1d", 1, x, output_size))


def adaptive_avg_pool2d(x: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """The average of windows so chosen that x (N, C, H, W) becomes (N, C, *output_size).

    Args:
        x: (N, C, H, W).
        output_size: one int, or one for each of H and W, None for the length that x has.
    """
    return pool.adaptive_avg_pool(x, output_size=_output_size("adaptive_avg_pool2d", 2, x, output_size))


def adaptive_avg_pool3d(x: Tensor, output_size: int | tuple[int | None, ...]) -> Tensor:
    """The average of windows so chosen that x (N, C, D, H, W) becomes (N, C, *output_size): as
    `adaptive_avg_pool2d`."""
    return pool.adaptive_avg_pool(x, output_size=_output_size("adaptive_avg_pool3d", 3, x, output_size))


def adaptive_max_pool1d(x: Tensor, output_size: IntOrTuple, return_indices: bool = False) -> Any:
    """The maximum of windows so chosen that x (N, C, L) becomes (N, C, output_size): as `adaptive_max_pool2d`."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, x, output_size, return_indices)


def adaptive_max_pool2d(
    x: Tensor, output_size: int | tuple[int | None, int | None], return_indices: bool = False
) -> Any:
    """The maximum of windows so chosen that x (N, C, H, W) becomes (N, C, *output_size).

    Args:
        x, output_size: as of `adaptive_avg_pool2d`.
        return_indices: whether to return, too, the indices of the maxima in H x W, int64.
    """
    return _adaptive_max_pool("adaptive_max_pool2d", 2, x, output_size, return_indices)


def adaptive_max_pool3d(x: Tensor, output_size: int | tuple[int | None, ...], return_indices: bool = False) -> Any:
    """The maximum of windows so chosen that x (N, C, D, H, W) becomes (N, C, *output_size): as
    `adaptive_max_pool2d`."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, x, output_size, return_indices)


def _adaptive_max_pool(name: str, n: int, x: Tensor, output_size: Any, return_indices: bool) -> Any:
    size = _output_size(name, n, x, output_size)
    return (pool.adaptive_max_pool_with_indices if return_indices else pool.adaptive_max_pool)(x, output_size=size)


def _output_size(name: str, n: int, x: Tensor, output_size: Any) -> tuple[int, ...]:
    """As many ints as x has spatial axes, its lengths in the place of None."""
    _check_batch(name, x, n)
    if isinstance(output_size, (tuple, list)) and len(output_size) == n:
        output_size = tuple(length if size is None else size for length, size in zip(x.shape[2:], output_size))
    return integers(name, "output_size", output_size, n)


def _windows(
    name: str, n: int, x: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple
) -> dict[str, tuple[int, ...]]:
    _check_batch(name, x, n)
    return {
        "kernel": integers(name, "kernel_size", kernel_size, n),
        "stride": integers(name, "stride", kernel_size if stride is None else stride, n),
        "padding": integers(name, "padding", padding, n, 0),
    }


def _check_batch(name: str, x: Tensor, axes: int) -> None:
    with _told_by(name):
        check_batch(x, axes)


@contextmanager
def _told_by(name: str) -> Iterator[None]:
    """Put the function's name before what an error says."""
    try:
        yield
    except (ShapeError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from None


# --- normalization


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Each channel shifted to mean 0 and scaled to variance 1, then by weight and bias (Ioffe and Szegedy, 2015).

    Args:
        x: (N, C) or (N, C, *spatial).
        running_mean, running_var: (C,). In training, they move in place towards the batch's mean and unbiased
            variance: new = (1 - momentum) * old + momentum * batch; None: they are not kept. Otherwise, they are what
            x is normalized with.
        weight, bias: (C,), or None for 1 and 0.
        training: whether to normalize with the batch's own mean and (biased) variance.
        momentum: see running_mean.
        eps: added to the variance.
        relu: whether ReLU follows, in the same pass over memory.
        residual: of the shape of x, added before ReLU, or None. Only together with `relu`.

    Raises:
        ShapeError: x does not have C channels, or, in training, only one value in each, which would become 0; or the
            residual does not have its shape.
        ValueError: neither training nor running statistics; a residual without ReLU.
    """
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: expected an input of shape (N, C) or (N, C, *spatial), got {x.shape}")
    for what, p in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if p is not None and p.shape != (x.shape[1],):
            raise ShapeError(
                f"batch_norm: {what} of shape {p.shape} is for {p.size} channels, got an input of shape {x.shape}, "
                f"which has {x.shape[1]}"
            )
    if residual is not None:
        if not relu:
            raise ValueError("batch_norm: a residual is added only where relu=True")
        if residual.shape != x.shape:
            raise ShapeError(
                f"batch_norm: the residual must have the shape of the input, {x.shape}, got {residual.shape}"
            )
    if training:
        values = x.size // x.shape[1] if x.shape[1] else 0
        if values < 2:
            raise ShapeError(
                f"batch_norm: in training, a channel needs more than one value, got an input of shape {x.shape}; "
                "use a larger batch (DataLoader(drop_last=True) leaves out a last one of one sample), or model.eval()"
            )
        statistics = norm.moments(x.data, axes=(0, *range(2, x.ndim)))
        y = norm.batch_norm(x, weight, bias, eps=eps, statistics=statistics, relu=relu, residual=residual)
        unbias = values / (values - 1)
        norm.update_running(*statistics, raw(running_mean), raw(running_var), momentum=momentum, unbias=unbias)
        mark_written(p for p in (running_mean, running_var) if p is not None)
        return y
    if running_mean is None or running_var is None:
        raise ValueError("batch_norm: without training, it needs running_mean and running_var")
    if relu:
        return norm.normalize_by_relu(x, running_mean, running_var, weight, bias, residual, eps=eps)
    return norm.normalize_by(x, running_mean, running_var, weight, bias, eps=eps)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of each sample shifted to mean 0 and scaled to variance 1, then by weight and bias (Ulyanov, Vedaldi
    and Lempitsky, 2016).

    Args:
        x: (N, C, *spatial).
        running_mean, running_var: (C,), or None. With `use_input_stats` they move in place towards the averages of the
            samples' means and unbiased variances. Otherwise, they are what x is normalized with.
        weight, bias: (C,), or None for 1 and 0.
        use_input_stats: whether to normalize with each sample's own mean and (biased) variance.
        momentum, eps: as of `batch_norm`.

    Raises:
        ShapeError: x does not have C channels, or only one value in each.
        ValueError: neither use_input_stats nor running statistics.
    """
    if x.ndim < 3:
        raise ShapeError(f"instance_norm: expected an input of shape (N, C, *spatial), got {x.shape}")
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise ValueError("instance_norm: without use_input_stats, it needs running_mean and running_var")
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    values = int(np.prod(x.shape[2:]))
    if values < 2:
        raise ShapeError(f"instance_norm: a channel needs more than one value, got an input of shape {x.shape}")
    y = norm.group_norm(x, x.shape[1], weight, bias, eps=eps)
    if x.size and (running_mean is not None or running_var is not None):
        found = norm.moments(x.data, axes=tuple(range(2, x.ndim)))
        means, variances = (reduce.mean(s, axis=0, keepdims=True) for s in found)
        unbias = values / (values - 1)
        norm.update_running(means, variances, raw(running_mean), raw(running_var), momentum=momentum, unbias=unbias)
        mark_written(p for p in (running_mean, running_var) if p is not None)
    return y


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Groups of channels of each sample shifted to mean 0 and scaled to variance 1, then each channel by weight and
    bias (Wu and He, 2018).

    Args:
        x: (N, C, *spatial).
        num_groups: into how many groups of neighbours the channels fall.
        weight, bias: (C,), or None for 1 and 0.
        eps: added to the variance.

    Raises:
        ShapeError: the channels do not divide into the groups, or weight or bias are not (C,).
    """
    if x.ndim < 2:
        raise ShapeError(f"group_norm: expected an input of shape (N, C, *spatial), got {x.shape}")
    if num_groups < 1:
        raise ValueError(f"group_norm: num_groups must be at least 1, got {num_groups}")
    return norm.group_norm(x, num_groups, weight, bias, eps=eps)


def layer_norm(
    x: Tensor,
    normalized_shape: IntOrTuple,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The last axes shifted to mean 0 and scaled to variance 1, then by weight and bias (Ba, Kiros and Hinton, 2016).

    Args:
        x: (*, *normalized_shape).
        normalized_shape: lengths of the axes over which mean and (biased) variance are taken.
        weight, bias: of shape normalized_shape, or None for 1 and 0.
        eps: added to the variance.

    Raises:
        ShapeError: x does not end in normalized_shape, or weight or bias are not of that shape.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    for what, p in (("weight", weight), ("bias", bias)):
        if p is not None and p.shape != shape:
            raise ShapeError(f"layer_norm: expected a {what} of the normalized shape {shape}, got {p.shape}")
    return norm.layer_norm(x, shape, weight, bias, eps=eps)


def rms_norm(x: Tensor, normalized_shape: IntOrTuple, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """The last axes divided by the root of the mean of their squares, then scaled by weight (Zhang and Sennrich, 2019).

    Args:
        x: (*, *normalized_shape).
        normalized_shape: lengths of the axes over which the mean is taken.
        weight: of shape normalized_shape, or None for 1.
        eps: added to the mean of the squares; None: the distance from 1 to the next number of the dtype of x.

    Raises:
        ShapeError: x does not end in normalized_shape, or the weight is not of that shape.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if weight is not None and weight.shape != shape:
        raise ShapeError(f"rms_norm: expected a weight of the normalized shape {shape}, got {weight.shape}")
    return norm.rms_norm(x, shape, weight, eps=float(gn.finfo(x.dtype).eps) if eps is None else eps)


def normalize(x: Tensor, p: float = 2.0, axis: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its norms of order p along an axis; norms below eps count as eps."""
    return _like(x / gn.maximum(_norm(x, p, axis), eps), x)


def cosine_similarity(x1: Tensor, x2: Tensor, axis: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between the vectors along an axis; norms below eps count as eps.

    Args:
        x1, x2: of shapes that broadcast against each other.
        axis: which is gone from the result.
        eps: keeps the result finite for a vector of zeros.
    """
    return gn.sum(normalize(x1, 2.0, axis, eps) * normalize(x2, 2.0, axis, eps), axis=axis)


def _norm(x: Tensor, p: float, axis: int) -> Tensor:
    """The norm along an axis, kept; of float16 in float32, which neither overflows nor loses a small eps."""
    wide = x.astype(float32) if x.dtype == "float16" else x
    return linalg.vector_norm(wide, axis=axis, keepdims=True, ord=p)


# --- attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query @ keyᵀ * scale) @ value: for each query a mean of the values, weighted by how well the keys fit
    (Vaswani et al., 2017). A query that no key takes part for gives zeros.

    On the CPU, float32 arrays of any strides are taken as they are, and the scores are never all in memory. Neither
    transposing a projection (N, L, H, E) to (N, H, L, E) first nor transposing the result back costs anything.

    Args:
        query: (..., L, E), such as (N, H, L, E): samples, heads, positions, features; floating-point.
        key: (..., S, E).
        value: (..., S, Ev), finite even where the mask leaves it out. The leading axes of all three broadcast.
        attn_mask: broadcasts to (..., L, S): bool, true for keys that take part; or floating-point, which is added to
            the scores.
        dropout_p: the probability that a weight is set to zero, the others being divided by 1 - dropout_p. There is
            no `training`: pass 0 in evaluation. The mask is drawn as that of `dropout` of an array (..., L, S).
        is_causal: query i sees keys 0 to i only.
        scale: default 1 / sqrt(E).
        enable_gqa: key and value may have fewer heads (the last leading axis) than the query, each for a group of
            consecutive ones (Ainslie et al., 2023).

    Returns:
        (..., L, Ev).

    Raises:
        ValueError: both a mask and is_causal, or dropout_p is out of range.
        ShapeError: the shapes do not fit each other.
        DTypeError: the dtypes differ, are not floating-point, or the mask's is of another kind.
    """
    name = "scaled_dot_product_attention"
    if attn_mask is not None and is_causal:
        raise ValueError(f"{name}: expected attn_mask or is_causal, got both; put the causal part into the mask")
    dropout_p = probability(name, dropout_p)
    leading = _check_attention(name, query, key, value, attn_mask, enable_gqa)
    if attn_mask is not None and attn_mask.dtype.kind == "f" and attn_mask.dtype != query.dtype:
        attn_mask = attn_mask.astype(query.dtype)
    if scale is None:
        scale = query.shape[-1] ** -0.5 if query.shape[-1] else 1.0
    groups = 1
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        heads = query.shape[-3]
        groups = heads // key.shape[-3]
        query = query.reshape((*query.shape[:-3], key.shape[-3], groups, *query.shape[-2:]))
        key, value = gn.expand_dims(key, axis=-3), gn.expand_dims(value, axis=-3)
        if attn_mask is not None and attn_mask.ndim > 2:
            by_head = (key.shape[-4], groups) if attn_mask.shape[-3] == heads else (1, 1)
            attn_mask = attn_mask.reshape((*attn_mask.shape[:-3], *by_head, *attn_mask.shape[-2:]))
    how: dict[str, Any] = {}
    if dropout_p == 1.0:
        value = value * 0.0
    elif dropout_p:
        shape = (*leading, query.shape[-2], key.shape[-2])
        how = {"dropout": dropout_p, "key": random.generator().key(shape, "float32")}
    y = attention_ops.attention(query, key, value, attn_mask, scale=float(scale), causal=bool(is_causal), **how)[0]
    return y if groups == 1 else y.reshape((*y.shape[:-4], heads, *y.shape[-2:]))


def _check_attention(
    name: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool
) -> tuple[int, ...]:
    """What the leading axes broadcast to."""
    q, k, v = check_array(query), check_array(key), check_array(value)
    least = 3 if grouped else 2
    fit = min(len(q), len(k), len(v)) >= least and q[-1] == k[-1] and k[-2] == v[-2]
    if fit and grouped:
        fit = k[-3] == v[-3] and (q[-3] % k[-3] == 0 if k[-3] else not q[-3])
    leading: tuple[int, ...] = ()
    try:
        if fit and not grouped and q[:-2] == k[:-2] == v[:-2]:
            leading = q[:-2]
        elif fit:
            end = -3 if grouped else -2
            leading = np.broadcast_shapes(q[:end], k[:end], v[:end]) + q[end:-2]
    except ValueError:
        fit = False
    if not fit:
        heads = "query (..., H, L, E), key (..., G, S, E) and value (..., G, S, Ev) with H a multiple of G"
        wanted = heads if grouped else "query (..., L, E), key (..., S, E) and value (..., S, Ev)"
        hint = ""
        if not grouped and min(len(q), len(k)) > 2 and q[-3] != k[-3] and k[-3] and q[-3] % k[-3] == 0:
            hint = "; enable_gqa=True lets each head of key and value serve several of the query"
        raise ShapeError(f"{name}: expected {wanted}, got {q}, {k} and {v}{hint}")
    dtype = query.dtype
    if dtype.kind != "f" or key.dtype != dtype or value.dtype != dtype:
        raise DTypeError(
            f"{name}: expected query, key and value of one floating-point dtype, "
            f"got {dtype}, {key.dtype} and {value.dtype}"
        )
    if mask is not None:
        shape, full = check_array(mask), (*leading, q[-2], k[-2])
        if mask.dtype.kind not in "bf":
            raise DTypeError(f"{name}: expected a mask of bool or floating-point, got {mask.dtype}")
        if len(shape) > len(full) or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1])):
            raise ShapeError(f"{name}: expected a mask that broadcasts to {full}, got {shape}")
    return leading


# --- dropout, embeddings


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """In training, each element set to zero with probability p, the others divided by 1 - p (Srivastava et al., 2014).

    The mask comes from `gpunet.random.generator()`; the same seed gives the same one on every device and for any dtype.

    Args:
        x: floating-point, any shape.
        p: from 0 to 1; 1 sets everything to zero.
        training: if False, x is returned as it is.

    Raises:
        ValueError: p is out of range.
        DTypeError: x is not floating-point.
    """
    p = probability("dropout", p)
    if x.dtype is not float32:
        try:
            check_floating(x)
        except DTypeError as error:
            raise DTypeError(f"dropout: {error}") from None
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    return random_ops.dropout(x, p=p, key=random.generator().key(x.shape, "float32"), kept=[])


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """For each index, the row of `weight` that it names.

    Args:
        indices: integers from 0 to V - 1, any shape S.
        weight: (V, D).
        padding_idx: this row gets no gradient; a negative one counts from the end.

    Returns:
        (*S, D).

    Raises:
        DTypeError: indices are not integers.
        IndexError: one is out of range; on a GPU its row is NaN instead.
    """
    indices, rows = _integers("embedding", "indices", indices), weight.shape[0]
    indices, factors = _in_range(
        indices,
        rows,
        lambda at: IndexError(
            f"embedding: index {_item(indices, at)}{_place(indices, at)} is out of range: there are {rows} rows"
        ),
    )
    y = index.take(weight, indices, axis=0)
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise ValueError(f"embedding: padding_idx={padding_idx} is out of range: there are {rows} rows")
        y = gn.where((indices == padding_idx % rows)[..., None], y.detach(), y)
    return y if factors is None else y * _like(factors, y)[..., None]


def one_hot(indices: Tensor, num_classes: int = -1) -> Tensor:
    """For each class index, a row (int64) with a one at the index and zeros elsewhere.

    Args:
        indices: integers from 0 to num_classes - 1, any shape S.
        num_classes: length of the rows; -1: one more than the largest index, which has to be found first.

    Returns:
        (*S, num_classes).

    Raises:
        DTypeError: indices are not integers.
        IndexError: one is out of range; on a GPU its row is all zeros instead.
    """
    indices = _integers("one_hot", "indices", indices)
    if num_classes == -1:
        if not indices.size:
            raise ValueError("one_hot: the number of classes cannot be found from no indices; give num_classes")
        num_classes = int(indices.max()) + 1
    _refuse(
        (indices < 0) | (indices >= num_classes),
        lambda at: IndexError(
            f"one_hot: index {_item(indices, at)}{_place(indices, at)} is out of range for {num_classes} classes"
        ),
    )
    return index.one_hot(indices, num_classes=num_classes)


# --- activations: relu, leaky_relu, elu, silu, sigmoid, tanh, softmax and log_softmax are ops as they are


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x * P(X <= x) for a standard normal X (Hendrycks and Gimpel, 2016).

    Args:
        x: floating-point, any shape.
        approximate: "none" for the error function, "tanh" for the paper's approximation.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return ew.gelu(x, approximate=approximate)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, a smooth relu; where beta * x is above `threshold`, x itself."""
    return gn.where(x * beta > threshold, x, ew.softplus(x, beta=beta))


def logsigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)), computed without overflow."""
    return -ew.softplus(-x)


def selu(x: Tensor) -> Tensor:
    """elu, scaled so that activations keep mean 0 and variance 1 from layer to layer (Klambauer et al., 2017)."""
    return 1.0507009873554805 * elu(x, alpha=1.6732632423543772)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x where it is positive, else weight * x, with learned weights (He et al., 2015).

    Args:
        x: (N, C, *), or any shape where there is one weight.
        weight: (C,) or (1,).

    Raises:
        ShapeError: there are neither one weight nor as many as channels.
    """
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.ndim != 1 or weight.size not in (1, channels):
        raise ShapeError(
            f"prelu: expected one weight, or one for each of the {channels} channels of the input of shape {x.shape}, "
            f"got shape {weight.shape}"
        )
    along = (1,) * x.ndim if weight.size == 1 else (-1,) + (1,) * (x.ndim - 2)
    return gn.where(x > 0, x, weight.reshape(along) * x)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x limited to the interval from min_val to max_val; its derivative at the ends is taken to be 0."""
    if min_val >= max_val:
        raise ValueError(f"hardtanh: min_val must be below max_val, got {min_val} and {max_val}")
    return ew.hardtanh(x, min_val=min_val, max_val=max_val)


def relu6(x: Tensor) -> Tensor:
    """x limited to the interval from 0 to 6."""
    return ew.hardtanh(x, min_val=0.0, max_val=6.0)


def hardsigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6, sigmoid in straight lines."""
    return relu6(x + 3.0) * (1.0 / 6.0)


def hardswish(x: Tensor) -> Tensor:
    """x * hardsigmoid(x), silu without exponentials (Howard et al., 2019)."""
    return x * hardsigmoid(x)


def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)) (Misra, 2019)."""
    return x * tanh(ew.softplus(x))


# --- losses of numbers


def mse_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The squared differences (x - target)².

    Args:
        x: floating-point predictions, any shape.
        target: of exactly that shape; converted to the dtype of x.
        reduction: "none" for the losses as they are, "mean" or "sum" for a 0-d Tensor.

    Raises:
        ShapeError: the shapes differ. Losses never broadcast: (32, 1) and (32,) would give 1024 losses.
        DTypeError: x is not floating-point.
        ValueError: another reduction.
    """
    d = x - _target_of("mse_loss", x, target, reduction)
    return _reduce(d * d, reduction)


def l1_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The absolute differences |x - target|; arguments and errors as of `mse_loss`."""
    return _reduce(abs(x - _target_of("l1_loss", x, target, reduction)), reduction)


def huber_loss(x: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d² / 2 for differences d up to `delta`, and delta * (|d| - delta / 2) beyond (Huber, 1964).

    Arguments and errors as of `mse_loss`.
    """
    if delta <= 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}")
    return _reduce(_huber(x - _target_of("huber_loss", x, target, reduction), delta), reduction)


def smooth_l1_loss(x: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d² / (2 beta) for differences d below `beta`, and |d| - beta / 2 beyond; with beta=0, `l1_loss` (Girshick, 2015).

    Arguments and errors as of `mse_loss`.
    """
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    d = x - _target_of("smooth_l1_loss", x, target, reduction)
    return _reduce(_huber(d, beta) * (1.0 / beta) if beta else abs(d), reduction)


def _huber(d: Tensor, delta: float) -> Tensor:
    near = d.clip(-delta, delta)  # so that one formula serves both sides, and none of it overflows
    return near * (d - 0.5 * near)


# --- losses of classes


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """How surprised softmax(x) is by the target: -log softmax(x)[target].

    Args:
        x: (N, C) logits, floating-point; also (C,) for a single sample, or (N, C, d1, …) for one at each place.
        target: class indices, integers in [0, C) of shape (N,), (), or (N, d1, …); or the probabilities of the classes,
            floating-point of the shape of x.
        weight: (C,) factors of the classes, or None.
        ignore_index: places with this class index count for nothing.
        reduction: "none" for losses of the shape of the class indices; "sum"; or "mean" over the places that count. For
            class indices it is weighted: the sum divided by the sum of weight[target]. Where no place counts, that is
            0/0: NaN.
        label_smoothing: the share of the target, from 0 to 1, that is spread evenly over all classes (Szegedy et al.,
            2016).

    Raises:
        ShapeError: the shapes do not fit each other.
        DTypeError: x is not floating-point, or target has the shape of class indices and is not of integers.
        IndexError: a class index is out of range; on a GPU the loss is NaN instead.
        ValueError: another reduction, or a label_smoothing out of range.
    """
    name = "cross_entropy"
    check_reduction(name, reduction)
    _check_predictions(name, x)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{name}: label_smoothing is a share, from 0 to 1, got {label_smoothing}")
    if not isinstance(target, Tensor):
        target = gn.asarray(target)
    if is_floating(target.dtype) and target.shape == x.shape:
        return _cross_entropy_of_probabilities(x, target, weight, reduction, label_smoothing)
    if weight is None and not label_smoothing and _are_plain(x, target):
        try:
            return loss_ops.cross_entropy(x, target, None, ignore_index=ignore_index, reduction=reduction)
        except IndexError:
            pass  # the checks will say which class it is
    marks = type(x.data) is not np.ndarray  # whether the op makes the loss of a wrong class NaN
    classes = _Classes(name, x, target, weight, ignore_index, marks)
    losses = loss_ops.cross_entropy(
        classes.rows,
        classes.target,
        classes.weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        kept=[] if marks and x.requires_grad and is_grad_enabled() else None,
    )
    return losses if reduction != "none" else classes.reduce(losses, reduction)


def _are_plain(x: Tensor, target: Tensor) -> bool:
    """Whether these are rows and their class indices, on a CPU, where `loss_ops.cross_entropy` refuses wrong ones."""
    rows, indices = x.data, target.data
    return (
        type(rows) is np.ndarray
        and type(indices) is np.ndarray
        and rows.ndim == 2
        and indices.dtype == int64
        and indices.shape == rows.shape[:1]
    )


def _cross_entropy_of_probabilities(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    axis = min(1, x.ndim - 1)
    q = _like(target, x)
    if label_smoothing:
        q = q * (1.0 - label_smoothing) + label_smoothing / x.shape[axis]
    if weight is not None:
        weight = _class_weight("cross_entropy", weight, x)
        q = q * weight.reshape((-1,) + (1,) * (x.ndim - axis - 1))
    return _reduce(-gn.sum(q * log_softmax(x, axis=axis), axis=axis), reduction)


def nll_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-x[target], for x of logarithms of probabilities, as `log_softmax` gives them.

    Arguments and errors as of `cross_entropy` with class indices.
    """
    check_reduction("nll_loss", reduction)
    _check_predictions("nll_loss", x)
    classes = _Classes("nll_loss", x, gn.asarray(target), weight, ignore_index)
    indices = classes.indices()
    picked = gn.take_along_axis(classes.rows, indices[:, None], axis=1)[:, 0]
    if classes.weight is not None:
        picked = picked * gn.take(classes.weight, indices)
    return classes.reduce(gn.where(classes.target != ignore_index, -picked, 0.0), reduction)


class _Classes:
    """The arguments of a loss of class indices, checked, with one row for each place.

    Attributes:
        rows: (M, C) predictions.
        target: (M,) int64 class indices, or `ignore_index`.
        weight: (C,) in the dtype of the predictions, or None.
        factors: None, or where class indices cannot be refused, (M,) factors for the losses; see `_refuse`. Also None
            where what is computed of them `marks` those itself.
    """

    def __init__(
        self, name: str, x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, marks: bool = False
    ) -> None:
        self.shape = _check_class_shapes(name, x, target)
        axis = min(1, x.ndim - 1)
        classes = x.shape[axis]
        self.rows = x if x.ndim == 2 else gn.moveaxis(x, axis, -1).reshape(-1, classes)
        self.target = target if target.dtype == int64 else target.astype(int64)
        if target.ndim != 1:
            self.target = self.target.reshape(-1)
        self.weight = None if weight is None else _class_weight(name, weight, x)
        self.ignore_index = ignore_index
        self.factors = None
        if marks or _all_in_range(self.target, classes, ignore_index):
            return
        indices, self.factors = _in_range(
            self.indices(),
            classes,
            lambda at: IndexError(
                f"{name}: target {_item(target, at)}{_place(target, at)} is out of range: the input of shape "
                f"{x.shape} has {classes} classes, 0 to {classes - 1}"
                + (f" (ignore_index={ignore_index} would be ignored)" if _item(target, at) < 0 else "")
            ),
        )
        self.target = gn.where(self.target != ignore_index, indices, ignore_index)

    def indices(self) -> Tensor:
        """The class indices (M,), 0 where they are ignored."""
        return gn.where(self.target != self.ignore_index, self.target, 0)

    def reduce(self, losses: Tensor, reduction: str) -> Tensor:
        """The losses (M,), zero where ignored, reduced; the mean is over what is kept, by its weights."""
        if self.factors is not None:
            losses = losses * _like(self.factors, losses)
        if reduction == "none":
            return losses.reshape(self.shape)
        if reduction == "sum":
            return gn.sum(losses)
        wide = accumulation_dtype(losses.dtype)
        kept = self.target != self.ignore_index
        counts = kept if self.weight is None else gn.take(self.weight, self.indices()) * kept
        total = gn.sum(counts, dtype=wide)
        total = gn.where(total == 0, gn.nan, total)  # NumPy would warn of 0/0
        return _like(gn.sum(losses, dtype=wide) / total, losses)


def _all_in_range(indices: Tensor, n: int, ignore: int) -> bool:
    """Whether indices are from 0 to n - 1 or `ignore`, as far as it can be told without waiting for a GPU."""
    raw = indices.data
    return type(raw) is np.ndarray and loss_ops.first_outside(raw, n=n, ignore=ignore) < 0


def _check_class_shapes(name: str, x: Tensor, target: Tensor) -> tuple[int, ...]:
    """The shape that class indices for x have.

    Raises:
        ShapeError, DTypeError: `target` does not have it, or is not of integers.
    """
    if not x.ndim:
        raise ShapeError(f"{name}: expected an input of shape (N, C), (C,) or (N, C, d1, …), got a 0-d one")
    shape = x.shape
    expected = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if target.shape == expected:
        if target.dtype.kind not in "iu":
            raise DTypeError(
                f"{name}: class indices must be integers, got {target.dtype} of shape {target.shape}; convert them: "
                "target.astype(gpunet.int64)"
                + (f"; probabilities would have the shape of the input, {x.shape}" if name == "cross_entropy" else "")
            )
        return expected
    wanted = f"an input of shape {x.shape} takes class indices of shape {expected}"
    advice = ""
    if name == "cross_entropy":
        wanted += ", or floating-point probabilities of its own shape"
    if target.shape == x.shape:
        advice = f"; are these one-hot rows? then target.argmax(axis={min(1, x.ndim - 1)}) gives the class indices"
    elif target.size == np.prod(expected, dtype=int):
        advice = f"; use {_reshaped(expected)}"
    elif target.ndim == len(expected) and target.ndim and target.shape[1:] == expected[1:]:
        advice = f": {target.shape[0]} targets for {expected[0]} samples"
    raise ShapeError(f"{name}: {wanted}, got {target.dtype} of shape {target.shape}{advice}")


def _class_weight(name: str, weight: Tensor, x: Tensor) -> Tensor:
    classes = x.shape[min(1, x.ndim - 1)]
    if weight.shape != (classes,):
        raise ShapeError(f"{name}: expected a weight for each of {classes} classes, got one of shape {weight.shape}")
    return _like(weight, x)


# --- losses of probabilities


def binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """-(target * log(x) + (1 - target) * log(1 - x)), the logarithms limited to -100, so that it is finite.

    `binary_cross_entropy_with_logits` is more exact where a sigmoid comes before.

    Args:
        x: probabilities in [0, 1], floating-point, any shape.
        target: in [0, 1], of exactly that shape; converted to the dtype of x.
        weight: factors of the losses, of a shape that broadcasts to that of x, or None.
        reduction: "none" for the losses as they are; "mean" over all elements or "sum" for a 0-d Tensor.

    Raises:
        ShapeError: the shapes differ. Losses never broadcast.
        DTypeError: x is not floating-point.
        ValueError: another reduction; an x outside [0, 1] (on a GPU the loss is NaN instead).
    """
    name = "binary_cross_entropy"
    target = _target_of(name, x, target, reduction)
    factors = _refuse(
        (x < 0) | (x > 1),
        lambda at: ValueError(
            f"{name}: expected probabilities in [0, 1], got {_item(x, at)}{_place(x, at)}; for logits use "
            "binary_cross_entropy_with_logits (BCEWithLogitsLoss)"
        ),
    )
    losses = loss_ops.binary_cross_entropy(x, target)
    if factors is not None:
        losses = losses * _like(factors, losses)
    return _reduce(_weighted(name, losses, weight), reduction)


def binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """`binary_cross_entropy` of sigmoid(x), computed from the logits x, so that nothing overflows or is limited.

    Args:
        x: logits, floating-point, any shape.
        target, weight, reduction: as of `binary_cross_entropy`.
        pos_weight: factors of the losses of positives, -log(sigmoid(x)), of a shape that broadcasts to that of x.

    Raises:
        ShapeError, DTypeError, ValueError: as of `binary_cross_entropy`.
    """
    name = "binary_cross_entropy_with_logits"
    target = _target_of(name, x, target, reduction)
    surprise = ew.softplus(-x)
    if pos_weight is not None:
        _check_broadcasts(name, "pos_weight", pos_weight, x)
        surprise = surprise * ((_like(pos_weight, x) - 1.0) * target + 1.0)
    return _reduce(_weighted(name, (1.0 - target) * x + surprise, weight), reduction)


def kl_div(x: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """The terms target * (log(target) - x) of the Kullback-Leibler divergence of `target` from exp(x).

    Args:
        x: logarithms of probabilities, floating-point, any shape.
        target: probabilities, of exactly that shape; converted to the dtype of x.
        reduction: "none" for the terms; "sum"; "batchmean" for the sum divided by the length of the first axis, which
            is the divergence per sample; "mean" for the sum divided by the number of elements, which is not.
        log_target: whether target too is of logarithms.

    Raises:
        ShapeError: the shapes differ. Losses never broadcast.
        DTypeError: x is not floating-point.
        ValueError: another reduction.
    """
    target = _target_of("kl_div", x, target, reduction, KL_REDUCTIONS)
    if log_target:
        terms = gn.exp(target) * (target - x)
    else:
        terms = target * (gn.log(gn.where(target == 0, 1.0, target)) - x)
    if reduction == "batchmean":
        return gn.sum(terms) / (x.shape[0] if x.ndim else 1)
    return _reduce(terms, reduction)


# --- what the losses share

REDUCTIONS = ("none", "mean", "sum")
KL_REDUCTIONS = (*REDUCTIONS, "batchmean")


def check_reduction(name: str, reduction: str, known: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise ValueError, which `name` begins, unless `reduction` is one of the known ones."""
    if reduction not in known:
        raise ValueError(f"{name}: reduction must be one of {', '.join(map(repr, known))}, got {reduction!r}")


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return gn.mean(losses) if reduction == "mean" else gn.sum(losses)


def _check_predictions(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise DTypeError(f"{name}: expected the predictions as a Tensor, got a {type(x).__name__}")
    if not is_floating(x.dtype):
        raise DTypeError(
            f"{name}: the predictions must be floating-point, got {x.dtype} of shape {x.shape}; a loss takes what the "
            "model gives, before any argmax or rounding"
        )


def _target_of(
    name: str, x: Tensor, target: Tensor, reduction: str, reductions: tuple[str, ...] = REDUCTIONS
) -> Tensor:
    """`target` in the dtype of the predictions x, of whose shape it is."""
    check_reduction(name, reduction, reductions)
    _check_predictions(name, x)
    target = gn.asarray(target)
    if target.shape != x.shape:
        advice = ""
        if target.size == x.size:
            squeezed = "the predictions" if x.ndim > target.ndim else "the target"
            advice = f"; squeeze {squeezed}, or use {_reshaped(x.shape)}"
        raise ShapeError(
            f"{name}: predictions of shape {x.shape} and targets of shape {target.shape} differ, and a loss does not "
            f"broadcast{advice}"
        )
    return _like(target, x)


def _weighted(name: str, losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses
    _check_broadcasts(name, "weight", weight, losses)
    return losses * _like(weight, losses)


def _check_broadcasts(name: str, what: str, weight: Tensor, x: Tensor) -> None:
    fits = weight.ndim <= x.ndim and all(a in (1, b) for a, b in zip(weight.shape[::-1], x.shape[::-1]))
    if not fits:
        raise ShapeError(f"{name}: {what} of shape {weight.shape} does not broadcast to the losses' shape {x.shape}")


def _reshaped(shape: tuple[int, ...]) -> str:
    return f"target.reshape({', '.join(map(str, shape))})"


def _like(t: Tensor, x: Tensor) -> Tensor:
    return t.astype(x.dtype, copy=False)


def _integers(name: str, what: str, t: Tensor) -> Tensor:
    t = gn.asarray(t)
    if t.dtype.kind not in "iu":
        raise DTypeError(f"{name}: {what} must be integers, got {t.dtype} of shape {t.shape}")
    return t.astype(gn.int64, copy=False)


def _refuse(wrong: Tensor, error: Callable[[int], Exception]) -> Tensor | None:
    """See to it that values that must not be do not pass unnoticed; see this module's docstring.

    Args:
        wrong: where they are.
        error: makes the error to raise on a CPU from the flat index of the first.

    Returns:
        On a CPU, None. On a GPU, factors: NaN where they are, 1 elsewhere.
    """
    if wrong.device.type != "cpu" or type(wrong.data) is not np.ndarray:  # inside vmap nobody may look either
        return gn.where(wrong, gn.nan, 1.0)
    if wrong.any():
        raise error(int(wrong.reshape(-1).argmax()))
    return None


def _in_range(indices: Tensor, n: int, error: Callable[[int], Exception]) -> tuple[Tensor, Tensor | None]:
    """`_refuse` of indices that are not from 0 to n - 1: the indices, with 0 in place of those, and the factors."""
    wrong = (indices < 0) | (indices >= n)
    factors = _refuse(wrong, error)
    return (indices, None) if factors is None else (gn.where(wrong, 0, indices), factors)


def _item(t: Tensor, at: int) -> Any:
    return t.reshape(-1)[at].item()


def _place(t: Tensor, at: int) -> str:
    """Where the element of flat index `at` is, for an error: " at row 3" or " at (3, 0)"; nothing for a 0-d t."""
    if t.ndim < 2:
        return f" at row {at}" if t.ndim else ""
    return f" at {tuple(map(int, np.unravel_index(at, t.shape)))}"
