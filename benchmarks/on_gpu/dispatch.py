"""What the stages do with the inside of gpunet's choice of kernels (gpunet/ops/gemm.py), all in one place."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gpunet.errors import KernelError
from gpunet.ops import gemm

TABLE = Path(gemm.__file__).with_name("gemm.json")
LIBRARY = "library"
_all_choices = gemm.choices


def problem_of(launcher: Any, a: Any, b: Any) -> gemm.Problem:
    """The product of two arrays as kernels see it."""
    problem = gemm.make_problem(a, b, (launcher.pointer(a), launcher.pointer(b)))
    assert problem is not None
    return problem


def choices_of(problem: gemm.Problem, launcher: Any) -> dict[str, gemm.Choice]:
    """gpunet's ways to compute a problem, as gemm.json names them, the one that it would take first."""
    return {name(c): c for c in gemm.choices(problem, launcher.architecture, launcher.processors)}


def name(choice: gemm.Choice) -> str:
    """What gemm.json calls a choice."""
    return f"{choice.tile} / {choice.splits}"


def tile(compute: str, choice: str) -> str:
    """What a broken kernel is called: a compute type, and the choice's name without its splits."""
    return f"{compute} {choice.split(' / ')[0]}"


def load(file: Path = TABLE) -> dict[str, Any]:
    """A file like gemm.json."""
    return json.loads(file.read_text(encoding="utf-8"))


def use(table: dict[str, Any]) -> None:
    """Let gpunet choose by this table from now on."""
    gemm._table = lambda: table["architectures"]  # type: ignore[assignment]
    gemm.rates_of.cache_clear()
    gemm._plans.clear()


def leave_out(broken: Collection[str]) -> None:
    """Let gpunet never choose these kernels from now on; named as `tile` does."""

    def choices(problem: gemm.Problem, architecture: str, processors: int) -> list[gemm.Choice]:
        found = _all_choices(problem, architecture, processors)
        sound = [choice for choice in found if tile(problem.compute, name(choice)) not in broken]
        if not sound:
            raise KernelError(f"every kernel for {gemm.bucket(problem)} is broken")
        return sound

    gemm.choices = choices
    gemm._plans.clear()
