"""The device that is measured: its arrays and launcher, a clock, random operands, and PyTorch beside it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

import gpunet as gn
from gpunet.backends import Device, get_backend

_BLOCK = 4_194_301  # random numbers made at a time; a prime, so that rows of matrices do not repeat
_HOLD = r"""
extern "C" __global__ void hold(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}
"""
_LONGEST_HOLD = 200_000_000  # ns


class Timing(NamedTuple):
    """Seconds per call: the median of several rounds, the least and the most."""

    median: float
    least: float
    most: float

    @property
    def spread(self) -> float:
        """What the rounds differ by, as a share of the median."""
        return (self.most - self.least) / self.median


class EventClock:
    """Times work on the GPU by events around a batch of launches.

    A kernel that only waits holds the stream until the whole batch is queued. So what is measured is the GPU's time,
    not the host's, which a stage of its own measures.
    """

    def __init__(self, cupy: Any) -> None:
        self._hold = cupy.RawKernel(_HOLD, "hold")
        self._start, self._stop = cupy.cuda.Event(), cupy.cuda.Event()
        self._elapsed = cupy.cuda.get_elapsed_time  # milliseconds

    def seconds(self, call: Callable[[], Any], count: int) -> float:
        """Seconds per call, of `count` calls in a row."""
        hold = min(_LONGEST_HOLD, 50_000 * count + 100_000)
        while True:
            self._hold((1,), (1,), (np.uint64(hold),))
            self._start.record()
            for _ in range(count):
                call()
            starved = self._start.done  # the GPU began before all was queued
            self._stop.record()
            self._stop.synchronize()
            if not starved or hold >= _LONGEST_HOLD:
                return self._elapsed(self._start, self._stop) / 1e3 / count
            hold = min(_LONGEST_HOLD, 3 * hold)


class HostClock:
    """Times work on a device whose calls return when they are done."""

    def seconds(self, call: Callable[[], Any], count: int) -> float:
        """Seconds per call, of `count` calls in a row."""
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count


class Machine:
    """A device, and how to measure it.

    Attributes:
        is_real: whether it is a GPU.
        xp: the array library of the device.
        launcher: of gpunet's kernels.
        clock: an EventClock or a HostClock.
        cache_bytes: size of the L2 cache.
        bfloat16: the dtype, or None where ml_dtypes is not installed.
    """

    def __init__(self, device: str, use_torch: bool = True) -> None:
        self.device = Device(device)
        self.is_real = device == "cuda"
        self.backend = get_backend(self.device)
        self.xp: Any = self.backend.cupy if self.is_real else self.backend.xp  # type: ignore[attr-defined]
        assert self.backend.launcher is not None
        self.launcher = self.backend.launcher("matmul")
        self._use_torch = use_torch
        self.clock: Any = EventClock(self.xp) if self.is_real else HostClock()
        self.cache_bytes = self.properties()["l2CacheSize"] if self.is_real else 1 << 12
        try:
            import ml_dtypes

            self.bfloat16: Any = np.dtype(ml_dtypes.bfloat16)
        except ImportError:
            self.bfloat16 = None
        self._pools: dict[tuple[str, str], Any] = {}

    @cached_property
    def torch(self) -> Any:
        """PyTorch with the same kind of device, or None."""
        if not self._use_torch:
            return None
        try:
            import torch
        except ImportError:
            return None
        if self.is_real and not torch.cuda.is_available():
            return None
        torch.set_float32_matmul_precision(gn.get_float32_precision())
        torch.backends.cudnn.benchmark = True  # its quickest algorithms
        return torch

    def properties(self) -> dict[str, Any]:
        """What the CUDA runtime says of the GPU."""
        return self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)

    def synchronize(self) -> None:
        """Wait for all that was launched.

        Raises:
            Exception: CuPy's, if any of it failed.
        """
        if self.is_real:
            self.xp.cuda.runtime.deviceSynchronize()

    def dtype(self, name: str) -> Any:
        """The dtype of that name."""
        return self.bfloat16 if name == "bfloat16" else np.dtype(name)

    def normal(self, dtype: str, size: int) -> Any:
        """`size` random numbers of the standard normal distribution: a window of memory that grows as needed."""
        return self._pool("normal", dtype, size, self._fill_normal)

    def poisoned(self, dtype: str, size: int) -> Any:
        """Memory for `size` numbers, all of its bits set: NaN."""

        def poison(array: Any) -> None:
            array.view("uint8")[...] = 0xFF

        array = self._pool("poisoned", dtype, size, poison)
        poison(array)
        return array

    def _pool(self, kind: str, dtype: str, size: int, fill: Callable[[Any], None]) -> Any:
        pool = self._pools.get((kind, dtype))
        if pool is None or pool.size < size:
            self._pools = {key: value for key, value in self._pools.items() if key != (kind, dtype)}
            pool = self.launcher.empty((size,), self.dtype(dtype))
            fill(pool)
            self._pools[kind, dtype] = pool
        return pool[:size]

    def _fill_normal(self, array: Any) -> None:
        rng = np.random.default_rng(0)
        host = rng.standard_normal(min(array.size, _BLOCK), np.float32).astype(array.dtype)
        bits = f"uint{8 * array.dtype.itemsize}"
        block = self.backend.from_numpy(host.view(bits), self.device)
        for start in range(0, array.size, _BLOCK):
            part = array[start : start + _BLOCK].view(bits)
            part[...] = block[: part.size]

    def as_torch(self, array: Any) -> Any:
        """A PyTorch tensor that shares an array's memory."""
        kind = array.dtype.name
        if kind == "bfloat16":
            array = array.view("int16")
        tensor = self.torch.from_dlpack(array) if self.is_real else self.torch.from_numpy(np.asarray(array))
        return tensor.view(self.torch.bfloat16) if kind == "bfloat16" else tensor

    def sample(self, array: Any, rows: list[int], columns: list[int]) -> np.ndarray:
        """Elements of a matrix of the device, or of a PyTorch tensor, in host memory, in float64."""
        if type(array).__module__ == "torch":
            return array[rows][:, columns].double().cpu().numpy()
        bits = array.view(f"uint{8 * array.dtype.itemsize}")  # as not every array library indexes every dtype
        return np.asarray(self.backend.to_numpy(bits[rows][:, columns])).view(array.dtype).astype(np.float64)

    @contextmanager
    def precision(self, compute: str) -> Iterator[None]:
        """A context in which products and convolutions of float32 are IEEE's ("float32") or rounded to TF32 ("tf32") in
        all libraries."""
        name = "high" if compute == "tf32" else "highest"
        gn.set_float32_precision(name)
        if "torch" in sys.modules:
            torch = sys.modules["torch"]
            torch.set_float32_matmul_precision(name)
            torch.backends.cudnn.allow_tf32 = compute == "tf32"  # which it is without asking
        if self.is_real:
            from cupy._core import _routines_linalg as linalg

            kind = linalg.COMPUTE_TYPE_TF32 if compute == "tf32" else linalg.COMPUTE_TYPE_DEFAULT
            linalg.set_compute_type(np.dtype(np.float32), kind)
        try:
            yield
        finally:
            if compute == "tf32":
                with self.precision("float32"):
                    pass

    def time(
        self,
        calls: Mapping[str, Sequence[Callable[[], Any]]],
        *,
        rounds: int,
        seconds: float,
        near: float = float("inf"),
    ) -> dict[str, Timing]:
        """Time several ways of doing the same, round about, so that all meet the same clocks and temperatures.

        Args:
            calls: for each way, calls that do it, each on operands of its own; they take turns.
            rounds: how many times each way is timed.
            seconds: what each time should take; a batch has up to 100 calls.
            near: ways that need more than `near` times the quickest's time are timed once only.
        """
        turns = {name: cycle(those) for name, those in calls.items()}
        samples: dict[str, list[float]] = {}
        counts: dict[str, int] = {}
        for name, turn in turns.items():
            next(turn)()  # compiles it, loads it, takes its memory
            self.synchronize()
            once = self.clock.seconds(lambda turn=turn: next(turn)(), 2)
            counts[name] = max(1, min(100, int(seconds / max(once, 1e-9))))
            samples[name] = [once]
        limit = near * min(times[0] for times in samples.values())
        chosen = [name for name, times in samples.items() if times[0] <= limit]
        for name in chosen:
            samples[name] = []
        for _ in range(rounds):
            for name in chosen:
                turn = turns[name]
                samples[name].append(self.clock.seconds(lambda turn=turn: next(turn)(), counts[name]))
        return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in samples.items()}

    def host_seconds(self, call: Callable[[], Any], *, rounds: int, count: int = 200) -> Timing:
        """The host's seconds for a call that only queues work: that of `count` calls in a row, which fit the queue."""
        samples = []
        for _ in range(rounds + 1):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(count):
                call()
            samples.append((time.perf_counter() - start) / count)
        self.synchronize()
        samples = samples[1:]  # the first one compiles
        return Timing(statistics.median(samples), min(samples), max(samples))
