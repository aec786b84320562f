"""Adam and AdamW: steps scaled by running averages of the gradient and of its square."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpunet.ops import optimizer as rules
from gpunet.optim.optimizer import Optimizer, apply, require, require_nonnegative


class Adam(Optimizer):
    """Adam (Kingma and Ba, "Adam: a method for stochastic optimization", 2014).

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * (m / (1 - beta1**step)) / (sqrt(v / (1 - beta2**step)) + eps)

    Args:
        params: what to train; see `Optimizer`.
        lr: the learning rate, at least 0.
        betas: how slowly the averages of the gradient and of its square change, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: times the parameter is added to the gradient; at least 0.
        amsgrad: divide by the largest average of the square so far (Reddi, Kale and Kumar, "On the convergence of Adam
            and beyond", 2018).
        maximize: go in the direction of the gradient instead of against it.
        decoupled_weight_decay: shrink the parameter by the factor 1 - lr * weight_decay instead; see `AdamW`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        require_nonnegative(options, "lr", "eps", "weight_decay")
        betas = options["betas"]
        valid = isinstance(betas, tuple) and len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(valid, "betas", betas, "two numbers in [0, 1)")

    def state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if options["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def update(
        self, group: Mapping[str, Any], step: int, params: list[Any], grads: list[Any], state: dict[str, Any]
    ) -> None:
        beta1, beta2 = group["betas"]
        apply(
            rules.adam,
            params,
            grads,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["max_exp_avg_sq"] if group["amsgrad"] else None,
            step=step,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled weight decay regularization", 2017).

    Each step first multiplies the parameter by 1 - lr * weight_decay, which the averages do not see. Arguments as of
    `Adam`, with another default for the weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True
        )  # fmt: skip

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        decoupled = options["decoupled_weight_decay"]
        require(decoupled is True, "decoupled_weight_decay", decoupled, "True in AdamW; without it, use Adam")
