import sys

import numpy as np
import pytest

from gpunet.errors import ShapeError
from gpunet.train import plots

matplotlib = pytest.importorskip("matplotlib")


def image(path):
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return imread(path)[..., :3]


def coloured(pixels):
    """Share of the pixels that are neither white nor grey."""
    return np.mean(np.ptp(pixels, axis=-1) > 0.2)


def test_history_curves(tmp_path):
    history = {"loss": [1.0, 0.5, 0.4], "val_loss": [1.1, 0.7, 0.6], "matrix": [np.eye(2)] * 3, "lr": [0.1] * 3}
    plots.plot_history(history, tmp_path / "one.png")
    plots.plot_history(history | {"accuracy": [None, 0.5, 0.7], "lr": [0.1, 0.1, 0.01]}, tmp_path / "three.png", "run")
    one, three = image(tmp_path / "one.png"), image(tmp_path / "three.png")
    assert coloured(one) > 0.003
    assert three.shape[1] > 2 * one.shape[1]  # loss, accuracy and learning rate beside each other


def test_confusion_matrix_puts_the_true_class_in_rows(tmp_path):
    plots.plot_confusion_matrix(
        np.array([[5, 5, 0], [0, 9, 0], [9, 0, 0]]), tmp_path / "m.png", ["a", "b", "a long name"]
    )
    pixels = image(tmp_path / "m.png")
    dark = np.all(np.abs(pixels - [0.03, 0.19, 0.42]) < 0.04, axis=-1)  # the colour of a share of 1
    half = pixels.shape[1] // 2
    rows = np.flatnonzero(dark[:, :half].sum(axis=1) > 30)
    assert rows.size and rows.min() > pixels.shape[0] / 2  # (2, 0) is full: bottom left


def test_wrong_predictions(tmp_path):
    images = np.zeros((30, 3, 8, 8))
    images[:, 0] = 1.0
    target = np.arange(30) % 3
    scores = np.eye(3)[target]
    plots.plot_predictions(images, scores, target, tmp_path / "none.png")
    assert coloured(image(tmp_path / "none.png")) < 0.001
    scores[:7] = np.roll(scores[:7], 1, axis=1)
    plots.plot_predictions(images, scores, target, tmp_path / "seven.png")
    plots.plot_predictions(images, scores, target, tmp_path / "all.png", only_wrong=False, class_names="abc")
    red = [np.mean(np.all(image(tmp_path / f"{n}.png") == [1, 0, 0], axis=-1)) for n in ("seven", "all")]
    assert red[0] > 0.3 and red[1] > 0.3
    assert image(tmp_path / "all.png").shape[0] > 2 * image(tmp_path / "seven.png").shape[0]  # 5 rows and 2


def test_the_surest_mistakes_come_first(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **options: titles.append(text))
    scores = np.log([[0.7, 0.3], [0.1, 0.9], [0.4, 0.6]])
    plots.plot_predictions(
        np.zeros((3, 2, 2)), scores, np.array([1, 0, 1]), tmp_path / "p.png", class_names=["cat", "dog"]
    )
    assert titles == ["dog (90%)\ntrue: cat", "cat (70%)\ntrue: dog"]


def test_global_state_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    plots.plot_history({"loss": [1.0]}, tmp_path / "h.png")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'gpunet\[plot\]'"):
        plots.plot_history({"loss": [1.0]}, tmp_path / "h.png")


def test_bad_input(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="plot_history: the history holds no epoch"):
        plots.plot_history({}, path)
    with pytest.raises(ShapeError, match=r"plot_confusion_matrix: expected counts of shape \(C, C\), got \(2, 3\)"):
        plots.plot_confusion_matrix(np.zeros((2, 3)), path)
    with pytest.raises(ShapeError, match="3 class names for 2 classes"):
        plots.plot_confusion_matrix(np.zeros((2, 2)), path, ["a", "b", "c"])
    with pytest.raises(ShapeError, match=r"expected images .*, got \(4, 2, 8, 8\)"):
        plots.plot_predictions(np.zeros((4, 2, 8, 8)), np.zeros(4), np.zeros(4), path)
    with pytest.raises(ShapeError, match=r"expected N images, .* got \(4, 1, 8, 8\), \(3,\), \(4,\)"):
        plots.plot_predictions(np.zeros((4, 8, 8)), np.zeros(3), np.zeros(4), path)
    assert not path.exists()
