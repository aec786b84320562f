"""Flatten and Unflatten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.nn.layers import check_layer

X = np.arange(120.0).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("args", "shape"), [((), (2, 60)), ((0,), (120,)), ((2,), (2, 3, 20)), ((1, 2), (2, 12, 5)), ((-3, -2), (2, 12, 5))]
)
def test_flatten(args: Any, shape: tuple[int, ...], device: str) -> None:
    y = nn.Flatten(*args)(gn.tensor(X, device=device))
    np.testing.assert_array_equal(y.cpu().numpy(), X.reshape(shape))
    assert nn.Flatten()(gn.zeros((0, 3, 4))).shape == (0, 12)
    check_layer(nn.Flatten(*args), X, device=device)


def test_flatten_is_in_the_order_of_the_axes_whatever_the_memory() -> None:
    y = nn.Conv2d(3, 4, 1, dtype="float64")(gn.tensor(X))  # channels-last in memory
    np.testing.assert_array_equal(nn.Flatten()(y).detach().numpy(), np.array(y.detach().numpy()).reshape(2, -1))


@pytest.mark.parametrize(("axis", "size"), [(1, (3, 20)), (-1, (3, -1)), (1, (60,)), (1, (-1, 3, 4, 5))])
def test_unflatten(axis: int, size: tuple[int, ...], device: str) -> None:
    flat = X.reshape(2, 60)
    layer = nn.Unflatten(axis, size)
    y = layer(gn.tensor(flat, device=device))
    np.testing.assert_array_equal(y.cpu().numpy(), flat.reshape(2, *size))
    check_layer(layer, flat, device=device)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            nn.Flatten(2),
            r"Flatten\(start_axis=2, end_axis=-1\): expected an input that has axes 2 to -1, got shape \(2, 6\)",
        ),
        (nn.Flatten(1, 0), "expected an input that has axes 1 to 0"),
        (nn.Unflatten(1, (4, 2)), r"axis 1 of length 6 does not split into \(4, 2\); the input is \(2, 6\)"),
        (nn.Unflatten(1, (4, -1)), r"axis 1 of length 6 does not split into \(4, -1\)"),
        (nn.Unflatten(1, (-1, -1)), r"does not split into \(-1, -1\)"),
        (nn.Unflatten(2, (2, 3)), r"expected an input that has an axis 2, got shape \(2, 6\)"),
    ],
)
def test_bad_inputs(layer: nn.Module, text: str) -> None:
    with pytest.raises(gn.errors.ShapeError, match=text):
        layer(gn.zeros((2, 6)))
