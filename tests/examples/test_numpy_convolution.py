"""examples/numpy_convolution.py: convolution and max-pooling by loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


def numeric_gradient(function: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """Central differences of function() by each element of x, which it reads."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        before, step = x[index], 1e-6
        x[index] = before + step
        above = function()
        x[index] = before - step
        below = function()
        x[index] = before
        gradient[index] = (above - below) / (2 * step)
    return gradient


def test_loops_and_gpunet_learn_the_same(load_example, capsys, device):
    figures = load_example("numpy_convolution").main(["--epochs", "2", "--samples", "112", "--device", device])
    assert figures["accuracy"] == figures["loop_accuracy"] > 0.4
    assert 0 < figures["difference"] < 1e-10
    printed = capsys.readouterr().out
    assert printed.count("epoch ") == 2
    assert "times as long" in printed


def test_convolve_is_the_sum_over_windows(load_example):
    module = load_example("numpy_convolution")
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    weight = np.array([[[[1.0, 0], [0, -1]]], [[[0.0, 1], [1, 0]]]])
    out = module.convolve(x, weight, np.array([0.5, 0]), padding=0)
    assert np.array_equal(out, [[[[-3.5, -3.5], [-3.5, -3.5]], [[4, 6], [10, 12]]]])
    padded = module.convolve(x, weight, np.array([0.5, 0]), padding=1)
    assert padded.shape == (1, 2, 4, 4)
    assert padded[0, 0, 0, 0] == 0.5 - x[0, 0, 0, 0]
    assert padded[0, 1, 3, 3] == 0 and padded[0, 1, 3, 2] == 8


@pytest.mark.parametrize("padding", [0, 1])
def test_gradients_of_the_convolution(load_example, padding):
    module, rng = load_example("numpy_convolution"), np.random.default_rng(0)
    x, weight, bias = (rng.normal(size=shape) for shape in ((2, 2, 4, 5), (3, 2, 3, 2), (3,)))
    g = rng.normal(size=module.convolve(x, weight, bias, padding).shape)
    found = module.convolve_backward(g, x, weight, padding)
    for array, gradient in zip((x, weight, bias), found, strict=True):
        expected = numeric_gradient(lambda: float(np.sum(g * module.convolve(x, weight, bias, padding))), array)
        assert np.allclose(gradient, expected, atol=1e-8)


def test_max_pool_and_its_gradient(load_example):
    module = load_example("numpy_convolution")
    x = np.array([[[[1.0, 2, 5, 5], [4, 3, 5, 0], [-1, -2, 0, 0], [-3, -4, 0, 0]]]])
    assert np.array_equal(module.max_pool(x, 2), [[[[4, 5], [-1, 0]]]])
    gradient = module.max_pool_backward(np.array([[[[10.0, 20], [30, 40]]]]), x, 2)
    assert np.array_equal(gradient, [[[[0, 0, 20, 0], [10, 0, 0, 0], [30, 0, 40, 0], [0, 0, 0, 0]]]])


def test_a_wrong_loop_is_noticed(load_example, monkeypatch):
    module = load_example("numpy_convolution")
    right = module.max_pool_backward
    monkeypatch.setattr(module, "max_pool_backward", lambda *args: right(*args) * 1.001)
    with pytest.raises(AssertionError, match="outputs or gradients differ by"):
        module.main(["--epochs", "1", "--samples", "16", "--device", "cpu"])
