"""examples/convnet_cifar10.py, on files in CIFAR-10's format that the test draws."""

from __future__ import annotations

import numpy as np
import pytest

COLOURS = np.array([(220, 40, 40), (40, 220, 40), (40, 40, 220), (210, 210, 40), (40, 210, 210)])


def draw(count: int, rng: np.random.Generator) -> np.ndarray:
    """Records (count, 3073) of a label and an image: class c has stripes of colour c % 5, upright for c >= 5.

    The stripes begin anywhere, on a grey of any brightness, under noise.
    """
    labels = rng.integers(0, 10, count)
    across, down = np.meshgrid(np.arange(32), np.arange(32))
    position = np.where((labels >= 5)[:, None, None], across, down)
    striped = (position + rng.integers(0, 8, (count, 1, 1))) % 8 < 4
    grey = rng.integers(60, 200, (count, 1, 1, 1))
    images = np.where(striped[:, None], COLOURS[labels % 5][:, :, None, None], grey) + rng.normal(
        0, 25, (count, 3, 32, 32)
    )
    pixels = np.clip(images, 0, 255).astype(np.uint8).reshape(count, -1)
    return np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)


@pytest.fixture
def cifar(tmp_path):
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        draw(120, rng).tofile(tmp_path / name)
    return f"cifar10:{tmp_path}"


def test_learns_patterns_in_files_of_the_real_format(load_example, cifar, capsys):
    figures = load_example("convnet_cifar10").main(
        ["--data", cifar, "--epochs", "5", "--batch-size", "32", "--device", "cpu"]
    )
    assert figures["test_accuracy"] > 0.6  # chance is 0.1
    captured = capsys.readouterr()
    assert "395,178" in captured.out  # parameters
    assert f"test accuracy {figures['test_accuracy']:.4f}" in captured.out
    assert captured.err.count("accuracy=") == 5


def test_missing_files_are_said_to_be_missing(load_example, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)CIFAR10: did not find data_batch_1.bin.*cifar-10-binary.tar.gz"):
        load_example("convnet_cifar10").main(["--data", f"cifar10:{tmp_path}"])
