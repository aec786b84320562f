"""RMSprop: steps scaled by a running average of the squared gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpunet.ops import optimizer as rules
from gpunet.optim.optimizer import Optimizer, apply, require_nonnegative


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton, lecture 6.5 of "Neural networks for machine learning", 2012).

        v = alpha * v + (1 - alpha) * g**2
        p = p - lr * g / (sqrt(v) + eps)

    Args:
        params: what to train; see `Optimizer`.
        lr: the learning rate, at least 0.
        alpha: how slowly the averages change.
        eps: added to the denominator, at least 0.
        weight_decay: times the parameter is added to the gradient; at least 0.
        momentum: the share of the last step that is repeated; at least 0.
        centered: divide by an estimate of the standard deviation of the gradient instead: the average of the gradient,
            squared, is taken off v (Graves, "Generating sequences with recurrent neural networks", 2013).
        maximize: go in the direction of the gradient instead of against it.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        require_nonnegative(options, "lr", "alpha", "eps", "weight_decay", "momentum")

    def state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        names = {"square_avg": True, "momentum_buffer": options["momentum"], "grad_avg": options["centered"]}
        return tuple(name for name, wanted in names.items() if wanted)

    def update(
        self, group: Mapping[str, Any], step: int, params: list[Any], grads: list[Any], state: dict[str, Any]
    ) -> None:
        apply(
            rules.rmsprop,
            params,
            grads,
            state["square_avg"],
            state["grad_avg"] if group["centered"] else None,
            state["momentum_buffer"] if group["momentum"] else None,
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            maximize=group["maximize"],
        )
