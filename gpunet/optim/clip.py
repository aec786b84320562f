"""Gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gpunet as gn
from gpunet import autograd
from gpunet.backends import Device, backend_of_type
from gpunet.errors import GradientError
from gpunet.ops.optimizer import total_norm
from gpunet.optim.optimizer import apply, require
from gpunet.tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients by one factor, in place, so that their norm as one vector is at most `max_norm`.

    From Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013. The factor is
    max_norm / (norm + 1e-6), or 1 if that is smaller.

    Args:
        parameters: whose gradients; those without one are passed over.
        max_norm: at least 0.
        norm_type: the order of the norm, a positive number or inf.
        error_if_nonfinite: raise GradientError where the norm is infinite or NaN, and scale nothing.

    Returns:
        The norm before, 0-d, on the device of the first gradient.
    """
    require(max_norm >= 0, "clip_grad_norm_: max_norm", max_norm, "at least 0")
    require(norm_type > 0, "clip_grad_norm_: norm_type", norm_type, "a positive number or inf")
    groups = _gradients(parameters)
    if not groups:
        return gn.zeros(())
    norms = {device: _norm(device, grads, norm_type) for device, grads in groups.items()}
    norm = next(iter(norms.values()))
    if len(norms) > 1:  # the norm of the devices' norms
        norm = _norm(norm.device, [n.to_device(norm.device) for n in norms.values()], norm_type)
    if error_if_nonfinite and not gn.isfinite(norm):
        raise GradientError(f"clip_grad_norm_: the norm of the gradients is {norm.item()}; nothing was scaled")
    factor = gn.clip(max_norm / (norm + 1e-6), None, 1.0)
    for device, grads in groups.items():
        local = factor.to_device(device).data
        for g in grads:
            g.data[...] = g.data * local
        autograd.mark_written(grads)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of the gradients, in place, to [-clip_value, clip_value].

    Args:
        parameters: whose gradients; those without one are passed over.
        clip_value: at least 0.
    """
    require(clip_value >= 0, "clip_grad_value_: clip_value", clip_value, "at least 0")
    for grads in _gradients(parameters).values():
        for g in grads:
            g._backend().xp.clip(g.data, -clip_value, clip_value, out=g.data)
        autograd.mark_written(grads)


def _gradients(parameters: Tensor | Iterable[Tensor]) -> dict[Device, list[Tensor]]:
    """The gradients of the parameters, by device."""
    found: dict[Device, list[Tensor]] = {}
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None:
            found.setdefault(p.grad.device, []).append(p.grad)
    return found


def _norm(device: Device, tensors: list[Tensor], order: float) -> Tensor:
    arrays: list[Any] = [t.data for t in tensors]
    backend = backend_of_type(type(arrays[0]))
    with backend.on(device):
        return Tensor._wrap(backend.array_from(apply(total_norm, arrays, ord=order)))
