"""Device: where an array's memory is."""

from __future__ import annotations

import re
from typing import Any

from gpunet.errors import DeviceError


class Device:
    """A place for arrays: `Device("cpu")`, `Device("cuda")` (the first GPU), `Device("cuda:1")`.

    Devices compare equal to each other and to their names: `x.device == "cuda"`. Creating one does not check that the
    machine has it; placing an array there does.

    Raises:
        DeviceError: the name is not of the form TYPE or TYPE:NUMBER.
    """

    __slots__ = ("index", "type")

    def __init__(self, name: str | Device) -> None:
        match = re.fullmatch(r"([a-z_]+)(?::(\d+))?", str(name))
        if match is None:
            raise DeviceError(f'expected a device such as "cpu", "cuda" or "cuda:1", got {name!r}')
        self.type = match[1]
        self.index = int(match[2] or 0)
        if self.type == "cpu" and self.index:
            raise DeviceError(f'there is one "cpu" device, got {name!r}')

    def __str__(self) -> str:
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, str):
            try:
                other = Device(other)
            except DeviceError:
                return False
        return isinstance(other, Device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))
