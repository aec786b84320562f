"""Runs Python programs under the compilers' sanitizers, which then watch the kernels of the emulated device.

    done = run_under("thread", "tests/some_script.py", "an argument")
    assert done.returncode == 0, done.stderr

A sanitizer that finds something ends the process with `FOUND`, its report on stderr.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOUND = 99  # the exit status of a process whose sanitizer found something
_ROOT = Path(__file__).parents[2]
_OPTIONS = {
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={FOUND}",
    "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={FOUND}",
    "TSAN_OPTIONS": f"halt_on_error=1:exitcode={FOUND}",
}


@functools.cache
def preloaded(sanitizer: str) -> tuple[str, tuple[str, ...]] | str:
    """The sanitizer's runtime and what to start a process with, or why there is none on this machine."""
    compiler = os.environ.get("CXX") or "g++"
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    try:
        library = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return f"{compiler} is not installed"
    if not Path(library).is_absolute() or not Path(library).exists():
        return f"{compiler} has no {name}"
    reasons = []
    # ThreadSanitizer's shadow memory may collide with a randomized layout of the address space
    for start in (), ("setarch", "-R"):
        if start and not shutil.which(start[0]):
            continue
        environment = _environment(sanitizer, library)
        probe = subprocess.run([*start, sys.executable, "-c", ""], env=environment, capture_output=True)
        if probe.returncode == 0:
            return library, start
        reasons.append(probe.stderr.decode(errors="replace").strip()[-300:])
    return f"Python does not run under {name}: {reasons[0]}"


def run_under(
    sanitizer: str, program: str, *arguments: str, timeout: float = 300, goes_on: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a Python module ("tests.backends.planted") or script ("a.py") under a sanitizer, and wait for its end.

    Args:
        sanitizer: "address" (with undefined behaviour), "thread", or "" for none.
        program: a module's name, or the path of a script.
        arguments: of the program.
        timeout: seconds that it may take.
        goes_on: do not end the process at the first finding of ThreadSanitizer, but when it ends by itself.

    Returns:
        What it printed, as text, and its exit status.

    Raises:
        pytest.skip: this machine cannot run Python under that sanitizer; says why.
    """
    start: tuple[str, ...] = ()
    environment = dict(os.environ)
    if sanitizer:
        found = preloaded(sanitizer)
        if isinstance(found, str):
            pytest.skip(found)
        library, start = found
        environment = _environment(sanitizer, library)
    if goes_on:
        environment["TSAN_OPTIONS"] = f"exitcode={FOUND}"
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    what = [program] if program.endswith(".py") else ["-m", program]
    return subprocess.run(
        [*start, sys.executable, *what, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        cwd=_ROOT,
    )


def _environment(sanitizer: str, library: str) -> dict[str, str]:
    own = {"LD_PRELOAD": library, "GPUNET_EMULATED_SANITIZE": sanitizer, "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **own, **_OPTIONS}
