"""The host's C++ compiler, which builds the emulated device's kernels and the CPU's own."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from gpunet.errors import KernelError


class Compiler(NamedTuple):
    """A C++ compiler.

    Attributes:
        command: what starts it.
        identity: a text that changes with its version and with the CPU that it compiles for.
        is_gnu: whether it is GCC, which takes some flags that others do not.
    """

    command: tuple[str, ...]
    identity: str
    is_gnu: bool


@functools.cache
def find_compiler() -> Compiler | None:
    """$CXX, g++, c++ or clang++, the first that works; None if none does."""
    for candidate in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        command = tuple(shlex.split(candidate))
        if not command:
            continue
        try:  # all macros that it predefines: its version and the CPU's instruction sets are among them
            macros = _run([*command, "-std=c++17", "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
        except OSError:
            continue
        if macros.returncode == 0:
            return Compiler(command, macros.stdout, "__clang__" not in macros.stdout)
    return None


def compile_host(arguments: Sequence[str], what: str) -> None:
    """Run the compiler.

    Args:
        arguments: its command line.
        what: is compiled, for what, for the error.

    Raises:
        KernelError: it fails, or there is none.
    """
    compiler = find_compiler()
    if compiler is None:
        raise KernelError(f"{what}: there is no C++ compiler; install g++ or name one in the environment variable CXX")
    done = _run([*compiler.command, *arguments])
    if done.returncode:
        raise KernelError(f"{what} does not compile:\n{_explain(done.stderr)}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler, without the sanitizer's runtime that this process may have: it would take ten times as long."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _explain(output: str, most: int = 8) -> str:
    """The lines of a compiler's output that say what is wrong where, and the source lines they are about."""
    lines = output.splitlines()
    told = []
    for i, line in enumerate(lines):
        if match := re.match(r"(?:.*/)?([^/:]+:\d+):(?:\d+:)? (?:fatal )?error: (.*)", line):
            told.append(f"  {match[1]}: {match[2]}")
            if i + 1 < len(lines) and (quoted := re.match(r"\s*\d+ \|(.*)", lines[i + 1])):
                told.append(f"    {quoted[1].strip()}")
    return "\n".join(told[: 2 * most]) or output[-2000:]
