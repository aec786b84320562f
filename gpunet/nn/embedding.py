"""A table of vectors."""

from __future__ import annotations

from typing import Any

from gpunet.autograd import no_grad
from gpunet.creation import asarray, empty
from gpunet.errors import ShapeError
from gpunet.nn import functional as F
from gpunet.nn import init
from gpunet.nn.arguments import check_array, integer
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter
from gpunet.tensor import Tensor


class Embedding(Module):
    """For each index, the vector that the table has for it.

    Shapes: integers of any shape S -> (*S, embedding_dim).

    Args:
        num_embeddings: how many vectors; indices run from 0 to num_embeddings - 1.
        embedding_dim: their length.
        padding_idx: the vector of this index is zero at first and never learns; a negative one counts from the end.
        device, dtype: of the table.

    Attributes:
        weight: (num_embeddings, embedding_dim), at first normal with mean 0 and standard deviation 1.

    Raises:
        ValueError: an argument out of range. When called, IndexError: an index out of range; DTypeError: indices that
            are no integers.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.num_embeddings = integer("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = integer("Embedding", "embedding_dim", embedding_dim)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"Embedding: padding_idx must be from {-num_embeddings} to {num_embeddings - 1}, got {padding_idx}"
            )
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.weight = Parameter(empty((num_embeddings, embedding_dim), dtype=dtype, device=device))
        self.reset_parameters()

    @classmethod
    def from_pretrained(cls, embeddings: Any, freeze: bool = True, padding_idx: int | None = None) -> Embedding:
        """A layer with the vectors `embeddings` (num_embeddings, embedding_dim), which do not learn if `freeze`."""
        table = asarray(embeddings)
        if table.ndim != 2:
            raise ShapeError(
                f"Embedding.from_pretrained: expected a matrix (num_embeddings, embedding_dim), got {table.shape}"
            )
        layer = cls(table.shape[0], table.shape[1], padding_idx=padding_idx, device=table.device, dtype=table.dtype)
        layer.weight = Parameter(table.copy(), requires_grad=not freeze)
        return layer

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0.0

    def forward(self, indices: Tensor) -> Tensor:
        check_array(indices)
        return F.embedding(indices, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
