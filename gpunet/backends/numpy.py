"""The CPU: NumPy, with products on gpunet's threads and reductions without NumPy's detours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpunet.backends import memory, native, threads
from gpunet.backends.base import Backend
from gpunet.backends.device import Device

_CPU = Device("cpu")


def _reduction(ufunc: np.ufunc) -> Any:
    """What np.sum, np.max and the like come down to in the end, at half of the cost for a small array."""
    reduce: Any = ufunc.reduce

    def call(x: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        return reduce(x, axis, dtype, None, keepdims)

    return call


def _logical(ufunc: np.ufunc) -> Any:
    reduce: Any = ufunc.reduce

    def call(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return reduce(x, axis, bool, None, keepdims)

    return call


_ones: dict[str, np.ndarray] = {}  # of each type, the longest that was needed


def _sum(x: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    """`numpy.sum`. Over the rows of a matrix, as the gradient of a bias is, it is a product, which BLAS does faster.

    So is the sum over all axes but the channels' of what lies channels-last: rows of channels.
    """
    if dtype is None and not keepdims:
        if (axis == 0 or axis == (0,)) and x.ndim == 2:
            rows = x
        elif type(axis) is tuple and len(axis) == x.ndim - 1 > 1 and x.size and axis == (0, *range(2, x.ndim)):
            rows = x.transpose(*axis, 1)
        else:
            return _plain_sum(x, axis)
        kind = x.dtype.char
        if kind in "fd" and rows.flags.c_contiguous:
            if rows.ndim > 2:
                rows = rows.reshape(x.size // x.shape[1], x.shape[1])
            n = rows.shape[0]
            ones = _ones.get(kind)
            if ones is None or len(ones) < n:
                ones = _ones[kind] = np.ones(max(n, 256), x.dtype)
            return ones[:n].dot(rows)
    return _plain_sum(x, axis, dtype, keepdims)


_plain_sum = _reduction(np.add)


def _mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """`numpy.mean`; of all numbers, at a quarter of its cost for a small array."""
    if axis is None and not keepdims and x.size and x.dtype.char in "fd":
        return _plain_sum(x) / x.size
    return np.mean(x, axis, keepdims=keepdims)


def _broadcast_to(x: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`numpy.broadcast_to`; of a number, as the gradient of a sum is, at a tenth of its cost."""
    if x.ndim or x.dtype.char not in "fd" or not isinstance(shape, tuple):
        return np.broadcast_to(x, shape)
    y: np.ndarray = np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))
    y.flags.writeable = False
    return y


_REDUCTIONS = {
    "sum": _sum,
    "mean": _mean,
    "prod": _reduction(np.multiply),
    "max": _reduction(np.maximum),
    "min": _reduction(np.minimum),
    "all": _logical(np.logical_and),
    "any": _logical(np.logical_or),
}


def _namespace() -> ModuleType:
    """NumPy's namespace with functions of gpunet's in the place of some of its own."""
    xp = ModuleType("gpunet.backends.numpy.xp", np.__doc__)
    xp.__dict__.update({name: getattr(np, name) for name in np.__all__})
    xp.__dict__.update(_REDUCTIONS, linalg=np.linalg, fft=np.fft, matmul=threads.matmul, broadcast_to=_broadcast_to)
    return xp


class NumpyBackend(Backend):
    name = "cpu"
    xp = _namespace()
    array_type = np.ndarray
    platform = "cpu"

    def __init__(self) -> None:
        memory.keep()

    def launcher(self, name: str) -> native.Library:
        """The functions of kernels/cpu/NAME.cpp."""
        return native.library(name)

    def owns(self, kind: type) -> bool:
        return issubclass(kind, (np.ndarray, np.generic))

    def array_from(self, value: Any) -> np.ndarray:
        return value if type(value) is np.ndarray else np.asarray(value)  # of a memmap or a matrix, a plain view

    def spread(self, work: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> list[Any]:
        return threads.spread(work, items)

    def device_of(self, array: Any) -> Device:
        return _CPU

    def from_numpy(self, array: np.ndarray, device: Device) -> np.ndarray:
        return array

    def to_numpy(self, array: Any) -> np.ndarray:
        return array
