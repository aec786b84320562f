"""device="emulated": NumPy's memory, and the CUDA kernels run by the CPU.

The .cu files are compiled, unmodified, with the host's C++ compiler (g++), and every CUDA thread runs as a fiber. So
the whole path of a GPU is tested where there is none: dispatch, launch arguments, kernels. What is wrong in a kernel
shows more often than on a GPU: shared memory and new arrays start as NaN, threads can be run in other orders,
asynchronous copies can be made to arrive as late as they may, and waits that never end become errors that name the
line. It is a tool for tests and for those who write kernels, never a default; it tests our reading of PTX, not the
hardware.

    with emulation(architecture="sm_80", order="reverse", late=True):
        y = gn.matmul(a, b)  # arrays with device="emulated"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunet.backends.base import Backend
from gpunet.backends.device import Device
from gpunet.backends.emulated.arrays import EmulatedArray, empty, namespace, wrap
from gpunet.backends.emulated.compiler import prebuild, require_compiler
from gpunet.backends.emulated.launcher import EmulatedLauncher, emulation
from gpunet.errors import DeviceError

__all__ = ["EmulatedArray", "EmulatedBackend", "EmulatedLauncher", "emulation", "prebuild"]

_DEVICE = Device("emulated")


class EmulatedBackend(Backend):
    """Arrays on the emulated device.

    Raises:
        DeviceError: at creation, where there is no C++ compiler.
    """

    name = "emulated"
    array_type = EmulatedArray

    def __init__(self) -> None:
        require_compiler()
        self.xp = namespace()
        self._launcher = EmulatedLauncher()

    def launcher(self, name: str) -> EmulatedLauncher:
        """What launches the kernel of that name: the same for all."""
        return self._launcher

    def device_of(self, array: Any) -> Device:
        return _DEVICE

    def from_numpy(self, array: np.ndarray, device: Device) -> EmulatedArray:
        array = np.asarray(array)
        new = empty(array.shape, array.dtype, np.empty_like(array).strides)
        new[...] = array
        return new

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.array(array, subok=False)

    def implement(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def on_emulated(*arrays: Any, **params: Any) -> Any:
            for array in arrays:
                if type(array) is np.ndarray and array.ndim:
                    raise DeviceError(
                        f"a NumPy array of shape {array.shape} met arrays on the emulated device; "
                        "move it there with gpunet.asarray(array, device=...)"
                    )
            return wrap(function(*arrays, **params), np.generic)  # of arrays, one may be meant for another device

        return on_emulated

    def array_from(self, value: Any) -> EmulatedArray:
        return wrap(np.asanyarray(value))

    def scatter_add(self, target: Any, key: Any, values: Any) -> None:
        np.add.at(target, key, values)

    def same_device(self, arrays: Sequence[Any]) -> bool:
        return True
