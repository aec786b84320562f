"""Multi-head attention, and scaled_dot_product_attention as users call it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.errors import DTypeError, ShapeError
from gpunet.nn import functional as F
from tests.nn.layers import check_layer, close

rng = np.random.default_rng(4)
E, H, L, S, N = 8, 2, 5, 7, 3


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("float32")


# --- the function


def attend(q: Any, k: Any, v: Any, mask: Any = None, *, scale: float | None = None, causal: bool = False) -> np.ndarray:
    """One query at a time, in plain float64, for arrays of one shape but for the last two axes."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for at in np.ndindex(q.shape[:-1]):
        item, i = at[:-1], at[-1]
        taken = [j for j in range(k.shape[-2]) if not (causal and j > i)]
        scores = {j: float(q[at] @ k[item][j]) * (scale or q.shape[-1] ** -0.5) for j in taken}
        if mask is not None:
            m = np.broadcast_to(mask, (*q.shape[:-1], k.shape[-2]))[at]
            scores = {j: s if m.dtype == bool else s + m[j] for j, s in scores.items() if m.dtype != bool or m[j]}
        total = sum(np.exp(s) for s in scores.values())
        out[at] = sum((np.exp(s) / total * v[item][j] for j, s in scores.items()), np.zeros(v.shape[-1]))
    return out


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "added", "keys", "scale"])
def test_values(kind: str, device: str) -> None:
    q, k, v = normal(N, H, L, 4), normal(N, H, S, 4), normal(N, H, S, 6)
    mask, options = None, {}
    if kind == "bool":
        mask = rng.random((L, S)) < 0.6
        mask[2] = False  # a query without keys
    elif kind == "added":
        mask = normal(N, 1, L, S)
    elif kind == "keys":
        mask = rng.random((N, 1, 1, S)) < 0.6
    elif kind == "causal":
        options = {"is_causal": True}
    elif kind == "scale":
        options = {"scale": 0.9}
    arrays = [gn.tensor(a, device=device) for a in (q, k, v)]
    got = F.scaled_dot_product_attention(*arrays, None if mask is None else gn.tensor(mask, device=device), **options)
    wanted = attend(q, k, v, mask, scale=options.get("scale"), causal=kind == "causal")
    assert got.dtype == "float32"
    np.testing.assert_allclose(got.cpu().numpy(), wanted, rtol=1e-5, atol=1e-6)
    if kind == "bool":
        assert not got.cpu().numpy()[:, :, 2].any()


@pytest.mark.parametrize("with_mask", [False, True])
def test_grouped_queries_are_those_with_repeated_keys(with_mask: bool, device: str) -> None:
    q, k, v = normal(N, 6, L, 4), normal(N, 2, S, 4), normal(N, 2, S, 3)
    for mask in (rng.random((N, 6, L, S)) < 0.7, rng.random((N, 1, L, S)) < 0.7) if with_mask else (None,):
        mask = None if mask is None else gn.tensor(mask, device=device)
        a, b, c = (gn.tensor(x, device=device, requires_grad=True) for x in (q, k, v))
        y = F.scaled_dot_product_attention(a, b, c, mask, enable_gqa=True)
        y.sum().backward()
        d, e, f = (gn.tensor(x, device=device, requires_grad=True) for x in (q, k, v))
        z = F.scaled_dot_product_attention(d, gn.repeat(e, 3, axis=1), gn.repeat(f, 3, axis=1), mask)
        z.sum().backward()
        close(y.cpu(), z.cpu())
        for u, w in ((a, d), (b, e), (c, f)):
            close(u.grad.cpu(), w.grad.cpu())


def test_leading_axes_broadcast(device: str) -> None:
    q, k, v = normal(N, H, L, 4), normal(H, S, 4), normal(1, S, 4)
    a, b, c = (gn.tensor(x, device=device, requires_grad=True) for x in (q, k, v))
    y = F.scaled_dot_product_attention(a, b, c)
    wanted = attend(q, np.broadcast_to(k, (N, H, S, 4)), np.broadcast_to(v, (N, H, S, 4)))
    np.testing.assert_allclose(y.detach().cpu().numpy(), wanted, rtol=1e-5, atol=1e-6)
    y.sum().backward()
    assert b.grad.shape == k.shape and c.grad.shape == v.shape
    np.testing.assert_allclose(c.grad.sum().item(), y.size, rtol=1e-5)  # each query's weights add up to one


def test_dropout_drops_weights_as_dropout_does(device: str) -> None:
    q, k, v = (gn.tensor(normal(N, H, n, 4), device=device, requires_grad=True) for n in (L, S, S))
    gn.manual_seed(3)
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    y.sum().backward()
    grads = [t.grad for t in (q, k, v)]
    gn.manual_seed(3)
    for t in (q, k, v):
        t.grad = None
    weights = F.dropout(F.softmax(gn.matmul(q, k.swapaxes(-1, -2)) * 0.5, axis=-1), 0.4)
    z = gn.matmul(weights, v)
    z.sum().backward()
    close(y.cpu(), z.cpu())
    for g, t in zip(grads, (q, k, v)):
        close(g.cpu(), t.grad.cpu())
    assert not F.scaled_dot_product_attention(q, k, v, dropout_p=1.0).detach().cpu().numpy().any()


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)])
def test_nothing_to_attend_with(shape: tuple[int, ...], device: str) -> None:
    q, k, v = (gn.zeros(shape, device=device) for _ in range(3))
    assert F.scaled_dot_product_attention(q, k, v, is_causal=True).shape == shape


def test_no_keys_and_no_features_give_zeros_and_means(device: str) -> None:
    q = gn.tensor(normal(2, L, 4), device=device, requires_grad=True)
    y = F.scaled_dot_product_attention(q, gn.zeros((2, 0, 4), device=device), gn.zeros((2, 0, 3), device=device))
    y.sum().backward()
    assert not y.detach().cpu().numpy().any() and y.shape == (2, L, 3) and not q.grad.cpu().numpy().any()
    v = normal(2, S, 3)
    y = F.scaled_dot_product_attention(*(gn.tensor(a, device=device) for a in (q.detach()[..., :0], v[..., :0], v)))
    np.testing.assert_allclose(y.cpu().numpy(), np.repeat(v.mean(1, keepdims=True), L, 1), rtol=1e-5)


def test_float16_is_computed_in_float32(device: str) -> None:
    arrays = [normal(N, n, 4).astype("float16") for n in (L, S, S)]
    tensors = [gn.tensor(a, device=device, requires_grad=True) for a in arrays]
    y = F.scaled_dot_product_attention(*tensors)
    assert y.dtype == "float16"
    np.testing.assert_allclose(y.detach().cpu().numpy(), attend(*(a.astype("d") for a in arrays)), atol=2e-3)
    y.sum().backward()
    assert all(t.grad.dtype == "float16" for t in tensors)


@pytest.mark.parametrize(
    ("shapes", "options", "kind", "text"),
    [
        (((2, 5, 4), (2, 7, 3), (2, 7, 4)), {}, ShapeError, "expected query"),
        (((2, 5, 4), (2, 7, 4), (2, 6, 4)), {}, ShapeError, r"\(2, 6, 4\)"),
        (((2, 5, 4), (3, 7, 4), (3, 7, 4)), {}, ShapeError, "expected query"),
        (((4,), (7, 4), (7, 4)), {}, ShapeError, "expected query"),
        (((1, 6, 5, 4), (1, 2, 7, 4), (1, 2, 7, 4)), {}, ShapeError, "enable_gqa=True"),
        (((1, 6, 5, 4), (1, 4, 7, 4), (1, 4, 7, 4)), {"enable_gqa": True}, ShapeError, "H a multiple of G"),
        (((5, 4), (5, 4), (5, 4)), {"attn_mask": np.zeros((4, 5), bool)}, ShapeError, "broadcasts to"),
        (((5, 4), (5, 4), (5, 4)), {"attn_mask": np.zeros((2, 5, 5), bool)}, ShapeError, "broadcasts to"),
        (((5, 4), (5, 4), (5, 4)), {"attn_mask": np.zeros((5, 5), "int64")}, DTypeError, "mask of bool"),
        (((5, 4),) * 3, {"attn_mask": np.ones((5, 5), bool), "is_causal": True}, ValueError, "got both"),
        (((5, 4),) * 3, {"dropout_p": 1.5}, ValueError, "probability"),
    ],
)
def test_mistakes(shapes: Any, options: dict[str, Any], kind: type[Exception], text: str) -> None:
    options = {name: gn.tensor(v) if hasattr(v, "dtype") else v for name, v in options.items()}
    with pytest.raises(kind, match=text):
        F.scaled_dot_product_attention(*(gn.zeros(s) for s in shapes), **options)


def test_dtypes_must_agree() -> None:
    with pytest.raises(DTypeError, match="one floating-point dtype"):
        F.scaled_dot_product_attention(gn.zeros((2, 3)), gn.zeros((2, 3), dtype="float64"), gn.zeros((2, 3)))
    with pytest.raises(DTypeError, match="one floating-point dtype"):
        F.scaled_dot_product_attention(*(gn.zeros((2, 3), dtype="int64"),) * 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"enable_gqa": True}, {"scale": 0.3}, {"mask": "bool"}, {"mask": "added"}],
    ids=str,
)
def test_function_against_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    heads = 2 if options.get("enable_gqa") else 4
    arrays = [normal(N, 4, 33, 16), normal(N, heads, 40, 16), normal(N, heads, 40, 24)]
    options = dict(options)
    if kind := options.pop("mask", None):
        options["attn_mask"] = rng.random((33, 40)) < 0.5 if kind == "bool" else normal(N, 1, 33, 40)
        if kind == "bool":
            options["attn_mask"][5] = False

    def given(make: Any) -> dict[str, Any]:
        return {name: make(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}

    ours = [gn.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = F.scaled_dot_product_attention(*ours, **given(gn.tensor))
    z = torch.nn.functional.scaled_dot_product_attention(*theirs, **given(torch.tensor))
    close(y, z)
    g = normal(*y.shape)
    y.backward(gn.tensor(g))
    z.backward(torch.tensor(g))
    for a, b in zip(ours, theirs):
        close(a.grad, b.grad)


# --- the layer


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"kdim": 6, "vdim": 10},
    {"add_bias_kv": True, "add_zero_attn": True},
]


def inputs_for(kind: str, options: dict[str, Any]) -> list[np.ndarray]:
    """Query, key and value; the same array is to be the same Tensor."""
    q = normal(L, N, E)
    if kind == "self" and "kdim" not in options:
        q = k = v = q
    elif kind == "cross" and "kdim" not in options:
        k = v = normal(S, N, E)
    else:
        k, v = normal(S, N, options.get("kdim", E)), normal(S, N, options.get("vdim", E))
    if kind == "one":
        q, k, v = q[:, 0], k[:, 0], v[:, 0]
    elif options.get("batch_first"):
        swapped = {id(a): a.swapaxes(0, 1).copy() for a in (q, k, v)}
        q, k, v = swapped[id(q)], swapped[id(k)], swapped[id(v)]
    return [q, k, v]


def tensors_of(arrays: list[np.ndarray], make: Any) -> list[Any]:
    made = {id(a): make(a) for a in arrays}
    return [made[id(a)] for a in arrays]


@pytest.mark.parametrize("masks", ["none", "bool", "added", "both"])
@pytest.mark.parametrize("kind", ["self", "cross", "three", "one"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_against_torch(options: dict[str, Any], kind: str, masks: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours, theirs = nn.MultiheadAttention(E, H, **options), torch.nn.MultiheadAttention(E, H, **options)
    for name, p in theirs.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(p)
    ours.load_state_dict({name: v.numpy() for name, v in theirs.state_dict().items()})
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    arrays = inputs_for(kind, options)
    time = 1 if options.get("batch_first") and kind != "one" else 0
    length, keys = arrays[0].shape[time], arrays[1].shape[time]
    given: dict[str, np.ndarray] = {}
    if masks in ("bool", "both"):
        given["key_padding_mask"] = np.zeros((keys,) if kind == "one" else (N, keys), bool)
        given["key_padding_mask"][..., -2:] = True
    if masks in ("added", "both"):
        given["attn_mask"] = normal(length, keys)
    if masks == "bool":
        many = kind != "one"
        given["attn_mask"] = rng.random((N * H if many else H, length, keys)) < 0.4
        given["attn_mask"][..., 0] = False
    for weights in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        a, b = (tensors_of(arrays, lambda x, m=m: m(x, requires_grad=True)) for m in (gn.tensor, torch.tensor))
        ours.zero_grad()
        theirs.zero_grad()
        y, w = ours(*a, **{name: gn.tensor(v) for name, v in given.items()}, **weights)
        z, u = theirs(*b, **{name: torch.tensor(v) for name, v in given.items()}, **weights)
        close(y, z)
        assert (w is None) == (u is None)
        g, h = normal(*y.shape), normal(*(() if w is None else w.shape))
        first, second = (y * gn.tensor(g)).sum(), (z * torch.tensor(g)).sum()
        if w is not None:
            close(w, u)
            first, second = first + (w * gn.tensor(h)).sum(), second + (u * torch.tensor(h)).sum()
        first.backward()
        second.backward()
        for s, t in zip([*a, *ours.parameters()], [*b, *theirs.parameters()]):
            close(s.grad, t.grad)


def test_initial_parameters_and_state_dict() -> None:
    layer = nn.MultiheadAttention(64, 4, add_bias_kv=True)
    assert list(layer.state_dict()) == [
        "in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "out_proj.weight", "out_proj.bias"
    ]  # fmt: skip
    bound = (6 / (64 + 3 * 64)) ** 0.5
    weight = layer.in_proj_weight.detach().numpy()
    assert weight.shape == (192, 64) and 0.95 * bound < abs(weight).max() <= bound
    assert not layer.in_proj_bias.detach().numpy().any() and not layer.out_proj.bias.detach().numpy().any()
    apart = nn.MultiheadAttention(64, 4, kdim=32, bias=False)
    assert list(apart.state_dict()) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert "64, 4, bias=False, kdim=32" in repr(apart)


@pytest.mark.parametrize("batch_first", [False, True])
def test_causal_is_the_causal_mask(batch_first: bool, device: str) -> None:
    for options in ({}, {"add_bias_kv": True}):
        layer = nn.MultiheadAttention(E, H, batch_first=batch_first, device=device, **options)
        x = gn.tensor(normal(L, L, E), device=device)
        mask = gn.triu(gn.ones((L, L), dtype="bool", device=device), k=1)
        wanted, weights = layer(x, x, x, attn_mask=mask)
        for how in ({"attn_mask": mask, "is_causal": True}, {"is_causal": True}):
            y, same = layer(x, x, x, **how)
            close(y.cpu(), wanted.cpu())
            close(same.cpu(), weights.cpu())
            close(layer(x, x, x, **how, need_weights=False)[0].cpu(), wanted.cpu())


def test_dropout_of_weights_is_the_same_with_and_without_them(device: str) -> None:
    layer = nn.MultiheadAttention(E, H, dropout=0.5, device=device)
    x = gn.tensor(normal(L, N, E), device=device)
    gn.manual_seed(1)
    a, weights = layer(x, x, x, average_attn_weights=False)
    gn.manual_seed(1)
    b, none = layer(x, x, x, need_weights=False)
    assert none is None
    close(a.cpu(), b.cpu())
    assert 0.2 < (weights.detach().cpu().numpy() == 0).mean() < 0.8
    layer.eval()
    rows = layer(x, x, x)[1].detach().cpu().numpy().sum(-1)
    np.testing.assert_allclose(rows, 1, rtol=1e-5)
    whole = nn.MultiheadAttention(E, H, dropout=1.0, device=device)
    y, weights = whole(x, x, x)
    assert not weights.cpu().numpy().any() and not y.detach().cpu().numpy().any()


def test_derivatives(device: str) -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: Any, y: Any) -> Any:
            return self.attention(x, x, x, is_causal=True, need_weights=False)[0], *self.attention(x, y, y)

    check_layer(Causal(), normal(3, 2, 4), normal(4, 2, 4), device=device)


@pytest.mark.parametrize(
    ("shapes", "given", "kind", "text"),
    [
        (((5, 3, 7), (5, 3, 8), (5, 3, 8)), {}, ShapeError, "8 features on the last axis of the query, got 7"),
        (((5, 3, 8), (5, 3, 7), (5, 3, 8)), {}, ShapeError, "8 features on the last axis of the key"),
        (((5, 3, 8), (7, 3, 8), (6, 3, 8)), {}, ShapeError, r"\(S, N, 8\)"),
        (((5, 3, 8), (7, 2, 8), (7, 2, 8)), {}, ShapeError, r"\(L, N, 8\)"),
        (((5, 3, 8), (7, 8), (7, 8)), {}, ShapeError, "all without N"),
        (((5, 3, 8),) * 3, {"attn_mask": (5, 4)}, ShapeError, r"attn_mask of shape \(5, 5\) or \(6, 5, 5\)"),
        (((5, 3, 8),) * 3, {"key_padding_mask": (5, 3)}, ShapeError, r"key_padding_mask of shape \(3, 5\)"),
    ],
)
def test_layer_names_mistakes(shapes: Any, given: Any, kind: type[Exception], text: str) -> None:
    layer = nn.MultiheadAttention(8, 2)
    masks = {name: gn.zeros(shape, dtype="bool") for name, shape in given.items()}
    with pytest.raises(kind, match=text) as caught:
        layer(*(gn.zeros(s) for s in shapes), **masks)
    assert "MultiheadAttention" in str(caught.value)


def test_arguments_and_dtypes_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads=3"):
        nn.MultiheadAttention(8, 3)
    with pytest.raises(ValueError, match="probability"):
        nn.MultiheadAttention(8, 2, dropout=2)
    layer = nn.MultiheadAttention(8, 2)
    with pytest.raises(DTypeError, match="float64"):
        layer(*(gn.zeros((5, 3, 8), dtype="float64"),) * 3)
    with pytest.raises(DTypeError, match="key_padding_mask of bool"):
        layer(*(gn.zeros((5, 3, 8)),) * 3, key_padding_mask=gn.zeros((3, 5), dtype="int64"))
