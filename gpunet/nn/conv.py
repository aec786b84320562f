"""Convolution layers."""

from __future__ import annotations

from typing import Any

from gpunet.creation import empty
from gpunet.errors import ShapeError
from gpunet.nn.arguments import Ints, check_batch, check_channels, check_dtype, integer, integers, named_padding
from gpunet.nn.linear import reset_uniform
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter
from gpunet.ops.conv import conv, conv_input_grad, output_size
from gpunet.ops.shape import pad, permute_dims
from gpunet.tensor import Tensor

# PyTorch's padding modes, and what NumPy's `pad` calls them.
_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class _Convolution(Module):
    """What convolutions and transposed convolutions share: arguments and parameters."""

    axes: int  # how many spatial ones
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Ints,
        stride: int | Ints,
        dilation: int | Ints,
        groups: int,
        bias: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        where = type(self).__name__
        self.in_channels = integer(where, "in_channels", in_channels)
        self.out_channels = integer(where, "out_channels", out_channels)
        self.kernel_size = integers(where, "kernel_size", kernel_size, self.axes)
        self.stride = integers(where, "stride", stride, self.axes)
        self.dilation = integers(where, "dilation", dilation, self.axes)
        self.groups = integer(where, "groups", groups)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % groups:
                raise ValueError(f"{where}: {name}={getattr(self, name)} does not divide into groups={groups}")
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        # In memory the kernel's axes come first and output channels last, as the CPU's kernels read it.
        weight = empty((*self.kernel_size, second // groups, first), dtype=dtype, device=device)
        self.weight = Parameter(permute_dims(weight, (self.axes + 1, self.axes, *range(self.axes))))
        self.bias = Parameter(empty((out_channels,), dtype=dtype, device=device)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_uniform(self.weight, self.bias)

    def _check(self, x: Tensor) -> None:
        check_batch(x, self.axes)
        check_channels(x, "in_channels", self.in_channels)
        check_dtype(x, self.weight)

    def _options(self) -> dict[str, tuple[Any, Any]]:
        """What extra_repr shows if it is not the default: name -> (value, default)."""
        ones = (1,) * self.axes
        return {
            "dilation": (self.dilation, ones),
            "groups": (self.groups, 1),
            "bias": (self.bias is not None, True),
        }

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        words += [f"{name}={value}" for name, (value, default) in self._options().items() if value != default]
        return ", ".join(words)


class _Conv(_Convolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Ints,
        stride: int | Ints = 1,
        padding: int | Ints | str = 0,
        dilation: int | Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype)
        where = type(self).__name__
        if padding_mode not in _MODES:
            raise ValueError(f"{where}: padding_mode must be one of {', '.join(_MODES)}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        self.padding: str | Ints
        if isinstance(padding, str):
            self.padding = padding
            self.pairs = named_padding(where, padding, self.kernel_size, self.stride, self.dilation)
        else:
            self.padding = integers(where, "padding", padding, self.axes, least=0)
            self.pairs = tuple((p, p) for p in self.padding)

    def output_size(self, size: Ints) -> Ints:
        """The spatial size of what it makes of inputs of the spatial size `size`."""
        return tuple(map(output_size, size, self.kernel_size, self.stride, self.pairs, self.dilation))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        padding = self.pairs
        if self.padding_mode != "zeros":
            x = pad(x, pad_width=((0, 0), (0, 0), *padding), mode=_MODES[self.padding_mode])
            padding = ((0, 0),) * self.axes
        return conv(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def _options(self) -> dict[str, tuple[Any, Any]]:
        zeros = (0,) * self.axes
        return {
            "padding": (self.padding, zeros),
            **super()._options(),
            "padding_mode": (self.padding_mode, "zeros"),
        }


class Conv1d(_Conv):
    """Convolution (cross-correlation) along one axis.

    Shapes: (N, in_channels, L) -> (N, out_channels, L'), with
    L' = (L + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Arguments, attributes and errors as of `Conv2d`, with one int where that takes two.
    """

    axes = 1


class Conv2d(_Conv):
    """Convolution (cross-correlation) of images.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H', W'), with
    H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Args:
        in_channels, out_channels: of the input and of the output.
        kernel_size: of the window, an int or (height, width), as the three that follow.
        stride: from one window to the next.
        padding: elements added on each side; "valid" for none, "same" for as many as keep the size (stride 1 only).
        dilation: from one element of the window to the next.
        groups: the channels fall into this many groups, each of which sees only its own.
        bias: whether there is one.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular".
        device, dtype: of the parameters.

    Attributes:
        weight: (out_channels, in_channels / groups, height, width), at first uniform within ±1/sqrt(fan_in), where
            fan_in = in_channels / groups * height * width.
        bias: (out_channels,), at first uniform within the same limits; or None.

    Raises:
        ValueError: an argument out of range. When called, ShapeError: an input that does not fit.
    """

    axes = 2


class Conv3d(_Conv):
    """Convolution (cross-correlation) along three axes, as of volumes or videos.

    Shapes: (N, in_channels, D, H, W) -> (N, out_channels, D', H', W').

    Arguments, attributes and errors as of `Conv2d`, with three ints where that takes two.
    """

    axes = 3


class _ConvTranspose(_Convolution):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Ints,
        stride: int | Ints = 1,
        padding: int | Ints = 0,
        output_padding: int | Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Ints = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype)
        where = type(self).__name__
        self.padding = integers(where, "padding", padding, self.axes, least=0)
        self.output_padding = integers(where, "output_padding", output_padding, self.axes, least=0)
        if any(o >= max(s, d) for o, s, d in zip(self.output_padding, self.stride, self.dilation)):
            raise ValueError(
                f"{where}: output_padding must be smaller than stride or dilation, got {self.output_padding} with "
                f"stride {self.stride} and dilation {self.dilation}"
            )

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        geometry = zip(
            x.shape[2:], self.stride, self.padding, self.dilation, self.kernel_size, self.output_padding, strict=True
        )
        size = tuple((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, s, p, d, k, o in geometry)
        if min(size) < 1:
            raise ShapeError(f"an input of shape {tuple(x.shape)} with padding {self.padding} leaves no output: {size}")
        # Output padding takes back what padding cuts off at the end; what it adds beyond that no input reaches, except
        # that as much as a stride leaves out is an ordinary part of Conv2d's input.
        ends = [(p, max(0, p - o)) for p, o in zip(self.padding, self.output_padding)]
        zeros = [max(0, o - p - s + 1) for o, p, s in zip(self.output_padding, self.padding, self.stride)]
        y = conv_input_grad(
            x,
            self.weight,
            shape=(x.shape[0], self.out_channels, *(n - z for n, z in zip(size, zeros))),
            stride=self.stride,
            padding=tuple(ends),
            dilation=self.dilation,
            groups=self.groups,
        )
        if any(zeros):
            y = pad(y, pad_width=((0, 0), (0, 0), *((0, z) for z in zeros)))
        return y if self.bias is None else y + self.bias.reshape((-1,) + (1,) * self.axes)

    def _options(self) -> dict[str, tuple[Any, Any]]:
        zeros = (0,) * self.axes
        return {
            "padding": (self.padding, zeros),
            "output_padding": (self.output_padding, zeros),
            **super()._options(),
        }


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution along one axis: arguments, attributes and errors as of `ConvTranspose2d`.

    Shapes: (N, in_channels, L) -> (N, out_channels, L').
    """

    axes = 1


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution of images: the linear map that is the transpose of `Conv2d`'s, which makes images larger.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H', W'), with
    H' = (H - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1.

    Args:
        output_padding: elements added at the end of each axis of the output; less than stride or dilation.
        others: as of `Conv2d`; mind that `groups` and `bias` come before `dilation`, as in PyTorch.

    Attributes:
        weight: (in_channels, out_channels / groups, height, width).
        bias: (out_channels,), or None. Both at first uniform within ±1/sqrt(out_channels / groups * height * width).
    """

    axes = 2


class ConvTranspose3d(_ConvTranspose):
    """Transposed convolution along three axes: arguments, attributes and errors as of `ConvTranspose2d`.

    Shapes: (N, in_channels, D, H, W) -> (N, out_channels, D', H', W').
    """

    axes = 3
