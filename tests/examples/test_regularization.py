"""examples/regularization.py: an over-fitting network, and what helps it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gpunet import data


@pytest.fixture
def example(load_example):
    return load_example("regularization")


def test_each_remedy_helps_a_network_that_over_fits(example, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    path = tmp_path / "new" / "curves.png"
    finals = example.main(["--epochs", "40", "--samples", "300", "--device", "cpu", "--plot", str(path)])
    nothing = finals.pop("nothing")
    assert nothing["train_accuracy"] > 0.9  # 30% of the labels are wrong: these were learned by heart
    assert nothing["gap"] > 0.1
    assert len(finals) == 4
    for final in finals.values():
        assert final["test_accuracy"] > nothing["test_accuracy"] + 0.03
        assert final["gap"] < nothing["gap"] - 0.1
    stopped = finals.pop("early stopping")
    assert stopped["kept_epoch"] == stopped["epochs"] - 10 < 30
    assert all(final["epochs"] == 40 for final in finals.values())

    shown = capsys.readouterr().out
    assert f"early stopping  {stopped['train_accuracy']:.4f}  {stopped['test_accuracy']:.4f}" in shown
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 500
    assert 0.005 < np.mean(np.ptp(pixels, axis=-1) > 0.2) < 0.2  # the share that is coloured: curves


def test_without_matplotlib_there_is_a_note_and_no_picture(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # importing it fails
    options = ["--epochs", "1", "--samples", "20", "--device", "cpu", "--plot", str(tmp_path / "curves.png")]
    assert set(example.main(options)) == set(example.METHODS)
    assert "that needs matplotlib, pip install 'gpunet[plot]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_share_of_wrong_labels_is_as_asked(example):
    digits = data.named("digits")
    samples = example.few_samples(digits, 100, 0.3)
    images, labels = digits.get_batch(np.arange(len(digits)))
    right = {image.tobytes(): label for image, label in zip(images, labels)}
    wrong = [right[image.tobytes()] != label for image, label in samples]
    assert len(samples) == 100
    assert sum(wrong) == 30
    assert not all(wrong[:30])
    assert set(samples.arrays[1]) == set(range(10))


def test_all_methods_begin_with_the_same_weights(example):
    few = example.few_samples(data.named("digits"), 20, 0.0)
    args = example.argparse.Namespace(seed=3, epochs=0, device="cpu")
    finals = [example.run(few, data.named("digits", train=False), args, **o)[0] for o in ({}, {"dropout": 0.5})]
    assert finals[0]["test_loss"] == finals[1]["test_loss"]
