"""Every instance of every kernel, for every architecture that it runs on: it compiles, spills no registers, takes no
more than it said, and has the instructions that it is written for. Needs the compiler, and no GPU.

What was compiled once is kept on disk ($GPUNET_CACHE_DIR), so only what has changed takes time.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpunet import kernel_tools
from gpunet.backends import nvrtc, sass
from gpunet.backends.kernel import ARCHITECTURES, Variant, capability
from gpunet.errors import KernelError
from gpunet.kernel_tools import Job


def faults(job: Job, made: nvrtc.Compiled | KernelError) -> list[str]:
    """What is wrong with an instance, but for its instructions."""
    if isinstance(made, KernelError):
        return [str(made)]
    variant, found = job.variant, []
    if made.spills:
        found.append(f"spills {made.spills} bytes of registers")
    if made.registers > variant.registers:
        found.append(f"takes {made.registers} registers, more than {variant.registers}")
    found += made.notes
    return [f"{variant.expression} for {job.architecture}: {fault}" for fault in found]


def lacking(job: Job, made: nvrtc.Compiled) -> list[str]:
    """Which instructions an instance should have and has not."""
    missing = sass.disassemble(made.code)[made.name].missing(job.variant.instructions)
    return [f"{job.variant.expression} for {job.architecture} has no {pattern}" for pattern in missing]


@pytest.fixture(scope="module")
def matrix() -> dict[Job, nvrtc.Compiled | KernelError]:
    """All jobs that the installed NVRTC can do, done."""
    try:
        known = nvrtc.capabilities()
    except KernelError as error:
        pytest.skip(f"no compiler: {error}")
    started = time.perf_counter()
    jobs = [
        Job(variant, architecture)
        for variant in kernel_tools.every_variant()
        for architecture in ARCHITECTURES
        if variant.runs_on(architecture) and capability(architecture) in known
    ]
    made = dict(kernel_tools.compile_all(jobs))
    print(f"\n{len(jobs)} instances compiled, or found on disk, in {time.perf_counter() - started:.1f} s")
    return made


def of(architecture: str, matrix: dict[Job, nvrtc.Compiled | KernelError]) -> dict[Job, nvrtc.Compiled | KernelError]:
    if capability(architecture) not in nvrtc.capabilities():
        pytest.skip(f"the installed NVRTC {nvrtc.version()} does not compile for {architecture}")
    return {job: made for job, made in matrix.items() if job.architecture == architecture}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(architecture: str, matrix: dict[Job, nvrtc.Compiled | KernelError]) -> None:
    found = [fault for job, made in of(architecture, matrix).items() for fault in faults(job, made)]
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instructions(architecture: str, matrix: dict[Job, nvrtc.Compiled | KernelError]) -> None:
    jobs = of(architecture, matrix)
    if not sass.readable(architecture):
        pytest.skip(f"nvdisasm does not read machine code for {architecture}")
    try:
        sass.nvdisasm()
    except KernelError as error:
        pytest.skip(f"no disassembler: {error}")
    compiled = [(job, made) for job, made in jobs.items() if isinstance(made, nvrtc.Compiled)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # each waits for a process
        found = [fault for faults in threads.map(lambda pair: lacking(*pair), compiled) for fault in faults]
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)


def test_faults_are_found() -> None:
    job = Job(Variant("sums", "sums<float>", 128, registers=100), "sm_80")
    assert faults(job, nvrtc.Compiled(b"", "sums", registers=100)) == []
    assert faults(job, nvrtc.Compiled(b"", "sums", registers=101, spills=8, notes=("Potential Performance Loss",))) == [
        "sums<float> for sm_80: spills 8 bytes of registers",
        "sums<float> for sm_80: takes 101 registers, more than 100",
        "sums<float> for sm_80: Potential Performance Loss",
    ]
    assert faults(job, KernelError("does not compile")) == ["does not compile"]
