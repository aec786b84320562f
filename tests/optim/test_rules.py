"""Trajectories of every optimizer under every combination of options, against float64 formulas and against torch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import optim
from tests.optim import references

SHAPES = [(4, 3), (5,), (), (2, 1, 3), (0,)]
STEPS = 60


def combinations(**choices: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values)) for values in product(*choices.values())]


DECAY = {"weight_decay": [0.0, 0.1], "maximize": [False, True]}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    *[("SGD", {"lr": 0.05, **c}) for c in combinations(momentum=[0.0, 0.9], dampening=[0.0, 0.3], **DECAY)],
    *[("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, **c}) for c in combinations(**DECAY)],
    ("Adam", {}),
    *[
        ("Adam", {"lr": 0.02, **c})
        for c in combinations(amsgrad=[False, True], betas=[(0.9, 0.99), (0.0, 0.0)], **DECAY)
    ],
    ("Adam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    *[("AdamW", {"lr": 0.02, "eps": 1e-3, **c}) for c in combinations(amsgrad=[False, True], **DECAY)],
    ("RMSprop", {}),
    *[("RMSprop", {"alpha": 0.9, **c}) for c in combinations(momentum=[0.0, 0.7], centered=[False, True], **DECAY)],
    ("Adagrad", {}),
    *[
        ("Adagrad", {"lr": 0.1, **c})
        for c in combinations(lr_decay=[0.0, 0.1], initial_accumulator_value=[0.0, 0.5], **DECAY)
    ],
]


def name(case: Any) -> str:
    return case if isinstance(case, str) else " ".join(f"{k}={v}" for k, v in case.items()) or "defaults"


def start(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]


def gradients(dtype: str, step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(step + 1)
    return [np.asarray(rng.standard_normal(shape) + 0.3).astype(dtype) for shape in SHAPES]


def trajectory(kind: str, options: dict[str, Any], dtype: str, device: str = "cpu") -> list[list[np.ndarray]]:
    params = [gn.tensor(a, device=device, requires_grad=True) for a in start(dtype)]
    optimizer = getattr(optim, kind)(params, **options)
    values = []
    for step in range(STEPS):
        for p, g in zip(params, gradients(dtype, step)):
            p.grad = gn.tensor(g, device=device)
        optimizer.step()
        values.append([p.detach().cpu().numpy().copy() for p in params])
    return values


@pytest.mark.parametrize("kind, options", CASES, ids=name)
def test_trajectory_against_formula(kind: str, options: dict[str, Any], device: str) -> None:
    found = trajectory(kind, options, "float64", device)
    rule = getattr(references, kind.lower())
    options = {"decoupled" if k == "decoupled_weight_decay" else k: v for k, v in options.items()}
    params, states = start("float64"), [{} for _ in SHAPES]
    for step, values in enumerate(found):
        params = [rule(p, g, s, **options) for p, g, s in zip(params, gradients("float64", step), states)]
        for p, value in zip(params, values):
            assert value.dtype == "float64"
            np.testing.assert_allclose(value, p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind, options", CASES, ids=name)
def test_trajectory_against_torch(kind: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    found = trajectory(kind, options, "float32")
    params = [torch.nn.Parameter(torch.from_numpy(a)) for a in start("float32")]
    optimizer = getattr(torch.optim, kind)(params, **options)
    for step, values in enumerate(found):
        for p, g in zip(params, gradients("float32", step)):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        for p, value in zip(params, values):
            assert value.dtype == "float32"
            np.testing.assert_allclose(value, p.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind, options", CASES, ids=name)
def test_trajectory_against_torch_in_float64(kind: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.from_numpy(a)) for a in start("float64")]
    optimizer = getattr(torch.optim, kind)(params, **options)
    for step, values in enumerate(trajectory(kind, options, "float64")):
        for p, g in zip(params, gradients("float64", step)):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        for p, value in zip(params, values):
            np.testing.assert_allclose(value, p.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_defaults_are_torchs(kind: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(2))]).param_groups[0]
    ours = getattr(optim, kind)([gn.ones(2).requires_grad_()]).param_groups[0]
    assert {k: theirs[k] for k in ours if k != "params"} == {k: v for k, v in ours.items() if k != "params"}


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_float16_is_updated_in_float32(kind: str, device: str) -> None:
    p = gn.tensor(np.full(3, 1.0), dtype="float16", device=device, requires_grad=True)
    optimizer = getattr(optim, kind)([p], lr=0.25)
    values = 1.0
    state: dict[str, Any] = {}
    for _ in range(5):
        # 1e-4 squared is below what float16 can hold
        p.grad = gn.tensor(np.full(3, 1e-4), dtype="float16", device=device)
        g = np.float64(np.float16(1e-4))
        values = float(np.float16(getattr(references, kind.lower())(values, g, state, lr=0.25)))
        optimizer.step()
    assert p.dtype == "float16"
    np.testing.assert_allclose(p.detach().cpu().numpy(), values, rtol=2e-3)
    for entry in optimizer.state.values():
        assert all(x.dtype == "float32" for x in entry.values() if isinstance(x, gn.Tensor))


def test_constant_gradient_in_centered_rmsprop_stays_finite() -> None:
    p = gn.tensor(np.ones(1000, "float32"), requires_grad=True)
    optimizer = optim.RMSprop([p], centered=True, alpha=0.5, eps=1e-3)
    g = gn.tensor(np.linspace(0.1, 3, 1000, dtype="float32"))
    for _ in range(200):  # the variance is 0 up to rounding
        p.grad = g
        optimizer.step()
    assert np.isfinite(p.detach().numpy()).all()
