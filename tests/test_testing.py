"""check_grads: passes what is right, and says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
import gpunet.nn.functional as F
from gpunet.testing import check_grads

rng = np.random.default_rng(0)


class Wrong(gn.Function):
    """x ** 3, with a derivative that is wrong by a factor, or not linear."""

    @staticmethod
    def forward(ctx: Any, x: Any, factor: float) -> Any:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * 3 * x**2 * ctx.factor, None


def test_right_ones_pass(device: str) -> None:
    x, w = (gn.asarray(rng.standard_normal(s), device=device) for s in ((3, 4), (4, 2)))
    check_grads(lambda x, w: gn.tanh(x @ w), (x, w))
    check_grads(lambda x: gn.sin(x) * x, (x,), order=3)
    check_grads(lambda t: {"y": t["a"] * t["b"][0], "n": gn.argmax(t["a"])}, ({"a": x, "b": (x * 2, 3)},))
    check_grads(lambda x: gn.exp(x), (x.mT[::-1],), modes=("fwd",))  # strided
    check_grads(lambda x, y: x * y, (x, x[:1]), modes=("rev",))  # broadcast
    check_grads(lambda x: gn.sum(x, axis=0), (x[:0],))  # empty
    assert x.grad is None


def test_complex_arguments_and_results() -> None:
    z, x = rng.standard_normal(3) + 1j * rng.standard_normal(3), rng.standard_normal(3)
    check_grads(lambda z: gn.exp(z) * z, (z,))
    check_grads(lambda z: gn.abs(z) ** 2 + gn.real(z * gn.conj(z)) + gn.imag(z), (z,))
    check_grads(lambda x, z: x * z + gn.conj(z), (x, z))
    check_grads(lambda x: gn.fft.fft(x), (x,))


def test_float32_is_checked_in_float64_and_random_numbers_are_the_same() -> None:
    seen = []

    def f(x: Any) -> Any:
        seen.append(x.dtype)
        return F.dropout(x * x, 0.5)

    before = gn.random.generator().state_dict()
    check_grads(f, (np.ones(20, np.float32),))
    assert set(seen) == {gn.float64}
    assert gn.random.generator().state_dict() == before


def test_wrong_ones_are_told() -> None:
    x = gn.asarray(np.array([1.0, 2.0]))
    with pytest.raises(
        AssertionError, match=r"check_grads: rev, of arguments \(2,\) float64: along a random direction"
    ):
        check_grads(lambda x: Wrong.apply(x, 1.1), (x,), modes=("rev",))
    check_grads(lambda x: Wrong.apply(x, 1.0), (x,), modes=("rev",))

    def forgets(x: Any) -> Any:  # a derivative that is right once, but not twice
        return gn.sin(x) * x.detach() + gn.cos(x) * (x - x.detach())

    with pytest.raises(AssertionError, match="check_grads: (fwd|rev), of"):
        check_grads(forgets, (x,))

    def kink(x: Any) -> Any:
        return F.relu(x)

    with pytest.raises(AssertionError, match=r"fwd.*output 0\[1\] is .* and finite differences give .* \(1 of 2"):
        check_grads(kink, (gn.asarray(np.array([1.0, 0.0])),), modes=("fwd",), order=1)
    check_grads(kink, (gn.asarray(np.array([1.0, 0.0])),), modes=("fwd",), order=1, atol=10.0)

    def second(x: Any) -> Any:
        return _RightOnce.apply(x)

    check_grads(second, (x,), order=1, modes=("rev",))
    with pytest.raises(AssertionError, match="check_grads: rev of rev, of arguments"):
        check_grads(second, (x,), order=2, modes=("rev",))


class _RightOnce(gn.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * 3 * x.detach() ** 2


def test_arguments() -> None:
    x = gn.asarray(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="expected modes"):
        check_grads(gn.sin, (x,), modes=("forward",))
    with pytest.raises(ValueError, match="an order from 1"):
        check_grads(gn.sin, (x,), order=0)
    with pytest.raises(ValueError, match="none of the arguments"):
        check_grads(gn.sin, (gn.asarray([1, 2]), "x"))
    with pytest.raises(ValueError, match="returns no floating-point"):
        check_grads(gn.isnan, (x,))
