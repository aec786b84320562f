"""The arrays of the emulated device: NumPy's, of a class of their own, so that ops tell them from the CPU's."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from gpunet.backends.emulated.compiler import runtime


class EmulatedArray(np.ndarray):
    """An array on the emulated device.

    What NumPy computes of it, as CuPy would with kernels of its own, is written down where `emulation(host=...)` asks
    for that.
    """

    def __array_ufunc__(self, ufunc: Any, method: Any, *inputs: Any, out: Any = None, **options: Any) -> Any:
        note(ufunc.__name__)
        if out is not None:
            options["out"] = tuple(map(_plain, out))
        if "where" in options:
            options["where"] = _plain(options["where"])
        y = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if out is None:
            return wrap(y)
        return out[0] if len(out) == 1 else out

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function.__name__ not in _NO_WORK:
            note(function.__name__)
        return super().__array_function__(function, types, args, options)

    def __setitem__(self, key: Any, value: Any) -> None:
        note("__setitem__")
        super().__setitem__(key, value)

    def astype(self, *args: Any, **options: Any) -> Any:
        note("astype")
        return super().astype(*args, **options)

    def copy(self, *args: Any, **options: Any) -> Any:
        note("copy")
        return super().copy(*args, **options)

    def fill(self, value: Any) -> None:
        note("fill")
        super().fill(value)

    @property
    def base(self) -> Any:
        """The array that this one is a view of; None where it is none (and not what owns the bytes, as in NumPy)."""
        owner = super().base
        return owner if isinstance(owner, EmulatedArray) else None

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array.view(EmulatedArray)  # a GPU has arrays without axes, and no scalars


# Functions that only look at arrays or make views of them.
_NO_WORK = {
    *("atleast_1d", "atleast_2d", "broadcast_arrays", "broadcast_to", "diagonal", "empty_like", "expand_dims", "flip"),
    *("matrix_transpose", "moveaxis", "ndim", "permute_dims", "rollaxis", "shape", "size", "split", "squeeze"),
    *("swapaxes", "transpose", "unstack", "can_cast", "iscomplexobj", "may_share_memory", "result_type"),
    *("shares_memory",),
}
# Functions that make arrays of nothing, which NumPy does not tell a class of arrays about.
_CREATION = {"arange", "eye", "full", "identity", "linspace", "ones", "tri", "zeros"}

notes: list[list[str] | None] = []  # where to write down what NumPy computes, the innermost `emulation` last


def note(name: str) -> None:
    """Write down that NumPy computes something for the emulated device."""
    if notes and notes[-1] is not None:
        notes[-1].append(name)


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


def _plain(value: Any) -> Any:
    """An array of the emulated device as NumPy's own class; anything else as it is."""
    return value.view(np.ndarray) if isinstance(value, EmulatedArray) else value


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
    creates = getattr(function, "__name__", "") in _CREATION

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device", None)
        if creates:
            note(function.__name__)
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
