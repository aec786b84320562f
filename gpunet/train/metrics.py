"""Streaming metrics: fed batch by batch, they give the value for all of the data, as if computed in one go.

    accuracy = Accuracy()
    for x, y in loader:
        accuracy.update(model(x), y)
    print(accuracy.compute())

Predictions and targets are Tensors on any device or NumPy arrays. Totals stay on the device until `compute`; an
`update` transfers no more than it takes to check that the targets are in range.

What classification metrics accept, for targets of shape (N, ...) that hold class indices 0..C-1:
- scores of shape (N, C, ...), logits or probabilities: the predicted class is the highest score;
- predicted classes: integers or booleans of the targets' shape;
- for two classes, one score per target: floats of shape (N,) or (N, 1), class 1 where it is above `threshold`. That is
  0.5 for probabilities; for logits (as for BCEWithLogitsLoss) give `threshold=0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.errors import DTypeError, ShapeError
from gpunet.tensor import Tensor

Totals = dict[str, Any]


class Metric:
    """A quantity that adds up over batches.

    A subclass says how to measure one batch (`_measure`: named totals), how to get the value from all totals
    (`_result`), and, where they do not simply add up, how to join two totals (`_combine`).

    Attributes:
        name: what it is called in logs.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._totals: Totals = {}

    def update(self, pred: Any, target: Any) -> None:
        """Take in one batch.

        Raises:
            ShapeError: the shapes do not fit each other.
            ValueError: a target is out of range.
        """
        self._totals = self._combine(self._totals, self._measure(pred, target))

    def compute(self) -> Any:
        """The value so far: a float, or a NumPy array where the metric has several values; NaN before any data."""
        if not self._totals:
            return float("nan")
        result = np.asarray(self._result({name: _to_host(total) for name, total in self._totals.items()}))
        return result if result.ndim else result.item()

    def reset(self) -> None:
        """Forget all data."""
        self._totals = {}

    def merge(self, other: Metric) -> None:
        """Take in what `other`, a metric of the same kind that saw other data, has seen."""
        if type(other) is not type(self):
            raise TypeError(f"{self.name}: cannot merge a {type(other).__name__} into a {type(self).__name__}")
        self._totals = self._combine(self._totals, other._totals)

    def state_dict(self) -> Totals:
        """The totals, as numbers and NumPy arrays."""
        return {name: _to_host(total) for name, total in self._totals.items()}

    def load_state_dict(self, state: Totals) -> None:
        """Go on from totals that `state_dict` gave."""
        self._totals = dict(state)

    def _measure(self, pred: Any, target: Any) -> Totals:
        raise NotImplementedError

    def _combine(self, a: Totals, b: Totals) -> Totals:
        return {name: _add(a[name], b[name]) for name in b} if a and b else a or b

    def _result(self, totals: Totals) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}={self.compute()})"


class Mean(Metric):
    """The weighted mean of numbers, such as a loss: `loss.update(mean of a batch, number of samples in it)`."""

    def __init__(self, name: str = "mean") -> None:
        super().__init__(name)

    def update(self, value: Any, count: float = 1) -> None:
        """Take in `value`, a number or a 0-d array, with the weight `count`."""
        super().update(value, count)

    def _measure(self, value: Any, count: float) -> Totals:
        return _weighted(value, count)

    def _result(self, totals: Totals) -> Any:
        return totals["sum"] / totals["count"] if totals["count"] else float("nan")


class MeanOf(Metric):
    """The mean over samples of a function (pred, target) -> mean of a batch, to use any function as a metric."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str | None = None) -> None:
        super().__init__(name or str(getattr(function, "__name__", type(function).__name__)))
        self.function = function

    def _measure(self, pred: Any, target: Any) -> Totals:
        return _weighted(self.function(pred, target), len(target))

    _result = Mean._result


# --- classification


class _Classification(Metric):
    """Targets are class indices; see the top of the module for what predictions can be.

    Args:
        threshold: where there is one score per target, class 1 is above it.
        ignore_index: targets of this value, and their predictions, are left out.
    """

    def __init__(self, name: str, threshold: float = 0.5, ignore_index: int | None = None) -> None:
        super().__init__(name)
        self.threshold = threshold
        self.ignore_index = ignore_index

    def _classes(self, pred: Any, target: Any) -> tuple[Any, Any, int | None]:
        """Predicted and true classes, flat int64 arrays of one length, and the number of classes where it is known."""
        p, t = self._arrays(pred, target)
        count: int | None = None
        if p.ndim == t.ndim + 1 and p.shape[1] == 1:  # one score per target, in a column
            p = p[:, 0]
        if p.ndim == t.ndim + 1 and _without_axis_1(p.shape) == t.shape:
            count = p.shape[1]
            p = p.argmax(axis=1)
        elif p.shape != t.shape:
            raise ShapeError(
                f"{self.name}: predictions of shape {p.shape} do not fit targets of shape {t.shape}; for targets"
                " (N, ...) expected scores (N, C, ...) or predicted classes (N, ...)"
            )
        elif p.dtype.kind == "f":
            if p.ndim > 1 and p.shape[1] != 1:
                raise ShapeError(
                    f"{self.name}: scores and targets both have shape {p.shape}; for classes give class indices as"
                    " targets, target.argmax(axis=1); for independent yes/no labels flatten both, .reshape(-1)"
                )
            count = 2
            p = p > self.threshold
        p, t = p.reshape(-1).astype("int64"), self._indices(t.reshape(-1))
        if self.ignore_index is not None:
            keep = t != self.ignore_index
            p, t = p[keep], t[keep]
        self._check_range(t, count)
        if count is None:
            self._check_range(p, None, "predictions")
        return p, t, count

    def _arrays(self, pred: Any, target: Any) -> tuple[Any, Any]:
        p, t = _arrays(pred, target)
        if not p.ndim or not t.ndim:
            raise ShapeError(f"{self.name}: expected batches, got predictions {p.shape} and targets {t.shape}")
        if len(p) != len(t):
            raise ShapeError(f"{self.name}: {len(p)} predictions and {len(t)} targets: expected equal numbers")
        return p, t

    def _indices(self, target: Any) -> Any:
        indices = target.astype("int64")
        if target.dtype.kind == "f" and bool((indices != target).any()):
            raise DTypeError(
                f"{self.name}: targets must be class indices, got {target.dtype} values that are not whole"
            )
        return indices

    def _check_range(self, classes: Any, count: int | None, what: str = "targets") -> None:
        if not classes.size:
            return
        wrong = (classes < 0) if count is None else (classes < 0) | (classes >= count)
        if bool(wrong.any()):
            low, high = int(classes.min()), int(classes.max())
            expected = f"0 to {count - 1}" if count is not None else "0 or more"
            raise ValueError(f"{self.name}: {what} range from {low} to {high}, expected class indices {expected}")


class Accuracy(_Classification):
    """Share of predictions that are right."""

    def __init__(self, threshold: float = 0.5, ignore_index: int | None = None, name: str = "accuracy") -> None:
        super().__init__(name, threshold, ignore_index)

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t, _ = self._classes(pred, target)
        return {"sum": (p == t).sum(), "count": t.size}

    _result = Mean._result


class TopKAccuracy(_Classification):
    """Share of samples whose true class is among the `k` highest scores. Of equal scores, the lower class ranks higher.

    Predictions must be scores, (N, C, ...) for targets (N, ...), with C >= k. NaN ranks above every score, so a true
    class never gains from one.
    """

    def __init__(self, k: int = 5, ignore_index: int | None = None, name: str | None = None) -> None:
        if k < 1:
            raise ValueError(f"TopKAccuracy: k must be at least 1, got {k}")
        super().__init__(name or f"top{k}", ignore_index=ignore_index)
        self.k = k

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t = self._arrays(pred, target)
        if p.ndim != t.ndim + 1 or _without_axis_1(p.shape) != t.shape or p.shape[1] < self.k:
            raise ShapeError(
                f"{self.name}: expected scores (N, C, ...) with C >= {self.k} for targets (N, ...), got {p.shape} for"
                f" {t.shape}"
            )
        xp = _module(p)
        classes = p.shape[1]
        p, t = xp.moveaxis(p, 1, -1).reshape(-1, classes), self._indices(t.reshape(-1))
        if self.ignore_index is not None:
            keep = t != self.ignore_index
            p, t = p[keep], t[keep]
        self._check_range(t, classes)
        own = xp.take_along_axis(p, t[:, None], axis=1)
        ahead = ~(p <= own) | ((p == own) & (xp.arange(classes) < t[:, None]))
        return {"sum": (ahead.sum(axis=1) < self.k).sum(), "count": t.size}

    _result = Mean._result


class ConfusionMatrix(_Classification):
    """Counts of (true class, predicted class): an int64 array (C, C) with a row per true class.

    Args:
        num_classes: C. Without it, C is the number of scores per sample, or the highest class seen plus one.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        threshold: float = 0.5,
        ignore_index: int | None = None,
        name: str = "confusion_matrix",
    ) -> None:
        super().__init__(name, threshold, ignore_index)
        self.num_classes = num_classes

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t, count = self._classes(pred, target)
        if self.num_classes is not None:
            self._check_range(t, self.num_classes)
            self._check_range(p, self.num_classes, "predictions")
        size = self.num_classes or count or 1 + max(_highest(p), _highest(t))
        matrix = _module(p).bincount(t * size + p, minlength=size * size).reshape(size, size)
        return {"matrix": matrix}

    def _result(self, totals: Totals) -> Any:
        return totals["matrix"]


class _Counts(_Classification):
    """A ratio of per-class counts: of right predictions, of predictions, and of targets.

    Args:
        average: "macro": the mean over the classes that occur in the targets or the predictions; "weighted": the mean
            weighted by how often a class occurs in the targets; "micro": the ratio of the counts of all classes
            together; "binary": of class 1; None: one value per class, an array (C,).
        zero_division: the value where nothing was there to divide by. As scikit-learn's.
        threshold, ignore_index: see the top of the module; targets of the value `ignore_index` are left out.
    """

    def __init__(
        self,
        average: str | None = "macro",
        zero_division: float = 0.0,
        threshold: float = 0.5,
        ignore_index: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name or type(self).__name__.lower(), threshold, ignore_index)
        if average not in ("macro", "weighted", "micro", "binary", None):
            raise ValueError(
                f'{self.name}: unknown average {average!r}; expected "macro", "weighted", "micro", "binary" or None'
            )
        self.average = average
        self.zero_division = zero_division

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t, count = self._classes(pred, target)
        if self.average == "binary" and count is not None and count > 2:
            raise ShapeError(f'{self.name}: average="binary" is for two classes, got scores of {count}')
        size = count or 1 + max(_highest(p), _highest(t))
        bincount = _module(p).bincount
        return {
            "right": bincount(t[p == t], minlength=size),
            "predicted": bincount(p, minlength=size),
            "actual": bincount(t, minlength=size),
        }

    def _fraction(self, totals: Totals) -> tuple[Any, Any]:
        """Numerator and denominator, one of each per class."""
        raise NotImplementedError

    def _result(self, totals: Totals) -> Any:
        over, under = self._fraction(totals)
        if self.average == "micro":
            return self._divide(over.sum(), under.sum())
        values = self._divide(over, under)
        if self.average == "binary":
            if len(values) > 2:
                raise ValueError(f'{self.name}: average="binary" is for two classes, got {len(values)}')
            return values[1] if len(values) > 1 else self.zero_division
        if self.average is None:
            return values
        actual, occurs = totals["actual"], totals["actual"] + totals["predicted"] > 0
        weights = occurs if self.average == "macro" else actual
        return np.average(values, weights=weights) if weights.any() else self.zero_division

    def _divide(self, over: Any, under: Any) -> Any:
        result = np.full(np.shape(over), float(self.zero_division))
        return np.divide(over, under, out=result, where=under != 0)


class Precision(_Counts):
    """Of the predictions of a class, the share that is right."""

    def _fraction(self, totals: Totals) -> tuple[Any, Any]:
        return totals["right"], totals["predicted"]


class Recall(_Counts):
    """Of the samples of a class, the share that is found."""

    def _fraction(self, totals: Totals) -> tuple[Any, Any]:
        return totals["right"], totals["actual"]


class F1(_Counts):
    """The harmonic mean of precision and recall, 2 right / (predicted + actual)."""

    def _fraction(self, totals: Totals) -> tuple[Any, Any]:
        return 2 * totals["right"], totals["predicted"] + totals["actual"]


# --- regression


class _Regression(Metric):
    """Predictions and targets of one shape (N, ...)."""

    def _float64(self, pred: Any, target: Any) -> tuple[Any, Any]:
        p, t = _arrays(pred, target)
        if p.shape != t.shape:
            raise ShapeError(
                f"{self.name}: predictions of shape {p.shape} and targets of shape {t.shape}: expected one shape"
            )
        return p.astype("float64"), t.astype("float64")


class MeanAbsoluteError(_Regression):
    """Mean of |pred - target| over all elements."""

    def __init__(self, name: str = "mae") -> None:
        super().__init__(name)

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t = self._float64(pred, target)
        return {"sum": abs(p - t).sum(), "count": t.size}

    _result = Mean._result


class MeanSquaredError(_Regression):
    """Mean of (pred - target)^2 over all elements."""

    def __init__(self, name: str = "mse") -> None:
        super().__init__(name)

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t = self._float64(pred, target)
        return {"sum": ((p - t) ** 2).sum(), "count": t.size}

    _result = Mean._result


class R2Score(_Regression):
    """Coefficient of determination, 1 - sum (pred - target)^2 / sum (target - mean target)^2, averaged over outputs.

    Targets (N,) or (N, ...): one score per element of a sample, then their mean. Where the targets do not vary it is
    1 for perfect predictions and 0 for others, as scikit-learn has it; NaN for fewer than two samples. Means and
    variances of the batches are joined by Chan, Golub and LeVeque's formula (1979), which does not cancel for targets
    far from 0.
    """

    def __init__(self, name: str = "r2") -> None:
        super().__init__(name)

    def _measure(self, pred: Any, target: Any) -> Totals:
        p, t = self._float64(pred, target)
        if not t.size:
            return {}
        p, t = p.reshape(len(p), -1), t.reshape(len(t), -1)
        mean = t.mean(axis=0)
        return {
            "count": len(t),
            "mean": mean,
            "spread": ((t - mean) ** 2).sum(axis=0),
            "residual": ((t - p) ** 2).sum(axis=0),
        }

    def _combine(self, a: Totals, b: Totals) -> Totals:
        if not (a and b):
            return a or b
        count = a["count"] + b["count"]
        difference = _add(b["mean"], -a["mean"])
        between = difference**2 * (a["count"] * b["count"] / count)
        return {
            "count": count,
            "mean": _add(a["mean"], difference * (b["count"] / count)),
            "spread": _add(_add(a["spread"], b["spread"]), between),
            "residual": _add(a["residual"], b["residual"]),
        }

    def _result(self, totals: Totals) -> Any:
        if totals["count"] < 2:
            return float("nan")
        spread, residual = totals["spread"], totals["residual"]
        flat = np.where(residual == 0, 1.0, 0.0)
        return np.mean(1 - np.divide(residual, spread, out=1 - flat, where=spread != 0))


# --- by name

METRICS: dict[str, Callable[..., Metric]] = {
    "accuracy": Accuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "confusion_matrix": ConfusionMatrix,
    "mae": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "r2": R2Score,
}


def get_metric(metric: Any, threshold: float = 0.5) -> Metric:
    """A metric from its name ("accuracy", "top5", "f1", ...), itself, or a function (pred, target) -> mean of a batch.

    `threshold` goes to metrics made from a name that take one.

    Raises:
        ValueError: the name is unknown; the known ones are listed.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric in METRICS:
            make = METRICS[metric]
            takes_threshold = isinstance(make, type) and issubclass(make, _Classification)
            return make(threshold=threshold) if takes_threshold else make()
        if match := re.fullmatch(r"top([1-9]\d*)", metric):
            return TopKAccuracy(int(match[1]))
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}, top5 (or another number)")
    if isinstance(metric, type):
        raise TypeError(f"a metric is the class {metric.__name__} itself; did you mean {metric.__name__}()?")
    if callable(metric):
        return MeanOf(metric)
    raise TypeError(f"a metric must be a name, a Metric or a function, got {metric!r}")


def get_metrics(metrics: Sequence[Any], threshold: float = 0.5) -> list[Metric]:
    """Metrics from a list of what `get_metric` takes.

    Raises:
        TypeError: not a list but a single one.
        ValueError: two have one name, or one has a name that the logs use otherwise: one would hide the other.
    """
    if isinstance(metrics, str | Metric) or not isinstance(metrics, Iterable):
        raise TypeError(f"metrics must be a list, got {metrics!r}: give [{metrics!r}]")
    made = [get_metric(metric, threshold) for metric in metrics]
    seen = {"loss", "lr"}
    for metric in made:
        if metric.name in seen:
            raise ValueError(
                f"metrics: the name {metric.name!r} is taken; give another, {type(metric).__name__}(..., name=...)"
            )
        seen.add(metric.name)
    return made


# --- arrays of any device


def _arrays(pred: Any, target: Any) -> tuple[Any, Any]:
    """Raw arrays of both, on the device of `pred`."""
    p, t = (x.data if isinstance(x, Tensor) else x for x in (pred, target))
    p, t = (np.asarray(x) if isinstance(x, list | tuple | int | float) else x for x in (p, t))
    return p, _beside(t, p)


def _weighted(value: Any, count: float) -> Totals:
    value = value.data if isinstance(value, Tensor) else value
    return {"sum": (value if isinstance(value, int | float) else value.astype("float64")) * count, "count": count}


def _module(array: Any) -> Any:
    return backend_of_type(type(array)).xp


def _to_host(value: Any) -> Any:
    return value if isinstance(value, int | float) else backend_of_type(type(value)).to_numpy(value)


def _beside(value: Any, other: Any) -> Any:
    """`value` where `other` is: an array made on the host (a target, a total from a checkpoint) moves to its device."""
    if type(value) is type(other) or isinstance(value, int | float) or isinstance(other, int | float):
        return value
    return _module(other).asarray(_to_host(value))


def _highest(classes: Any) -> int:
    return int(classes.max()) if classes.size else 0


def _without_axis_1(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:])


def _add(a: Any, b: Any) -> Any:
    """a + b on the device of `b`; where one counts more classes than the other, the missing ones count as 0."""
    a = _beside(a, b)
    if np.ndim(a) and a.shape != b.shape:
        size = max(len(a), len(b))
        a, b = (_module(x).pad(x, [(0, size - n) for n in x.shape]) for x in (a, b))
    return a + b
