"""Attention of several heads."""

from __future__ import annotations

from typing import Any

import gpunet as gn
from gpunet import random
from gpunet.creation import empty
from gpunet.errors import DTypeError, ShapeError
from gpunet.nn import functional as F
from gpunet.nn import init
from gpunet.nn.arguments import check_array, check_dtype, integer, probability
from gpunet.nn.errors import size_error
from gpunet.nn.linear import Linear
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter
from gpunet.ops.attention import attention, attention_weights
from gpunet.ops.matmul import linear
from gpunet.tensor import Tensor


class MultiheadAttention(Module):
    """Attention of several heads (Vaswani et al., 2017): query, key and value are projected, each head attends with
    its share of the features, and what all heads found is projected once more.

    Called as attention(query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
    average_attn_weights=True, is_causal=False):

        query: (L, N, embed_dim), with batch_first (N, L, embed_dim), or (L, embed_dim) without a batch.
        key, value: likewise (S, N, kdim) and (S, N, vdim).
        key_padding_mask: (N, S), or (S,) without a batch: bool, true for keys that are left out; or floating-point,
            which is added to the scores.
        need_weights: whether to return the weights; without, no matrix of them is ever in memory.
        attn_mask: (L, S) or (N * num_heads, L, S), likewise: true for keys that are left out of a query.
        average_attn_weights: whether the weights are averaged over the heads.
        is_causal: query i sees keys 0 to i only; a given attn_mask is taken to say just that, and is not looked at.

    It returns the output, of the shape of the query, and the weights (N, L, S), with average_attn_weights=False
    (N, num_heads, L, S), without N where there is no batch; or None. A query whose keys are all left out finds zeros.

    Args:
        embed_dim: features of the query and of the output.
        num_heads: embed_dim must be a multiple of it.
        dropout: in training, the probability that a weight is dropped.
        bias: whether the projections have one.
        add_bias_kv: whether a learned key and value are appended to the others.
        add_zero_attn: whether a key and value of zeros are appended.
        kdim, vdim: features of key and value; default embed_dim.
        batch_first: whether N comes before L in query, key, value and output.
        device, dtype: of the parameters.

    Attributes:
        in_proj_weight: (3 * embed_dim, embed_dim), the rows for query, key and value in turn; or None, if kdim or vdim
            differ from embed_dim. Then there are q_proj_weight, k_proj_weight and v_proj_weight, (embed_dim, features),
            which else are None. At first as `init.xavier_uniform_` makes them.
        in_proj_bias: (3 * embed_dim,), at first 0; or None.
        bias_k, bias_v: (1, 1, embed_dim), at first as `init.xavier_normal_` makes them; or None.
        out_proj: a Linear.

    Raises:
        ValueError, TypeError: an argument that is out of range. When called, ShapeError or DTypeError: an input or
            mask that does not fit.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        where = "MultiheadAttention"
        self.embed_dim = integer(where, "embed_dim", embed_dim)
        self.num_heads = integer(where, "num_heads", num_heads)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"{where}: embed_dim must be a multiple of num_heads={num_heads}, got {embed_dim}")
        self.head_dim = self.embed_dim // self.num_heads
        self.kdim = self.embed_dim if kdim is None else integer(where, "kdim", kdim)
        self.vdim = self.embed_dim if vdim is None else integer(where, "vdim", vdim)
        self.dropout = probability(where, dropout)
        self.batch_first = bool(batch_first)
        self.add_zero_attn = bool(add_zero_attn)
        how: dict[str, Any] = {"device": device, "dtype": dtype}

        def weight(rows: int, columns: int) -> Parameter:
            return Parameter(empty((columns, rows), **how).T)  # in memory as that of a Linear

        together = self.kdim == self.vdim == self.embed_dim
        self.q_proj_weight = None if together else weight(self.embed_dim, self.embed_dim)
        self.k_proj_weight = None if together else weight(self.embed_dim, self.kdim)
        self.v_proj_weight = None if together else weight(self.embed_dim, self.vdim)
        self.in_proj_weight = weight(3 * self.embed_dim, self.embed_dim) if together else None
        self.in_proj_bias = Parameter(empty((3 * self.embed_dim,), **how)) if bias else None
        self.bias_k = Parameter(empty((1, 1, self.embed_dim), **how)) if add_bias_kv else None
        self.bias_v = Parameter(empty((1, 1, self.embed_dim), **how)) if add_bias_kv else None
        self.out_proj = Linear(self.embed_dim, self.embed_dim, bias, **how)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.out_proj.reset_parameters()
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for row in (self.bias_k, self.bias_v):
            if row is not None:
                init.xavier_normal_(row)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = self._check(query, key, value)
        if not batched:  # as a batch of one
            same_key, same_value = key is query, value is key
            axis = 0 if self.batch_first else 1
            query = gn.expand_dims(query, axis=axis)
            key = query if same_key else gn.expand_dims(key, axis=axis)
            value = key if same_value else gn.expand_dims(value, axis=axis)
            if key_padding_mask is not None and check_array(key_padding_mask) == (key.shape[1 - axis],):
                key_padding_mask = gn.expand_dims(key_padding_mask, axis=0)
        q, k, v = self._projected(query, key, value)
        n, _heads, length, _features = q.shape
        causal = bool(is_causal)
        attn_mask = None if causal else self._attention_mask(attn_mask, n, length, k.shape[-2])
        k, v, added = self._with_more(k, v)
        if added and (causal or attn_mask is not None):  # the keys that were added are for all queries
            attn_mask = _causal(length, k.shape[-2] - added, q) if causal else attn_mask
            attn_mask, causal = _padded(attn_mask, added), False
        padding = self._padding_mask(key_padding_mask, n, k.shape[-2] - added)
        mask = _merged(attn_mask, padding if padding is None or not added else _padded(padding, added), q)

        dropout = self.dropout if self.training else 0.0
        scale = self.head_dim**-0.5
        weights = None
        if not need_weights:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale)
        elif dropout == 1.0:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale)
            weights = gn.zeros((*q.shape[:-1], k.shape[-2]), dtype=q.dtype, device=q.device)
        else:
            how: dict[str, Any] = {"scale": scale, "causal": causal}
            if dropout:
                shape = (*q.shape[:-1], k.shape[-2])
                how |= {"dropout": dropout, "key": random.generator().key(shape, "float32")}
            y, logarithm = attention(q, k, v, mask, **how)
            weights = attention_weights(q, k, logarithm, mask, **how)
        axes = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        y = gn.permute_dims(y, axes)
        y = self.out_proj(y.reshape((*y.shape[:2], self.embed_dim)))
        if weights is not None and average_attn_weights:
            weights = weights.mean(axis=1)
        if not batched:
            return y[0] if self.batch_first else y[:, 0], None if weights is None else weights[0]
        return y, weights

    def _check(self, query: Any, key: Any, value: Any) -> bool:
        """Whether there is a batch, of inputs that fit each other."""
        shapes = q, k, v = check_array(query), check_array(key), check_array(value)
        batch = "(N, {}, {})" if self.batch_first else "({}, N, {})"
        sizes = (("L", self.embed_dim), ("S", self.kdim), ("S", self.vdim))
        wanted = ", ".join(batch.format(*size) for size in sizes)
        if len(q) not in (2, 3) or len({*map(len, shapes)}) > 1:
            raise ShapeError(
                f"expected query, key and value of shapes {wanted}, or all without N, got {q}, {k} and {v}"
            )
        for name, shape, argument, size in (
            ("query", q, "embed_dim", self.embed_dim), ("key", k, "kdim", self.kdim), ("value", v, "vdim", self.vdim),
        ):  # fmt: skip
            if shape[-1] != size:
                raise size_error(
                    f"expected {size} features on the last axis of the {name}, got {shape[-1]} in shape {shape}",
                    argument,
                    shape[-1],
                )
        batch_axis = 0 if self.batch_first else 1
        if k[:-1] != v[:-1] or (len(q) == 3 and q[batch_axis] != k[batch_axis]):
            raise ShapeError(f"expected query, key and value of shapes {wanted}, got {q}, {k} and {v}")
        for x in (query, key, value):
            check_dtype(x, self.out_proj.weight)
        return len(q) == 3

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(..., parts * embed_dim) of a batch as (parts, N, heads, length, features of a head)."""
        x = x.reshape((*x.shape[:2], parts, self.num_heads, self.head_dim))
        return gn.permute_dims(x, (2, 0, 3, 1, 4) if self.batch_first else (2, 1, 3, 0, 4))

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of all heads, (N, heads, length, features), in as few products as there can be."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            q, k, v = self._heads(linear(query, weight, bias), 3)
            return q, k, v
        e = self.embed_dim
        biases = [None] * 3 if bias is None else list(gn.unstack(bias.reshape((3, e))))
        if weight is not None and key is value:
            q = linear(query, weight[:e], biases[0])
            k, v = self._heads(linear(key, weight[e:], None if bias is None else bias[e:]), 2)
            return self._heads(q, 1)[0], k, v
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if weight is not None:
            weights = (weight[:e], weight[e : 2 * e], weight[2 * e :])
        q, k, v = (self._heads(linear(x, w, b), 1)[0] for x, w, b in zip((query, key, value), weights, biases))
        return q, k, v

    def _with_more(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with those appended that the constructor asked for, and how many these are."""
        added = 0
        shape = (k.shape[0], self.num_heads, 1, self.head_dim)
        if self.bias_k is not None and self.bias_v is not None:
            rows = (gn.broadcast_to(b.reshape((1, *shape[1:])), shape) for b in (self.bias_k, self.bias_v))
            k, v = (gn.concat([a, row], axis=-2) for a, row in zip((k, v), rows))
            added += 1
        if self.add_zero_attn:
            zero = gn.zeros(shape, dtype=k.dtype, device=k.device)
            k, v = gn.concat([k, zero], axis=-2), gn.concat([v, zero], axis=-2)
            added += 1
        return k, v, added

    def _attention_mask(self, mask: Tensor | None, n: int, length: int, keys: int) -> Tensor | None:
        """attn_mask as it broadcasts to (N, heads, L, S), true for keys that take part."""
        if mask is None:
            return None
        shape, wanted = check_array(mask), ((length, keys), (n * self.num_heads, length, keys))
        if shape not in wanted:
            raise ShapeError(f"expected attn_mask of shape {wanted[0]} or {wanted[1]}, got {shape}")
        mask = _taking_part("attn_mask", mask)
        return mask if len(shape) == 2 else mask.reshape((n, self.num_heads, length, keys))

    def _padding_mask(self, mask: Tensor | None, n: int, keys: int) -> Tensor | None:
        """key_padding_mask, likewise."""
        if mask is None:
            return None
        if check_array(mask) != (n, keys):
            raise ShapeError(f"expected key_padding_mask of shape {(n, keys)}, got {tuple(mask.shape)}")
        return _taking_part("key_padding_mask", mask).reshape((n, 1, 1, keys))

    def extra_repr(self) -> str:
        options: dict[str, tuple[Any, Any]] = {
            "dropout": (self.dropout, 0.0),
            "bias": (self.in_proj_bias is not None, True),
            "add_bias_kv": (self.bias_k is not None, False),
            "add_zero_attn": (self.add_zero_attn, False),
            "kdim": (self.kdim, self.embed_dim),
            "vdim": (self.vdim, self.embed_dim),
            "batch_first": (self.batch_first, False),
        }
        shown = [f"{name}={value}" for name, (value, default) in options.items() if value != default]
        return ", ".join([f"{self.embed_dim}, {self.num_heads}", *shown])


def _taking_part(name: str, mask: Tensor) -> Tensor:
    """A mask that says which keys are left out, the other way round; one that is added to the scores, as it is."""
    if mask.dtype.kind == "b":
        return ~mask
    if mask.dtype.kind != "f":
        raise DTypeError(f"expected {name} of bool or floating-point, got {mask.dtype}")
    return mask


def _causal(length: int, keys: int, like: Tensor) -> Tensor:
    return gn.tril(gn.ones((length, keys), dtype="bool", device=like.device))


def _padded(mask: Any, added: int) -> Tensor:
    """A mask for so many keys more, which take part."""
    shape = (*mask.shape[:-1], added)
    if mask.dtype.kind == "b":
        return gn.concat([mask, gn.ones(shape, dtype="bool", device=mask.device)], axis=-1)
    return gn.concat([mask, gn.zeros(shape, dtype=mask.dtype, device=mask.device)], axis=-1)


def _merged(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor | None:
    """One mask that says what both say."""
    if a is None or b is None:
        return b if a is None else a
    if a.dtype.kind == b.dtype.kind == "b":
        return a & b
    return _added(a, like) + _added(b, like)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as it is added to scores."""
    if mask.dtype.kind == "b":
        zero = gn.zeros((), dtype=like.dtype, device=like.device)
        return gn.where(mask, zero, -float("inf"))
    return mask if mask.dtype == like.dtype else mask.astype(like.dtype)
