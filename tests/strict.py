"""A device that behaves as CuPy does where NumPy would be lenient: it finds what would fail on a GPU, without one.

Its arrays are NumPy's inside a box. As on a GPU, they do not mix with NumPy arrays, do not turn into them unasked, and
reductions give 0-d arrays, not scalars. Only what CuPy offers too can be called on them. `pytest --device strict` runs
the device-independent tests on it; they also run on it by default, beside the CPU.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from gpunet.backends import Device, register_backend
from gpunet.backends.base import Backend

# Attributes and methods of cupy.ndarray (14) that may be used, and functions that CuPy or array-api-compat lacks.
ATTRIBUTES = {
    "T", "all", "any", "argmax", "argmin", "astype", "base", "clip", "copy", "cumprod", "cumsum", "dot", "dtype",
    "fill", "flags", "item", "itemsize", "max", "mean", "min", "nbytes", "ndim", "prod", "ravel", "repeat", "reshape",
    "shape", "size", "squeeze", "std", "strides", "sum", "swapaxes", "take", "tolist", "trace", "transpose", "var",
}  # fmt: skip
LACKING = {"frompyfunc", "fromiter", "vectorize", "nditer", "matvec", "vecmat"}


class StrictArray:
    """An array in a box."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, inside: Any) -> None:
        self._inside = np.asarray(inside)

    def __getattr__(self, name: str) -> Any:
        if name not in ATTRIBUTES:
            raise AttributeError(f"cupy.ndarray has no {name!r}, or tests/strict.py does not know it")
        value = getattr(self._inside, name)
        return _boxed(value) if callable(value) else _wrap(value)

    @property
    def device(self) -> str:
        return "strict"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __iter__(self) -> Any:
        return (StrictArray(x) for x in self._inside)

    def __len__(self) -> int:
        return len(self._inside)

    def __repr__(self) -> str:
        return f"StrictArray({self._inside!r})"


def _wrap(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return StrictArray(value)
    if type(value) is tuple:
        return tuple(map(_wrap, value))
    if isinstance(value, list):
        return list(map(_wrap, value))
    return type(value)(*map(_wrap, value)) if hasattr(value, "_fields") else value


def _unwrap(value: Any) -> Any:
    if isinstance(value, StrictArray):
        return value._inside
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_unwrap, value))
    return value


def _boxed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device", None)
        return _wrap(function(*_unwrap(args), **{k: _unwrap(v) for k, v in kwargs.items()}))

    if isinstance(function, np.ufunc):
        call.at = lambda target, key, values: function.at(*_unwrap((target, key, values)))  # type: ignore[attr-defined]
    return call


def _operator(name: str) -> Callable[..., Any]:
    def call(self: StrictArray, *args: Any) -> Any:
        result = getattr(self._inside, name)(*_unwrap(args))
        if name.startswith("__i") and name[3:-2] in {
            "add",
            "sub",
            "mul",
            "truediv",
            "or",
            "and",
            "xor",
            "pow",
            "matmul",
        }:
            return self
        return result if result is NotImplemented else _wrap(result)

    return call


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
for _name in [
    *(f"__{prefix}{name}__" for name in _BINARY for prefix in ("", "r", "i")),
    *(f"__{name}__" for name in ["eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"]),
    "__getitem__",
    "__setitem__",
]:
    setattr(StrictArray, _name, _operator(_name))
for _name, _convert in {"bool": bool, "int": int, "float": float, "complex": complex, "index": operator.index}.items():
    setattr(StrictArray, f"__{_name}__", lambda self, convert=_convert: convert(self._inside))


class _Namespace:
    """numpy, boxed."""

    def __getattr__(self, name: str) -> Any:
        if name in LACKING:
            raise AttributeError(f"cupy has no {name!r}")
        if name == "asarray":  # the way from NumPy's arrays to CuPy's
            return lambda x, device=None, **how: StrictArray(np.asarray(getattr(x, "_inside", x), **how))
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value if not hasattr(value, "__path__") and type(value).__name__ != "module" else _Module(value)
        return _boxed(value)


class _Module(_Namespace):
    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return _boxed(getattr(self._module, name))


class StrictBackend(Backend):
    name = "strict"
    xp = _Namespace()
    array_type = StrictArray

    def device_of(self, array: Any) -> Device:
        return Device("strict")

    def from_numpy(self, array: np.ndarray, device: Device) -> StrictArray:
        assert isinstance(array, (np.ndarray, np.generic)), type(array)
        return StrictArray(np.array(array))

    def to_numpy(self, array: StrictArray) -> np.ndarray:
        return array._inside.copy()


register_backend("strict", StrictBackend)
