"""Backend: the small interface between gpunet and an array library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from gpunet.backends.device import Device

if TYPE_CHECKING:
    import numpy as np

_NOTHING = nullcontext()


class Backend:
    """An array module plus, where the device runs kernels, a launcher.

    Attributes:
        name: the device type, as in `Device(name)`.
        xp: the array module; speaks the Array API's names.
        array_type: the class of its arrays.
        launcher: called with a kernel's name, returns what a kernel candidate of an op calls to launch it; None where
            the device has no kernels.
        platform: which of an op's kernel candidates are this backend's: "cuda" or "cpu".
        workspace: bytes that an op's scratch array may well take; on a CPU, what its cache holds.
    """

    name: str
    xp: Any
    array_type: type
    launcher: Callable[[str], Any] | None = None
    platform: str = "cuda"
    workspace: int = 2 << 20

    def devices(self) -> list[str]:
        """Names of this backend's devices on this machine."""
        return [self.name]

    def device_of(self, array: Any) -> Device:
        """The device that holds `array`."""
        raise NotImplementedError

    def on(self, device: Device) -> AbstractContextManager[Any]:
        """A context in which new arrays are created on `device`."""
        return _NOTHING

    def owns(self, kind: type) -> bool:
        """Whether objects of class `kind` are this backend's arrays."""
        return issubclass(kind, self.array_type)

    def from_numpy(self, array: np.ndarray, device: Device) -> Any:
        """`array`, copied from host memory to `device`; shared where `device` is host memory."""
        raise NotImplementedError

    def to_numpy(self, array: Any) -> np.ndarray:
        """`array` in host memory; shared where it is there already."""
        raise NotImplementedError

    def transfer(self, array: Any, device: Device) -> Any:
        """`array` copied from one device of this backend to another."""
        return array

    def reporting(self) -> AbstractContextManager[Any]:
        """A context in which factorizations raise `numpy.linalg.LinAlgError` where they fail."""
        return _NOTHING

    def implement(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of raw arrays, guarded by whatever checks and contexts this device needs."""
        return function

    def spread(self, work: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> list[Any]:
        """`work` called with consecutive shares of `items`, at the same time if that is quicker; what it returned."""
        return [work(items)]

    def array_from(self, value: Any) -> Any:
        """A result of an op (an array, or an array library's scalar) as an array of this backend."""
        return value if isinstance(value, self.array_type) else self.xp.asarray(value)

    def scatter_add(self, target: Any, key: Any, values: Any) -> None:
        """`target[key] += values` where equal indices in `key` add up."""
        self.xp.add.at(target, key, values)

    def same_device(self, arrays: Sequence[Any]) -> bool:
        """Whether all `arrays` of this backend are on one device."""
        return True
