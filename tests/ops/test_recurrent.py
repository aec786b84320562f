"""Recurrent ops: their values, against one sample at a time in plain float64, and what may be left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.ops import recurrent as ops

rng = np.random.default_rng(8)
T, B, H = 4, 3, 5
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(x: np.ndarray, state: list[np.ndarray], weight: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    h, c = state
    i, f, g, o = np.split(x + weight @ h + bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru(x: np.ndarray, state: list[np.ndarray], weight: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    (h,) = state
    (a, b, c), (p, q, s) = np.split(x, 3), np.split(weight @ h + bias, 3)
    r, z = sigmoid(a + p), sigmoid(b + q)
    return [(1 - z) * np.tanh(c + r * s) + z * h]


def rnn(x: np.ndarray, state: list[np.ndarray], weight: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    return [np.tanh(x + weight @ state[0] + bias)]


STEPS: dict[str, Callable[..., list[np.ndarray]]] = {"lstm": lstm, "gru": gru, "rnn": rnn}


def arguments(name: str) -> list[np.ndarray]:
    """Inputs, the state's parts, weight and bias."""
    n = GATES[name]
    states = [normal(B, H) for _ in range(2 if name == "lstm" else 1)]
    return [normal(T, B, n * H), *states, normal(n * H, H), normal(n * H)]


def run(name: str, arrays: list[Any], device: str, **options: Any) -> list[np.ndarray]:
    tensors = [None if a is None else gn.asarray(a, device=device) for a in arrays]
    results = getattr(ops, name)(*tensors, **options)
    return [r.cpu().numpy() for r in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_values(name: str, reverse: bool, device: str) -> None:
    inputs, *states, weight, bias = arrays = arguments(name)
    got = run(name, arrays, device, reverse=reverse)
    for sample in range(B):
        state = [s[sample] for s in states]
        for t in range(T)[:: -1 if reverse else 1]:
            state = STEPS[name](inputs[t, sample], state, weight, bias)
            for part, wanted in zip(got, state):
                np.testing.assert_allclose(part[t, sample], wanted, rtol=1e-12)


def test_relu(device: str) -> None:
    inputs, h, weight, bias = arguments("rnn")
    (hs,) = run("rnn", [inputs, h, weight, bias], device, activation="relu")
    for t in range(T):
        h = np.maximum(inputs[t] + h @ weight.T + bias, 0)
        np.testing.assert_allclose(hs[t], h, rtol=1e-12)


@pytest.mark.parametrize("name", STEPS)
def test_what_is_left_out_is_zero(name: str, device: str) -> None:
    inputs, *states, weight, bias = arguments(name)
    short = run(name, [inputs, *(None for _ in states), weight], device)
    full = run(name, [inputs, *map(np.zeros_like, states), weight, np.zeros_like(bias)], device)
    for a, b in zip(short, full):
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("name", STEPS)
def test_reverse_is_forward_on_the_reversed_sequence(name: str, device: str) -> None:
    inputs, *others = arguments(name)
    for a, b in zip(
        run(name, [inputs, *others], device, reverse=True), run(name, [inputs[::-1].copy(), *others], device)
    ):
        np.testing.assert_array_equal(a, b[::-1])


@pytest.mark.parametrize("name", STEPS)
def test_float16_is_computed_in_float32(name: str, device: str) -> None:
    half = [a.astype("float16") for a in arguments(name)]
    hs, *others = run(name, half, device)
    wanted, *_ = run(name, [a.astype("float32") for a in half], device)
    assert hs.dtype == "float16" and all(o.dtype == "float32" for o in others)
    # A GPU's kernels store products with the state in float16; and float32's last bits decide which way it is rounded.
    np.testing.assert_allclose(hs, wanted.astype("float16"), rtol=0, atol=2**-10)
    tensors = [gn.tensor(a, device=device, requires_grad=True) for a in half]
    results = getattr(ops, name)(*tensors)
    (results[0] if isinstance(results, tuple) else results).sum().backward()
    for t in tensors:
        assert t.grad is not None and t.grad.dtype == "float16" and t.grad.shape == t.shape


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_the_composition(name: str, device: str) -> None:
    arrays = [a.astype("float32") for a in arguments(name)]
    g = normal(T, B, H)

    def gradients(dtype: str, device: str, f: Callable[..., Any]) -> list[np.ndarray]:
        tensors = [gn.tensor(a.astype(dtype), device=device, requires_grad=True) for a in arrays]
        results = f(*tensors)
        hs = results[0] if isinstance(results, tuple) else results
        hs.backward(gn.tensor(g.astype(dtype), device=device))
        return [t.grad.cpu().numpy() for t in tensors]

    op = getattr(ops, name)
    composed = gradients("float64", "cpu", lambda *tensors: op.reference(gn, *tensors))  # step by step, on the tape
    for got, wanted in zip(gradients("float32", device, op), composed):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_steps_that_the_loss_ignores_change_nothing(device: str) -> None:
    arrays = arguments("lstm")

    def gradients(pick: Callable[..., Any]) -> list[np.ndarray]:
        tensors = [gn.tensor(a, device=device, requires_grad=True) for a in arrays]
        pick(ops.lstm(*tensors)).backward()
        return [t.grad.cpu().numpy() for t in tensors]

    only_c = gradients(lambda results: results[1][-1].sum())
    np.testing.assert_allclose(
        only_c[0], gradients(lambda results: (results[1][-1] + 0.0 * results[0][-1]).sum())[0], rtol=1e-12
    )
    early = gradients(lambda results: results[0][1].sum())
    assert not early[0][2:].any() and early[0][:2].all()


@pytest.mark.parametrize("name", STEPS)
def test_shapes_that_do_not_fit(name: str, device: str) -> None:
    inputs, *states, weight, bias = (gn.asarray(a.astype("float32"), device=device) for a in arguments(name))
    n, op = GATES[name], getattr(ops, name)
    wrong = [
        ((inputs, *states, weight[:, :3], bias), rf"expected a weight of shape \({n} \* H, H\), got \({n * H}, 3\)"),
        ((inputs, *(s[:2] for s in states), weight, bias), r"expected h of shape \(3, 5\), got \(2, 5\)"),
        ((inputs, *states, weight, bias[:4]), rf"expected bias of shape \({n * H},\), got \(4,\)"),
        ((inputs[..., :n], *states, weight, bias), rf"takes inputs \(T, B, {n * H}\) .* got \(4, 3, {n}\)"),
        ((inputs[:0], *states, weight, bias), r"at least one step, got \(0, 3, "),
    ]
    for arrays, text in wrong:
        with pytest.raises(gn.errors.ShapeError, match=f"^{name}: .*{text}"):
            op(*arrays)
