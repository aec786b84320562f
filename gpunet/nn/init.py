"""Initial values of parameters: functions that fill a Tensor in place and return it, with PyTorch's names.

The numbers come from `gpunet.random`, so `gpunet.manual_seed` fixes them, on every device alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunet import random
from gpunet.autograd import no_grad
from gpunet.creation import asarray
from gpunet.errors import ShapeError
from gpunet.tensor import Tensor

__all__ = [
    "calculate_gain", "constant_", "eye_", "fans", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_",
    "orthogonal_", "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


def _fill(tensor: Tensor, values: Any) -> Tensor:
    with no_grad():
        return tensor.copy_(asarray(values, dtype=tensor.dtype, device=tensor.device))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform in [a, b)."""
    return _fill(tensor, random.uniform(tensor.shape, a, b, dtype=tensor.dtype, device=tensor.device))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normally distributed."""
    return _fill(tensor, random.normal(tensor.shape, mean, std, dtype=tensor.dtype, device=tensor.device))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """All `val`."""
    return _fill(tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """All zero."""
    return _fill(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """All one."""
    return _fill(tensor, 1)


def eye_(tensor: Tensor) -> Tensor:
    """Ones on the diagonal of a matrix, zeros elsewhere.

    Raises:
        ShapeError: it is no matrix.
    """
    if tensor.ndim != 2:
        raise ShapeError(f"eye_: expected a matrix, got shape {tensor.shape}")
    return _fill(tensor, np.eye(tensor.shape[0], tensor.shape[1]))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normally distributed, given that it is within [a, b]: what falls outside is drawn again.

    Args:
        mean, std: of the normal distribution before it is cut off.
        a, b: the limits, as values (not in standard deviations).

    Raises:
        ValueError: less than a thousandth of the distribution is within [a, b].
    """
    inside = 0.5 * (math.erf((b - mean) / (std * math.sqrt(2))) - math.erf((a - mean) / (std * math.sqrt(2))))
    if inside < 1e-3:
        raise ValueError(f"trunc_normal_: [{a}, {b}] holds almost nothing of a normal distribution ({mean}, {std})")
    values = random.normal(tensor.shape, mean, std, dtype="float64", device="cpu").numpy()
    while (outside := (values < a) | (values > b)).any():
        values[outside] = random.normal(int(outside.sum()), mean, std, dtype="float64", device="cpu").numpy()
    return _fill(tensor, values)


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """A random (semi-)orthogonal matrix times `gain`; further axes are taken together with the second.

    By the QR decomposition of a normal matrix (Saxe, McClelland and Ganguli, 2014), with signs such that every
    orthogonal matrix is equally likely (Mezzadri, 2007).

    Raises:
        ShapeError: it has fewer than two axes.
    """
    if tensor.ndim < 2:
        raise ShapeError(f"orthogonal_: expected at least two axes, got shape {tensor.shape}")
    rows = tensor.shape[0]
    columns = tensor.size // rows
    normal = random.normal((max(rows, columns), min(rows, columns)), dtype="float64", device="cpu").numpy()
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diagonal(r))
    values = gain * (q if rows >= columns else q.T).reshape(tensor.shape)
    return _fill(tensor, values)


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel): how many inputs an output has, and outputs an input.

    Raises:
        ShapeError: it has fewer than two axes.
    """
    if tensor.ndim < 2:
        raise ShapeError(
            f"fan_in and fan_out need a weight (out, in, ...) of at least two axes, got shape {tensor.shape}"
        )
    window = math.prod(tensor.shape[2:])
    return tensor.shape[1] * window, tensor.shape[0] * window


_GAINS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "sigmoid"), 1.0),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1.0),
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which initial weights should be larger before a nonlinearity.

    Args:
        nonlinearity: its name, as in `gpunet.nn.functional`.
        param: the negative slope of "leaky_relu"; default 0.01.

    Raises:
        ValueError: an unknown name.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        known = ", ".join(map(repr, [*_GAINS, "leaky_relu"]))
        raise ValueError(f"calculate_gain: unknown nonlinearity {nonlinearity!r}; known: {known}")
    return _GAINS[nonlinearity]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform, with variance gain² * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal, with variance gain² * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans(tensor))))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'mode must be "fan_in" or "fan_out", got {mode!r}')
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(tensor)[mode == "fan_out"])


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Uniform, with standard deviation gain / sqrt(fan) (He, Zhang, Ren and Sun, 2015).

    Args:
        tensor: (out, in, *kernel), filled in place.
        a: the negative slope of "leaky_relu".
        mode: "fan_in" keeps the variance on the way forward, "fan_out" on the way back.
        nonlinearity: decides the gain; see `calculate_gain`.
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Normal, with standard deviation gain / sqrt(fan); arguments as of `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))
