"""What the programs for sanitizers share: the device, arrays on it, and the orders that kernels run in.

On the emulated device the compilers' sanitizers watch, see tests/backends/sanitizers.py; on a GPU, with --device cuda,
NVIDIA's compute-sanitizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.backends import Backend, Device, get_backend
from gpunet.backends.emulated import emulation

_parser = argparse.ArgumentParser()
_parser.add_argument("--device", default="emulated")


class Watched:
    """A device whose kernels are watched.

    Attributes:
        device, backend: where they run.
        log: on the emulated device, the kernels that ran, and their grids.
    """

    def __init__(self) -> None:
        self.device = Device(_parser.parse_args().device)
        self.backend: Backend = get_backend(self.device)
        self.is_emulated = self.device.type == "emulated"
        if not self.is_emulated:  # each array in memory of its own, beyond which reading is seen
            self.backend.cupy.cuda.set_allocator(None)  # type: ignore[attr-defined]
        self.log: list[tuple[str, tuple[int, int, int]]] = []

    def on(self, array: Any) -> Any:
        """A raw array of the device."""
        return self.backend.from_numpy(np.asarray(array), self.device)

    def run(self, *work: Callable[[], Any], late: bool = False) -> None:
        """Call each of `work`, in kernels alone; on the emulated device, in two orders of blocks and threads.

        late: let asynchronous copies come as late as they may, in the second.
        """
        for order in ("forward", "random") if self.is_emulated else ("",):
            for call in work:
                with gn.kernels("force"), self.backend.on(self.device):
                    if order:
                        with emulation(order=order, late=late and order == "random", processors=2, log=self.log):
                            call()
                    else:
                        call()

    def end(self) -> None:
        """Wait for what was launched, and say how much that was."""
        if self.is_emulated:
            print(f"{len({expression for expression, _grid in self.log})} kernels ran")
        else:
            self.backend.cupy.cuda.Device().synchronize()  # type: ignore[attr-defined]
            print("all kernels ran")
