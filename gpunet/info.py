"""What this namespace can do: the Array API's inspection functions."""

from __future__ import annotations

from typing import Any

from gpunet import dtypes as types
from gpunet.backends import Device, available_devices
from gpunet.creation import default_device as _default_device

__all__ = ["capabilities", "default_device", "default_dtypes", "devices", "dtypes"]

_NAMES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "complex64",
    "complex128",
)  # fmt: skip


def capabilities() -> dict[str, Any]:
    """Whether arrays can be indexed by masks and have shapes that depend on data, and how many axes they may have."""
    return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}


def default_device() -> Device:
    """Where arrays are created if no device is given."""
    return _default_device()


def default_dtypes(*, device: Any = None) -> dict[str, Any]:
    """The dtypes of arrays that are created without one; the same on all devices."""
    real = types.default_dtype()
    return {
        "real floating": real,
        "complex floating": types.complex128 if real == types.float64 else types.complex64,
        "integral": types.int64,
        "indexing": types.int64,
    }


def dtypes(*, device: Any = None, kind: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """The standard's dtypes by name; those of a kind, or of several, as `isdtype` knows them. All devices have all."""
    found = {name: getattr(types, name) for name in _NAMES}
    return {name: dtype for name, dtype in found.items() if kind is None or types.isdtype(dtype, kind)}


def devices() -> tuple[Device, ...]:
    """The devices of this machine, and the default one, which may be one for tests."""
    return tuple(dict.fromkeys([*map(Device, available_devices()), default_device()]))
