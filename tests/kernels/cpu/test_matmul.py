"""What the CPU does of a linear map behind BLAS, against float64: layouts, what is not finite, errors, threads."""

from __future__ import annotations

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.errors import ShapeError
from gpunet.ops.matmul import linear

rng = np.random.default_rng(5)
SHAPES = [
    (1, 1, 1),
    (1, 784, 128),
    (3, 5, 7),
    (8, 8, 8),
    (64, 128, 10),
    (33, 17, 65),
    (0, 4, 3),
    (700, 30, 200),
    (17, 33, 64),
    (64, 784, 128),
    (95, 400, 48),
]


def inputs(rows: int, columns: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    return x, rng.standard_normal((columns, outputs)).astype(np.float32).T, np.linspace(-1, 1, outputs, dtype="float32")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_values(shape: tuple[int, int, int], biased: bool) -> None:
    x, weight, bias = inputs(*shape)
    wanted = x.astype(np.float64) @ weight.T + (bias if biased else 0)
    for w in (weight, np.ascontiguousarray(weight)):
        with gn.kernels("force"):
            y = linear(x, w, bias if biased else None)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=4e-6 * max(5, shape[1] ** 0.5))


def test_layouts_that_the_kernel_does_not_take() -> None:
    x, weight, bias = inputs(6, 5, 4)
    wanted = x @ weight.T + bias
    np.testing.assert_array_equal(linear(x, weight, np.repeat(bias, 2)[::2]), wanted)
    np.testing.assert_allclose(linear(x.reshape(2, 3, 5), weight, bias), wanted.reshape(2, 3, 4), rtol=1e-6)
    np.testing.assert_allclose(linear(x[0], weight, bias), wanted[0], rtol=1e-5)
    assert linear(x, weight, bias.astype(np.float64)).dtype == np.float64


def test_a_batch_of_matrices_is_one_of_rows() -> None:
    x, weight, bias = inputs(24, 5, 4)
    parts = [gn.tensor(a, requires_grad=True) for a in (x.reshape(2, 3, 4, 5), weight, bias)]
    whole = [gn.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    with gn.kernels("force"):
        y, z = linear(*parts), linear(*whole)
    (y * y).sum().backward()
    (z * z).sum().backward()
    assert y.shape == (2, 3, 4, 4)
    for a, b in zip([y, *(t.grad for t in parts)], [z, *(t.grad for t in whole)]):
        np.testing.assert_array_equal(a.detach().numpy().ravel(), b.detach().numpy().ravel())


def test_what_is_not_finite_stays_where_it_is() -> None:
    x, weight, bias = inputs(4, 3, 20)
    bias[[0, 17]] = np.nan, np.inf
    y = linear(x, weight, bias)
    assert np.isnan(y[:, 0]).all() and np.isinf(y[:, 17]).all() and np.isfinite(np.delete(y, [0, 17], axis=1)).all()


@pytest.mark.parametrize("wrong", [(3,), (1, 4), ()], ids=str)
def test_a_bias_that_does_not_fit(wrong: tuple[int, ...]) -> None:
    x, weight, _bias = inputs(6, 5, 4)
    with pytest.raises(ShapeError, match="bias"):
        linear(x, weight, np.zeros(wrong, np.float32))
    with pytest.raises(ShapeError, match="takes an input"):
        linear(x[:, :-1], weight, None)


def test_threads_change_nothing() -> None:
    x, weight, bias = inputs(3000, 2, 150)
    before = threads.pool().size
    try:
        found = []
        for n in (1, 3):
            gn.set_num_threads(n)
            found.append(linear(x, weight, bias))
    finally:
        gn.set_num_threads(before)
    np.testing.assert_array_equal(*found)
