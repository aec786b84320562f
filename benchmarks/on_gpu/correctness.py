"""Stages correctness and sanitizer: whether kernels compute what they should, before anything is timed."""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.on_gpu import dispatch, products
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.products import GRADIENT, LINEAR, OTHER, ROWS, TOLERANCE, Product
from benchmarks.on_gpu.supervise import Column, Run
from gpunet import kernel_tools

ROOT = Path(__file__).resolve().parents[2]

# No multiples of any tile; one that vectors of 16 bytes fit, one that they do not, one with a sum long enough to split.
_SIZES = ((136, 72, 208), (67, 131, 45), (24, 40, 1032))
_LAYOUTS = (LINEAR, ROWS, GRADIENT, OTHER, ("STRIDED", "STRIDED"))
_COMPUTES = ("float32", "tf32", "float16", "bfloat16", "float64")


def correctness(run: Run) -> None:
    """Every way that gpunet has to compute a product, against float64; then the project's tests on the device."""
    run.table(
        Column("what", "", 60),
        Column("checked", "checked", 8, "d"),
        Column("worst", "worst error", 11, ".1e"),
        Column("result", "", 30),
    )
    _check_products(run)
    _run_tests(run)


def _check_products(run: Run) -> None:
    most = run.seconds_left * 0.6  # the rest is for the tests
    for product in small_products(run.machine):
        if run.has(what=product.name):
            continue
        _check(run, product)
        if run.dry or run.seconds_left < most * 0.4 / 0.6:
            break
    checked = {kernel for row in run.rows for kernel in row.get("kernels", ())}
    architecture = run.machine.launcher.architecture
    known = [v.expression for v in kernel_tools.every_variant("matmul") if v.runs_on(architecture)]
    missed = sorted(set(known) - checked)
    run.facts(kernels_checked=len(checked), kernels_known=len(known), kernels_not_checked=missed)
    print(f"{len(checked)} of {len(known)} kernels were launched here; the tests launch others")


def small_products(machine: Machine) -> Iterator[Product]:
    """Products of ragged sizes, in every layout and type, one alone and several at a time."""
    for batch in (1, 3):
        for layouts in _LAYOUTS:
            for compute in _COMPUTES:
                if compute != "bfloat16" or machine.bfloat16 is not None:
                    for m, n, k in _SIZES:
                        yield Product(compute, m, n, k, layouts, batch)


def _check(run: Run, product: Product) -> None:
    """One product by each of gpunet's kernels for it; those that are wrong become broken."""
    machine = run.machine
    sets = products.operands(machine, product)[:1]
    worst, wrong, kernels = 0.0, 0, []
    with machine.precision(product.compute):
        problem = dispatch.problem_of(machine.launcher, sets[0].a, sets[0].b)
        for name, choice in list(dispatch.choices_of(problem, machine.launcher).items())[: 2 if run.dry else None]:
            tile = dispatch.tile(product.compute, name)
            if not run.begin(f"{product.name}: {name}", tile):
                continue
            contender = products.with_choice(machine, problem, choice, sets)
            kernels.append(contender.about)
            error = products.judge(machine, product, contender, sets[0])
            if isinstance(error, float) and error < TOLERANCE[product.compute]:
                worst = max(worst, error)
            else:
                wrong += 1
                run.fails(f"{product.name}: {name}", f"relative error {error}", tile)
    result = f"{wrong} wrong" if wrong else "ok"
    run.row(what=product.name, checked=len(kernels), worst=worst, result=result, kernels=kernels)


# Those with a use for a GPU: the others on kernels compile for all architectures, or run on the emulated device.
_TESTS = [
    "tests/kernels",
    "tests/ops",
    "tests/nn",
    "tests/optim",
    "tests/test_autograd.py",
    "tests/test_standard.py",
    "tests/backends/test_cupy.py",
    "tests/backends/test_cupy_launcher.py",
]
_NOT_TESTS = ["--ignore=tests/kernels/test_sanitizers.py", "--ignore=tests/kernels/test_compile_matrix.py"]


def _run_tests(run: Run) -> None:
    """pytest in processes of its own."""
    paths = ["tests/ops/test_op.py"] if run.dry else _TESTS
    device = "emulated" if run.dry else "cuda"
    parallel = ["-n", "6"] if find_spec("xdist") is not None and not run.dry else []
    limit = max(run.seconds_left - 5, 10)
    name = f"pytest --device {device} {' '.join(paths)}"
    if not run.begin(name, seconds=limit + 10):
        return
    options = ["-p", "no:cacheprovider", "--tb=short", *parallel, *_NOT_TESTS, "--device", device]
    command = [sys.executable, "-m", "pytest", *options, *paths]
    status, log = _run(command, limit)
    result = f"stopped after {limit:.0f} s" if status is None else log.strip().split("\n")[-1].strip("= ")
    if status:
        run.fails(name, result or f"exit status {status}")
    checked = sum(map(int, re.findall(r"(\d+) (?:passed|failed)", result)))
    run.row(what=name, checked=checked, result=result)
    run.facts(pytest_log=log[-20000:])


# What is watched: products of every type and layout, and the programs that the compilers' sanitizers watch in CI.
_WATCHED = [
    "benchmarks.on_gpu.correctness",
    *(f"tests.kernels.sanitized_{family}" for family in ("conv", "layers", "rows", "elements", "training")),
]


def sanitizer(run: Run) -> None:
    """Kernels on small arrays under NVIDIA's compute-sanitizer: memory errors, races in shared memory, misused
    barriers."""
    run.table(Column("tool", "", 12), Column("program", "", 32), Column("result", "", 80))
    found = find_sanitizer()
    if found is None and not run.dry:
        run.row(tool="(none)", result="compute-sanitizer was not found: neither on the PATH nor in /usr/local/cuda*")
        return
    device = "emulated" if run.dry else "cuda"
    tools = ["(none)"] if run.dry else ["memcheck", "racecheck", "synccheck"]
    pairs = [(tool, program) for program in _WATCHED for tool in tools]
    for i, (tool, program) in enumerate(pairs):
        limit = max(run.seconds_left / (len(pairs) - i), 30)
        if run.is_over or not run.begin(f"{tool} {program}", seconds=limit + 10):
            continue
        prefix = [] if run.dry else [str(found), "--tool", tool, "--error-exitcode", "9"]
        command = [*prefix, sys.executable, "-m", program, "--device", device]
        if program == _WATCHED[0]:
            command += ["--seconds", "0" if run.dry else f"{limit - 15:.0f}"]
        status, log = _run(command, limit)
        lines = [
            line for line in log.splitlines() if any(w in line for w in ("ERROR SUMMARY", "hazard", "checked", "ran"))
        ]
        result = f"stopped after {limit:.0f} s" if status is None else "; ".join(lines[-2:]) or f"exit status {status}"
        if status:
            run.fails(f"{tool} {program}", result)
        run.row(tool=tool, program=program, result=result)
        run.facts(**{f"{tool} {program}": log[-6000:]})


def find_sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    homes = [os.environ["CUDA_HOME"]] if "CUDA_HOME" in os.environ else []
    for home in [*homes, *sorted(glob.glob("/usr/local/cuda*"), reverse=True)]:
        for folder in ("bin", "compute-sanitizer"):
            if found := shutil.which(f"{home}/{folder}/compute-sanitizer"):
                return found
    return shutil.which("compute-sanitizer")


def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """A program's exit status, None where it was stopped for its time, and what it printed."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        try:
            log, _ = child.communicate(timeout=seconds)
            return child.returncode, log
        except subprocess.TimeoutExpired:
            child.kill()
            log, _ = child.communicate()
            return None, log


def main(argv: Sequence[str] | None = None) -> int:
    """Check one product of each type and layout, by each kernel, as a sanitizer's victim: each array has memory of its
    own, so that reading beyond one is seen. The exit status is 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args(argv)
    machine = Machine(args.device, use_torch=False)
    if machine.is_real:
        machine.xp.cuda.set_allocator(None)
    checked, wrong = 0, 0
    seen: set[Any] = set()
    end = time.monotonic() + args.seconds
    for product in small_products(machine):
        s = _own_memory(machine, products.operands(machine, product)[0])
        with machine.precision(product.compute):
            problem = dispatch.problem_of(machine.launcher, s.a, s.b)
            for choice in dispatch.choices_of(problem, machine.launcher).values():
                key = (choice.variant, choice.splits > 1)
                if key in seen:
                    continue
                seen.add(key)
                contender = products.with_choice(machine, problem, choice, [s])
                error = products.judge(machine, product, contender, s)
                checked += 1
                if not (isinstance(error, float) and error < TOLERANCE[product.compute]):
                    wrong += 1
                    print(f"{product.name}: {contender.name}: {error}")
                if time.monotonic() > end:
                    print(f"checked {checked} kernels, {wrong} wrong; the time was up")
                    return int(wrong > 0)
    print(f"checked {checked} kernels, {wrong} wrong")
    return int(wrong > 0)


def _own_memory(machine: Machine, s: products.Operands) -> products.Operands:
    """Copies of operands whose memory ends where they end."""

    def copy(x: Any) -> Any:
        transposed = x.ndim > 1 and x.strides[-1] > x.strides[-2]
        new = machine.launcher.empty((*x.shape[:-2], x.shape[-1], x.shape[-2]) if transposed else x.shape, x.dtype)
        new = new.swapaxes(-1, -2) if transposed else new
        new[...] = x
        return new

    return products.Operands(*map(copy, s))


if __name__ == "__main__":
    sys.exit(main())
