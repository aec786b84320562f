"""Every scheduler against its closed form and against torch, over more steps than its period; resuming; errors."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest

import gpunet as gn
from gpunet import optim
from gpunet.optim import lr_scheduler as ours

STEPS = 120
LRS = [0.4, 0.03]

Make = Callable[[Any, Any], Any]  # (module of schedulers, optimizer) -> scheduler


def half_cosine(t: float, period: float, low: float = 0.0) -> float:
    """The share of the way down, as a factor of (base - low)."""
    return low + (1 - low) * (1 + cos(pi * t / period)) / 2


def warm_restarts(t: int, first: int, mult: int) -> float:
    period = first
    while t >= period:
        t, period = t - period, period * mult
    return half_cosine(t, period)


# For each: how to make it, and the factor of the initial learning rate at epoch t.
CASES: dict[str, tuple[Make, Callable[[int], float] | None]] = {
    "step": (lambda m, o: m.StepLR(o, 7, gamma=0.5), lambda t: 0.5 ** (t // 7)),
    "multistep": (
        lambda m, o: m.MultiStepLR(o, [3, 50, 50, 81], gamma=0.3),
        lambda t: 0.3 ** ((t >= 3) + 2 * (t >= 50) + (t >= 81)),
    ),
    "exponential": (lambda m, o: m.ExponentialLR(o, 0.95), lambda t: 0.95**t),
    "cosine": (lambda m, o: m.CosineAnnealingLR(o, 100), lambda t: half_cosine(t, 100)),
    "cosine up again": (lambda m, o: m.CosineAnnealingLR(o, 11), lambda t: half_cosine(t, 11)),
    "cosine to eta_min": (lambda m, o: m.CosineAnnealingLR(o, 40, eta_min=0.01), None),
    "warm restarts": (lambda m, o: m.CosineAnnealingWarmRestarts(o, 9), lambda t: warm_restarts(t, 9, 1)),
    "longer restarts": (lambda m, o: m.CosineAnnealingWarmRestarts(o, 4, 2), lambda t: warm_restarts(t, 4, 2)),
    "tripled restarts": (lambda m, o: m.CosineAnnealingWarmRestarts(o, 2, 3, eta_min=1e-3), None),
    "linear": (lambda m, o: m.LinearLR(o), lambda t: 1 / 3 + 2 / 3 * min(t, 5) / 5),
    "linear down": (lambda m, o: m.LinearLR(o, 1.0, 0.1, 90), lambda t: 1 - 0.9 * min(t, 90) / 90),
    "constant": (lambda m, o: m.ConstantLR(o, 0.25, 30), lambda t: 0.25 if t < 30 else 1.0),
    "polynomial": (lambda m, o: m.PolynomialLR(o, 100, power=2.0), lambda t: max(0.0, 1 - t / 100) ** 2),
    "lambda": (lambda m, o: m.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    "lambdas": (lambda m, o: m.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]), None),
    "warm-up, then cosine": (
        lambda m, o: m.SequentialLR(o, [m.LinearLR(o, 0.01, total_iters=10), m.CosineAnnealingLR(o, 110)], [10]),
        lambda t: 0.01 + 0.99 * t / 10 if t < 10 else half_cosine(t - 10, 110),
    ),
    "three in sequence": (
        lambda m, o: m.SequentialLR(
            o, [m.ConstantLR(o, 0.5, 100), m.ExponentialLR(o, 0.9), m.StepLR(o, 10, 0.1)], [20, 60]
        ),
        lambda t: 0.5 if t < 20 else 0.9 ** (t - 20) if t < 60 else 0.1 ** ((t - 60) // 10),
    ),
    "sequence with restarts": (
        lambda m, o: m.SequentialLR(o, [m.LinearLR(o, 0.1, total_iters=5), m.CosineAnnealingWarmRestarts(o, 8)], [5]),
        lambda t: 0.1 + 0.9 * t / 5 if t < 5 else warm_restarts(t - 5, 8, 1),
    ),
    "one cycle": (
        lambda m, o: m.OneCycleLR(o, [1.0, 0.5], STEPS),
        lambda t: (
            (1 + 24 * (1 - cos(pi * t / 35)) / 2) if t <= 35 else 1e-4 + (25 - 1e-4) * (1 + cos(pi * (t - 35) / 84)) / 2
        ),
    ),
    "one cycle in three phases": (
        lambda m, o: m.OneCycleLR(
            o, 1.0, epochs=12, steps_per_epoch=10, pct_start=0.4, anneal_strategy="linear", three_phase=True,
            base_momentum=[0.7, 0.8], max_momentum=0.99, div_factor=10.0, final_div_factor=100.0,
        ),
        None,
    ),
    "one cycle without momentum": (lambda m, o: m.OneCycleLR(o, 1.0, STEPS, cycle_momentum=False), None),
}  # fmt: skip
every_scheduler = pytest.mark.parametrize("make", [make for make, _ in CASES.values()], ids=list(CASES))


def optimizer(kind: str = "SGD") -> optim.Optimizer:
    groups = [{"params": [gn.zeros(1).requires_grad_()], "lr": lr} for lr in LRS]
    return optim.Adam(groups) if kind == "Adam" else optim.SGD(groups, momentum=0.5)


def run(scheduler: Any, steps: int) -> list[tuple[Any, ...]]:
    """Learning rates and momenta now and after each step."""
    opt = scheduler.optimizer
    values = []
    for step in range(steps + 1):
        if step:
            opt.step()
            scheduler.step()
        groups = opt.param_groups
        lrs = [group["lr"] for group in groups]
        assert scheduler.get_last_lr() == lrs
        values.append((*lrs, *(group["betas"] if "betas" in group else group["momentum"] for group in groups)))
    return values


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1]])
def test_closed_form(case: str) -> None:
    make, factor = CASES[case]
    assert factor is not None
    scheduler = make(ours, optimizer())
    base = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    for t, values in enumerate(run(scheduler, STEPS - 1)):
        assert values[:2] == pytest.approx([lr * factor(t) for lr in base], rel=1e-9, abs=1e-14), t


def test_one_cycle_that_begins_or_ends_at_the_top() -> None:
    """PyTorch divides by zero here: 0.1 of 10 steps is a rise of one step, which has no length."""
    begins = [lr for lr, *_ in run(ours.OneCycleLR(optimizer(), 1.0, total_steps=10, pct_start=0.1), 9)]
    assert begins[0] == 1.0 and begins[-1] == pytest.approx(4e-6) and begins == sorted(begins, reverse=True)
    ends = [lr for lr, *_ in run(ours.OneCycleLR(optimizer(), 1.0, total_steps=10, pct_start=1.0), 9)]
    assert ends[0] == pytest.approx(0.04) and ends[-1] == pytest.approx(1.0) and ends == sorted(ends)


@every_scheduler
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_against_torch(make: Make, kind: str) -> None:
    torch = pytest.importorskip("torch")
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in LRS]
    theirs = torch.optim.Adam(groups) if kind == "Adam" else torch.optim.SGD(groups, momentum=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = run(make(torch.optim.lr_scheduler, theirs), STEPS - 1)
    for t, (found, wanted) in enumerate(zip(run(make(ours, optimizer(kind)), STEPS - 1), expected)):
        for a, b in zip(found, wanted):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-14), t


def test_schedulers_stepped_together_multiply() -> None:
    torch = pytest.importorskip("torch")

    def lrs(module: Any, opt: Any) -> list[float]:
        schedulers = [
            module.LinearLR(opt, 0.1, total_iters=4),
            module.CosineAnnealingLR(opt, 50),
            module.ExponentialLR(opt, 0.97),
        ]
        values = []
        for _ in range(STEPS):
            opt.step()
            for scheduler in schedulers:
                scheduler.step()
            values += [group["lr"] for group in opt.param_groups]
        return values

    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in LRS]
    expected = lrs(torch.optim.lr_scheduler, torch.optim.SGD(groups))
    assert lrs(ours, optimizer()) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@every_scheduler
@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
def test_resuming_gives_the_same_sequence(make: Make, order: str) -> None:
    whole = run(make(ours, optimizer()), STEPS - 1)
    for stop in (0, 1, 17, 60):
        first = make(ours, optimizer())
        run(first, stop)
        state = json.loads(json.dumps(first.state_dict()))  # numbers, lists and strings only
        optimizer_state = first.optimizer.state_dict()
        second_optimizer = optimizer()
        if order == "optimizer first":  # making the scheduler then changes the learning rate that was loaded
            second_optimizer.load_state_dict(optimizer_state)
            second = make(ours, second_optimizer)
        else:
            second = make(ours, second_optimizer)
            second_optimizer.load_state_dict(optimizer_state)
        second.load_state_dict(state)
        assert run(second, STEPS - 1 - stop) == whole[stop:]


def test_going_on_without_saved_state() -> None:
    first = ours.StepLR(optimizer(), 3)
    run(first, 10)
    again = optimizer()
    again.load_state_dict(first.optimizer.state_dict())
    second = ours.StepLR(again, 3, last_epoch=9)
    assert second.last_epoch == 10
    assert run(second, 20) == run(first, 20)
    with pytest.raises(
        ValueError, match=r'last_epoch=3 is for going on, but group 0 of the optimizer has no "initial_lr"'
    ):
        ours.StepLR(optimizer(), 3, last_epoch=3)


def test_warm_restarts_between_epochs() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    mine = optim.SGD([gn.zeros(1).requires_grad_()], lr=0.4)
    for mult in (1, 2):
        a = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(theirs, 3, mult)
        b = ours.CosineAnnealingWarmRestarts(mine, 3, mult)
        for epoch in [*(i / 4 for i in range(60)), 26, None, None, 2.5]:
            theirs.step()
            a.step(epoch)
            b.step(epoch)
            assert b.get_last_lr() == pytest.approx(a.get_last_lr(), rel=1e-9), epoch
    with pytest.raises(ValueError, match=r"step: epoch must be at least 0, got -1"):
        b.step(-1)


# --- plateau

METRICS = [*(1 / (1 + t) for t in range(20)), *([0.5] * 30), 0.04, 0.0399999, 0.03, *([0.02] * 40), float("nan"), 0.01]
PLATEAUS: list[dict[str, Any]] = [
    {},
    {"patience": 2, "factor": 0.5, "cooldown": 3},
    {"patience": 0, "threshold": 0.01, "threshold_mode": "abs", "min_lr": [0.01, 1e-4]},
    {"mode": "max", "patience": 4},
    {"mode": "max", "patience": 1, "threshold_mode": "abs", "threshold": 0.1, "min_lr": 1e-3},
    {"patience": 0, "eps": 1e-3},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_against_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in LRS]
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(groups), **options)
    mine = ours.ReduceLROnPlateau(optimizer(), **options)
    for metric in METRICS:
        theirs.step(metric)
        mine.step(gn.tensor(metric, dtype="float64"))
        assert mine.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=1e-12)
    assert mine.get_last_lr() != LRS


def test_plateau_step_by_step() -> None:
    scheduler = ours.ReduceLROnPlateau(
        optim.SGD([gn.zeros(1).requires_grad_()], lr=1.0), factor=0.5, patience=1, cooldown=2
    )
    lrs = []
    for metric in (3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0):
        scheduler.step(metric)
        lrs.append(scheduler.get_last_lr()[0])
    assert lrs == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_resumes(options: dict[str, Any]) -> None:
    def lrs(scheduler: Any, metrics: list[float]) -> list[Any]:
        return [(scheduler.step(metric), scheduler.get_last_lr())[1] for metric in metrics]

    whole = lrs(ours.ReduceLROnPlateau(optimizer(), **options), METRICS)
    for stop in (0, 1, 25, 60):
        first = ours.ReduceLROnPlateau(optimizer(), **options)
        lrs(first, METRICS[:stop])
        second = ours.ReduceLROnPlateau(optimizer(), **options)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert lrs(second, METRICS[stop:]) == whole[stop:]


# --- warnings and errors


@pytest.mark.parametrize("case", ["step", "warm restarts", "warm-up, then cosine", "one cycle"])
def test_wrong_order_warns_once(case: str) -> None:
    scheduler = CASES[case][0](ours, optimizer())
    with pytest.warns(UserWarning, match=r"step\(\) was called before the optimizer's step\(\)") as caught:
        scheduler.step()
        scheduler.step()
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("case", ["step", "warm restarts", "warm-up, then cosine", "one cycle"])
def test_right_order_does_not_warn(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = CASES[case][0](ours, optimizer())
        run(scheduler, STEPS - 1)
        resumed = CASES[case][0](ours, optimizer())
        resumed.load_state_dict(scheduler.state_dict())
        if case != "one cycle":
            resumed.step()
        saved_before_the_first_step = CASES[case][0](ours, optimizer()).state_dict()
        resumed = CASES[case][0](ours, optimizer())
        resumed.load_state_dict(saved_before_the_first_step)
        resumed.step()


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda o: ours.StepLR("sgd", 3), TypeError, "StepLR: expected an Optimizer, got str"),
        (lambda o: ours.OneCycleLR(None, 3), TypeError, "OneCycleLR: expected an Optimizer, got NoneType"),
        (lambda o: ours.StepLR(o, 0), ValueError, "StepLR: step_size must be an int above 0, got 0"),
        (lambda o: ours.LinearLR(o, 0.0), ValueError, "LinearLR: start_factor must be above 0 and at most 1, got 0.0"),
        (lambda o: ours.LinearLR(o, 0.5, 2.0), ValueError, "LinearLR: end_factor must be in [0, 1], got 2.0"),
        (lambda o: ours.ConstantLR(o, 0), ValueError, "ConstantLR: factor must be above 0 and at most 1, got 0"),
        (lambda o: ours.CosineAnnealingLR(o, 0), ValueError, "CosineAnnealingLR: T_max must be above 0, got 0"),
        (lambda o: ours.CosineAnnealingWarmRestarts(o, 0), ValueError, "T_0 must be an int above 0, got 0"),
        (lambda o: ours.CosineAnnealingWarmRestarts(o, 2, 1.5), ValueError, "T_mult must be an int above 0, got 1.5"),
        (lambda o: ours.LambdaLR(o, [abs]), ValueError, "LambdaLR: lr_lambda has 1 values for 2 parameter groups"),
        (lambda o: ours.OneCycleLR(o, 1.0), ValueError, "give total_steps, or both epochs and steps_per_epoch"),
        (lambda o: ours.OneCycleLR(o, 1.0, 0), ValueError, "OneCycleLR: total_steps must be an int above 0, got 0"),
        (lambda o: ours.OneCycleLR(o, 1.0, 5, pct_start=2), ValueError, "pct_start must be in [0, 1], got 2"),
        (lambda o: ours.OneCycleLR(o, 1.0, 5, anneal_strategy="x"), ValueError, 'must be "cos" or "linear", got \'x\''),
        (lambda o: ours.OneCycleLR(o, [1.0] * 3, 5), ValueError, "max_lr has 3 values for 2 parameter groups"),
        (
            lambda o: ours.OneCycleLR(optim.Adagrad([gn.zeros(1).requires_grad_()]), 1.0, 5),
            ValueError,
            "Adagrad has no momentum to cycle; pass cycle_momentum=False",
        ),
        (lambda o: ours.ReduceLROnPlateau(o, "least"), ValueError, 'mode must be "min" or "max", got \'least\''),
        (lambda o: ours.ReduceLROnPlateau(o, threshold_mode="x"), ValueError, 'must be "rel" or "abs", got \'x\''),
        (lambda o: ours.ReduceLROnPlateau(o, factor=1.0), ValueError, "factor must be below 1, got 1.0"),
        (lambda o: ours.ReduceLROnPlateau(o, min_lr=[0.1]), ValueError, "min_lr has 1 values for 2 parameter groups"),
        (lambda o: ours.SequentialLR(o, [], []), ValueError, "SequentialLR: schedulers must be at least one scheduler"),
        (
            lambda o: ours.SequentialLR(o, [ours.ReduceLROnPlateau(o)], []),
            ValueError,
            "scheduler 0 is a ReduceLROnPlateau; expected schedulers that step without a metric",
        ),
        (
            lambda o: ours.SequentialLR(o, [ours.StepLR(optimizer(), 3)], []),
            ValueError,
            "scheduler 0, a StepLR, is of another optimizer",
        ),
        (
            lambda o: ours.SequentialLR(o, [ours.StepLR(o, 3), ours.StepLR(o, 3)], []),
            ValueError,
            "SequentialLR: 2 schedulers need 1 milestones in rising order, got []",
        ),
    ],
)  # fmt: skip
def test_errors_of_the_constructor(make: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        make(optimizer())


def test_too_many_steps_of_a_cycle() -> None:
    scheduler = ours.OneCycleLR(optimizer(), 1.0, 5)
    run(scheduler, 5)
    with pytest.raises(ValueError, match="step 6 of a cycle of total_steps=5"):
        scheduler.step()


def test_group_added_later() -> None:
    opt = optimizer()
    scheduler = ours.StepLR(opt, 3)
    opt.add_param_group({"params": [gn.zeros(1).requires_grad_()]})
    opt.step()
    with pytest.raises(ValueError, match="StepLR: it was made for 2 parameter groups, and the optimizer now has 3"):
        scheduler.step()


def test_errors_of_load_state_dict() -> None:
    opt = optimizer()
    scheduler = ours.StepLR(opt, 3)
    good = scheduler.state_dict()
    sequence = ours.SequentialLR(opt, [ours.StepLR(opt, 3)], [])
    cases: list[tuple[Any, Any, str]] = [
        (scheduler, ours.ExponentialLR(opt, 0.9).state_dict(), "this is the state of ExponentialLR, not of StepLR"),
        (scheduler, [], "this is the state of list, not of StepLR"),
        (scheduler, {"lr": [1, 2]}, "StepLR.load_state_dict: the state has no last_epoch, base_lrs"),
        (scheduler, {**good, "lr": [1]}, "the state is for 1 parameter groups, the optimizer has 2"),
        (sequence, good, "the state is of 0 schedulers, this one has 1"),
    ]
    for target, state, text in cases:
        with pytest.raises(ValueError, match=re.escape(text)):
            target.load_state_dict(state)
