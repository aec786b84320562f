"""Parameter: a Tensor that a Module learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpunet.creation import asarray
from gpunet.tensor import Tensor


class Parameter(Tensor):
    """A Tensor that belongs to the Module whose attribute it is, and that optimizers change.

    Args:
        data: a Tensor or whatever `gpunet.asarray` takes; its memory is shared where possible.
        requires_grad: whether gradients are computed with respect to it.

    Raises:
        DTypeError: it requires gradients and is not floating-point.
    """

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(asarray(data).data, requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


def replace_data(tensor: Tensor, convert: Callable[[Tensor], Tensor]) -> None:
    """Move or convert the elements of a leaf and of its gradient; the object stays, and its holders keep working."""
    data = convert(tensor.detach()).data
    if data is tensor.data:
        return
    requires_grad, grad = tensor.requires_grad, tensor.grad
    tensor.requires_grad = False  # its place on the tape is of the old dtype
    tensor.data = data
    tensor.copy_(data)  # changes nothing, but tells graphs recorded before that what they saved is gone
    tensor.requires_grad = requires_grad
    if grad is not None:
        tensor.grad = convert(grad)
