"""The CPU's recurrent kernels against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.ops import recurrent as ops

rng = np.random.default_rng(14)
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# Steps, samples, units: less and more than a vector of units, than a tile of rows, than the samples that go together,
# and than the depth of a part of a panel.
SHAPES = [(1, 1, 1), (3, 5, 7), (4, 13, 16), (3, 70, 20), (2, 9, 150), (3, 6, 96), (20, 33, 64)]
CASES = [("lstm", {}), ("gru", {}), ("rnn", {"activation": "tanh"}), ("rnn", {"activation": "relu"})]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=["lstm", "gru", "tanh", "relu"])


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def arguments(name: str, shape: tuple[int, int, int], *, states: bool = True, bias: bool = True) -> list[Any]:
    """Inputs, the state's parts, weight and bias."""
    length, batch, units = shape
    n = GATES[name] * units
    before = [normal(batch, units) if states else None for _ in range(2 if name == "lstm" else 1)]
    return [normal(length, batch, n), *before, normal(n, units) / np.sqrt(units), normal(n) if bias else None]


def run(op: Any, arrays: list[Any], mode: str = "force", dtype: Any = np.float32, **options: Any) -> list[np.ndarray]:
    with gn.kernels(mode):
        results = op(*(None if a is None else np.asarray(a, dtype) for a in arrays), **options)
    return list(results) if isinstance(results, tuple) else [results]


def gradient(name: str, arrays: list[Any], results: list[np.ndarray], gs: list[Any]) -> tuple[Any, list[Any]]:
    """The op that computes it, and its arguments."""
    weight = arrays[-2]
    if name == "lstm":
        return ops.lstm_grad, [*gs, None, *results[1:], arrays[2], weight]
    if name == "gru":
        return ops.gru_grad, [gs[0], None, *results, arrays[1], weight]
    return ops.rnn_grad, [gs[0], *results, arrays[1], weight]


def close(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        assert a.dtype == np.float32 and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6 * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@cases
def test_values_and_gradients(name: str, options: Any, shape: tuple[int, int, int], reverse: bool) -> None:
    op, options = getattr(ops, name), {**options, "reverse": reverse}
    for whole in (True, False):
        arrays = arguments(name, shape, states=whole, bias=whole)
        got = run(op, arrays, **options)
        close(got, run(op, arrays, "off", np.float64, **options))
        gs = [normal(*shape), normal(*shape) if whole else None]
        grad, given = gradient(name, arrays, got, gs[: 2 if name == "lstm" else 1])
        close(run(grad, given, **options), run(grad, given, "off", np.float64, **options))


def test_a_gradient_of_c_alone() -> None:
    shape = (3, 5, 20)
    arrays = arguments("lstm", shape)
    results = run(ops.lstm, arrays)
    grad, given = gradient("lstm", arrays, results, [None, normal(*shape)])
    close(run(grad, given, reverse=False), run(grad, given, "off", np.float64, reverse=False))


def test_activations_are_exact_to_a_few_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-30, 30, 20011), np.geomspace(1e-30, 1, 999), -np.geomspace(1e-30, 1, 999)])
    x = x[: len(x) // 4 * 4].astype(np.float32).reshape(1, 1, -1)
    units = x.shape[2] // 4
    # Without a state before, and so independent of the weight.
    with gn.kernels("force"):
        gates = ops.lstm(x, None, None, np.zeros((4 * units, units), np.float32))[2].reshape(4, units)
    exact = x.astype(np.float64).reshape(4, units)
    exact = np.where(np.arange(4)[:, None] == 2, np.tanh(exact), 1 / (1 + np.exp(-exact)))
    errors = np.abs(gates - exact) / np.spacing(np.abs(exact.astype(np.float32)))
    assert errors[2].max() < 3 and errors.max() < 3


@cases
def test_what_is_not_finite_stays_in_its_sample(name: str, options: Any) -> None:
    arrays = arguments(name, (3, 9, 20))
    inputs = arrays[0]
    sound = run(getattr(ops, name), arrays, **options)
    inputs[1, 3, 2], inputs[0, 5], inputs[2, 7] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        wanted = run(getattr(ops, name), arrays, "off", **options)
    got = run(getattr(ops, name), arrays, **options)
    others = [0, 1, 2, 4, 6, 8]
    for a, b, c in zip(got, wanted, sound):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(a[:, others], c[:, others])


@cases
def test_a_sample_does_not_depend_on_the_others(name: str, options: Any) -> None:
    _length, batch, units = shape = (4, 75, 40)
    arrays = arguments(name, shape)
    op = getattr(ops, name)
    whole = run(op, arrays, **options)
    gs = [normal(*shape)] * (2 if name == "lstm" else 1)
    grad, given = gradient(name, arrays, whole, gs)
    whole_gradients = run(grad, given, reverse=False, **options)
    for part in (slice(0, 1), slice(3, 10), slice(40, 75)):
        some = [a[:, part] if a.ndim == 3 else a[part] if a.shape == (batch, units) else a for a in arrays]
        results = run(op, some, **options)
        for a, b in zip(results, whole):
            np.testing.assert_array_equal(a, b[:, part])
        grad, given = gradient(name, some, results, [g[:, part] for g in gs])
        for a, b in zip(run(grad, given, reverse=False, **options), whole_gradients):
            np.testing.assert_array_equal(a, b[:, part] if b.ndim == 3 else b[part])


@cases
def test_any_number_of_threads_gives_the_same_bits(name: str, options: Any) -> None:
    shape = (30, 50, 96)
    arrays, g, before, found = arguments(name, shape), normal(*shape), gn.get_num_threads(), []
    try:
        for threads in (1, 3):
            gn.set_num_threads(threads)
            results = run(getattr(ops, name), arrays, **options)
            grad, given = gradient(name, arrays, results, [g, None][: 2 if name == "lstm" else 1])
            found.append([*results, *run(grad, given, reverse=False, **options)])
    finally:
        gn.set_num_threads(before)
    for a, b in zip(*found):
        np.testing.assert_array_equal(a, b)


@cases
def test_other_layouts(name: str, options: Any) -> None:
    shape = (3, 6, 20)
    arrays = arguments(name, shape)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in arrays]
    wanted = run(getattr(ops, name), arrays, **options)
    for a, b in zip(run(getattr(ops, name), strided, **options), wanted):
        np.testing.assert_array_equal(a, b)
    g = np.broadcast_to(np.float32(2), shape)
    gs = [g, None][: 2 if name == "lstm" else 1]
    grad, given = gradient(name, arrays, wanted, gs)
    dense, given_dense = gradient(name, arrays, wanted, [None if a is None else a.copy() for a in gs])
    for a, b in zip(run(grad, given, reverse=True, **options), run(dense, given_dense, reverse=True, **options)):
        np.testing.assert_array_equal(a, b)


@cases
def test_other_types_and_no_samples_take_the_reference(name: str, options: Any) -> None:
    op = getattr(ops, name)
    for shape, dtype in (((3, 4, 5), np.float64), ((3, 4, 5), np.float16), ((3, 0, 5), np.float32)):
        arrays = arguments(name, shape)
        for a, b in zip(run(op, arrays, "auto", dtype, **options), run(op, arrays, "off", dtype, **options)):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-3)
        with pytest.raises(gn.errors.DeviceError, match="none of its kernels applies"):
            run(op, arrays, "force", dtype, **options)
