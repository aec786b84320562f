"""The CPU's cross-entropy kernels against float64, with classes that are ignored and classes that do not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.nn import functional as F
from gpunet.ops import loss

rng = np.random.default_rng(11)
SHAPES = [(1, 1), (3, 2), (64, 10), (5, 16), (7, 17), (33, 100), (300, 257), (2, 5000)]
IGNORE = -100


def inputs(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes of which every fourth is ignored."""
    target = rng.integers(0, classes, n)
    target[3::4] = IGNORE
    return (rng.standard_normal((n, classes)) * 5).astype(np.float32), target


def run(mode: str, x: Any, target: Any, g: Any, reduction: str) -> list[np.ndarray]:
    """The loss and its gradient."""
    with gn.kernels(mode):
        y = loss.cross_entropy(x, target, None, ignore_index=IGNORE, reduction=reduction)
        how = {"label_smoothing": 0.0, "ignore_index": IGNORE, "reduction": reduction}
        return [np.asarray(y), loss.cross_entropy_grad(g, x, target, None, **how)]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, int], reduction: str) -> None:
    x, target = inputs(*shape)
    g = rng.standard_normal(shape[0] if reduction == "none" else ()).astype(np.float32)
    found = run("force", x, target, g, reduction)
    wanted = run("off", x.astype(np.float64), target, g.astype(np.float64), reduction)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_a_gradient_that_is_broadcast_or_a_number() -> None:
    x, target = inputs(9, 20)
    ones = np.ones(9, np.float32)
    plain = run("force", x, target, ones, "none")[1]
    np.testing.assert_array_equal(run("force", x, target, np.broadcast_to(np.float32(1), 9), "none")[1], plain)
    np.testing.assert_array_equal(run("force", x, target, np.repeat(ones, 2)[::2], "none")[1], plain)
    np.testing.assert_array_equal(run("force", x, target, np.float32(1), "sum")[1], plain)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_where_all_are_ignored(reduction: str) -> None:
    x, target = inputs(4, 6)[0], np.full(4, IGNORE)
    g = np.ones(4 if reduction == "none" else (), np.float32)
    with np.errstate(all="ignore"):
        for a, b in zip(run("force", x, target, g, reduction), run("off", x, target, g, reduction)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classes", [3, 40])
def test_logits_that_are_not_finite(classes: int, value: float) -> None:
    x, target = inputs(6, classes)
    x[2, 1] = x[4] = value
    target[:] = 0
    with np.errstate(all="ignore"):
        for a, b in zip(
            run("force", x, target, np.ones(6, "f"), "none"), run("off", x, target, np.ones(6, "f"), "none")
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["force", "off"])
@pytest.mark.parametrize("wrong", [-1, 10, 2**40, -(2**62)])
@pytest.mark.parametrize("rows", [5, 20_000])
def test_a_class_that_does_not_exist(rows: int, wrong: int, mode: str) -> None:
    x, target = np.zeros((rows, 10), np.float32), np.zeros(rows, np.int64)
    target[3] = wrong
    with gn.kernels("auto" if mode == "force" else mode), pytest.raises(IndexError) as error:
        F.cross_entropy(gn.asarray(x), gn.asarray(target))
    assert str(error.value).startswith(f"cross_entropy: target {wrong} at row 3 is out of range: the input of shape")
    with gn.kernels(mode), pytest.raises(IndexError):
        loss.cross_entropy(x, target, None)


def test_the_gradient_of_a_class_that_does_not_exist_is_nan() -> None:
    x, target = inputs(5, 7)
    target[:] = [0, 7, 1, -1, 6]
    dx = run_gradient(x, target)
    np.testing.assert_array_equal(np.isnan(dx).all(axis=1), [False, True, False, True, False])
    np.testing.assert_array_equal(np.isnan(dx).any(axis=1), [False, True, False, True, False])


def run_gradient(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    how = {"label_smoothing": 0.0, "ignore_index": IGNORE, "reduction": "sum"}
    with gn.kernels("force"):
        return loss.cross_entropy_grad(np.float32(1), x, target, None, **how)


@pytest.mark.parametrize("mode", ["force", "off"])
def test_first_outside(mode: str) -> None:
    with gn.kernels(mode):
        for indices, position in (([0, 4, 5, -1], 2), ([0, 4, -1, 9], 2), ([0, 4, -7], -1), ([], -1), ([-(2**63)], 0)):
            found = loss.first_outside(np.array(indices, np.int64), n=5, ignore=-7)
            assert found == position and type(found) is int
        assert loss.first_outside(np.array([[0, 1], [9, 2]]), n=5) == 2


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SPREAD", 1)  # so that small arrays are divided too
    x, target = inputs(3001, 50)
    before, results = gn.get_num_threads(), []
    try:
        for count in (1, 3):
            gn.set_num_threads(count)
            results.append(run("force", x, target, np.float32(1), "mean"))
    finally:
        gn.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)
