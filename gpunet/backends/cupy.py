"""NVIDIA GPUs: CuPy, through array-api-compat, which gives CuPy the Array API names it lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from gpunet.backends.base import Backend
from gpunet.backends.cupy_launcher import CupyLauncher
from gpunet.backends.device import Device
from gpunet.errors import DeviceError


class CupyBackend(Backend):
    """Arrays on CUDA devices.

    Raises:
        DeviceError: at creation, where CuPy or array-api-compat is not installed, or CuPy finds no GPU.
    """

    name = "cuda"
    workspace = 256 << 20

    def __init__(self) -> None:
        try:
            import array_api_compat.cupy as xp
            import cupy
        except ImportError as error:
            raise DeviceError(
                'device "cuda" needs CuPy, which is not installed: pip install "gpunet[cuda]" (CUDA 12) or '
                f'"gpunet[cuda13]" (CUDA 13); the import failed with: {error}'
            ) from error
        if not cupy.cuda.is_available():
            raise DeviceError(
                'device "cuda" needs an NVIDIA GPU and its driver; CuPy is installed but finds none '
                "(does nvidia-smi work here? in a container, was it started with --gpus all?)"
            )
        self.cupy = cupy
        self.xp = xp
        self.array_type = cupy.ndarray
        self._count = cupy.cuda.runtime.getDeviceCount()
        launcher = CupyLauncher(cupy)
        self.launcher = lambda kernel: launcher

    def devices(self) -> list[str]:
        return [f"cuda:{i}" for i in range(self._count)]

    def device_of(self, array: Any) -> Device:
        return Device(f"cuda:{array.device.id}")

    def on(self, device: Device) -> AbstractContextManager[Any]:
        if device.index >= self._count:
            raise DeviceError(f"there is no {device}: this machine has {', '.join(self.devices())}")
        return self.cupy.cuda.Device(device.index)

    def from_numpy(self, array: np.ndarray, device: Device) -> Any:
        with self.on(device):
            return self.cupy.asarray(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        return self.cupy.asnumpy(array)

    def transfer(self, array: Any, device: Device) -> Any:
        with self.on(device):
            return self.cupy.array(array)

    def reporting(self) -> AbstractContextManager[Any]:
        from cupyx import errstate

        return errstate(linalg="raise")  # at the cost of waiting for the GPU; else what failed looks like a result

    def implement(self, function: Callable[..., Any]) -> Callable[..., Any]:
        array_type = self.array_type

        def on_their_device(*arrays: Any, **params: Any) -> Any:
            ours: list[Any] = []
            for array in arrays:
                if isinstance(array, array_type):
                    ours.append(array)
                elif isinstance(array, np.ndarray) and array.ndim:
                    raise DeviceError(
                        f"a NumPy array of shape {array.shape} met arrays on {self.device_of(ours[0])}; "
                        "move it there with gpunet.asarray(array, device=...)"
                        if ours
                        else "a NumPy array met arrays on a GPU; move it there with gpunet.asarray(array, device=...)"
                    )
            if not self.same_device(ours):
                names = ", ".join(str(self.device_of(a)) for a in ours)
                raise DeviceError(f"arrays are on different devices: {names}; move them to one with x.to(device)")
            if self._count == 1 or not ours:
                return function(*arrays, **params)
            with ours[0].device:  # a cupy.cuda.Device
                return function(*arrays, **params)

        return on_their_device

    def same_device(self, arrays: Sequence[Any]) -> bool:
        return self._count == 1 or len({a.device.id for a in arrays}) <= 1
