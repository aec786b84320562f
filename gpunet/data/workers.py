"""Processes that fetch batches ahead of the loop that uses them, and the shared memory that batches travel in.

The parent owns the order: it numbers the tasks, hands each to the least loaded worker, and yields the results by
number. A worker is a plain loop: take a task, fetch, send. Nothing about a result depends on which worker made it.

A batch is pickled with its arrays left out (pickle protocol 5), and the arrays are written into a block of anonymous
shared memory whose file descriptor went to the parent once. The parent's arrays are views of that block, without a
copy; when the last view dies the block is free for another batch. Against sending the bytes through a pipe that takes
0.02 instead of 2.4 ms of the parent's time for a batch of 1.6 MB, and 0.03 instead of 36 ms for 38 MB. The memory has
no name, so a crash leaves nothing behind, and it does not count against a container's small /dev/shm.
"""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_ALIGN = 64  # bytes: a cache line, and what vector instructions want
_PATIENCE = 5.0  # seconds a worker gets to end by itself


class WorkerTraceback(Exception):
    """Where in a worker process an exception came from; the `__cause__` of that exception in the main process."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class WorkerPool:
    """`count` processes that run `function(*task)`.

    Args:
        function: what the workers call.
        count: how many workers.
        prefetch: how many tasks per worker may be under way or waiting to be taken.
        timeout: seconds to wait for the next result, 0 for ever.
        start_method: "fork", "forkserver" or "spawn"; see `default_start_method`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        count: int,
        prefetch: int,
        timeout: float = 0,
        start_method: str | None = None,
    ):
        import multiprocessing

        context = multiprocessing.get_context(start_method or default_start_method())
        self._timeout = timeout or None
        self._capacity = count * prefetch
        self._workers: list[_Worker] = []
        # One call of close() stops the workers, and so does the end of the pool's life.
        self.close = weakref.finalize(self, _stop, self._workers, os.getpid())
        for number in range(count):
            self._workers.append(_Worker(number, context, function))

    def map(self, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """`function(*task)` for each task, in order; a task's exception is raised in its turn."""
        remaining = iter(tasks)
        results: dict[int, Any] = {}
        sent = taken = 0
        while True:
            while sent - taken < self._capacity and (task := next(remaining, None)) is not None:
                min(self._workers, key=lambda worker: len(worker.pending)).send(sent, task)
                sent += 1
            # The result goes out only now: the workers are busy while the caller uses it.
            if taken:
                yield _unwrap(results.pop(taken - 1))
            if taken == sent:
                return
            while taken not in results:
                self._receive(results)
            taken += 1

    def _receive(self, results: dict[int, Any]) -> None:
        """Move what has arrived into `results`; wait for something to arrive, or for a worker to die."""
        from multiprocessing.connection import wait

        connections = {worker.connection: worker for worker in self._workers}
        sentinels = {worker.process.sentinel: worker for worker in self._workers}
        ready = wait([*connections, *sentinels], self._timeout)
        if not ready:
            raise TimeoutError(f"DataLoader: no batch within the timeout of {self._timeout:g} s")
        arrived = [connections[r] for r in ready if r in connections]
        for worker in arrived:
            worker.receive(results)
        if not arrived:  # a dead worker's last results came before this
            sentinels[ready[0]].raise_death()


def start_methods() -> list[str]:
    """The ways to start a process that this system has."""
    import multiprocessing

    return multiprocessing.get_all_start_methods()


def default_start_method() -> str:
    """ "fork" on Linux, "spawn" elsewhere.

    With fork a worker has the dataset as it is, whether it can be pickled or not, shares its memory with the parent,
    and is there in milliseconds; "spawn" and "forkserver" import everything again and copy the dataset through a pipe,
    once per worker and epoch. What speaks against fork, and made Python 3.14 change its default, is a lock that another
    thread holds at that moment and that nobody will release in the child. A worker runs the dataset's code and NumPy:
    the locks of Python, glibc and OpenBLAS are safe, for they have handlers for fork, and CUDA, which is not, is never
    touched. A dataset with a library of its own that is not safe can ask for start_method="spawn". On macOS the
    system's own libraries are not safe; Windows has no fork.
    """
    return "fork" if sys.platform == "linux" else "spawn"


class _Lease(weakref.ref[np.ndarray]):
    """Refers to the array that keeps a block of shared memory in use."""

    block: int


class _Worker:
    """The parent's side of one worker: its process, its connection, and the shared memory it sends batches in."""

    def __init__(self, number: int, context: Any, function: Callable[..., Any]):
        self.number = number
        self.pending: dict[int, int] = {}  # task -> the block its result may use
        self._memory: dict[int, mmap.mmap] = {}
        self._leases: dict[int, _Lease] = {}
        self._ended: list[_Lease] = []
        self._free: list[int] = []
        self._blocks = 0
        self.connection: Connection
        self.connection, theirs = context.Pipe(duplex=True)
        self.process = context.Process(target=_work, args=(theirs, function), name=f"gpunet-data-{number}", daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of fork in a process with threads; `default_start_method` says why it is chosen.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            self.process.start()
        theirs.close()

    def send(self, sequence: int, task: tuple[Any, ...]) -> None:
        while self._ended:
            self._free.append(self._ended.pop().block)
        if not self._free:
            self._free.append(self._blocks)
            self._blocks += 1
        block = self._free.pop()
        try:
            self.connection.send((sequence, block, task))
        except OSError:
            self.raise_death()
        self.pending[sequence] = block

    def receive(self, results: dict[int, Any]) -> None:
        try:
            sequence, head, sizes, shared, created = pickle.loads(self.connection.recv_bytes())
            block = self.pending.pop(sequence)
            if shared:
                buffers: list[Any] = self._views(block, sizes, created)
            else:
                self._free.append(block)
                buffers = [bytearray(size) for size in sizes]
                for buffer in filter(None, buffers):
                    self.connection.recv_bytes_into(buffer)
        except (EOFError, OSError):
            self.raise_death()
        results[sequence] = pickle.loads(head, buffers=buffers)

    def _views(self, block: int, sizes: list[int], created: int) -> list[np.ndarray]:
        if created:
            from multiprocessing.reduction import recv_handle

            descriptor = recv_handle(self.connection)
            self._memory[block] = mmap.mmap(descriptor, created)
            os.close(descriptor)
        whole = np.frombuffer(self._memory[block], np.uint8)
        # Every array of the batch keeps `whole` alive; when the last is gone, so is `whole`, and the lease ends. The
        # callback is not a Python function on purpose: Ctrl-C within one would be printed and forgotten.
        self._leases[block] = lease = _Lease(whole, self._ended.append)
        lease.block = block
        return [whole[start : start + size] for start, size in zip(_offsets(sizes), sizes)]

    def raise_death(self) -> NoReturn:
        """Say how the process ended. Called where an error came from its connection: that error, if it is alive."""
        self.process.join(_PATIENCE)
        code = self.process.exitcode
        if code is None:
            raise
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == getattr(signal, "SIGKILL", None):
                how += ", as the kernel does when memory runs out"
        else:
            how = f"ended with exit code {code}"
        raise RuntimeError(
            f"DataLoader: worker {self.number} (pid {self.process.pid}) {how}; "
            "num_workers=0 runs the dataset in the main process, where its own error shows"
        ) from None


def _stop(workers: list[_Worker], owner: int) -> None:
    """End the workers: idle ones by asking, those in the middle of something by force."""
    if os.getpid() != owner:
        return  # a forked copy of the pool: the processes belong to the original
    for worker in workers:
        try:
            if worker.pending:
                worker.process.terminate()
            else:
                worker.connection.send(None)
        except OSError:
            pass  # it has ended already
    for worker in workers:
        worker.process.join(_PATIENCE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


def _unwrap(result: Any) -> Any:
    if not isinstance(result, _Failure):
        return result
    raise result.exception from WorkerTraceback(result.text)


# --- in the worker process


class _Failure:
    """An exception on its way to the main process, with the text of its traceback."""

    def __init__(self, error: Exception):
        self.text = f"In DataLoader worker process {os.getpid()}:\n{traceback.format_exc()}"
        try:
            pickle.loads(pickle.dumps(error))
            self.exception = error
        except Exception:  # whatever an exception class that cannot be pickled raises
            self.exception = RuntimeError(f"{type(error).__name__}: {error}")


def _work(connection: Connection, function: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the main one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler that the main program set is not for its workers
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # CUDA does not survive a fork, and a worker has no business with it
    _use_one_thread()
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Tasks are read as they come, in a thread, so that the parent never waits to send one to a worker that in turn
    # waits to send its result.
    threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    memory: dict[int, mmap.mmap] = {}
    while (task := tasks.get()) is not None:
        sequence, block, arguments = task
        try:
            result = function(*arguments)
        except Exception as error:
            result = _Failure(error)
        try:
            _send(connection, sequence, result, block, memory)
        except OSError:
            return  # the parent is gone
        except Exception as error:  # the batch cannot be pickled
            _send(connection, sequence, _Failure(error), block, memory)


def _listen(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    assert parent is not None
    task: Any = ()
    while task is not None:
        try:
            if connection not in wait([connection, parent.sentinel]):
                os._exit(1)  # the parent died
            task = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # likewise; and whatever the main thread is doing is for nobody
        tasks.put(task)


def _send(connection: Connection, sequence: int, result: Any, block: int, memory: dict[int, mmap.mmap]) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = [view.nbytes for view in raw]
    *starts, total = _offsets(sizes)
    if total == 0 or not hasattr(os, "memfd_create"):  # only Linux has memory without a name
        connection.send_bytes(pickle.dumps((sequence, head, sizes, False, 0)))
        for view in raw:
            if view.nbytes:
                connection.send_bytes(view)
        return
    created = 0
    if block not in memory or len(memory[block]) < total:
        created = -(-total // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = os.memfd_create(f"gpunet-batch-{block}")
        os.ftruncate(descriptor, created)
        memory[block] = mmap.mmap(descriptor, created)
    for view, start in zip(raw, starts):
        memory[block][start : start + view.nbytes] = view
    connection.send_bytes(pickle.dumps((sequence, head, sizes, True, created)))
    if created:
        from multiprocessing.reduction import send_handle

        send_handle(connection, descriptor, None)
        os.close(descriptor)


def _offsets(sizes: list[int]) -> list[int]:
    """Where each of the buffers starts in a block, and, last, the size of all."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGN) * _ALIGN)
    return offsets


def _use_one_thread() -> None:
    """Workers share the cores already: tell NumPy's OpenBLAS, where that can be found, to leave its threads unused."""
    import ctypes

    try:
        with open("/proc/self/maps") as maps:
            libraries = {line.split()[-1] for line in maps if "openblas" in line}
    except OSError:  # not Linux
        return
    for library in map(ctypes.CDLL, libraries):
        for prefix in ("", "scipy_"):  # Debian's build, and those in NumPy's and SciPy's wheels
            for suffix in ("", "64_"):
                if function := getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None):
                    function(1)
