"""The CPU's softmax kernels against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.ops import softmax as ops

rng = np.random.default_rng(13)
SHAPES = [(1,), (5,), (3, 16), (4, 17), (2, 3, 64), (7, 1000), (700, 130)]


def normal(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * 5).astype(np.float32)


def run(mode: str, op: Any, *arrays: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    with gn.kernels(mode), np.errstate(all="ignore"):
        return op(*(a.astype(dtype) for a in arrays), axis=-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax], ids=lambda op: op.name)
def test_values(op: Any, shape: tuple[int, ...]) -> None:
    x, g = normal(*shape), normal(*shape)
    y = run("force", op, x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, run("off", op, x, dtype=np.float64), rtol=3e-6, atol=1e-6)
    gradient = ops.softmax_grad if op is ops.softmax else ops.log_softmax_grad
    dx = run("force", gradient, g, y)
    np.testing.assert_allclose(dx, run("off", gradient, g, y, dtype=np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("columns", [3, 40])
@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax], ids=lambda op: op.name)
def test_what_is_not_finite(op: Any, columns: int) -> None:
    x = normal(6, columns)
    x[0, 1], x[1, 2], x[2, 0], x[3], x[4] = np.nan, np.inf, -np.inf, -np.inf, 3e38
    np.testing.assert_allclose(run("force", op, x), run("off", op, x), rtol=1e-5, atol=1e-6)


def test_a_gradient_of_another_layout() -> None:
    y, g = run("force", ops.softmax, normal(30, 20)), normal(20, 30).T
    with gn.kernels("force"):
        np.testing.assert_array_equal(
            ops.softmax_grad(g, y, axis=1), ops.softmax_grad(np.ascontiguousarray(g), y, axis=1)
        )
        broadcast = np.broadcast_to(np.float32(2), y.shape)
        np.testing.assert_allclose(ops.softmax_grad(broadcast, y, axis=1), np.zeros(y.shape), atol=1e-6)


def test_other_axes_and_layouts_take_the_reference() -> None:
    x = normal(4, 5, 6)
    for a, axis in ((x, 0), (x, 1), (x[:, :, ::2], 2), (np.float64(x), 2)):
        with gn.kernels("off"):
            wanted = ops.softmax(a, axis=axis)
        np.testing.assert_array_equal(ops.softmax(a, axis=axis), wanted)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SPREAD", 1)  # so that small arrays are divided too
    x, before, results = normal(999, 300), gn.get_num_threads(), []
    try:
        for count in (1, 3):
            gn.set_num_threads(count)
            results.append(run("force", ops.softmax, x))
    finally:
        gn.set_num_threads(before)
    np.testing.assert_array_equal(*results)
