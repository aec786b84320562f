"""The table of a model's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn


def network() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential({"features": features, "flat": nn.Flatten(), "drop": nn.Dropout(), "head": nn.Linear(128, 10)})


def test_table(device: str) -> None:
    model = network().to(device)
    model.features.requires_grad_(False)
    table = nn.summary(model, (2, 3, 8, 8))
    assert str(table) == "\n".join(
        [
            "Layer       Type         Output shape  Parameters",
            "-------------------------------------------------",
            "features.0  Conv2d       (2, 8, 8, 8)         224",
            "features.1  BatchNorm2d  (2, 8, 8, 8)          16",
            "features.2  ReLU         (2, 8, 8, 8)           -",
            "features.3  MaxPool2d    (2, 8, 4, 4)           -",
            "flat        Flatten      (2, 128)               -",
            "drop        Dropout      (2, 128)               -",
            "head        Linear       (2, 10)            1,290",
            "-------------------------------------------------",
            "Parameters: 1,530 (1,290 trainable, 240 frozen), 5.977 KiB",
            "Buffers: 17",
        ]
    )
    assert (table.parameters, table.trainable, table.nbytes, table.buffers) == (1530, 1290, 6120, 17)
    assert repr(table) == str(table) == str(model.summary(gn.zeros((2, 3, 8, 8), device=device)))


def test_nothing_changes() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            self.register_buffer("calls", gn.zeros(()))

        def forward(self, x: Any) -> Any:
            self.calls = self.calls + 1.0
            return x + gn.random.normal(x.shape)

    model = nn.Sequential(network(), Noisy())
    model[0].drop.eval()
    buffer = model[1].calls
    before = {name: v.numpy().copy() for name, v in model.state_dict().items()}
    modes, stream = [m.training for m in model.modules()], gn.random.generator().state_dict()
    model.summary((4, 3, 8, 8))
    with pytest.raises(gn.errors.ShapeError, match="model.0.head"):
        model.summary((4, 3, 16, 16))
    assert gn.random.generator().state_dict() == stream and [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    assert model[1].calls is buffer
    assert not any(m._hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_order_of_calls_shared_layers_and_outputs_of_other_kinds() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.unused = nn.Linear(3, 3)
            self.second = nn.Linear(4, 4)
            self.first = nn.Linear(5, 4)
            self.scale = nn.Parameter(gn.ones(7))

        def forward(self, x: Any, y: Any) -> Any:
            h = self.second(self.second(self.first(x)))
            return {"h": h, "both": (h, y), "n": 3}

    table = nn.summary(Net(), (1, 5), gn.ones(2, dtype="int64"))
    assert [(row.path, row.output, row.parameters) for row in table.rows] == [
        ("first", "(1, 4)", 24),
        ("second", "(1, 4)", 20),
        ("Net", "{h: (1, 4), both: [(1, 4), (2,)], n: int}", 7),
        ("unused", "not called", 12),
    ]
    assert table.parameters == 63


def test_without_inputs() -> None:
    table = network().summary()
    assert [row.output for row in table.rows] == [""] * 7 and table.parameters == 1530


def test_a_model_of_another_dtype_gets_inputs_of_its_own() -> None:
    assert nn.summary(nn.Linear(3, 2, dtype="float64"), (1, 3)).rows[0].output == "(1, 2)"
    assert nn.summary(nn.ReLU(), (1, 3)).parameters == 0


def test_bad_inputs() -> None:
    with pytest.raises(
        gn.errors.DTypeError, match=r"summary: an input must be a Tensor or a shape, a tuple of ints, got"
    ):
        nn.summary(nn.ReLU(), "image")
    with pytest.raises(gn.errors.DTypeError, match=r"a tuple of ints, got an array of shape \(1, 3\)$"):
        nn.summary(nn.ReLU(), np.zeros((1, 3)))
