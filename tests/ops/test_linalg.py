"""Linear algebra against NumPy and SciPy in float64, and its derivatives against finite differences."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import linalg
from gpunet.errors import DTypeError, GradientError, ShapeError
from gpunet.ops.solve import adjoint
from tests.gradcheck import check_gradients
from tests.ops.linalg_cases import CASES

rng = np.random.default_rng(11)

DTYPES = ["float16", "float32", "float64", "complex64", "complex128"]
TOLERANCE = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-11, "complex64": 1e-4, "complex128": 1e-11}
REAL_TYPE = {"complex64": "float32", "complex128": "float64"}
COMPLEX_TYPE = {"float16": "complex64", "float32": "complex64", "float64": "complex128"}
SQUARE = [(3, 3), (2, 4, 4), (1, 1), (0, 0), (2, 0, 0), (0, 3, 3)]
RECTANGULAR = [(4, 3), (3, 4), (2, 3, 5), (0, 3), (3, 0), (2, 0, 3), (0, 2, 3)]


def matrices(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else x).astype(dtype)


def definite(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    x = matrices(shape, "complex128" if dtype.startswith("complex") else "float64")
    return (x @ np.conj(x.mT) + np.eye(shape[-1])).astype(dtype)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype("complex128" if x.dtype.kind == "c" else "float64")


def close(found: Any, expected: Any, dtype: str) -> None:
    """Equal shapes, and values within what `dtype` computes to."""
    assert tuple(found.shape) == np.shape(expected)
    size = float(np.max(np.abs(expected), initial=1.0))
    np.testing.assert_allclose(wide(found.cpu().numpy()), expected, rtol=0, atol=TOLERANCE[dtype] * size)


each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_square = pytest.mark.parametrize("shape", SQUARE, ids=str)
each_shape = pytest.mark.parametrize("shape", [*SQUARE, *RECTANGULAR], ids=str)


# --- values -----------------------------------------------------------------------------------------------------------


@each_dtype
@each_square
def test_functions_of_square_matrices(shape: tuple[int, ...], dtype: str, device: str) -> None:
    x = definite(shape, dtype)
    a, exact = gn.asarray(x, device=device), wide(x)
    small = a / 8  # whose powers do not overflow float16
    for found, expected in (
        (linalg.inv(a), np.linalg.inv(exact)),
        (linalg.det(small), np.linalg.det(exact / 8)),
        (linalg.cholesky(a), np.linalg.cholesky(exact)),
        (linalg.cholesky(a, upper=True), np.conj(np.linalg.cholesky(exact).mT)),
        (linalg.matrix_power(small, 3), exact @ exact @ exact / 512),
        (linalg.matrix_power(a, 0), np.broadcast_to(np.eye(shape[-1]), shape)),
        (linalg.matrix_power(a, -1), np.linalg.inv(exact)),
        (linalg.trace(a), np.trace(exact, axis1=-2, axis2=-1)),
    ):  # fmt: skip
        assert found.dtype == dtype and found.device == device
        close(found, expected, dtype)
    sign, logarithm = linalg.slogdet(a)
    assert sign.dtype == dtype and logarithm.dtype == REAL_TYPE.get(dtype, dtype)
    for found, expected in zip((sign, logarithm), np.linalg.slogdet(exact)):
        close(found, expected, dtype)


@each_dtype
@each_square
def test_eigenvalues_and_vectors(shape: tuple[int, ...], dtype: str, device: str) -> None:
    x = definite(shape, dtype)
    a, exact = gn.asarray(x, device=device), wide(x)
    values, vectors = linalg.eigh(a)
    assert values.dtype == linalg.eigvalsh(a).dtype == REAL_TYPE.get(dtype, dtype) and vectors.dtype == dtype
    close(values, np.linalg.eigvalsh(exact), dtype)
    close(linalg.eigvalsh(a), np.linalg.eigvalsh(exact), dtype)
    v = wide(vectors.cpu().numpy())
    np.testing.assert_allclose(exact @ v, v * wide(values.cpu().numpy())[..., None, :], atol=30 * TOLERANCE[dtype])

    general = matrices(shape, dtype)
    values, vectors = linalg.eig(gn.asarray(general, device=device))
    assert values.dtype == vectors.dtype == COMPLEX_TYPE.get(dtype, dtype)
    v, w = wide(vectors.cpu().numpy()), wide(values.cpu().numpy())
    np.testing.assert_allclose(wide(general) @ v, v * w[..., None, :], atol=30 * TOLERANCE[dtype])
    np.testing.assert_allclose(np.linalg.norm(v, axis=-2), np.ones(w.shape), rtol=1e-5)
    only = linalg.eigvals(gn.asarray(general, device=device))
    assert only.dtype == COMPLEX_TYPE.get(dtype, dtype)
    np.testing.assert_allclose(np.sort_complex(only.cpu().numpy()), np.sort_complex(w), atol=1e-3)


@each_dtype
@each_shape
def test_decompositions_of_any_shape(shape: tuple[int, ...], dtype: str, device: str) -> None:
    x = matrices(shape, dtype)
    a, exact = gn.asarray(x, device=device), wide(x)
    m, n = shape[-2:]
    k = min(m, n)
    for full in (True, False):
        result = linalg.svd(a, full_matrices=full)
        u, s, vh = (wide(y.cpu().numpy()) for y in result)
        assert [y.dtype for y in result] == [dtype, REAL_TYPE.get(dtype, dtype), dtype]
        assert u.shape[-2:] == ((m, m) if full else (m, k)) and vh.shape[-2:] == ((n, n) if full else (k, n))
        np.testing.assert_allclose((u[..., :k] * s[..., None, :]) @ vh[..., :k, :], exact, atol=5 * TOLERANCE[dtype])
        orthonormal(u, dtype)
        orthonormal(vh.mT, dtype)
        close(result.S, np.linalg.svd(exact, compute_uv=False), dtype)
    close(linalg.svdvals(a), np.linalg.svd(exact, compute_uv=False), dtype)
    for mode in ("reduced", "complete"):
        q, r = linalg.qr(a, mode=mode)
        assert q.dtype == r.dtype == dtype
        q, r = (wide(y.cpu().numpy()) for y in (q, r))
        assert q.shape[-2:] == ((m, m) if mode == "complete" else (m, k))
        np.testing.assert_allclose(q @ r, exact, atol=5 * TOLERANCE[dtype])
        np.testing.assert_array_equal(r, np.triu(r))
        orthonormal(q, dtype)
    y = linalg.pinv(a)
    assert y.dtype == dtype
    close(y, np.linalg.pinv(exact) if exact.size else np.zeros((*shape[:-2], n, m)), dtype)


def orthonormal(q: np.ndarray, dtype: str) -> None:
    one = np.broadcast_to(np.eye(q.shape[-1]), (*q.shape[:-2], q.shape[-1], q.shape[-1]))
    np.testing.assert_allclose(np.conj(q.mT) @ q, one, atol=TOLERANCE[dtype])


@each_dtype
def test_solutions(dtype: str, device: str) -> None:
    def check(a: np.ndarray, b: np.ndarray) -> None:
        found = linalg.solve(gn.asarray(a, device=device), gn.asarray(b, device=device))
        assert found.dtype == dtype
        close(found, np.linalg.solve(wide(a), wide(b)), dtype)

    a = definite((3, 3), dtype)
    stack = np.stack([a, 2 * a])
    for left, right in (
        (a, matrices((3,), dtype)), (stack, matrices((3,), dtype)), (a, matrices((3, 2), dtype)),
        (stack, matrices((3, 3), dtype)), (a, matrices((4, 3, 2), dtype)), (stack[:, None], matrices((5, 3, 1), dtype)),
        (a, matrices((3, 0), dtype)), (stack[:0], matrices((3, 2), dtype)), (a[:0, :0], matrices((0,), dtype)),
    ):  # fmt: skip
        check(left, right)
    # Two axes are a matrix even where they could be a stack of vectors.
    found = linalg.solve(gn.asarray(stack[:, :2, :2], device=device), gn.asarray(a[:2, :2], device=device))
    assert found.shape == (2, 2, 2)


def test_results_have_the_type_that_arguments_promote_to(device: str) -> None:
    a, b = (gn.asarray(x, device=device) for x in (np.eye(2, dtype="float16"), np.ones(2, "float32")))
    assert (
        linalg.solve(a, b).dtype == gn.float32
        and linalg.solve(b[:, None] * gn.astype(a, gn.float32), a[0]).dtype == gn.float32
    )
    assert linalg.solve(a, gn.astype(b, gn.complex128)).dtype == gn.complex128


@pytest.mark.parametrize("trans", [0, 1, 2, "N", "T", "C"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_triangular_systems(lower: bool, unit: bool, trans: Any, device: str) -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg", reason="SciPy, the reference, is not installed")
    a, b = matrices((4, 4), "complex128") + 4 * np.eye(4), matrices((4, 2), "complex128")
    how = {"trans": trans, "lower": lower, "unit_diagonal": unit}
    found = linalg.solve_triangular(gn.asarray(a, device=device), gn.asarray(b, device=device), **how)
    close(found, scipy_linalg.solve_triangular(a, b, **how), "complex128")


@each_dtype
@pytest.mark.parametrize("order", ["fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf, None])
def test_matrix_norms(order: Any, dtype: str, device: str) -> None:
    for shape in ((2, 3, 4), (4, 2), (1, 1)):
        x = matrices(shape, dtype)
        a = gn.asarray(x, device=device)
        expected = np.linalg.norm(wide(x), order, axis=(-2, -1))
        for found in (linalg.matrix_norm(a, ord=order), linalg.norm(a, ord=order or "fro", axis=(-2, -1))):
            assert found.dtype == REAL_TYPE.get(dtype, dtype)
            close(found, expected, dtype)
        close(linalg.matrix_norm(a, ord=order, keepdims=True), expected[..., None, None], dtype)


@each_dtype
@pytest.mark.parametrize("order", [0, 1, 2, 3, 0.5, -1, -2, -1.5, math.inf, -math.inf])
def test_vector_norms(order: float, dtype: str, device: str) -> None:
    x = matrices((2, 3, 4), dtype)
    x[0, 1, 2] = 0
    a = gn.asarray(x, device=device)
    with np.errstate(divide="ignore"):
        for axis, keepdims in (
            (None, False),
            (0, True),
            ((0, 2), False),
            ((2, 0, 1), True),
            (-1, False),
            ((1,), False),
        ):
            found = linalg.vector_norm(a, axis=axis, keepdims=keepdims, ord=order)
            assert found.dtype == REAL_TYPE.get(dtype, dtype)
            axes = (0, 1, 2) if axis is None else axis if isinstance(axis, tuple) else (axis,)
            axes = tuple(i % 3 for i in axes)
            rest = tuple(i for i in range(3) if i not in axes)
            rows = wide(x).transpose(*rest, *axes).reshape(*(x.shape[i] for i in rest), -1)
            expected = np.linalg.norm(rows, order, axis=-1)
            if keepdims:
                expected = expected.reshape([1 if i in axes else x.shape[i] for i in range(3)])
            close(found, expected, dtype)
        close(linalg.vector_norm(a[0, 0, 0], ord=order), np.linalg.norm(wide(x[0, 0, :1]), order), dtype)


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((2, 3), {}), ((2, 3, 4), {}), ((4,), {"ord": 1}), ((2, 3), {"ord": 1}), ((2, 3), {"axis": 0}),
        ((2, 3, 4), {"axis": (2, 0)}), ((2, 3, 4), {"axis": (0, 1), "ord": "nuc", "keepdims": True}),
        ((2, 3, 4), {"axis": (-1, 0), "ord": 1, "keepdims": True}), ((2, 3, 4), {"axis": 1, "ord": 3}),
    ],
    ids=str,
)  # fmt: skip
def test_norm_is_numpys(shape: tuple[int, ...], how: dict[str, Any], device: str) -> None:
    x = matrices(shape, "float64")
    close(linalg.norm(gn.asarray(x, device=device), **how), np.linalg.norm(x, **how), "float64")


@pytest.mark.parametrize("p", [None, 2, -2, 1, -1, math.inf, -math.inf, "fro", "nuc"])
def test_condition_numbers(p: Any, device: str) -> None:
    x = matrices((2, 3, 3), "complex128")
    close(linalg.cond(gn.asarray(x, device=device), p), np.linalg.cond(x, p), "complex128")


def test_ranks(device: str) -> None:
    x = np.stack([np.diag([1.0, 1e-3, 0.0]), np.ones((3, 3)), np.zeros((3, 3)), np.eye(3)])
    a = gn.asarray(x, device=device)
    assert linalg.matrix_rank(a).cpu().numpy().tolist() == [2, 1, 0, 3]
    assert linalg.matrix_rank(a, rtol=0.01).cpu().numpy().tolist() == [1, 1, 0, 3]
    tolerances = gn.asarray(np.array([1e-2, 1e-2, 1e-2, 2.0]), device=device)
    assert linalg.matrix_rank(a, rtol=tolerances).cpu().numpy().tolist() == [1, 1, 0, 0]
    assert linalg.matrix_rank(a).dtype == gn.int64
    assert linalg.matrix_rank(gn.zeros((2, 0, 3), device=device)).cpu().numpy().tolist() == [0, 0]
    half = gn.asarray(np.array([[1, 0], [0, 1e-3]], "float16"), device=device)
    assert linalg.matrix_rank(half).item() == 1  # up to float16's precision


def test_pseudo_inverses_up_to_a_tolerance(device: str) -> None:
    x = matrices((3, 4, 2), "float64")
    x[..., 1] = x[..., 0] + 1e-6 * x[..., 1]
    a = gn.asarray(x, device=device)
    close(linalg.pinv(a, rtol=1e-3), np.linalg.pinv(x, rtol=1e-3), "float64")
    rtol = np.array([1e-3, 1e-9, 1e-3])
    found = linalg.pinv(a, rtol=gn.asarray(rtol, device=device)).cpu().numpy()
    np.testing.assert_allclose(found, np.linalg.pinv(x, rtol=rtol), rtol=1e-6)
    zero = linalg.pinv(gn.zeros((2, 3), device=device))
    assert zero.shape == (3, 2) and not zero.any()


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("shape", [(5, 3), (3, 3), (3, 5)])
@pytest.mark.parametrize("columns", [(), (2,)])
def test_least_squares(shape: tuple[int, int], rank: int, columns: tuple[int, ...], device: str) -> None:
    a, b = matrices(shape, "float64"), matrices((shape[0], *columns), "float64")
    a = matrices((shape[0], rank), "float64") @ matrices((rank, shape[1]), "float64") if rank < 3 else a
    found = linalg.lstsq(gn.asarray(a, device=device), gn.asarray(b, device=device))
    x, residuals, its_rank, s = np.linalg.lstsq(a, b)
    close(found.x, x, "float64")
    close(found.residuals, residuals, "float64")
    close(found.s, s, "float64")
    assert found.rank.item() == its_rank == rank


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 30.0])
def test_exponentials(scale: float, device: str) -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg", reason="SciPy, the reference, is not installed")
    for dtype in ("float32", "float64", "complex128"):
        x = (matrices((2, 4, 4), dtype) * scale).astype(dtype)
        x -= np.asarray(scale * np.eye(4), dtype)
        found = linalg.expm(gn.asarray(x, device=device))
        assert found.dtype == dtype
        expected = scipy_linalg.expm(wide(x))
        for y, e in zip(found.cpu().numpy(), expected):
            np.testing.assert_allclose(y, e, rtol=0, atol=50 * (1 + scale) * np.finfo(dtype).eps * np.abs(e).max())
    assert linalg.expm(gn.zeros((2, 0, 0), device=device)).shape == (2, 0, 0)


@pytest.mark.parametrize(
    "lengths", [(4, 2, 5), (None, 10, 3, 50, 2), (7, 1, 7, 1, 7), (3, 20, 2, None), (None, 4, None)]
)
def test_chains_of_products(lengths: tuple[Any, ...], device: str) -> None:
    arrays = [
        matrices(tuple(n for n in pair if n is not None), "float64")
        for pair in ((lengths[i], lengths[i + 1]) for i in range(len(lengths) - 1))
    ]
    found = linalg.multi_dot([gn.asarray(a, device=device) for a in arrays])
    close(found, np.linalg.multi_dot(arrays), "float64")


def test_chains_are_multiplied_in_the_cheapest_order(monkeypatch: pytest.MonkeyPatch) -> None:
    work = []

    def counted(a: Any, b: Any) -> Any:
        work.append(a.shape[0] * a.shape[1] * b.shape[1])
        return a @ b

    monkeypatch.setattr("gpunet.ops.matrices.matmul", counted)
    ends = [30, 35, 15, 5, 10, 20, 25]  # the example of Introduction to Algorithms
    linalg.multi_dot([np.ones(pair) for pair in pairwise(ends)])
    assert sum(work) == 15125


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_cross_products(axis: int, device: str) -> None:
    a, b = (np.moveaxis(matrices(shape, "complex128"), -1, axis) for shape in ((4, 1, 3), (1, 5, 3)))
    found = linalg.cross(gn.asarray(a, device=device), gn.asarray(b, device=device), axis=axis)
    close(found, np.cross(a, b, axis=axis), "complex128")
    i, j = gn.asarray([1, 0, 0], device=device), gn.asarray([[0, 1, 0], [0, 0, 1]], device=device)
    assert linalg.cross(i, j).cpu().numpy().tolist() == [[0, 0, 1], [0, -1, 0]]


def test_traces_add_up_in_a_type(device: str) -> None:
    x = gn.asarray(np.full((2, 3, 3), 100, "int8"), device=device)
    assert linalg.trace(x, dtype=gn.float64).dtype == gn.float64
    assert linalg.trace(x, dtype=gn.int32).cpu().numpy().tolist() == [300, 300]
    assert linalg.trace(x, offset=5).cpu().numpy().tolist() == [0, 0]


def test_only_the_lower_triangle_of_hermitian_matrices_is_read(device: str) -> None:
    x = definite((3, 3), "complex128")
    a, b = (gn.asarray(y, device=device) for y in (x, np.tril(x)))
    for f in (linalg.cholesky, linalg.eigvalsh, lambda y: linalg.cholesky(y, upper=True)):
        np.testing.assert_allclose(f(b).cpu().numpy(), f(a).cpu().numpy(), rtol=1e-13)


def test_results_have_names() -> None:
    x = gn.eye(2)
    assert linalg.eigh(x)._fields == linalg.eig(x)._fields == ("eigenvalues", "eigenvectors")
    assert linalg.qr(x)._fields == ("Q", "R") and linalg.svd(x)._fields == ("U", "S", "Vh")
    assert linalg.slogdet(x)._fields == ("sign", "logabsdet")
    assert linalg.lstsq(x, x)._fields == ("x", "residuals", "rank", "s")


def test_signatures_are_the_standards() -> None:
    for name, expected in {
        "cholesky": "(x, /, *, upper=False)", "cross": "(x1, x2, /, *, axis=-1)", "det": "(x, /)",
        "matrix_norm": "(x, /, *, keepdims=False, ord='fro')", "matrix_power": "(x, n, /)",
        "matrix_rank": "(x, /, *, rtol=None)", "outer": "(x1, x2, /)", "pinv": "(x, /, *, rtol=None)",
        "qr": "(x, /, *, mode='reduced')", "solve": "(x1, x2, /)", "svd": "(x, /, *, full_matrices=True)",
        "trace": "(x, /, *, offset=0, dtype=None)",
    }.items():  # fmt: skip
        parameters = inspect.signature(getattr(linalg, name)).parameters.values()
        bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
        assert str(bare) == expected, name


# --- derivatives ------------------------------------------------------------------------------------------------------


def split(y: Any) -> tuple[Any, ...]:
    """Real arrays: the real and imaginary parts of those that are complex."""
    parts: list[Any] = []
    for part in y if isinstance(y, tuple) else (y,):
        parts += [gn.real(part), gn.imag(part)] if part.dtype.kind == "c" else [part]
    return tuple(parts)


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str, device: str) -> None:
    f, inputs = CASES[name]
    check_gradients(lambda *xs: split(f(*xs)), inputs, device=device)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_complex_matrices(name: str, device: str) -> None:
    f, inputs = CASES[name]
    n = len(inputs)

    def parts(*xs: Any) -> tuple[Any, ...]:
        return split(f(*(a + 1j * b for a, b in zip(xs[:n], xs[n:]))))

    check_gradients(parts, [*inputs, *(0.3 * rng.standard_normal(x.shape) for x in inputs)], device=device)


ONE_STACK = [
    name for name, (_f, inputs) in CASES.items() if len(inputs) == 1 and not name.startswith(("norm", "vector"))
]


@pytest.mark.parametrize("name", ONE_STACK)
def test_derivatives_of_a_single_matrix(name: str, device: str) -> None:
    f, (x,) = CASES[name]
    x = x.reshape(-1, *x.shape[-2:])[0]
    check_gradients(lambda a: split(f(a)), [x], order=1, device=device)
    check_gradients(lambda a, b: split(f(a + 1j * b)), [x, 0.3 * rng.standard_normal(x.shape)], order=1, device=device)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(
    "singular_values", [[3.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [1.0, 1e-9, 0.0]]
)
def test_determinants_of_singular_matrices(singular_values: list[float], complex_: bool, device: str) -> None:
    x = matrices((3, 3), "complex128" if complex_ else "float64")
    u, _, vh = np.linalg.svd(x)
    x = (u * singular_values) @ vh
    if complex_:
        check_gradients(lambda a, b: split(linalg.det(a + 1j * b)), [x.real, x.imag], device=device)
    else:
        check_gradients(linalg.det, [x], device=device)


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-7, 0.0])
def test_cofactors(smallest: float, scale: float, device: str) -> None:
    """The gradient of a determinant against minors, where it is well within range and where it is not."""
    u, _, vh = np.linalg.svd(matrices((3, 4, 4), "complex128"))
    x = (u * [3.0, 2.0, 1.0, smallest]) @ vh * scale
    minors = [[np.delete(np.delete(x, i, -2), j, -1) for j in range(4)] for i in range(4)]
    signs = (-1.0) ** np.add.outer(np.arange(4), np.arange(4))
    expected = np.moveaxis(np.array([[np.linalg.det(m) for m in row] for row in minors]), -1, 0) * signs
    found = gradient(lambda y: gn.real(linalg.det(y)), x, device)
    np.testing.assert_allclose(found, np.conj(expected), atol=1e-11 * np.abs(expected).max())


def test_third_derivatives_of_determinants(device: str) -> None:
    x = matrices((2, 4, 4), "float64")
    check_gradients(linalg.det, [x], order=3, device=device)
    with pytest.raises(linalg.LinAlgError, match="inv: Singular matrix"):
        check_gradients(linalg.det, [np.ones((2, 2))], order=3, device=device)


def gradient(f: Callable[..., Any], x: np.ndarray, device: str) -> np.ndarray:
    a = gn.tensor(x, device=device, requires_grad=True)
    gn.sum(f(a)).backward()
    return a.grad.cpu().numpy()


def test_pseudo_inverses_of_one_rank(device: str) -> None:
    """Of matrices a bᵀ, which stay of rank two as a and b change."""
    a, b = matrices((5, 2), "float64"), matrices((4, 2), "float64")
    check_gradients(lambda a, b: linalg.pinv(a @ b.mT, rtol=1e-6), [a, b], device=device)
    check_gradients(lambda a, b: linalg.lstsq(a @ b.mT, a, rcond=1e-6).x, [a, b], device=device)


def test_hermitian_gradients(device: str) -> None:
    """They are those with respect to (x + xᴴ) / 2, whichever triangle is read."""
    x = definite((3, 3), "complex128")
    for f in (linalg.cholesky, linalg.eigvalsh, lambda y: linalg.eigh(y).eigenvalues ** 2):
        found = gradient(lambda y, f=f: gn.real(f(y)), x, device)
        np.testing.assert_allclose(found, np.conj(found.T), rtol=1e-10, atol=1e-10)
        expected = gradient(lambda y, f=f: gn.real(f((y + adjoint(y)) / 2)), x, device)
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_repeated_values(device: str) -> None:
    """The values alone have a (sub)gradient, the vectors none."""
    x = np.eye(3)
    np.testing.assert_allclose(gradient(linalg.svdvals, x, device), x, atol=1e-15)
    np.testing.assert_allclose(gradient(lambda y: linalg.svd(y).S, x, device), x, atol=1e-15)
    np.testing.assert_allclose(gradient(lambda y: linalg.matrix_norm(y, ord="nuc"), x, device), x, atol=1e-15)
    np.testing.assert_allclose(gradient(linalg.eigvalsh, x, device), x, atol=1e-15)
    np.testing.assert_allclose(np.trace(gradient(lambda y: linalg.matrix_norm(y, ord=2), x, device)), 1.0)
    weights = gn.asarray(np.arange(9.0).reshape(3, 3), device=device)
    with np.errstate(divide="ignore", invalid="ignore"):
        for f in (lambda y: linalg.svd(y).U * weights, lambda y: linalg.eigh(y).eigenvectors * weights):
            assert not np.isfinite(gradient(f, x, device)).all()


def test_norms_at_the_origin(device: str) -> None:
    for f in (linalg.matrix_norm, linalg.vector_norm, lambda x: linalg.vector_norm(x, ord=3)):
        for dtype in ("float64", "complex128"):
            assert not gradient(f, np.zeros((2, 2), dtype), device).any()


def test_phases_have_no_gradient(device: str) -> None:
    x = matrices((3, 3), "complex128")
    for name, f in {
        "svd": lambda y: linalg.svd(y).U,
        "eigh": lambda y: linalg.eigh((y + adjoint(y)) / 2).eigenvectors,
        "eig": lambda y: linalg.eig(y).eigenvectors,
    }.items():
        with pytest.raises(GradientError, match=rf"{name}: the loss depends on the phases of the \w+ ?vectors"):
            gradient(lambda y, f=f: gn.imag(f(y)), x, device)


def test_the_choice_of_a_basis_has_no_gradient(device: str) -> None:
    x = matrices((5, 2), "float64")
    weights = gn.asarray(matrices((5, 5), "float64"), device=device)
    for name, f in {"qr": lambda y: linalg.qr(y, mode="complete").Q, "svd": lambda y: linalg.svd(y).U}.items():
        with pytest.raises(GradientError, match=f"{name}: the loss depends on the basis that its last 3 vectors are"):
            gradient(lambda y, f=f: f(y) * weights, x, device)


def test_a_gradient_of_rounding_errors_passes(device: str) -> None:
    """Of |Uᴴ U - I|², which is zero whatever the phases are."""
    x = matrices((4, 4), "complex128")

    def loss(y: Any) -> Any:
        u = linalg.svd(y).U
        return gn.abs(adjoint(u) @ u - gn.eye(4, device=device)) ** 2

    np.testing.assert_allclose(gradient(loss, x, device), 0.0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 3, 3), (0, 2), (2, 0), (0, 3, 2), (3, 0, 2)], ids=str)
def test_derivatives_of_nothing(shape: tuple[int, ...], device: str) -> None:
    functions = [
        lambda x: linalg.pinv(x), lambda x: linalg.svdvals(x), lambda x: linalg.matrix_norm(x),
        *(lambda x, i=i, full=full: linalg.svd(x, full_matrices=full)[i] for i in range(3) for full in (True, False)),
        *(lambda x, i=i, m=m: linalg.qr(x, mode=m)[i] for i in range(2) for m in ("reduced", "complete")),
    ]  # fmt: skip
    if shape[-1] == shape[-2]:
        functions += [
            linalg.det, linalg.inv, linalg.cholesky, linalg.eigvalsh, linalg.eigvals, linalg.expm,
            lambda x: linalg.slogdet(x).logabsdet, lambda x: linalg.eigh(x).eigenvectors,
            lambda x: linalg.eig(x).eigenvectors, lambda x: linalg.solve(x, x), lambda x: linalg.matrix_power(x, 3),
        ]  # fmt: skip
    for dtype in ("float64", "complex128"):
        for f in functions:
            x = gn.tensor(np.zeros(shape, dtype), device=device, requires_grad=True)
            gn.sum(gn.real(f(x))).backward()
            assert x.grad.shape == shape and x.grad.dtype == dtype


def test_half_precision_gradients_are_computed_in_single(device: str) -> None:
    x = np.array([[300.0, 1.0], [1.0, 400.0]], "float16")  # its determinant overflows float16
    a = gn.tensor(x, device=device, requires_grad=True)
    (linalg.inv(a) * 1000.0).sum().backward()
    assert a.grad.dtype == gn.float16
    exact = np.linalg.inv(x.astype("float64"))
    np.testing.assert_allclose(a.grad.cpu().numpy(), -1000.0 * exact.T @ np.ones((2, 2)) @ exact.T, rtol=5e-3)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inv", "det", "slogdet", "cholesky", "eigh", "eigvalsh", "eig", "eigvals", "expm"])
def test_matrices_that_are_not_square(name: str, device: str) -> None:
    f = getattr(linalg, name)
    for shape in ((2, 3), (3,), ()):
        with pytest.raises(ShapeError, match=rf"{name}: expected square matrices \(\.\.\., M, M\), got shape \("):
            f(gn.zeros(shape, device=device))
    with pytest.raises(DTypeError, match=rf"{name}: expected floating-point matrices, got \(2, 2\) int64"):
        f(gn.asarray([[1, 2], [3, 4]], device=device))
    with pytest.raises(DTypeError, match=f"{name}: expected a Tensor or array, got list"):
        f([[1.0]])


@pytest.mark.parametrize("name", ["svd", "svdvals", "qr", "pinv", "matrix_norm", "matrix_rank"])
def test_arrays_that_are_no_matrices(name: str, device: str) -> None:
    with pytest.raises(ShapeError, match=rf"{name}: expected matrices \(\.\.\., M, N\), got shape \(3,\)"):
        getattr(linalg, name)(gn.zeros(3, device=device))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: linalg.inv(x), linalg.LinAlgError, r"inv: Singular matrix; it was given \(2, 2\) float64"),
        (lambda x: linalg.solve(x, x), linalg.LinAlgError, "solve: Singular matrix"),
        (lambda x: linalg.cholesky(x - 1), linalg.LinAlgError, "cholesky: Matrix is not positive definite"),
        (lambda x: linalg.eigvals(x * math.nan), linalg.LinAlgError, "eigvals: Array must not contain infs or NaNs"),
        (lambda x: linalg.svdvals(x * math.nan), linalg.LinAlgError, "svdvals: SVD did not converge"),
        (lambda x: linalg.matrix_power(x, -1), linalg.LinAlgError, "inv: Singular matrix"),
        (lambda x: linalg.matrix_power(x, 1.5), TypeError, "matrix_power: expected an integer power, got 1.5"),
        (lambda x: linalg.solve(x, x[:1]), ShapeError, r"solve: expected .*, got \(2, 2\) and \(1, 2\)"),
        (lambda x: linalg.solve(x, x[0, 0]), ShapeError, r"solve: expected matrices \(\.\.\., M, N\), got shape \(\)"),
        (lambda x: linalg.qr(x, mode="raw"), ValueError, 'qr: expected mode to be "reduced" or "complete"'),
        (lambda x: linalg.matrix_norm(x, ord=3), ValueError, "matrix_norm: expected ord to be"),
        (lambda x: linalg.matrix_norm(x[:0], ord=-2), ShapeError, "matrix_norm: there is no smallest of no values"),
        (lambda x: linalg.norm(x[None], ord=2), ShapeError, "norm: with ord=2 expected a vector or a matrix"),
        (lambda x: linalg.norm(x[None], ord=2, axis=(0, 1, 2)), ShapeError, "norm: expected one axis or two"),
        (lambda x: linalg.cond(x[:1], "fro"), ShapeError, "cond: expected square matrices"),
        (lambda x: linalg.cond(x[:0]), ShapeError, "cond: expected matrices with elements"),
        (lambda x: linalg.cross(x, x), ShapeError, "cross: expected a negative axis of length 3, got axis -1"),
        (lambda x: linalg.cross(x[0], x[0], axis=0), ShapeError, "cross: expected a negative axis"),
        (lambda x: linalg.multi_dot([x]), ShapeError, "multi_dot: expected two matrices or more"),
        (lambda x: linalg.multi_dot([x, x[0], x]), ShapeError, "multi_dot: expected two matrices or more"),
        (lambda x: linalg.lstsq(x, x[:1]), ShapeError, "lstsq: expected"),
        (lambda x: linalg.solve_triangular(x, x, trans=3), ValueError, "solve_triangular: expected trans"),
    ],
)  # fmt: skip
def test_mistakes(call: Callable[..., Any], error: type[Exception], message: str, device: str) -> None:
    with pytest.raises(error, match=message):
        call(gn.asarray(np.ones((2, 2)), device=device))


def test_singular_matrices(device: str) -> None:
    x = gn.tensor(np.ones((2, 2)), device=device, requires_grad=True)
    sign, logarithm = linalg.slogdet(x)
    assert sign.item() == 0.0 and logarithm.item() == -math.inf
    with pytest.raises(linalg.LinAlgError, match="inv: Singular matrix"):
        logarithm.backward()


def test_empty_norms(device: str) -> None:
    for order in ("fro", "nuc", 1, 2, math.inf):
        assert linalg.matrix_norm(gn.zeros((0, 0), device=device), ord=order).item() == 0.0
