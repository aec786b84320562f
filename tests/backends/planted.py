"""Kernels with one planted mistake each, and which of the emulated device's detectors catch it.

The kernels are in bugs/*.cu; each has its mistake only when asked to. `python -m tests.backends.planted` prints a table
of them. A kernel with its mistake runs in a forked process, which it may end; only ThreadSanitizer, which would make
each fork slow, goes on after a finding.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpunet.backends import Device, get_backend
from gpunet.backends.emulated import EmulatedLauncher, emulation, prebuild
from gpunet.backends.kernel import Variant
from gpunet.errors import KernelError
from tests.backends.sanitizers import FOUND, run_under

FOLDER = Path(__file__).parent / "bugs"

# What finds mistakes, in the order of the table's columns.
DETECTORS = {
    "trap": "the emulator itself: a wait that cannot end, memory outside of arrays changed",
    "NaN": "a result is NaN: unwritten memory is filled with it",
    "orders": "threads and blocks in other orders give another result",
    "late": "asynchronous operations that take effect late give another result",
    "address": "AddressSanitizer and UndefinedBehaviorSanitizer",
    "thread": "ThreadSanitizer",
}


@dataclass(frozen=True)
class Bug:
    """A kernel of bugs/FILE.cu, and the detectors that must catch its mistake.

    Attributes:
        caught_by: names of DETECTORS.
        file, threads, blocks, shared: how the kernel is launched.
        result: how many elements it writes; the rest is left as it is.
    """

    caught_by: str
    file: str = "memory"
    threads: int = 64
    blocks: int = 1
    shared: int = 0
    result: int = 64

    def variant(self, name: str) -> Variant:
        return Variant(self.file, name, self.threads, self.shared)


BUGS = {
    "missing_barrier": Bug("NaN orders thread"),
    "missing_second_barrier": Bug("orders thread"),
    "missing_syncwarp": Bug("NaN orders thread"),
    "not_atomic": Bug("thread", result=1),
    "two_blocks": Bug("NaN orders thread", blocks=2, result=128),
    "array_bounds": Bug("trap address", blocks=2, result=100),
    "array_bounds_read": Bug("NaN address", blocks=2, result=128),
    "shared_bounds": Bug("trap address", shared=256),
    "static_bounds": Bug("address"),
    "misaligned": Bug("address"),
    "uninitialised": Bug("NaN", shared=256),
    "not_written": Bug("NaN", blocks=2, result=128),
    "barrier_and_return": Bug("trap", "threads"),
    "two_barriers": Bug("trap", "threads"),
    "named_barrier_count": Bug("trap", "threads"),
    "endless_wait": Bug("trap", "threads"),
    "mask_without_caller": Bug("trap", "threads"),
    "different_masks": Bug("trap", "threads"),
    "shuffle_in_branch": Bug("trap", "threads"),
    "absent_lane": Bug("NaN", "threads"),
    "missing_copy_wait": Bug("late", "copies"),
    "wait_for_one_group_less": Bug("late", "copies"),
    "copy_without_barrier": Bug("NaN orders thread", "copies"),
    "missing_bulk_wait": Bug("late", "hopper", shared=1024),
    "wrong_byte_count": Bug("trap", "hopper", shared=1024),
    "missing_empty_wait": Bug("trap", "hopper", threads=96, shared=1024),
    "missing_product_wait": Bug("late", "hopper", threads=128, shared=16384, result=128),
}


def run(name: str, bug: bool, **options: Any) -> np.ndarray:
    """Launch a kernel on x = 1, 2, 3 … with `emulation(**options)`; what it wrote.

    Raises:
        KernelError: the emulator found something.
    """
    kernel = BUGS[name]
    launcher, backend = EmulatedLauncher(), get_backend(Device("emulated"))
    size = 100 if name == "array_bounds_read" else 256
    x = backend.from_numpy(np.arange(1, 1 + size, dtype=np.float32), Device("emulated"))
    y = launcher.empty((kernel.result,), np.float32)
    parameters = [struct.pack("P", launcher.pointer(y)), struct.pack("P", launcher.pointer(x)), struct.pack("i", bug)]
    if kernel.file == "hopper":
        parameters.append(launcher.tensor_map(launcher.pointer(x), 4, (32, 8), (128,), (32, 2)))
    with emulation(folder=FOLDER, **options):
        launcher.launch(kernel.variant(name), (kernel.blocks, 1, 1), *parameters)
    return backend.to_numpy(y)


def without_sanitizer(name: str, bug: bool) -> dict[str, str]:
    """The detectors that catch something, each with what it says."""
    caught = {}
    results = {}
    ways: dict[str, dict[str, Any]] = {
        "forward": {},
        "reverse": {"order": "reverse"},
        "random": {"order": "random", "seed": 1},
        "late": {"late": True},
    }
    for way, options in ways.items():
        try:
            results[way] = run(name, bug, **options)
        except KernelError as error:
            caught["trap"] = str(error)
            return caught
    first, *others = (results[way].tobytes() for way in ("forward", "reverse", "random"))
    if np.isnan(results["forward"]).any():
        caught["NaN"] = f"{np.isnan(results['forward']).sum()} of {results['forward'].size}"
    if any(other != first for other in others):
        caught["orders"] = "results differ"
    if results["late"].tobytes() != first:
        caught["late"] = "results differ"
    return caught


def with_sanitizer(name: str, bug: bool) -> dict[str, str]:
    """Launch it as usual and late; a sanitizer writes its findings to stderr."""
    for late in (False, True):
        try:
            run(name, bug, late=late)
        except KernelError:
            break  # which is not the sanitizer's merit
    return {}


def main(detector: str) -> None:
    """Print, as JSON, what catches each kernel with its mistake and without: {name: [with, without]}."""
    prebuild((kernel.variant(name) for name, kernel in BUGS.items()), folder=FOLDER)
    for name in BUGS:
        run(name, False)  # so that forked processes find it loaded, and ThreadSanitizer its lines
    table = {name: [_observe(detector, name, bug) for bug in (True, False)] for name in BUGS}
    print(json.dumps(table), flush=True)
    os._exit(0)  # ThreadSanitizer would have it exit with FOUND


def _observe(detector: str, name: str, bug: bool) -> dict[str, str]:
    look = partial(with_sanitizer if detector else without_sanitizer, name, bug)
    status = 0
    with _stderr() as said:
        if bug and detector != "thread":
            status, caught = _forked(look)
        else:
            caught = look()
    report = said.getvalue().decode(errors="replace")
    if status == FOUND or "WARNING: ThreadSanitizer" in report:
        return {detector: _summary(report)}
    return {"crash": f"status {status}: {report[-1000:]}"} if status else caught


@contextmanager
def _stderr() -> Iterator[io.BytesIO]:
    """What is written to the process's standard error meanwhile; to be read afterwards."""
    said = io.BytesIO()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.write(file.read())


def _forked(look: Callable[[], dict[str, str]]) -> tuple[int, dict[str, str]]:
    """How a forked process that calls `look` ends, and what it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(look()).encode())
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        returned = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(returned or "{}")


def _summary(report: str) -> str:
    """A sanitizer's report in a line."""
    match = re.search(r"(?:SUMMARY: \w+: (.*)|^\S*/(\S+: runtime error: .*)$)", report, re.MULTILINE)
    return (match[1] or match[2]) if match else report[-500:]


def detections(sanitizer: str) -> dict[str, list[dict[str, str]]]:
    """For each kernel, what catches it with its mistake and without: detectors, each with what it says.

    Args:
        sanitizer: "address" or "thread", or "" for all other detectors.
    """
    done = run_under(sanitizer, "tests.backends.planted", "run", sanitizer, goes_on=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def print_table() -> None:
    columns = list(DETECTORS)
    width = max(map(len, BUGS))
    print(" " * width, *columns)
    tables = [detections(sanitizer) for sanitizer in ("", "address", "thread")]
    for name in BUGS:
        caught = {detector for table in tables for detector in table[name][0]}
        wrongly = {detector for table in tables for detector in table[name][1]}
        marks = (("x" if column in caught else "-").center(len(column)) for column in columns)
        print(name.ljust(width), *marks, "and without the mistake: " + " ".join(wrongly) if wrongly else "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        main(sys.argv[2])
    else:
        print_table()
