"""The Array API's Fourier transform extension. The transforms are in gpunet/ops/fft.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunet.creation import arange
from gpunet.dtypes import default_dtype
from gpunet.errors import DTypeError
from gpunet.ops.fft import (
    fft,
    fftn,
    fftshift,
    hfft,
    ifft,
    ifftn,
    ifftshift,
    ihfft,
    irfft,
    irfftn,
    rfft,
    rfftn,
)
from gpunet.tensor import Tensor

__all__ = [
    "fft", "fftfreq", "fftn", "fftshift", "hfft", "ifft", "ifftn", "ifftshift", "ihfft", "irfft", "irfftn", "rfft",
    "rfftfreq", "rfftn",
]  # fmt: skip


def fftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Tensor:
    """The frequencies that the elements of `fft` of n elements stand for, in cycles per unit of d.

    Args:
        n: how many elements.
        d: how far apart they are.
        dtype: real floating-point; default: the default dtype.
        device: where the result is; default: the default device.

    Returns:
        (n,): [0, 1, ..., (n - 1) // 2, -(n // 2), ..., -1] / (d n).

    Raises:
        DTypeError: `dtype` is not real floating-point.
    """
    dtype = _real("fftfreq", dtype)
    numbers = (arange(n, device=device) + n // 2) % n - n // 2
    return numbers.astype(dtype) / (n * d)


def rfftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Tensor:
    """The frequencies that the elements of `rfft` of n elements stand for: [0, 1, ..., n // 2] / (d n).

    Args and errors as of `fftfreq`.
    """
    dtype = _real("rfftfreq", dtype)
    return arange(n // 2 + 1, device=device).astype(dtype) / (n * d)


def _real(name: str, dtype: Any) -> np.dtype:
    dtype = default_dtype() if dtype is None else np.dtype(dtype)
    if dtype.kind != "f":
        raise DTypeError(f"{name}: expected a real floating-point dtype, got {dtype}")
    return dtype
