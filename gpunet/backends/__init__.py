"""Backends: what an array library needs to be a device.

A backend is found by a device's type ("cpu", "cuda") or by an array's class (numpy.ndarray, cupy.ndarray). Backends
are created on first use, so importing gpunet never imports CuPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpunet.backends.base import Backend
from gpunet.backends.device import Device
from gpunet.errors import DeviceError, DTypeError

__all__ = [
    "Backend",
    "Device",
    "available_devices",
    "backend_of_type",
    "get_backend",
    "kernel_folder",
    "register_backend",
    "resolve",
    "unregister_backend",
]


def _numpy() -> Backend:
    from gpunet.backends.numpy import NumpyBackend

    return NumpyBackend()


def _cupy() -> Backend:
    from gpunet.backends.cupy import CupyBackend

    return CupyBackend()


def _emulated() -> Backend:
    from gpunet.backends.emulated import EmulatedBackend

    return EmulatedBackend()


_factories: dict[str, Callable[[], Backend]] = {"cpu": _numpy, "cuda": _cupy, "emulated": _emulated}
_backends: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}


def register_backend(device_type: str, factory: Callable[[], Backend]) -> None:
    """Make `Device(device_type)` available; `factory` is called at its first use."""
    _factories[device_type] = factory


def unregister_backend(device_type: str) -> None:
    """Take back `register_backend`."""
    _factories.pop(device_type, None)
    backend = _backends.pop(device_type, None)
    if backend is not None:
        _by_type.pop(backend.array_type, None)


def get_backend(device: Device) -> Backend:
    """The backend of a device.

    Raises:
        DeviceError: no such device type, or the machine does not have it (the message says what to install).
    """
    backend = _backends.get(device.type)
    if backend is None:
        factory = _factories.get(device.type)
        if factory is None:
            known = ", ".join(map(repr, _factories))
            raise DeviceError(f"unknown device type {device.type!r}; known: {known}")
        backend = _backends[device.type] = factory()
        _by_type[backend.array_type] = backend
    return backend


def backend_of_type(kind: type) -> Backend:
    """The backend whose arrays are of class `kind`. NumPy's scalars count as NumPy arrays.

    Raises:
        DTypeError: objects of that class are no arrays.
    """
    backend = _by_type.get(kind)
    if backend is None:
        numpy = get_backend(Device("cpu"))
        if kind in _by_type:
            return numpy
        if "cupy" in sys.modules and kind is sys.modules["cupy"].ndarray:
            return get_backend(Device("cuda"))
        if not numpy.owns(kind):
            name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
            hint = "; gpunet.asarray(x) makes a Tensor of it" if hasattr(kind, "__dlpack__") else ""
            raise DTypeError(f"expected a Tensor or an array, got an object of type {name}{hint}")
        backend = _by_type[kind] = numpy
    return backend


def available_devices() -> list[str]:
    """The names of the devices this machine has: "cpu", and "cuda:0", "cuda:1" … where CuPy finds GPUs."""
    try:
        return ["cpu", *get_backend(Device("cuda")).devices()]
    except DeviceError:
        return ["cpu"]


def resolve(device: Any) -> Device:
    """A Device from a Device, its name, or "auto": the first GPU where there is one, else the CPU."""
    if isinstance(device, str) and device == "auto":
        cpu, *gpus = available_devices()
        return Device(gpus[0] if gpus else cpu)
    return device if isinstance(device, Device) else Device(device)


def kernel_folder() -> Path:
    """The folder of the CUDA sources: inside the package where it is installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "kernels"
    return inside if inside.is_dir() else package.parent / "kernels"
