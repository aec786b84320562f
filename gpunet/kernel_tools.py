"""Kernels before there is a GPU: all of them, compiled ahead of time, and what the machine code says of their speed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import gpunet.ops
from gpunet.backends import nvrtc, sass
from gpunet.backends.kernel import ARCHITECTURES, Variant, all_variants
from gpunet.backends.occupancy import occupancy
from gpunet.errors import KernelError


class Job(NamedTuple):
    """A variant, and what to compile it for."""

    variant: Variant
    architecture: str


def every_variant(family: str = "") -> list[Variant]:
    """Every variant of a kernel that an op may launch, of the files whose stems begin with `family`.

    Raises:
        KernelError: there is no such family.
    """
    for module in pkgutil.iter_modules(gpunet.ops.__path__):
        importlib.import_module(f"gpunet.ops.{module.name}")
    variants = all_variants()
    found = [variant for variant in variants if variant.file.startswith(family)]
    if family and not found:
        known = ", ".join(sorted({variant.file for variant in variants})) or "none"
        raise KernelError(f"no kernel's file begins with {family!r}; there are: {known}")
    return found


def architectures(text: str) -> list[str]:
    """The architectures in a text such as "sm_80,sm_90" or "all", each as a device of it asks for: "sm_90a".

    Raises:
        KernelError: one is none, or NVRTC does not compile for it.
    """
    found = []
    for name in ARCHITECTURES if text == "all" else text.split(","):
        match = re.fullmatch(r"sm_(\d+)(\d)a?", name.strip())
        if match is None:
            raise KernelError(f'expected architectures such as sm_80,sm_90a or "all", got {text!r}')
        target = nvrtc.target(int(match[1]), int(match[2]))
        if target.rstrip("a") != name.strip().rstrip("a"):
            raise KernelError(f"the NVRTC {nvrtc.version()} that is installed does not compile for {name.strip()}")
        found.append(target)
    return list(dict.fromkeys(found))


def compile_all(
    jobs: Sequence[Job], processes: int | None = None
) -> Iterator[tuple[Job, nvrtc.Compiled | KernelError]]:
    """Each job with its machine code, or with what is wrong; those in the disk cache first, then as they are done.

    Args:
        processes: how many to compile in; 1 for this one alone. None: one for each processor. (Threads would not do:
            NVRTC compiles one program at a time.)
    """
    waiting = []
    for job in jobs:
        found = _tried(nvrtc.on_disk, job)
        if found is None:
            waiting.append(job)
        else:
            yield job, found
    processes = min(processes or os.cpu_count() or 1, len(waiting))
    if processes <= 1:
        for job in waiting:
            made = _compiled(job)
            yield job, made
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_compiled, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _compiled(job: Job) -> nvrtc.Compiled | KernelError:
    made = _tried(nvrtc.compiled, job)
    assert made is not None
    return made


def _tried(function: Callable[[Variant, str], nvrtc.Compiled | None], job: Job) -> nvrtc.Compiled | KernelError | None:
    try:
        return function(*job)
    except KernelError as error:
        return error


def faults(job: Job, made: nvrtc.Compiled | KernelError) -> list[str]:
    """What is wrong with a kernel's machine code: that it spills registers, takes more of them than its variant says,
    lacks instructions that it is written for, or that the compiler warned of something.

    Raises:
        KernelError: there is no disassembler.
    """
    if isinstance(made, KernelError):
        return [str(made)]
    variant, found = job.variant, []
    if made.spills:
        found.append(f"spills {made.spills} bytes of registers")
    if made.registers > variant.registers:
        found.append(f"takes {made.registers} registers, more than {variant.registers}")
    if variant.instructions and sass.readable(job.architecture):
        function = sass.disassemble(made.code)[made.name]
        found += [f"has no {pattern}" for pattern in function.missing(variant.instructions)]
    found += made.notes
    return [f"{variant.expression} for {job.architecture}: {fault}" for fault in found]


HEADER = ("kernel", "for", "registers", "spills", "static", "dynamic", "blocks", "warps", "limit")


def resources(job: Job, made: nvrtc.Compiled) -> tuple[str, ...]:
    """A row of a report, as `HEADER` names its cells: registers per thread; bytes per thread spilled to memory; bytes
    per block of static and dynamic shared memory; how many blocks a multiprocessor holds, these blocks' warps as a
    share of the most that it could hold, and what keeps further blocks out."""
    variant, architecture = job
    fits = occupancy(architecture, variant.threads, made.registers, made.shared + variant.shared)
    numbers = (made.registers, made.spills, made.shared, variant.shared, fits.blocks)
    return (variant.expression, architecture, *map(str, numbers), f"{fits.share:.0%}", fits.limit)


def hottest_loop(job: Job, made: nvrtc.Compiled) -> str:
    """The arithmetic's share of a kernel's hottest loop, and the loop's instructions: those first, then the most
    frequent others.

    Raises:
        KernelError: there is no disassembler.
    """
    if not sass.readable(job.architecture):
        return "(nvdisasm does not read this architecture)"
    function = sass.disassemble(made.code)[made.name]
    loop = function.hottest_loop()
    if not loop:
        return "none"
    counts = sass.mix(loop)
    order = sorted(counts, key=lambda opcode: (opcode not in function.arithmetic_opcodes, -counts[opcode]))
    most = ", ".join(f"{counts[opcode]} {opcode}" for opcode in order[:5])
    return f"{function.arithmetic(loop) / len(loop):.0%} of {len(loop)}: {most}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text in columns; numbers are flush right."""
    grid = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*grid)]
    right = [all(re.fullmatch(r"[\d.]+%?", cell) for cell in column[1:]) for column in zip(*grid)]
    lines = (
        "  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(row, widths, right))
        for row in grid
    )
    return "\n".join(line.rstrip() for line in lines)
