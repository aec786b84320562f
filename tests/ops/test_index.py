"""Sorting, searching, sets and differences against NumPy, and their derivatives against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DeviceError, DTypeError, ShapeError
from tests.gradcheck import check_gradients

rng = np.random.default_rng(8)

DTYPES = ["float32", "float64", "int64", "uint8"]


def on(device: str, x: Any, dtype: Any = None) -> gn.Tensor:
    return gn.asarray(np.asarray(x, dtype), device=device)


@pytest.mark.parametrize("dtype", [*DTYPES, "complex128", "bool"])
def test_unique(dtype: str, device: str) -> None:
    for shape in [(3, 4), (7,), (), (0,)]:
        x = rng.integers(0, 2 if dtype == "bool" else 5, shape).astype(dtype)
        values, indices, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
        found = gn.unique_all(on(device, x))
        np.testing.assert_array_equal(found.values.cpu().numpy(), values)
        np.testing.assert_array_equal(found.indices.cpu().numpy(), indices)
        np.testing.assert_array_equal(found.inverse_indices.cpu().numpy(), inverse.reshape(shape))
        np.testing.assert_array_equal(found.counts.cpu().numpy(), counts)
        assert found.values.dtype == dtype and all(part.dtype == gn.int64 for part in found[1:])
        by_inverse, by_counts = gn.unique_inverse(on(device, x)), gn.unique_counts(on(device, x))
        np.testing.assert_array_equal(by_inverse.values[by_inverse.inverse_indices].cpu().numpy(), x)
        np.testing.assert_array_equal(by_counts.counts.cpu().numpy(), counts)
        np.testing.assert_array_equal(gn.unique_values(on(device, x)).cpu().numpy(), values)


def test_unique_takes_each_nan_for_another(device: str) -> None:
    found = gn.unique_all(on(device, [np.nan, 1.0, np.nan, -0.0, 0.0]))
    np.testing.assert_array_equal(found.values.cpu().numpy(), [0.0, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(found.counts.cpu().numpy(), [2, 1, 1, 1])


def test_gradient_of_distinct_values(device: str) -> None:
    x = gn.tensor(np.array([[2.0, 1.0], [2.0, 3.0]]), device=device, requires_grad=True)
    (gn.unique_counts(x).values * on(device, [10.0, 20.0, 30.0])).sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.cpu().numpy(), [[20.0, 10.0], [0.0, 30.0]])
    check_gradients(lambda x: gn.unique_values(x) ** 3, [rng.standard_normal((2, 3))], device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted(side: str, dtype: str, device: str) -> None:
    x = rng.integers(0, 9, 6).astype(dtype)
    values = rng.integers(0, 9, (2, 3)).astype(dtype)
    ordered, order = np.sort(x), np.argsort(x)
    expected = np.searchsorted(ordered, values, side=side)
    for found in (
        gn.searchsorted(on(device, ordered), on(device, values), side=side),
        gn.searchsorted(on(device, x), on(device, values), side=side, sorter=on(device, order)),
    ):
        np.testing.assert_array_equal(found.cpu().numpy(), expected)
        assert found.dtype == gn.int64
    one = gn.searchsorted(on(device, ordered), 4, side=side)
    assert one.shape == () and one.item() == np.searchsorted(ordered, 4, side=side)


def test_searchsorted_of_mixed_types(device: str) -> None:
    ordered = on(device, [1, 2, 3])
    assert gn.searchsorted(ordered, 2.5).item() == 2
    assert gn.searchsorted(ordered, on(device, [0.5, 2.5], "float32")).tolist() == [0, 2]
    assert gn.searchsorted(on(device, [1.0, np.nan]), on(device, [np.nan, 5.0])).tolist() == [1, 1]


def test_mistakes_in_searching(device: str) -> None:
    with pytest.raises(ShapeError, match="searchsorted: expected a one-dimensional x1, got shape \\(2, 2\\)"):
        gn.searchsorted(gn.zeros((2, 2), device=device), 1.0)
    with pytest.raises(ValueError, match='side must be "left" or "right", got \'middle\''):
        gn.searchsorted(gn.zeros((2,), device=device), 1.0, side="middle")
    with pytest.raises(DTypeError, match="take: indices must be an array of integers, got float64"):
        gn.searchsorted(gn.zeros((2,), device=device), 1.0, sorter=on(device, [0.0, 1.0]))
    with pytest.raises(ShapeError, match="nonzero: expected an array of at least one axis"):
        gn.nonzero(gn.ones((), device=device))


@pytest.mark.parametrize("invert", [False, True])
def test_isin(invert: bool, device: str) -> None:
    a, b = rng.integers(0, 6, (3, 4)), rng.integers(0, 6, (2, 2))
    for x, y in [(a, b), (a.astype("uint8"), b), (a, 3), (2, b), (a.astype("float32"), b.astype("float32")[:0])]:
        on_device = [v if isinstance(v, int) else on(device, v) for v in (x, y)]
        found = gn.isin(*on_device, invert=invert)
        np.testing.assert_array_equal(found.cpu().numpy(), np.isin(x, y, invert=invert))
        assert found.dtype == gn.bool


def test_isin_takes_numbers_by_their_value(device: str) -> None:
    assert gn.isin(on(device, [44, 1], "uint8"), 300).tolist() == [False, False]  # 300 is 44 modulo 256
    assert gn.isin(-1, on(device, [255], "uint8"), invert=True).tolist() is True
    assert gn.isin(on(device, [2**63 + 1], "uint64"), 2**63).tolist() == [False]  # as float64 they are equal


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("axis", [0, -1])
def test_diff(axis: int, n: int, device: str) -> None:
    for dtype in [*DTYPES, "bool", "complex64"]:
        x, more = rng.integers(0, 2, (4, 3)).astype(dtype), rng.integers(0, 2, (4, 3)).astype(dtype)
        found = gn.diff(on(device, x), axis=axis, n=n)
        np.testing.assert_array_equal(found.cpu().numpy(), np.diff(x, n, axis))
        assert found.dtype == dtype
        joined = gn.diff(on(device, x), axis=axis, n=n, prepend=on(device, more), append=on(device, x))
        expected = np.diff(np.concatenate([more, x, x], axis=axis), n, axis)  # np.diff forgets what to prepend if n = 0
        np.testing.assert_array_equal(joined.cpu().numpy(), expected)


def test_gradient_of_differences(device: str) -> None:
    check_gradients(
        lambda x, a, b: gn.diff(x, axis=0, n=2, prepend=a, append=b) ** 2,
        [rng.standard_normal(shape) for shape in [(3, 2), (1, 2), (2, 2)]],
        device=device,
    )


def test_differences_by_position_are_numpys(device: str) -> None:
    x = rng.standard_normal((4, 5))
    np.testing.assert_array_equal(gn.diff(on(device, x), 2, 0).cpu().numpy(), np.diff(x, 2, 0))


def test_mistakes_in_differences(device: str) -> None:
    with pytest.raises(ShapeError, match="diff: there is no axis 2 in an array of 2 axes"):
        gn.diff(gn.zeros((2, 2), device=device), axis=2)
    with pytest.raises(ValueError, match="diff: n must not be negative, got -1"):
        gn.diff(gn.zeros((2, 2), device=device), n=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_sort(axis: int, descending: bool, dtype: str, device: str) -> None:
    x = rng.integers(0, 5, (7, 6)).astype(dtype)
    expected = np.sort(x, axis=axis)
    if descending:
        expected = np.flip(expected, axis=axis)
    order = gn.argsort(on(device, x), axis=axis, descending=descending)
    np.testing.assert_array_equal(gn.sort(on(device, x), axis=axis, descending=descending).cpu().numpy(), expected)
    np.testing.assert_array_equal(np.take_along_axis(x, order.cpu().numpy(), axis=axis), expected)
    steps = np.diff(order.cpu().numpy(), axis=axis)
    assert order.dtype == gn.int64 and (steps[np.diff(expected, axis=axis) == 0] > 0).all()  # equal ones in their order
    with pytest.raises(ShapeError, match="argsort: there is no axis -3"):
        gn.argsort(on(device, x), axis=-3)
    with pytest.raises(ShapeError, match="sort: there is no axis 2"):
        gn.sort(on(device, x), axis=2)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_top_k(k: int, axis: int, largest: bool, device: str) -> None:
    x = rng.permutation(35).reshape(5, 7).astype("float32")
    found = gn.top_k(on(device, x), k, axis=axis, largest=largest)
    expected = np.sort(x if not largest else -x, axis=axis).take(range(k), axis=axis) * (-1 if largest else 1)
    np.testing.assert_array_equal(found.values.cpu().numpy(), expected)
    np.testing.assert_array_equal(np.take_along_axis(x, found.indices.cpu().numpy(), axis=axis), expected)
    assert found.indices.dtype == gn.int64


def test_top_k_of_equal_numbers_and_nan(device: str) -> None:
    assert gn.top_k(on(device, [1, 3, 3, 0, 3]), 2).indices.tolist() == [1, 2]
    assert gn.top_k(on(device, [1, 0, 0, 3]), 2, largest=False).indices.tolist() == [1, 2]
    assert gn.top_k(on(device, [1.0, np.nan, 3.0]), 2).indices.tolist() == [1, 2]


def test_gradient_of_top_k(device: str) -> None:
    x = rng.permutation(np.linspace(-1, 1, 12)).reshape(3, 4)
    check_gradients(lambda x: gn.top_k(x, 2, axis=0).values ** 3, [x], device=device)


def test_mistakes_in_top_k(device: str) -> None:
    for k in (-1, 4):
        with pytest.raises(ShapeError, match=f"top_k: expected k from 0 to 3 along axis 0 of \\(3, 4\\), got {k}"):
            gn.top_k(gn.zeros((3, 4), device=device), k, axis=0)


def test_bincount(device: str) -> None:
    x, weights = rng.integers(0, 6, 20), rng.standard_normal(20)
    for minlength in (0, 3, 9):
        found = gn.bincount(on(device, x), minlength=minlength)
        np.testing.assert_array_equal(found.cpu().numpy(), np.bincount(x, minlength=minlength))
        found = gn.bincount(on(device, x), on(device, weights, "float32"), minlength)
        np.testing.assert_allclose(found.cpu().numpy(), np.bincount(x, weights, minlength), rtol=1e-5, atol=1e-6)
        assert found.dtype == gn.float64
    check_gradients(lambda w: gn.bincount(on(device, x), w) ** 2, [weights], device=device)


def test_mistakes_in_bincount(device: str) -> None:
    with pytest.raises(DTypeError, match="bincount: indices must be an array of integers, got float32"):
        gn.bincount(gn.zeros((3,), device=device))
    with pytest.raises(ValueError, match="negative"):
        gn.bincount(on(device, [1, -2, 3]), gn.ones((3,), device=device))
    with pytest.raises(ShapeError, match="bincount: expected one axis.*got \\(3, 1\\)"):
        gn.bincount(on(device, [[1], [2], [3]]))
    with pytest.raises(ShapeError, match="got \\(3,\\) and weights of shape \\(2,\\)"):
        gn.bincount(on(device, [1, 2, 3]), gn.ones((2,), device=device))


def test_an_index_on_another_device() -> None:
    """From the CPU it is brought along; to the CPU it is not."""
    mask = np.array([True, False, True])
    assert gn.asarray([1, 2, 3], device="strict")[gn.asarray(mask)].tolist() == [1, 3]
    for index in (gn.asarray(mask, device="strict"), (gn.asarray(mask, device="strict"),)):
        with pytest.raises(DeviceError, match="an index is on strict:0 and the array on cpu"):
            gn.asarray([1, 2, 3], device="cpu")[index]
