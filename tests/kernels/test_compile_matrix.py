"""Kernels for every architecture that they run on: they compile, spill no registers, take no more than they should, and
have the instructions that they are written for. Needs the compiler, and no GPU.

All instances for all architectures would take many minutes: that is `gpunet kernels check --arch all`. Here, each
instance is compiled for one architecture at least, and for each architecture one instance at least of each kind. What
was compiled once is kept on disk ($GPUNET_CACHE_DIR), so only what has changed takes time.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpunet import kernel_tools
from gpunet.backends import nvrtc, sass
from gpunet.backends.kernel import ARCHITECTURES, Variant
from gpunet.errors import KernelError
from gpunet.kernel_tools import Job


def sample(variants: list[Variant], architectures: list[str]) -> list[Job]:
    """Each variant once at least, and each architecture once at least with each kind of variant: those of one kernel
    with the same requirements and instructions."""
    kinds: dict[object, list[Variant]] = {}
    for variant in variants:
        kind = variant.file, variant.expression.split("<")[0], variant.requires, variant.instructions
        kinds.setdefault(kind, []).append(variant)
    jobs = []
    for same in kinds.values():
        targets = [architecture for architecture in architectures if same[0].runs_on(architecture)]
        for i in range(max(len(same), len(targets)) if targets else 0):
            jobs.append(Job(same[i % len(same)], targets[i % len(targets)]))
    return jobs


def test_the_sample_is_fair() -> None:
    variants = [Variant("a", f"a<float, {i}>", 32) for i in range(3)] + [
        Variant("a", f"b<half, {i}>", 32, requires="sm_80+") for i in range(7)
    ]
    jobs = sample(variants, ["sm_70", "sm_75", "sm_80", "sm_90a", "sm_120"])
    assert {job.variant for job in jobs} == set(variants) and len(jobs) == len(set(jobs)) == 5 + 7
    for architecture, kinds in {"sm_70": {"a<float"}, "sm_80": {"a<float", "b<half"}}.items():
        assert {j.variant.expression.split(",")[0] for j in jobs if j.architecture == architecture} == kinds


def test_kernels_are_as_they_should_be() -> None:
    try:
        known = nvrtc.capabilities()
        sass.nvdisasm()
    except KernelError as error:
        pytest.skip(f"a tool is not installed: {error}")
    # CUDA 13 has left Volta behind.
    names = [a for a in ARCHITECTURES if a != "sm_70" or 70 in known]
    started = time.perf_counter()
    jobs = sample(kernel_tools.every_variant(), kernel_tools.architectures(",".join(names)))
    made = dict(kernel_tools.compile_all(jobs))
    compiled = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # each waits for a disassembler
        faults = [
            fault for found in threads.map(lambda job: kernel_tools.faults(job, made[job]), jobs) for fault in found
        ]
    print(
        f"\n{len(jobs)} kernels compiled, or found on disk, in {compiled - started:.1f} s, "
        f"and read in {time.perf_counter() - compiled:.1f} s"
    )
    assert jobs
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)
