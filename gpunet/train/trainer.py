"""Trainer: compile, fit, evaluate, predict, in the manner of Keras. Everything is done by the functions of loop.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gpunet import io
from gpunet.data import Dataset, Subset
from gpunet.nn import Module
from gpunet.optim import Optimizer
from gpunet.train import loop
from gpunet.train.callbacks import Callback
from gpunet.train.inputs import arrays_dataset
from gpunet.train.metrics import get_metrics
from gpunet.train.names import get_loss, get_optimizer, score_threshold
from gpunet.train.state import History


class Trainer:
    """A model with what it is trained by.

        trainer = Trainer(model)
        trainer.compile(optimizer="adam", loss="cross_entropy", metrics=["accuracy"])
        trainer.fit(x, y, epochs=5, validation_split=0.1)
        trainer.evaluate(x_test, y_test)

    Args:
        model: the network.
        device: moves it there; None leaves it where it is. Data follows the model.

    Attributes:
        history: the values of all epochs of the last `fit`.
    """

    def __init__(self, model: Module, device: Any = None) -> None:
        self.model = model
        if device is not None:
            model.to(device)
        self.history = History()
        self.optimizer: Optimizer | None = None
        self.loss: Any = None
        self.metrics: Sequence[Any] = ()

    def compile(
        self, optimizer: Any = "adam", loss: Any = "cross_entropy", metrics: Sequence[Any] = (), lr: float | None = None
    ) -> Trainer:
        """Say how to train.

        Args:
            optimizer: an Optimizer of the model's parameters, or a name such as "adam".
            loss: a Module or function (output, targets) -> 0-d Tensor, or a name such as "cross_entropy".
            metrics: Metric objects, names such as "accuracy", or functions (output, targets) -> mean over the batch.
            lr: the learning rate of an optimizer given by name; None: its default.

        Raises:
            ValueError: a name is unknown, and the known ones are listed; or two metrics have one name.
        """
        loss = get_loss(loss)
        self.metrics = get_metrics(metrics, score_threshold(loss))
        self.optimizer = get_optimizer(optimizer, self.model, lr)
        self.loss = loss
        return self

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int = 32,
        epochs: int = 1,
        validation_data: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        callbacks: Sequence[Callback] | None = None,
        **options: Any,
    ) -> History:
        """Train, and return the values of every epoch.

        Args:
            x, y: arrays of inputs and targets of one length; or x alone: a DataLoader, a Dataset, or anything that
                gives batches (inputs, targets).
            batch_size, shuffle: for arrays and a Dataset.
            validation_data: a tuple (x, y), or what x alone can be.
            validation_split: this share of the samples, the last ones, is kept for validation; for arrays and a
                Dataset.
            options: further arguments of `gpunet.train.fit`: scheduler, clip_grad_norm, resume, progress.

        Raises:
            RuntimeError: `compile` was not called.
            ValueError: validation_split is not in [0, 1), leaves one part empty, or cannot be applied.
            ShapeError: x and y differ in length.
        """
        self._check_compiled("fit")
        data = x if y is None else (x, y)
        if isinstance(data, tuple):
            data = arrays_dataset(data, "fit", self.model)
        if validation_split:
            data, validation_data = _split(data, validation_data, validation_split)
        self.history = loop.fit(
            self.model,
            data,
            loss=self.loss,
            optimizer=self.optimizer,
            metrics=self.metrics,
            epochs=epochs,
            validation_data=validation_data,
            callbacks=callbacks or (),
            batch_size=batch_size,
            shuffle=shuffle,
            **options,
        )
        return self.history

    def evaluate(self, x: Any, y: Any = None, *, batch_size: int = 256) -> dict[str, Any]:
        """The loss and the metrics, {"loss": 0.1, "accuracy": 0.97}. Arguments as for `fit`.

        Raises:
            RuntimeError: `compile` was not called.
        """
        self._check_compiled("evaluate")
        data = x if y is None else arrays_dataset((x, y), "evaluate", self.model)
        return loop.evaluate(self.model, data, loss=self.loss, metrics=self.metrics, batch_size=batch_size)

    def predict(self, x: Any, *, batch_size: int = 256) -> Any:
        """The model's outputs for inputs x (N, ...), or for a Dataset or loader: a Tensor in the CPU's memory."""
        return loop.predict(self.model, x, batch_size=batch_size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, the optimizer's state (once compiled) and the history to a checkpoint file, atomically."""
        io.save_checkpoint(
            path, model=self.model, optimizer=self.optimizer, epoch=self.history.epochs, history=dict(self.history)
        )

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take the model, the optimizer's state (once compiled) and the history from a checkpoint file.

        The file may be one that `save` or a Checkpoint callback wrote.

        Raises:
            ValueError: it is of another model; the differences are listed, and nothing has been changed.
            KeyError: it was saved before `compile`, and this trainer is compiled.
        """
        saved = io.load_checkpoint(path, model=self.model, optimizer=self.optimizer, random=False)
        self.history = History(saved["history"])

    def _check_compiled(self, method: str) -> None:
        if self.optimizer is None:
            raise RuntimeError(f'Trainer.{method}: call compile(optimizer="adam", loss="cross_entropy") first')


def _split(data: Any, validation_data: Any, share: float) -> tuple[Subset, Subset]:
    """The first samples for training, the last `share` of them for validation."""
    if not 0 <= share < 1:
        raise ValueError(f"fit: validation_split must be in [0, 1), got {share:g}")
    if validation_data is not None:
        raise ValueError("fit: give validation_data or validation_split, not both")
    if not isinstance(data, Dataset):
        raise ValueError(
            f"fit: validation_split needs arrays or a Dataset, got a {type(data).__name__}: split it before"
        )
    kept = int(len(data) * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is a little less than 1
    if not 0 < kept < len(data):
        raise ValueError(f"fit: validation_split={share:g} of {len(data)} samples leaves one part empty")
    return Subset(data, range(kept)), Subset(data, range(kept, len(data)))
