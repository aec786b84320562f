"""What a device that runs kernels offers to the ops: `Variant` says what to launch, `Launcher` launches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")


@dataclass(frozen=True)
class Variant:
    """One compiled entry point: a kernel template of kernels/FILE.cu with its arguments, and how it is launched.

    Attributes:
        file: stem of the .cu file.
        expression: the template instance, such as "matmul_simt<float, 128, 128>".
        threads: threads in a block.
        shared: bytes of dynamic shared memory in a block.
        requires: the architectures it runs on: "sm_80+" for all from compute capability 8.0 on, or "sm_90a" for that
            one alone.
        registers: the most registers per thread that it may take.
        instructions: patterns of the SASS instructions that its machine code must contain, such as "HMMA".
    """

    file: str
    expression: str
    threads: int
    shared: int = 0
    requires: str = "sm_70+"
    registers: int = 255
    instructions: tuple[str, ...] = ()

    def runs_on(self, architecture: str) -> bool:
        """Whether it can be compiled for `architecture`, such as "sm_90a"."""
        if not self.requires.endswith("+"):
            return architecture == self.requires
        return capability(architecture) >= capability(self.requires[:-1])


def capability(architecture: str) -> int:
    """The compute capability of an architecture, times ten: 90 for "sm_90a"."""
    match = re.fullmatch(r"sm_(\d+)a?", architecture)
    if match is None:
        raise ValueError(f'expected an architecture such as "sm_80" or "sm_90a", got {architecture!r}')
    return int(match[1])


_families: list[Callable[[], Iterable[Variant]]] = []


def register_variants(family: Callable[[], Iterable[Variant]]) -> Callable[[], Iterable[Variant]]:
    """Make known all the variants that a family of ops may ask for, so that each can be compiled and checked ahead of
    time. Usable as a decorator."""
    _families.append(family)
    return family


def all_variants() -> list[Variant]:
    """Every variant that was made known, once each."""
    return list(dict.fromkeys(variant for family in _families for variant in family()))


class Launcher:
    """Compiles, loads and launches kernels on a backend's current device.

    Kernels address arrays by pointers and strides that the caller packs: nothing here looks into the parameters.
    """

    @property
    def architecture(self) -> str:
        """What the current device's kernels are compiled for, such as "sm_90a"."""
        raise NotImplementedError

    @property
    def processors(self) -> int:
        """The number of multiprocessors of the current device."""
        raise NotImplementedError

    def launch(self, variant: Variant, grid: tuple[int, int, int], *parameters: bytes) -> None:
        """Launch a grid of blocks; one `bytes` for each of the kernel's parameters, laid out as C does.

        Raises:
            KernelError: it does not compile, or the device refuses the launch.
        """
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new C-contiguous array on the current device, its values undefined."""
        raise NotImplementedError

    def pointer(self, array: Any) -> int:
        """The address of an array's first element."""
        raise NotImplementedError

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        return False

    def tensor_map(
        self, pointer: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
    ) -> bytes:
        """The 128 bytes that describe an array to the tensor memory accelerator (compute capability 9.0 on).

        Args:
            pointer: address of the first element, a multiple of 16.
            itemsize: bytes of an element: 2, or 4 for floats, which are rounded to TF32 as they are copied.
            shape: lengths of the axes, the axis of adjacent elements first.
            strides: bytes between neighbours along each axis but the first; multiples of 16.
            box: how many elements of each axis are moved at once. The first axis's are 128 bytes, which land in shared
                memory with the 128-byte swizzle; elements outside of the array read as zeros.
        """
        raise NotImplementedError


class Rehearsal(Launcher):
    """Writes down what would be launched, and launches nothing.

    Attributes:
        launches: (variant, grid) of each launch, in order.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.launches: list[tuple[Variant, tuple[int, int, int]]] = []

    @property
    def architecture(self) -> str:
        return self._launcher.architecture

    @property
    def processors(self) -> int:
        return self._launcher.processors

    def launch(self, variant: Variant, grid: tuple[int, int, int], *parameters: bytes) -> None:
        self.launches.append((variant, grid))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._launcher.empty(shape, dtype)

    def pointer(self, array: Any) -> int:
        return self._launcher.pointer(array)

    def capturing(self) -> bool:
        return self._launcher.capturing()

    def tensor_map(
        self, pointer: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
    ) -> bytes:
        return self._launcher.tensor_map(pointer, itemsize, shape, strides, box)
