"""The tests of the CPU's kernels once more, with AddressSanitizer and UndefinedBehaviorSanitizer watching; and those of
the threads that share their work, with ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpunet.backends.native import library
from tests.backends.sanitizers import FOUND, run_under

PLANTED = """
import numpy as np
from gpunet.backends.native import library

x = np.zeros(1 << 10, np.float32)
library("elementwise").relu(x, np.zeros(1 << 9, np.float32), 0, 1 << 10)  # writes beyond the end
"""


@pytest.fixture(autouse=True)
def sanitize(monkeypatch: pytest.MonkeyPatch) -> None:
    if not library("conv").usable():
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("GPUNET_CPU_SANITIZE", "address")


def test_they_are_watched(tmp_path: Path) -> None:
    program = tmp_path / "planted.py"
    program.write_text(PLANTED, encoding="utf-8")
    done = run_under("address", str(program))
    assert done.returncode == FOUND and "heap-buffer-overflow" in done.stderr


def test_none_leaves_its_arrays() -> None:
    done = run_under("address", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels/cpu", timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_crew_has_no_races(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNET_CPU_SANITIZE", "thread")
    chosen = "every_part or many_callers_of_the_crew or changes_its_size"
    done = run_under("thread", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "tests/backends/test_threads.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
