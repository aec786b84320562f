"""Which modules in a row can run as one op, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunet.autograd import is_grad_enabled, is_watched
from gpunet.backends import backend_of_type
from gpunet.backends.native import library
from gpunet.errors import ShapeError
from gpunet.nn.activation import GELU, ReLU, SiLU
from gpunet.nn.conv import Conv2d
from gpunet.nn.dropout import Dropout
from gpunet.nn.flatten import Flatten
from gpunet.nn.linear import Linear
from gpunet.nn.module import Module
from gpunet.nn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from gpunet.nn.pool import MaxPool2d
from gpunet.ops import elementwise
from gpunet.ops.conv import conv_relu, conv_relu_pool
from gpunet.ops.feed_forward import feed_forward
from gpunet.ops.matmul import linear, linear_relu
from gpunet.ops.op import kernels_mode
from gpunet.tensor import Tensor


def call_next(modules: Sequence[Module], start: int, x: Any) -> tuple[Any, int]:
    """Call the module number `start` with x; or, where it and those behind it can run as one op, all of these.

    A module with hooks or a forward of its own does not take part, nor does a layer whose parameters do not fit: it is
    called by itself, so that hooks see what they should and an error names the layer.

    Returns:
        What the last of them gives, and the number of the module after it.
    """
    module = modules[start]
    call = _FIRST.get(type(module))
    if call is not None and isinstance(x, Tensor):
        if not is_grad_enabled() and type(x.data) is np.ndarray and not is_watched():
            data, end = _compute(modules, start, x.data)
            if end > start:
                return Tensor._wrap(data), end
        backend = backend_of_type(type(x.data))
        if backend.launcher is not None and kernels_mode() != "off":
            found = call(modules, start, x, backend.platform)
            if found is not None:
                return found
    return module(x), start + 1


def _compute(modules: Sequence[Module], start: int, x: np.ndarray) -> tuple[np.ndarray, int]:
    """What modules that are simple enough make of a NumPy array where nothing is recorded: without Tensors in between.

    Returns:
        An array of its own, and the number of the module after them: `start` where there are none, or one of them does
        not fit, which it had better say itself.
    """
    end = done = start
    y = result = x
    while end < len(modules):
        module: Any = modules[end]
        kind = type(module)
        if kind not in _SIMPLE or not _is_plain(module):
            break
        end += 1
        if kind is Linear:
            weight, bias = module.weight.data, module.bias
            if not y.ndim or y.dtype != weight.dtype or type(weight) is not np.ndarray:
                return x, start
            relu = end < len(modules) and type(modules[end]) is ReLU and _is_plain(modules[end])
            try:
                run = (linear_relu if relu else linear).implementation(np.ndarray)
                y = run(y, weight, None if bias is None else bias.data)
            except ShapeError:
                return x, start
            end += relu
        elif kind is ReLU:
            y = elementwise.relu(y)
        elif kind is Flatten:
            if module.start_axis != 1 or module.end_axis != -1 or y.ndim < 2 or not y.size:
                break
            y = y.reshape(len(y), -1)
            continue  # a view, which is of use only to another module
        elif module.training or y.dtype.kind != "f":
            break
        else:
            continue  # dropout does nothing in evaluation
        result, done = y, end
    return result, done


def _call_feed_forward(modules: Sequence[Module], start: int, x: Tensor, platform: str) -> tuple[Tensor, int] | None:
    """Linear, activation, Linear, ..."""
    if platform == "cpu":
        return _call_linear_relu(modules, start, x)
    if not x.ndim:
        return None
    end, name, width = start, None, x.shape[-1]
    for i in range(start, len(modules), 2):
        layer = modules[i]
        if type(layer) is not Linear or not _is_plain(layer) or not _fits(layer, width, x):
            break
        end, width = i + 1, layer.weight.shape[0]
        following = modules[end] if end < len(modules) else None
        if following is None or not _is_plain(following):
            break
        name, before = _activation(following), name
        if name is None or before not in (None, name):
            break
    if end <= start + 1:
        return None
    layers: Sequence[Any] = modules[start:end:2]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return feed_forward(x, *parameters, activation=_activation(modules[start + 1]))[0], end


def _call_linear_relu(modules: Sequence[Module], start: int, x: Tensor) -> tuple[Tensor, int] | None:
    """Linear, ReLU."""
    layer: Any = modules[start]
    if start + 1 == len(modules) or type(modules[start + 1]) is not ReLU:
        return None
    weight, data = layer.weight, x.data
    if data.dtype != weight.data.dtype or type(data) is not type(weight.data):
        return None
    if not _is_plain(layer) or not _is_plain(modules[start + 1]):
        return None
    try:
        return linear_relu(x, weight, layer.bias), start + 2
    except ShapeError:
        return None


def _call_convolution(modules: Sequence[Module], start: int, x: Tensor, platform: str) -> tuple[Tensor, int] | None:
    """Conv2d, ReLU, and perhaps a MaxPool2d by 2 x 2."""
    layer: Any = modules[start]
    following = modules[start + 1 : start + 3]
    if (
        not following
        or type(following[0]) is not ReLU
        or not all(map(_is_plain, (layer, following[0])))
        or layer.padding_mode != "zeros"
        or x.ndim != 4
        or x.shape[1] != layer.in_channels
        or not _match(x, layer)
        or (platform == "cpu" and not library("conv").usable())
    ):
        return None
    size = layer.output_size(x.shape[2:])
    if min(size) < 1:
        return None
    parameters = layer.weight, layer.bias
    how = {name: getattr(layer, name) for name in ("stride", "dilation", "groups")}
    if len(following) == 2 and _is_by_two(following[1]) and min(size) >= 2:
        return conv_relu_pool(x, *parameters, padding=layer.pairs, **how)[0], start + 3
    return conv_relu(x, *parameters, padding=layer.pairs, **how), start + 2


def _call_batch_norm(modules: Sequence[Module], start: int, x: Tensor, platform: str) -> tuple[Tensor, int] | None:
    """BatchNorm, ReLU."""
    layer = modules[start]
    if platform == "cpu" or start + 1 == len(modules) or type(modules[start + 1]) is not ReLU:
        return None
    if not _is_plain(layer) or not _is_plain(modules[start + 1]):
        return None
    return layer(x, relu=True), start + 2


def _is_by_two(module: Module) -> bool:
    """Whether it is pooling by 2 x 2 that do not overlap, where what is left over at the end is left out."""
    return (
        type(module) is MaxPool2d
        and _is_plain(module)
        and module.kernel_size == module.stride == (2, 2)
        and module.padding == (0, 0)
        and module.dilation == (1, 1)
        and not module.ceil_mode
        and not module.return_indices
    )


_SIMPLE = {Linear, ReLU, Flatten, Dropout}

_FIRST: dict[type, Callable[[Sequence[Module], int, Tensor, str], tuple[Tensor, int] | None]] = {
    Flatten: lambda modules, start, x, platform: None,  # together with others only where nothing is recorded
    Linear: _call_feed_forward,
    Conv2d: _call_convolution,
    BatchNorm1d: _call_batch_norm,
    BatchNorm2d: _call_batch_norm,
    BatchNorm3d: _call_batch_norm,
}


def _is_plain(module: Module) -> bool:
    own = module.__dict__
    has_hooks = own.get("_hooks") or own.get("_pre_hooks") or own.get("_backward_hooks")
    return not has_hooks and "forward" not in own


def _activation(module: Module) -> str | None:
    """What `feed_forward` calls the module's function; None if it has no name for it, or the module is set up wrong."""
    if type(module) is GELU:
        return _GELUS.get(module.approximate)
    return _NAMES.get(type(module))


_NAMES: dict[type, str] = {ReLU: "relu", SiLU: "silu"}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


def _match(x: Tensor, layer: Linear | Conv2d) -> bool:
    """Whether the parameters are of the dtype and on the device of x."""
    kinds = x.data.dtype, type(x.data)
    return all(p is None or (p.data.dtype, type(p.data)) == kinds for p in (layer.weight, layer.bias))


def _fits(layer: Linear, width: int, x: Tensor) -> bool:
    weight, bias = layer.weight, layer.bias
    return (
        weight.ndim == 2
        and weight.shape[1] == width
        and _match(x, layer)
        and (bias is None or bias.shape == weight.shape[:1])
    )
