"""The most memory that training steps take, above what the process held before them.

Linux keeps the largest resident size that a process ever had (VmHWM in /proc/self/status), and forgets it when "5" is
written to /proc/self/clear_refs. So what is measured is the peak during a step itself, not that of importing or of
making the model, to the page. It counts all memory of the process: arrays, what allocators hold back, and code of
libraries that a step is the first to touch. The last is the same at any size of a network, so the steps after the first
are also given without it: peak less pages of files, above the anonymous memory before.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

LATER_STEPS = 3


def peaks(make: Callable[[], Callable[[], Any]]) -> dict[str, int] | None:
    """Bytes that steps take above what is held once `make` has imported, made and loaded everything.

    Args:
        make: prepares a training and returns its step.

    Returns:
        "first": the peak of the first step, which also makes the optimizer's state; "later": that of the next ones;
        "peak": the larger one; "own": that of the next ones, without pages of files; "before": what was held.
        None where the system does not tell.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    step = make()
    gc.collect()
    _give_back()
    before = _sizes()
    _forget_peak()
    step()
    first = _sizes()
    _forget_peak()
    for _ in range(LATER_STEPS):
        step()
    later = _sizes()
    return {
        "before": before["VmRSS"],
        "first": first["VmHWM"] - before["VmRSS"],
        "later": later["VmHWM"] - before["VmRSS"],
        "peak": max(first["VmHWM"], later["VmHWM"]) - before["VmRSS"],
        "own": later["VmHWM"] - later["RssFile"] - before["RssAnon"],
    }


def _give_back() -> None:
    """Give free memory of malloc back to the system, so that what preparations left behind is not at hand for steps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _sizes() -> dict[str, int]:
    """The figures of /proc/self/status, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
