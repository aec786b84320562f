"""Initial values: their distributions, and those of layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.nn import init

SHAPE = (64, 32, 3, 3)
FAN_IN, FAN_OUT = 32 * 9, 64 * 9
KAIMING = math.sqrt(2 / FAN_IN)
XAVIER = math.sqrt(2 / (FAN_IN + FAN_OUT))


def check(values: np.ndarray, kind: str, mean: float, std: float) -> None:
    """Assert that `values` could be drawn from that uniform or normal distribution: moments and range."""
    n = values.size
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(n)
    kurtosis = ((values - mean) ** 4).mean() / std**4
    if kind == "uniform":
        bound = math.sqrt(3) * std
        assert values.min() >= mean - bound * (1 + 1e-6) and values.max() <= mean + bound * (1 + 1e-6)
        assert values.max() - values.min() > 2 * bound * (1 - 20 / n)
        assert abs(values.std() - std) < 5 * std * math.sqrt(0.2 / n) and abs(kurtosis - 1.8) < 0.2
    else:
        assert abs(values.std() - std) < 5 * std / math.sqrt(2 * n) and abs(kurtosis - 3) < 0.3


CASES: list[tuple[str, dict[str, Any], str, float, float]] = [
    ("uniform_", {}, "uniform", 0.5, math.sqrt(1 / 12)),
    ("uniform_", {"a": -3.0, "b": 1.0}, "uniform", -1.0, 4 * math.sqrt(1 / 12)),
    ("normal_", {}, "normal", 0.0, 1.0),
    ("normal_", {"mean": 2.0, "std": 0.1}, "normal", 2.0, 0.1),
    ("xavier_uniform_", {}, "uniform", 0.0, XAVIER),
    ("xavier_uniform_", {"gain": 3.0}, "uniform", 0.0, 3 * XAVIER),
    ("xavier_normal_", {"gain": 0.5}, "normal", 0.0, 0.5 * XAVIER),
    ("kaiming_uniform_", {}, "uniform", 0.0, KAIMING),
    ("kaiming_uniform_", {"a": math.sqrt(5)}, "uniform", 0.0, 1 / math.sqrt(3 * FAN_IN)),
    ("kaiming_uniform_", {"mode": "fan_out", "nonlinearity": "relu"}, "uniform", 0.0, math.sqrt(2 / FAN_OUT)),
    ("kaiming_normal_", {"nonlinearity": "tanh"}, "normal", 0.0, 5 / 3 / math.sqrt(FAN_IN)),
]


@pytest.mark.parametrize(("name", "options", "kind", "mean", "std"), CASES)
def test_distributions(name: str, options: Any, kind: str, mean: float, std: float, device: str) -> None:
    parameter = nn.Parameter(gn.empty(SHAPE, device=device))
    data = parameter.data
    assert getattr(init, name)(parameter, **options) is parameter
    assert parameter.data is data and parameter.is_leaf and parameter.requires_grad  # in place, unrecorded
    check(parameter.detach().cpu().numpy().astype("float64"), kind, mean, std)


@pytest.mark.parametrize(("name", "options", "kind", "mean", "std"), CASES)
def test_distributions_are_torchs(name: str, options: Any, kind: str, mean: float, std: float) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    check(getattr(torch.nn.init, name)(torch.empty(SHAPE), **options).double().numpy(), kind, mean, std)


def test_constants() -> None:
    t = gn.empty((2, 3))
    assert init.constant_(t, 2.5).tolist() == [[2.5] * 3] * 2
    assert init.zeros_(t).tolist() == [[0.0] * 3] * 2 and init.ones_(t).tolist() == [[1.0] * 3] * 2
    assert init.eye_(t).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    with pytest.raises(gn.errors.ShapeError, match=r"eye_: expected a matrix, got shape \(2,\)"):
        init.eye_(gn.empty(2))


def test_trunc_normal(device: str) -> None:
    values = init.trunc_normal_(gn.empty(20000, device=device), mean=1.0, std=2.0, a=-1.0, b=1.5).cpu().numpy()
    assert values.min() >= -1.0 and values.max() <= 1.5 and values.min() < -0.99 and values.max() > 1.49
    low, high = -1.0, 0.25  # in standard deviations
    density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    mass = 0.5 * (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2)))
    assert abs(values.mean() - (1.0 + 2.0 * (density(low) - density(high)) / mass)) < 0.02
    with pytest.raises(ValueError, match="holds almost nothing of a normal distribution"):
        init.trunc_normal_(gn.empty(3), a=5.0, b=6.0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (4, 3, 2, 2)])
def test_orthogonal(shape: tuple[int, ...], device: str) -> None:
    t = init.orthogonal_(gn.empty(shape, dtype="float64", device=device), gain=2.0)
    m = t.cpu().numpy().reshape(shape[0], -1)
    small = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-12)
    with pytest.raises(gn.errors.ShapeError, match=r"orthogonal_: expected at least two axes, got shape \(3,\)"):
        init.orthogonal_(gn.empty(3))


def test_gain() -> None:
    assert init.calculate_gain("relu") == pytest.approx(math.sqrt(2))
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(math.sqrt(2 / 1.04))
    assert init.calculate_gain("tanh") == pytest.approx(5 / 3) and init.calculate_gain("linear") == 1.0
    with pytest.raises(ValueError, match="calculate_gain: unknown nonlinearity 'swish'; known: 'linear', "):
        init.calculate_gain("swish")
    with pytest.raises(ValueError, match='mode must be "fan_in" or "fan_out", got \'fan\''):
        init.kaiming_normal_(gn.empty((2, 2)), mode="fan")
    with pytest.raises(
        gn.errors.ShapeError, match=r"need a weight \(out, in, ...\) of at least two axes, got shape \(3,\)"
    ):
        init.xavier_normal_(gn.empty(3))


LAYERS: list[tuple[str, tuple[Any, ...], float]] = [
    ("Linear", (300, 200), 1 / math.sqrt(300)),
    ("Conv2d", (32, 64, 3), 1 / math.sqrt(32 * 9)),
    ("Conv1d", (48, 64, 5), 1 / math.sqrt(48 * 5)),
    ("ConvTranspose2d", (32, 64, 3), 1 / math.sqrt(64 * 9)),
]


@pytest.mark.parametrize(("make", "args", "bound"), LAYERS)
def test_initial_distributions_of_layers(make: str, args: Any, bound: float) -> None:
    biases = []
    for _ in range(8):
        layer = getattr(nn, make)(*args)
        check(layer.weight.detach().numpy().astype("float64"), "uniform", 0.0, bound / math.sqrt(3))
        biases.append(layer.bias.detach().numpy().astype("float64"))
    check(np.concatenate(biases), "uniform", 0.0, bound / math.sqrt(3))


@pytest.mark.parametrize(("make", "args", "bound"), LAYERS)
def test_initial_distributions_are_torchs(make: str, args: Any, bound: float) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = [getattr(torch.nn, make)(*args) for _ in range(8)]
    check(layers[0].weight.detach().double().numpy(), "uniform", 0.0, bound / math.sqrt(3))
    biases = np.concatenate([layer.bias.detach().double().numpy() for layer in layers])
    check(biases, "uniform", 0.0, bound / math.sqrt(3))


def test_embeddings_are_normal() -> None:
    check(nn.Embedding(400, 50).weight.detach().numpy().astype("float64"), "normal", 0.0, 1.0)


def test_the_seed_decides_on_every_device(device: str) -> None:
    def build(where: str) -> nn.Module:
        gn.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 4, 3, device=where), nn.Linear(4, 5, device=where), nn.Embedding(6, 2))

    first, second = build("cpu").state_dict(), build(device).state_dict()
    for name in first:
        np.testing.assert_array_equal(first[name].numpy(), second[name].cpu().numpy(), err_msg=name)
    gn.manual_seed(4)
    assert not np.array_equal(nn.Linear(4, 5).weight.detach().numpy(), first["1.weight"].numpy())
