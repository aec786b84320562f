"""Dropout."""

from __future__ import annotations

from gpunet.nn import functional as F
from gpunet.nn.arguments import check_array, probability
from gpunet.nn.module import Module
from gpunet.tensor import Tensor


class Dropout(Module):
    """In training, each element set to zero with probability p, the others divided by 1 - p; in evaluation, nothing
    (Srivastava et al., 2014).

    Args:
        p: from 0 to 1.
        inplace: accepted, as PyTorch's programs give it; the result is the same.

    Raises:
        ValueError: p is out of range.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        self.p = probability("Dropout", p)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            check_array(x)
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
