"""All that is to be measured on a machine with a GPU, in one go of under 25 minutes.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --json gpu.json --minutes 9 --stages environment,compile,correctness
    python benchmarks/gpu.py --json gpu.json --stages tune,matmul --write
    python benchmarks/gpu.py --dry-run

Stages, in this order; each has a share of the time, and what one leaves over goes to the next:

{stages}

The JSON file is written after every stage, and stages that it holds already are kept unless they run again, so that the
work can be done in several goes. Each stage is a process of its own: a kernel that crashes or hangs costs that kernel,
and later stages leave it out. Times are the GPU's, by events, of batches that are queued as a whole before they begin;
contenders take turns; operands are random numbers and take turns too, so that they do not stay in the L2 cache; each
result is compared with float64 before it is timed. The card's settings are left alone.

--dry-run does the same in small on the emulated device, on the CPU, to test this program; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout needs no installation; a script's path begins with its own folder

from benchmarks.on_gpu import comparison, correctness, dispatch, hardware, layers, training, tuning  # noqa: E402
from benchmarks.on_gpu.supervise import Run, supervise  # noqa: E402
from gpunet.errors import DeviceError  # noqa: E402
from gpunet.io.atomic import destination, replacing  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """A stage: what does it, and its share of the time."""

    work: Callable[[Run], None]
    share: float

    @property
    def about(self) -> str:
        return " ".join((self.work.__doc__ or "").split())


STAGES = {
    "environment": Stage(hardware.environment, 0.5),
    "compile": Stage(hardware.compile_kernels, 2.5),
    "ceilings": Stage(hardware.ceilings, 0.5),
    "overhead": Stage(hardware.overhead, 0.5),
    "correctness": Stage(correctness.correctness, 5),
    "sanitizer": Stage(correctness.sanitizer, 3),
    "tune": Stage(tuning.tune, 7),
    "matmul": Stage(comparison.matmul, 4.5),
    "convolution": Stage(layers.convolution, 4),
    "layers": Stage(layers.memory_bound, 2.5),
    "examples": Stage(training.examples, 1.5),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    stages = "\n".join(
        textwrap.fill(stage.about, 118, initial_indent=f"  {name:12s} ", subsequent_indent=" " * 15)
        for name, stage in STAGES.items()
    )
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.replace("{stages}", stages), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="those to run, separated by commas; default: all")
    parser.add_argument("--minutes", type=float, default=24.0, help="for all of them; default: 24")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all figures go; default: a temporary file")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="where tune puts its table; default: beside the JSON"
    )
    parser.add_argument("--write", action="store_true", help="let tune replace gpunet/ops/gemm.json")
    parser.add_argument("--rounds", type=int, default=7, help="how many times each contender is timed; default: 7")
    parser.add_argument("--torch", choices=("auto", "off"), default="auto", help="PyTorch beside gpunet, if installed")
    parser.add_argument("--dry-run", action="store_true", help="on the emulated device, in small")
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.chosen = args.stages.split(",")
    unknown = [name for name in args.chosen if name not in STAGES]
    if unknown:
        parser.error(f"no stage {', '.join(map(repr, unknown))}; there are: {', '.join(STAGES)}")
    if args.write and args.dry_run:
        parser.error("--write takes measured times, and those of a --dry-run mean nothing")
    if args.write and args.table:
        parser.error("--write and --table both say where the table goes")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; the exit status is 1 where something is wrong."""
    args = parse(argv)
    if args.child:
        return work(args)
    with tempfile.TemporaryDirectory(prefix="gpunet-") as folder:
        return oversee(args, Path(folder))


def work(args: argparse.Namespace) -> int:
    """A stage, in its own process."""
    run = Run(args, args.seconds, args.record)
    if args.table.exists():
        dispatch.use(dispatch.load(args.table))
    try:
        STAGES[args.child].work(run)
    except DeviceError as error:
        run.fails(args.child, str(error))
        run.end(False)
        return 0
    run.end(run.seconds_left > 0)
    return 0


def oversee(args: argparse.Namespace, folder: Path) -> int:
    """All stages, one after another, each in a process of its own."""
    if args.json is None:
        args.json = Path(tempfile.mkdtemp(prefix="gpunet-")) / "gpu.json"
    destination(args.json)  # before the work, not after it
    table = dispatch.TABLE if args.write else args.table or args.json.with_name("gemm.json")
    report: dict[str, Any] = {"conditions": {}, "stages": {}, "broken": {}}
    if args.json.exists():
        report = json.loads(args.json.read_text(encoding="utf-8"))
    if args.dry_run:
        print("DRY RUN ON THE EMULATED DEVICE: TIMES MEAN NOTHING\n")
    left = 60 * args.minutes
    chosen = [name for name in STAGES if name in args.chosen]
    problems = 0
    for i, name in enumerate(chosen):
        seconds = max(left, 0) * STAGES[name].share / sum(STAGES[later].share for later in chosen[i:])
        print(f"--- {name} (up to {seconds:.0f} s): {STAGES[name].about}", flush=True)
        record = folder / f"{name}.jsonl"
        broken = {} if name == "correctness" else report["broken"]  # which finds anew what is
        record.write_text("".join(json.dumps({"broken": tile, "why": why}) + "\n" for tile, why in broken.items()))
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--record", str(record)]
        command += ["--table", str(table), "--torch", args.torch, "--rounds", str(args.rounds)]
        found = supervise([*command, *["--dry-run"] * args.dry_run], seconds, record)
        left -= found["seconds"]
        report["broken"] = found.pop("broken")
        report["conditions"] = found.pop("conditions", report["conditions"])
        report["stages"][name] = {"dry_run": args.dry_run, **found}
        problems += len(found["problems"])
        with replacing(args.json) as file:
            file.write(json.dumps(report, indent=1).encode())
        print(f"{name}: {found['seconds']:.0f} s{'' if found['complete'] else ', not complete'}\n", flush=True)
    if report["broken"]:
        print("BROKEN:", *(f"  {tile}: {why}" for tile, why in report["broken"].items()), sep="\n")
    print(f"{problems} problems; figures in {args.json}")
    if args.dry_run:
        print("THIS WAS A DRY RUN ON THE EMULATED DEVICE: TIMES MEAN NOTHING")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
