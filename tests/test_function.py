"""Operations with hand-written derivatives."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import GradientError
from tests.gradcheck import check_gradients


class Cube(gn.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3.0 * x * x


class Exponential(gn.Function):
    """Saves its output."""

    @staticmethod
    def forward(ctx, x, factor):
        y = gn.exp(x * factor)
        ctx.save_for_backward(y)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y * ctx.factor, None


class ReversedGradient(gn.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, g):
        return -g


def test_derivatives(device: str) -> None:
    rng = np.random.default_rng(0)
    check_gradients(Cube.apply, [rng.standard_normal((2, 3))], device=device)
    check_gradients(lambda x: Exponential.apply(x, 0.5), [rng.standard_normal(4)], device=device)


def test_the_derivative_is_what_backward_says() -> None:
    x = gn.tensor([1.0, 2.0], requires_grad=True)
    y = ReversedGradient.apply(x)
    assert y.data is not x.data
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [-1.0, -1.0])


def test_not_recorded_where_no_gradient_is_wanted() -> None:
    assert not Cube.apply(gn.ones(2)).requires_grad
    with gn.no_grad():
        assert not Cube.apply(gn.tensor([1.0], requires_grad=True)).requires_grad


def test_errors() -> None:
    class Bad(gn.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x)
            return x * y

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x

    x, y = gn.tensor([1.0], requires_grad=True), gn.ones(1)
    with pytest.raises(GradientError, match="Bad.backward must return a gradient for each of the 2 arguments"):
        Bad.apply(x, y).backward()
    z = Cube.apply(x)
    with gn.no_grad():
        x += 1.0
    with pytest.raises(GradientError, match="was changed in place after it was saved"):
        z.backward()

    class Numbers(gn.Function):
        @staticmethod
        def forward(ctx, x):
            return 3.0

    with pytest.raises(TypeError, match=r"Numbers.forward must return a Tensor, got float"):
        Numbers.apply(x)


def test_a_function_that_saves_its_result_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        x = gn.tensor([1.0], requires_grad=True)
        y = Exponential.apply(x, 1.0)
        alive = weakref.ref(y)
        y.backward()
        del y
        assert alive() is None
    finally:
        gc.enable()


def test_a_result_that_shares_memory_with_an_argument_is_known_to() -> None:
    class Transpose(gn.Function):
        @staticmethod
        def forward(ctx, x):
            return x.T

        @staticmethod
        def backward(ctx, g):
            return g.T

    x = gn.tensor(np.ones((2, 2)), requires_grad=True)
    z = x * x
    y = Transpose.apply(x)
    with gn.no_grad():
        y += 1.0
    with pytest.raises(GradientError, match="changed in place"):
        z.sum().backward()


def test_a_result_of_integers_is_not_recorded() -> None:
    class Rounded(gn.Function):
        @staticmethod
        def forward(ctx, x):
            return x.astype(gn.int64)

    assert not Rounded.apply(gn.tensor([1.0], requires_grad=True)).requires_grad
