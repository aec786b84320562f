"""Pictures of a training run as PNG files: curves, a confusion matrix, wrong predictions.

They need matplotlib (`pip install 'gpunet[plot]'`) and leave its global state (pyplot, backend, style) alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpunet.errors import ShapeError
from gpunet.train.bar import number

_BLUE, _ORANGE, _GREY = "#1f6fb4", "#d95f02", "#666666"


def plot_history(history: Mapping[str, Sequence[Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the curves of a run, a panel per quantity with its training and validation values over the epochs.

    Args:
        history: what `fit` returned. Values that are not single numbers, and a learning rate that never changed, are
            left out.
        path: the PNG file.

    Raises:
        ValueError: there is nothing to draw.
        ImportError: matplotlib is not installed.
    """
    series = {name: [number(value) for value in values] for name, values in history.items()}
    series = {name: values for name, values in series.items() if any(value is not None for value in values)}
    if len(set(series.get("lr", []))) == 1:
        del series["lr"]
    names = list(dict.fromkeys(name.removeprefix("val_") for name in series))
    if not names:
        raise ValueError("plot_history: the history holds no epoch")
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = _figure(4.6 * columns, 3.4 * rows)
    for position, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, position + 1)
        for key, label, colour in ((name, "training", _BLUE), (f"val_{name}", "validation", _ORANGE)):
            if key in series:
                values = [math.nan if value is None else value for value in series[key]]
                epochs = range(1, len(values) + 1)
                axes.plot(epochs, values, label=label, color=colour, marker="o" if len(values) < 16 else None, ms=3.5)
        axes.set_title("learning rate" if name == "lr" else name)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if f"val_{name}" in series:
            axes.legend(frameon=False)
    _save(figure, path, title)


def plot_confusion_matrix(
    matrix: Any, path: str | os.PathLike[str], class_names: Sequence[str] | None = None, title: str = ""
) -> None:
    """Draw a confusion matrix: each cell with its count, coloured by its share of the row's (true) class.

    Args:
        matrix: counts (C, C) with a row per true class, as ConfusionMatrix gives them.
        path: the PNG file.
        class_names: C names; numbers without it.

    Raises:
        ShapeError: the matrix is not square, or there are not C names.
        ImportError: matplotlib is not installed.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ShapeError(f"plot_confusion_matrix: expected counts of shape (C, C), got {counts.shape}")
    size = len(counts)
    names = [str(name) for name in (range(size) if class_names is None else class_names)]
    if len(names) != size:
        raise ShapeError(f"plot_confusion_matrix: {len(names)} class names for {size} classes")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 1.8 + 0.5 * size), 16)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if size <= 30:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:g}", ha="center", va="center", color=colour, fontsize=8)
    step = math.ceil(size / 40)
    ticks = range(0, size, step)
    labels = names[::step]
    long = max(map(len, names)) > 3
    axes.set_xticks(ticks, labels, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(ticks, labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.04)
    _save(
        figure,
        path,
        title or f"{np.trace(counts):g} of {counts.sum():g} right ({np.trace(counts) / max(counts.sum(), 1):.2%})",
    )


def plot_predictions(
    images: Any,
    pred: Any,
    target: Any,
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    limit: int = 25,
    only_wrong: bool = True,
    title: str = "",
) -> None:
    """Draw a grid of images with what they are and what they were taken for; of the wrong ones, the surest first.

    Args:
        images: (N, H, W), (N, 1, H, W) or (N, 3, H, W), any range of values; each image is scaled to its own.
        pred: classes (N,), or scores (N, C), logits or probabilities.
        target: classes (N,).
        path: the PNG file.
        class_names: C names; numbers without it.
        limit: how many images at most.
        only_wrong: False draws the first ones, right or wrong.

    Raises:
        ShapeError: the shapes do not fit.
        ImportError: matplotlib is not installed.
    """
    images, pred, target = (np.asarray(array) for array in (images, pred, target))
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(
            f"plot_predictions: expected images (N, H, W), (N, 1, H, W) or (N, 3, H, W), got {images.shape}"
        )
    if target.ndim != 1 or pred.ndim not in (1, 2) or not len(images) == len(pred) == len(target):
        raise ShapeError(
            f"plot_predictions: expected N images, classes (N,) or scores (N, C), and targets (N,), got {images.shape},"
            f" {pred.shape}, {target.shape}"
        )
    classes, chance = (pred, None) if pred.ndim == 1 else (pred.argmax(axis=1), _probabilities(pred).max(axis=1))
    wrong = classes != target
    chosen = np.flatnonzero(wrong) if only_wrong else np.arange(len(target))
    if only_wrong and chance is not None:
        chosen = chosen[np.argsort(-chance[chosen], kind="stable")]
    chosen = chosen[:limit]
    columns = max(1, min(5 if limit <= 25 else 8, len(chosen)))
    rows = max(1, math.ceil(len(chosen) / columns))
    figure = _figure(max(1.7 * columns, 4.5), 2.0 * rows + 0.4)
    for position, index in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, position + 1)
        image = np.moveaxis(images[index].astype(float), 0, -1)
        low, high = image.min(), image.max()
        axes.imshow((image - low) / (high - low or 1), cmap="gray_r" if image.shape[-1] == 1 else None)
        sure = "" if chance is None else f" ({chance[index]:.0%})"
        text = f"{_name(classes[index], class_names)}{sure}\ntrue: {_name(target[index], class_names)}"
        axes.set_title(text, fontsize=9, color=_ORANGE if wrong[index] else _GREY)
        axes.set_axis_off()
    if not len(chosen):
        figure.text(0.5, 0.5, "no wrong predictions" if only_wrong else "no images", ha="center", color=_GREY)
    _save(figure, path, title or f"{wrong.sum()} of {len(target)} wrong")


def _figure(width: float, height: float) -> Any:
    """A figure in inches that draws with Agg, whatever backend pyplot has."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'gpunet[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | os.PathLike[str], title: str) -> None:
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png", bbox_inches="tight", pad_inches=0.15)


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """Rows that are probabilities already as they are, others through a softmax."""
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _name(index: int, names: Sequence[str] | None) -> str:
    return str(index) if names is None else str(names[int(index)])
