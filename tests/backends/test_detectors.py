"""Kernels with a planted mistake are caught, by the detectors that should, and right ones by none."""

from __future__ import annotations

import pytest

from gpunet.errors import KernelError
from tests.backends import planted
from tests.backends.planted import BUGS, DETECTORS


@pytest.fixture(scope="module", params=["", "address", "thread"], ids=["no sanitizer", "address", "thread"])
def found(request: pytest.FixtureRequest) -> tuple[set[str], dict[str, list[dict[str, str]]]]:
    """The detectors of a run, and what they say of each kernel."""
    detectors = {request.param} if request.param else set(DETECTORS) - {"address", "thread"}
    return detectors, planted.detections(request.param)


def test_mistakes_are_caught(found: tuple[set[str], dict[str, list[dict[str, str]]]]) -> None:
    detectors, said = found
    caught = {name: set(with_bug) for name, (with_bug, _) in said.items()}
    assert caught == {name: set(kernel.caught_by.split()) & detectors for name, kernel in BUGS.items()}


def test_right_kernels_are_not(found: tuple[set[str], dict[str, list[dict[str, str]]]]) -> None:
    _, said = found
    assert {name: without for name, (_, without) in said.items() if without} == {}


def test_each_mistake_has_a_detector() -> None:
    assert all(set(kernel.caught_by.split()) <= set(DETECTORS) and kernel.caught_by for kernel in BUGS.values())


def test_an_error_names_the_line_and_who_is_there() -> None:
    with pytest.raises(
        KernelError, match=r"^two_barriers: block \(0, 0, 0\), thread \(40, 0, 0\): .* \(threads.cu:16\)$"
    ):
        planted.run("two_barriers", True)
    with pytest.raises(
        KernelError, match=r"threads.cu:7\) was reached by 40 of its 64 threads; the others have returned"
    ):
        planted.run("barrier_and_return", True)
    assert planted.run("two_barriers", False).sum() == 64 * 65 / 2  # later launches are not harmed
