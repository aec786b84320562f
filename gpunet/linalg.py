"""The Array API's linear algebra extension, and what NumPy and SciPy have beside it under their names."""

from gpunet.ops.decompositions import cholesky, eig, eigh, eigvals, eigvalsh, qr, svd, svdvals
from gpunet.ops.linalg import cross, diagonal, outer, trace, vector_norm
from gpunet.ops.matmul import matmul, tensordot, vecdot
from gpunet.ops.matrices import cond, expm, lstsq, matrix_norm, matrix_power, matrix_rank, multi_dot, norm
from gpunet.ops.shape import matrix_transpose
from gpunet.ops.solve import LinAlgError, det, inv, pinv, slogdet, solve, solve_triangular

__all__ = [
    "LinAlgError", "cholesky", "cond", "cross", "det", "diagonal", "eig", "eigh", "eigvals", "eigvalsh", "expm", "inv",
    "lstsq", "matmul", "matrix_norm", "matrix_power", "matrix_rank", "matrix_transpose", "multi_dot", "norm", "outer",
    "pinv", "qr", "slogdet", "solve", "solve_triangular", "svd", "svdvals", "tensordot", "trace", "vecdot",
    "vector_norm",
]  # fmt: skip
