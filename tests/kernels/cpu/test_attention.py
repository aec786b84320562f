"""The CPU's attention kernels against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.ops.attention import attention, attention_grad
from gpunet.ops.random import Key

rng = np.random.default_rng(9)
# Queries, keys, features, features of values: less and more than a vector, a strip of keys and a block of queries, and
# multiples of them.
SIZES = [
    (1, 1, 1, 1), (5, 7, 3, 4), (16, 16, 16, 16), (64, 64, 32, 32), (65, 130, 17, 40), (130, 65, 64, 64),
    (200, 200, 128, 128), (3, 300, 80, 16), (150, 20, 8, 272),
]  # fmt: skip
MASKS = ["none", "bool", "keys", "keys added", "added", "added, transposed", "each"]
DROPOUT = {"dropout": 0.3, "key": Key(5, (0, 1, 2), 7)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def mask_for(kind: str, leading: tuple[int, ...], queries: int, keys: int) -> np.ndarray | None:
    if kind == "bool":
        mask = rng.random((queries, keys)) < 0.6
        mask[queries // 2] = False  # a query without keys
        return mask
    if kind == "keys":
        mask = rng.random((*leading, 1, keys)) < 0.7
        mask[..., :1] = False
        return mask
    if kind == "keys added":
        return np.where(rng.random((1, keys)) < 0.5, -np.inf, normal(1, keys)).astype(np.float32)
    if kind == "added":
        return normal(queries, keys)
    if kind == "added, transposed":
        return normal(*leading, keys, queries).swapaxes(-1, -2)
    if kind == "each":
        return rng.random((*leading, queries, keys)) < 0.5
    return None


def run(q: Any, k: Any, v: Any, g: Any, mask: Any, mode: str, dtype: Any = np.float32, **options: Any) -> list[Any]:
    """What `attention` gives, and its gradients."""
    q, k, v, g = (np.asarray(a, dtype) if dtype != np.float32 else a for a in (q, k, v, g))
    if mask is not None and mask.dtype != bool:
        mask = mask.astype(dtype, order="K")
    options = {"scale": 0.3, "causal": False, "dropout": 0.0, "key": None, **options}
    with gn.kernels(mode):
        y, logarithm = attention(q, k, v, mask, **options)
        return [y, logarithm, *attention_grad(g, None, y, logarithm, q, k, v, mask, **options)]


def check(q: Any, k: Any, v: Any, g: Any, mask: Any = None, **options: Any) -> list[np.ndarray]:
    got = run(q, k, v, g, mask, "force", **options)
    wanted = run(q, k, v, g, mask, "off", np.float64, **options)
    for a, b in zip(got, wanted):
        assert a.dtype == np.float32 and a.shape == b.shape
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        largest = np.abs(b[finite]).max(initial=0)
        np.testing.assert_allclose(a[finite], b[finite], rtol=1e-5, atol=3e-6 * max(1.0, largest))
    return got


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(sizes: tuple[int, ...], kind: str, causal: bool) -> None:
    queries, keys, features, outputs = sizes
    for leading, options in (((2, 3), {}), ((), {}), ((2,), DROPOUT)):
        arrays = (normal(*leading, n, d) for n, d in ((queries, features), (keys, features), (keys, outputs)))
        mask = mask_for(kind, leading, queries, keys)
        check(*arrays, normal(*leading, queries, outputs), mask, causal=causal, **options)


def test_leading_axes_broadcast() -> None:
    q, k, v, g = normal(2, 3, 2, 20, 8), normal(2, 3, 1, 30, 8), normal(3, 1, 30, 8), normal(2, 3, 2, 20, 8)
    mask = rng.random((3, 2, 1, 30)) < 0.7
    got = run(q, k, v, g, mask, "force")
    wanted = run(q, k, v, g, mask, "off", np.float64)
    for a, b in zip(got, wanted):
        axes = tuple(i for i, (n, m) in enumerate(zip(b.shape, a.shape)) if n != m)
        np.testing.assert_allclose(a.sum(axes, keepdims=True) if axes else a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [(2, 0, 3, 1, 4), (2, 1, 3, 0, 4), (2, 3, 0, 1, 4)])
def test_a_projection_is_taken_and_given_back_as_it_lies(order: tuple[int, ...]) -> None:
    """Parts of one array (samples, positions, 3, heads, features) or with its axes in another order."""
    parts = normal(3, 70, 3, 2, 24).transpose(order)
    g = normal(*parts.shape[1:-1], 24)
    _y, _logarithm, *gradients = check(*parts, g, causal=True)
    whole = gradients[0].base
    assert all(a.base is whole for a in gradients)
    assert [a.strides for a in gradients] == [a.strides for a in parts]
    inverse = np.argsort(order)
    np.testing.assert_array_equal(np.stack(gradients).transpose(inverse).ravel(), whole.transpose(inverse).ravel())


def test_heads_lie_within_positions() -> None:
    q = normal(3, 5, 4, 8)
    y = run(q, q, q, q, None, "force")[0]
    assert y.swapaxes(1, 2).flags.c_contiguous
    by_position = normal(5, 3, 4, 8).transpose(1, 2, 0, 3)  # (samples, heads, positions, features)
    y = run(by_position, by_position, by_position, by_position, None, "force")[0]
    assert y.transpose(2, 0, 1, 3).flags.c_contiguous


def test_strided_arrays() -> None:
    q, k, v, g = normal(2, 40, 60), normal(60, 30, 2).T, normal(2, 90, 20)[:, ::-3], normal(2, 20, 40).swapaxes(1, 2)
    check(q[..., ::2], k.swapaxes(1, 2)[:, ::2, :][:, :30], v, g)


@pytest.mark.parametrize("causal", [False, True])
def test_nan_and_infinity_stay_where_they_belong(causal: bool) -> None:
    q, k, v, g = normal(70, 16), normal(70, 16), normal(70, 16), normal(70, 16)
    clean = run(q, k, v, g, None, "force", causal=causal)[0]
    q[3] = np.nan
    y = run(q, k, v, g, None, "force", causal=causal)[0]
    assert np.isnan(y[3]).all()
    np.testing.assert_array_equal(np.delete(y, 3, 0), np.delete(clean, 3, 0))
    q[3] = 0
    k[40] = np.nan
    y = run(q, k, v, g, None, "force", causal=causal)[0]
    assert np.isnan(y[40:]).all() and (np.isnan(y).any() != causal or not np.isnan(y[:40]).any())
    assert np.isnan(y[:40]).all() != causal
    k[40], q[5], k[2] = 0, 1, np.inf
    y = run(q, k, v, g, None, "force", causal=causal)[0]
    assert np.isnan(y[5]).all()  # as inf - inf is


def test_keys_that_take_no_part_may_be_anything() -> None:
    q, k, v, g = normal(70, 16), normal(90, 16), normal(90, 16), normal(70, 16)
    mask = np.ones((70, 90), bool)
    mask[:, 50] = False
    clean = run(q, k, v, g, mask, "force")[0]
    for value in (np.nan, np.inf, -np.inf):
        k[50] = value
        np.testing.assert_array_equal(run(q, k, v, g, mask, "force")[0], clean)
        np.testing.assert_array_equal(run(q, k, v, g, mask[:1], "force")[0], clean)


def test_large_scores_do_not_overflow() -> None:
    q, k, v, g = 100 * normal(70, 16), 100 * normal(130, 16), normal(130, 8), normal(70, 8)
    got, wanted = (run(q, k, v, g, None, mode, dtype) for mode, dtype in (("force", "f"), ("off", np.float64)))
    np.testing.assert_allclose(got[0], wanted[0], atol=2e-2)
    assert all(np.isfinite(a).all() for a in got)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": True, **DROPOUT}], ids=["plain", "causal", "dropout"]
)
@pytest.mark.parametrize("leading", [(1,), (5,)])
def test_any_number_of_threads_gives_the_same_bits(
    leading: tuple[int, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [normal(*leading, 400, 32) for _ in range(4)]
    results = []
    for n in (1, 2, 3):
        pool = threads.Pool(n)
        monkeypatch.setattr(threads, "_pool", pool)
        results.append(run(*arrays, None, "force", **options))
        pool.close()
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)
