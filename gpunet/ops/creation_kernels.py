"""Arrays made of nothing, on a device with kernels: constants, evenly spaced numbers, diagonals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from struct import Struct
from typing import Any

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.ops import launch

_REALS, _INTEGERS = Struct("Pq3di4x"), Struct("P4qi4x")


def full(launcher: Launcher, shape: Any, value: Any, dtype: np.dtype) -> Any:
    """All `value`, or NotImplemented."""
    shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
    if dtype.name not in launch.NUMBERS or not isinstance(value, (bool, int, float, np.generic)):
        return NotImplemented
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= int(value) <= np.iinfo(dtype).max:
        return NotImplemented  # the reference says so
    return launch.full(launcher, shape, value, dtype)


def arange(launcher: Launcher, start: Any, stop: Any, step: Any, dtype: Any) -> Any:
    """Numbers from `start` up to but not including `stop`, those of NumPy, or NotImplemented."""
    if not all(type(n) in (int, float) for n in (start, stop, step)) or not step:
        return NotImplemented
    dtype = np.result_type(*(type(n) for n in (start, stop, step))) if dtype is None else np.dtype(dtype)
    size = max(0, math.ceil((stop - start) / step))
    first, second = (np.asarray(n).astype(dtype) for n in (start, start + step))
    if dtype.kind not in "iuf" or dtype.name not in launch.NUMBERS or dtype == np.float16:  # which NumPy rounds oddly
        return NotImplemented
    return _ramp(launcher, size, first.item(), (second - first).item() if dtype.kind == "f" else step, dtype, dtype)


def linspace(launcher: Launcher, start: Any, stop: Any, num: int, dtype: np.dtype, endpoint: bool) -> Any:
    """Evenly spaced numbers, or NotImplemented."""
    if not all(type(n) in (int, float) for n in (start, stop)) or dtype.name not in launch.FLOATING or num < 2:
        return NotImplemented
    step = (stop - start) / (num - 1 if endpoint else num)
    last = float(stop) if endpoint else None
    return _ramp(launcher, num, float(start), step, np.dtype(np.float64), dtype, last)


def _ramp(
    launcher: Launcher, size: int, start: Any, step: Any, computed: np.dtype, dtype: np.dtype, last: Any = None
) -> Any:
    """start + i * step, computed in one type and stored in another."""
    y = launcher.empty((size,), dtype)
    if size:
        real = computed.kind == "f"
        numbers = start, step, 0 if last is None else last
        if not real and not all(-(2**63) <= n < 2**63 for n in numbers):
            return NotImplemented
        args = (_REALS if real else _INTEGERS).pack(launcher.pointer(y), size, *numbers, last is not None)
        variant = ramp_variant(dtype.name, computed.name if real else "int64")
        launcher.launch(variant, launch.grid_of(launcher, size, 256), args)
    return y


def ramp_variant(dtype: str, computed: str) -> Variant:
    """The kernel of evenly spaced numbers."""
    return Variant("index", f"ramp<{launch.NUMBERS[dtype]}, {launch.NUMBERS[computed]}>", 256)


def eye(launcher: Launcher, rows: int, columns: int, k: int, dtype: np.dtype) -> Any:
    """Ones on the k-th diagonal, or NotImplemented."""
    if dtype.name not in launch.NUMBERS:
        return NotImplemented
    y = launch.full(launcher, (rows, columns), 0, dtype)
    length = min(rows + min(k, 0), columns - max(k, 0))
    if length > 0:
        first = max(-k, 0) * columns + max(k, 0)
        diagonal = y.reshape(-1)[first : first + (length - 1) * (columns + 1) + 1 : columns + 1]
        launch.copy_into(launcher, diagonal, launch.full(launcher, (), 1, dtype))
    return y


@register_variants
def _variants() -> Iterable[Variant]:
    yield ramp_variant("int64", "int64")
    yield ramp_variant("float32", "float32")
    yield ramp_variant("float32", "float64")
