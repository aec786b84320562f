"""Recurrent networks on a device with kernels: whole sequences, forward and backward, beside references in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation, prebuild
from gpunet.errors import DeviceError, ShapeError
from gpunet.ops import recurrent
from gpunet.ops.op import Op
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
TOLERANCE = {"float64": 1e-12, "float32": 5e-6, "float16": 6e-3, "bfloat16": 5e-2}


@pytest.fixture(scope="module", autouse=True)
def built(kernel_device: Backend) -> None:
    """What these tests launch most."""
    if kernel_device.name == "emulated":
        prebuild([v for v in recurrent._variants() if "bfloat16" not in v.expression])


def dtype_of(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    return np.dtype(pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16").bfloat16)


def on(backend: Backend, a: Any) -> Any:
    return a if a is None else backend.from_numpy(a, Device(backend.name))


def run(backend: Backend, op: Op, *args: Any, **params: Any) -> tuple[Any, ...]:
    """What an op's kernel makes of NumPy arrays, as NumPy arrays."""
    arrays = [on(backend, a) for a in args]
    host: list[str] = []
    with gn.kernels("force"), emulation(host=host):
        y = op.implementation(type(next(a for a in arrays if a is not None)))(*arrays, **params)
    assert host == []
    return tuple(backend.to_numpy(a) for a in (y if isinstance(y, tuple) else (y,)))


def exact(op: Op, *args: Any, **params: Any) -> tuple[Any, ...]:
    y = op.reference(np, *(None if a is None else a.astype(np.float64) for a in args), **params)
    return y if isinstance(y, tuple) else (y,)


def close(found: tuple[Any, ...], expected: tuple[Any, ...], dtype: str) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def arguments(kind: str, length: int, batch: int, units: int, dtype: str, bare: bool) -> list[Any]:
    """inputs, the states, weight and bias; if `bare`, neither states nor bias."""
    gates, number = GATES[kind], dtype_of(dtype)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(number)

    states = [None if bare else some(batch, units) for _ in range(2 if kind == "lstm" else 1)]
    weight = (some(gates * units, units).astype(np.float64) * 0.4).astype(number)
    return [some(length, batch, gates * units), *states, weight, None if bare else some(gates * units)]


def check(backend: Backend, kind: str, given: list[Any], dtype: str, gradients: str = "all", **params: Any) -> None:
    """An op and its gradient, which is given what the op's reference made. gradients: "all" that it may be given, or
    "some": not that of the gates, nor of c."""
    op, gradient = getattr(recurrent, kind), getattr(recurrent, f"{kind}_grad")
    ys = exact(op, *given, **params)
    found = run(backend, op, *given, **params)
    close(found, ys, dtype)
    number = dtype_of(dtype)
    wide = number if number.itemsize > 2 else np.dtype("float32")
    assert [y.dtype for y in found] == [number, *[wide] * (len(ys) - 1)]

    saved = [y.astype(number if i == 0 else wide) for i, y in enumerate(ys)]
    gs: list[Any] = [rng.standard_normal(y.shape).astype(y.dtype) for y in saved]
    if gradients == "some":
        gs[1:] = [None] * len(gs[1:])
    _inputs, *states, weight, _bias = given
    if kind == "lstm":
        args = [*gs, *saved[1:], states[1], weight]
    else:
        args = [*gs, *saved, states[0], weight]
    close(run(backend, gradient, *args, **params), exact(gradient, *args, **params), dtype)


CHOICES = [("lstm", {}), ("gru", {}), ("rnn", {"activation": "tanh"}), ("rnn", {"activation": "relu"})]


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("kind", "params"), CHOICES, ids=str)
def test_sequences(kind: str, params: dict[str, Any], reverse: bool, bare: bool, kernel_device: Backend) -> None:
    given = arguments(kind, 4, 3, 8, "float32", bare)
    check(kernel_device, kind, given, "float32", "some" if bare else "all", **params, reverse=reverse)


@pytest.mark.parametrize(("length", "batch", "units"), [(1, 1, 1), (1, 2, 12), (2, 5, 7), (2, 40, 36)])
@pytest.mark.parametrize("kind", list(GATES))
def test_sizes(kind: str, length: int, batch: int, units: int, kernel_device: Backend) -> None:
    given = arguments(kind, length, batch, units, "float32", False)
    check(kernel_device, kind, given, "float32", **(dict(CHOICES)[kind]), reverse=False)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", list(GATES))
def test_types(kind: str, dtype: str, kernel_device: Backend) -> None:
    given = arguments(kind, 3, 2, 8, dtype, False)
    check(kernel_device, kind, given, dtype, "some", **(dict(CHOICES)[kind]), reverse=False)


def test_what_is_carried_in_half_precision_is_not_rounded(kernel_device: Backend) -> None:
    """A GRU that hardly changes its state: each change is smaller than the state's last digit."""
    length, units = 64, 8
    inputs = np.zeros((length, 1, 3 * units), np.float16)
    inputs[..., units : 2 * units], inputs[..., 2 * units :] = 8.5, 4  # z = 0.9998, n = 1
    h, weight = np.full((1, units), 0.5, np.float16), np.zeros((3 * units, units), np.float16)
    hs, _gates = run(kernel_device, recurrent.gru, inputs, h, weight, None, reverse=False)
    expected = exact(recurrent.gru, inputs, h, weight, None, reverse=False)[0]
    assert expected[-1].min() > 0.505
    np.testing.assert_allclose(hs, expected, rtol=6e-4)


@pytest.mark.parametrize("kind", list(GATES))
def test_arrays_that_are_not_contiguous(kind: str, kernel_device: Backend) -> None:
    inputs, *states, weight, bias = arguments(kind, 3, 2, 4, "float32", False)
    given = [np.ascontiguousarray(inputs.transpose(1, 0, 2)), *states, np.asfortranarray(weight), bias]
    arrays = [on(kernel_device, a) for a in given]
    arrays[0] = arrays[0].transpose(1, 0, 2)
    params = {**dict(CHOICES)[kind], "reverse": False}
    op = getattr(recurrent, kind)
    with gn.kernels("force"):
        y = op(*arrays, **params)
    close(y if isinstance(y, tuple) else (y,), exact(op, inputs, *states, weight, bias, **params), "float32")


def test_gradients_that_are_zeros(kernel_device: Backend) -> None:
    """Only that of c matters."""
    given = arguments("lstm", 2, 2, 4, "float32", True)
    hs, cs, gates = (y.astype(np.float32) for y in exact(recurrent.lstm, *given, reverse=False))
    args = [None, rng.standard_normal(hs.shape).astype(np.float32), None, cs, gates, None, given[3]]
    expected = exact(recurrent.lstm_grad, *args, reverse=False)
    close(run(kernel_device, recurrent.lstm_grad, *args, reverse=False), expected, "float32")


@pytest.mark.parametrize("kind", list(GATES))
def test_the_same_bits_in_any_order_of_blocks(kind: str, kernel_device: Backend) -> None:
    given = arguments(kind, 2, 37, 8, "float32", False)
    found = []
    for settings in ({}, {"order": "reverse"}, {"order": "random", "seed": 2}):
        arrays = [on(kernel_device, a) for a in given]
        with gn.kernels("force"), emulation(**settings, processors=2):
            y = getattr(recurrent, kind)(*arrays, **dict(CHOICES)[kind], reverse=False)
        found.append(b"".join(kernel_device.to_numpy(a).tobytes() for a in (y if isinstance(y, tuple) else (y,))))
    assert len(set(found)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "params"), CHOICES, ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite(kind: str, params: dict[str, Any], bad: float, kernel_device: Backend) -> None:
    given = arguments(kind, 3, 2, 4, "float32", False)
    given[0][1, 1, 2] = bad
    op = getattr(recurrent, kind)
    close(
        run(kernel_device, op, *given, **params, reverse=False), exact(op, *given, **params, reverse=False), "float32"
    )


def test_empty_batches(kernel_device: Backend) -> None:
    for kind, gates in GATES.items():
        inputs, weight = np.zeros((3, 0, gates * 4), np.float32), np.zeros((gates * 4, 4), np.float32)
        states = [None] * (2 if kind == "lstm" else 1)
        params = {**dict(CHOICES)[kind], "reverse": False}
        ys = run(kernel_device, getattr(recurrent, kind), inputs, *states, weight, None, **params)
        assert [y.shape[:2] for y in ys] == [(3, 0)] * len(ys)
        if kind != "rnn":
            args = [np.zeros_like(y) for y in ys] + list(ys[1:] if kind == "lstm" else ys)
            found = run(kernel_device, getattr(recurrent, f"{kind}_grad"), *args, None, weight, reverse=False)
            assert found[0].shape == inputs.shape


def test_what_does_not_fit_is_an_error(kernel_device: Backend) -> None:
    inputs, h, c, weight, bias = (on(kernel_device, a) for a in arguments("lstm", 2, 3, 4, "float32", False))
    with gn.kernels("force"):
        with pytest.raises(ShapeError, match=r"lstm: a weight of shape \(16, 4\) takes inputs \(T, B, 16\)"):
            recurrent.lstm(inputs[..., :8], h, c, weight, bias, reverse=False)
        with pytest.raises(ShapeError, match=r"gru: expected a weight of shape \(3 \* H, H\), got \(16, 4\)"):
            recurrent.gru(inputs, h, weight, bias, reverse=False)
        with pytest.raises(ShapeError, match=r"rnn: expected h of shape \(3, 4\), got \(2, 4\)"):
            recurrent.rnn(inputs[..., :4], h[:2], weight[:4], None, activation="tanh", reverse=False)
        with pytest.raises(DeviceError, match="lstm: none of its kernels applies"):
            recurrent.lstm(inputs, h.astype(np.float64), c, weight, bias, reverse=False)


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] in GATES])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_trains_as_on_the_cpu(kind: str, dtype: str, kernel_device: Backend) -> None:
    x = rng.standard_normal((2, 3, 6)).astype(dtype)
    found = []
    for device in ("cpu", kernel_device.name):
        gn.manual_seed(0)
        layer = getattr(nn, kind)(6, 8, num_layers=2, bidirectional=True, batch_first=True).to(device).to(dtype)
        given = gn.tensor(x, device=device)
        log: list[Any] = []
        host: list[str] = []
        with emulation(log=log, host=host):
            y = layer(given)[0]
            (y * y).sum().backward()
        found.append([y.detach().cpu().numpy(), *(p.grad.cpu().numpy() for p in layer.parameters())])
        steps = [name.split("<")[0] for name, _grid in log if "_step<" in name]
        if device == "emulated":
            assert host == []
            assert steps == [f"{kind.lower()}_step"] * 12 + [f"{kind.lower()}_grad_step"] * 12
    tolerance = {"float32": 1e-5, "float16": 2e-2}[dtype]
    for got, expected in zip(found[1], found[0]):
        assert got.dtype == dtype
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got.astype(np.float64), expected, rtol=tolerance, atol=tolerance * scale)
