"""What is done to gradients and parameters between `backward` and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpunet.autograd import no_grad
from gpunet.creation import asarray
from gpunet.dtypes import float32
from gpunet.errors import GradientError, ShapeError
from gpunet.ops.elementwise import minimum
from gpunet.ops.linalg import vector_norm
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
    wide = (g.astype(float32) if g.dtype == "float16" else g for g in gradients)
    norms = [vector_norm(g, ord=norm_type).to_device(device) for g in wide]
    total = vector_norm(stack(norms), ord=norm_type)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise GradientError(
            f"clip_grad_norm_: the norm of order {norm_type} of the gradients is {total.item()}, and cannot be clipped"
        )
    factor = minimum(max_norm / (total + 1e-6), 1.0)
    for g in gradients:
        g *= factor.to_device(g.device)
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
    for g in _gradients(parameters):
        g.copy_(g.clip(-clip_value, clip_value))


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
