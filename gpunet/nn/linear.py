"""The fully connected layer."""

from __future__ import annotations

import math
from typing import Any

from gpunet.creation import empty
from gpunet.errors import ShapeError
from gpunet.nn import init
from gpunet.nn.arguments import check_array, check_dtype, integer
from gpunet.nn.errors import size_error
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter
from gpunet.ops.matmul import linear
from gpunet.tensor import Tensor


class Linear(Module):
    """y = x @ weightᵀ + bias.

    Shapes: (..., in_features) -> (..., out_features).

    Args:
        in_features, out_features: lengths of the last axis of the input and of the output.
        bias: whether there is one.
        device, dtype: of the parameters.

    Attributes:
        weight: (out_features, in_features), at first uniform within ±1/sqrt(in_features).
        bias: (out_features,), at first uniform within ±1/sqrt(in_features); or None.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        self.in_features = integer("Linear", "in_features", in_features)
        self.out_features = integer("Linear", "out_features", out_features)
        # In memory it is its transpose, with which BLAS multiplies small batches faster.
        self.weight = Parameter(empty((self.in_features, self.out_features), dtype=dtype, device=device).T)
        self.bias = Parameter(empty((out_features,), dtype=dtype, device=device)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_uniform(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        shape = getattr(x, "shape", None) or check_array(x)
        if not shape or shape[-1] != self.in_features:
            raise self._wrong_width(x)
        if x.dtype is not weight.data.dtype:
            check_dtype(x, weight)
        return linear(x, weight, self.bias)

    def _wrong_width(self, x: Tensor) -> ShapeError:
        shape, wanted = tuple(x.shape), self.in_features
        message = f"expected an input of shape (..., {wanted}), got {shape}"
        if len(shape) > 2:
            features = math.prod(shape[1:])
            hint = f". Flatten it first: nn.Flatten() makes it ({shape[0]}, {features})"
            if features != wanted:
                hint += f", which takes in_features={features}"
            return ShapeError(message + hint)
        width = shape[-1] if shape else 0
        if whole := _before_flattening(x):
            product = "*".join(map(str, whole[1:]))
            hint = f". It is of shape {whole} before it is flattened, which makes {product} = {width} features: "
            return ShapeError(f"{message}{hint}set in_features={width} here")
        return size_error(message, "in_features", width)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Identity(Module):
    """The input as it is. Takes and ignores any arguments, so that it can stand in for any layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        return x


def reset_uniform(weight: Tensor, bias: Tensor | None) -> None:
    """Fill the weight of a linear map, and its bias, with uniform numbers within ±1/sqrt(fan_in)."""
    init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(init.fans(weight)[0])
        init.uniform_(bias, -bound, bound)


def _before_flattening(x: Tensor) -> tuple[int, ...] | None:
    """The shape, with more axes, that a batch of vectors had before it was flattened, if that can be told."""
    if not isinstance(x, Tensor) or x.ndim != 2:
        return None
    node = x._node
    while node is not None and node.op is not None and node.shape == x.shape and node.inputs:
        node = node.inputs[0]  # through what is elementwise, such as dropout
    for source in (x._memory, node):
        if source is not None:
            shape = source.shape
            if len(shape) > 2 and shape[0] == x.shape[0] and math.prod(shape[1:]) == x.shape[1]:
                return shape
    return None
