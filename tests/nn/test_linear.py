"""Linear and Identity."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.nn.layers import check_against_torch, check_layer

rng = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values(shape: tuple[int, ...], bias: bool, device: str) -> None:
    layer = nn.Linear(3, 5, bias=bias, device=device, dtype="float64")
    x = rng.standard_normal(shape)
    y = layer(gn.tensor(x, device=device))
    expected = np.einsum("...i,oi->...o", x, layer.weight.detach().cpu().numpy())
    if layer.bias is not None:
        expected = expected + layer.bias.detach().cpu().numpy()
    assert y.device == device and y.dtype == "float64"
    np.testing.assert_allclose(y.detach().cpu().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(shape: tuple[int, ...], bias: bool, device: str) -> None:
    check_layer(nn.Linear(3, 2, bias=bias), rng.standard_normal(shape), device=device)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_against_torch(shape: tuple[int, ...], bias: bool) -> None:
    check_against_torch("Linear", rng.standard_normal(shape).astype("float32"), 3, 5, bias=bias)


def test_a_numpy_array_will_do() -> None:
    layer = nn.Linear(2, 1)
    x = np.ones((3, 2), dtype="float32")
    np.testing.assert_array_equal(layer(x).detach().numpy(), layer(gn.tensor(x)).detach().numpy())


def test_identity() -> None:
    x = gn.ones(3)
    assert nn.Identity(5, unused=True)(x) is x


@pytest.mark.parametrize(
    ("args", "kind", "text"),
    [
        ((-1, 2), ValueError, "Linear: in_features must be at least 1, got -1"),
        ((3, 0), ValueError, "Linear: out_features must be at least 1, got 0"),
        ((3, 2.0), TypeError, "Linear: out_features must be an int, got 2.0"),
        ((3, "4"), TypeError, "Linear: out_features must be an int, got '4'"),
    ],
)
def test_bad_arguments(args: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        nn.Linear(*args)


def test_bad_inputs() -> None:
    with pytest.raises(gn.errors.ShapeError, match=r"expected an input of shape \(..., 3\), got \(\)"):
        nn.Linear(3, 2)(gn.tensor(1.0))
    with pytest.raises(gn.errors.DTypeError, match="only floating-point tensors can require gradients"):
        nn.Linear(3, 2, dtype="int64")


def test_weights_are_transposed_in_memory_and_stay_so() -> None:
    layer = nn.Linear(3, 2)
    same = copy.deepcopy(layer)
    optimizer = gn.optim.Adam(layer.parameters())
    for i in range(2):
        layer(gn.ones((4, 3))).sum().backward()
        optimizer.step()
        assert layer.weight.grad.data.strides == layer.weight.data.strides == (4, 8), i
    same.load_state_dict(layer.state_dict())
    assert same.weight.data.strides == (4, 8)
    np.testing.assert_array_equal(same.weight.data, layer.weight.data)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3), (2, 3), (0, 3)])
@pytest.mark.parametrize("out_features", [1, 2])
def test_batches_of_one(shape: tuple[int, ...], out_features: int) -> None:
    layer = nn.Linear(3, out_features)
    x = rng.standard_normal(shape).astype("float32")
    y = layer(gn.tensor(x)).detach().numpy()
    np.testing.assert_allclose(y, x @ layer.weight.data.T + layer.bias.data, rtol=1e-5, atol=1e-6)
