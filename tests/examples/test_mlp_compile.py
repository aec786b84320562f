"""examples/mlp_compile.py: compile, fit, evaluate."""

from __future__ import annotations


def test_learns_the_digits(load_example, capsys, device):
    figures = load_example("mlp_compile").main(["--data", "digits", "--epochs", "12", "--device", device])
    assert figures["test_accuracy"] > 0.9
    assert figures["val_accuracy"] > 0.85
    captured = capsys.readouterr()
    assert "(1, 128)" in captured.out  # the table of layers
    assert f"test accuracy {figures['test_accuracy']:.4f}" in captured.out
    assert captured.err.count("val_accuracy=") == 12
