"""The configurations that are compared, each in a process of its own, and how these take turns."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.on_cpu.libraries import Options

ROOT = Path(__file__).resolve().parents[2]
GPUNET, NUMPY = "gpunet", "gpunet, NumPy alone"
# What makes NumPy's BLAS compute as for another processor than the one that is there.
OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NPY_DISABLE_CPU_FEATURES")
# glibc gives large blocks back to the system and fetches them again, page by page, unless it is told not to. gpunet
# tells it; PyTorch leaves that to whoever starts the process, and is up to twice as fast where somebody does.
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Configuration:
    """A library and how it is used.

    Attributes:
        name: in tables.
        options: for `Options`, without the number of threads.
        environment: variables of the process.
        for_images: whether it differs from others only where there are convolutions.
        for_training: whether it differs from others only where there is an optimizer.
        tuned: whether the allocator is set up for it, from outside.
    """

    name: str
    options: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    for_images: bool = False
    for_training: bool = False
    tuned: bool = False

    @property
    def is_torch(self) -> bool:
        return self.options["side"] == "torch"


OURS = (
    Configuration(GPUNET, {"side": "gpunet"}),
    Configuration(NUMPY, {"side": "gpunet"}, {"GPUNET_CPU_KERNELS": "0"}),
)


def torch_configurations(compiled: bool) -> list[Configuration]:
    """PyTorch's: the formats of images, each with all implementations of the optimizer, and once with the allocator set
    up for it; none where PyTorch is missing.
    """
    if importlib.util.find_spec("torch") is None:
        return []
    found = []
    for channels_last in (False, True):
        for variant in ("", "foreach", "fused", *["compile"] * compiled):
            words = ["torch", *["channels_last"] * channels_last, *[variant] * bool(variant)]
            options: dict[str, Any] = {"side": "torch", "channels_last": channels_last}
            options |= {"compile": True} if variant == "compile" else {"optimizer": variant}
            found.append(
                Configuration(
                    " ".join(words), options, for_images=channels_last, for_training=variant in ("foreach", "fused")
                )
            )
        found.append(
            Configuration(
                f"{'torch channels_last' if channels_last else 'torch'} fused, tuned",
                {"side": "torch", "channels_last": channels_last, "optimizer": "fused"},
                KEEPS_MEMORY,
                for_images=channels_last,
                tuned=True,
            )
        )
    return found


def environment_of(configuration: Configuration, threads: int) -> dict[str, str]:
    """The variables of a worker's process."""
    kept = {key: value for key, value in os.environ.items() if key not in (*OVERRIDES, *KEEPS_MEMORY)}
    return kept | configuration.environment | dict.fromkeys(THREADS, str(threads))


class WorkerError(RuntimeError):
    """A worker could not do what it was asked; the message says why, in its words."""


class Worker:
    """A process of `worker.py`, seen from outside.

    Args:
        configuration: its library.
        threads: how many it may use.
        folder: of weights.
        cores: those it may run on; None: all.
    """

    def __init__(self, configuration: Configuration, threads: int, folder: Path, cores: Any = None) -> None:
        self.configuration = configuration
        options = asdict(Options(threads=threads, **configuration.options))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.on_cpu.worker", json.dumps(options), str(folder)],
            cwd=ROOT, env=environment_of(configuration, threads),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)  # which threads that it starts later take over

    @property
    def name(self) -> str:
        return self.configuration.name

    def wait(self) -> None:
        """Return when it is ready for requests."""
        self._answer()

    def ask(self, do: str, **arguments: Any) -> Any:
        """What it answers.

        Raises:
            WorkerError: it failed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as reading its answer will show
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise WorkerError(f"{self.name}: its process ended with {self._process.wait()}\n{self._errors.read()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer["value"]


@contextmanager
def working(
    configurations: Sequence[Configuration], threads: int, folder: Path, cores: Any = None
) -> Iterator[list[Worker]]:
    """Workers for all configurations, ready; ended when the block is left."""
    workers = [Worker(configuration, threads, folder, cores) for configuration in configurations]
    try:
        for worker in workers:
            worker.wait()
        yield workers
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    finally:
        for worker in workers:
            worker.close()


class Budget:
    """What a part of a stage may take.

    Args:
        rounds: the most.
        slice_seconds: how long each worker is timed in a round.
        until: when the stage should end, on the monotonic clock.
        share: of the time left until then that this part may take.
    """

    FEWEST = 3  # rounds that are done however late it is, unless fewer were asked for

    def __init__(self, rounds: int, slice_seconds: float, until: float, share: float) -> None:
        self.rounds = rounds
        self.slice_seconds = slice_seconds
        now = time.monotonic()
        self._until = now + share * max(until - now, 0.0)

    def each_round(self) -> Iterator[int]:
        for i in range(self.rounds):
            if i >= self.FEWEST and time.monotonic() > self._until:
                return
            yield i


def take_turns(workers: Sequence[Worker], task: dict[str, Any], budget: Budget) -> dict[str, dict[str, Any]]:
    """Time a task with every worker in every round, in an order that changes from round to round.

    Returns:
        For each worker's name, what `summary` says.
    """
    shuffled = random.Random(0)
    rounds: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for _ in budget.each_round():
        for worker in shuffled.sample(list(workers), len(workers)):
            rounds[worker.name].append(worker.ask("time", task=task, seconds=budget.slice_seconds))
    return {name: summary(slices) for name, slices in rounds.items()}


def summary(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all rounds of a worker: the median of their medians, and these; the fastest call; how many cores other
    processes kept busy meanwhile, on average.
    """
    others = [s["others"] for s in slices if s["others"] is not None]
    return {
        "median": statistics.median(s["median"] for s in slices),
        "fastest": min(s["fastest"] for s in slices),
        "medians": [s["median"] for s in slices],
        "others": statistics.mean(others) if others else None,
    }


def best_torch(found: dict[str, dict[str, Any]], tuned: bool = False) -> str | None:
    """The name of PyTorch's configuration with the smallest median; None where there is none.

    Args:
        tuned: whether those for which the allocator is set up count.
    """
    names = [name for name in found if name.startswith("torch") and (tuned or not name.endswith("tuned"))]
    return min(names, key=lambda name: found[name]["median"], default=None)
