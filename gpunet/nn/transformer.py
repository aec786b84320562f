"""Transformers: encoders, decoders, and both together (Vaswani et al., 2017)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.nn import functional as F
from gpunet.nn import init
from gpunet.nn.arguments import check_array, integer
from gpunet.nn.attention import MultiheadAttention
from gpunet.nn.container import ModuleList
from gpunet.nn.dropout import Dropout
from gpunet.nn.linear import Linear
from gpunet.nn.module import Module
from gpunet.nn.norm import LayerNorm
from gpunet.tensor import Tensor

Activation = str | Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def _function(where: str, activation: Activation) -> Callable[[Tensor], Tensor]:
    if isinstance(activation, str) and activation in _ACTIVATIONS:
        return _ACTIVATIONS[activation]
    if not callable(activation):
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"{where}: activation must be {known} or a function, got {activation!r}")
    return activation


class _Layer(Module):
    """What the layers of an encoder and of a decoder have in common: the parts that stand in both."""

    attentions: tuple[str, ...]  # the names of those it has, in the order of their use

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        how: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.activation = _function(type(self).__name__, activation)
        self.norm_first = bool(norm_first)
        for name in self.attentions:
            setattr(self, name, MultiheadAttention(d_model, nhead, dropout, batch_first=batch_first, **how))
        self.linear1 = Linear(d_model, dim_feedforward, **how)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, **how)
        parts = range(1, len(self.attentions) + 2)  # each has a normalization, and a dropout before it is added
        for i in parts:
            setattr(self, f"norm{i}", LayerNorm(d_model, layer_norm_eps, **how))
        for i in parts:
            setattr(self, f"dropout{i}", Dropout(dropout))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))

    def _add(self, x: Tensor, number: int, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x and what a part makes of it, with the part's normalization before it or after the sum."""
        norm, dropout = getattr(self, f"norm{number}"), getattr(self, f"dropout{number}")
        if self.norm_first:
            return x + dropout(part(norm(x)))
        return norm(x + dropout(part(x)))


class TransformerEncoderLayer(_Layer):
    """A layer of an encoder: each position attends to all, and goes through two linear maps with an activation between.
    Each of the two parts is added to what it was given.

    Called as layer(src, src_mask=None, src_key_padding_mask=None, is_causal=False): with src (S, N, d_model), with
    batch_first (N, S, d_model), or (S, d_model) without a batch; the masks are attn_mask, key_padding_mask and
    is_causal of `MultiheadAttention`. It returns the shape of src.

    Args:
        d_model: features of a position.
        nhead: heads of the attention.
        dim_feedforward: features between the two linear maps.
        dropout: the probability of each dropout: of the attention's weights, after the activation, and of what
            either part gives.
        activation: "relu", "gelu", or a function of a Tensor.
        layer_norm_eps: eps of the normalizations.
        batch_first: whether N comes before S.
        norm_first: whether each part's normalization comes before it, instead of after the sum.
        bias: whether the linear maps and normalizations have one.
        device, dtype: of the parameters.

    Attributes:
        self_attn: a MultiheadAttention. linear1, linear2: Linear. norm1, norm2: LayerNorm. dropout, dropout1,
            dropout2: Dropout.

    Raises:
        ValueError, TypeError: an argument that is out of range. When called, ShapeError: an input or mask that does
            not fit.
    """

    self_attn: Any
    attentions = ("self_attn",)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal)[0]

        return self._add(self._add(src, 1, attend), 2, self._feed_forward)


class TransformerDecoderLayer(_Layer):
    """A layer of a decoder: each position attends to all, then to the memory (what an encoder gave), and goes through
    two linear maps with an activation between. Each of the three parts is added to what it was given.

    Called as layer(tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None,
    memory_key_padding_mask=None, tgt_is_causal=False, memory_is_causal=False): with tgt (T, N, d_model) and memory
    (S, N, d_model), with batch_first N first, or both without a batch; the masks are attn_mask, key_padding_mask and
    is_causal of `MultiheadAttention`. It returns the shape of tgt.

    Args, errors: as of `TransformerEncoderLayer`.

    Attributes:
        self_attn, multihead_attn: MultiheadAttention. linear1, linear2: Linear. norm1 to norm3: LayerNorm. dropout,
            dropout1 to dropout3: Dropout.
    """

    self_attn: Any
    multihead_attn: Any
    attentions = ("self_attn", "multihead_attn")

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal)[0]

        def look(x: Tensor) -> Tensor:
            return self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask, is_causal=memory_is_causal
            )[0]

        return self._add(self._add(self._add(tgt, 1, attend), 2, look), 3, self._feed_forward)


class _Stack(Module):
    def __init__(self, layer: Module, num_layers: int, norm: Module | None) -> None:
        self.num_layers = integer(type(self).__name__, "num_layers", num_layers)
        self.layers = ModuleList([copy.deepcopy(layer) for _ in range(self.num_layers)])
        self.norm = norm

    def _through(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, *args, **options)
        return x if self.norm is None else self.norm(x)


class TransformerEncoder(_Stack):
    """Layers of an encoder, one after another.

    Called as encoder(src, mask=None, src_key_padding_mask=None, is_causal=None), whose arguments all layers are given;
    is_causal=None: whether it is causal is seen from the mask (on the CPU).

    Args:
        encoder_layer: a `TransformerEncoderLayer`; every layer is a copy, with the same parameters at first.
        num_layers: how many.
        norm: what the last layer's result goes through; or None.
        enable_nested_tensor, mask_check: accepted, as PyTorch's programs give them; the results are the same.
    """

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__(encoder_layer, num_layers, norm)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        return self._through(src, mask, src_key_padding_mask, is_causal=_causality(mask, is_causal))


class TransformerDecoder(_Stack):
    """Layers of a decoder, one after another.

    Called with the arguments of `TransformerDecoderLayer`, which all layers are given; tgt_is_causal=None, the default:
    whether it is causal is seen from tgt_mask (on the CPU).

    Args:
        decoder_layer: a `TransformerDecoderLayer`; every layer is a copy, with the same parameters at first.
        num_layers: how many.
        norm: what the last layer's result goes through; or None.
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__(decoder_layer, num_layers, norm)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        return self._through(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal=_causality(tgt_mask, tgt_is_causal), memory_is_causal=memory_is_causal,
        )  # fmt: skip


class Transformer(Module):
    """An encoder and a decoder that looks at what the encoder gives (Vaswani et al., 2017).

    Called as transformer(src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None,
    tgt_key_padding_mask=None, memory_key_padding_mask=None, src_is_causal=None, tgt_is_causal=None,
    memory_is_causal=False): with src (S, N, d_model) and tgt (T, N, d_model), with batch_first N first, or both
    without a batch. It returns the shape of tgt. The masks are those of `TransformerEncoder` and `TransformerDecoder`.

    Args:
        num_encoder_layers, num_decoder_layers: how many there are of each.
        custom_encoder, custom_decoder: modules to take instead.
        others: as of `TransformerEncoderLayer`.

    Attributes:
        encoder, decoder: a TransformerEncoder and a TransformerDecoder, each with a LayerNorm at its end. At first all
            matrices are as `init.xavier_uniform_` makes them.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        how: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first)
        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(*options, **how), num_encoder_layers, LayerNorm(d_model, layer_norm_eps, **how)
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(*options, **how), num_decoder_layers, LayerNorm(d_model, layer_norm_eps, **how)
        )
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = bool(batch_first)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                init.xavier_uniform_(parameter)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        memory = self.encoder(src, src_mask, src_key_padding_mask, is_causal=src_is_causal)
        return self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal, memory_is_causal=memory_is_causal,
        )  # fmt: skip

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """A mask (sz, sz) to be added to scores with which each position sees those before it, and itself: 0 up to the
        diagonal, -inf above.
        """
        mask = gn.full((sz, sz), -float("inf"), dtype=dtype or gn.float32, device=device)
        return gn.triu(mask, k=1)


def _causality(mask: Any, is_causal: bool | None) -> bool:
    """`is_causal`; or where it is None, whether that is what the mask says, which is looked at on the CPU only."""
    if is_causal is not None:
        return is_causal
    if mask is None:
        return False
    shape, data = check_array(mask), getattr(mask, "data", None)
    if len(shape) != 2 or shape[0] != shape[1] or not isinstance(data, np.ndarray):
        return False
    above = np.triu(np.ones(shape, bool), k=1)
    return np.array_equal(data, above if data.dtype == bool else np.where(above, -np.inf, 0.0))
