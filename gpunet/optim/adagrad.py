"""Adagrad: steps scaled by the sum of all squared gradients so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpunet.ops import optimizer as rules
from gpunet.optim.optimizer import Optimizer, apply, require_nonnegative


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
    2011).

        sum = sum + g**2
        p = p - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(sum) + eps)

    Args:
        params: what to train; see `Optimizer`.
        lr: the learning rate, at least 0.
        lr_decay: how quickly the learning rate falls, at least 0.
        weight_decay: times the parameter is added to the gradient; at least 0.
        initial_accumulator_value: what the sum starts from, at least 0.
        eps: added to the denominator, at least 0.
        maximize: go in the direction of the gradient instead of against it.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        require_nonnegative(options, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def initial_value(self, name: str, options: Mapping[str, Any]) -> float:
        return options["initial_accumulator_value"]

    def update(
        self, group: Mapping[str, Any], step: int, params: list[Any], grads: list[Any], state: dict[str, Any]
    ) -> None:
        apply(
            rules.adagrad,
            params,
            grads,
            state["sum"],
            step=step,
            lr=group["lr"],
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
