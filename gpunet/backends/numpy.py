"""The CPU: NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunet.backends.base import Backend
from gpunet.backends.device import Device

_CPU = Device("cpu")


class NumpyBackend(Backend):
    name = "cpu"
    xp = np
    array_type = np.ndarray

    def owns(self, kind: type) -> bool:
        return issubclass(kind, (np.ndarray, np.generic))

    def device_of(self, array: Any) -> Device:
        return _CPU

    def from_numpy(self, array: np.ndarray, device: Device) -> np.ndarray:
        return array

    def to_numpy(self, array: Any) -> np.ndarray:
        return array
