"""A training step whose products run in kernels, beside the same step on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn, optim
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation

rng = np.random.default_rng(0)
IMAGES, LABELS = rng.standard_normal((24, 50)).astype(np.float32), rng.integers(0, 10, 24)


def network(activation: nn.Module) -> nn.Module:
    gn.manual_seed(0)
    return nn.Sequential(nn.Linear(50, 40), activation, nn.Linear(40, 30, bias=False), activation, nn.Linear(30, 10))


def train(device: str, activation: nn.Module, steps: int = 3) -> tuple[list[float], list[np.ndarray]]:
    """The losses of some steps of SGD, and the weights behind them."""
    model = network(activation).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = gn.asarray(IMAGES, device=device), gn.asarray(LABELS, device=device)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses, [p.detach().cpu().numpy() for p in model.parameters()]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()], ids=repr)
def test_it_computes_what_the_cpu_computes(activation: nn.Module, kernel_device: Backend) -> None:
    losses, weights = train("cpu", activation)
    with gn.kernels("force"):
        got_losses, got_weights = train(kernel_device.name, activation)
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    for got, expected in zip(got_weights, weights):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6)


def test_it_is_the_same_bits_every_time(kernel_device: Backend) -> None:
    first, second = (train(kernel_device.name, nn.ReLU())[1] for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second))


def test_which_products_a_step_launches(kernel_device: Backend) -> None:
    """Three forward, each with its bias; three gradients of weights; two of inputs, which apply the derivatives."""
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device keeps a log of launches")
    log: list[Any] = []
    with emulation(log=log):
        train("emulated", nn.GELU(), steps=1)
    assert len([name for name, _ in log if name.startswith("matmul") and "reduce" not in name]) == 8


def test_hooks_see_each_layer_and_change_nothing(kernel_device: Backend) -> None:
    x = gn.asarray(IMAGES, device=kernel_device.name)
    model = network(nn.SiLU()).to(kernel_device.name)
    fused = model(x).detach().cpu().numpy()
    seen: list[tuple[int, ...]] = []
    for layer in set(model):
        layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    one_by_one = model(x).detach().cpu().numpy()
    assert [shape[-1] for shape in seen] == [40, 40, 30, 30, 10]
    np.testing.assert_allclose(fused, one_by_one, rtol=1e-5, atol=1e-6)


def test_an_activation_that_is_set_up_wrong_is_an_error_here_too(kernel_device: Backend) -> None:
    model = network(nn.GELU("tangent")).to(kernel_device.name)
    with pytest.raises(ValueError, match=r"""gelu: approximate must be "none" or "tanh", got 'tangent'"""):
        model(gn.asarray(IMAGES, device=kernel_device.name))
