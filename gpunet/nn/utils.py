"""What is done to gradients and parameters between `backward` and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gpunet.autograd import mark_written, no_grad
from gpunet.backends import backend_of_type
from gpunet.creation import asarray
from gpunet.errors import GradientError, ShapeError
from gpunet.ops.linalg import vector_norm
from gpunet.ops.op import Op
from gpunet.ops.optimizer import clip_by_norm, clip_by_value, gradient_norm
from gpunet.ops.shape import concat, stack
from gpunet.tensor import Tensor


@no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor, so that their norm as one vector is at most `max_norm` (Pascanu et al., 2013).

    Args:
        parameters: whose gradients are changed in place; those without one are left out.
        max_norm: not negative.
        norm_type: the norm's order, a positive number; `math.inf` for the largest absolute value.
        error_if_nonfinite: whether to check that the norm is finite before anything is changed, which on a GPU waits
            for the work queued there. Otherwise a NaN spreads to all gradients, and beside an infinity all become 0.

    Returns:
        The norm before clipping, 0-d, on the device of the first gradient.

    Raises:
        ValueError: max_norm is negative, or norm_type is not positive.
        GradientError: the norm is not finite, and that was to be checked.
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must not be negative, got {max_norm}")
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be positive, got {norm_type}")
    gradients = _gradients(parameters)
    if not gradients:
        return asarray(0.0)
    device = gradients[0].device
    groups = _alike(gradients)
    norms = [Tensor._wrap(_run(gradient_norm, group, ord=norm_type)).to_device(device) for group in groups]
    total = norms[0] if len(norms) == 1 else vector_norm(stack(norms), ord=norm_type)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise GradientError(
            f"clip_grad_norm_: the norm of order {norm_type} of the gradients is {total.item()}, and cannot be clipped"
        )
    for group, norm in zip(groups, norms):
        there = total if norm is total else total.to_device(group[0].device).astype(norm.dtype)
        _run(clip_by_norm, group, there.data, max_norm=max_norm)
    mark_written(gradients)
    return total


@no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of the gradients to the interval from -clip_value to clip_value, in place.

    Args:
        parameters: whose gradients are changed; those without one are left out.
        clip_value: not negative.

    Raises:
        ValueError: clip_value is negative.
    """
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must not be negative, got {clip_value}")
    gradients = _gradients(parameters)
    for group in _alike(gradients):
        _run(clip_by_value, group, limit=clip_value)
    mark_written(gradients)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters, in order, as one vector. Differentiable."""
    return concat([p.reshape(-1) for p in parameters])


@no_grad()
def vector_to_parameters(vector: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write the elements of a vector, as `parameters_to_vector` makes it, to the parameters, in place.

    Raises:
        ShapeError: it has another number of elements than they have together; nothing is changed.
    """
    parameters = list(parameters)
    size = sum(p.size for p in parameters)
    if vector.shape != (size,):
        raise ShapeError(
            f"vector_to_parameters: parameters of {size} elements take a vector of shape ({size},), got {vector.shape}"
        )
    start = 0
    for p in parameters:
        p.copy_(vector[start : start + p.size].reshape(p.shape))
        start += p.size


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The gradients of those that have one."""
    several = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in several if p.grad is not None]


def _alike(gradients: list[Tensor]) -> list[list[Tensor]]:
    """The gradients by device and dtype."""
    groups: dict[Any, list[Tensor]] = {}
    for g in gradients:
        groups.setdefault((g.device, g.dtype), []).append(g)
    return list(groups.values())


def _run(rule: Op, gradients: list[Tensor], *arrays: Any, **numbers: Any) -> Any:
    """An op of gpunet.ops.optimizer on the list of raw arrays of the gradients, which are on one device."""
    raw = [g.data for g in gradients]
    backend = backend_of_type(type(raw[0]))
    with backend.on(gradients[0].device):
        return rule.implementation(type(raw[0]))(raw, *arrays, **numbers)
