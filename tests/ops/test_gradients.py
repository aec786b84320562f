"""The derivative of every op, first and second order, against finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.ops import (
    attention,
    conv,
    einsum,
    elementwise,
    fft,
    index,
    linalg,
    loss,
    matmul,
    norm,
    pool,
    random,
    recurrent,
    reduce,
    shape,
    softmax,
    special,
)
from gpunet.ops.feed_forward import feed_forward
from gpunet.ops.op import Op
from tests.every_op import all_ops
from tests.gradcheck import check_gradients
from tests.ops.linalg_cases import COVERED as LINALG_COVERED

rng = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def positive(*shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2.0, shape)


def apart(*shape: int) -> np.ndarray:
    """Values no two of which are close: extremes are differentiable there."""
    n = int(np.prod(shape))
    return rng.permutation(np.linspace(-2, 2, n) + 0.01).reshape(shape)


Case = tuple[Callable[..., Any], list[np.ndarray]]
CASES: dict[str, Case] = {}
COVERED: set[str] = set(LINALG_COVERED)  # by tests/ops/test_linalg.py; cases here add to it


def case(name: str, f: Callable[..., Any], *inputs: np.ndarray, also: tuple[Op, ...] = ()) -> None:
    """A case named "op" or "op: variant"; `also` names ops that the derivatives of this one run through."""
    assert name not in CASES
    CASES[name] = (f, list(inputs))
    COVERED.add(name.split(":")[0])
    COVERED.update(o.name for o in also)


for op in (
    elementwise.negative, elementwise.positive, elementwise.abs, elementwise.sign, elementwise.square, elementwise.real,
    elementwise.conj, elementwise.floor, elementwise.ceil, elementwise.trunc, elementwise.round, elementwise.exp,
    elementwise.expm1, elementwise.sin, elementwise.cos, elementwise.tan, elementwise.sinh, elementwise.cosh,
    elementwise.tanh, elementwise.atan, elementwise.asinh, elementwise.relu, elementwise.leaky_relu, elementwise.elu,
    elementwise.sigmoid, elementwise.softplus, elementwise.silu, elementwise.gelu, elementwise.erf,
    reduce.sum, reduce.mean, reduce.var, reduce.std, reduce.prod, softmax.softmax, softmax.log_softmax,
    softmax.logsumexp,
    shape.copy, shape.flip, shape.matrix_transpose, linalg.diagonal, linalg.vector_norm, shape.tril,
    shape.triu,
):  # fmt: skip
    case(op.name, op, apart(3, 4) * 0.7)
for op in (
    elementwise.sqrt, elementwise.log, elementwise.log1p, elementwise.log2, elementwise.log10, elementwise.reciprocal,
):  # fmt: skip
    case(op.name, op, positive(3, 4))
for op in (elementwise.asin, elementwise.acos, elementwise.atanh):
    case(op.name, op, rng.uniform(-0.8, 0.8, (3, 4)))
case("acosh", elementwise.acosh, positive(3, 4) + 1)
case("gelu: tanh", lambda x: elementwise.gelu(x, approximate="tanh"), normal(3, 4))
case("hardtanh", lambda x: elementwise.hardtanh(x, min_val=-0.5, max_val=0.7) ** 2, apart(3, 4))
case("softplus: beta", lambda x: elementwise.softplus(x, beta=2.0), normal(3, 4))
for op in (
    elementwise.add, elementwise.subtract, elementwise.multiply, elementwise.maximum, elementwise.minimum,
    elementwise.hypot, elementwise.atan2, elementwise.logaddexp, elementwise.copysign,
):  # fmt: skip
    case(op.name, op, apart(3, 4), apart(4) + 0.013)
case("divide", elementwise.divide, normal(3, 4), positive(3, 1))
case("remainder", elementwise.remainder, normal(3, 4), positive(4))
case("pow", elementwise.pow, positive(3, 4), normal(4))
case("pow: number", lambda x: x**3, normal(3, 4))
case("pow: base", lambda x: 2.0**x, normal(3, 4))
case("add: numbers", lambda x: 1.0 - (2 + x * 3) / 4.0, normal(3))
case("where", lambda a, b: elementwise.where(gn.asarray(np.eye(3, dtype=bool)), a, b), normal(3, 3), normal(3))
case("clip", lambda x: elementwise.clip(x, -0.5, 0.7), apart(3, 4))
case("clip: arrays", elementwise.clip, apart(3, 4), np.full(4, -0.505), np.full((3, 1), 0.703))

case("sum: axes", lambda x: reduce.sum(x, axis=(0, -1), keepdims=True), normal(2, 3, 4))
case("mean: axis", lambda x: reduce.mean(x, axis=1), normal(2, 3, 4))
case("var: correction", lambda x: reduce.var(x, axis=-1, correction=1), normal(2, 5))
case("std: axis", lambda x: reduce.std(x, axis=0, keepdims=True), normal(4, 3))
case("max", lambda x: reduce.max(x, axis=1), apart(3, 4))
case("max: all", reduce.max, apart(3, 4))
case("min", lambda x: reduce.min(x, axis=0, keepdims=True), apart(3, 4))
case("prod: zeros", lambda x: reduce.prod(x, axis=(0, 2)), normal(2, 2, 3) * np.array([1, 1, 0.0]))
case("cumulative_sum", lambda x: reduce.cumulative_sum(x, axis=1, include_initial=True), normal(2, 4))
case("imag", lambda x: elementwise.imag(x * (1.0 + 2.0j)), normal(3, 2))
case("cumulative_prod", lambda x: reduce.cumulative_prod(x, axis=0), positive(4, 2))
case(
    "cumulative_prod: zeros",
    lambda x: reduce.cumulative_prod(x, axis=1),
    np.array([[2.0, 0.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0]]),
)
case("cumulative_prod: initial", lambda x: reduce.cumulative_prod(x, include_initial=True), positive(4))
case("softmax: axis", lambda x: softmax.softmax(x, axis=0), normal(3, 4), also=(softmax.softmax_grad,))
case("logsumexp: axis", lambda x: softmax.logsumexp(x, axis=-1), normal(3, 4))
case("logsumexp: axes", lambda x: softmax.logsumexp(x, axis=(0, 2), keepdims=True), normal(2, 3, 2))

case("reshape", lambda x: shape.reshape(x, (2, -1)) ** 2, normal(3, 4))
case("permute_dims", lambda x: shape.permute_dims(x, (2, 0, 1)) ** 2, normal(2, 3, 4))
case("moveaxis", lambda x: shape.moveaxis(x, 0, -1) ** 2, normal(2, 3, 4))
case("expand_dims", lambda x: shape.expand_dims(x, axis=(0, 2)), normal(3, 4))
case("squeeze", lambda x: shape.squeeze(x, axis=(0, -1)), normal(1, 3, 1))
case("broadcast_to", lambda x: shape.broadcast_to(x, (2, 3, 4)) ** 2, normal(3, 1))
case("concat", lambda a, b: shape.concat([a, b], axis=1) ** 2, normal(2, 3), normal(2, 1))
case("concat: flattened", lambda a, b: shape.concat([a, b], axis=None) ** 2, normal(2, 3), normal(4))
case("concat: stack", lambda a, b: shape.stack([a, b], axis=-1) ** 2, normal(2, 3), normal(2, 3))
case("roll", lambda x: shape.roll(x, shift=(1, 2), axis=(0, 1)) ** 2, normal(3, 4))
case("repeat", lambda x: shape.repeat(x, 3, axis=1) ** 2, normal(2, 3))
case("repeat: flattened", lambda x: shape.repeat(x, 2) ** 2, normal(2, 3))
case("repeat: each", lambda x: shape.repeat(x, np.array([1, 0, 2]), axis=1) ** 2, normal(2, 3))
case("tile", lambda x: shape.tile(x, (2, 1, 3)) ** 2, normal(2, 3))
case("pad", lambda x: shape.pad(x, ((1, 0), (2, 1))) ** 2, normal(2, 3))
for mode in ("reflect", "edge", "wrap"):
    case(f"pad: {mode}", lambda x, mode=mode: shape.pad(x, ((1, 0), (2, 1)), mode=mode) ** 2, normal(2, 3))
case("astype", lambda x: shape.astype(x, dtype=np.dtype("float64")), normal(3))
case("to_device", lambda x: (x * x).to_device("cpu").to_device(x.device) * x, normal(3))
case("diagonal: offset", lambda x: linalg.diagonal(x, offset=1) ** 2, normal(2, 3, 4), also=(linalg._embed_diagonal,))
for order in (1, 3, np.inf):
    case(f"vector_norm: {order}", lambda x, o=order: linalg.vector_norm(x, axis=1, ord=o), apart(3, 4))

case("getitem", lambda x: x[1:, ..., None, ::2] ** 2, normal(3, 4), also=(index._scatter,))
case("getitem: integers", lambda x: x[np.array([0, 2, 0]), 1] ** 2, normal(3, 4))
case("getitem: mask", lambda x: x[np.eye(3, dtype=bool)] ** 2, normal(3, 3))
case("setitem", lambda x, v: index.setitem(x, v, key=(slice(None), 1)) ** 2, normal(3, 4), normal(3))
case("take", lambda x: index.take(x, gn.asarray(np.array([[1, 0], [1, 1]])), axis=1) ** 2, normal(3, 2))
case(
    "take_along_axis",
    lambda x: index.take_along_axis(x, gn.asarray([[0, 0], [2, 1]]), axis=1) ** 2,
    normal(2, 3),
    also=(index._scatter_along,),
)
case("take_along_axis: sort", lambda x: index.sort(x, axis=0, descending=True) ** 2, apart(4, 3))

case("matmul", matmul.matmul, normal(3, 4), normal(4, 2))
case("matmul: batched", matmul.matmul, normal(2, 1, 3, 4), normal(5, 4, 2))
case("matmul: vectors", matmul.matmul, normal(4), normal(4))
case("matmul: row", matmul.matmul, normal(4), normal(2, 4, 3))
case("matmul: column", matmul.matmul, normal(2, 3, 4), normal(4))
case("matmul: tensordot", lambda a, b: matmul.tensordot(a, b, axes=((0, 2), (1, 0))), normal(2, 3, 4), normal(4, 2, 2))
case("matmul: vecdot", lambda a, b: matmul.vecdot(a, b, axis=0), normal(4, 3), normal(4, 3))
case("linear", matmul.linear, normal(5, 3), normal(2, 3), normal(2))
case("linear: batched", lambda x, w: matmul.linear(x, w), normal(2, 2, 3), normal(2, 3))
for _activation in ("relu", "gelu", "gelu_tanh", "silu"):
    case(
        f"feed_forward: {_activation}",
        lambda x, *p, activation=_activation: feed_forward(x, *p, activation=activation)[0],
        *(normal(4, 3), normal(5, 3), normal(5), normal(4, 5), normal(4), normal(2, 4), normal(2)),
    )
case(
    "feed_forward: without biases, batched",
    lambda x, w1, w2: feed_forward(x, w1, None, w2, None, activation="silu")[0],
    *(normal(2, 2, 3), normal(4, 3), normal(2, 4)),
)
case("linear: vector", matmul.linear, normal(3), normal(2, 3), normal(2))
case("einsum", lambda a, b: einsum.einsum("bik,bkj->bij", a, b), normal(2, 3, 4), normal(2, 4, 2))
case("einsum: ellipsis", lambda a, b: einsum.einsum("...ij,jk...->...ki", a, b), normal(2, 1, 3, 4), normal(4, 2, 3))
case("einsum: diagonals", lambda a, b: einsum.einsum("iij,jj->i", a, b), normal(3, 3, 2), normal(2, 2))
case("einsum: sums", lambda a, b: einsum.einsum("ij,jk->k", a, b), normal(2, 3), normal(3, 4))
case("einsum: outer", lambda a, b, c: einsum.einsum("i,j,j", a, b, c), normal(2), normal(3), normal(3))

CONV = {
    "conv: plain": ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "conv: strided": ((2, 4, 7, 6), (2, 4, 3, 2), (2, 3), ((1, 0), (0, 2)), (1, 2), 1),
    "conv: grouped": ((2, 4, 5, 5), (6, 2, 3, 3), (1, 1), ((0, 0), (1, 1)), (1, 1), 2),
    "conv: depthwise": ((2, 4, 5), (4, 1, 3), (2,), ((1, 1),), (1,), 4),
    "conv: wide padding": ((1, 4, 3), (2, 4, 2), (1,), ((3, 2),), (1,), 1),
    "conv: three axes": ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), (1, 2, 1), ((0, 0), (1, 1), (0, 1)), (1, 1, 1), 1),
}
for name, (x, w, stride, padding, dilation, groups) in CONV.items():
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    case(
        name,
        lambda x, w, b, how=how: conv.conv(x, w, b, **how),
        normal(*x), normal(*w), normal(w[0]),
        also=(conv.conv_input_grad, conv.conv_weight_grad),
    )  # fmt: skip
FUSED = {"conv_relu": conv.conv_relu, "conv_relu_pool": lambda *a, **how: conv.conv_relu_pool(*a, **how)[0]}
for name, fused in FUSED.items():
    case(
        name,
        lambda *a, fused=fused: fused(*a, stride=(1, 1), padding=((1, 1), (0, 1)), dilation=(1, 1), groups=1),
        normal(2, 3, 5, 6), normal(4, 3, 3, 3), normal(4),
    )  # fmt: skip
case(
    "conv_input_grad: alone",
    lambda g, w: conv.conv_input_grad(
        g, w, shape=(2, 4, 7), stride=(2,), padding=((1, 1),), dilation=(1,), groups=2
    ),
    normal(2, 2, 4), normal(2, 2, 3),
)  # fmt: skip

POOL = {
    "plain": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)},
    "overlapping": {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "ceil": {"kernel": (2, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True},
}
_POOLED, _OFFSETS = normal(2, 3, 2, 3), rng.integers(0, 4, (2, 3, 2, 3)).astype(np.uint8)
for name, options in POOL.items():
    case(
        f"max_with_offsets: {name}",
        lambda x, o=options: pool.max_pool(x, dilation=(1, 1), **o),
        apart(2, 3, 5, 6),
        also=(pool.unpool, pool.pick),
    )
    for counted in (True, False):
        case(
            f"window_sum: average, {name}, {counted}",
            lambda x, o=options, c=counted: pool.avg_pool(x, **o, count_include_pad=c),
            normal(2, 3, 5, 6),
            also=(pool.spread,),
        )
case(
    "max_with_offsets: dilated",
    lambda x: pool.max_pool(x, kernel=(2,), stride=(1,), padding=(0,), dilation=(2,)),
    apart(2, 3, 5),
)
case(
    "unpool_relu",
    lambda g: pool.unpool_relu(
        g, gn.asarray(_POOLED), gn.asarray(_OFFSETS), shape=(2, 3, 4, 6), dilation=(1, 1), **POOL["plain"]
    ),
    normal(2, 3, 2, 3),
)
case(
    "adaptive_max",
    lambda x: pool.adaptive_max_pool(x, output_size=(2, 3)),
    apart(2, 3, 5, 4),
    also=(pool.adaptive_unpool, pool.adaptive_pick),
)
for _order, _ceil in ((2.0, False), (3.0, True)):
    case(
        f"window_norm: {_order}",
        lambda x, p=_order, c=_ceil: pool.window_norm(
            x, order=p, kernel=(2, 3), stride=(2, 2), padding=(0, 0), ceil_mode=c
        ),
        positive(2, 3, 5, 6),
    )
case(
    "place_maxima",
    lambda x: pool.place_maxima(x, gn.asarray(np.array([[[4, 0, 3]], [[2, 5, 1]]])), size=(2, 3)) ** 2,
    normal(2, 1, 3),
)
case(
    "adaptive_mean",
    lambda x: pool.adaptive_avg_pool(x, output_size=(2, 3)),
    normal(2, 3, 5, 4),
    also=(pool.adaptive_mean_grad,),
)

case(
    "normalize",
    lambda x, w, b: norm.batch_norm(x, w, b, eps=1e-5, statistics=None),
    normal(4, 3, 2, 2),
    normal(3),
    normal(3),
)
case(
    "normalize: layer",
    lambda x, w, b: norm.layer_norm(x, (3, 4), w, b, eps=1e-5),
    normal(2, 3, 4),
    normal(3, 4),
    normal(3, 4),
)
case(
    "normalize_by",
    lambda x, m, v, w, b: norm.normalize_by(x, m, v, w, b, eps=0.1),
    normal(2, 3, 2), normal(3), positive(3), normal(3), normal(3),
)  # fmt: skip
case("normalize_by: bare", lambda x, m, v: norm.normalize_by(x, m, v, eps=0.1), normal(4, 3), normal(3), positive(3))
case("normalize: bare", lambda x: norm.normalize(x, axes=(1,), eps=1e-3), normal(3, 4))

for _added in (False, True):
    case(
        f"normalize_relu: {_added}",
        lambda x, w, b, *r: norm.normalize_relu(x, w, b, *(r or (None,)), axes=(0, 2), eps=1e-3),
        normal(4, 3, 2), normal(3, 1), normal(3, 1), *([normal(4, 3, 2)] if _added else []),
    )  # fmt: skip
    case(
        f"normalize_by_relu: {_added}",
        lambda x, m, v, w, b, *r: norm.normalize_by_relu(x, m, v, w, b, *(r or (None,)), eps=0.1),
        normal(2, 3, 2), normal(3), positive(3), normal(3), normal(3), *([normal(2, 3, 2)] if _added else []),
    )  # fmt: skip
case("normalize: groups", lambda x, w, b: norm.group_norm(x, 2, w, b, eps=1e-3), normal(2, 4, 3), normal(4), normal(4))
case(
    "normalize: instances", lambda x, w, b: norm.group_norm(x, 3, w, b, eps=1e-3), normal(2, 3, 4), normal(3), normal(3)
)
case("rms_normalize", lambda x, w: norm.rms_normalize(x, w, axes=(1, 2), eps=1e-3), normal(3, 4, 2), normal(4, 2))
case("rms_normalize: bare", lambda x: norm.rms_normalize(x, axes=(-1,), eps=1e-3), normal(3, 4))

TARGET = np.array([2, 0, -100, 1])
WEIGHT = np.array([0.5, 2.0, 1.0])
for reduction in ("none", "sum", "mean"):
    for smoothing in (0.0, 0.1):
        how = {"reduction": reduction, "label_smoothing": smoothing}
        case(
            f"cross_entropy: {reduction}, {smoothing}",
            lambda x, o=how: loss.cross_entropy(x, gn.asarray(TARGET), **o),
            normal(4, 3),
            also=(loss.cross_entropy_grad,),
        )
        case(
            f"cross_entropy: weighted, {reduction}, {smoothing}",
            lambda x, o=how: loss.cross_entropy(x, gn.asarray(TARGET), gn.asarray(WEIGHT), **o),
            normal(4, 3),
        )
case("binary_cross_entropy", loss.binary_cross_entropy, rng.uniform(0.1, 0.9, (3, 4)), rng.uniform(0.1, 0.9, (3, 4)))
case("dropout", lambda x: random.dropout(x, p=0.4, key=random.Key(3, (0, 0, 0), 5)), normal(5, 4))


for _reverse in (False, True):
    case(
        f"lstm: {_reverse}",
        lambda *args, r=_reverse: recurrent.lstm(*args, reverse=r),
        *(normal(3, 2, 12), normal(2, 3), normal(2, 3), normal(12, 3), normal(12)),
    )
    case(
        f"gru: {_reverse}",
        lambda *args, r=_reverse: recurrent.gru(*args, reverse=r),
        *(normal(3, 2, 9), normal(2, 3), normal(9, 3), normal(9)),
    )
    for _activation in ("tanh", "relu"):
        case(
            f"rnn: {_activation}, {_reverse}",
            lambda *args, a=_activation, r=_reverse: recurrent.rnn(*args, activation=a, reverse=r),
            *(normal(3, 2, 3), normal(2, 3), normal(3, 3), normal(3)),
        )
case("lstm: from zeros", lambda x, w: recurrent.lstm(x, None, None, w)[0], normal(3, 2, 12), normal(12, 3))
case("gru: from zeros", lambda x, w: recurrent.gru(x, None, w)[0], normal(3, 2, 9), normal(9, 3))
case("rnn: from zeros", lambda x, w: recurrent.rnn(x, None, w), normal(3, 2, 3), normal(3, 3))

case("linear_relu", matmul.linear_relu, normal(4, 3), normal(5, 3), normal(5))
case("linear_relu: no bias, vector", lambda x, w: matmul.linear_relu(x, w, None), normal(3), normal(5, 3))
case("linear_relu: three axes", matmul.linear_relu, normal(2, 4, 3), normal(5, 3), normal(5))

ATTENTION = {
    "plain": {},
    "causal": {"causal": True},
    "dropout": {"dropout": 0.3, "key": random.Key(3, (0, 0, 0), 5)},
}
for name, options in ATTENTION.items():
    case(
        f"attention: {name}",
        lambda q, k, v, o=options: attention.attention(q, k, v, scale=0.7, **o),
        normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 3),
    )  # fmt: skip
case(
    "attention: mask, added, broadcast",
    lambda q, k, v, mask: attention.attention(q, k, v, mask, scale=0.7)[0],
    normal(2, 2, 3, 4), normal(2, 1, 5, 4), normal(5, 3), normal(2, 3, 5),
)  # fmt: skip
case(
    "attention: mask",
    lambda q, k, v: attention.attention(q, k, v, gn.asarray(np.eye(4, 5, k=1, dtype=bool)[[0, 1, 3]]), scale=1.0)[0],
    normal(3, 4), normal(5, 4), normal(5, 3),
)  # fmt: skip
case(
    "unstack",
    lambda x: (lambda a, b, c: a * b + c * c * c)(*shape.unstack(x, axis=1)),
    normal(2, 3, 4),
)
case("unstack: parts", lambda x: shape.unstack(x)[1] ** 2, normal(3, 4))
case("bincount", lambda w: index.bincount(gn.asarray(np.array([1, 0, 1, 3])), w) ** 2, normal(4))
case("unique", lambda x: index.unique_values(x) ** 2, apart(3, 4))
for op in (special.erfc, special.erfcx, special.ndtr, special.log_ndtr, special.log_expit):
    case(op.name, op, apart(3, 4))
for op in (special.gammaln, special.digamma, special.entr):
    case(op.name, op, positive(3, 4))
for op in (special.logit, special.erfinv):
    case(op.name, op, rng.uniform(0.2, 0.8, (3, 4)))
for op in (special.betaln, special.xlogy, special.xlog1py, special.rel_entr):
    case(op.name, op, positive(3, 4), positive(4))
case("polygamma", lambda x: special.polygamma(1, x), positive(3, 4))
case("bessel_i", special.i1, apart(3, 4))
case("half_spectrum", lambda x: gn.abs(fft.rfft(x)) ** 2, normal(3, 5), also=(fft._from_half_spectrum,))
case("transform", lambda x: gn.abs(fft.fftn(x)) ** 2, normal(3, 4))


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(device))  # where the cases' constants go
    check_gradients(f, inputs, device=device)


def test_every_op_with_a_derivative_is_checked() -> None:
    differentiable = {name for name, o in all_ops().items() if o.derivative is not None}
    assert differentiable - COVERED == set()


@pytest.mark.parametrize("name", sorted(all_ops()))
def test_every_op_says_what_it_is(name: str) -> None:
    assert name.startswith("_") or all_ops()[name].__doc__ or all_ops()[name].reference.__name__.startswith("_")
