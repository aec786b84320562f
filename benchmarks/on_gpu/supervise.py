"""A stage in a process of its own, and what it has done so far in a file.

Kernels that never ran on a device may hang, or break the process's CUDA context for good. So each stage is a child
process that appends what it finds to a record, a file of JSON lines, and says there what it is about to try. If it
dies or hangs, the parent notes which kernel that was, and starts it again; the new one goes on behind what is recorded,
and leaves that kernel out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.on_gpu.machine import Machine

STUCK = 60.0  # seconds after which an attempt that did not say otherwise is taken to hang
GRACE = 20.0  # seconds that a stage may take to end after its time is up
MOST_STARTS = 25
LATE = "its time was up"


class Column(NamedTuple):
    """A column of a stage's table: the key of its value in a row, its title, its width, and how a number is printed."""

    key: str
    title: str
    width: int
    format: str = ""

    def cell(self, row: dict[str, Any]) -> str:
        value = row.get(self.key)
        if value is None:
            return " " * self.width
        text = format(value, self.format) if isinstance(value, (int, float)) else str(value)
        return text.ljust(self.width) if isinstance(value, str) else text.rjust(self.width)


class Run:
    """A stage at work: its options, its time, and its record.

    Attributes:
        options: of the command line.
        rows: what this stage has found, by earlier starts of it too.
        broken: tiles of gpunet/ops/gemm.py that gave wrong results, crashed or hung, and why.
    """

    def __init__(self, options: Any, seconds: float, record: Path) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.broken: dict[str, str] = {}
        self._end = time.monotonic() + seconds
        self._tried: set[str] = set()
        self._columns: tuple[Column, ...] = ()
        for line in read_record(record):
            if "row" in line:
                self.rows.append(line["row"])
            elif "broken" in line:
                self.broken[line["broken"]] = line["why"]
            elif "skip" in line:
                self._tried.add(line["skip"])
        self._record = record.open("a", encoding="utf-8")

    @cached_property
    def machine(self) -> Machine:
        return Machine("emulated" if self.options.dry_run else "cuda", use_torch=self.options.torch != "off")

    @property
    def dry(self) -> bool:
        return self.options.dry_run

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the time is up. A stage does its first work in any case."""
        return self.seconds_left <= 0 and bool(self.rows)

    def table(self, *columns: Column) -> None:
        """Begin a table: the rows from now on are printed in these columns."""
        self._columns = columns
        print(" ".join(c.title.ljust(c.width) if not c.format else c.title.rjust(c.width) for c in columns).rstrip())

    def row(self, **values: Any) -> None:
        """Record a row, and print it."""
        self.rows.append(values)
        self._write({"row": values})
        print(" ".join(column.cell(values) for column in self._columns).rstrip(), flush=True)

    def facts(self, **values: Any) -> None:
        """Record what belongs to the whole stage."""
        self._write({"facts": values})

    def begin(self, label: str, tile: str = "", seconds: float = STUCK) -> bool:
        """Say what is tried next; False if that killed this stage before, or its tile is broken.

        Args:
            label: unique among what the stage tries.
            tile: the tile of gpunet/ops/gemm.py whose fault it is if the process does not survive.
            seconds: what it may take before it counts as hanging.
        """
        if label in self._tried or tile in self.broken:
            return False
        self._write({"begin": label, "tile": tile, "seconds": seconds})
        return True

    def fails(self, what: str, why: str, tile: str = "") -> None:
        """Record something wrong; with a tile, that this is broken."""
        print(f"WRONG: {what}: {why}", flush=True)
        self._write({"problem": f"{what}: {why}"})
        if tile:
            self.broken[tile] = why
            self._write({"broken": tile, "why": why})

    def has(self, **values: Any) -> bool:
        """Whether there is a row with these values."""
        return any(all(row.get(key) == value for key, value in values.items()) for row in self.rows)

    def end(self, is_complete: bool) -> None:
        self._write({"end": is_complete})

    def _write(self, line: dict[str, Any]) -> None:
        self._record.write(json.dumps(line) + "\n")
        self._record.flush()


def read_record(record: Path) -> list[dict[str, Any]]:
    """The lines of a record; of the last one, which a process may have died writing, only if it is whole."""
    if not record.exists():
        return []
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]


def supervise(command: Sequence[str], seconds: float, record: Path) -> dict[str, Any]:
    """Run a stage until it ends, starting it again where it crashes or hangs.

    Args:
        command: starts the stage; " --seconds N" is appended: the time that is left to it.
        seconds: what the stage may take in all.
        record: where it writes.

    Returns:
        What goes into the JSON: seconds, complete, rows, problems, broken, and the stage's own facts.
    """
    started = time.monotonic()
    for _start in range(MOST_STARTS):
        left = max(0.0, seconds - (time.monotonic() - started))
        known = len(read_record(record))
        why = _watch([*command, "--seconds", f"{left:.1f}"], left + GRACE, record)
        tried = [line for line in read_record(record)[known:] if "begin" in line]
        if not why:
            break
        _blame(tried[-1] if tried else None, why, record)
        if not tried or left == 0.0:
            break
    return {"seconds": round(time.monotonic() - started, 1), **_summary(read_record(record))}


def _watch(command: list[str], seconds: float, record: Path) -> str:
    """Run one start of a stage; what went wrong, or ""."""
    child = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + seconds
    size, since, limit = -1, time.monotonic(), STUCK
    try:
        while child.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            grown = record.stat().st_size if record.exists() else 0
            if grown != size:
                size, since = grown, now
                begun = [line for line in read_record(record) if "begin" in line]
                limit = begun[-1]["seconds"] if begun else STUCK
            if now - since > limit:
                return f"nothing came for {limit:.0f} s"
            if now > deadline:
                return LATE
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return "" if child.returncode == 0 else f"its process ended with {child.returncode}"


def _blame(tried: dict[str, Any] | None, why: str, record: Path) -> None:
    """Note in the record what a stage died of, for its next start to leave out."""
    notes: list[dict[str, Any]] = [{"problem": f"{tried['begin'] if tried else 'at its start'}: {why}"}]
    if tried:
        notes.append({"skip": tried["begin"]})
        if tried["tile"] and why != LATE:
            notes.append({"broken": tried["tile"], "why": why})
    print(f"WRONG: {notes[0]['problem']}", flush=True)
    with record.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(note) + "\n" for note in notes))


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in lines:
        facts |= line.get("facts", {})
    ends = [line["end"] for line in lines if "end" in line]
    return {
        "complete": bool(ends and ends[-1]),
        "rows": [line["row"] for line in lines if "row" in line],
        "problems": [line["problem"] for line in lines if "problem" in line],
        "broken": {line["broken"]: line["why"] for line in lines if "broken" in line},
        **facts,
    }
