"""Pooling layers: the maximum or the average of each window of every channel."""

from __future__ import annotations

from typing import Any

from gpunet.nn.arguments import Ints, check_batch, integer, integers
from gpunet.nn.module import Module
from gpunet.ops.pool import adaptive_avg_pool, avg_pool, max_pool
from gpunet.tensor import Tensor


class _Pool(Module):
    axes: int  # how many spatial ones

    def __init__(
        self, kernel_size: int | Ints, stride: int | Ints | None, padding: int | Ints, ceil_mode: bool
    ) -> None:
        where = type(self).__name__
        self.kernel_size = integers(where, "kernel_size", kernel_size, self.axes)
        self.stride = self.kernel_size if stride is None else integers(where, "stride", stride, self.axes)
        self.padding = integers(where, "padding", padding, self.axes, least=0)
        self.ceil_mode = ceil_mode
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size)):
            raise ValueError(
                f"{where}: padding must be at most half of kernel_size, got {self.padding} with {self.kernel_size}"
            )

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding")
        return ", ".join(f"{name}={_short(getattr(self, name))}" for name in names)


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: int | Ints,
        stride: int | Ints | None = None,
        padding: int | Ints = 0,
        dilation: int | Ints = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = integers(type(self).__name__, "dilation", dilation, self.axes)

    def forward(self, x: Tensor) -> Tensor:
        check_batch(x, self.axes)
        return max_pool(
            x,
            kernel=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation={_short(self.dilation)}, ceil_mode={self.ceil_mode}"


class MaxPool1d(_MaxPool):
    """The maximum of each window along one axis: (N, C, L) -> (N, C, L'). Arguments as of `MaxPool2d`."""

    axes = 1


class MaxPool2d(_MaxPool):
    """The maximum of each window.

    Shapes: (N, C, H, W) -> (N, C, H', W'), with
    H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Args:
        kernel_size: of the window, an int or (height, width), as the three that follow.
        stride: from one window to the next; the kernel size if None.
        padding: elements added on each side, which never are the maximum.
        dilation: from one element of the window to the next.
        ceil_mode: whether a last window may hang over the end.

    Raises:
        ValueError: an argument out of range. When called, ShapeError: an input that does not fit.
    """

    axes = 2


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: int | Ints,
        stride: int | Ints | None = None,
        padding: int | Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        check_batch(x, self.axes)
        return avg_pool(
            x,
            kernel=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
        )


class AvgPool1d(_AvgPool):
    """The average of each window along one axis: (N, C, L) -> (N, C, L'). Arguments as of `AvgPool2d`."""

    axes = 1


class AvgPool2d(_AvgPool):
    """The average of each window.

    Shapes: (N, C, H, W) -> (N, C, H', W'), with H' = (H + 2 * padding - kernel_size) // stride + 1.

    Args:
        kernel_size: of the window, an int or (height, width), as the two that follow.
        stride: from one window to the next; the kernel size if None.
        padding: zeros added on each side.
        ceil_mode: whether a last window may hang over the end; what hangs over counts for nothing.
        count_include_pad: whether the added zeros count as elements of the average.

    Raises:
        ValueError: an argument out of range. When called, ShapeError: an input that does not fit.
    """

    axes = 2


class _AdaptiveAvgPool(Module):
    axes: int

    def __init__(self, output_size: int | tuple[int | None, ...] | None) -> None:
        where = type(self).__name__
        sizes: Any = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * self.axes
        if len(sizes) != self.axes:
            raise ValueError(f"{where}: output_size must be an int or {self.axes} of them, got {output_size!r}")
        self.output_size = tuple(n if n is None else integer(where, "output_size", n) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        check_batch(x, self.axes)
        size = tuple(n if want is None else want for want, n in zip(self.output_size, x.shape[2:]))
        return adaptive_avg_pool(x, output_size=size)

    def extra_repr(self) -> str:
        return f"output_size={_short(self.output_size)}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The average of windows so chosen that the output has a given length: (N, C, L) -> (N, C, output_size).

    Arguments as of `AdaptiveAvgPool2d`.
    """

    axes = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The average of windows so chosen that the output has a given size; with 1, the average of each channel.

    Shapes: (N, C, H, W) -> (N, C, *output_size). Window i of an axis of length n runs from floor(i * n / size) to
    ceil((i + 1) * n / size).

    Args:
        output_size: an int or (height, width), in which None stands for the size of the input.
    """

    axes = 2


def _short(values: tuple[Any, ...]) -> Any:
    """One number where all are equal, as they are usually given."""
    return values[0] if len(set(values)) == 1 else values
