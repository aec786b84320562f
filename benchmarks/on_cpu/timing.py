"""Stages steps, overhead, busy and scaling: how long things take, gpunet beside PyTorch."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.on_cpu.report import Table, counted, milliseconds, ratio_of
from benchmarks.on_cpu.session import Session
from benchmarks.on_cpu.small_ops import SMALL
from benchmarks.on_cpu.workers import GPUNET, NUMPY, best_torch, summary, take_turns
from benchmarks.on_cpu.workloads import WORKLOADS

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
TOKENS = 1024  # in a batch of sequences, where the batch of the workload has as many


def compared(found: dict[str, dict[str, Any]], bar: float | None) -> dict[str, Any]:
    """A row of a table: all configurations, and how many times as long the best of PyTorch's took."""
    best = best_torch(found)
    row: dict[str, Any] = {"configurations": found, "best_torch": best, "bar": bar}
    if best is not None:
        row["ratio"] = found[best]["median"] / found[GPUNET]["median"]
        row["ratio_numpy"] = found[best]["median"] / found[NUMPY]["median"]
        tuned = best_torch(found, tuned=True)
        if tuned is not None and any(name.endswith("tuned") for name in found):
            row["ratio_tuned"] = found[tuned]["median"] / found[GPUNET]["median"]
    return row


def steps(session: Session) -> Iterator[dict[str, Any]]:
    """Training steps of all workloads, and inference of one sample."""
    table = Table(
        ("", 1), ("", 51), ("threads", 7), ("gpunet", 9), ("NumPy", 9), ("torch", 9), ("its best configuration", 27),
        ("ratio", 6), ("bar", 6), ("NumPy's", 7), ("tuned", 6), ("others", 6),
    )  # fmt: skip
    print(
        "Milliseconds a step: medians. ratio: best torch / gpunet; NumPy's: best torch / gpunet without kernels; tuned:"
    )
    print("ratio if torch's process starts with malloc set up to keep memory; others: cores that others kept busy.")
    table.head()
    jobs = [
        (threads, key, kind)
        for threads in session.threads
        for kind in ("train", "infer")
        for key in session.workloads
        if kind == "train" or WORKLOADS[key].inference
    ]
    for i, (threads, key, kind) in enumerate(jobs):
        workload = WORKLOADS[key]
        train = kind == "train"
        task: dict[str, Any] = {"kind": kind, "name": key}
        if not train:
            task["shape"] = [1, *workload.shape[1:]]
        budget = session.budget(1 / (len(jobs) - i))
        with session.working(session.configurations(workload.convolves, train, tuned=True), threads) as workers:
            found = take_turns(workers, task, budget)
        row: dict[str, Any] = {"workload": key, "kind": kind, "threads": threads}
        row |= compared(found, (workload.bars if train else workload.inference).get(threads))
        title = workload.title if train else workload.title.split(",")[0] + ", inference of one sample"
        best = row["best_torch"]
        times = [milliseconds(found[name]["median"]) if name else "" for name in (GPUNET, NUMPY, best)]
        ratios = (*ratio_of(row), row.get("ratio_numpy"), row.get("ratio_tuned"))
        table.row(key, title, threads, *times, best or "", *ratios, _others(found))
        yield row


def overhead(session: Session) -> Iterator[dict[str, Any]]:
    """Small ops, on one thread: what recording and differentiating one costs, and a small step of Adam."""
    table = Table(
        ("us, medians", 53), ("gpunet", 9), ("NumPy", 9), ("torch", 9), ("its best configuration", 27), ("ratio", 6),
        ("bar", 6), ("NumPy's", 7), ("others", 6),
    )  # fmt: skip
    table.head()
    with session.working(session.configurations(images=False), 1) as workers:
        for i, (name, small) in enumerate(SMALL.items()):
            budget = session.budget(1 / (len(SMALL) - i))
            contenders = [w for w in workers if name == "adam" or not w.configuration.for_training]
            found = take_turns(contenders, {"kind": "small", "name": name}, budget)
            for values in found.values():
                values["median"] /= small.ops
                values["fastest"] /= small.ops
                values["medians"] = [median / small.ops for median in values["medians"]]
            row: dict[str, Any] = {"op": name, **compared(found, small.bar)}
            best = row["best_torch"]
            times = [f"{found[name]['median'] * 1e6:.2f}" if name else "" for name in (GPUNET, NUMPY, best)]
            ratios = (*ratio_of(row), row.get("ratio_numpy"))
            table.row(small.title, *times, best or "", *ratios, _others(found))
            yield row


def busy(session: Session) -> Iterator[dict[str, Any]]:
    """Training steps on two threads while another process keeps one of the two cores busy: how much slower they are."""
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_setaffinity") else []
    if len(cores) < 2:
        print("not available: there must be two cores, and a system that binds processes to them")
        return
    table = Table(
        ("", 1), ("", 51), ("gpunet", 9), ("busy", 9), ("slowdown", 8), ("torch", 9), ("busy", 9), ("slowdown", 8),
        ("its configuration", 27), ("no worse", 8), ("ratio", 6),
    )  # fmt: skip
    print(
        "Milliseconds a step. torch: its configuration that is best while idle. ratio: best torch / gpunet while busy."
    )
    table.head()
    for i, key in enumerate(session.workloads):
        workload = WORKLOADS[key]
        ask = {"task": {"kind": "train", "name": key}, "seconds": session.slice_seconds}
        idle: dict[str, list[Any]] = {}
        loaded: dict[str, list[Any]] = {}
        budget = session.budget(1 / (len(session.workloads) - i))
        shuffled = random.Random(0)
        with session.working(session.configurations(workload.convolves), 2, set(cores)) as workers:
            for _ in budget.each_round():
                for worker in shuffled.sample(workers, len(workers)):
                    idle.setdefault(worker.name, []).append(worker.ask("time", **ask))
                    with spinning(cores[-1]):
                        loaded.setdefault(worker.name, []).append(worker.ask("time", **ask))
        found = {name: summary(slices) for name, slices in idle.items()}
        for name, slices in loaded.items():
            found[name]["busy"] = summary(slices)["median"]
            found[name]["slowdown"] = found[name]["busy"] / found[name]["median"]
        best = best_torch(found)
        row: dict[str, Any] = {"workload": key, "configurations": found, "best_torch": best}
        if best is not None:
            row["met"] = found[GPUNET]["slowdown"] <= found[best]["slowdown"]
            row["ratio_busy"] = (
                min(v["busy"] for k, v in found.items() if k.startswith("torch")) / found[GPUNET]["busy"]
            )
        cells: list[Any] = []
        for name in (GPUNET, best) if best else (GPUNET,):
            values = found[name]
            cells += [milliseconds(values["median"]), milliseconds(values["busy"]), values["slowdown"]]
        if best is not None:
            cells += [best, "yes" if row["met"] else "NO", row["ratio_busy"]]
        table.row(key, workload.title, *cells)
        yield row


@contextmanager
def spinning(core: int) -> Iterator[None]:
    """Another process keeps a core busy."""
    command = [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def scaling(session: Session) -> Iterator[dict[str, Any]]:
    """Time per sample of the network d over batch sizes, and of f over lengths of sequences."""
    table = Table(
        ("", 1), ("", 18), ("threads", 7), ("gpunet", 10), ("torch", 10), ("its best configuration", 27), ("ratio", 6)
    )
    print("Microseconds a sample (d) or a token (f).")
    table.head()
    most, _, width = WORKLOADS["f"].shape
    shapes: dict[str, list[tuple[int, tuple[int, ...]]]] = {
        "d": [(size, (size, *WORKLOADS["d"].shape[1:])) for size in BATCHES],
        "f": [(size, (min(most, TOKENS // size), size, width)) for size in LENGTHS],
    }
    curves = [(key, threads) for threads in session.threads for key in shapes if key in session.workloads]
    left = sum(len(shapes[key]) for key, _ in curves)
    for key, threads in curves:
        rows = []
        with session.working(session.configurations(WORKLOADS[key].convolves), threads) as workers:
            for size, shape in shapes[key]:
                found = take_turns(
                    workers, {"kind": "train", "name": key, "shape": list(shape)}, session.budget(1 / left)
                )
                left -= 1
                for worker in workers:
                    worker.ask("forget")
                units = shape[0] if key == "d" else shape[0] * shape[1]
                for values in found.values():
                    values["per_sample"] = values["median"] / shape[0]
                    values["per_unit"] = values["median"] / units
                row: dict[str, Any] = {"workload": key, "threads": threads, "size": size, "batch": shape[0]}
                row |= compared(found, None)
                rows.append(row)
                best = row["best_torch"]
                what = f"batch {size}" if key == "d" else f"T {size}, batch {shape[0]}"
                times = [f"{found[name]['per_unit'] * 1e6:.2f}" if name else "" for name in (GPUNET, best)]
                table.row(key, what, threads, *times, best or "", row.get("ratio"))
                yield row
        rises = [f"gpunet {_largest_rise(rows, [GPUNET])}"]
        if rows[0]["best_torch"]:
            rises.append(f"torch {_largest_rise(rows, [row['best_torch'] for row in rows])}")
        print(f"{key}, {counted(threads, 'thread')}: the largest rise from a size to the next: {', '.join(rises)}")


def _largest_rise(rows: list[dict[str, Any]], names: list[str]) -> str:
    """How many times as long a unit takes at some size as at the one before, and where that is most.

    Args:
        names: the configuration to look at, for each row or for all.
    """
    names = names if len(names) == len(rows) else names * len(rows)
    times = [row["configurations"][name]["per_unit"] for row, name in zip(rows, names)]
    rise, size = max((after / before, row["size"]) for before, after, row in zip(times, times[1:], rows[1:]))
    return f"{rise:.2f} (to {size})"


def _others(found: dict[str, dict[str, Any]]) -> float | None:
    """Cores that other processes kept busy, on average over all workers."""
    values = [v["others"] for v in found.values() if v["others"] is not None]
    return max(sum(values) / len(values), 0.0) if values else None
