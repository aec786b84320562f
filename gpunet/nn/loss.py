"""Losses as Modules: called with predictions and targets, as the function of `functional` that each one stands for.

All take `reduction`: "mean" or "sum" for a 0-d Tensor, "none" for the losses one by one. Weights (a Tensor, an array or
a list) are buffers: `to(device)` moves them. The errors are those of the functions.
"""

from __future__ import annotations

from typing import Any

from gpunet.creation import asarray
from gpunet.nn import functional as F
from gpunet.nn.module import Module
from gpunet.tensor import Tensor


class _Loss(Module):
    reductions: tuple[str, ...] = F.REDUCTIONS

    def __init__(self, reduction: str) -> None:
        F.check_reduction(type(self).__name__, reduction, self.reductions)
        self.reduction = reduction

    def _register_weight(self, name: str, weight: Any) -> None:
        self.register_buffer(name, None if weight is None else asarray(weight))

    def extra_repr(self) -> str:
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """The squared differences of x and target, of exactly one shape."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(x, target, self.reduction)


class L1Loss(_Loss):
    """The absolute differences of x and target, of exactly one shape."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(x, target, self.reduction)


class SmoothL1Loss(_Loss):
    """d² / (2 beta) for differences d below `beta`, and |d| - beta / 2 beyond."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(x, target, self.reduction, self.beta)


class HuberLoss(_Loss):
    """d² / 2 for differences d up to `delta`, and delta * (|d| - delta / 2) beyond."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(x, target, self.reduction, self.delta)


class CrossEntropyLoss(_Loss):
    """-log softmax(x)[target], from the logits x (N, C) and class indices (N,) or probabilities (N, C).

    Args:
        weight: (C,) factors of the classes, or None.
        ignore_index: targets with this class index count for nothing.
        reduction: see `functional.cross_entropy` about its mean.
        label_smoothing: the share of the target that is spread evenly over all classes.
    """

    weight: Tensor | None

    def __init__(
        self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__(reduction)
        self._register_weight("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


class NLLLoss(_Loss):
    """-x[target], for log-probabilities x (N, C), as `LogSoftmax` gives them, and class indices (N,).

    Args:
        weight, ignore_index, reduction: as of `CrossEntropyLoss`.
    """

    weight: Tensor | None

    def __init__(self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self._register_weight("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(x, target, self.weight, self.ignore_index, self.reduction)


class BCELoss(_Loss):
    """-(target * log(x) + (1 - target) * log(1 - x)), for probabilities x; after a sigmoid, prefer `BCEWithLogitsLoss`.

    Args:
        weight: factors of the losses, of a shape that broadcasts to theirs, or None.
        reduction: see above.
    """

    weight: Tensor | None

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self._register_weight("weight", weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(x, target, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """`BCELoss` of sigmoid(x), computed from the logits x.

    Args:
        weight: factors of the losses, of a shape that broadcasts to theirs, or None.
        reduction: see above.
        pos_weight: factors of the losses of positives, such as negatives / positives of each column, or None.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self._register_weight("weight", weight)
        self._register_weight("pos_weight", pos_weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x, target, self.weight, self.reduction, self.pos_weight)


class KLDivLoss(_Loss):
    """target * (log(target) - x), for log-probabilities x and probabilities target.

    Args:
        reduction: also "batchmean", the divergence per sample; "mean" is over all elements.
        log_target: whether target too is of log-probabilities.
    """

    reductions = F.KL_REDUCTIONS

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(x, target, self.reduction, self.log_target)
