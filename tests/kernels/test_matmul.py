"""Every matrix-product kernel that dispatch can choose, run as dispatch runs it, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation, prebuild
from gpunet.backends.kernel import Variant, all_variants
from gpunet.ops import gemm
from tests.kernels.gemm_cases import UNITS

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")

LAYOUTS = ("K_MAJOR", "MN_MAJOR", "STRIDED")


class Case(NamedTuple):
    """A problem: the type, the operands' layouts, and sizes; the aligned ones are multiples of 16 bytes everywhere."""

    compute: str
    a_layout: str
    b_layout: str
    m: int
    n: int
    k: int

    @property
    def dtype(self) -> np.dtype:
        name = {"tf32": "float32"}.get(self.compute, self.compute)
        return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _cases() -> Iterator[Case]:
    for compute in UNITS:
        for a_layout in LAYOUTS[:2]:
            for b_layout in LAYOUTS[:2]:
                yield Case(compute, a_layout, b_layout, 72, 88, 80)
                yield Case(compute, a_layout, b_layout, 37, 29, 21)
        yield Case(compute, "STRIDED", "K_MAJOR", 5, 70, 19)
        for layout in LAYOUTS:
            for k in (80, 131):
                yield Case(compute, layout, "K_MAJOR", k + 2, 1, k)
        yield Case(compute, "K_MAJOR", "MN_MAJOR", 1, 40, 33)


CASES = list(_cases())


def operand(rng: np.random.Generator, backend: Backend, dtype: np.dtype, layout: str, lines: int, k: int) -> Any:
    """A matrix (lines, k) on the device whose elements are adjacent along the axis that `layout` says."""
    shape = {"K_MAJOR": (lines, k), "MN_MAJOR": (k, lines), "STRIDED": (2 * lines, 3 * k)}[layout]
    values = rng.standard_normal(shape).astype(dtype)
    on_device = backend.from_numpy(values, gn.Device(backend.name))
    return {"K_MAJOR": on_device, "MN_MAJOR": on_device.T, "STRIDED": on_device[::2, ::3]}[layout]


def operands(case: Case, backend: Backend) -> tuple[Any, Any]:
    """A (M, K) and B (K, N) of a case, on the device."""
    rng = np.random.default_rng(case.k)
    a = operand(rng, backend, case.dtype, case.a_layout, case.m, case.k)
    b = operand(rng, backend, case.dtype, case.b_layout, case.n, case.k).T
    return a, b


def choices(case: Case, a: Any, b: Any, backend: Backend, architecture: str) -> list[gemm.Choice]:
    """All kernels that take the case, whole and with the sum split in two."""
    problem = problem_of(case, a, b, backend)
    found = gemm.kernels(problem, architecture)
    return [c._replace(splits=s) for c in found for s in (1, 2) if s == 1 or case.k > c.k]


def problem_of(case: Case, a: Any, b: Any, backend: Backend) -> gemm.Problem:
    pointer = backend.launcher("matmul").pointer  # type: ignore[misc]
    gn.set_float32_precision("high" if case.compute == "tf32" else "highest")
    try:
        problem = gemm.make_problem(a, b, (pointer(a), pointer(b)))
    finally:
        gn.set_float32_precision("highest")
    assert problem is not None and problem.compute == case.compute
    return problem


ARCHITECTURES = ("sm_90a", "sm_75")  # between them, they run every kernel


@pytest.fixture(scope="module", autouse=True)
def built(kernel_device: Backend) -> None:
    """All kernels, compiled by all cores at once."""
    if kernel_device.name == "emulated":
        prebuild(variant for variant in all_variants() if variant.runs_on("sm_90a"))
        prebuild((variant for variant in all_variants() if variant.requires == "sm_75"), "sm_75")


def check(case: Case, choice: gemm.Choice, a: Any, b: Any, backend: Backend) -> np.ndarray:
    launcher = backend.launcher("matmul")  # type: ignore[misc]
    problem = problem_of(case, a, b, backend)
    plan = gemm.plan_of((case.m, case.n), problem, choice, gemm.Epilogue(), launcher.processors)
    out = launcher.empty(plan.shape, a.dtype)
    gemm.run(launcher, plan, (launcher.pointer(a), launcher.pointer(b)), out, None, None, None)
    got = backend.to_numpy(out)
    left, right = (backend.to_numpy(x).astype(np.float64) for x in (a, b))
    exact, size = left @ right, np.abs(left) @ np.abs(right)
    storage, operands, sums = UNITS[case.compute]
    bound = ((case.k + 8) * sums + 2.1 * operands) * size + storage * np.abs(exact) * 1.01
    assert (np.abs(got.astype(np.float64) - exact) <= bound).all(), (choice.variant.expression, choice.splits)
    return got


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_kernel(case: Case, kernel_device: Backend) -> None:
    a, b = operands(case, kernel_device)
    launcher = kernel_device.launcher("matmul")  # type: ignore[misc]
    for choice in choices(case, a, b, kernel_device, launcher.architecture):
        check(case, choice, a, b, kernel_device)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.compute == "float16"], ids=lambda case: "-".join(map(str, case))
)
def test_every_kernel_of_turing(case: Case, kernel_device: Backend) -> None:
    """Whose tensor cores have other instructions, and no asynchronous copies."""
    if kernel_device.name != "emulated":
        pytest.skip("a GPU has the architecture that it has")
    a, b = operands(case, kernel_device)
    with emulation(architecture="sm_75"):
        for choice in choices(case, a, b, kernel_device, "sm_75"):
            if choice.variant.requires == "sm_75":
                check(case, choice, a, b, kernel_device)


def test_every_kernel_is_tested(kernel_device: Backend) -> None:
    """The cases reach every variant that there is."""
    reached: set[Variant] = set()
    for case in CASES:
        a, b = operands(case, kernel_device)
        for architecture in ARCHITECTURES:
            reached.update(c.variant for c in choices(case, a, b, kernel_device, architecture))
    products = {v for v in all_variants() if v.file.startswith("matmul_") and v.file != "matmul_reduce"}
    assert {v.expression for v in products} - {v.expression for v in reached} == set()


@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: "-".join(map(str, case)))
def test_the_order_of_threads_makes_no_difference(case: Case, kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("a GPU's threads run in the order they like")
    a, b = operands(case, kernel_device)
    for choice in choices(case, a, b, kernel_device, "sm_90a"):
        results = []
        for order, late in (("forward", False), ("reverse", True), ("random", True), ("random", False)):
            with emulation(order=order, late=late, seed=len(results)):
                results.append(check(case, choice, a, b, kernel_device))
        assert all(r.tobytes() == results[0].tobytes() for r in results), choice.variant.expression
