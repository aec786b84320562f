"""examples/mlp.py: a loop written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_learns_the_digits(load_example, capsys, device):
    figures = load_example("mlp").main(["--data", "digits", "--epochs", "12", "--device", device])
    assert figures["test_accuracy"] > 0.9
    printed = capsys.readouterr().out
    assert printed.count("epoch ") == 12
    assert f"test accuracy {figures['test_accuracy']:.4f}" in printed


def test_the_seed_decides_everything(load_example):
    mlp = load_example("mlp")
    first, again, other = (
        mlp.main(["--data", "digits", "--epochs", "1", "--device", "cpu", "--seed", s]) for s in "112"
    )
    assert first == again
    assert first["loss"] != other["loss"]


def test_runs_alone():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/mlp.py", "--data", "digits", "--epochs", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1: loss" in done.stdout
    assert "test accuracy 0." in done.stdout
