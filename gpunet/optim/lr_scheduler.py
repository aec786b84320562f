"""Learning-rate schedulers.

A scheduler is made after the optimizer, whose learning rates it sets at once for epoch 0. Call its `step()` after those
of the optimizer: once per epoch, or once per batch where its numbers are counted in batches.

    scheduler = CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        train(...)          # calls optimizer.step()
        scheduler.step()

Most schedulers change the learning rate that they find, so several of them can be stepped one after the other and their
effects multiply. Those that set it to a value of their own are LambdaLR, OneCycleLR and CosineAnnealingWarmRestarts.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import cos, floor, inf, pi
from typing import Any

from gpunet.optim.optimizer import Optimizer, require

__all__ = [
    "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LRScheduler", "LambdaLR",
    "LinearLR", "MultiStepLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip


class LRScheduler:
    """Base of all schedulers. One of your own defines `get_lr`.

    Args:
        optimizer: whose learning rates are set.
        last_epoch: the epoch to go on from without saved state; the optimizer's learning rates are taken to be those of
            the next one. -1: begin.

    Attributes:
        last_epoch: the epoch whose learning rates are set now.
        base_lrs: for each parameter group, the learning rate that the schedule starts from.

    Raises:
        TypeError: `optimizer` is not an Optimizer.
        ValueError: last_epoch is given for an optimizer that no scheduler was made for, or an argument is out of range.
    """

    state_names: tuple[str, ...] = ("last_epoch", "base_lrs")  # the attributes that change, which a checkpoint holds

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self._require_optimizer(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{type(self).__name__}: last_epoch={last_epoch} is for going on, but group {i} of the optimizer "
                    'has no "initial_lr": load the optimizer\'s state first, or begin with last_epoch=-1'
                )
        self.optimizer = optimizer
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch + 1
        self._steps_before = optimizer.steps
        self._apply(self.get_lr() if last_epoch == -1 else self._current())

    # --- what a scheduler defines

    def get_lr(self) -> list[float]:
        """The learning rates of `last_epoch`, given those of the epoch before in the optimizer's groups."""
        raise NotImplementedError

    # --- what is called

    def step(self) -> None:
        """Go on to the next epoch.

        Warns:
            UserWarning: the optimizer has not made a step yet, so the first learning rate would never be used.
        """
        self._check_order()
        self._advance()

    def get_last_lr(self) -> list[float]:
        """For each parameter group, the learning rate that this scheduler set last."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and the optimizer's learning rates, as numbers and lists. Not the arguments."""
        state = {name: getattr(self, name) for name in self.state_names}
        state = {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
        return {"scheduler": type(self).__name__, **state, "lr": self._current()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was taken: the following learning rates are the same as they would have been there.

        The scheduler must have been made with the same arguments. The optimizer's learning rates are set too, so its
        own state may be loaded before or after.

        Raises:
            ValueError: it is the state of another kind of scheduler, or for another number of groups.
        """
        kind = type(self).__name__
        if not isinstance(state, Mapping) or state.get("scheduler", kind) != kind:
            what = state.get("scheduler") if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"{kind}.load_state_dict: this is the state of {what}, not of {kind}")
        missing = [name for name in (*self.state_names, "lr") if name not in state]
        if missing:
            raise ValueError(f"{kind}.load_state_dict: the state has no {', '.join(missing)}")
        groups = self.optimizer.param_groups
        if len(state["lr"]) != len(groups):
            raise ValueError(
                f"{kind}.load_state_dict: the state is for {len(state['lr'])} parameter groups, the optimizer has "
                f"{len(groups)}"
            )
        for name in self.state_names:
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, (list, tuple)) else value)
        self._apply(state["lr"])
        self._steps_before = -1  # the optimizer's step may have been before the state was saved

    # --- for schedulers

    def _advance(self) -> None:
        self.last_epoch += 1
        self._apply(self.get_lr())

    def _restart(self) -> None:
        """Go back to epoch 0, whatever the optimizer's learning rates are."""
        self._apply(self.base_lrs)
        self.last_epoch = 0
        self._apply(self.get_lr())

    def _current(self) -> list[float]:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"{type(self).__name__}: it was made for {len(self.base_lrs)} parameter groups, and the optimizer now "
                f"has {len(groups)}; make a new scheduler after add_param_group"
            )
        return [group["lr"] for group in groups]

    def _apply(self, lrs: Iterable[float]) -> None:
        self._last_lr = [float(lr) for lr in lrs]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr):
            group["lr"] = lr

    def _check_order(self) -> None:
        if self.last_epoch == 0 and self.optimizer.steps == self._steps_before:
            warnings.warn(
                f"{type(self).__name__}.step() was called before the optimizer's step(), so the learning rate of epoch "
                "0 is never used; call optimizer.step() first",
                UserWarning,
                stacklevel=3,
            )

    def _require_optimizer(self, optimizer: Any) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an Optimizer, got {type(optimizer).__name__}")

    def _per_group(self, optimizer: Optimizer, name: str, value: Any) -> list[Any]:
        """An argument given once for all groups or once for each."""
        n = len(optimizer.param_groups)
        values = list(value) if isinstance(value, (list, tuple)) else [value] * n
        if len(values) != n:
            raise ValueError(f"{type(self).__name__}: {name} has {len(values)} values for {n} parameter groups")
        return values


class _FactorLR(LRScheduler):
    """A scheduler that multiplies the learning rates of all groups by the same factor."""

    def change(self, epoch: int) -> float:
        """The learning rate of `epoch` over that of the epoch before; at epoch 0, over the one started from."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        factor = self.change(self.last_epoch)
        return [lr * factor for lr in self._current()]


class StepLR(_FactorLR):
    """Multiplies the learning rate by `gamma` every `step_size` epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        require(isinstance(step_size, int) and step_size > 0, "StepLR: step_size", step_size, "an int above 0")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def change(self, epoch: int) -> float:
        return self.gamma if epoch and epoch % self.step_size == 0 else 1.0


class MultiStepLR(_FactorLR):
    """Multiplies the learning rate by `gamma` at each epoch in `milestones` (twice at one that is there twice)."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def change(self, epoch: int) -> float:
        return self.gamma ** self.milestones[epoch]


class ExponentialLR(_FactorLR):
    """Multiplies the learning rate by `gamma` every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def change(self, epoch: int) -> float:
        return self.gamma if epoch else 1.0


class ConstantLR(_FactorLR):
    """Multiplies the learning rate by `factor` until epoch `total_iters`."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        require(0 < factor <= 1, "ConstantLR: factor", factor, "above 0 and at most 1")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def change(self, epoch: int) -> float:
        if epoch == 0:
            return self.factor
        return 1.0 / self.factor if epoch == self.total_iters else 1.0


class LinearLR(_FactorLR):
    """Multiplies the learning rate by a factor that goes in equal steps from `start_factor` to `end_factor`, which it
    reaches at epoch `total_iters`. The usual warm-up.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        require(0 < start_factor <= 1, "LinearLR: start_factor", start_factor, "above 0 and at most 1")
        require(0 <= end_factor <= 1, "LinearLR: end_factor", end_factor, "in [0, 1]")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def change(self, epoch: int) -> float:
        if epoch == 0:
            return self.start_factor
        if epoch > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        return 1.0 + rise / (self.total_iters * self.start_factor + (epoch - 1) * rise)


class PolynomialLR(_FactorLR):
    """Takes the learning rate down to 0 at epoch `total_iters`, as (1 - epoch / total_iters) ** power."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def change(self, epoch: int) -> float:
        if epoch == 0 or epoch > self.total_iters:
            return 1.0
        return ((self.total_iters - epoch) / (self.total_iters - epoch + 1)) ** self.power


class LambdaLR(LRScheduler):
    """Sets the learning rate to its initial value times a function of the epoch.

    Args:
        lr_lambda: the function, or one for each parameter group. Functions are not part of `state_dict`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        functions = self._per_group(self.optimizer, "lr_lambda", self.lr_lambda)
        return [base * function(self.last_epoch) for base, function in zip(self.base_lrs, functions)]


class CosineAnnealingLR(LRScheduler):
    """Takes the learning rate along half a cosine from its initial value to `eta_min` at epoch `T_max`, and if stepped
    further, up again (Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2016, without the
    restarts).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        require(T_max > 0, "CosineAnnealingLR: T_max", T_max, "above 0")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        t, now = self.last_epoch, self._current()
        if t == 0:
            return now
        before = 1.0 + cos(pi * (t - 1) / self.T_max)
        if (t - 1) % (2 * self.T_max) == self.T_max:  # the learning rate is eta_min, which a factor would not raise
            rise = (1.0 - cos(pi / self.T_max)) / 2.0
            return [lr + (base - self.eta_min) * rise for lr, base in zip(now, self.base_lrs)]
        ratio = (1.0 + cos(pi * t / self.T_max)) / before
        return [self.eta_min + (lr - self.eta_min) * ratio for lr in now]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Takes the learning rate along half a cosine from its initial value to `eta_min`, over and over (Loshchilov and
    Hutter, "SGDR: stochastic gradient descent with warm restarts", 2016).

    Args:
        T_0: epochs until the first restart.
        T_mult: how many times longer each period is than the one before.
        eta_min: the smallest learning rate.

    Attributes:
        T_cur, T_i: epochs since the last restart, and epochs in this period.
    """

    state_names = (*LRScheduler.state_names, "T_cur", "T_i")

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        require(isinstance(T_0, int) and T_0 > 0, "CosineAnnealingWarmRestarts: T_0", T_0, "an int above 0")
        require(isinstance(T_mult, int) and T_mult > 0, "CosineAnnealingWarmRestarts: T_mult", T_mult, "an int above 0")
        self.T_0 = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self._locate(last_epoch + 1)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        share = (1.0 + cos(pi * self.T_cur / self.T_i)) / 2.0
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next epoch, or to a given one, which may be fractional: `step(epoch + batch / batches)`."""
        if epoch is None:
            self._check_order()
            epoch = self.last_epoch + 1
        require(epoch >= 0, "CosineAnnealingWarmRestarts.step: epoch", epoch, "at least 0")
        self._move_to(epoch)

    def _advance(self) -> None:
        self._move_to(self.last_epoch + 1)

    def _restart(self) -> None:
        self._move_to(0)

    def _move_to(self, epoch: float) -> None:
        self._locate(epoch)
        self.last_epoch = floor(epoch)
        self._apply(self.get_lr())

    def _locate(self, epoch: float) -> None:
        """Find the period that `epoch` is in, and where in it."""
        self.T_cur, self.T_i = epoch, self.T_0
        if self.T_mult == 1:
            self.T_cur %= self.T_0
        while self.T_cur >= self.T_i:
            self.T_cur -= self.T_i
            self.T_i *= self.T_mult


class OneCycleLR(LRScheduler):
    """Takes the learning rate up to `max_lr` and then down to almost nothing, and the momentum the other way round
    (Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018).
    Step it after every batch.

    Args:
        max_lr: the largest learning rate, or one for each parameter group.
        total_steps: the number of steps in the cycle; None: epochs * steps_per_epoch.
        epochs, steps_per_epoch: instead of total_steps.
        pct_start: the share of the cycle in which the learning rate rises.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: change the momentum too (of Adam, the first of its betas).
        base_momentum, max_momentum: the limits of the momentum, or one for each parameter group.
        div_factor: max_lr over the initial learning rate.
        final_div_factor: the initial learning rate over the last one.
        three_phase: fall to the initial learning rate as slowly as it rose, and then further.

    Raises:
        ValueError: an argument is out of range; the optimizer has no momentum to cycle; more steps than `total_steps`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self._require_optimizer(optimizer)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: give total_steps, or both epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        whole = isinstance(total_steps, int) and total_steps > 0
        require(whole, "OneCycleLR: total_steps", total_steps, "an int above 0")
        require(0 <= pct_start <= 1, "OneCycleLR: pct_start", pct_start, "in [0, 1]")
        known = anneal_strategy in ("cos", "linear")
        require(known, "OneCycleLR: anneal_strategy", anneal_strategy, '"cos" or "linear"')
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            kind = type(optimizer).__name__
            raise ValueError(f"OneCycleLR: {kind} has no momentum to cycle; pass cycle_momentum=False")
        self.total_steps = total_steps
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        # The turning points of the cycle: at which step, which learning rate, which momentum.
        self._turns: list[tuple[float, str, str]] = [(0.0, "initial", "max")]
        self._turns.append((float(pct_start * total_steps) - 1, "max", "base"))
        if three_phase:
            self._turns.append((float(2 * pct_start * total_steps) - 2, "initial", "max"))
        self._turns.append((total_steps - 1, "final", "max"))
        self._lrs = [
            {"initial": top / div_factor, "max": top, "final": top / div_factor / final_div_factor}
            for top in self._per_group(optimizer, "max_lr", max_lr)
        ]
        lows = self._per_group(optimizer, "base_momentum", base_momentum)
        highs = self._per_group(optimizer, "max_momentum", max_momentum)
        self._momenta = [{"base": low, "max": high} for low, high in zip(lows, highs)]
        if last_epoch == -1:
            for group, lrs in zip(optimizer.param_groups, self._lrs):
                group["initial_lr"] = lrs["initial"]
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        (_, start, _), (_, end, _), share = self._between()
        return [self._anneal(lrs[start], lrs[end], share) for lrs in self._lrs]

    def _apply(self, lrs: Iterable[float]) -> None:
        super()._apply(lrs)
        if not self.cycle_momentum:
            return
        (_, _, start), (_, _, end), share = self._between()
        for group, momenta in zip(self.optimizer.param_groups, self._momenta):
            momentum = self._anneal(momenta[start], momenta[end], share)
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _between(self) -> tuple[tuple[float, str, str], tuple[float, str, str], float]:
        """The turning points that the step lies between, and where between them."""
        step = self.last_epoch
        if step > self.total_steps:
            raise ValueError(f"OneCycleLR: step {step} of a cycle of total_steps={self.total_steps}")
        i = next((i for i, turn in enumerate(self._turns[1:-1], start=1) if step <= turn[0]), len(self._turns) - 1)
        before, after = self._turns[i - 1], self._turns[i]
        length = after[0] - before[0]
        return before, after, (step - before[0]) / length if length else 1.0  # a phase of one step is at its end

    def _anneal(self, start: float, end: float, share: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) / 2.0 * (1.0 + cos(pi * share))


class ReduceLROnPlateau(LRScheduler):
    """Multiplies the learning rate by `factor` when a metric has stopped improving. Step it with the metric.

    Args:
        mode: "min": the metric should fall; "max": it should rise.
        factor: below 1.
        patience: how many epochs without improvement are let pass.
        threshold: by how much the metric must be better than the best so far to count as improved.
        threshold_mode: "rel": the threshold is a share of the best; "abs": it is a difference.
        cooldown: epochs after a reduction that do not count.
        min_lr: the smallest learning rate, or one for each parameter group.
        eps: smaller changes of the learning rate are not made.

    Attributes:
        best: the best value of the metric so far.
        num_bad_epochs: epochs since it last improved.
        cooldown_counter: epochs of the cool-down that are left.
    """

    state_names = (*LRScheduler.state_names, "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        require(mode in ("min", "max"), "ReduceLROnPlateau: mode", mode, '"min" or "max"')
        require(threshold_mode in ("rel", "abs"), "ReduceLROnPlateau: threshold_mode", threshold_mode, '"rel" or "abs"')
        require(factor < 1, "ReduceLROnPlateau: factor", factor, "below 1")
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.eps = eps
        self.best = inf if mode == "min" else -inf
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)
        self.min_lrs = self._per_group(optimizer, "min_lr", min_lr)

    def get_lr(self) -> list[float]:
        return self._current()

    def step(self, metrics: Any) -> None:  # type: ignore[override]
        """Take note of the metric after an epoch: a number, or a Tensor of one element."""
        value = float(metrics)
        self.last_epoch += 1
        if self._improved(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        lrs = self._current()
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            reduced = [max(lr * self.factor, least) for lr, least in zip(lrs, self.min_lrs)]
            lrs = [new if lr - new > self.eps else lr for lr, new in zip(lrs, reduced)]
        self._apply(lrs)

    def _improved(self, value: float) -> bool:
        sign = -1.0 if self.mode == "min" else 1.0
        if self.threshold_mode == "abs":
            return sign * value > sign * (self.best + sign * self.threshold)
        return sign * value > sign * (self.best * (1.0 + sign * self.threshold))


class SequentialLR(LRScheduler):
    """One scheduler after another, such as a warm-up and then a cosine.

        warm_up = LinearLR(optimizer, start_factor=0.01, total_iters=5)
        cosine = CosineAnnealingLR(optimizer, T_max=45)
        scheduler = SequentialLR(optimizer, [warm_up, cosine], milestones=[5])

    Args:
        schedulers: of the same optimizer. Each begins at its own epoch 0.
        milestones: the epochs at which the second, third … take over, in rising order.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        schedulers = list(schedulers)
        require(len(schedulers) > 0, "SequentialLR: schedulers", schedulers, "at least one scheduler")
        for i, scheduler in enumerate(schedulers):
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"SequentialLR: scheduler {i} is a {type(scheduler).__name__}; expected schedulers that step "
                    "without a metric"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"SequentialLR: scheduler {i}, a {type(scheduler).__name__}, is of another optimizer")
        if len(milestones) != len(schedulers) - 1 or list(milestones) != sorted(milestones):
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedulers need {len(schedulers) - 1} milestones in rising order, "
                f"got {list(milestones)}"
            )
        self.schedulers = schedulers
        self.milestones = list(milestones)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Steps the scheduler whose turn it is."""
        turn = bisect_right(self.milestones, self.last_epoch)
        scheduler = self.schedulers[turn]
        if self.last_epoch == (self.milestones[turn - 1] if turn else 0):
            scheduler._restart()
        else:
            scheduler._advance()
        return scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        states = state.get("schedulers", ()) if isinstance(state, Mapping) else ()
        if len(states) != len(self.schedulers):
            raise ValueError(
                f"SequentialLR.load_state_dict: the state is of {len(states)} schedulers, this one has "
                f"{len(self.schedulers)}"
            )
        for scheduler, own in zip(self.schedulers, states):
            scheduler.load_state_dict(own)
        super().load_state_dict(state)
