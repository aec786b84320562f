"""examples/transfer_learning.py: features learned on some classes, used for others."""

from __future__ import annotations

import argparse

import numpy as np

import gpunet as gn
from gpunet import data, io


def test_transfer_beats_training_from_scratch_with_few_samples(load_example, tmp_path, capsys):
    weights = tmp_path / "new" / "weights.safetensors"
    options = ["--pretrain-epochs", "10", "--epochs", "20", "--device", "cpu", "--weights", str(weights)]
    figures = load_example("transfer_learning").main(options)
    assert figures["pretrained"] > 0.9
    assert figures["transfer"] > figures["scratch"] + 0.05
    assert figures["scratch"] > 0.3  # it does learn; chance is 0.2
    assert io.load(weights)["head.weight"].shape == (5, 64 * 3 * 3)
    shown = capsys.readouterr().out
    assert "25 samples of the 5 other classes" in shown
    (curve,) = (line.split() for line in shown.splitlines() if line.startswith("transfer  "))
    assert len(curve) == 1 + 5  # after 1, 2, 5, 10 and 20 epochs
    assert curve[-1] == f"{figures['transfer']:.4f}"


def test_frozen_features_stay_as_they_are(load_example):
    example = load_example("transfer_learning")
    few = example.samples(data.named("digits"), range(5, 10), shots=3)
    before, after = {}, {}
    model = example.Network((1, 8, 8), 5)
    model.freeze_features()
    for state, epochs in ((before, 0), (after, 2)):
        example.learn(model, few, few, argparse.Namespace(device="cpu", lr=0.01, epochs=epochs))
        state.update({name: np.array(value) for name, value in model.state_dict().items()})
    assert any("running_mean" in name for name in before)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_samples_of_a_class(load_example):
    digits = data.named("digits")
    drawn = [load_example("transfer_learning").samples(digits, range(5, 10), shots=3) for _ in range(2)]
    images, labels = drawn[0].arrays
    assert images.shape == (15, 1, 8, 8)
    assert labels.tolist() == sorted([*range(5)] * 3)
    assert not np.array_equal(images, drawn[1].arrays[0])
    gn.manual_seed(0)
    again = load_example("transfer_learning").samples(digits, range(5, 10), shots=3)
    assert np.array_equal(images, again.arrays[0])
