"""examples/numpy_network.py: backpropagation by hand."""

from __future__ import annotations

import numpy as np
import pytest


def test_both_networks_learn_the_same(load_example, capsys, device):
    figures = load_example("numpy_network").main(["--epochs", "5", "--device", device])
    assert figures["numpy"] == figures["gpunet"] > 0.9
    assert 0 < figures["difference"] < 1e-10
    assert capsys.readouterr().out.count("gradients differ by at most") == 5


def test_the_derived_gradients_are_those_of_the_loss(load_example):
    """Central differences of L = 1/(2n) sum (y - t)^2, which the formulas know nothing of."""
    rng = np.random.default_rng(0)
    network = load_example("numpy_network").NumPyNetwork(
        [rng.normal(size=shape) for shape in ((4, 6), (4,), (3, 4), (3,))]
    )
    x, t = rng.normal(size=(5, 6)), np.eye(3)[rng.integers(0, 3, 5)]

    def loss() -> float:
        return float(np.sum((network.forward(x)[1] - t) ** 2) / (2 * len(x)))

    for weight, gradient in zip(network.weights, network.gradients(x, t), strict=True):
        for index in np.ndindex(weight.shape):
            before, step = weight[index], 1e-6
            weight[index] = before + step
            above = loss()
            weight[index] = before - step
            below = loss()
            weight[index] = before
            assert gradient[index] == pytest.approx((above - below) / (2 * step), abs=1e-9)


def test_a_wrong_derivation_is_noticed(load_example, monkeypatch):
    module = load_example("numpy_network")
    right = module.NumPyNetwork.gradients
    monkeypatch.setattr(module.NumPyNetwork, "gradients", lambda *args: [g * 1.001 for g in right(*args)])
    with pytest.raises(AssertionError, match="step 0: the gradients differ by"):
        module.main(["--epochs", "1", "--device", "cpu"])
