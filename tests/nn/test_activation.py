"""Activations: the functions and the layers, against formulas of Python's math module, derivatives, extremes, torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.nn import functional as F
from tests.gradcheck import check_gradients

Formula = Callable[[float], float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float, beta: float = 1.0) -> float:
    return math.log1p(math.exp(beta * x)) / beta


def elu(x: float, alpha: float = 1.0) -> float:
    return x if x > 0 else alpha * math.expm1(x)


def gelu_tanh(x: float) -> float:
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# name: the layer, the function, the formula of one element
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[gn.Tensor], gn.Tensor], Formula]] = {
    "ReLU()": (nn.ReLU, F.relu, lambda x: max(x, 0.0)),
    "ReLU6()": (nn.ReLU6, F.relu6, lambda x: min(max(x, 0.0), 6.0)),
    "LeakyReLU(negative_slope=0.01)": (nn.LeakyReLU, F.leaky_relu, lambda x: max(x, 0.01 * x)),
    "LeakyReLU(negative_slope=0.2)": (
        lambda: nn.LeakyReLU(0.2),
        lambda x: F.leaky_relu(x, 0.2),
        lambda x: max(x, 0.2 * x),
    ),
    "ELU(alpha=1.0)": (nn.ELU, F.elu, elu),
    "ELU(alpha=0.5)": (lambda: nn.ELU(0.5), lambda x: F.elu(x, 0.5), lambda x: elu(x, 0.5)),
    "SELU()": (nn.SELU, F.selu, lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772)),
    "GELU(approximate='none')": (nn.GELU, F.gelu, lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2)))),
    "GELU(approximate='tanh')": (lambda: nn.GELU("tanh"), lambda x: F.gelu(x, "tanh"), gelu_tanh),
    "SiLU()": (nn.SiLU, F.silu, lambda x: x * sigmoid(x)),
    "Mish()": (nn.Mish, F.mish, lambda x: x * math.tanh(softplus(x))),
    "Softplus(beta=1.0, threshold=20.0)": (nn.Softplus, F.softplus, softplus),
    "Softplus(beta=2.0, threshold=3.0)": (
        lambda: nn.Softplus(2.0, 3.0),
        lambda x: F.softplus(x, 2.0, 3.0),
        lambda x: x if 2 * x > 3 else softplus(x, 2.0),
    ),
    "Sigmoid()": (nn.Sigmoid, F.sigmoid, sigmoid),
    "LogSigmoid()": (nn.LogSigmoid, F.logsigmoid, lambda x: math.log(sigmoid(x))),
    "Tanh()": (nn.Tanh, F.tanh, math.tanh),
    "Hardtanh(min_val=-1.0, max_val=1.0)": (nn.Hardtanh, F.hardtanh, lambda x: min(max(x, -1.0), 1.0)),
    "Hardtanh(min_val=-2.0, max_val=0.5)": (
        lambda: nn.Hardtanh(-2.0, 0.5),
        lambda x: F.hardtanh(x, -2.0, 0.5),
        lambda x: min(max(x, -2.0), 0.5),
    ),
    "Hardsigmoid()": (nn.Hardsigmoid, F.hardsigmoid, lambda x: min(max(x + 3, 0.0), 6.0) / 6),
    "Hardswish()": (nn.Hardswish, F.hardswish, lambda x: x * min(max(x + 3, 0.0), 6.0) / 6),
}
X = np.linspace(-7.03, 7.05, 24).reshape(2, 3, 4)


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name: str, device: str) -> None:
    make, function, formula = CASES[name]
    layer = make()
    assert repr(layer) == name and not layer.state_dict()
    expected = np.array([formula(float(x)) for x in X.ravel()]).reshape(X.shape)
    x = gn.asarray(X, device=device)
    np.testing.assert_allclose(layer(x).cpu().numpy(), expected, rtol=1e-12, atol=1e-13)
    assert (layer(x) == function(x)).all()
    check_gradients(layer, [X], device=device)


@pytest.mark.parametrize("name", CASES)
def test_as_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    layer, theirs = CASES[name][0](), eval(f"torch.nn.{name}", {"torch": torch})
    # away from the kinks and at them, but for those of hardswish, where torch's versions differ
    x = np.concatenate([X.ravel(), [0.0, 1.0, -1.0, 6.0, -2.0, 0.5, 1.5, 25.0, -30.0]]).astype("float32")
    a, b = gn.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    g = np.linspace(0.5, 2, x.size, dtype="float32")
    layer(a).backward(gn.asarray(g))
    theirs(b).backward(torch.tensor(g))
    np.testing.assert_allclose(layer(a).detach().numpy(), theirs(b).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_extremes_are_finite(name: str, dtype: str, device: str) -> None:
    layer = CASES[name][0]()
    x = gn.tensor(np.array([-3e4, -1e4, -100, 0, 100, 1e4, 3e4], dtype), device=device, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype and np.isfinite(y.detach().cpu().numpy()).all()
    (g,) = gn.grad(y.sum(), [x], create_graph=True)
    assert np.isfinite(g.detach().cpu().numpy()).all()
    if dtype != "float16" and g.requires_grad:
        (h,) = gn.grad(g.sum(), [x])
        assert np.isfinite(h.cpu().numpy()).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int, device: str) -> None:
    e = np.exp(X)
    expected = e / e.sum(axis=axis, keepdims=True)
    x = gn.asarray(X, device=device)
    np.testing.assert_allclose(nn.Softmax(axis)(x).cpu().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(nn.LogSoftmax(axis)(x).cpu().numpy(), np.log(expected), rtol=1e-12)
    assert repr(nn.Softmax(axis)) == f"Softmax(axis={axis})"
    assert repr(nn.LogSoftmax(axis)) == f"LogSoftmax(axis={axis})"
    check_gradients(nn.Softmax(axis), [X], device=device)
    check_gradients(nn.LogSoftmax(axis), [X], device=device)


@pytest.mark.parametrize("parameters", [1, 3])
def test_prelu(parameters: int, device: str) -> None:
    layer = nn.PReLU(parameters, init=0.1).to(device)
    assert repr(layer) == f"PReLU(num_parameters={parameters})"
    assert layer.weight.shape == (parameters,) and layer.weight.dtype == "float32"
    weight = np.linspace(0.1, 0.3, parameters)
    x = gn.asarray(X, device=device)
    expected = np.where(X > 0, X, X * weight.reshape(1, -1, 1))
    np.testing.assert_allclose(F.prelu(x, gn.asarray(weight, device=device)).cpu().numpy(), expected, rtol=1e-12)
    check_gradients(F.prelu, [X, weight], device=device)


def test_prelu_of_another_number_of_channels() -> None:
    with pytest.raises(gn.errors.ShapeError) as caught:
        nn.PReLU(4)(gn.zeros((2, 3, 5)))
    assert str(caught.value).endswith(
        "prelu: expected one weight, or one for each of the 3 channels of the input of shape (2, 3, 5), got shape (4,)"
    )
    assert nn.PReLU()(gn.zeros(())).shape == ()


@pytest.mark.parametrize("layer", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardtanh])
def test_inplace_makes_no_difference(layer: Any) -> None:
    x = gn.asarray(X)
    before = x.copy()
    y = layer(inplace=True)(x)
    assert (x == before).all() and (y == layer()(x)).all()
    assert repr(layer(inplace=True)) == repr(layer())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="hardtanh: min_val must be below max_val, got 1.0 and 1.0"):
        F.hardtanh(gn.zeros(3), 1.0, 1.0)
    with pytest.raises(ValueError, match='gelu: approximate must be "none" or "tanh", got \'fast\''):
        F.gelu(gn.zeros(3), "fast")


def test_relu_keeps_nan() -> None:
    assert math.isnan(F.relu(gn.asarray(math.nan)).item()) and math.isnan(F.relu6(gn.asarray(math.nan)).item())
