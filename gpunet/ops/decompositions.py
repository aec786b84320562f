"""Matrix decompositions: Cholesky, QR, singular values, eigenvalues.

The derivatives are written for the gradient G = conj(g) with dL = Re(tr(Gᴴ dX)), as the literature has it, and
conjugated on their way in and out. E is the matrix of 1 / (v_j - v_i), zero on its diagonal, for whatever values v the
vectors belong to: of repeated ones the vectors have no derivative, and the gradient is infinite or NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpunet.dtypes import finfo
from gpunet.errors import GradientError
from gpunet.ops.elementwise import imag, real
from gpunet.ops.linalg import _embed_diagonal, diagonal
from gpunet.ops.op import op, raw
from gpunet.ops.shape import expand_dims, matrix_transpose, tril, triu
from gpunet.ops.solve import _solve, adjoint, attempt, conjugate, diagonal_mask, of_matrices


class QRResult(NamedTuple):
    """What `qr` returns."""

    Q: Any
    R: Any


class SVDResult(NamedTuple):
    """What `svd` returns."""

    U: Any
    S: Any
    Vh: Any


class EighResult(NamedTuple):
    """What `eigh` returns."""

    eigenvalues: Any
    eigenvectors: Any


class EigResult(NamedTuple):
    """What `eig` returns."""

    eigenvalues: Any
    eigenvectors: Any


# --- parts of derivatives ---------------------------------------------------------------------------------------------


def _embedded(d: Any) -> Any:
    """Square matrices with d (..., N) on their diagonals."""
    return _embed_diagonal(d, offset=0, shape=(*d.shape, d.shape[-1]))


def _over(a: Any, r: Any) -> Any:
    """a r⁻ᴴ."""
    return adjoint(_solve(r, adjoint(a)))


def _real_diagonal(x: Any) -> Any:
    """The diagonal of each matrix, without its imaginary part."""
    d = diagonal(x)
    return real(d) if d.dtype.kind == "c" else d


def _off_diagonal_inverse(xp: Any, gaps: Any) -> Any:
    """1 / gaps, with zeros on the diagonal."""
    mask = diagonal_mask(xp, gaps)
    return xp.where(mask, 0.0, 1.0 / xp.where(mask, 1.0, gaps))


def _gaps(v: Any) -> Any:
    """v_j - v_i at (i, j)."""
    return expand_dims(v, axis=-2) - expand_dims(v, axis=-1)


def _check_free(name: str, what: str, unwanted: Any, g: Any) -> None:
    """Refuse a gradient that depends on a choice which a decomposition leaves open.

    Args:
        name: the function.
        what: the choice.
        unwanted: how the loss changes with the choice; nothing but rounding errors if it does not depend on it.
        g: the gradient of the vectors.
    """
    unwanted, g = abs(raw(unwanted)), abs(raw(g))
    if not unwanted.size:
        return
    change, scale = float(unwanted.max()), float(g.max())
    if change > 1e-2 * scale + float(finfo(g.dtype).eps) ** 0.5:  # a gradient of rounding errors says nothing
        raise GradientError(
            f"{name}: the loss depends on {what}, which the decomposition leaves open, so it has no gradient; use "
            f"functions that do not, such as products of vectors with their conjugates (it would change at a rate of "
            f"{change:.3g})"
        )


def _leading(name: str, q: Any, g: Any, k: int) -> tuple[Any, Any]:
    """The first k columns of q, and their gradient, into which goes that of the rest.

    The rest are some basis of what is orthogonal to the first: dQ₂ = -Q₁ dQ₁ᴴ Q₂, up to the choice of the basis.
    """
    if q.shape[-1] == k:
        return q, g
    first, rest = q[..., :k], q[..., k:]
    if g is None:
        return first, None
    to_rest = g[..., k:]
    turn = adjoint(rest) @ to_rest
    _check_free(name, f"the basis that its last {rest.shape[-1]} vectors are", turn - adjoint(turn), to_rest)
    return first, g[..., :k] - rest @ (adjoint(to_rest) @ first)


# --- Cholesky ---------------------------------------------------------------------------------------------------------


@op
def _cholesky(xp, x):
    return attempt("cholesky", xp.linalg.cholesky, x)


@_cholesky.vjp
def _(xp, g, y, _x):
    # Murray: Φ keeps the lower triangle and halves its diagonal, and dX = dXᴴ.
    inner = tril(adjoint(y) @ conjugate(g))
    inner = inner - _embedded(diagonal(inner) * 0.5)
    right = adjoint(_solve(adjoint(y), adjoint(inner)))  # inner L⁻¹
    out = _solve(adjoint(y), right)
    return conjugate(out + adjoint(out)) * 0.5


@of_matrices(square=True)
def cholesky(x: Any, /, *, upper: bool = False) -> Any:
    """The Cholesky factor of each Hermitian, positive definite matrix (..., M, M): x = L Lᴴ = Uᴴ U.

    Only the lower triangle of x is read, and the gradient is that with respect to (x + xᴴ) / 2, a Hermitian matrix
    (Murray, Differentiation of the Cholesky decomposition, arXiv:1602.07527).

    Args:
        x: floating-point.
        upper: return U, not L.

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: one is not positive definite.
    """
    y = _cholesky(x)
    return adjoint(y) if upper else y


# --- QR ---------------------------------------------------------------------------------------------------------------


@op
def _qr(xp, x, *, mode):
    return tuple(attempt("qr", xp.linalg.qr, x, mode=mode))


@_qr.vjp
def _(xp, g, y, x, *, mode):
    q, r = y
    to_q, to_r = (None if part is None else conjugate(part) for part in g)
    m, n = x.shape[-2:]
    k = min(m, n)
    q, to_q = _leading("qr", q, to_q, k)
    r, to_r = r[..., :k, :], None if to_r is None else to_r[..., :k, :]
    to_rest = None
    if m < n:  # x = [A B] = Q [R S]: S = Qᴴ B
        rest = x[..., k:]
        if to_r is not None:
            to_rest, to_s, to_r = q @ to_r[..., k:], to_r[..., k:], to_r[..., :k]
            to_q = rest @ adjoint(to_s) if to_q is None else to_q + rest @ adjoint(to_s)
        r = r[..., :k]
    # Walter & Lehmann: dR = T R and dQ = dA R⁻¹ - Q T, T being the upper triangle of C + Cᴴ with C's real diagonal,
    # and C = Qᴴ dA R⁻¹.
    inner = 0.0 if to_r is None else to_r @ adjoint(r)
    if to_q is not None:
        inner = inner - adjoint(q) @ to_q
    above = triu(inner, k=1)
    out = q @ (above + adjoint(above) + _embedded(_real_diagonal(inner)))
    out = _over(out if to_q is None else out + to_q, r)
    if m < n:
        out = xp.concat([out, xp.zeros_like(rest) if to_rest is None else to_rest], axis=-1)
    return conjugate(out)


@of_matrices
def qr(x: Any, /, *, mode: str = "reduced") -> QRResult:
    """x = Q R, where Q has orthonormal columns and R is upper triangular with a real diagonal.

    The derivative is that of matrices whose first K = min(M, N) columns are linearly independent (Walter & Lehmann,
    Algorithmic differentiation of linear algebra functions with application in optimum experimental design, 2010);
    of others it is infinite or NaN, or raises LinAlgError. With mode="complete" and M > N, the last M - N columns of Q
    are some basis, and a loss that depends on which one it is has no gradient.

    Args:
        x: (..., M, N), floating-point.
        mode: "reduced" or "complete".

    Returns:
        Q (..., M, K) and R (..., K, N); if complete, (..., M, M) and (..., M, N).

    Raises:
        ShapeError: x has fewer than two axes.
        ValueError: `mode` is neither.
        GradientError: on differentiating a loss that depends on the choice of a basis.
    """
    if mode not in ("reduced", "complete"):
        raise ValueError(f'qr: expected mode to be "reduced" or "complete", got {mode!r}')
    return QRResult(*_qr(x, mode=mode))


# --- singular values --------------------------------------------------------------------------------------------------


@op
def _svd(xp, x, *, full_matrices):
    return tuple(attempt("svd", xp.linalg.svd, x, full_matrices=full_matrices))


@_svd.vjp
def _(xp, g, y, _x, *, full_matrices):
    u, s, vh = y
    to_u, to_s, to_vh = g
    k = s.shape[-1]
    u, to_u = _leading("svd", u, None if to_u is None else conjugate(to_u), k)
    v, to_v = _leading("svd", adjoint(vh), None if to_vh is None else matrix_transpose(to_vh), k)
    vh = adjoint(v)
    row = expand_dims(s, axis=-2)
    column = expand_dims(s, axis=-1)
    inner = None if to_s is None else _embedded(to_s)
    turns = []  # of each side's vectors, what the loss gains as they turn in the plane of two of them
    for q, to_q in ((u, to_u), (v, to_v)):
        turn = None if to_q is None else adjoint(q) @ to_q
        turns.append(None if turn is None else turn - adjoint(turn))
    if any(turn is not None for turn in turns):
        e = _off_diagonal_inverse(xp, _gaps(s) * (row + column))
        left, right = turns
        parts = [] if left is None else [(e * left) * row]
        parts += [] if right is None else [column * (e * right)]
        if _x.dtype.kind == "c":  # one phase for each pair of vectors is free; the other is determined
            zero = xp.zeros_like(s)
            phases = [zero if turn is None else imag(diagonal(turn)) * 0.5 for turn in turns]
            _check_free("svd", "the phases of the singular vectors", phases[0] + phases[1], _larger(to_u, to_v))
            parts.append(_embedded(1j * (phases[0] - phases[1]) / (2.0 * s)))
        for part in parts:
            inner = part if inner is None else inner + part
    out = u @ inner @ vh
    if to_u is not None and u.shape[-2] > k:
        out = out + ((to_u - u @ (adjoint(u) @ to_u)) / row) @ vh
    if to_v is not None and v.shape[-2] > k:
        out = out + (u / row) @ adjoint(to_v - v @ (vh @ to_v))
    return conjugate(out)


def _larger(a: Any, b: Any) -> Any:
    """Of two gradients, either of which may be missing, the one with the larger elements."""
    if a is None or b is None:
        return b if a is None else a
    return a if float(abs(raw(a)).max()) > float(abs(raw(b)).max()) else b


@of_matrices
def svd(x: Any, /, *, full_matrices: bool = True) -> SVDResult:
    """The singular value decomposition x = U diag(S) Vᴴ.

    The derivative is that of Wan & Zhang (Automatic differentiation for complex valued SVD, arXiv:1909.02659). Vectors
    of repeated singular values have none (infinite or NaN); nor have those of the value zero, except with square real
    matrices. The derivative of S alone is always finite; at a value of zero, where it has a kink, it is a subgradient.

    Args:
        x: (..., M, N), floating-point; K = min(M, N).
        full_matrices: return all of U and Vᴴ, not just K vectors of each.

    Returns:
        U (..., M, M) or (..., M, K), S (..., K) in descending order, real, and Vh (..., N, N) or (..., K, N).

    Raises:
        ShapeError: x has fewer than two axes.
        numpy.linalg.LinAlgError: it does not converge, as where there are NaNs.
        GradientError: on differentiating a loss that depends on what the decomposition leaves open: the phases of
            complex vectors, or the choice of a basis by full_matrices.
    """
    return SVDResult(*_svd(x, full_matrices=full_matrices))


@op
def _svdvals(xp, x):
    return attempt("svdvals", xp.linalg.svdvals, x)


@_svdvals.vjp
def _(xp, g, _y, x):
    u, _s, vh = _svd(x, full_matrices=False)
    return conjugate((u * expand_dims(g, axis=-2)) @ vh)


@of_matrices
def svdvals(x: Any, /) -> Any:
    """The singular values of each matrix (..., M, N): (..., min(M, N)), real, in descending order.

    At a value of zero, where it has a kink, the derivative is a subgradient.

    Raises:
        ShapeError: x has fewer than two axes.
        numpy.linalg.LinAlgError: it does not converge, as where there are NaNs.
    """
    return _svdvals(x)


# --- eigenvalues ------------------------------------------------------------------------------------------------------


@op
def _eigh(xp, x):
    return tuple(attempt("eigh", xp.linalg.eigh, x))


@_eigh.vjp
def _(xp, g, y, _x):
    values, q = y
    to_values, to_q = g
    if to_q is None:
        return conjugate((q * expand_dims(to_values, axis=-2)) @ adjoint(q))
    to_q = conjugate(to_q)
    turn = adjoint(q) @ to_q
    turn = turn - adjoint(turn)
    if q.dtype.kind == "c":
        _check_free("eigh", "the phases of the eigenvectors", imag(diagonal(turn)), to_q)
    inner = _off_diagonal_inverse(xp, _gaps(values)) * turn * 0.5
    if to_values is not None:
        inner = inner + _embedded(to_values)
    return conjugate(q @ inner @ adjoint(q))


@of_matrices(square=True)
def eigh(x: Any, /) -> EighResult:
    """The eigenvalues and eigenvectors of each Hermitian matrix (..., M, M): x = Q diag(Λ) Qᴴ.

    Only the lower triangle of x is read, and the gradient is that with respect to (x + xᴴ) / 2, a Hermitian matrix.
    Vectors of repeated eigenvalues have no derivative: it is infinite or NaN.

    Returns:
        eigenvalues (..., M), real, in ascending order, and eigenvectors (..., M, M), the columns.

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: it does not converge.
        GradientError: on differentiating a loss that depends on the phases of complex eigenvectors.
    """
    return EighResult(*_eigh(x))


@op
def _eigvalsh(xp, x):
    return attempt("eigvalsh", xp.linalg.eigvalsh, x)


@_eigvalsh.vjp
def _(xp, g, _y, x):
    _values, q = _eigh(x)
    return conjugate((q * expand_dims(g, axis=-2)) @ adjoint(q))


@of_matrices(square=True)
def eigvalsh(x: Any, /) -> Any:
    """The eigenvalues of each Hermitian matrix (..., M, M): (..., M), real, in ascending order.

    Only the lower triangle of x is read, and the gradient is that with respect to (x + xᴴ) / 2.

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: it does not converge.
    """
    return _eigvalsh(x)


def _complex(dtype: np.dtype) -> np.dtype:
    """The complex type of the precision of `dtype`."""
    return np.result_type(dtype, np.complex64)


@op
def _eig(xp, x):
    return tuple(xp.astype(y, _complex(x.dtype)) for y in attempt("eig", xp.linalg.eig, x))


@_eig.vjp
def _(xp, g, y, _x):
    # dX V + X dV = dV Λ + V dΛ with dV = V W: W is E ∘ (V⁻¹ dX V) off its diagonal, which keeps the columns' lengths.
    values, v = y
    to_values, to_v = g
    inner = None if to_values is None else _embedded(conjugate(to_values))
    if to_v is not None:
        to_v = conjugate(to_v)
        turn = adjoint(v) @ to_v
        along = diagonal(turn)
        _check_free("eig", "the phases of the eigenvectors", imag(along), to_v)
        turn = turn - (adjoint(v) @ v) * expand_dims(real(along), axis=-2)
        part = turn * conjugate(_off_diagonal_inverse(xp, _gaps(values)))
        inner = part if inner is None else inner + part
    return conjugate(_solve(adjoint(v), inner @ adjoint(v)))


@of_matrices(square=True)
def eig(x: Any, /) -> EigResult:
    """The eigenvalues and eigenvectors of each matrix (..., M, M): x V = V diag(Λ). Complex, also of real matrices.

    The derivative is that of Boeddeker et al. (On the computation of complex-valued gradients with application to
    statistically optimum beamforming, arXiv:1701.00392), with columns of length one. Where eigenvalues are repeated,
    the vectors have none: it is infinite or NaN, or raises LinAlgError where there are too few of them.

    Returns:
        eigenvalues (..., M) and eigenvectors (..., M, M), the columns, each of length one, in no particular order.

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: it does not converge, or there are infinities or NaNs.
        GradientError: on differentiating a loss that depends on the phases of the eigenvectors.
    """
    return EigResult(*_eig(x))


@op
def _eigvals(xp, x):
    return xp.astype(attempt("eigvals", xp.linalg.eigvals, x), _complex(x.dtype))


@_eigvals.vjp
def _(xp, g, _y, x):
    _values, v = _eig(x)
    return conjugate(_solve(adjoint(v), expand_dims(conjugate(g), axis=-1) * adjoint(v)))


@of_matrices(square=True)
def eigvals(x: Any, /) -> Any:
    """The eigenvalues of each matrix (..., M, M): (..., M), complex, in no particular order.

    Raises:
        ShapeError: the matrices are not square.
        numpy.linalg.LinAlgError: it does not converge, or there are infinities or NaNs.
    """
    return _eigvals(x)
