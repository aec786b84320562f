"""The values of the array functions, against NumPy and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import linalg, special
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops import elementwise, index, matmul, norm, softmax

rng = np.random.default_rng(0)
X = rng.uniform(-2, 2, (3, 4))
Y = rng.uniform(0.5, 2, (4,))
P = rng.uniform(0.1, 0.9, (3, 4))
I = rng.integers(-5, 5, (3, 4))  # noqa: E741
J = rng.integers(1, 5, (4,))

UNARY = [
    (
        X,
        "abs negative positive sign square floor ceil trunc round exp expm1 sin cos tan sinh cosh tanh atan asinh",
    ),
    (X, "isnan isinf isfinite signbit logical_not reciprocal real imag conj"),
    (P, "sqrt log log1p log2 log10 asin acos atanh"),
    (P + 1, "acosh"),
    (I, "bitwise_invert abs negative sign"),
]
BINARY = [
    (
        X,
        Y,
        "add subtract multiply divide floor_divide remainder maximum minimum hypot atan2 logaddexp copysign nextafter",
    ),
    (X, Y, "equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor"),
    (
        I,
        J,
        "add multiply floor_divide remainder bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift",
    ),
    (P, X[0], "pow"),
]


def check(got: Any, expected: Any, rtol: float = 1e-14) -> None:
    got = got.cpu().numpy()
    assert got.dtype == np.asarray(expected).dtype
    if got.dtype == np.float32:
        rtol = max(rtol, 1e-6)  # sums are added up in another order
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize(("x", "name"), [(x, name) for x, names in UNARY for name in names.split()], ids=str)
def test_unary(x: np.ndarray, name: str, device: str) -> None:
    check(getattr(gn, name)(gn.asarray(x, device=device)), getattr(np, name)(x))


@pytest.mark.parametrize(
    ("a", "b", "name"), [(a, b, name) for a, b, names in BINARY for name in names.split()], ids=str
)
def test_binary(a: np.ndarray, b: np.ndarray, name: str, device: str) -> None:
    check(getattr(gn, name)(gn.asarray(a, device=device), gn.asarray(b, device=device)), getattr(np, name)(a, b))


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "where": (lambda x: gn.where(x > 0, x, 0.5), lambda: np.where(X > 0, X, 0.5)),
    "clip": (lambda x: gn.clip(x, -0.5, 0.5), lambda: X.clip(-0.5, 0.5)),
    "sum": (lambda x: gn.sum(x, axis=(0, 1)), lambda: X.sum()),
    "sum dtype": (lambda x: gn.sum(x, dtype=gn.float32), lambda: X.sum(dtype=np.float32)),
    "count_nonzero": (lambda x: gn.count_nonzero(x > 0, axis=0), lambda: np.count_nonzero(X > 0, axis=0)),
    "cumulative_sum": (lambda x: gn.cumulative_sum(x, axis=-1), lambda: X.cumsum(axis=-1)),
    "cumulative_prod": (
        lambda x: gn.cumulative_prod(x, axis=0, include_initial=True),
        lambda: np.concatenate([np.ones((1, 4)), X.cumprod(axis=0)]),
    ),
    "concat": (lambda x: gn.concat([x, x[:1]], axis=0), lambda: np.concatenate([X, X[:1]])),
    "stack": (lambda x: gn.stack([x, x], axis=1), lambda: np.stack([X, X], axis=1)),
    "unstack": (lambda x: gn.unstack(x, axis=1)[2], lambda: X[:, 2]),
    "split": (lambda x: gn.split(x, 2, axis=1)[1], lambda: X[:, 2:]),
    "split at": (lambda x: gn.split(x, [1], axis=0)[1], lambda: X[1:]),
    "flip": (lambda x: gn.flip(x, axis=0), lambda: X[::-1]),
    "roll": (lambda x: gn.roll(x, 2), lambda: np.roll(X, 2)),
    "tile": (lambda x: gn.tile(x, (2, 1)), lambda: np.tile(X, (2, 1))),
    "repeat": (lambda x: gn.repeat(x, [1, 0, 2], axis=0), lambda: np.repeat(X, [1, 0, 2], axis=0)),
    "pad": (lambda x: gn.pad(x, 1, constant_values=2.0), lambda: np.pad(X, 1, constant_values=2.0)),
    "pad reflect": (
        lambda x: gn.pad(x, ((1, 1), (0, 2)), mode="reflect"),
        lambda: np.pad(X, ((1, 1), (0, 2)), mode="reflect"),
    ),
    "tril": (lambda x: gn.tril(x, k=1), lambda: np.tril(X, k=1)),
    "triu": (lambda x: gn.triu(x), lambda: np.triu(X)),
    "expand_dims": (lambda x: gn.expand_dims(x, axis=(0, -1)), lambda: X[None, ..., None]),
    "moveaxis": (lambda x: gn.moveaxis(x, 0, 1), lambda: X.T),
    "broadcast_to": (lambda x: gn.broadcast_to(x, (2, 3, 4)), lambda: np.broadcast_to(X, (2, 3, 4))),
    "take": (lambda x: gn.take(x, gn.asarray([2, 0], device=x.device), axis=1), lambda: X[:, [2, 0]]),
    "take_along_axis": (
        lambda x: gn.take_along_axis(x, gn.argsort(x, axis=1), axis=1),
        lambda: np.sort(X, axis=1),
    ),
    "argsort": (lambda x: gn.argsort(gn.round(x), axis=1), lambda: np.argsort(X.round(), axis=1, kind="stable")),
    "argsort down": (
        lambda x: gn.argsort(gn.round(x), axis=1, descending=True),
        lambda: np.argsort(-X.round(), axis=1, kind="stable"),
    ),
    "sort": (lambda x: gn.sort(x, axis=0, descending=True), lambda: -np.sort(-X, axis=0)),
    "searchsorted": (lambda x: gn.searchsorted(gn.sort(x[0]), x[1]), lambda: np.searchsorted(np.sort(X[0]), X[1])),
    "nonzero": (lambda x: gn.nonzero(x > 0)[1], lambda: np.nonzero(X > 0)[1]),
    "unique_values": (lambda x: gn.unique_values(gn.round(x)), lambda: np.unique(X.round())),
    "unique_counts": (lambda x: gn.unique_counts(gn.round(x))[1], lambda: np.unique(X.round(), return_counts=True)[1]),
    "isin": (lambda x: gn.isin(gn.round(x), gn.round(x[0])), lambda: np.isin(X.round(), X[0].round())),
    "matmul": (lambda x: gn.matmul(x, x.T), lambda: X @ X.T),
    "tensordot": (lambda x: gn.tensordot(x, x, axes=2), lambda: np.tensordot(X, X, axes=2)),
    "vecdot": (lambda x: gn.vecdot(x, x[0]), lambda: X @ X[0]),
    "einsum": (lambda x: gn.einsum("ij, kj -> ki", x, x), lambda: X @ X.T),
    "einsum implicit": (lambda x: gn.einsum("ij,jk", x, x.T), lambda: X @ X.T),
    "outer": (lambda x: linalg.outer(x[0], x[1]), lambda: np.outer(X[0], X[1])),
    "diagonal": (lambda x: linalg.diagonal(x, offset=1), lambda: np.diagonal(X, 1)),
    "trace": (lambda x: linalg.trace(x, offset=-1), lambda: np.trace(X, -1)),
    "norm": (lambda x: linalg.vector_norm(x, axis=0, keepdims=True), lambda: np.linalg.norm(X, axis=0, keepdims=True)),
    "norm 1": (lambda x: linalg.vector_norm(x, ord=1), lambda: np.abs(X).sum()),
    "norm 3": (lambda x: linalg.vector_norm(x, axis=1, ord=3), lambda: np.linalg.norm(X, 3, axis=1)),
    "norm inf": (lambda x: linalg.vector_norm(x, ord=math.inf), lambda: np.abs(X).max()),
    "norm 0": (lambda x: linalg.vector_norm(x, axis=1, ord=0), lambda: np.full(3, 4.0)),
    "relu": (lambda x: elementwise.relu(x), lambda: np.maximum(X, 0)),
    "leaky_relu": (lambda x: elementwise.leaky_relu(x, negative_slope=0.1), lambda: np.where(X > 0, X, 0.1 * X)),
    "elu": (lambda x: elementwise.elu(x, alpha=0.5), lambda: np.where(X > 0, X, 0.5 * np.expm1(X))),
    "sigmoid": (lambda x: elementwise.sigmoid(x), lambda: 1 / (1 + np.exp(-X))),
    "softplus": (lambda x: elementwise.softplus(x, beta=2), lambda: np.log1p(np.exp(2 * X)) / 2),
    "silu": (lambda x: elementwise.silu(x), lambda: X / (1 + np.exp(-X))),
    "erf": (lambda x: special.erf(x), lambda: np.vectorize(math.erf)(X)),
    "gelu": (lambda x: elementwise.gelu(x), lambda: X * 0.5 * (1 + np.vectorize(math.erf)(X / 2**0.5))),
    "softmax": (lambda x: softmax.softmax(x, axis=0), lambda: np.exp(X) / np.exp(X).sum(0)),
    "log_softmax": (lambda x: softmax.log_softmax(x), lambda: X - np.log(np.exp(X).sum(1, keepdims=True))),
    "logsumexp": (lambda x: special.logsumexp(x, axis=1), lambda: np.log(np.exp(X).sum(1))),
    "one_hot": (
        lambda x: index.one_hot(gn.argmax(x, axis=1), num_classes=4),
        lambda: np.eye(4, dtype=int)[X.argmax(1)],
    ),
    "bincount": (
        lambda x: gn.bincount(gn.argmax(x, axis=0), minlength=5),
        lambda: np.bincount(X.argmax(0), minlength=5),
    ),
    "normalize": (
        lambda x: norm.normalize(x, axes=(1,), eps=0.0),
        lambda: (X - X.mean(1, keepdims=True)) / X.std(1, keepdims=True),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, device: str) -> None:
    ours, theirs = FUNCTIONS[name]
    check(ours(gn.asarray(X, device=device)), theirs(), rtol=1e-13)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 3e-7), (np.float64, 2e-15), (np.float16, 2e-3)])
def test_erf_is_accurate(dtype: Any, bound: float) -> None:
    x = np.concatenate([np.linspace(-7, 7, 2001), [1e-4, -1e-7, 0.0]]).astype(dtype)
    expected = np.array([math.erf(v) for v in x.astype(float)])
    got = special.erf(gn.asarray(x))
    assert got.dtype == dtype
    assert (np.abs(got.numpy() - expected) <= bound * np.abs(expected) + np.finfo(dtype).smallest_subnormal).all()


def test_extreme_inputs_stay_finite() -> None:
    x = gn.asarray(np.array([-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30], np.float32))
    for f in (
        elementwise.sigmoid,
        elementwise.softplus,
        elementwise.silu,
        elementwise.gelu,
        elementwise.elu,
        special.erf,
    ):
        with np.errstate(over="raise", invalid="raise", divide="raise", under="ignore"):
            y = f(x[1:-1] if f is elementwise.gelu else x).numpy()
        assert np.isfinite(y).all()
    assert np.isfinite(softmax.log_softmax(x).numpy()[-1])
    with np.errstate(divide="ignore"):  # log(0), as in NumPy
        assert special.logsumexp(gn.full(3, -math.inf)).item() == -math.inf


def test_nan_is_kept() -> None:
    x = gn.asarray([math.nan, 1.0])
    for f in (elementwise.relu, elementwise.sigmoid, elementwise.gelu, gn.max, gn.min, gn.sum):
        assert np.isnan(f(x).numpy().ravel()[0])


def test_float16_sums_in_float32() -> None:
    x = gn.full(4096, 0.25, dtype=gn.float16)
    assert gn.sum(x).item() == 1024.0 and gn.sum(x).dtype == gn.float16


def test_errors() -> None:
    x = gn.ones((2, 3))
    for call, kind, text in [
        (lambda: gn.stack([x, x[:1]]), ShapeError, r"stack: the arrays must have one shape, got \(1, 3\), \(2, 3\)"),
        (lambda: gn.concat([]), ValueError, "concat: expected at least one array"),
        (lambda: gn.concat([x, gn.ones((2, 4))]), ShapeError, "concat: .*dimension"),
        (lambda: gn.squeeze(x, axis=0), ShapeError, r"squeeze: axis 0 of shape \(2, 3\) is not of length one"),
        (lambda: gn.split(x, 2, axis=1), ShapeError, "does not divide into 2 equal sections"),
        (lambda: gn.take(x, gn.asarray([0])), ShapeError, "take: needs an axis"),
        (
            lambda: gn.take(x, gn.asarray([0.5]), axis=0),
            DTypeError,
            "indices must be an array of integers, got float32",
        ),
        (lambda: gn.cumulative_sum(x, axis=5), ShapeError, "there is no axis 5 in an array of 2 axes"),
        (lambda: gn.tensordot(x, x, axes=((7,), (0,))), ShapeError, "tensordot: there is no axis 7"),
        (lambda: gn.tensordot(x, x, axes=5), ShapeError, "tensordot: there is no axis -5"),
        (lambda: linalg.outer(x, x), ShapeError, r"outer: expected two vectors, got shapes \(2, 3\)"),
        (lambda: x @ [[1.0], [2.0], [3.0]], DTypeError, "matmul: expected Tensors or arrays, got an array, list"),
        (lambda: gn.stack([1, 2]), DTypeError, "stack: expected Tensors or arrays, got int, int"),
        (lambda: gn.grad(x, [3]), DTypeError, "grad: expected a Tensor as input 0, got int"),
        (lambda: gn.split(x, 0), ShapeError, "does not divide into 0 equal sections"),
        (lambda: gn.split(x, 1, axis=4), ShapeError, "split: there is no axis 4 in an array of 2 axes"),
        (lambda: gn.unstack(x, axis=-3), ShapeError, "unstack: there is no axis -3 in an array of 2 axes"),
        (lambda: x.swapaxes(0, 4), ShapeError, "swapaxes: no axes 0 and 4 in an array of shape"),
        (
            lambda: norm.layer_norm(gn.arange(3), (3,), None, None, eps=0.0),
            DTypeError,
            "floating-point input, got int64",
        ),
        (
            lambda: matmul.linear(x, gn.ones((4, 3)), x),
            ShapeError,
            r"linear: expected a bias of shape \(4,\), got \(2, 3\)",
        ),
        (lambda: gn.take(x, [0], axis=0), DTypeError, "take: indices must be an array of integers, got list"),
        (lambda: gn.take_along_axis(x, [0], axis=0), DTypeError, "take_along_axis: indices .* got list"),
        (lambda: gn.take(x, gn.asarray([7]), axis=0), IndexError, "take: .*out of bounds"),
        (lambda: gn.cumulative_sum(x), ShapeError, "needs an axis unless"),
        (lambda: gn.tensordot(x, x, axes=1), ShapeError, "tensordot: axes 1 of shapes"),
        (lambda: gn.pad(x, ((1, 1), (1, 1), (1, 1))), ShapeError, "pair for each of 2 axes"),
        (lambda: norm.layer_norm(x, (4,), None, None, eps=0.0), ShapeError, r"shape \(..., 4\), got \(2, 3\)"),
        (lambda: gn.isdtype(x.dtype, "real"), ValueError, "unknown kind 'real'"),
    ]:
        with pytest.raises(kind, match=text):
            call()


def test_dtype_functions() -> None:
    x = gn.ones(2, dtype=gn.float16)
    assert gn.result_type(x, gn.float32) == gn.float32 and gn.can_cast(x, gn.float64) and not gn.can_cast(x, gn.int8)
    assert (
        gn.isdtype(x.dtype, "real floating")
        and gn.isdtype(gn.int8, ("bool", "integral"))
        and gn.isdtype(gn.int8, gn.int8)
    )
    assert gn.finfo(x).bits == 16 and gn.iinfo(gn.int8).max == 127


def test_types_of_results() -> None:
    n = gn.arange(4)
    assert n.var().dtype == n.std().dtype == gn.where(n > 1, n, 0.5).dtype == gn.clip(n, 0.5).dtype == gn.float32
    big = gn.asarray(np.array([2**24 + 1]))
    assert (big / gn.ones(1, dtype=gn.float64)).item() == 2**24 + 1  # not by way of float32
    assert (n / gn.ones(4, dtype=gn.float16)).dtype == gn.float16


def test_float16_squares_do_not_overflow() -> None:
    x = gn.asarray(np.array([300.0, 400.0], np.float16))
    assert linalg.vector_norm(x).item() == 500.0 and x.var().item() == 2500.0 and x.std().dtype == gn.float16


def test_axes_may_be_numpys_integers() -> None:
    x = gn.tensor(np.eye(2), requires_grad=True)
    one = np.int64(1)
    (
        x.sum(axis=one) + gn.special.logsumexp(x, axis=one) + gn.squeeze(gn.expand_dims(x, axis=one), axis=one)
    ).sum().backward()
    assert x.grad.shape == (2, 2)


def test_variance_without_degrees_of_freedom_has_no_derivative() -> None:
    x = gn.tensor([1.0], requires_grad=True)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x.var(correction=1).backward()
    assert math.isnan(x.grad.item())
