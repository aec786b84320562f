"""Normalization layers."""

from __future__ import annotations

from typing import Any

from gpunet.creation import ones, zeros
from gpunet.errors import ShapeError
from gpunet.nn import functional as F
from gpunet.nn import init
from gpunet.nn.arguments import BATCH_OF, Ints, check_array, check_channels, check_floating, integer, integers
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter
from gpunet.tensor import Tensor


class _BatchNorm(Module):
    ndims: tuple[int, ...]  # how many axes an input may have

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        self.num_features = integer(type(self).__name__, "num_features", num_features)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        how: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(ones(num_features, **how)) if affine else None
        self.bias = Parameter(zeros(num_features, **how)) if affine and bias else None
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None
        self.register_buffer("running_mean", zeros(num_features, **how) if track_running_stats else None)
        self.register_buffer("running_var", ones(num_features, **how) if track_running_stats else None)
        batches = zeros((), dtype="int64", device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", batches)

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1, no batches."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            init.zeros_(self.num_batches_tracked)

    def reset_parameters(self) -> None:
        """Set the scale to 1, the shift to 0, and forget the running statistics."""
        self.reset_running_stats()
        _reset_affine(self.weight, self.bias)

    def forward(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """As `functional.batch_norm`: with `relu`, ReLU follows, before which a residual is added unless it is None."""
        shape = check_array(x)
        if len(shape) not in self.ndims:
            wanted = " or ".join("(N, C)" if n == 2 else BATCH_OF[n - 2] for n in self.ndims)
            raise ShapeError(f"expected an input of shape {wanted}, got {shape}")
        check_channels(x, "num_features", self.num_features)
        check_floating(x)
        batches = self.num_batches_tracked if self.training else None
        momentum = self.momentum
        if momentum is None:  # the average of all batches so far and this one
            momentum = 0.0 if batches is None else 1.0 / (batches.item() + 1)
        y = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training or self.running_mean is None,
            momentum=momentum,
            eps=self.eps,
            relu=relu,
            residual=residual,
        )
        if batches is not None:
            batches += 1
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalization of vectors (N, C) or sequences (N, C, L): see `BatchNorm2d`."""

    ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Each channel of a batch of images shifted to mean 0 and scaled to variance 1, then scaled and shifted as learned
    (Ioffe and Szegedy, 2015).

    In training, by the batch's mean and biased variance, and the running statistics move towards the batch's mean and
    unbiased variance; in evaluation, by the running statistics.

    Shapes: (N, C, H, W) -> the same.

    Args:
        num_features: the number C of channels.
        eps: added to the variance.
        momentum: new running statistic = (1 - momentum) * old + momentum * the batch's; None: the average of all
            batches.
        affine: whether to scale, and shift, as learned.
        track_running_stats: whether there are running statistics; without, the batch's serve in evaluation too.
        device, dtype: of the parameters.
        bias: whether to shift.

    Attributes:
        weight, bias: (C,), at first 1 and 0; or None.
        running_mean, running_var: buffers (C,), at first 0 and 1; or None.
        num_batches_tracked: a buffer, 0-d int64; or None.

    Raises:
        ValueError: when called, one value per channel in training. ShapeError: an input that does not fit.
    """

    ndims = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalization of volumes (N, C, D, H, W): see `BatchNorm2d`."""

    ndims = (5,)


class _InstanceNorm(_BatchNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        shape = check_array(x)
        if len(shape) not in self.ndims:
            raise ShapeError(f"expected an input of shape {BATCH_OF[self.ndims[0] - 2]}, got {shape}")
        check_channels(x, "num_features", self.num_features)
        check_floating(x)
        assert self.momentum is not None
        return F.instance_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            use_input_stats=self.training or self.running_mean is None,
            momentum=self.momentum,
            eps=self.eps,
        )


class InstanceNorm1d(_InstanceNorm):
    """Instance normalization of sequences (N, C, L): see `InstanceNorm2d`."""

    ndims = (3,)


class InstanceNorm2d(_InstanceNorm):
    """Each channel of each image shifted to mean 0 and scaled to variance 1 (Ulyanov, Vedaldi and Lempitsky, 2016).

    Shapes: (N, C, H, W) -> the same.

    Args:
        num_features: the number C of channels.
        eps: added to the variance.
        momentum: new running statistic = (1 - momentum) * old + momentum * the average of the batch's images.
        affine: whether to scale, and shift, as learned.
        track_running_stats: whether there are running statistics, which then serve in evaluation.
        device, dtype: of the parameters.
        bias: whether to shift.

    Attributes:
        weight, bias: (C,), at first 1 and 0; or None.
        running_mean, running_var, num_batches_tracked: buffers as of `BatchNorm2d`, the last unused; or None.

    Raises:
        ShapeError: when called, an input that does not fit, or one value per channel.
    """

    ndims = (4,)


class InstanceNorm3d(_InstanceNorm):
    """Instance normalization of volumes (N, C, D, H, W): see `InstanceNorm2d`."""

    ndims = (5,)


class GroupNorm(Module):
    """Groups of channels of each sample shifted to mean 0 and scaled to variance 1, then each channel scaled and
    shifted as learned (Wu and He, 2018).

    Shapes: (N, C, *) -> the same.

    Args:
        num_groups: into how many groups of neighbours the channels fall.
        num_channels: the number C of channels.
        eps: added to the variance.
        affine: whether to scale, and shift, as learned.
        device, dtype: of the parameters.
        bias: whether to shift.

    Attributes:
        weight, bias: (C,), at first 1 and 0; or None.

    Raises:
        ValueError: channels that do not divide into groups. When called, ShapeError: an input that does not fit.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        self.num_groups = integer("GroupNorm", "num_groups", num_groups)
        self.num_channels = integer("GroupNorm", "num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_channels={num_channels} does not divide into num_groups={num_groups}")
        self.eps = eps
        self.affine = affine
        how: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(ones(num_channels, **how)) if affine else None
        self.bias = Parameter(zeros(num_channels, **how)) if affine and bias else None

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0."""
        _reset_affine(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = check_array(x)
        if len(shape) < 2:
            raise ShapeError(f"expected an input of shape (N, C, *), got {shape}")
        check_channels(x, "num_channels", self.num_channels)
        check_floating(x)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = f"affine={self.affine}, bias={self.bias is not None}"
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, {affine}"


class RMSNorm(Module):
    """The last axes of each sample divided by the root of the mean of their squares, then scaled as learned (Zhang and
    Sennrich, 2019).

    Shapes: (*, *normalized_shape) -> the same.

    Args:
        normalized_shape: lengths of the last axes, or one int.
        eps: added to the mean of the squares; None: the distance from 1 to the next number of the input's dtype.
        elementwise_affine: whether to scale as learned.
        device, dtype: of the weight.

    Attributes:
        weight: of shape normalized_shape, at first 1; or None.
    """

    def __init__(
        self,
        normalized_shape: int | Ints,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        n = len(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else 1
        self.normalized_shape = integers("RMSNorm", "normalized_shape", normalized_shape, n)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        how: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(ones(self.normalized_shape, **how)) if elementwise_affine else None

    def reset_parameters(self) -> None:
        """Set the scale to 1."""
        _reset_affine(self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        check_array(x)
        check_floating(x)
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class LayerNorm(Module):
    """The last axes of each sample shifted to mean 0 and scaled to variance 1, then scaled and shifted as learned
    (Ba, Kiros and Hinton, 2016).

    Shapes: (*, *normalized_shape) -> the same.

    Args:
        normalized_shape: lengths of the last axes, or one int.
        eps: added to the variance.
        elementwise_affine: whether to scale, and shift, as learned.
        bias: whether to shift.
        device, dtype: of the parameters.

    Attributes:
        weight, bias: of shape normalized_shape, at first 1 and 0; or None.
    """

    def __init__(
        self,
        normalized_shape: int | Ints,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        n = len(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else 1
        self.normalized_shape = integers("LayerNorm", "normalized_shape", normalized_shape, n)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        how: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(ones(self.normalized_shape, **how)) if elementwise_affine else None
        self.bias = Parameter(zeros(self.normalized_shape, **how)) if elementwise_affine and bias else None

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0."""
        _reset_affine(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_array(x)
        check_floating(x)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        return f"{self.normalized_shape}, eps={self.eps}, {affine}"


def _reset_affine(weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None:
        init.ones_(weight)
    if bias is not None:
        init.zeros_(bias)
