"""Layers that join or split axes."""

from __future__ import annotations

import math

from gpunet.errors import ShapeError
from gpunet.nn.arguments import Ints, check_array
from gpunet.nn.module import Module
from gpunet.ops.shape import reshape
from gpunet.tensor import Tensor


class Flatten(Module):
    """Join the axes from `start_axis` to `end_axis` (included) into one; by default all but the batch axis.

    Shapes: (N, C, H, W) -> (N, C * H * W).
    """

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = start_axis
        self.end_axis = end_axis

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape if isinstance(x, Tensor) else check_array(x)
        n, start, end = len(shape), self.start_axis, self.end_axis
        start, end = start + n if start < 0 else start, end + n if end < 0 else end
        if not 0 <= start <= end < n:
            raise ShapeError(f"expected an input that has axes {self.start_axis} to {self.end_axis}, got shape {shape}")
        return reshape(x, shape=(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))

    def extra_repr(self) -> str:
        return f"start_axis={self.start_axis}, end_axis={self.end_axis}"


class Unflatten(Module):
    """Split one axis into several.

    Shapes: (N, C * H * W) -> (N, C, H, W), with axis 1 and unflattened_size (C, H, W).

    Args:
        axis: which one.
        unflattened_size: what it becomes; one entry may be -1, to be worked out.
    """

    def __init__(self, axis: int, unflattened_size: Ints) -> None:
        self.axis = axis
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, x: Tensor) -> Tensor:
        shape = check_array(x)
        axis = self.axis + len(shape) if self.axis < 0 else self.axis
        if not 0 <= axis < len(shape):
            raise ShapeError(f"expected an input that has an axis {self.axis}, got shape {shape}")
        length, size = shape[axis], self.unflattened_size
        known = math.prod(n for n in size if n != -1)
        if size.count(-1) > 1 or (length % known if -1 in size and known else length != known):
            raise ShapeError(f"axis {self.axis} of length {length} does not split into {size}; the input is {shape}")
        return reshape(x, shape=(*shape[:axis], *size, *shape[axis + 1 :]))

    def extra_repr(self) -> str:
        return f"axis={self.axis}, unflattened_size={self.unflattened_size}"
