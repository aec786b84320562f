"""The references of the update rules: however the parameters are cut up, each element gets its update."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Device, get_backend
from gpunet.dtypes import accumulation_dtype
from gpunet.ops import optimizer as rules

DECAY: dict[str, Any] = {"weight_decay": 0.1, "maximize": True}
# For each rule: the quantities of state, and the numbers.
RULES: dict[str, tuple[Any, list[bool], dict[str, Any]]] = {
    "sgd": (
        rules.sgd,
        [True],
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "nesterov": False, "first": False, **DECAY},
    ),
    "plain sgd": (
        rules.sgd,
        [False],
        {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "first": True, "weight_decay": 0.0,
         "maximize": False},
    ),
    "adam": (
        rules.adam,
        [True, True, False],
        {"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decoupled": False, "weight_decay": 0.0,
         "maximize": False},
    ),
    "amsgrad with decay": (
        rules.adam,
        [True, True, True],
        {"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decoupled": True, **DECAY},
    ),
    "rmsprop": (
        rules.rmsprop,
        [True, True, True],
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-2, "momentum": 0.5, **DECAY},
    ),
    "adagrad": (rules.adagrad, [True], {"step": 2, "lr": 0.1, "lr_decay": 0.1, "eps": 1e-8, **DECAY}),
}  # fmt: skip
# Elements of each parameter. A block of float32 on the CPU holds 65,536; from a quarter of that a parameter is large.
SIZES = {
    "one small": [7],
    "small ones": [3, 1, 0, 11, 5],
    "a full block of small ones": [16384] * 9,
    "one large": [100_001],
    "mixed": [5, 16385, 3, 200_000, 9, 9, 65_536, 1],
}


@pytest.fixture(autouse=True)
def without_kernels() -> Iterator[None]:
    with gn.kernels("off"):
        yield


def draw(n: int, dtype: str, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) + 0.01).astype(dtype)  # squares and their averages are positive


def run(
    rule: Any, sizes: list[int], dtype: str, device: str, state: list[bool], numbers: dict[str, Any]
) -> tuple[list[np.ndarray], ...]:
    """Parameters, gradients and state after the rule, each as one list of NumPy arrays."""
    backend, where = get_backend(Device(device)), Device(device)
    ends = np.cumsum(sizes)[:-1]
    total = sum(sizes)

    def pieces(seed: int) -> list[Any]:
        return [backend.from_numpy(a.copy(), where) for a in np.split(draw(total, dtype, seed), ends)]

    wide = accumulation_dtype(np.dtype(dtype)).name
    params, grads = pieces(0), pieces(1)
    arrays = [backend.from_numpy(draw(total, wide, 2 + i), where) if on else None for i, on in enumerate(state)]
    rule.implementation(type(params[0]))(params, grads, *arrays, **numbers)
    return tuple([backend.to_numpy(a) for a in several if a is not None] for several in (params, grads, arrays))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", RULES)
def test_each_element_gets_its_own_update(name: str, sizes: list[int], dtype: str, device: str) -> None:
    rule, state, numbers = RULES[name]
    params, grads, arrays = run(rule, sizes, dtype, device, state, numbers)
    total, wide = sum(sizes), accumulation_dtype(np.dtype(dtype)).name
    # What was expected: a thousand elements at a time, each time as the only parameter.
    p, g = draw(total, dtype, 0).astype(wide), draw(total, dtype, 1).astype(wide)
    expected = [draw(total, wide, 2 + i) if on else None for i, on in enumerate(state)]
    for start in range(0, total, 1000):
        part = slice(start, start + 1000)
        rule.implementation(np.ndarray)(
            [p[part]], [g[part]], *[a if a is None else a[part] for a in expected], **numbers
        )
    np.testing.assert_array_equal(np.concatenate(params), p.astype(dtype))
    assert all(a.dtype == dtype and a.shape == (n,) for a, n in zip(params, sizes))
    for found, wanted in zip(arrays, [a for a in expected if a is not None]):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.concatenate(grads), draw(total, dtype, 1))  # which the rule may not write to


def test_formula_of_a_step_of_adam() -> None:
    """Written out for one element, so that the test above, which compares the rule with itself, stands on something."""
    p, g, m, v = 2.0, 0.5, 0.3, 0.2
    arrays = [np.array([x]) for x in (p, g, m, v)]
    rules.adam(
        [arrays[0]], [arrays[1]], arrays[2], arrays[3], None,
        step=4, lr=0.1, beta1=0.8, beta2=0.9, eps=0.01, weight_decay=0.0, decoupled=False, maximize=False,
    )  # fmt: skip
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
    p -= 0.1 * (m / (1 - 0.8**4)) / ((v / (1 - 0.9**4)) ** 0.5 + 0.01)
    assert [a.item() for a in (arrays[0], arrays[2], arrays[3])] == pytest.approx([p, m, v], rel=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_temporary_memory_is_bounded(name: str) -> None:
    """A step over 2 million elements takes no more than some blocks of scratch memory."""
    rule, state, numbers = RULES[name]
    n = 2_000_000
    arrays = [np.ones(n, "float32") if on else None for on in state]
    params, grads = [np.ones(n, "float32")], [np.ones(n, "float32")]
    call: Callable[..., None] = rule.implementation(np.ndarray)
    tracemalloc.start()
    try:
        call(params, grads, *arrays, **numbers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # one array of n elements would be 8 MB


@pytest.mark.parametrize("limit", [4, 40, 1000])
def test_parts_cover_everything_once_and_in_order(limit: int) -> None:
    sizes = [3, 1, 0, 11, 10, 10, 10, 5, 40, 41, 7, 200, 80, 1, 9]
    params = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    parts = list(rules._parts(params, [p + 0.5 for p in params], limit))
    together = [np.concatenate(ps) for ps, _, _ in parts]
    np.testing.assert_array_equal(np.concatenate(together), np.arange(sum(sizes)))
    for (ps, gs, n), p in zip(parts, together):
        assert 0 < n == len(p) <= limit
        np.testing.assert_array_equal(np.concatenate(gs), p + 0.5)
        assert len(ps) == 1 or max(map(len, ps)) <= limit // 4
