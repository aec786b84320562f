"""What the stages of a run have in common: options, configurations, weights that all start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.on_cpu.workers import OURS, Budget, Configuration, Worker, working


@dataclass
class Session:
    """A run of benchmarks/cpu.py.

    Attributes:
        workloads: keys of `WORKLOADS`, of those that both sides have.
        threads: numbers of threads.
        torch: PyTorch's configurations; none without PyTorch.
        folder: of weights.
        rounds, slice_seconds: how often and how long each worker is timed.
        until: when the stage at work should end, on the monotonic clock.
    """

    workloads: list[str]
    threads: list[int]
    torch: Sequence[Configuration]
    folder: Path
    rounds: int
    slice_seconds: float
    until: float = float("inf")

    def budget(self, share: float = 1.0) -> Budget:
        """For a part of what the stage has to do, the first of those left, which may take a share of the time left."""
        return Budget(self.rounds, self.slice_seconds, self.until, share)

    def configurations(self, images: bool = True, training: bool = True, tuned: bool = False) -> list[Configuration]:
        """gpunet's, and PyTorch's as far as they differ where there are images or training.

        Args:
            tuned: whether those are among them for which the allocator is set up.
        """
        chosen = [c for c in self.torch if (images or not c.for_images) and (training or not c.for_training)]
        return [*OURS, *(c for c in chosen if tuned or not c.tuned)]

    @contextmanager
    def working(
        self, configurations: Sequence[Configuration], threads: int, cores: Any = None
    ) -> Iterator[list[Worker]]:
        with working(configurations, threads, self.folder, cores) as workers:
            yield workers
