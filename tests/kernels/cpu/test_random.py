"""The CPU's dropout kernel against its reference, which draws with NumPy: the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.ops import random
from gpunet.ops.random import Key

rng = np.random.default_rng(7)
LAST = 2**64 - 1
KEYS = [
    Key(0, (0, 0, 0), 0), Key(12345, (1, 2, 3), 99), Key(LAST, (LAST, LAST, 5), LAST - 3),
    Key(7, (LAST, 0, 0), LAST - 1), Key(2**63 + 1, (0, 2**63, 0), 2**63 - 5),
]  # fmt: skip


def both(x: np.ndarray, p: float, key: Key) -> list[np.ndarray]:
    results = []
    for mode in ("force", "off"):
        with gn.kernels(mode), np.errstate(all="ignore"):
            results.append(random.dropout(x, p=p, key=key))
    assert results[0].dtype == np.float32 and results[0].shape == x.shape
    return [r.view(np.uint32) for r in results]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 511, 513, 30_001])
def test_the_same_bits(n: int, key: Key) -> None:
    x = rng.standard_normal(n).astype(np.float32)
    for p in (0.1, 0.5, 1 / 3, 0.999, 2**-24, 1e-9, 1 - 2**-24):
        kernel, reference = both(x, p, key)
        np.testing.assert_array_equal(kernel, reference)


def test_what_is_not_finite() -> None:
    x = np.resize(np.float32([np.inf, -np.inf, np.nan, -0.0, 0.0, 3e38, 1e-45]), 700)
    kernel, reference = both(x, 0.5, KEYS[1])
    np.testing.assert_array_equal(kernel, reference)


def test_other_layouts() -> None:
    x = rng.standard_normal((6, 5, 4, 3)).astype(np.float32)
    for a in (np.moveaxis(x, 1, -1), x[::2], x[..., ::-1], np.broadcast_to(x[:1], x.shape), x[0, 0, 0, 0, ...]):
        kernel, reference = both(a, 0.3, KEYS[1])
        np.testing.assert_array_equal(kernel, reference)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SPREAD", 1)  # so that small arrays are divided too
    x, before = rng.standard_normal(20_003).astype(np.float32), gn.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            gn.set_num_threads(count)
            results.append(both(x, 0.4, KEYS[2])[0])
    finally:
        gn.set_num_threads(before)
    np.testing.assert_array_equal(*results)


def test_the_gradient_has_the_same_mask() -> None:
    x = gn.ones((50, 30))
    x.requires_grad = True
    y = gn.nn.functional.dropout(x, 0.4)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())


@pytest.mark.parametrize("n", [0, 1, 7, 8, 15, 16, 17, 513, 30_001])
def test_gradients_keep_what_was_kept(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, g = rng.standard_normal((2, n)).astype(np.float32)
    g[::5] = np.nan
    kept: list[np.ndarray] = []
    random.dropout(x, p=0.4, key=KEYS[1], kept=kept)
    (bits,) = kept
    assert bits.dtype == np.uint8 and bits.size == -(-n // 8)
    monkeypatch.setattr(threads, "_SPREAD", 1)
    wanted = random.dropout(g, p=0.4, key=KEYS[1])
    for mode in ("force", "off"):
        with gn.kernels(mode):
            np.testing.assert_array_equal(random.dropout_again(g, bits, p=0.4), wanted)


def test_the_tape_draws_once() -> None:
    x = gn.tensor(np.ones((9, 5), np.float32), requires_grad=True)
    y = gn.nn.functional.dropout(x, 0.3)
    (y * y).sum().backward(retain_graph=True)
    dropped = y.detach().numpy()
    np.testing.assert_allclose(x.grad.numpy(), 2 * dropped**2, rtol=1e-6)
    (again,) = gn.grad([y.sum()], [x], create_graph=True)
    np.testing.assert_allclose(again.detach().numpy(), dropped, rtol=1e-6)
