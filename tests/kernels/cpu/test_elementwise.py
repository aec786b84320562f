"""The CPU's kernels for activations against their references, of any size and layout, also where not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.ops import elementwise as ew
from gpunet.ops.op import Op
from tests.kernels.cpu.layouts import laid

rng = np.random.default_rng(5)
TANH = {"approximate": "tanh"}
ERF = {"approximate": "none"}
OF_X: list[tuple[Op, dict[str, Any]]] = [
    (ew.relu, {}), (ew.tanh, {}), (ew.sigmoid, {}), (ew.silu, {}), (ew.gelu, ERF), (ew.gelu, TANH),
]  # fmt: skip
GRADIENTS: list[tuple[Op, dict[str, Any]]] = [
    (ew.relu_grad, {}), (ew.tanh_grad, {}), (ew.sigmoid_grad, {}), (ew.silu_grad, {}), (ew.gelu_grad, ERF),
    (ew.gelu_grad, TANH),
]  # fmt: skip
SPECIAL = np.float32([0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -1e-40, 7.5, -7.5, 50.0, -50.0])


def name(case: Any) -> str:
    return f"{case[0].name} {case[1].get('approximate', '')}".strip()


def values(n: int) -> np.ndarray:
    return (rng.standard_normal(n) * 3).astype(np.float32)


def by_kernel(op: Op, *arrays: np.ndarray, **params: Any) -> np.ndarray:
    """What the kernel gives; small arrays, which NumPy computes, are made larger for it."""
    size, least = arrays[0].size, 2000
    with gn.kernels("force"):
        if size >= least:
            return op(*arrays, **params)
        padded = [np.concatenate([np.zeros(least, np.float32), a.reshape(-1)]) for a in arrays]
        return op(*padded, **params)[least:].reshape(arrays[0].shape)


def exactly(op: Op, *arrays: np.ndarray, **params: Any) -> np.ndarray:
    with gn.kernels("off"), np.errstate(all="ignore"):
        return op(*(a.astype(np.float64) for a in arrays), **params)


@pytest.mark.parametrize("n", [0, 1, 7, 16, 17, 5003, 300_001])
@pytest.mark.parametrize("case", [*OF_X, *GRADIENTS], ids=name)
def test_values(case: tuple[Op, dict[str, Any]], n: int) -> None:
    op, params = case
    arrays = [values(n) for _ in range(op.arity)]
    found = by_kernel(op, *arrays, **params)
    assert found.dtype == np.float32 and found.shape == (n,)
    np.testing.assert_allclose(found, exactly(op, *arrays, **params), rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("case", [*OF_X, *GRADIENTS], ids=name)
def test_special_values(case: tuple[Op, dict[str, Any]]) -> None:
    op, params = case
    x = SPECIAL
    if op in (ew.tanh_grad, ew.sigmoid_grad):  # of results
        x = np.tanh(x)
    if op is ew.silu_grad:  # where x (1 - sigmoid) is 0 times infinity, the order of rounding decides
        x = x[np.isfinite(x)]
    arrays = [np.full_like(x, 2), x][-op.arity :]
    with gn.kernels("off"), np.errstate(all="ignore"):
        wanted = op(*arrays, **params)
    if op is ew.gelu and params == ERF:  # the reference's erf(-50) is not quite -1
        wanted = [v * math.erfc(-v * 0.5**0.5) / 2 for v in map(float, x)]
    np.testing.assert_allclose(by_kernel(op, *arrays, **params), wanted, rtol=1e-6, atol=1e-6)


def test_relu_and_its_gradient_are_the_reference_to_the_bit() -> None:
    x = np.concatenate([values(3000), np.delete(SPECIAL, 1)])
    g = rng.permutation(x)
    for arrays, op in (((x,), ew.relu), ((g, x), ew.relu_grad)):
        with gn.kernels("off"), np.errstate(all="ignore"):
            wanted = op(*arrays)
        np.testing.assert_array_equal(by_kernel(op, *arrays).view(np.int32), wanted.view(np.int32))


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values in memory in other ways."""
    return {
        "contiguous": np.ascontiguousarray(x),
        "channels-last": np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        "transposed": np.ascontiguousarray(x.T).T,
        "strided": np.repeat(x, 2, axis=-1)[..., ::2],
        "reversed": np.ascontiguousarray(x[::-1])[::-1],
        "broadcast": np.broadcast_to(x[:1, :1], x.shape),
    }


@pytest.mark.parametrize("layout_of_g", list(layouts(np.zeros((2, 2)))))
@pytest.mark.parametrize("layout", list(layouts(np.zeros((2, 2)))))
def test_layouts(layout: str, layout_of_g: str) -> None:
    x, g = (layouts(values(5 * 7 * 9 * 11).reshape(5, 7, 9, 11))[how] for how in (layout, layout_of_g))
    with gn.kernels("force"):
        y, dx = ew.relu(x), ew.relu_grad(g, x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(dx, g * (x > 0))
    if layout in ("contiguous", "channels-last", "transposed"):
        assert y.strides == dx.strides == x.strides


def test_what_the_kernels_do_not_take() -> None:
    for x in (values(4000).astype(np.float64), values(4000).astype(np.float16)):
        for op, params in OF_X:
            assert op(x, **params).dtype == x.dtype
    np.testing.assert_array_equal(ew.relu(np.arange(-2000, 2000)), np.maximum(np.arange(-2000, 2000), 0))


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SPREAD", 1)  # so that small arrays are divided too
    x, before = values(40_003), gn.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            gn.set_num_threads(count)
            results.append([op(x, **params) for op, params in OF_X])
    finally:
        gn.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("second", ["channels-first", "channels-last", "strided"])
@pytest.mark.parametrize("first", ["channels-first", "channels-last", "strided"])
@pytest.mark.parametrize(
    "shape", [(250, 203), (9, 37, 157), (3, 33, 23, 29), (60, 1, 30, 30), (1, 60_000, 1, 1)], ids=str
)
def test_large_sums(shape: tuple[int, ...], first: str, second: str) -> None:
    a, b = (laid(values(math.prod(shape)).reshape(shape), how) for how in (first, second))
    with gn.kernels("force"):
        y = ew.add(a, b)
    np.testing.assert_array_equal(y, np.add(a, b))
    assert y.dtype == np.float32
    if "channels-last" in (first, second) and "strided" not in (first, second):
        assert np.moveaxis(y, 1, -1).flags.c_contiguous or shape[1] == 1


@pytest.mark.parametrize("b", [np.float32(2), 3.0, np.ones(1, np.float32), np.ones(60_000), np.ones((2, 1))], ids=repr)
def test_sums_that_the_kernel_does_not_take(b: Any) -> None:
    a = values(60_000)
    with gn.kernels("force"):
        y = ew.add(a, b)
    np.testing.assert_array_equal(y, np.add(a, b))
    assert y.dtype == np.add(a, b).dtype


@pytest.mark.parametrize(
    "shape", [(2, 3, 5), (2, 9, 200), (2, 16, 16), (1, 17, 33), (3, 40, 7, 9), (2, 1, 4, 4), (0, 3, 4)], ids=str
)
def test_copies_of_another_layout(shape: tuple[int, ...]) -> None:
    x = values(math.prod(shape)).reshape(shape)
    for a, b in ((x, laid(x, "channels-last")), (laid(x, "channels-last"), x), (laid(x, "strided"), x)):
        copy = ew.lying_as(b, a)
        np.testing.assert_array_equal(copy, a)
        axes = [axis for axis, n in enumerate(shape) if n > 1 and x.size]
        assert [copy.strides[axis] for axis in axes] == [b.strides[axis] for axis in axes]
