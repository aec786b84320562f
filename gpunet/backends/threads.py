"""Threads on the CPU: BLAS on one thread, and large products cut into parts for a pool of Python threads.

NumPy releases the GIL while BLAS computes, so Python threads do as well as BLAS's own. On a machine whose cores are
busy they do far better: BLAS's threads spin while they wait for one another, and a product of a fraction of a
millisecond can take several. So at the first large product gpunet sets BLAS to one thread, for the whole process,
and divides the work itself. Where no BLAS can be told so (Accelerate on macOS), it keeps its own threads and there
is no pool.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np

from gpunet.backends.native import library

# Products of fewer multiplications than this are quicker on one thread than distributed.
_LARGE = 8_000_000
# And where the threads need no Python.
_MIDDLE = 2_000_000
_BLOCK = 16  # as in kernels/cpu/matmul.cpp
# Elementwise work on fewer numbers than this, likewise; than a third of it, where the threads need no Python.
_SPREAD = 200_000
# Products of fewer multiplications than this are none of anyone's threads: from about here on, OpenBLAS uses several.
SMALL = 200_000

_lock = threading.Lock()
_pool: Pool | None = None
_crew = 0  # how many threads kernels/cpu/crew.cpp has
_limit: Any = None  # what keeps BLAS on one thread, once it is


class _InWorker(threading.local):
    value = False


_in_worker = _InWorker()


class Pool:
    """`size` threads, of which the caller is one. Parts of a run are done by whichever thread is free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        for _ in range(size - 1):
            threading.Thread(target=self._work, daemon=True, name="gpunet").start()

    def _work(self) -> None:
        _in_worker.value = True
        while (task := self._tasks.get()) is not None:
            part, done = task
            try:
                part()
                done.put(None)
            except BaseException as error:
                done.put(error)
            del task, part, done  # arrays that they hold would live until the next task

    def run(self, parts: Sequence[Callable[[], Any]]) -> None:
        """Call every one of `parts`, and return when all are done. What one raises is raised here."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        with self._closing:
            # A part that has parts itself must not wait for a free thread, nor anyone for threads that have ended:
            # those of a pool that another thread closed, or all of them when the interpreter exits.
            alone = self.size == 1 or _in_worker.value or self._closed or sys.is_finalizing()
            for part in () if alone else parts[1:]:
                self._tasks.put((part, done))
        if alone:
            for part in parts:
                part()
            return
        try:
            _in_worker.value = True
            parts[0]()
        finally:
            _in_worker.value = False
            errors = [done.get() for _ in parts[1:]]  # the others write to memory that the caller may free
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads, once they have done what was begun. Runs that come later are done by their callers."""
        with self._closing:
            self._closed = True
            for _ in range(self.size - 1):
                self._tasks.put(None)


def pool() -> Pool:
    """The pool; its first use sets BLAS to one thread."""
    global _pool, _limit
    if _pool is None:
        with _lock:
            if _pool is None:
                from threadpoolctl import threadpool_info, threadpool_limits

                # BLAS's own number of threads honours OMP_NUM_THREADS and the like
                blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
                if blas:
                    _limit = threadpool_limits(1, user_api="blas")
                _pool = Pool(max(blas, default=1))
    return _pool


def set_num_threads(n: int) -> None:
    """Let ops on the CPU use up to `n` threads; by default as many as BLAS would use.

    BLAS itself is set to one thread, which also applies to what else in the process calls it.

    Raises:
        ValueError: n is no positive int.
    """
    global _pool
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: expected a positive int, got {n!r}")
    old = pool()
    with _lock:
        _pool = Pool(n)
    old.close()


def get_num_threads() -> int:
    """How many threads ops on the CPU may use."""
    return pool().size


def _after_fork() -> None:
    """A forked child has none of the threads; and its parent has the cores, so it works on one."""
    global _pool, _lock, _crew
    _lock = threading.Lock()
    _in_worker.value = False
    _crew = 0
    if _pool is not None:
        _pool = Pool(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, **options: Any) -> Any:
    """`numpy.matmul`, on several threads where that is quicker.

    The parts are blocks of rows (or of columns, where there are more of them), or of the first axis of a batch, whose
    bounds depend on nothing but the shapes and the number of threads. So the result is the same at every run.
    """
    if a.size * b.shape[-1] < SMALL or options:
        if out is None and a.ndim == 2 and b.ndim == 2 and not options:
            return a.dot(b)  # the same, begun in half the time
        return np.matmul(a, b, out=out, **options)
    threads = pool()
    work = a.size * b.shape[-1]
    if threads.size == 1 or work < _MIDDLE or a.ndim < 2 or b.ndim < 2 or a.dtype != b.dtype:
        return np.matmul(a, b, out=out)
    if a.ndim == b.ndim == 2:
        m, n = a.shape[0], b.shape[1]
        if a.shape[1] != b.shape[0]:
            return np.matmul(a, b, out=out)  # which says what is wrong
        y = np.empty((m, n), a.dtype) if out is None else out
        if _is_plain(a) and _is_plain(b) and y.flags.c_contiguous and not _in_worker.value and _has_sgemm():
            blocks = -(-max(m, n) // _BLOCK)
            _enlist(threads.size - 1)
            product = library("matmul").product.divided  # type: ignore[attr-defined]
            product(a, b, y, m < n, blocks, min(blocks, threads.size), work >= 2 * _MIDDLE)
            return y
        if work < _LARGE:
            return np.matmul(a, b, out=y)
        if m >= n:
            parts = [lambda s=s: np.matmul(a[s], b, out=y[s]) for s in _cut(m, threads.size)]
        else:
            parts = [lambda s=s: np.matmul(a, b[:, s], out=y[:, s]) for s in _cut(n, threads.size)]
    elif work < _LARGE:
        return np.matmul(a, b, out=out)
    elif a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2] and a.shape[0] > 1:
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype) if out is None else out
        parts = [lambda s=s: np.matmul(a[s], b[s], out=y[s]) for s in _cut(a.shape[0], threads.size)]
    else:
        return np.matmul(a, b, out=out)
    threads.run(parts)
    return y


def _is_plain(a: np.ndarray) -> bool:
    """Whether BLAS can read the matrix as it is: float32, adjacent along one axis."""
    (m, n), (row, column) = a.shape, a.strides
    if a.dtype != np.float32 or m < 2 or n < 2:
        return False
    return (column == 4 and row >= 4 * n and not row % 4) or (row == 4 and column >= 4 * m and not column % 4)


@cache
def _has_sgemm() -> bool:
    """Whether kernels/cpu/matmul.cpp has BLAS's sgemm to call: that of the OpenBLAS which NumPy brings."""
    from threadpoolctl import threadpool_info

    native = library("matmul")
    paths = [info["filepath"] for info in threadpool_info() if info["internal_api"] == "openblas"]
    if len(paths) != 1 or not native.usable():
        return False
    blas = ctypes.CDLL(paths[0])
    for name, wide in (("scipy_cblas_sgemm64_", True), ("cblas_sgemm64_", True), ("cblas_sgemm", False)):
        if hasattr(blas, name):
            native.set_sgemm(ctypes.cast(getattr(blas, name), ctypes.c_void_p).value, wide)
            return True
    return False


def spread(work: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> list[Any]:
    """`work` called with consecutive shares of `items`, one for each thread; what it returned, in order.

    Which thread does which share does not matter to the results, so these are the same at every run.
    """
    threads = pool() if len(items) > 1 and not _in_worker.value else None
    if threads is None or threads.size == 1:
        return [work(items)]
    shares = [items[s] for s in _cut(len(items), threads.size)]
    results: list[Any] = [None] * len(shares)

    def part(i: int) -> None:
        results[i] = work(shares[i])

    threads.run([partial(part, i) for i in range(len(shares))])
    return results


def split(n: int, work: Callable[[int, int], Any], elements: int) -> None:
    """Call `work(start, stop)` for ranges that together cover range(n), on several threads if that is quicker.

    Args:
        n: how many units of work there are.
        work: must not depend on where the ranges are cut, for the results to be the same with any number of threads.
            A `partial` of a kernel for the CPU is divided among threads that need no Python, which are sooner awake.
        elements: about how many numbers are read and written altogether.
    """
    threads = None if 3 * elements < _SPREAD or n < 2 or _in_worker.value else pool()
    if threads is None or threads.size == 1:
        work(0, n)
        return
    divided = getattr(getattr(work, "func", None), "divided", None)
    if divided is not None:
        _enlist(threads.size - 1)
        divided(*work.args, n, min(n, 2 * threads.size), elements >= _SPREAD)  # type: ignore[attr-defined]
    elif elements < _SPREAD:
        work(0, n)
    else:
        threads.run([partial(work, s.start, s.stop) for s in _cut(n, threads.size)])


def parts(elements: int) -> int:
    """How many parts `split` would let threads do of work on so many numbers."""
    return 1 if elements < _SPREAD or _in_worker.value else pool().size


def _enlist(members: int) -> None:
    """Make kernels/cpu/crew.cpp's crew one of so many threads, if it is not."""
    global _crew
    if _crew != members:
        with _lock:
            library("crew").crew_resize(members)
            _crew = members


def _cut(n: int, parts: int) -> list[slice]:
    """Slices of nearly equal length that cover range(n)."""
    parts = min(parts, n)
    bounds = [n * i // parts for i in range(parts + 1)]
    return [slice(i, j) for i, j in pairwise(bounds)]
