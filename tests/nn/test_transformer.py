"""Transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.errors import ShapeError
from tests.nn.layers import check_layer, close

rng = np.random.default_rng(6)
D, H, F, L, S, N = 8, 2, 12, 5, 7, 3
OPTIONS: list[dict[str, Any]] = [
    {},
    {"norm_first": True, "batch_first": True, "activation": "gelu"},
    {"bias": False, "layer_norm_eps": 1e-3},
]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("float32")


def against_torch(ours: Any, theirs: Any, arrays: list[np.ndarray], masks: dict[str, Any], training: bool) -> None:
    """With the same parameters, the same results and gradients."""
    import torch

    for p in theirs.parameters():
        if p.ndim == 1:  # biases are zero at first, and normalizations do nothing
            torch.nn.init.normal_(p)
    ours.load_state_dict({name: v.numpy() for name, v in theirs.state_dict().items()})
    theirs.load_state_dict({name: torch.from_numpy(v.numpy().copy()) for name, v in ours.state_dict().items()})
    assert sorted(n for n, _p in ours.named_parameters()) == sorted(n for n, _p in theirs.named_parameters())
    ours.train(training)
    theirs.train(training)
    a = [gn.tensor(x, requires_grad=True) for x in arrays]
    b = [torch.tensor(x, requires_grad=True) for x in arrays]
    y = ours(*a, **{n: gn.tensor(m) if isinstance(m, np.ndarray) else m for n, m in masks.items()})
    z = theirs(*b, **{n: torch.tensor(m) if isinstance(m, np.ndarray) else m for n, m in masks.items()})
    close(y, z)
    g = normal(*y.shape)
    y.backward(gn.tensor(g))
    z.backward(torch.tensor(g))
    theirs_by_name = dict(theirs.named_parameters())
    for s, t in zip(a, b):
        close(s.grad, t.grad)
    for name, p in ours.named_parameters():
        close(p.grad, theirs_by_name[name].grad, name)


def batch(length: int, first: bool) -> np.ndarray:
    return normal(N, length, D) if first else normal(length, N, D)


def causal(n: int) -> np.ndarray:
    return np.triu(np.full((n, n), -np.inf, "float32"), 1)


def padding(n: int) -> np.ndarray:
    mask = np.zeros((N, n), bool)
    mask[0, -1] = mask[2, 2] = True
    return mask


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers_against_torch(options: dict[str, Any], masked: bool, training: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    first = options.get("batch_first", False)
    x, memory = batch(L, first), batch(S, first)
    made = [
        (library.TransformerEncoderLayer(D, H, F, 0.0, **options),
         library.TransformerDecoderLayer(D, H, F, 0.0, **options))
        for library in (nn, torch.nn)
    ]  # fmt: skip
    masks: dict[str, Any] = {}
    if masked:
        masks = {"src_mask": causal(L), "is_causal": True}
        if not training:
            masks = {"src_mask": causal(L), "src_key_padding_mask": padding(L)}
    against_torch(made[0][0], made[1][0], [x], masks, training)
    if masked:
        masks = {
            "tgt_mask": causal(L) < 0, "memory_mask": normal(L, S),
            "tgt_key_padding_mask": padding(L), "memory_key_padding_mask": padding(S).astype("float32"),
        }  # fmt: skip
    against_torch(made[0][1], made[1][1], [x, memory], masks, training)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transformer_against_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    first = options.get("batch_first", False)
    ours, theirs = (library.Transformer(D, H, 2, 2, F, 0.0, **options) for library in (nn, torch.nn))
    arrays = [batch(S, first), batch(L, first)]
    against_torch(ours, theirs, arrays, {}, True)
    masks = {"tgt_mask": causal(L), "src_key_padding_mask": padding(S), "memory_key_padding_mask": padding(S)}
    against_torch(ours, theirs, arrays, masks, False)
    against_torch(ours, theirs, [a[0] if first else a[:, 0] for a in arrays], {}, True)


def test_subsequent_mask() -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    np.testing.assert_array_equal(mask.numpy(), causal(4))
    assert mask.dtype == "float32"
    assert nn.Transformer.generate_square_subsequent_mask(2, dtype="float64").dtype == "float64"


@pytest.mark.parametrize("mask", [causal(L), causal(L) < 0], ids=["added", "bool"])
def test_a_stack_sees_what_is_causal(mask: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    forward = nn.TransformerEncoderLayer.forward
    monkeypatch.setattr(
        nn.TransformerEncoderLayer, "forward",
        lambda self, *args, is_causal: seen.append(is_causal) or forward(self, *args, is_causal=is_causal),
    )  # fmt: skip
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, F, 0.0), 2)
    x = gn.tensor(normal(L, N, D))
    a = encoder(x, gn.tensor(mask))
    assert seen == [True, True]
    close(a, encoder(x, gn.tensor(mask), is_causal=False))
    other = mask.copy()
    other[0, 0] = mask[0, 1]
    other[0, 1] = mask[0, 0]
    seen.clear()
    encoder(x, gn.tensor(other))
    encoder(x)
    assert seen == [False] * 4


def test_layers_of_a_stack_are_copies() -> None:
    layer = nn.TransformerEncoderLayer(D, H, F)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(D))
    weights = [m.linear1.weight for m in (layer, *encoder.layers)]
    assert len({id(w) for w in weights}) == 3
    np.testing.assert_array_equal(weights[1].detach().numpy(), weights[2].detach().numpy())
    encoder(gn.tensor(normal(L, N, D))).sum().backward()
    assert weights[0].grad is None and weights[1].grad is not None


def test_dropout_is_in_training_only(device: str) -> None:
    layer = nn.TransformerEncoderLayer(D, H, F, 0.5, device=device)
    x = gn.tensor(normal(L, N, D), device=device)
    a, b = layer(x), layer(x)
    assert (a != b).any()
    layer.eval()
    assert (layer(x) == layer(x)).all()


def test_derivatives(device: str) -> None:
    check_layer(nn.TransformerEncoderLayer(4, 2, 3, 0.0, "gelu"), normal(3, 2, 4), device=device, order=1)
    layer = nn.TransformerDecoderLayer(4, 2, 3, 0.0, "gelu", norm_first=True)
    check_layer(layer, normal(3, 2, 4), normal(2, 2, 4), device=device, order=1)


def test_activations() -> None:
    x = gn.tensor(normal(L, N, D))
    for activation in ("relu", "gelu", gn.nn.functional.silu, nn.SiLU()):
        assert nn.TransformerEncoderLayer(D, H, F, activation=activation)(x).shape == (L, N, D)
    with pytest.raises(ValueError, match="TransformerEncoderLayer: activation must be 'relu', 'gelu' or a function"):
        nn.TransformerEncoderLayer(D, H, F, activation="swish")


def test_errors_name_the_layer() -> None:
    model = nn.Transformer(D, H, 2, 2, F)
    with pytest.raises(ShapeError, match=r"model\.decoder\.layers\.0\.multihead_attn .*\(L, N, 8\).*got \(5, 3, 8\)"):
        model(gn.zeros((S, 2, D)), gn.zeros((L, N, D)))
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, F), 0)
