"""Systems of linear equations, and what comes with them: inverses, determinants, pseudo-inverses.

Of 16-bit floating-point matrices everything is computed in float32 and then rounded. A matrix that cannot be inverted
raises `numpy.linalg.LinAlgError`, on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.dtypes import SMOOTH, finfo, result_type
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops.elementwise import conj, imag
from gpunet.ops.linalg import trace
from gpunet.ops.op import describe, op
from gpunet.ops.shape import astype, expand_dims, matrix_transpose, reshape

LinAlgError = np.linalg.LinAlgError


# --- what functions of matrices have in common ------------------------------------------------------------------------


def check_matrices(name: str, x: Any, *, square: bool = False) -> None:
    """Raise, in the name of a function, unless x is a floating-point array of (square) matrices.

    Raises:
        DTypeError: x is no array, or not real or complex floating-point.
        ShapeError: it has fewer than two axes, or its last two differ in length and `square` says they must not.
    """
    if not hasattr(x, "dtype"):
        raise DTypeError(f"{name}: expected a Tensor or array, got {type(x).__name__}")
    if x.dtype.kind not in SMOOTH:
        raise DTypeError(f"{name}: expected floating-point matrices, got {describe((x,))}; convert them first")
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        wanted = "square matrices (..., M, M)" if square else "matrices (..., M, N)"
        raise ShapeError(f"{name}: expected {wanted}, got shape {tuple(x.shape)}")


def widened(x: Any) -> Any:
    """x, in float32 where it has 16 bits: there are no factorizations in less."""
    return astype(x, dtype=np.dtype("float32")) if x.dtype.itemsize == 2 else x


def narrowed(y: Any, dtype: np.dtype) -> Any:
    """The result y, real floating-point parts of it in `dtype` if that has 16 bits."""
    if isinstance(y, tuple):
        return type(y)(*(narrowed(part, dtype) for part in y))
    return astype(y, dtype=dtype) if dtype.itemsize == 2 and y.dtype.kind == "f" else y


def of_matrices(function: Any = None, *, square: bool = False) -> Any:
    """For a function of floating-point matrices: checks them, and lets it compute in float32 at least."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(x: Any, /, *args: Any, **options: Any) -> Any:
            check_matrices(function.__name__, x, square=square)
            return narrowed(function(widened(x), *args, **options), x.dtype)

        return run

    return declare if function is None else declare(function)


def attempt(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What the array library's function gives; its LinAlgError in the words of the op that was called."""
    try:
        with backend_of_type(type(args[0])).reporting():
            return function(*args, **options)
    except LinAlgError as error:
        raise LinAlgError(f"{name}: {error}; it was given {describe(args)}") from error


def conjugate(x: Any) -> Any:
    """The complex conjugate; of real numbers, they themselves."""
    return conj(x) if x.dtype.kind == "c" else x


def adjoint(x: Any) -> Any:
    """The conjugate transpose of each matrix."""
    return conjugate(matrix_transpose(x))


def diagonal_mask(xp: Any, like: Any) -> Any:
    """True on the diagonal of a matrix with as many rows as the array `like` is long."""
    return xp.eye(like.shape[-1], dtype=xp.bool, device=like.device)


# --- equations and inverses -------------------------------------------------------------------------------------------


@op
def _solve(xp, a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if a.shape[:-2] != b.shape[:-2]:  # which CuPy does not broadcast
        a = xp.broadcast_to(a, (*batch, *a.shape[-2:]))
        b = xp.broadcast_to(b, (*batch, *b.shape[-2:]))
    if 0 in b.shape:
        return xp.zeros(b.shape, dtype=result_type(a, b))
    return attempt("solve", xp.linalg.solve, a, b)


@_solve.vjp
def _(xp, g, y, a, _b):
    to_b = _solve(matrix_transpose(a), g)
    return -(to_b @ matrix_transpose(y)), to_b


def solve(x1: Any, x2: Any, /) -> Any:
    """The solution X of x1 X = x2.

    Args:
        x1: invertible matrices (..., M, M), floating-point.
        x2: (M,), one column for every matrix, or (..., M, K), whose leading axes broadcast with those of x1.

    Returns:
        (..., M) or (..., M, K), of the dtype that both promote to.

    Raises:
        ShapeError: these are not the shapes.
        numpy.linalg.LinAlgError: a matrix is singular.
    """
    check_matrices("solve", x1, square=True)
    is_vector = getattr(x2, "ndim", 0) == 1
    columns = expand_dims(x2, axis=-1) if is_vector else x2
    check_matrices("solve", columns)
    if columns.shape[-2] != x1.shape[-1]:
        raise ShapeError(
            f"solve: expected (..., M, M) with (M,) or (..., M, K), got {tuple(x1.shape)} and {tuple(x2.shape)}"
        )
    y = narrowed(_solve(widened(x1), widened(columns)), result_type(x1, x2))
    return reshape(y, shape=y.shape[:-1]) if is_vector else y


def solve_triangular(a: Any, b: Any, trans: int | str = 0, lower: bool = False, unit_diagonal: bool = False) -> Any:
    """The solution of equations with a triangular matrix, under SciPy's name.

    Args:
        a: (..., M, M); what is outside of the triangle is not read.
        b: (M,) or (..., M, K).
        trans: 0 or "N" solves a x = b, 1 or "T" aᵀ x = b, 2 or "C" aᴴ x = b.
        lower: whether the triangle is the lower one.
        unit_diagonal: take the diagonal to be ones, and do not read it.

    Raises:
        ShapeError, numpy.linalg.LinAlgError: as `solve`.
        ValueError: `trans` is none of these.
    """
    check_matrices("solve_triangular", a, square=True)
    if trans not in (0, 1, 2, "N", "T", "C"):
        raise ValueError(f'solve_triangular: expected trans to be 0, 1, 2, "N", "T" or "C", got {trans!r}')
    triangle = _triangle(a, lower=lower, unit_diagonal=unit_diagonal)
    if trans in (1, "T"):
        triangle = matrix_transpose(triangle)
    elif trans in (2, "C"):
        triangle = adjoint(triangle)
    return solve(triangle, b)


@op
def _triangle(xp, a, *, lower, unit_diagonal):
    y = (xp.tril if lower else xp.triu)(a, k=(-1 if lower else 1) if unit_diagonal else 0)
    return y + xp.eye(a.shape[-1], dtype=a.dtype) if unit_diagonal else y


@_triangle.vjp
def _(xp, g, _y, _a, *, lower, unit_diagonal):
    return (xp.tril if lower else xp.triu)(g, k=(-1 if lower else 1) if unit_diagonal else 0)


@op
def _inv(xp, x):
    return attempt("inv", xp.linalg.inv, x)


@_inv.vjp
def _(xp, g, y, _x):
    turned = matrix_transpose(y)
    return -(turned @ g @ turned)


@of_matrices(square=True)
def inv(x: Any, /) -> Any:
    """The inverse of each matrix (..., M, M).

    Raises:
        ShapeError: they are not square.
        numpy.linalg.LinAlgError: one is singular.
    """
    return _inv(x)


# --- determinants -----------------------------------------------------------------------------------------------------


@op
def _det(xp, x):
    return xp.linalg.det(x)


@_det.vjp
def _(xp, g, _y, x):
    return reshape(g, shape=(*g.shape, 1, 1)) * _cofactors(x)


@of_matrices(square=True)
def det(x: Any, /) -> Any:
    """The determinant of each matrix (..., M, M): (...).

    The first and second derivatives are exact for singular matrices too: they come from the singular value
    decomposition, as in Stewart, On the adjugate matrix, Linear Algebra and its Applications 283 (1998). Those of
    third order and higher need the inverse.

    Raises:
        ShapeError: they are not square.
    """
    return _det(x)


@op
def _cofactors(xp, x):
    """The derivative of each determinant with respect to the elements: the adjugate, transposed."""
    d, y = xp.linalg.det(x), _tame_inverse(xp, x)
    if y is not None and bool(xp.all((xp.abs(d) > 1e-30) & (xp.abs(d) < 1e30))):  # no over- or underflow near
        return d[..., None, None] * matrix_transpose(y)
    u, s, vh, phase = _oriented(xp, x)
    others = _products_of_others(xp, s)
    return conjugate((u * (conjugate(phase) * others)[..., None, :]) @ vh)


@_cofactors.vjp
def _(xp, g, _y, x):
    return _cofactors_along(x, g)


@op
def _cofactors_along(xp, x, e):
    """The derivative of `_cofactors` in the direction e: the second one of the determinant, a symmetric form of e and
    of where to."""
    u, s, vh, phase = _oriented(xp, x)
    pairs = _products_of_all_but_two(xp, s)
    e = adjoint(u) @ e @ adjoint(vh)
    diagonal = (pairs @ xp.linalg.diagonal(e)[..., None])[..., 0]
    inner = diagonal[..., None] * xp.eye(x.shape[-1], dtype=x.dtype) - pairs * matrix_transpose(e)
    return phase[..., None] * (conjugate(u) @ inner @ conjugate(vh))


def _tame_inverse(xp: Any, x: Any) -> Any:
    """The inverses, which take a tenth of the time of singular values, if they lose few digits; else None."""
    if 0 in x.shape:
        return None
    try:
        y = xp.linalg.inv(x)
    except LinAlgError:
        return None
    growth = xp.max(xp.sum(xp.abs(x), axis=-1), axis=-1) * xp.max(xp.sum(xp.abs(y), axis=-1), axis=-1)
    return y if bool(xp.all(growth < 1e4)) else None


@_cofactors_along.vjp
def _(xp, g, _y, x, e):
    def to_x() -> Any:
        y = _inv(x)
        ye, yg = y @ e, y @ g
        a, b, both = (reshape(trace(m), shape=(*x.shape[:-2], 1, 1)) for m in (ye, yg, ye @ yg))
        third = (a * b - both) * y - b * (ye @ y) - a * (yg @ y) + ye @ yg @ y + yg @ ye @ y
        return reshape(_det(x), shape=(*x.shape[:-2], 1, 1)) * matrix_transpose(third)

    return to_x, (lambda: _cofactors_along(x, g))


def _oriented(xp: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    """The singular value decomposition, and det(U) det(Vᴴ), of shape (..., 1)."""
    u, s, vh = attempt("det", xp.linalg.svd, x, full_matrices=False)
    return u, s, vh, (xp.linalg.det(u) * xp.linalg.det(vh))[..., None]


def _products_of_others(xp: Any, s: Any) -> Any:
    """For each of the numbers s (..., n) the product of all the others, without a division."""
    return xp.prod(xp.where(diagonal_mask(xp, s), 1.0, s[..., None, :]), axis=-1)


def _products_of_all_but_two(xp: Any, s: Any) -> Any:
    """For each pair of the numbers s (..., n), which fall to zero, the product of the rest; zero on the diagonal."""
    n = s.shape[-1]
    larger = s[..., :, None]
    zero = larger == 0  # and so are all behind it: a product of the rest has no zero only for the last two
    i = xp.arange(n)
    last_two = (i[:, None] == n - 2) & (i[None, :] == n - 1)
    rest = xp.prod(s[..., : max(n - 2, 0)], axis=-1)[..., None, None] * xp.astype(last_two, s.dtype)
    above = xp.where(zero, rest, _products_of_others(xp, s)[..., None, :] / xp.where(zero, 1.0, larger))
    above = xp.triu(above, k=1)
    return above + matrix_transpose(above)


class SlogdetResult(NamedTuple):
    """What `slogdet` returns."""

    sign: Any
    logabsdet: Any


@op
def _slogdet(xp, x):
    return tuple(xp.asarray(y) for y in xp.linalg.slogdet(x))


@_slogdet.vjp
def _(xp, g, y, x):
    shape = (*x.shape[:-2], 1, 1)
    to_sign, to_log = (None if part is None else reshape(part, shape=shape) for part in g)
    factor = to_log
    if to_sign is not None and x.dtype.kind == "c":  # the sign of a real determinant does not change
        # d log(det) = tr(x⁻¹ dx), whose imaginary part turns the sign.
        turn = 1j * imag(to_sign * reshape(y[0], shape=shape))
        factor = turn if factor is None else factor + turn
    return xp.zeros_like(x) if factor is None else factor * matrix_transpose(_inv(x))


@of_matrices(square=True)
def slogdet(x: Any, /) -> SlogdetResult:
    """The sign of each determinant and the logarithm of its absolute value, which does not overflow.

    Args:
        x: (..., M, M).

    Returns:
        sign (...), of a complex matrix a number of absolute value one, and logabsdet (...), real. They are 0 and -inf
        where the determinant is zero, and there is no derivative there.

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: on differentiating at a singular matrix.
    """
    return SlogdetResult(*_slogdet(x))


# --- pseudo-inverses --------------------------------------------------------------------------------------------------


def tolerance(x: Any, rtol: Any) -> Any:
    """The relative size up to which singular values count as zero: max(M, N) eps unless `rtol` is given."""
    return max(x.shape[-2:]) * float(finfo(x.dtype).eps) if rtol is None else rtol


def kept(xp: Any, s: Any, rtol: Any) -> Any:
    """Which of the singular values s (..., K) are larger than `rtol`, a number or (...), times the first one."""
    bound = s[..., :1] * (rtol[..., None] if getattr(rtol, "ndim", 0) else rtol)
    return s > bound


@op
def _pinv(xp, x, rtol):
    if 0 in x.shape:
        return xp.zeros((*x.shape[:-2], x.shape[-1], x.shape[-2]), dtype=x.dtype)
    u, s, vh = attempt("pinv", xp.linalg.svd, x, full_matrices=False)
    keep = kept(xp, s, rtol)
    inverse = xp.where(keep, 1.0 / xp.where(keep, s, 1.0), 0.0)
    y = (adjoint(vh) * inverse[..., None, :]) @ adjoint(u)
    return xp.astype(y, x.dtype)


@_pinv.vjp
def _(xp, g, y, x, _rtol):
    # Golub & Pereyra: dP = -P dA P + P Pᴴ dAᴴ (I - A P) + (I - P A) dAᴴ Pᴴ P.
    turned, column = matrix_transpose(y), matrix_transpose(g)
    left = column @ (y @ adjoint(y))
    right = (adjoint(y) @ y) @ column
    outside = left - x @ (y @ left) + right - (right @ y) @ x
    return conjugate(outside) - turned @ g @ turned, None


def pinv(x: Any, /, *, rtol: Any = None) -> Any:
    """The Moore-Penrose pseudo-inverse of each matrix (..., M, N): (..., N, M).

    Its derivative is that among matrices of the same rank (Golub & Pereyra, SIAM Journal on Numerical Analysis 10,
    1973); where a matrix of lower than full rank may gain rank, it has none.

    Args:
        x: floating-point.
        rtol: singular values up to `rtol` times the largest count as zero: a number, or an array (...);
            max(M, N) * eps of x's dtype if not given.

    Raises:
        ShapeError, DTypeError: x is not that.
    """
    check_matrices("pinv", x)
    return narrowed(_pinv(widened(x), tolerance(x, rtol)), x.dtype)
