"""Functions of linear algebra whose derivatives are checked, on real and on complex matrices.

Where a decomposition leaves something open (the sign or phase of a vector, the basis of a complement), the functions
are such as do not depend on it, so that finite differences say something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gpunet as gn
from gpunet import linalg
from gpunet.ops.solve import adjoint

rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def spread(*shape: int) -> np.ndarray:
    """Matrices whose singular values are 3, 2, 1 …"""
    u, s, vh = np.linalg.svd(normal(*shape), full_matrices=False)
    return (u * np.arange(s.shape[-1], 0, -1)) @ vh


def hermitian(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *rest: f((x + adjoint(x)) / 2, *rest)


def definite(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: f(x @ adjoint(x) + gn.eye(x.shape[-1], dtype=x.dtype, device=x.device))


def projections(q: Any, other: Any = None) -> Any:
    """Q diag(1, 2, …) Qᴴ, which the phases of the columns do not change."""
    weights = gn.arange(1, q.shape[-1] + 1, dtype=gn.float64, device=q.device)
    return (q * weights) @ adjoint(q if other is None else other)


def of_svd(full: bool) -> Callable[..., Any]:
    def parts(x: Any) -> tuple[Any, ...]:
        u, s, vh = linalg.svd(x, full_matrices=full)
        k = s.shape[-1]
        v = adjoint(vh)
        out = [projections(u[..., :k]), s**2, projections(v[..., :k]), projections(u[..., :k], v[..., :k])]
        for q in (u, v):
            if q.shape[-1] > k:
                out.append(q[..., k:] @ adjoint(q[..., k:]))
        return tuple(out)

    return parts


def of_qr(mode: str) -> Callable[..., Any]:
    def parts(x: Any) -> tuple[Any, ...]:
        q, r = linalg.qr(x, mode=mode)
        k = min(x.shape[-2:])
        rest = q[..., k:]
        return (q[..., :k] ** 2, r) + ((rest @ adjoint(rest),) if rest.shape[-1] else ())

    return parts


def of_eigh(x: Any) -> tuple[Any, Any]:
    values, vectors = linalg.eigh(x)
    return values**2, projections(vectors)


def of_eig(x: Any) -> tuple[Any, ...]:
    values, vectors = linalg.eig(x)
    return values**2, projections(vectors), gn.abs(vectors) ** 2


WIDE, TALL, SQUARE = (2, 3, 5), (2, 5, 3), (2, 3, 3)
CASES: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "solve": (linalg.solve, [normal(2, 1, 3, 3), normal(4, 3, 2)]),
    "solve: vector": (linalg.solve, [normal(*SQUARE), normal(3)]),
    "triangle": (linalg.solve_triangular, [normal(3, 3) + 3 * np.eye(3), normal(3, 2)]),
    "triangle: transposed": (
        lambda a, b: linalg.solve_triangular(a, b, trans="C", lower=True, unit_diagonal=True),
        [normal(3, 3), normal(3)],
    ),
    "inv": (linalg.inv, [normal(*SQUARE)]),
    "det": (linalg.det, [normal(*SQUARE)]),
    "det: of one and two rows": (lambda a, b: linalg.det(a) * linalg.det(b), [normal(1, 1), normal(2, 2)]),
    "slogdet": (lambda x: tuple(linalg.slogdet(x)), [normal(*SQUARE)]),
    "pinv: tall": (linalg.pinv, [normal(*TALL)]),
    "pinv: wide": (linalg.pinv, [normal(*WIDE)]),
    "cholesky": (definite(linalg.cholesky), [normal(*SQUARE)]),
    "cholesky: upper": (definite(lambda x: linalg.cholesky(x, upper=True)), [normal(*SQUARE)]),
    "qr: square": (of_qr("reduced"), [normal(*SQUARE)]),
    "qr: tall": (of_qr("reduced"), [normal(*TALL)]),
    "qr: wide": (of_qr("reduced"), [normal(*WIDE)]),
    "qr: Q": (lambda x: linalg.qr(x).Q, [normal(*WIDE)]),
    "qr: R": (lambda x: linalg.qr(x).R, [normal(*WIDE)]),
    "qr: tall, complete": (of_qr("complete"), [normal(*TALL)]),
    "qr: wide, complete": (of_qr("complete"), [normal(*WIDE)]),
    "svd: square": (of_svd(True), [spread(*SQUARE)]),
    "svd: tall": (of_svd(False), [spread(*TALL)]),
    "svd: wide": (of_svd(False), [spread(*WIDE)]),
    "svd: tall, full": (of_svd(True), [spread(*TALL)]),
    "svd: wide, full": (of_svd(True), [spread(*WIDE)]),
    "svdvals": (linalg.svdvals, [spread(*TALL)]),
    "eigh": (hermitian(of_eigh), [normal(*SQUARE)]),
    "eigvalsh": (hermitian(linalg.eigvalsh), [normal(*SQUARE)]),
    "eig": (of_eig, [normal(*SQUARE)]),
    "eigvals": (linalg.eigvals, [normal(*SQUARE)]),
    "cross": (lambda a, b: linalg.cross(a, b, axis=-2), [normal(2, 3, 1), normal(3, 4)]),
    "trace": (lambda x: linalg.trace(x, offset=1) ** 2, [normal(*WIDE)]),
    "matrix_power: 0": (lambda x: x + linalg.matrix_power(x, 0), [normal(*SQUARE)]),
    "matrix_power: 5": (lambda x: linalg.matrix_power(x, 5), [spread(*SQUARE) / 3]),
    "matrix_power: -2": (lambda x: linalg.matrix_power(x, -2), [spread(*SQUARE)]),
    "multi_dot": (lambda *a: linalg.multi_dot(a), [normal(4), normal(4, 2), normal(2, 5), normal(5, 3)]),
    "lstsq": (lambda a, b: linalg.lstsq(a, b)[:2], [normal(5, 3), normal(5, 2)]),
    "expm": (linalg.expm, [normal(*SQUARE)]),
    "expm: squared": (linalg.expm, [3 * normal(3, 3)]),
    "cond": (linalg.cond, [spread(*TALL)]),
    "cond: fro": (lambda x: linalg.cond(x, "fro"), [spread(*SQUARE)]),
    "norm": (lambda x: linalg.norm(x, axis=(0, -1), keepdims=True, ord=-2), [spread(*TALL).swapaxes(0, 1)]),
}
for _order in ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf):
    CASES[f"matrix_norm: {_order}"] = (lambda x, o=_order: linalg.matrix_norm(x, ord=o), [spread(*WIDE)])
for _order in (0, 1, 2, 3.5, -1, -2, np.inf, -np.inf):
    CASES[f"vector_norm: order {_order}"] = (
        lambda x, o=_order: linalg.vector_norm(x, axis=(0, 2), ord=o) + 0 * x[0, :, 0],
        [normal(*WIDE)],
    )
    CASES[f"vector_norm: of all, order {_order}"] = (
        lambda x, o=_order: linalg.vector_norm(x, ord=o) + 0 * x[0, 0],
        [normal(3, 2)],
    )

# The ops whose derivatives these check; some have no name of their own in gn.linalg.
COVERED = {name.split(":")[0] for name in CASES} | {"cofactors", "cofactors_along", "unit_matrices"}
