"""Launches kernels on the emulated device, and what can be chosen about that."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpunet.backends.emulated import arrays, compiler
from gpunet.backends.kernel import ARCHITECTURES, Launcher, Variant
from gpunet.errors import KernelError

_ORDERS = ("forward", "reverse", "random")
# Bytes of shared memory that a block may have (CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability").
_SHARED = {"sm_70": 96, "sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}


@dataclass(frozen=True)
class _Settings:
    architecture: str = "sm_90a"
    order: str = "forward"
    seed: int = 0
    late: bool = False
    processors: int = 4
    log: list[tuple[str, tuple[int, int, int]]] | None = None
    folder: Path | None = None


_settings = _Settings()
_lock = threading.Lock()  # one grid at a time


@contextmanager
def emulation(
    architecture: str = "sm_90a",
    order: str = "forward",
    seed: int = 0,
    late: bool = False,
    processors: int = 4,
    log: list[tuple[str, tuple[int, int, int]]] | None = None,
    host: list[str] | None = None,
    folder: Path | None = None,
) -> Iterator[None]:
    """Choose how the emulated device behaves within a `with` block, for all threads of the process.

    Args:
        architecture: the one that it claims to be, such as "sm_80"; chooses the kernels that ops launch.
        order: in which a block's threads take turns, and the blocks of a grid run: "forward", "reverse" or "random". A
            kernel without races gives the same bits in each.
        seed: of the random order.
        late: asynchronous copies and matrix products take effect when they are waited for, the last moment that they
            may, instead of at once.
        processors: how many multiprocessors it claims to have.
        log: a list that receives (the kernel's expression, the grid) of each launch.
        host: a list that receives the names of what NumPy computes on the device's arrays, in the place of CuPy's own
            kernels.
        folder: of .cu files to launch from, instead of kernels/. They may include headers that are there.

    Raises:
        ValueError: an unknown architecture or order.
    """
    global _settings
    if architecture not in ARCHITECTURES:
        raise ValueError(f"emulation: unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    if order not in _ORDERS:
        raise ValueError(f"emulation: expected an order of {', '.join(map(repr, _ORDERS))}, got {order!r}")
    before, _settings = _settings, _Settings(architecture, order, seed, late, processors, log, folder)
    arrays.notes.append(host)
    try:
        yield
    finally:
        _settings = before
        arrays.notes.pop()


class EmulatedLauncher(Launcher):
    """Launches kernels on the CPU. A launch returns when the grid is done."""

    @property
    def architecture(self) -> str:
        return _settings.architecture

    @property
    def processors(self) -> int:
        return _settings.processors

    def launch(self, variant: Variant, grid: tuple[int, int, int], *parameters: bytes) -> None:
        now = _settings
        _check(variant, grid, now.architecture)
        function = compiler.entry(variant, now.architecture, now.folder)
        options = struct.pack(
            "7IiQi4x", *grid, variant.threads, 1, 1, variant.shared, _ORDERS.index(now.order), now.seed, now.late
        )
        values = (ctypes.c_char_p * len(parameters))(*parameters)
        sizes = (ctypes.c_size_t * len(parameters))(*map(len, parameters))
        error = ctypes.create_string_buffer(2000)
        with _lock:
            failed = function(options, values, sizes, len(parameters), error, len(error))
        if now.log is not None:
            now.log.append((variant.expression, grid))
        if failed:
            raise KernelError(f"{variant.expression}: {error.value.decode()}")

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return arrays.empty(shape, dtype)

    def pointer(self, array: Any) -> int:
        return array.ctypes.data

    def tensor_map(
        self, pointer: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
    ) -> bytes:
        if pointer % 16 or any(stride % 16 for stride in strides):
            raise KernelError(
                f"a tensor map needs addresses and strides that are multiples of 16: {pointer:#x}, {strides}"
            )
        if len(box) != len(shape) or len(strides) != len(shape) - 1 or box[0] * itemsize != 128:
            raise KernelError(f"a tensor map of shape {shape} and strides {strides} with a box of {box}")
        rank = len(shape)
        unused = (0,) * (5 - rank)
        return struct.pack(
            "P2I5Q5Q5I12x", pointer, itemsize, rank, *shape, *unused, itemsize, *strides, *unused, *box, *unused
        )


def _check(variant: Variant, grid: tuple[int, int, int], architecture: str) -> None:
    """What a GPU refuses to launch.

    Raises:
        KernelError: it would refuse this.
    """
    if not variant.runs_on(architecture):
        raise KernelError(f"{variant.expression} needs {variant.requires}; the emulated device is {architecture}")
    if not 0 < variant.threads <= 1024:
        raise KernelError(f"{variant.expression}: {variant.threads} threads in a block; a GPU takes 1 to 1024")
    if not (0 < grid[0] < 2**31 and 0 < grid[1] < 2**16 and 0 < grid[2] < 2**16):
        raise KernelError(f"{variant.expression}: a grid of {grid} blocks; a GPU takes 1 to 2147483647, 65535, 65535")
    most = _SHARED[architecture.rstrip("a")] << 10
    if variant.shared > most:
        raise KernelError(
            f"{variant.expression}: {variant.shared} bytes of dynamic shared memory; a block of {architecture} "
            f"has up to {most}"
        )
