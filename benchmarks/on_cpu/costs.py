"""Stages memory and profile: what a training step takes besides time, and where its time goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.on_cpu.report import Table, counted
from benchmarks.on_cpu.session import Session
from benchmarks.on_cpu.workers import GPUNET, NUMPY
from benchmarks.on_cpu.workloads import WORKLOADS

IN_MEMORY = ("d", "e", "f")
IN_TIME = ("d", "f")
PROFILED_STEPS = 30
MIB = 1 << 20


def memory(session: Session) -> Iterator[dict[str, Any]]:
    """The most memory that training steps take, above what the process held once all was imported and made."""
    table = Table(
        ("", 1), ("", 51), ("threads", 7), ("configuration", 27), ("peak", 8), ("first step", 10), ("later", 8),
        ("of its own", 10), ("held before", 11),
    )  # fmt: skip
    print(
        "MiB of resident memory (VmHWM, forgotten before the step), each in a fresh process. peak: the most above what"
    )
    print("was held before, over the first step and three more; of its own: the later ones, without code of libraries.")
    table.head()
    for threads in session.threads:
        for key in (key for key in session.workloads if key in IN_MEMORY):
            workload = WORKLOADS[key]
            found: dict[str, dict[str, int]] = {}
            for configuration in session.configurations(workload.convolves):
                with session.working([configuration], threads) as (worker,):
                    peaks = worker.ask("memory", workload=key)
                if peaks is None:
                    print("not available: this system does not tell a process's largest size")
                    return
                found[configuration.name] = peaks
                sizes = [f"{peaks[part] / MIB:.1f}" for part in ("peak", "first", "later", "own", "before")]
                table.row(key, workload.title, threads, configuration.name, *sizes)
            row: dict[str, Any] = {"workload": key, "threads": threads, "configurations": found}
            theirs = [peaks for name, peaks in found.items() if name.startswith("torch")]
            if theirs:
                for part in ("peak", "own"):
                    least = min(peaks[part] for peaks in theirs)
                    row[f"ratio_{part}"] = least / found[GPUNET][part]
                    row[f"ratio_{part}_numpy"] = least / found[NUMPY][part]
                row["met"] = row["ratio_peak"] >= 1
                print(
                    f"{key}  torch's least / gpunet's: peak {row['ratio_peak']:.2f}, of its own {row['ratio_own']:.2f} "
                    f"(at least 1 is wanted of the peak{'' if row['met'] else ': NOT REACHED'})"
                )
            yield row


def profile(session: Session) -> Iterator[dict[str, Any]]:
    """Where the time of one training step with gpunet goes, by op."""
    ours = [c for c in session.configurations() if c.name == GPUNET]
    for threads in session.threads:
        for key in (key for key in session.workloads if key in IN_TIME):
            with session.working(ours, threads) as (worker,):
                found = worker.ask("profile", workload=key, steps=PROFILED_STEPS)
            _print_profile(key, threads, found)
            yield {"workload": key, "threads": threads, **found}


def _print_profile(key: str, threads: int, found: dict[str, Any]) -> None:
    total = sum(found["phases"].values())
    print(
        f"{key} {WORKLOADS[key].title}, {counted(threads, 'thread')}: {found['bare'] * 1e3:.2f} ms a step, "
        f"{total * 1e3:.2f} with clocks"
    )
    table = Table(("phase", 10), ("op", 42), ("calls", 7), ("ms", 8), ("of the step", 11))
    table.head()
    for phase, seconds in found["phases"].items():
        rows = [row for row in found["rows"] if row["phase"] == phase]
        large = [row for row in rows if row["seconds"] >= total / 200]
        parts = [(row["op"], f"{row['calls']:g}", row["seconds"]) for row in large]
        parts.append(("other ops, each below 0.5%", "", sum(row["seconds"] for row in rows if row not in large)))
        parts.append(("layers, tape, clocks", "", seconds - sum(row["seconds"] for row in rows)))
        for name, calls, part in parts:
            table.row(phase, name, calls, f"{part * 1e3:.3f}", f"{part / total:.1%}")
