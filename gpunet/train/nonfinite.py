"""Where a NaN or an infinity came from: the layer to look at, instead of a loss curve that ends in nan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gpunet as gn
from gpunet.backends import backend_of_type
from gpunet.nn import Module
from gpunet.tensor import Tensor


class NonFiniteError(FloatingPointError):
    """Training met a NaN or an infinity; the message says where it arose."""


def is_finite(value: Any) -> bool:
    """Whether no element of `value` (a Tensor, or a tuple, list or dict of them) is NaN or infinite."""
    if isinstance(value, tuple | list):
        return all(map(is_finite, value))
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if not isinstance(value, Tensor) or value.dtype.kind not in "fc":
        return True
    return bool(backend_of_type(type(value.data)).xp.isfinite(value.data).all())


def check_parameters(model: Module, what: str) -> None:
    """Raise NonFiniteError naming the parameters that are not finite; `what` begins the message."""
    if bad := _bad(model.named_parameters()):
        raise NonFiniteError(f"{what}: parameters of the model are not finite: {_list(bad)}. {_ADVICE}")


def check_gradients(model: Module, what: str) -> None:
    """Raise NonFiniteError naming the parameters whose gradients are not finite; `what` begins the message."""
    if bad := _bad((name, p.grad) for name, p in model.named_parameters()):
        raise NonFiniteError(f"{what}: the loss is finite but its gradient is not, in {_list(bad)}. {_ADVICE}")


def explain(model: Module, forward: Callable[[], Any], loss: Callable[[Any], Any], inputs: Any, target: Any) -> str:
    """Where the first non-finite value of a loss arises, in one sentence.

    Runs the forward pass again, so `forward` must repeat what was done (the same inputs and random numbers). The
    model's buffers, such as running statistics, are put back as they were.

    Args:
        forward: () -> the model's output.
        loss: output -> the loss.
        inputs, target: the batch.
    """
    if not is_finite(inputs):
        return "the input batch itself holds NaN or infinite values; check the data"
    if not is_finite(target):
        return "the targets hold NaN or infinite values; check the data"
    if bad := _bad(model.named_parameters()):
        return f"before this batch, parameters were not finite already: {_list(bad)}. {_ADVICE}"
    if not model.training and (bad := _bad(model.named_buffers())):
        return f"buffers of the model, such as running statistics, are not finite: {_list(bad)}"
    found: list[str] = []
    buffers = {name: buffer.data.copy() for name, buffer in model.named_buffers()}

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if not found and not is_finite(output):
                place = f"layer {name!r}, {module!r}" if name else "the model"
                found.append(f"{place} gave the first output that is not finite (its inputs were). {_ADVICE}")

        return hook

    # A layer's parts finish before the layer, so the first to be found is the innermost.
    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with gn.no_grad():
            loss(forward())
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in model.named_buffers():
            buffer.data[...] = buffers[name]
    return found[0] if found else "the output of the model is finite: the loss function itself gave the value"


_ADVICE = "Often a learning rate that is too high: lower it, or give clip_grad_norm"


def _bad(named: Iterable[tuple[str, Any]]) -> list[str]:
    return [name for name, value in named if not is_finite(value)]


def _list(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
