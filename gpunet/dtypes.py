"""Data types: the Array API's names for NumPy's dtype objects, and the default floating-point type."""

from __future__ import annotations

import builtins
from typing import Any, NamedTuple

import numpy as np

from gpunet.errors import DTypeError

bool = np.dtype("bool")  # the standard's name
int8, int16, int32, int64 = (np.dtype(f"int{n}") for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (np.dtype(f"uint{n}") for n in (8, 16, 32, 64))
float16, float32, float64 = (np.dtype(f"float{n}") for n in (16, 32, 64))
complex64, complex128 = np.dtype("complex64"), np.dtype("complex128")


def bfloat16() -> np.dtype:
    """The upper half of a float32, as ml_dtypes defines it for NumPy and CuPy; `gpunet.bfloat16`.

    Raises:
        AttributeError: ml_dtypes is not installed.
    """
    try:
        import ml_dtypes
    except ImportError:
        raise AttributeError("gpunet.bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "fV",
    "complex floating": "c",
    "numeric": "iufcV",
}

_default = float32


def default_dtype() -> np.dtype:
    """The type that Python floats and newly created floating-point arrays get; float32 unless changed."""
    return _default


def set_default_dtype(dtype: Any) -> None:
    """Make `dtype` (float16, float32 or float64) the default floating-point type."""
    global _default
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        raise DTypeError(f"set_default_dtype: expected a real floating-point dtype, got {dtype}")
    _default = dtype


def is_floating(dtype: np.dtype) -> builtins.bool:
    """Whether `dtype` is real floating-point."""
    return dtype.kind in "fV"  # V: bfloat16, as ml_dtypes defines it


SMOOTH = "fcV"  # the kinds of dtypes that can have gradients: real and complex floating-point, and bfloat16


def accumulation_dtype(dtype: np.dtype) -> np.dtype:
    """The type to add up floating-point numbers of `dtype` in: at least float32, lest sums lose their digits."""
    return float32 if dtype.itemsize < 4 else dtype


def result_type(*arrays_and_dtypes: Any) -> np.dtype:
    """The dtype that the arguments (arrays, dtypes, Python scalars) promote to."""
    return np.result_type(*(getattr(a, "dtype", a) for a in arrays_and_dtypes))


def can_cast(from_: Any, to: Any, /) -> builtins.bool:
    """Whether a value of dtype (or array) `from_` can be cast to dtype `to` by the promotion rules."""
    return np.can_cast(getattr(from_, "dtype", from_), to)


def isdtype(dtype: Any, kind: Any) -> builtins.bool:
    """Whether `dtype` is of `kind`: a dtype, one of the standard's kind names, or a tuple of these."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ValueError(f"isdtype: unknown kind {kind!r}; expected one of {', '.join(map(repr, _KINDS))}")
        return np.dtype(dtype).kind in _KINDS[kind]
    return np.dtype(dtype) == np.dtype(kind)


class Limits(NamedTuple):
    """Machine limits of a floating-point dtype, as Python numbers.

    Attributes:
        bits: of a number.
        eps: from 1 to the next larger number.
        max, min: the largest and the least finite number.
        smallest_normal: the smallest positive number of full precision.
        dtype: the real dtype that they are of.
    """

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: np.dtype


def finfo(dtype: Any, /) -> Limits:
    """Machine limits of a floating-point dtype (or of an array's); of a complex one, those of its parts."""
    dtype = np.dtype(getattr(dtype, "dtype", dtype))
    if dtype.kind == "V":  # bfloat16
        import ml_dtypes

        found: Any = ml_dtypes.finfo(dtype)
    else:
        found = np.finfo(dtype)
    eps, most, least, normal = (float(number) for number in (found.eps, found.max, found.min, found.smallest_normal))
    return Limits(found.bits, eps, most, least, normal, np.dtype(found.dtype))


def iinfo(dtype: Any, /) -> np.iinfo:
    """Machine limits of an integer dtype (or of an array's)."""
    return np.iinfo(getattr(dtype, "dtype", dtype))


_float32_precision = "highest"


def set_float32_precision(precision: str) -> None:
    """Say how precisely products of float32 matrices are to be computed, on devices that have a choice.

    Args:
        precision: "highest", the default, for IEEE float32; "high" allows TensorFloat-32 on NVIDIA's tensor cores from
            compute capability 8.0 on: numbers are rounded to 10 bits of fraction before they are multiplied, sums stay
            float32. That is several times as fast, with a relative error of about 1e-3 in each product.

    Raises:
        ValueError: it is neither.
    """
    global _float32_precision
    if precision not in ("highest", "high"):
        raise ValueError(f'set_float32_precision: expected "highest" or "high", got {precision!r}')
    _float32_precision = precision


def get_float32_precision() -> str:
    """What `set_float32_precision` was last given; "highest" at first."""
    return _float32_precision
