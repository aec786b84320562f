"""Which modules in a row can run as one op, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunet.backends import backend_of_type
from gpunet.nn.activation import GELU, ReLU, SiLU
from gpunet.nn.linear import Linear
from gpunet.nn.module import Module
from gpunet.ops.feed_forward import feed_forward
from gpunet.tensor import Tensor


def feed_forward_end(modules: Sequence[Module], start: int, x: Any) -> int:
    """Where the longest chain Linear, activation, Linear, ... ends that begins at `start` and can run as one op.

    A module with hooks or a forward of its own does not take part, nor does a layer whose parameters do not fit: it is
    called by itself, so that hooks see what they should and an error names the layer.

    Returns:
        The number of the module after the chain; `start` if there is none.
    """
    if type(modules[start]) is not Linear or not isinstance(x, Tensor) or not x.ndim:
        return start
    backend = backend_of_type(type(x.data))
    if backend.launcher is None or backend.platform != "cuda":
        return start  # where products have no epilogues, nothing is saved
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
    return end if end > start + 1 else start


def call_feed_forward(modules: Sequence[Module], x: Tensor) -> Tensor:
    """What the modules of such a chain give when called one after another."""
    layers: Sequence[Any] = modules[::2]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return feed_forward(x, *parameters, activation=_activation(modules[1]))[0]


def _is_plain(module: Module) -> bool:
    return not module._hooks and not module._pre_hooks and "forward" not in module.__dict__


def _activation(module: Module) -> str | None:
    """What `feed_forward` calls the module's function; None if it has no name for it, or the module is set up wrong."""
    if type(module) is GELU:
        return _GELUS.get(module.approximate)
    return _NAMES.get(type(module))


_NAMES: dict[type, str] = {ReLU: "relu", SiLU: "silu"}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


def _fits(layer: Linear, width: int, x: Tensor) -> bool:
    weight, bias = layer.weight, layer.bias
    return (
        weight.ndim == 2
        and weight.shape[1] == width
        and all(p.dtype == x.dtype and type(p.data) is type(x.data) for p in (weight, bias) if p is not None)
        and (bias is None or bias.shape == weight.shape[:1])
    )
