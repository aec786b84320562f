"""What a training run is at a moment: handed to every callback, and saved in and restored from a checkpoint."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpunet import io
from gpunet.errors import FileFormatError
from gpunet.io.checkpoint import understanding
from gpunet.nn import Module
from gpunet.optim import Optimizer
from gpunet.train.bar import number
from gpunet.train.metrics import Mean, Metric

if TYPE_CHECKING:
    from gpunet.train.callbacks import Callback


class History(dict[str, list[Any]]):
    """Values by name, one per epoch: `history["val_loss"][3]` is of the fourth epoch."""

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return max((len(values) for values in self.values()), default=0)

    def append(self, values: dict[str, Any]) -> None:
        """Add the values of one epoch. A name that was not there before gets None for the epochs before."""
        before = self.epochs
        for name in {**self, **values}:
            self.setdefault(name, [None] * before).append(values.get(name))

    def epoch(self, index: int) -> dict[str, Any]:
        """The values of one epoch."""
        return {name: values[index] for name, values in self.items()}


@dataclass
class State:
    """A training run.

    Attributes:
        model, optimizer, loss: what is trained, by what, towards what; loss is (output, target) -> 0-d Tensor.
        metrics: measured over the batches of an epoch, and again over the validation data.
        train_data, validation_data: iterables of batches (inputs, targets).
        callbacks: those that are told, in the order in which they are told.
        epochs: the epoch to stop before.
        epoch: the current epoch, from 0.
        batch: batches done in this epoch.
        step: batches done since training began.
        samples: samples in the last batch.
        epoch_done: whether the epoch is over: its values are in `history`.
        stop: set it to end training after this epoch.
        history: the values of all epochs that are over.
    """

    model: Module
    optimizer: Optimizer
    loss: Callable[[Any, Any], Any]
    train_data: Iterable[Any]
    epochs: int
    metrics: Sequence[Metric] = ()
    validation_data: Iterable[Any] | None = None
    callbacks: Sequence[Callback] = ()
    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    epoch_done: bool = False
    stop: bool = False
    history: History = field(default_factory=History)
    mean_loss: Mean = field(default_factory=lambda: Mean("loss"))

    @property
    def logs(self) -> dict[str, Any]:
        """The loss and the metrics, over the batches of this epoch so far; with validation values when it is over."""
        if self.epoch_done:
            return self.history.epoch(-1)
        return {metric.name: metric.compute() for metric in (self.mean_loss, *self.metrics)}

    def value_of(self, name: str, who: str) -> float:
        """The number called `name` in the logs.

        Raises:
            ValueError: the logs have no such number; those they have are listed.
        """
        value = number(self.logs.get(name))
        if value is None:
            have = ", ".join(key for key, value in self.logs.items() if number(value) is not None)
            lacks = name.startswith("val_") and self.validation_data is None
            hint = " (fit was given no validation_data)" if lacks else ""
            raise ValueError(f"{who}: there is no value {name!r}{hint}; there is: {have}")
        return value

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint from which `restore` goes on exactly here."""
        validation: Any = self.validation_data
        io.save_checkpoint(
            path,
            model=self.model,
            optimizer=self.optimizer,
            loader=self.train_data if hasattr(self.train_data, "state_dict") else None,
            epoch=self.epoch + self.epoch_done,
            history=dict(self.history),
            extra={
                "batch": 0 if self.epoch_done else self.batch,
                "step": self.step,
                "stop": self.stop,
                "metrics": {metric.name: metric.state_dict() for metric in (self.mean_loss, *self.metrics)},
                "validation": validation.state_dict() if hasattr(validation, "state_dict") else None,
                "callbacks": [[type(callback).__name__, callback.state_dict()] for callback in self.callbacks],
            },
        )

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Become the run that was saved in the checkpoint at `path`.

        Callbacks and metrics that the saved run did not have begin afresh.

        Raises:
            FileFormatError: the file is damaged, or no checkpoint of a training run.
            ValueError: it is of another model; the differences are listed, and nothing has been changed.
        """
        loader = self.train_data if hasattr(self.train_data, "load_state_dict") else None
        saved = io.load_checkpoint(path, model=self.model, optimizer=self.optimizer, loader=loader)
        extra = saved["extra"]
        if not isinstance(extra, dict) or "step" not in extra:
            raise FileFormatError(
                f"{os.fspath(path)!r} is a checkpoint, but fit did not write it: it cannot resume a run"
            )
        with understanding(path, "the state of the run"):
            self._take_over(saved, extra)

    def _take_over(self, saved: dict[str, Any], extra: dict[str, Any]) -> None:
        self.history, self.stop = History(saved["history"]), bool(extra["stop"])
        self.epoch, self.batch, self.step = map(operator.index, (saved["epoch"], extra["batch"], extra["step"]))
        validation: Any = self.validation_data
        if extra["validation"] is not None and hasattr(validation, "load_state_dict"):
            validation.load_state_dict(extra["validation"])
        for metric in (self.mean_loss, *self.metrics):
            metric.load_state_dict(extra["metrics"].get(metric.name, {}))
        waiting = list(self.callbacks)
        for kind, state in extra["callbacks"]:
            callback = next((c for c in waiting if type(c).__name__ == kind), None)
            if callback is not None:
                waiting.remove(callback)
                callback.load_state_dict(state)
