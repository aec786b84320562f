"""The command line, run as a user would."""

from __future__ import annotations

from pathlib import Path

import pytest

import gpunet as gn
from gpunet import cli, io


def test_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "digits.safetensors"
    assert cli.main(["train", "--epochs", "2", "--device", "cpu", "--save", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1438 images (1, 8, 8) to train with, 359 to test, 10 classes" in out
    accuracy = float(out.split("test accuracy ")[1].split(",")[0])
    assert accuracy > 0.8
    assert "predictions on the test part" in out and "@@" in out

    assert cli.main(["predict", str(file), "--device", "cpu", "--show", "3"]) == 0
    out = capsys.readouterr().out
    assert f"test accuracy {accuracy:.4f}" in out


def test_the_seed_decides_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for seed in (5, 5, 6):
        file = tmp_path / f"{len(states)}.safetensors"
        args = ["train", "--model", "mlp", "--epochs", "1", "--seed", str(seed), "--device", "cpu", "--show", "0"]
        cli.main([*args, "--save", str(file)])
        states.append(io.load(file))
    first, same, other = states
    assert all((first[k] == same[k]).all() for k in first) and not all((first[k] == other[k]).all() for k in first)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert f"gpunet {gn.__version__}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the rate is meant to be too high
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "w.safetensors"
    io.save(file, {"a": gn.ones(1)})
    for args, text in [
        (["train", "--data", "imagenet"], "gpunet: unknown dataset 'imagenet'; known: digits"),
        (["train", "--data", f"cifar10:{tmp_path}"], "cifar"),
        (["train", "--device", "tpu"], "gpunet: unknown device type 'tpu'"),
        (["predict", str(file)], "was not saved by gpunet train"),
        (["predict", str(tmp_path / "none")], "none"),
        (["train", "--epochs", "1", "--lr", "1e30", "--save", str(file)], "epoch 1, batch 2: the loss is nan"),
    ]:
        assert cli.main(args) == 1
        assert text in capsys.readouterr().err
    unwritable = tmp_path / "none" / "w.safetensors"
    assert cli.main(["train", "--save", str(unwritable)]) == 1
    out, err = capsys.readouterr()
    assert "there is no folder" in err and out == ""  # said before the training
    with pytest.raises(SystemExit):
        cli.main(["train", "--model", "transformer"])


@pytest.mark.parametrize(
    "about",
    [
        {"model": "cnn"},
        {"model": "rnn", "shape": "[1, 8, 8]", "classes": "[]"},
        {"model": "mlp", "shape": "[100000, 100000, 100]", "classes": "[]"},
        {"model": "mlp", "shape": "[1, 8, -8]", "classes": "[]"},
        {"model": "mlp", "shape": "[1, 8]", "classes": "[]"},
        {"model": "mlp", "shape": "8", "classes": "[]"},
        {"model": "mlp", "shape": "[1, 8, 8]", "classes": "3"},
        {"model": "mlp", "shape": "[1, 8, 8]", "classes": "["},
    ],
)
def test_a_file_that_describes_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], about: dict[str, str]
) -> None:
    file = tmp_path / "w.safetensors"
    io.save(file, {"a": gn.zeros(1000)}, metadata=about)
    assert cli.main(["predict", str(file)]) == 1
    assert "is damaged: it does not say in a sensible way which network it holds" in capsys.readouterr().err


def test_ctrl_c(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpunet.train.fit", interrupt)
    assert cli.main(["train", "--save", str(tmp_path / "w")]) == 130
    assert capsys.readouterr().err == "gpunet: interrupted\n"
