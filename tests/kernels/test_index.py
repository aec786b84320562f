"""Reading, writing and adding up by position, sorting, and other moves of elements, on a device with kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation
from gpunet.errors import DTypeError
from gpunet.ops import index, shape, shape_kernels
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)


def on(backend: Backend, x: Any) -> Any:
    return backend.from_numpy(np.asarray(x), Device(backend.name))


def moved(backend: Backend, key: Any) -> Any:
    """An index expression with its NumPy arrays on the device."""
    if isinstance(key, tuple):
        return tuple(moved(backend, k) for k in key)
    return on(backend, key) if isinstance(key, np.ndarray) else key


def same(backend: Backend, got: Any, expected: Any) -> None:
    got = backend.to_numpy(got)
    assert got.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(got, expected)


ROWS, COLUMNS = rng.integers(-6, 6, (5, 3)), rng.integers(0, 5, 3)
SIX = rng.integers(0, 6, 4).astype(np.int32)
KEYS: dict[str, Any] = {
    "rows": (ROWS,),
    "one array": ROWS,
    "32 bits": SIX,
    "small": SIX.astype(np.uint8),
    "columns": (slice(None), COLUMNS),
    "last": (Ellipsis, rng.integers(0, 8, 9)),
    "pairs": (ROWS, COLUMNS),
    "pairs behind a slice": (slice(1, None), COLUMNS, COLUMNS),
    "apart": (ROWS, slice(None, None, 2), COLUMNS),
    "with a number": (2, slice(None), COLUMNS),
    "number beside": (slice(None), 2, COLUMNS),
    "with a new axis": (None, COLUMNS, slice(None, None, -1)),
    "all three": (rng.integers(0, 6, 7), rng.integers(0, 5, 7), rng.integers(0, 8, 7)),
    "none": np.zeros((0, 2), np.int64),
    "basic": (slice(1, 4), None, 2, Ellipsis),
    "one element": (1, 2, 3),
    "scalar": (np.array(3),),
    "mask": rng.integers(0, 2, 6).astype(bool),
    "mask of pairs": rng.integers(0, 2, (6, 5)).astype(bool),
    "empty mask": np.zeros((6, 5, 8), bool),
}


@pytest.mark.parametrize("name", KEYS)
def test_reading_and_the_gradient_of_it(name: str, kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 5, 8)).astype(np.float32)
    key = KEYS[name]
    views = [(on(kernel_device, x), x), (on(kernel_device, x.transpose(2, 0, 1).copy()).transpose(1, 2, 0), x)]
    for view, host in views:
        with gn.kernels("force"):
            got = index.getitem(view, key=moved(kernel_device, key))
        same(kernel_device, got, host[key])
    g = rng.standard_normal(x[key].shape).astype(np.float32)
    expected = np.zeros(x.shape)
    np.add.at(expected, key, g)
    with gn.kernels("force"):
        out = index._scatter(on(kernel_device, g), key=moved(kernel_device, key), shape=x.shape)
    np.testing.assert_allclose(kernel_device.to_numpy(out), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("kind", ["random", "one", "sorted"])
def test_sums_of_rows_by_index(kind: str, width: int, dtype: str, kernel_device: Backend) -> None:
    """Runs of equal indices that end in a tile, fill some, and go on in the next."""
    indices = {"random": rng.integers(0, 9, 150), "one": np.full(150, 4), "sorted": np.repeat(np.arange(10), 15)}[kind]
    g = rng.standard_normal((150, width)).astype(dtype)
    expected = np.zeros((11, width))
    np.add.at(expected, indices, g)
    results = []
    for order in ("forward", "reverse", "random"):
        with gn.kernels("force"), emulation(order=order):
            out = index._scatter(on(kernel_device, g), key=(on(kernel_device, indices),), shape=(11, width))
        results.append(kernel_device.to_numpy(out))
    epsilon = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(results[0], expected, rtol=4 * epsilon, atol=64 * min(epsilon, 1e-7))
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_embeddings(kernel_device: Backend) -> None:
    weight = gn.asarray(rng.standard_normal((40, 12)).astype(np.float32), device=kernel_device.name).requires_grad_()
    tokens = rng.integers(0, 40, (7, 9))
    with gn.kernels("force"):
        y = gn.take(weight, gn.asarray(tokens, device=kernel_device.name), axis=0)
        y.backward(gn.ones(y.shape, device=kernel_device.name))
    np.testing.assert_array_equal(y.detach().cpu().numpy(), weight.detach().cpu().numpy()[tokens])
    assert weight.grad is not None
    counts = np.bincount(tokens.ravel(), minlength=40)
    np.testing.assert_array_equal(weight.grad.cpu().numpy(), np.repeat(counts[:, None], 12, 1).astype(np.float32))


def test_indices_count_from_the_end_and_wrap_around(kernel_device: Backend) -> None:
    x = on(kernel_device, np.arange(5.0))
    with gn.kernels("force"):
        same(kernel_device, index.take(x, on(kernel_device, [-1, 4, 5, -6, 12])), np.array([4.0, 4, 0, 4, 2]))


def test_take_and_its_errors(kernel_device: Backend) -> None:
    x = rng.standard_normal((3, 4, 5)).astype(np.float16)
    i = rng.integers(0, 3, (2, 2))
    with gn.kernels("force"):
        for axis in (0, 1, -1):
            same(
                kernel_device,
                index.take(on(kernel_device, x), on(kernel_device, i), axis=axis),
                np.take(x, i, axis=axis),
            )
        with pytest.raises(DTypeError, match="take: indices must be an array of integers"):
            index.take(on(kernel_device, x), on(kernel_device, x), axis=0)
        with pytest.raises(ValueError, match="axis 3"):
            index.take(on(kernel_device, x), on(kernel_device, i), axis=3)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_along_an_axis(axis: int, kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 5, 8)).astype(np.float32)
    lengths = list(x.shape)
    lengths[axis] = 3
    i = rng.integers(0, 5, lengths)
    for source, indices in [(x, i), (x[:1] if axis else x[:, :1], i), (x, i[:, :, :1])]:
        expected = np.take_along_axis(source, indices, axis=axis)
        with gn.kernels("force"):
            got = index.take_along_axis(on(kernel_device, source), on(kernel_device, indices), axis=axis)
        same(kernel_device, got, expected)
    t = gn.asarray(x, device=kernel_device.name).requires_grad_()
    with gn.kernels("force"):
        y = gn.take_along_axis(t, gn.asarray(i, device=kernel_device.name), axis=axis)
        y.backward(gn.ones(y.shape, device=kernel_device.name))
    counts = np.zeros(x.shape)
    np.add.at(counts, index._along(i, x.shape, axis), 1)
    assert t.grad is not None
    np.testing.assert_array_equal(t.grad.cpu().numpy(), counts)


@pytest.mark.parametrize("name", ["basic", "one element", "mask", "mask of pairs", "empty mask"])
def test_writing(name: str, kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 5, 8)).astype(np.float32)
    key = KEYS[name]
    for value in (2.5, rng.standard_normal(x[key].shape).astype(np.float32)):
        expected = x.copy()
        expected[key] = value
        there = on(kernel_device, value) if isinstance(value, np.ndarray) else value
        with gn.kernels("force"):
            same(kernel_device, index.setitem(on(kernel_device, x), there, key=moved(kernel_device, key)), expected)
        target = on(kernel_device, x)
        log: list[Any] = []
        with emulation(log=log):
            index.setitem.write(kernel_device.xp, target, there, {"key": moved(kernel_device, key)})
        same(kernel_device, target, expected)
        assert log or name == "empty mask" or kernel_device.name != "emulated"


def test_equal_indices_are_written_in_their_order(kernel_device: Backend) -> None:
    x = gn.zeros(3, device=kernel_device.name)
    x[gn.asarray([1, 1, 2], device=kernel_device.name)] = gn.asarray([4.0, 5.0, 6.0], device=kernel_device.name)
    assert x.cpu().numpy().tolist() == [0, 5, 6]


SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, 0.5, np.nan, 0.0])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "int8", "uint16", "bool", "int64"])
def test_sorting(dtype: str, kernel_device: Backend) -> None:
    numbers = rng.integers(-9, 9, (3, 40)) if np.dtype(dtype).kind != "u" else rng.integers(0, 9, (3, 40))
    x = numbers.astype(dtype)
    if x.dtype.kind == "f":
        x[:, 7:17] = SPECIAL
    for view, host in [(on(kernel_device, x), x), (on(kernel_device, x.T.copy()).T, x)]:
        for axis in (0, 1):
            with gn.kernels("force"):
                got = index.argsort(view, axis=axis, descending=False, stable=True)
                down = index.argsort(view, axis=axis, descending=True, stable=True)
            same(kernel_device, got, np.argsort(host, axis=axis, kind="stable"))
            same(kernel_device, down, index.argsort(host, axis=axis, descending=True))


def test_sorting_many(kernel_device: Backend) -> None:
    x = rng.integers(0, 1000, 5000)
    expected = np.argsort(x, kind="stable")
    for order in ("forward", "random"):
        with gn.kernels("force"), emulation(order=order):
            same(kernel_device, index.argsort(on(kernel_device, x), axis=0, descending=False, stable=True), expected)


def test_one_hot(kernel_device: Backend) -> None:
    i = np.array([[2, 0], [7, -1]])
    for dtype in (None, np.dtype(np.float32)):
        with gn.kernels("force"):
            got = index.one_hot(on(kernel_device, i), num_classes=5, dtype=dtype)
        same(kernel_device, got, index.one_hot(i, num_classes=5, dtype=dtype))


LAYOUTS = [lambda x: x, lambda x: x.T, lambda x: x[::2, ::-1], lambda x: x[:, 1:]]
MOVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "reshape": (shape.reshape, {"shape": (-1,)}),
    "reshape a copy": (shape.reshape, {"shape": (-1, 1, 2), "copy": True}),
    "roll": (shape.roll, {"shift": 3, "axis": 0}),
    "roll all": (shape.roll, {"shift": -5, "axis": None}),
    "roll two": (shape.roll, {"shift": (1, -2), "axis": (0, 1)}),
    "repeat": (shape.repeat, {"repeats": 3, "axis": 1}),
    "repeat all": (shape.repeat, {"repeats": 2, "axis": None}),
    "tile": (shape.tile, {"repetitions": (2, 1, 3)}),
    "pad": (shape.pad, {"pad_width": ((1, 2), (0, 3)), "mode": "constant", "constant_values": 7}),
    "reflect": (shape.pad, {"pad_width": 9, "mode": "reflect", "constant_values": 0}),
    "edge": (shape.pad, {"pad_width": (3, 1), "mode": "edge", "constant_values": 0}),
    "wrap": (shape.pad, {"pad_width": ((20, 1), (2, 15)), "mode": "wrap", "constant_values": 0}),
    "tril": (shape.tril, {"k": 1}),
    "triu": (shape.triu, {"k": -2}),
    "astype": (shape.astype, {"dtype": np.dtype(np.float16)}),
    "copy": (shape.copy, {}),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_of_elements(name: str, kernel_device: Backend) -> None:
    op, params = MOVES[name]
    x = rng.standard_normal((6, 8)).astype(np.float32)
    for layout in LAYOUTS:
        with gn.kernels("force"):
            got = op(layout(on(kernel_device, x)), **params)
        same(kernel_device, got, op(layout(x), **params))


def test_joining(kernel_device: Backend) -> None:
    a, b, c = (rng.standard_normal((3, n)).astype(t) for n, t in ((4, np.float32), (2, np.float16), (1, np.float64)))
    there = {id(v): on(kernel_device, v) for v in (a, b, c)}
    cases: list[Any] = [(shape.concat, [a, b, c], 1), (shape.concat, [a, b, c], None), (shape.stack, [a, a], 1)]
    with gn.kernels("force"):
        for function, arrays, axis in cases:
            got = function([there[id(v)] for v in arrays], axis=axis)
            same(kernel_device, got, getattr(np, function.__name__)(arrays, axis=axis))
        assert shape.concat([there[id(a)].T, there[id(a)].T], axis=1).shape == (4, 6)
        with pytest.raises(ValueError, match="concat: arrays must have the same shape but for axis 0"):
            shape.concat([on(kernel_device, v) for v in (a, b)], axis=0)
    images = on(kernel_device, rng.standard_normal((2, 4, 4, 3))).transpose(0, 3, 1, 2)
    joined = shape.concat([images, images], axis=1)
    assert joined.transpose(0, 2, 3, 1).flags.c_contiguous


def test_what_can_be_seen_in_another_shape() -> None:
    x = np.zeros((4, 6, 5))
    for view in (x, x.transpose(2, 0, 1), x[:, ::2], x[::-1], x[:, :3], x[:, :1], np.broadcast_to(x[:1], x.shape)):
        for new in [(-1,), (2, 2, -1), (view.shape[0], -1), (-1, view.shape[2]), (1, *view.shape, 1)]:
            whole = view.reshape(new).shape
            seen = np.shares_memory(view.reshape(new), x)
            assert shape_kernels.keeps_places(view.shape, view.strides, whole) == seen, (view.strides, whole)


NAMES = (
    "getitem", "setitem", "take", "take_along_axis", "scatter", "reshape", "concat", "stack", "roll", "repeat", "tile",
    "pad", "tril", "triu", "astype", "copy", "sort", "unstack",
)  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] in NAMES])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)
