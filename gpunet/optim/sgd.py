"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpunet.ops import optimizer as rules
from gpunet.optim.optimizer import Optimizer, apply, require, require_nonnegative


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Sutskever, Martens, Dahl and Hinton, "On the importance of
    initialization and momentum in deep learning", 2013).

        g = gradient + weight_decay * p
        b = momentum * b + (1 - dampening) * g        (in the first step b = g)
        p = p - lr * (g + momentum * b if nesterov else b)

    Args:
        params: what to train; see `Optimizer`.
        lr: the learning rate, at least 0.
        momentum: the share of the last step that is repeated; 0 keeps no state.
        dampening: the share of the gradient that does not enter the momentum.
        weight_decay: times the parameter is added to the gradient; at least 0.
        nesterov: Nesterov's momentum; wants momentum > 0 and no dampening.
        maximize: go in the direction of the gradient instead of against it.

    Raises:
        ValueError: an option is out of range.
    """

    counts_steps = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        require_nonnegative(options, "lr", "momentum", "weight_decay")
        if options["nesterov"]:
            require(options["momentum"] > 0, "momentum", options["momentum"], "above 0 for Nesterov's momentum")
            require(options["dampening"] == 0, "dampening", options["dampening"], "0 for Nesterov's momentum")

    def state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if options["momentum"] else ()

    def update(
        self, group: Mapping[str, Any], step: int, params: list[Any], grads: list[Any], state: dict[str, Any]
    ) -> None:
        apply(
            rules.sgd,
            params,
            grads,
            state["momentum_buffer"] if group["momentum"] else None,
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            first=step == 1,
        )
