"""Embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.nn.layers import check_against_torch, check_layer

INDICES = np.array([[1, 0, 1], [4, 4, 2]])


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_values(dtype: str, device: str) -> None:
    layer = nn.Embedding(5, 3, device=device)
    y = layer(gn.tensor(INDICES, dtype=dtype, device=device))
    np.testing.assert_array_equal(y.detach().cpu().numpy(), layer.weight.detach().cpu().numpy()[INDICES])
    assert layer(gn.tensor(2, device=device)).shape == (3,)
    assert layer(gn.zeros((0, 4), dtype="int64", device=device)).shape == (0, 4, 3)


@pytest.mark.parametrize("padding_idx", [None, 4, -4])
def test_gradients(padding_idx: int | None, device: str) -> None:
    layer = nn.Embedding(5, 3, padding_idx=padding_idx, device=device)
    indices = gn.tensor(INDICES, device=device)
    layer(indices).sum().backward()
    counts = np.bincount(INDICES.reshape(-1), minlength=5).astype("float64")
    if padding_idx is not None:
        counts[padding_idx] = 0
    expected = np.broadcast_to(counts[:, None], (5, 3))
    np.testing.assert_array_equal(layer.weight.grad.cpu().numpy(), expected)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Embedding(5, 3)

        def forward(self) -> Any:
            return self.layer(indices)

    check_layer(Fixed(), device=device)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"padding_idx": -1}])
def test_against_torch(options: Any) -> None:
    check_against_torch("Embedding", INDICES, 5, 3, **options)


def test_the_padding_vector_is_zero() -> None:
    assert nn.Embedding(5, 3, padding_idx=-4).weight.detach()[1].tolist() == [0.0, 0.0, 0.0]
    assert nn.Embedding(5, 3, padding_idx=-4).padding_idx == 1


def test_from_pretrained() -> None:
    table = np.arange(6.0).reshape(3, 2)
    layer = nn.Embedding.from_pretrained(table)
    assert not layer.weight.requires_grad and layer.weight.tolist() == table.tolist()
    table[0] = 9.0
    assert layer.weight[0].tolist() == [0.0, 1.0]
    assert nn.Embedding.from_pretrained(table, freeze=False).weight.requires_grad
    with pytest.raises(gn.errors.ShapeError, match=r"expected a matrix \(num_embeddings, embedding_dim\), got \(6,\)"):
        nn.Embedding.from_pretrained(np.arange(6.0))


@pytest.mark.parametrize("wrong", [5, -1])
def test_an_index_out_of_range(wrong: int) -> None:
    with pytest.raises(
        IndexError, match=rf"^Embedding\(5, 3\): embedding: index {wrong} at \(0, 1\) is out of range: there"
    ):
        nn.Embedding(5, 3)(gn.tensor([[0, wrong]]))


def test_bad_arguments() -> None:
    with pytest.raises(
        gn.errors.DTypeError, match=r"Embedding\(5, 3\): embedding: indices must be integers, got float32"
    ):
        nn.Embedding(5, 3)(gn.zeros(3))
    with pytest.raises(ValueError, match="Embedding: padding_idx must be from -5 to 4, got 5"):
        nn.Embedding(5, 3, padding_idx=5)
    with pytest.raises(ValueError, match="Embedding: embedding_dim must be at least 1, got -3"):
        nn.Embedding(5, -3)
