"""Norms, ranks, powers and exponentials of matrices, chains of products, and least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpunet.errors import ShapeError
from gpunet.ops.decompositions import svdvals
from gpunet.ops.elementwise import abs
from gpunet.ops.linalg import vector_norm
from gpunet.ops.matmul import matmul
from gpunet.ops.op import op
from gpunet.ops.reduce import max, min, sum
from gpunet.ops.shape import expand_dims, matrix_transpose, moveaxis, reshape
from gpunet.ops.solve import (
    _pinv,
    attempt,
    check_matrices,
    inv,
    kept,
    narrowed,
    of_matrices,
    tolerance,
    widened,
)

# --- norms ------------------------------------------------------------------------------------------------------------


@of_matrices
def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    """A norm of each matrix (..., M, N): (...), real, with `keepdims` (..., 1, 1).

    Args:
        x: floating-point.
        keepdims: keep the last two axes, with length one.
        ord: "fro" or None, Frobenius: of all elements as one vector; "nuc", nuclear: the sum of the singular values;
            2 and -2: the largest and the smallest singular value; 1 and -1: the largest and the smallest sum of
            absolute values in a column; inf and -inf: likewise, in a row.

    Where the norm has a kink (equal singular values or sums, zeros), its derivative is a subgradient.

    Raises:
        ShapeError: x has fewer than two axes, or no elements to find the extreme of.
        ValueError: `ord` is none of these.
    """
    if ord in ("fro", None):
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord not in ("nuc", 1, -1, 2, -2, math.inf, -math.inf):
        raise ValueError(f'matrix_norm: expected ord to be "fro", "nuc", 1, -1, 2, -2, inf or -inf, got {ord!r}')
    parts = svdvals(x) if ord in ("nuc", 2, -2) else sum(abs(x), axis=-2 if ord in (1, -1) else -1)
    if ord == "nuc" or (ord > 0 and not parts.shape[-1]):  # the norm of no elements is zero
        y = sum(parts, axis=-1)
    elif parts.shape[-1]:
        y = (max if ord > 0 else min)(parts, axis=-1)
    else:
        raise ShapeError(f"matrix_norm: there is no smallest of no values, in an array of shape {tuple(x.shape)}")
    return reshape(y, shape=(*y.shape, 1, 1)) if keepdims else y


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """The norm of vectors or matrices, under NumPy's name and by its rules.

    Args:
        x: floating-point.
        ord: as `vector_norm` and `matrix_norm` have it; without it, the 2-norm of all elements along the axes.
        axis: an int for vectors, two ints for matrices. Without it, all elements are one vector, or, with an `ord`,
            x is one vector or one matrix.
        keepdims: keep the axes, with length one.

    Raises:
        ShapeError: with an `ord` and no axes x is neither a vector nor a matrix, or there are more than two axes.
    """
    if ord is None:
        return vector_norm(x, axis=axis, keepdims=keepdims)
    if axis is None:
        if x.ndim not in (1, 2):
            raise ShapeError(f"norm: with ord={ord!r} expected a vector or a matrix, got shape {tuple(x.shape)}")
        axis = tuple(range(x.ndim))
    axes = (axis,) if hasattr(axis, "__index__") else tuple(axis)
    if len(axes) == 1:
        return vector_norm(x, axis=axes[0], keepdims=keepdims, ord=ord)
    if len(axes) != 2:
        raise ShapeError(f"norm: expected one axis or two, got {axis!r}")
    y = matrix_norm(moveaxis(x, source=axes, destination=(-2, -1)), ord=ord)
    if not keepdims:
        return y
    return reshape(y, shape=tuple(1 if i - x.ndim in axes or i in axes else n for i, n in enumerate(x.shape)))


def cond(x: Any, p: Any = None) -> Any:
    """The condition number of each matrix, under NumPy's name: how much larger a relative error may become.

    Args:
        x: (..., M, N), floating-point; square, unless `p` is None, 2 or -2.
        p: the norm, as `matrix_norm` has it; None is 2: the largest singular value over the smallest.

    Raises:
        ShapeError: the matrices are not square, or have no elements.
        numpy.linalg.LinAlgError: with another norm than 2, a matrix is singular.
    """
    check_matrices("cond", x, square=p not in (None, 2, -2))
    if 0 in x.shape[-2:]:
        raise ShapeError(f"cond: expected matrices with elements, got shape {tuple(x.shape)}")
    if p in (None, 2, -2):
        s = svdvals(x)
        return s[..., -1] / s[..., 0] if p == -2 else s[..., 0] / s[..., -1]
    return matrix_norm(x, ord=p) * matrix_norm(inv(x), ord=p)


@op
def _matrix_rank(xp, x, rtol):
    s = attempt("matrix_rank", xp.linalg.svdvals, x)
    return xp.asarray(xp.sum(xp.astype(kept(xp, s, rtol), xp.int64), axis=-1))


def matrix_rank(x: Any, /, *, rtol: Any = None) -> Any:
    """How many singular values of each matrix (..., M, N) are not zero: (...), int64.

    Args:
        x: floating-point.
        rtol: singular values up to `rtol` times the largest count as zero: a number, or an array (...);
            max(M, N) * eps of x's dtype if not given.

    Raises:
        ShapeError, DTypeError: x is not that.
        numpy.linalg.LinAlgError: there are infinities or NaNs.
    """
    check_matrices("matrix_rank", x)
    return _matrix_rank(widened(x), tolerance(x, rtol))


# --- products ---------------------------------------------------------------------------------------------------------


@op
def _unit_matrices(xp, x):
    return xp.broadcast_to(xp.eye(x.shape[-1], dtype=x.dtype), x.shape).copy()


@_unit_matrices.vjp
def _(xp, g, _y, _x):
    return xp.zeros_like(g)


@of_matrices(square=True)
def matrix_power(x: Any, n: int, /) -> Any:
    """Each square matrix (..., M, M) multiplied with itself: xⁿ; for n < 0 the inverse, multiplied with itself.

    Raises:
        ShapeError: the matrices are not square.
        TypeError: n is no integer.
        numpy.linalg.LinAlgError: n is negative, and a matrix is singular.
    """
    if not hasattr(n, "__index__"):
        raise TypeError(f"matrix_power: expected an integer power, got {n!r}")
    n = int(n)
    base = inv(x) if n < 0 else x
    n = -n if n < 0 else n
    if not n:
        return _unit_matrices(x)
    y: Any = None
    while True:  # the bits of n, from the lowest
        if n & 1:
            y = base if y is None else matmul(y, base)
        n >>= 1
        if not n:
            return +x if y is x else y
        base = matmul(base, base)


def multi_dot(arrays: Sequence[Any]) -> Any:
    """The product of several matrices, multiplied in the order that takes the fewest operations; NumPy's name.

    Args:
        arrays: two or more matrices; the first and the last may be vectors, a row and a column.

    Raises:
        ShapeError: there are fewer than two, or their shapes do not fit.
    """
    arrays = list(arrays)
    count = len(arrays)
    wanted = [(1, 2) if i in (0, count - 1) else (2,) for i in range(count)]
    shapes = [tuple(a.shape) for a in arrays]
    if count < 2 or any(len(shape) not in allowed for shape, allowed in zip(shapes, wanted)):
        raise ShapeError(f"multi_dot: expected two matrices or more, vectors only at the ends, got shapes {shapes}")
    rows = [1 if len(shapes[0]) == 1 else shapes[0][0]] + [shape[0] for shape in shapes[1:]]
    ends = [*rows, 1 if len(shapes[-1]) == 1 else shapes[-1][1]]
    return _product(arrays, _cheapest_cuts(ends), 0, count - 1)


def _cheapest_cuts(ends: list[int]) -> dict[tuple[int, int], int]:
    """Where to cut each part i ... j of a chain of matrices, the i-th of which is ends[i] x ends[i + 1].

    Cormen et al., Introduction to Algorithms: chapter 15.2.
    """
    count = len(ends) - 1
    cost = {(i, i): 0 for i in range(count)}
    cuts = {}
    for length in range(1, count):
        for i in range(count - length):
            j = i + length
            options = [(cost[i, k] + cost[k + 1, j] + ends[i] * ends[k + 1] * ends[j + 1], k) for k in range(i, j)]
            cost[i, j], cuts[i, j] = sorted(options)[0]
    return cuts


def _product(arrays: list[Any], cuts: dict[tuple[int, int], int], i: int, j: int) -> Any:
    if i == j:
        return arrays[i]
    k = cuts[i, j]
    return matmul(_product(arrays, cuts, i, k), _product(arrays, cuts, k + 1, j))


# --- least squares ----------------------------------------------------------------------------------------------------


class LstsqResult(NamedTuple):
    """What `lstsq` returns."""

    x: Any
    residuals: Any
    rank: Any
    s: Any


def lstsq(a: Any, b: Any, rcond: Any = None) -> LstsqResult:
    """The x for which |a x - b|² is smallest, and of several such the smallest one; under NumPy's name.

    The derivative is that of the pseudo-inverse; see `pinv`.

    Args:
        a: (M, N), floating-point.
        b: (M,) or (M, K).
        rcond: singular values up to `rcond` times the largest count as zero; max(M, N) * eps if not given.

    Returns:
        x (N,) or (N, K); residuals, the smallest |a x - b|² (1,) or (K,), empty if M <= N or a's rank is less than N;
        a's rank, and its singular values.

    Raises:
        ShapeError: a is no matrix, or b does not have M rows.
    """
    check_matrices("lstsq", a)
    if a.ndim != 2 or getattr(b, "ndim", 0) not in (1, 2) or b.shape[0] != a.shape[0]:
        raise ShapeError(
            f"lstsq: expected (M, N) with (M,) or (M, K), got {tuple(a.shape)} and {tuple(getattr(b, 'shape', ()))}"
        )
    columns = expand_dims(b, axis=-1) if b.ndim == 1 else b
    m, n = a.shape
    wide = widened(a)
    x = narrowed(_pinv(wide, tolerance(a, rcond)) @ widened(columns), a.dtype)
    rank = matrix_rank(a, rtol=rcond)
    off = a @ x - columns
    squares = sum(abs(off) ** 2, axis=0)
    if m <= n or int(rank) < n:
        squares = squares[:0]
    return LstsqResult(x[:, 0] if b.ndim == 1 else x, squares, rank, svdvals(a))


# --- exponentials -----------------------------------------------------------------------------------------------------

_DEGREE = 13
# b_j of the Padé approximant p(x) / p(-x) of exp(x), p(x) being the sum of b_j x^j.
_PADE = [
    math.factorial(2 * _DEGREE - j) / (math.factorial(_DEGREE - j) * math.factorial(j)) for j in range(_DEGREE + 1)
]
_LARGEST = 5.37  # 1-norm up to which the approximant is exact to float64's precision


@op
def _expm(xp, x):
    if not x.size:
        return xp.zeros_like(x)
    size = float(xp.max(xp.sum(xp.abs(x), axis=-2)))
    squarings = math.ceil(math.log2(size / _LARGEST)) if _LARGEST < size < math.inf else 0
    x = x * 0.5**squarings
    one = xp.eye(x.shape[-1], dtype=x.dtype)
    x2 = x @ x
    x4 = x2 @ x2
    x6 = x2 @ x4
    b = _PADE
    odd = x @ (x6 @ (b[13] * x6 + b[11] * x4 + b[9] * x2) + b[7] * x6 + b[5] * x4 + b[3] * x2 + b[1] * one)
    even = x6 @ (b[12] * x6 + b[10] * x4 + b[8] * x2) + b[6] * x6 + b[4] * x4 + b[2] * x2 + b[0] * one
    y = attempt("expm", xp.linalg.solve, even - odd, even + odd)
    for _ in range(squarings):
        y = y @ y
    return y


@_expm.vjp
def _(xp, g, _y, x):
    # The derivative in a direction e is the upper right part of the exponential of [[x, e], [0, x]]; here transposed.
    n = x.shape[-1]
    turned = matrix_transpose(x)
    zeros = xp.zeros_like(turned)
    rows = [xp.concat([turned, g], axis=-1), xp.concat([zeros, turned], axis=-1)]
    return _expm(xp.concat(rows, axis=-2))[..., :n, n:]


@of_matrices(square=True)
def expm(x: Any) -> Any:
    """The exponential of each matrix (..., M, M), under SciPy's name.

    By scaling and squaring: Higham, The scaling and squaring method for the matrix exponential revisited, SIAM Journal
    on Matrix Analysis and Applications 26 (2005). The matrices of a batch are scaled alike, by what the largest needs.
    The derivative is the exponential of matrices twice as large: Mathias, A chain rule for matrix functions and
    applications, SIAM Journal on Matrix Analysis and Applications 17 (1996).

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: there are infinities or NaNs, in some cases; in others the result is NaN.
    """
    return _expm(x)
