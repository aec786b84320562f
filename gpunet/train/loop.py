"""The training loop: `fit`, `evaluate`, `predict`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.data.collate import map_leaves
from gpunet.errors import ShapeError
from gpunet.nn import Module
from gpunet.optim import clip_grad_norm_
from gpunet.tensor import Tensor
from gpunet.train import nonfinite
from gpunet.train.bar import batch_length
from gpunet.train.callbacks import Callback, Checkpoint, LRSchedule, ProgressBar
from gpunet.train.inputs import as_batches, device_of, no_batches, split_batch, to_device
from gpunet.train.metrics import Mean, Metric, get_metrics
from gpunet.train.names import get_loss, get_optimizer, score_threshold
from gpunet.train.state import History, State


def fit(
    model: Module,
    train_data: Any,
    *,
    loss: Any,
    optimizer: Any,
    epochs: int = 1,
    metrics: Sequence[Any] = (),
    validation_data: Any = None,
    callbacks: Sequence[Callback] = (),
    device: Any = None,
    scheduler: Any = None,
    clip_grad_norm: float | None = None,
    resume: str | os.PathLike[str] | bool | None = None,
    batch_size: int = 32,
    shuffle: bool = True,
    progress: bool | None = None,
) -> History:
    """Train `model` and return the loss and the metrics of every epoch.

    Args:
        model: called with the inputs of a batch; with several where they are a tuple.
        train_data: a DataLoader, or anything that can be iterated over again and again and gives batches (inputs,
            targets); or a Dataset or a tuple of arrays (x, y), from which `batch_size` and `shuffle` make batches.
        loss: (output, targets) -> 0-d Tensor, the mean over the batch; or its name, such as "cross_entropy".
        optimizer: an Optimizer of the model's parameters, or its name, such as "adam".
        epochs: how often to go through the data; with `resume`, those of the run before count.
        metrics: Metric objects, names such as "accuracy", or functions (output, targets) -> mean over the batch.
        validation_data: as `train_data`; measured after each epoch, without training, as "val_loss" and so on.
        callbacks: told of each step; see gpunet.train.callbacks.
        device: moves the model there; None leaves it where it is. Batches follow the model.
        scheduler: a learning-rate scheduler of the optimizer, stepped as LRSchedule says.
        clip_grad_norm: scale the gradients down to this norm where theirs is larger.
        resume: a checkpoint file, or the folder of a Checkpoint callback, to go on from; the run then gives the same
            weights, bit for bit, as one that was never stopped. True: the folder of the Checkpoint among `callbacks`,
            beginning afresh where it holds none yet.
        progress: True: a progress bar; False: nothing; None: a bar on a terminal, a line per epoch elsewhere.

    Returns:
        Lists with a value per epoch: "loss", each metric, both with "val_" before them, and "lr".

    Raises:
        NonFiniteError: the loss or a gradient became NaN or infinite. The message names the layer where it arose, and
            no checkpoint is written after it.
        ValueError: the data is empty, a name is unknown or twice there, or the checkpoint is of another model.
        FileFormatError: the checkpoint is damaged.
    """
    if device is not None:
        model.to(device)
    loss = get_loss(loss)
    listeners = [*callbacks]
    if scheduler is not None:
        listeners.append(LRSchedule(scheduler))
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        listeners.append(ProgressBar(progress))
    listeners.sort(key=lambda callback: callback.order)
    state = State(
        model=model,
        optimizer=get_optimizer(optimizer, model),
        loss=loss,
        train_data=as_batches(train_data, "fit", model, batch_size, shuffle),
        epochs=epochs,
        metrics=get_metrics(metrics, score_threshold(loss)),
        validation_data=None
        if validation_data is None
        else as_batches(validation_data, "fit validation_data", model, batch_size),
        callbacks=listeners,
    )
    if resume and (path := _checkpoint(resume, listeners)):
        state.restore(path)

    def tell(event: str) -> None:
        for listener in listeners:
            getattr(listener, event)(state)

    tell("on_train_begin")
    try:
        while state.epoch < epochs and not state.stop:
            _train_epoch(state, tell, clip_grad_norm)
            values = {**state.logs, "lr": state.optimizer.param_groups[0]["lr"]}
            if state.validation_data is not None:
                measured = _measure(
                    model, state.validation_data, loss, state.metrics, f"epoch {state.epoch + 1}, validation"
                )
                values |= {f"val_{name}": value for name, value in measured.items()}
            state.history.append(values)
            state.epoch_done = True
            tell("on_epoch_end")
            state.epoch, state.batch, state.epoch_done = state.epoch + 1, 0, False
    finally:
        tell("on_train_end")
    return state.history


def evaluate(
    model: Module,
    data: Any,
    *,
    loss: Any = None,
    metrics: Sequence[Any] = ("accuracy",),
    batch_size: int = 256,
    device: Any = None,
) -> dict[str, Any]:
    """The loss, where one is given, and the metrics over `data`, without training: {"loss": 0.1, "accuracy": 0.97}.

    Arguments are those of `fit`. The model is in evaluation mode meanwhile. A loss that is NaN is returned as it is.
    """
    if device is not None:
        model.to(device)
    loss = None if loss is None else get_loss(loss)
    measures = get_metrics(metrics, score_threshold(loss))
    return _measure(model, as_batches(data, "evaluate", model, batch_size), loss, measures)


def predict(model: Module, data: Any, *, batch_size: int = 256, device: Any = None) -> Any:
    """The model's outputs for all of `data`, in the CPU's memory, joined along the first axis.

    Args:
        data: an array of inputs (N, ...); or what `fit` takes, whose targets are left out. The order is the data's.
        batch_size: for an array or a Dataset.
        device: moves the model there; None leaves it where it is.

    Returns:
        A Tensor (N, ...), or a tuple, list or dict of them where the model gives these.

    Raises:
        ValueError: there is no data.
        ShapeError: a layer does not accept the inputs.
    """
    if device is not None:
        model.to(device)
    if isinstance(data, np.ndarray | Tensor):
        if not data.ndim or not len(data):
            raise ValueError(f"predict: expected an array of inputs (N, ...) with N > 0, got shape {tuple(data.shape)}")
        data = (data,)
    batches = as_batches(data, "predict", model, batch_size)
    place = device_of(model)
    outputs = []
    with _inference(model):
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            outputs.append(map_leaves(np.asarray, _forward(model, to_device(inputs, place))))
    if not outputs:
        raise no_batches("predict")
    return map_leaves(lambda *parts: gn.asarray(np.concatenate(parts)), *outputs)


def _train_epoch(state: State, tell: Callable[[str], None], clip_grad_norm: float | None) -> None:
    """The batches of the epoch that are not done yet."""
    device = device_of(state.model)
    state.model.train()
    if not state.batch:
        for metric in (state.mean_loss, *state.metrics):
            metric.reset()
    tell("on_epoch_begin")
    for batch in _batches_left(state):
        tell("on_batch_begin")
        inputs, targets = split_batch(to_device(batch, device), "fit")
        where = f"epoch {state.epoch + 1}, batch {state.batch + 1}"
        output, value = _forward_and_loss(state.model, state.loss, inputs, targets, where)
        state.optimizer.zero_grad()
        value.backward()
        if clip_grad_norm is not None:
            norm = clip_grad_norm_(state.model.parameters(), clip_grad_norm)
            if not nonfinite.is_finite(norm):
                nonfinite.check_gradients(state.model, where)
        state.optimizer.step()
        state.samples = batch_length(targets)
        state.mean_loss.update(value.item(), state.samples)
        for metric in state.metrics:
            metric.update(output, targets)
        state.batch, state.step = state.batch + 1, state.step + 1
        tell("on_batch_end")
    if not state.batch:
        raise no_batches("fit")
    nonfinite.check_parameters(state.model, f"epoch {state.epoch + 1}, after its last batch")


def _measure(
    model: Module, data: Iterable[Any], loss: Any, metrics: Sequence[Metric], stop_at: str | None = None
) -> dict[str, Any]:
    """Loss and metrics over the batches of `data`; with `stop_at`, a place, a loss that is not finite is an error."""
    device = device_of(model)
    mean_loss = Mean("loss")
    for metric in metrics:
        metric.reset()
    batch = None
    with _inference(model):
        for batch in data:
            inputs, targets = split_batch(to_device(batch, device), "evaluate")
            if loss is None:
                output = _forward(model, inputs)
            else:
                output, value = _forward_and_loss(model, loss, inputs, targets, stop_at)
                mean_loss.update(value, batch_length(targets))
            for metric in metrics:
                metric.update(output, targets)
    if batch is None:
        raise no_batches("evaluate")
    return {metric.name: metric.compute() for metric in (*([mean_loss] if loss else []), *metrics)}


def _forward(model: Module, inputs: Any) -> Any:
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _forward_and_loss(model: Module, loss: Any, inputs: Any, targets: Any, where: str | None) -> tuple[Any, Any]:
    """The output and the loss. With `where`, the place for the error, a loss that is not finite is an error."""
    random = gn.random.generator().state_dict()
    output = _forward(model, inputs)
    value = loss(output, targets)
    if value.size != 1:
        raise ShapeError(f'the loss must be one number per batch, got shape {value.shape}: use reduction="mean"')
    if where is not None and not math.isfinite(value.item()):

        def again() -> Any:  # with the same dropout
            gn.random.generator().load_state_dict(random)
            return _forward(model, inputs)

        cause = nonfinite.explain(model, again, lambda output: loss(output, targets), inputs, targets)
        raise nonfinite.NonFiniteError(f"{where}: the loss is {value.item()}: {cause}")
    return output, value


def _batches_left(state: State) -> Iterator[Any]:
    """The batches of this epoch that are not done. A loader that keeps its position goes on there by itself."""
    keeps_position = hasattr(state.train_data, "load_state_dict")
    return iter(state.train_data) if keeps_position else islice(state.train_data, state.batch, None)


@contextmanager
def _inference(model: Module) -> Iterator[None]:
    """Evaluation mode and no tape; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with gn.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _checkpoint(resume: Any, callbacks: Sequence[Callback]) -> Path | None:
    """The file that `resume` means; None to begin afresh."""
    if resume is True:
        own = next((callback for callback in callbacks if isinstance(callback, Checkpoint)), None)
        if own is None:
            raise ValueError(
                "fit: resume=True needs a Checkpoint among the callbacks; or give the path of a checkpoint"
            )
        return own.last if own.last.exists() else None
    path = Path(resume)
    if path.is_dir():
        path = path / "last.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"fit: there is no checkpoint {str(path)!r} to resume from")
    return path
