"""The arrays of the emulated device: NumPy's, of a class of their own, so that ops tell them from the CPU's."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from gpunet.backends.emulated.compiler import runtime


class EmulatedArray(np.ndarray):
    """An array on the emulated device."""

    @property
    def base(self) -> Any:
        """The array that this one is a view of; None where it is none (and not what owns the bytes, as in NumPy)."""
        owner = super().base
        return owner if isinstance(owner, EmulatedArray) else None

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array.view(EmulatedArray)  # a GPU has arrays without axes, and no scalars


class _Memory:
    """Bytes of the runtime, which start as 0xFF; every launch checks that those around them still are."""

    def __init__(self, size: int) -> None:
        library = runtime()
        self._free = library.gn_free
        self.address = library.gn_allocate(size)
        if self.address is None:
            raise MemoryError(f"no memory for an array of {size} bytes")
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def __del__(self) -> None:
        if self.address is not None:
            self._free(self.address)


def empty(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Any:
    """A new array at a multiple of 64 bytes, whose bytes are all 0xFF: NaN in every floating-point type.

    Args:
        shape: its shape.
        dtype: of its elements.
        strides: in bytes, of an array without gaps; C-contiguous if None.

    Raises:
        DeviceError: there is no C++ compiler.
    """
    dtype = np.dtype(dtype)
    memory: Any = np.asarray(_Memory(math.prod(shape) * dtype.itemsize))
    return np.ndarray.__new__(EmulatedArray, shape, dtype, memory, 0, strides)


def wrap(value: Any, kinds: Any = (np.ndarray, np.generic)) -> Any:
    """A result of a NumPy function (an array, a scalar, or several of them) with arrays of the emulated device in the
    place of what is of `kinds`."""
    if type(value) is EmulatedArray:
        return value
    if isinstance(value, kinds):
        return np.asarray(value).view(EmulatedArray)
    if type(value) is tuple:
        return tuple(wrap(v, kinds) for v in value)
    if isinstance(value, list):
        return [wrap(v, kinds) for v in value]
    return type(value)(*(wrap(v, kinds) for v in value)) if hasattr(value, "_fields") else value


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device", None)
        return wrap(function(*args, **kwargs))

    return call


def _wrapped_module(module: ModuleType, names: list[str]) -> ModuleType:
    wrapped = ModuleType(f"gpunet.backends.emulated.{module.__name__}", module.__doc__)
    for name in names:
        value = getattr(module, name)
        wrapped.__dict__[name] = _wrapped(value) if callable(value) and not isinstance(value, type) else value
    return wrapped


def namespace() -> ModuleType:
    """NumPy's namespace, whose functions make arrays of the emulated device."""
    xp = _wrapped_module(np, np.__all__)
    xp.__dict__.update(
        linalg=_wrapped_module(np.linalg, np.linalg.__all__), fft=_wrapped_module(np.fft, np.fft.__all__)
    )
    return xp
