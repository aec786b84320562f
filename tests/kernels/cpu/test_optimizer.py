"""The update rules in C++ beside the references in float64, and what they leave to these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import optim
from gpunet.backends import native
from gpunet.ops import optimizer as rules

pytestmark = pytest.mark.skipif(not native.supported(), reason="there is no C++ compiler")

SIZES = [1, 15, 64, 0, 1000, 3, 4099]

ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False, "maximize": False}
SGD = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False}
RMSPROP = {"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "maximize": False}
ADAGRAD = {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-10, "weight_decay": 0.0, "maximize": False}

# the rule, which of the quantities of its state there are, its numbers, and how it counts steps
CASES = {
    "adam": (rules.adam, (1, 1, 0), ADAM, "step"),
    "adam, maximize, weight decay": (rules.adam, (1, 1, 0), ADAM | {"maximize": True, "weight_decay": 0.1}, "step"),
    "amsgrad": (rules.adam, (1, 1, 1), ADAM, "step"),
    "adamw": (rules.adam, (1, 1, 0), ADAM | {"decoupled": True, "weight_decay": 0.1}, "step"),
    "sgd": (rules.sgd, (0,), SGD, "first"),
    "sgd, weight decay": (rules.sgd, (0,), SGD | {"weight_decay": 0.1, "maximize": True}, "first"),
    "momentum": (rules.sgd, (1,), SGD | {"momentum": 0.9, "dampening": 0.3}, "first"),
    "nesterov": (rules.sgd, (1,), SGD | {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, "first"),
    "rmsprop": (rules.rmsprop, (1, 0, 0), RMSPROP, None),
    "rmsprop, centered, momentum": (rules.rmsprop, (1, 1, 1), RMSPROP | {"momentum": 0.9, "weight_decay": 0.1}, None),
    "adagrad": (rules.adagrad, (1,), ADAGRAD | {"weight_decay": 0.1}, "step"),
}


def arrays(present: tuple[int, ...], dtype: Any = np.float32) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(0)
    params = [random.standard_normal(n).astype(np.float32).astype(dtype) for n in SIZES]
    return params, [np.zeros(sum(SIZES), dtype) if there else None for there in present]


def train(case: str, mode: str, dtype: Any = np.float32, steps: int = 4) -> tuple[list[Any], list[Any]]:
    rule, present, numbers, counter = CASES[case]
    params, state = arrays(present, dtype)
    random = np.random.default_rng(1)
    for step in range(1, steps + 1):
        grads = [random.standard_normal(n).astype(np.float32).astype(dtype) for n in SIZES]
        count = {"step": {"step": step}, "first": {"first": step == 1}, None: {}}[counter]
        with gn.kernels(mode):
            rule.implementation(np.ndarray)(params, grads, *state, **numbers, **count)
    return params, state


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference_in_float64(case: str) -> None:
    params, state = train(case, "force")
    expected_params, expected_state = train(case, "off", np.float64)
    for a, b in zip(params, expected_params):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    for a, b in zip(state, expected_state):
        if b is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_threads_do_not_matter(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = train(case, "force")

    def cut(n: int, work: Any, elements: int) -> None:
        for start in range(0, n, 777):
            work(start, min(start + 777, n))

    monkeypatch.setattr(rules, "_SMALL", 0)
    monkeypatch.setattr(rules.threads, "split", cut)
    divided = train(case, "force")
    for one, other in zip(alone, divided):
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a, b)


def test_nan_and_infinities_stay_where_they_are() -> None:
    for value in (np.nan, np.inf, -np.inf):
        p = gn.tensor(np.ones(20, np.float32), requires_grad=True)
        g = np.ones(20, np.float32)
        g[3] = value
        p.grad = gn.tensor(g)
        optim.Adam([p], lr=0.1, amsgrad=True).step()
        assert np.isnan(p.data[3])
        np.testing.assert_allclose(np.delete(p.data, 3), 0.9, rtol=1e-5)


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    library = native.library("optimizer")
    p, g = np.ones(4, np.float32), np.ones(4, np.float32)
    wide = np.ones(8, np.float32)
    for params, grads, state in (
        ((p,), (g, g), None),
        ((p, wide), (g, wide[::2]), None),
        ((p, p), (g, wide), None),
        ((p, p), (g, g.astype(np.float64)), None),
        ((p,), (g,), np.ones(5, np.float32)),
        ((p,), (g,), np.ones((4, 1), np.float32)),
    ):
        assert not library.sgd(params, grads, state, 0, 8, 1.0, 0.9, 1.0, 0.0, 0, 0, 0)
        assert (p == 1).all() and (wide == 1).all()


def test_other_dtypes_and_strides_are_the_reference() -> None:
    rule, present, numbers, _ = CASES["sgd"]
    for dtype in (np.float64, np.float16):
        params, state = arrays(present, dtype)
        before = [p.copy() for p in params]
        rule.implementation(np.ndarray)(params, params, *state, **numbers, first=True)
        for a, b in zip(params, before):
            np.testing.assert_allclose(a, b * dtype(0.9), rtol=1e-3)
    p = np.ones(10, np.float32)
    rule.implementation(np.ndarray)([p[::2]], [np.ones(5, np.float32)], None, **numbers, first=True)
    np.testing.assert_allclose(p, np.tile(np.float32([0.9, 1.0]), 5))
