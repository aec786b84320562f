"""Dropout."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.gradcheck import check_gradients


def test_zeroes_with_probability_p_and_scales_the_rest(device: str) -> None:
    layer = nn.Dropout(0.3)
    x = gn.ones((200, 500), device=device)
    y = layer(x).cpu().numpy()
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.7], rtol=1e-6)
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / y.size)
    assert abs(y.mean() - 1) < 0.01
    assert not np.array_equal(layer(x).cpu().numpy(), y)
    assert layer.eval()(x) is x


def test_the_seed_decides(device: str) -> None:
    masks = []
    for where in ("cpu", device):
        gn.manual_seed(7)
        masks.append(nn.Dropout()(gn.ones((50, 4), device=where)).cpu().numpy())
    np.testing.assert_array_equal(*masks)


def test_extremes() -> None:
    x = gn.ones(10)
    assert nn.Dropout(0)(x).tolist() == [1.0] * 10 and nn.Dropout(1)(x).tolist() == [0.0] * 10


def test_gradients(device: str) -> None:
    layer = nn.Dropout(0.4)
    x = np.random.default_rng(0).standard_normal((4, 5))
    state = copy.deepcopy(gn.random.generator().state_dict())

    def f(x: gn.Tensor) -> gn.Tensor:
        gn.random.generator().load_state_dict(state)  # the same mask each time
        return layer(x * x)

    check_gradients(f, [x], device=device)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_bad_probability(p: float) -> None:
    with pytest.raises(ValueError, match=f"Dropout: p must be a probability, from 0 to 1, got {p}"):
        nn.Dropout(p)


def test_bad_dtype() -> None:
    with pytest.raises(gn.errors.DTypeError, match="expected a floating-point input, got int64"):
        nn.Dropout()(gn.ones(3, dtype="int64"))
