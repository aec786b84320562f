"""Callbacks: what happens besides the training steps. `fit` tells each of them what it does, with the run's State.

They serve a hand-written loop too: make a State, call the methods.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

from gpunet.io.atomic import replacing
from gpunet.optim import lr_scheduler
from gpunet.train import nonfinite
from gpunet.train.bar import Bar, length, number
from gpunet.train.state import State


class Callback:
    """Override what you need. All that a callback remembers from call to call belongs into its `state_dict`.

    Attributes:
        order: callbacks of a higher order are told later; Checkpoint is the last, so that it saves what the others did.
    """

    order = 0

    def on_train_begin(self, state: State) -> None:
        """Before the first epoch; in a resumed run, when everything has been restored."""

    def on_epoch_begin(self, state: State) -> None:
        """Before the first batch of an epoch, or the first after a resume in the middle of one."""

    def on_batch_begin(self, state: State) -> None:
        """Before a training step."""

    def on_batch_end(self, state: State) -> None:
        """After a training step. Reading `state.logs` here computes the metrics, which costs a little."""

    def on_epoch_end(self, state: State) -> None:
        """After the validation; `state.logs` are the values of the epoch."""

    def on_train_end(self, state: State) -> None:
        """After the last epoch, or after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: numbers, strings, arrays, and lists and dicts of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class ProgressBar(Callback):
    """A bar per epoch with loss, metrics, samples per second and time left; without a terminal one line per epoch.

    Args:
        display: True, a bar even without a terminal; None, what suits; False, nothing.
    """

    def __init__(self, display: bool | None = None) -> None:
        self.display = display
        self._bar: Bar | None = None

    def on_epoch_begin(self, state: State) -> None:
        label = f"epoch {state.epoch + 1:{len(str(state.epochs))}}/{state.epochs}"
        self._bar = Bar(label, length(state.train_data), self.display, done=state.batch)

    def on_batch_end(self, state: State) -> None:
        if self._bar is not None:
            self._bar.advance(state.samples, lambda: state.logs)

    def on_epoch_end(self, state: State) -> None:
        if self._bar is not None:
            self._bar.finish({name: value for name, value in state.logs.items() if name != "lr"})
            self._bar = None

    def on_train_end(self, state: State) -> None:
        if self._bar is not None:
            self._bar.close()


class _Best:
    """The best value so far of one quantity.

    Args:
        monitor: its name in the logs; None: "val_loss" where there is validation data, else "loss".
        mode: "min", "max", or "auto": "max" for names of scores (accuracy, top5, precision, recall, f1, r2).
        min_delta: by how much a value must be better to count.
        who: whose it is, for errors.
    """

    def __init__(self, monitor: str | None, mode: str, min_delta: float, who: str) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f'{who}: unknown mode {mode!r}; expected "auto", "min" or "max"')
        self.monitor, self.min_delta, self.who = monitor, min_delta, who
        self._mode = mode
        self.value: float | None = None

    def improved(self, state: State) -> bool:
        """Whether the value of this epoch is the best so far. NaN never is."""
        name = self.monitor or ("val_loss" if state.validation_data is not None else "loss")
        value = state.value_of(name, self.who)
        scores = ("accuracy", "top", "precision", "recall", "f1", "r2")
        rises = self._mode == "max" or (self._mode == "auto" and name.removeprefix("val_").startswith(scores))
        sign = 1 if rises else -1
        better = not math.isnan(value) and (self.value is None or sign * (value - self.value) > self.min_delta)
        if better:
            self.value = value
        return better


class EarlyStopping(Callback):
    """Ends training when a value has not improved for `patience` epochs.

    Args:
        monitor: its name in the logs; None: "val_loss" where there is validation data, else "loss".
        patience: epochs without improvement after which training ends.
        min_delta: a change of no more than this is no improvement.
        mode: "min", "max", or "auto": "max" for accuracy, top5, precision, recall, f1 and r2, else "min".
        restore_best: give the model the weights of its best epoch when training ends.

    Attributes:
        best_epoch: the epoch of the best value, from 0; None before the first.
    """

    def __init__(
        self,
        monitor: str | None = None,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping: patience must be at least 1, got {patience}")
        self.patience = patience
        self.restore_best = restore_best
        self.best_epoch: int | None = None
        self._best = _Best(monitor, mode, min_delta, "EarlyStopping")
        self._weights: dict[str, Any] = {}

    def on_train_begin(self, state: State) -> None:
        if not state.step:  # not a resumed run
            self._best.value, self.best_epoch, self._weights = None, None, {}

    def on_epoch_end(self, state: State) -> None:
        if self._best.improved(state):
            self.best_epoch = state.epoch
            if self.restore_best:
                self._weights = {name: value.detach().copy() for name, value in state.model.state_dict().items()}
        elif state.epoch - (-1 if self.best_epoch is None else self.best_epoch) >= self.patience:
            state.stop = True

    def on_train_end(self, state: State) -> None:
        if self._weights:
            state.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.value, "best_epoch": self.best_epoch, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best.value, self.best_epoch, self._weights = state["best"], state["best_epoch"], state["weights"]


class Checkpoint(Callback):
    """Saves the run to `folder`/last.safetensors, and the best epoch's to `folder`/best.safetensors.

    `fit(..., resume=folder)` goes on from the last one and gives the same weights, bit for bit, as a run that was never
    stopped. Files are replaced atomically, and never by a state that is not finite.

    Args:
        folder: made if it does not exist.
        monitor, mode: what the best is by; see EarlyStopping.
        every_epochs: save the last state after so many epochs, and at the end; None: not at ends of epochs.
        every_steps: save it after so many batches too, in the middle of an epoch.
        save_best: whether to save the best.

    Attributes:
        last, best: paths of the two files.
    """

    order = 1

    def __init__(
        self,
        folder: str | os.PathLike[str],
        monitor: str | None = None,
        mode: str = "auto",
        every_epochs: int | None = 1,
        every_steps: int | None = None,
        save_best: bool = True,
    ) -> None:
        for name, every in (("every_epochs", every_epochs), ("every_steps", every_steps)):
            if every is not None and every < 1:
                raise ValueError(f"Checkpoint: {name} must be at least 1 or None, got {every}")
        self.last, self.best = Path(folder) / "last.safetensors", Path(folder) / "best.safetensors"
        self.every_epochs, self.every_steps, self.save_best = every_epochs, every_steps, save_best
        self._best = _Best(monitor, mode, 0.0, "Checkpoint")

    def on_train_begin(self, state: State) -> None:
        if not state.step:  # not a resumed run
            self._best.value = None
        self.last.parent.mkdir(parents=True, exist_ok=True)

    def on_batch_end(self, state: State) -> None:
        if self.every_steps and state.step % self.every_steps == 0:
            self._save(state, self.last)

    def on_epoch_end(self, state: State) -> None:
        if self.save_best and self._best.improved(state):
            self._save(state, self.best)
        done = state.epoch + 1
        if self.every_epochs and (done % self.every_epochs == 0 or done == state.epochs or state.stop):
            self._save(state, self.last)

    def _save(self, state: State, path: Path) -> None:
        where = f"epoch {state.epoch + 1}, after batch {state.batch}, no checkpoint is written"
        nonfinite.check_parameters(state.model, where)
        state.save(path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best.value = state["best"]


class LRSchedule(Callback):
    """Steps a learning-rate scheduler of `gpunet.optim.lr_scheduler`, and keeps its state in checkpoints.

    Args:
        scheduler: made with the optimizer that is trained with.
        every: "epoch" or "batch"; None: "batch" for OneCycleLR, whose cycle is counted in batches, else "epoch".
        monitor: for ReduceLROnPlateau, the name of its metric in the logs; None: "val_loss" where there is validation
            data, else "loss".

    Raises:
        ValueError: when training begins, the scheduler is of another optimizer.
    """

    def __init__(self, scheduler: Any, every: str | None = None, monitor: str | None = None) -> None:
        if every not in ("epoch", "batch", None):
            raise ValueError(f'LRSchedule: every must be "epoch" or "batch", got {every!r}')
        self.scheduler = scheduler
        self.monitor = monitor
        self.every = every or ("batch" if isinstance(scheduler, lr_scheduler.OneCycleLR) else "epoch")

    def on_train_begin(self, state: State) -> None:
        if getattr(self.scheduler, "optimizer", state.optimizer) is not state.optimizer:
            raise ValueError(
                f"LRSchedule: {type(self.scheduler).__name__} is of another optimizer than the"
                f" {type(state.optimizer).__name__} that trains, and would change nothing; make it with that one"
            )

    def on_batch_end(self, state: State) -> None:
        if self.every == "batch":
            self._step(state)

    def on_epoch_end(self, state: State) -> None:
        if self.every == "epoch":
            self._step(state)

    def _step(self, state: State) -> None:
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            monitor = self.monitor or ("val_loss" if state.validation_data is not None else "loss")
            self.scheduler.step(state.value_of(monitor, "LRSchedule"))
        else:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class CSVLogger(Callback):
    """Writes the values of all epochs to a CSV file, a row per epoch: the epoch, from 1, and every single number.

    The file is written anew, atomically, after each epoch, from the run's history: a resumed run goes on without
    missing or repeated rows.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_train_begin(self, state: State) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, state: State) -> None:
        columns = {name: values for name, values in state.history.items() if any(number(v) is not None for v in values)}
        with replacing(self.path) as file:
            writer = csv.writer(text := io.TextIOWrapper(file, "utf-8", newline=""))
            writer.writerow(["epoch", *columns])
            for row, values in enumerate(zip(*columns.values()), start=1):
                writer.writerow([row, *values])
            text.detach()


class TensorBoard(Callback):
    """Writes loss, metrics and learning rate to a folder that TensorBoard shows.

    Args:
        folder: where the event files go.
        every_steps: write the running values after so many batches too, as "batch/...".

    Raises:
        ImportError: tensorboardX is not installed; the message says how to get it.
    """

    def __init__(self, folder: str | os.PathLike[str], every_steps: int | None = None) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard needs tensorboardX: pip install 'gpunet[tensorboard]'") from error
        self._make = SummaryWriter
        self.folder = os.fspath(folder)
        self.every_steps = every_steps
        self._writer: Any = None

    def on_train_begin(self, state: State) -> None:
        # What a stopped run wrote after its last checkpoint is repeated now; TensorBoard drops the old events.
        self._writer = self._make(self.folder, purge_step=state.step + 1 if state.step else None)

    def on_batch_end(self, state: State) -> None:
        if self.every_steps and state.step % self.every_steps == 0:
            self._write(state, "batch/")

    def on_epoch_end(self, state: State) -> None:
        self._write(state, "")
        self._writer.flush()

    def on_train_end(self, state: State) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, state: State, prefix: str) -> None:
        for name, value in state.logs.items():
            if (single := number(value)) is not None:
                self._writer.add_scalar(prefix + name, single, state.step)
