"""Pooling layers: the maximum, the average or the norm of each window of every channel; and maxima put back."""

from __future__ import annotations

from typing import Any

from gpunet.nn import functional as F
from gpunet.nn.arguments import Ints, check_batch, integer, integers
from gpunet.nn.module import Module
from gpunet.ops import pool
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
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = integers(type(self).__name__, "dilation", dilation, self.axes)
        self.return_indices = return_indices

    def forward(self, x: Tensor) -> Any:
        check_batch(x, self.axes)
        return (pool.max_pool_with_indices if self.return_indices else pool.max_pool)(
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
        return_indices: whether to give (maxima, their indices in H x W, int64), which `MaxUnpool2d` takes.
        ceil_mode: whether a last window may hang over the end.

    Raises:
        ValueError: an argument out of range. When called, ShapeError: an input that does not fit.
    """

    axes = 2


class MaxPool3d(_MaxPool):
    """The maximum of each window along three axes: (N, C, D, H, W) -> (N, C, D', H', W'). Arguments as of
    `MaxPool2d`."""

    axes = 3


class _MaxUnpool(_Pool):
    def __init__(self, kernel_size: int | Ints, stride: int | Ints | None = None, padding: int | Ints = 0) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=False)

    def forward(self, x: Tensor, indices: Tensor, output_size: tuple[int, ...] | None = None) -> Tensor:
        check_batch(x, self.axes)
        unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[self.axes - 1]
        return unpool(x, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool1d(_MaxUnpool):
    """Maxima along one axis put back: (N, C, L) -> (N, C, L'). Arguments as of `MaxUnpool2d`."""

    axes = 1


class MaxUnpool2d(_MaxUnpool):
    """Maxima put back where `MaxPool2d` took them from, zeros elsewhere.

    Shapes: (N, C, H, W) and indices of the same -> (N, C, H', W'), with
    H' = (H - 1) * stride - 2 * padding + kernel_size unless the call says `output_size`.

    Args:
        kernel_size, stride, padding: of the `MaxPool2d`, which must have `return_indices`.

    Raises:
        ValueError: an argument out of range. When called, as `functional.max_unpool2d`.
    """

    axes = 2


class MaxUnpool3d(_MaxUnpool):
    """Maxima along three axes put back: (N, C, D, H, W) -> (N, C, D', H', W'). Arguments as of `MaxUnpool2d`."""

    axes = 3


class _AvgPool(_Pool):
    divisor_override: int | None = None

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
        return pool.avg_pool(
            x,
            kernel=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            divisor=self.divisor_override,
        )


class _DividedAvgPool(_AvgPool):
    def __init__(
        self,
        kernel_size: int | Ints,
        stride: int | Ints | None = None,
        padding: int | Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad)
        if divisor_override == 0:
            raise ValueError(f"{type(self).__name__}: divisor_override must not be zero")
        self.divisor_override = divisor_override


class AvgPool1d(_AvgPool):
    """The average of each window along one axis: (N, C, L) -> (N, C, L'). Arguments as of `AvgPool2d`."""

    axes = 1


class AvgPool2d(_DividedAvgPool):
    """The average of each window.

    Shapes: (N, C, H, W) -> (N, C, H', W'), with H' = (H + 2 * padding - kernel_size) // stride + 1.

    Args:
        kernel_size: of the window, an int or (height, width), as the two that follow.
        stride: from one window to the next; the kernel size if None.
        padding: zeros added on each side.
        ceil_mode: whether a last window may hang over the end; what hangs over counts for nothing.
        count_include_pad: whether the added zeros count as elements of the average.
        divisor_override: what sums are divided by; None: by the number of elements.

    Raises:
        ValueError: an argument out of range. When called, ShapeError: an input that does not fit.
    """

    axes = 2


class AvgPool3d(_DividedAvgPool):
    """The average of each window along three axes: (N, C, D, H, W) -> (N, C, D', H', W'). Arguments as of
    `AvgPool2d`."""

    axes = 3


class _LPPool(_Pool):
    def __init__(
        self, norm_type: float, kernel_size: int | Ints, stride: int | Ints | None = None, ceil_mode: bool = False
    ) -> None:
        super().__init__(kernel_size, stride, 0, ceil_mode)
        if norm_type == 0:
            raise ValueError(f"{type(self).__name__}: norm_type must not be zero")
        self.norm_type = float(norm_type)

    def forward(self, x: Tensor) -> Tensor:
        check_batch(x, self.axes)
        return pool.window_norm(
            x,
            order=self.norm_type,
            kernel=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
        )

    def extra_repr(self) -> str:
        size = f"kernel_size={_short(self.kernel_size)}, stride={_short(self.stride)}"
        return f"norm_type={self.norm_type}, {size}, ceil_mode={self.ceil_mode}"


class LPPool1d(_LPPool):
    """The norm of each window along one axis: (N, C, L) -> (N, C, L'). Arguments as of `LPPool2d`."""

    axes = 1


class LPPool2d(_LPPool):
    """The norm of each window, (the sum of x ** norm_type) ** (1 / norm_type), as `functional.lp_pool2d` says.

    Shapes: (N, C, H, W) -> (N, C, H', W'), with H' = (H - kernel_size) // stride + 1.

    Args:
        norm_type: the order of the norm; 1 gives the sum.
        kernel_size: of the window, an int or (height, width), as the next.
        stride: from one window to the next; the kernel size if None.
        ceil_mode: whether a last window may hang over the end.

    Raises:
        ValueError: an argument out of range. When called, ShapeError: an input that does not fit.
    """

    axes = 2


class LPPool3d(_LPPool):
    """The norm of each window along three axes: (N, C, D, H, W) -> (N, C, D', H', W'). Arguments as of `LPPool2d`."""

    axes = 3


class _AdaptivePool(Module):
    axes: int

    def __init__(self, output_size: int | tuple[int | None, ...] | None) -> None:
        where = type(self).__name__
        sizes: Any = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * self.axes
        if len(sizes) != self.axes:
            raise ValueError(f"{where}: output_size must be an int or {self.axes} of them, got {output_size!r}")
        self.output_size = tuple(n if n is None else integer(where, "output_size", n) for n in sizes)

    def _size(self, x: Tensor) -> Ints:
        check_batch(x, self.axes)
        return tuple(n if want is None else want for want, n in zip(self.output_size, x.shape[2:]))

    def extra_repr(self) -> str:
        return f"output_size={_short(self.output_size)}"


class _AdaptiveAvgPool(_AdaptivePool):
    def forward(self, x: Tensor) -> Tensor:
        return pool.adaptive_avg_pool(x, output_size=self._size(x))


class _AdaptiveMaxPool(_AdaptivePool):
    def __init__(self, output_size: int | tuple[int | None, ...] | None, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, x: Tensor) -> Any:
        call = pool.adaptive_max_pool_with_indices if self.return_indices else pool.adaptive_max_pool
        return call(x, output_size=self._size(x))


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


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """The average of windows so chosen that the output has a given size: (N, C, D, H, W) -> (N, C, *output_size).

    Arguments as of `AdaptiveAvgPool2d`.
    """

    axes = 3


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The maximum of windows so chosen that the output has a given length: (N, C, L) -> (N, C, output_size).

    Arguments as of `AdaptiveMaxPool2d`.
    """

    axes = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The maximum of windows so chosen that the output has a given size, the windows of `AdaptiveAvgPool2d`.

    Shapes: (N, C, H, W) -> (N, C, *output_size).

    Args:
        output_size: an int or (height, width), in which None stands for the size of the input.
        return_indices: whether to give (maxima, their indices in H x W, int64).
    """

    axes = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The maximum of windows so chosen that the output has a given size: (N, C, D, H, W) -> (N, C, *output_size).

    Arguments as of `AdaptiveMaxPool2d`.
    """

    axes = 3


def _short(values: tuple[Any, ...]) -> Any:
    """One number where all are equal, as they are usually given."""
    return values[0] if len(set(values)) == 1 else values
