"""How fast training on the CPU is, beside PyTorch in the same run.

    python benchmarks/cpu.py --json cpu.json --plot cpu.png
    python benchmarks/cpu.py --stages steps --workloads d,f --threads 1
    python benchmarks/cpu.py --stages profile
    python benchmarks/cpu.py --medians first.json second.json third.json

Stages, in this order:

{stages}

Each library is used in several ways: gpunet as it is, and without its kernels for the CPU, on NumPy alone; PyTorch with
its two memory formats for images and its three implementations of optimizers, of which the fastest counts. Each of
these is a process of its own for each number of threads, without variables that would make BLAS take the processor for
another one. The processes take turns, in an order that changes from round to round, and wait on a pipe meanwhile: only
one computes at a time. A figure is the median of the rounds' medians. Stage same always runs first, and nothing is
timed if the two sides do not compute the same. Without PyTorch, its columns are empty.

In its own column, PyTorch runs "tuned": in processes that are started with glibc's malloc told to keep freed memory,
which gpunet tells it by itself. --medians runs nothing, and sums up what several runs have found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout needs no installation; a script's path begins with its own folder

from benchmarks.on_cpu import costs, equality, report, timing  # noqa: E402
from benchmarks.on_cpu.report import counted  # noqa: E402
from benchmarks.on_cpu.session import Session  # noqa: E402
from benchmarks.on_cpu.workers import WorkerError, torch_configurations  # noqa: E402
from benchmarks.on_cpu.workloads import WORKLOADS  # noqa: E402
from gpunet.io.atomic import destination, replacing  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """A stage: what does it, and its share of the time."""

    work: Callable[[Session], Iterator[dict[str, Any]]]
    share: float

    @property
    def about(self) -> str:
        return " ".join((self.work.__doc__ or "").split("\n\n")[0].split())


STAGES = {
    "same": Stage(equality.same, 1),
    "steps": Stage(timing.steps, 8),
    "overhead": Stage(timing.overhead, 1),
    "busy": Stage(timing.busy, 4),
    "memory": Stage(costs.memory, 2),
    "scaling": Stage(timing.scaling, 5),
    "loss": Stage(equality.loss, 3),
    "profile": Stage(costs.profile, 1),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    stages = "\n".join(
        textwrap.fill(stage.about, 118, initial_indent=f"  {name:9s} ", subsequent_indent=" " * 12)
        for name, stage in STAGES.items()
    )
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.replace("{stages}", stages), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="those to run, separated by commas; default: all")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="default: %(default)s")
    parser.add_argument("--threads", default="1,2", help="numbers of threads; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="the most for each figure; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each process in a round; default: %(default)s")
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="after which rounds are fewer; default: %(default)s"
    )
    parser.add_argument("--torch", choices=("auto", "off"), default="auto", help="PyTorch beside gpunet, if installed")
    parser.add_argument("--compile", action="store_true", help="PyTorch's networks compiled, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all figures go")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a bar chart; curves go to FILE-scaling.png")
    parser.add_argument("--medians", type=Path, nargs="+", metavar="FILE", help="of the ratios in several JSON files")
    args = parser.parse_args(argv)
    args.stages, args.workloads = args.stages.split(","), args.workloads.split(",")
    names: list[tuple[str, list[str], Mapping[str, Any]]] = [
        ("stage", args.stages, STAGES), ("workload", args.workloads, WORKLOADS),
    ]  # fmt: skip
    for what, chosen, known in names:
        unknown = [name for name in chosen if name not in known]
        if unknown:
            parser.error(f"no {what} {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    try:
        args.threads = [int(word) for word in args.threads.split(",")]
    except ValueError:
        parser.error(f"--threads: expected numbers separated by commas, got {args.threads!r}")
    for file in (args.json, args.plot):
        if file:
            destination(file)  # before the work, not after it
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; the exit status is 1 if the two sides do not compute the same, or a stage fails."""
    args = parse(argv)
    if args.medians:
        report.print_medians(args.medians)
        return 0
    torch = torch_configurations(args.compile) if args.torch == "auto" else []
    with tempfile.TemporaryDirectory(prefix="gpunet-") as folder:
        session = Session(args.workloads, args.threads, torch, Path(folder), args.rounds, args.seconds)
        found = {"environment": environment(session), "stages": {}}
        left, failures = 60 * args.minutes, 0
        chosen = [name for name in STAGES if name in args.stages or name == "same"]
        for i, name in enumerate(chosen):
            print(f"--- {name}: {STAGES[name].about}", flush=True)
            began = time.monotonic()
            session.until = began + max(left, 0) * STAGES[name].share / sum(STAGES[k].share for k in chosen[i:])
            rows: list[dict[str, Any]] = []
            found["stages"][name] = rows
            try:
                for row in STAGES[name].work(session):  # what came before an error is kept
                    rows.append(row)
            except WorkerError as error:
                print(f"FAILED: {error}")
                failures += 1
            took = time.monotonic() - began
            left -= took
            print(f"{name}: {took:.0f} s\n", flush=True)
            if args.json:
                with replacing(args.json) as file:
                    file.write(json.dumps(found, indent=1).encode())
            if name == "same" and (failures or not all(row["same"] for row in rows)):
                print("Not all compute the same, so nothing is timed.")
                return 1
    if args.plot:
        draw(found, args.plot)
    return int(failures > 0)


def environment(session: Session) -> dict[str, Any]:
    """Versions, BLAS and threads, as the workers have them; also printed."""
    found: dict[str, Any] = {}
    configurations = session.configurations()
    sides = [configurations[0], *session.torch[:1]]
    for threads in session.threads:
        with session.working(sides, threads) as workers:
            for side, worker in zip(("gpunet", "torch"), workers):
                facts = worker.ask("environment")
                pools = facts.pop("pools")
                found.setdefault("pools", {})[f"{side}, {counted(threads, 'thread')}"] = pools
                found |= facts
    del found["threads"]
    print(f"Python {found['python']}, NumPy {found['numpy']}, gpunet {found['gpunet']}, ", end="")
    print(f"torch {found['torch']}" if "torch" in found else "no torch")
    kernels = "in use" if found["kernels"] else "NOT IN USE"
    print(f"{found['cpu']}, {counted(found['cores'], 'core')}; gpunet's kernels for the CPU: {kernels}")
    for side, pools in found["pools"].items():
        words = (
            f"{p['internal_api']} {p['version']} ({p['architecture']}, {counted(p['num_threads'], 'thread')})"
            for p in pools
        )
        print(f"{side}: {', '.join(words)}")
    print()
    return found


def draw(found: dict[str, Any], file: Path) -> None:
    """The charts for which there are figures."""
    if any("ratio" in row for row in found["stages"].get("steps", [])):
        report.bar_chart(found, file)
        print(f"bar chart: {file}")
    if found["stages"].get("scaling"):
        curves = file.with_name(f"{file.stem}-scaling.png")
        report.scaling_chart(found, curves)
        print(f"curves: {curves}")


if __name__ == "__main__":
    sys.exit(main())
