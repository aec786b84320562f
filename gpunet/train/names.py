"""Losses and optimizers by name, for `compile(optimizer="adam", loss="cross_entropy")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpunet import nn, optim
from gpunet.nn import functional as F

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "binary_cross_entropy": F.binary_cross_entropy,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "kl_div": F.kl_div,
}

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad,
}


def get_loss(loss: Any) -> Callable[[Any, Any], Any]:
    """A function (output, target) -> 0-d Tensor from a name in LOSSES, or a function or Module itself.

    Raises:
        ValueError: unknown name; the known ones are listed.
        TypeError: neither a name nor a function, or a class.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
        return LOSSES[loss]
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__} itself; did you mean {loss.__name__}()?")
    if not callable(loss):
        raise TypeError(f"loss must be a name or a function (output, target) -> scalar, got {loss!r}")
    return loss


def get_optimizer(optimizer: Any, model: nn.Module, lr: float | None = None) -> optim.Optimizer:
    """An optimizer of the model's parameters from a name in OPTIMIZERS, or an Optimizer itself.

    Args:
        lr: the learning rate of one made from a name; None: its default.

    Raises:
        ValueError: unknown name (the known ones are listed), `lr` given for an Optimizer that has its own, or an
            Optimizer of other parameters than the model's.
        TypeError: neither a name nor an Optimizer.
    """
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
        options = {} if lr is None else {"lr": lr}
        return OPTIMIZERS[optimizer](model.parameters(), **options)
    if not isinstance(optimizer, optim.Optimizer):
        raise TypeError(f"optimizer must be a name or an Optimizer, got {optimizer!r}")
    if lr is not None:
        raise ValueError(
            f"lr={lr:g} goes with an optimizer's name; {type(optimizer).__name__} has its own learning rate"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"{type(optimizer).__name__} has none of the model's parameters: it was made for another model, such as an "
            "earlier one of the same name; make it anew, from model.parameters()"
        )
    return optimizer


def score_threshold(loss: Callable[..., Any]) -> float:
    """Above which score a two-class metric says class 1: 0 where the loss takes logits, 0.5 where probabilities."""
    takes_logits = loss is F.binary_cross_entropy_with_logits or isinstance(loss, nn.BCEWithLogitsLoss)
    return 0.0 if takes_logits else 0.5
