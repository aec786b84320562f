"""The Array API's linear algebra extension, as far as it goes today."""

from gpunet.ops.linalg import diagonal, outer, trace, vector_norm
from gpunet.ops.matmul import matmul, tensordot, vecdot
from gpunet.ops.shape import matrix_transpose

__all__ = ["diagonal", "matmul", "matrix_transpose", "outer", "tensordot", "trace", "vecdot", "vector_norm"]
