"""How the CUDA kernels of attention are launched: kernels/attention.cu and kernels/attention_mma.cu."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from math import ceil, prod
from struct import Struct
from typing import Any

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.backends.occupancy import limits
from gpunet.dtypes import get_float32_precision
from gpunet.ops import launch
from gpunet.ops.launch import FLOATING, MOST_AXES, NUMBERS, Axes

_MATRICES = Struct(f"P{MOST_AXES}qq")
_MASK = Struct(f"P{MOST_AXES}q2q3P")
_REST = Struct("5Q2d8iI4x")
_MOST = 2**31 - 2**10
_NAMES = ("q", "k", "v", "y", "g", "dq", "dk", "dv")


# --- arguments --------------------------------------------------------------------------------------------------------


def _items(leading: tuple[int, ...], arrays: Sequence[Any]) -> Axes:
    """The leading axes, in C order, as few as the strides of all arrays allow."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for i, length in enumerate(leading, -len(leading)):
        if length == 1:
            continue
        strides = tuple(_stride(a, i) for a in arrays)
        if merged and merged[-1][1] == tuple(length * s for s in strides):
            length *= merged.pop()[0]
        merged.append((length, strides))
    merged = merged or [(1, (0,) * len(arrays))]
    return Axes(tuple(n for n, _ in merged), tuple(zip(*(s for _, s in merged))))


def _stride(a: Any, axis: int) -> int:
    """The stride, in elements, along a leading axis, of which -1 is the last; 0 where `a` is broadcast."""
    at = a.ndim - 2 + axis
    return 0 if at < 0 or a.shape[at] == 1 else a.strides[at] // a.dtype.itemsize


def _row(a: Any, axis: int = -2) -> int:
    return 0 if a.shape[axis] == 1 else a.strides[axis] // a.dtype.itemsize


def _pack(
    launcher: Launcher,
    leading: tuple[int, ...],
    arrays: dict[str, Any],
    mask: Any,
    per_query: tuple[Any, Any, Any],
    groups: int,
    how: dict[str, Any],
) -> bytes | None:
    """`AttentionArgs` of kernels/attention.cuh, or None where there are too many axes."""
    named = {name: arrays[name] for name in _NAMES if name in arrays}
    if mask is not None:
        named["mask"] = mask
    items = _items(leading, list(named.values()))
    if len(items.shape) > MOST_AXES:
        return None
    unused = (0,) * (MOST_AXES - len(items.shape))
    strides = {name: (*strides, *unused) for name, strides in zip(named, items.strides)}
    packed = b""
    for name in _NAMES:
        if name in named:
            a = named[name]
            packed += _MATRICES.pack(launcher.pointer(a), *strides[name], _row(a))
        else:
            packed += bytes(_MATRICES.size)
    pointers = [0 if a is None else launcher.pointer(a) for a in per_query]
    if mask is None:
        packed += _MASK.pack(0, *(0,) * MOST_AXES, 0, 0, *pointers)
    else:
        packed += _MASK.pack(launcher.pointer(mask), *strides["mask"], _row(mask), _row(mask, -1), *pointers)
    p, key = how["dropout"], how["key"]
    draw = (key.seed % 2**64, *key.stream, key.offset % 2**64) if p else (0,) * 5
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    kind = 0 if mask is None else 1 if mask.dtype == "bool" else 2
    sizes = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], prod(leading), groups
    threshold = ceil(float(np.float32(p)) * 2**24)  # random numbers are multiples of 2^-24
    rest = _REST.pack(*draw, how["scale"], 1.0 / (1.0 - p), *sizes, kind, how["causal"], threshold)
    return packed + items.pack() + rest


def _suit(*arrays: Any, mask: Any) -> bool:
    """Whether kernels take q, k, v, and what else has their dtype."""
    dtype = arrays[0].dtype
    return (
        dtype.name in FLOATING
        and all(a.dtype == dtype for a in arrays)
        and (mask is None or mask.dtype == "bool" or mask.dtype == dtype)
        and max(arrays[0].shape[-1], arrays[2].shape[-1]) <= 256
        and min(arrays[0].shape[-1], arrays[2].shape[-1]) > 0
        and all(s % a.dtype.itemsize == 0 for a in (*arrays, *([] if mask is None else [mask])) for s in a.strides)
        and max(arrays[0].shape[-2], arrays[1].shape[-2]) < _MOST
    )


def _rows_in_one_piece(launcher: Launcher, *arrays: Any) -> list[Any]:
    """Arrays whose elements are adjacent along the last axis: themselves, or copies."""
    return [a if a.shape[-1] == 1 or _row(a, -1) == 1 else launch.copy(launcher, a) for a in arrays]


def _as_matrices(mask: Any) -> Any:
    return mask if mask is None or mask.ndim > 1 else mask.reshape((1,) * (2 - mask.ndim) + mask.shape)


def _by_position(launcher: Launcher, q: Any, leading: tuple[int, ...], features: int) -> Any:
    """An empty array (*leading, length, features) of the length of q, in whose memory heads lie within positions, so
    that to put them side by side is no work; and positions within samples, or as they do in q."""
    length, n = q.shape[-2], len(leading)
    if n < 2:
        return launcher.empty((*leading, length, features), q.dtype)
    if q.strides[-2] > q.strides[0]:
        return launcher.empty((length, *leading, features), q.dtype).transpose(*range(1, n + 1), 0, n + 1)
    y = launcher.empty((leading[0], length, *leading[1:], features), q.dtype)
    return y.transpose(0, *range(2, n + 1), 1, n + 1)


def _gradient_of(launcher: Launcher, a: Any, leading: tuple[int, ...]) -> Any:
    """An empty array for the gradient of a, with these leading axes, and with axes in memory as those of a."""
    if a.shape[:-2] == leading and abs(a.strides[-1]) == min(map(abs, a.strides)):
        return launch.empty_like(launcher, a)
    return launcher.empty((*leading, *a.shape[-2:]), a.dtype)


def _shared_heads(leading: tuple[int, ...], k: Any, v: Any) -> tuple[int, tuple[int, ...]]:
    """How many items that follow each other share keys and values, and the leading axes of the gradients of these."""
    groups, of_keys = 1, list(leading)
    for i in range(len(leading) - 1, -1, -1):
        axis = i - len(leading)
        if any(a.ndim - 2 + axis >= 0 and a.shape[a.ndim - 2 + axis] != 1 for a in (k, v)):
            break
        groups *= leading[i]
        of_keys[i] = 1
    return groups, tuple(of_keys)


# --- launches ---------------------------------------------------------------------------------------------------------


def forward(launcher: Launcher, q: Any, k: Any, v: Any, mask: Any, **how: Any) -> Any:
    """What the op `attention` returns, or NotImplemented."""
    if not _suit(q, k, v, mask=mask):
        return NotImplemented
    mask = _as_matrices(mask)
    leading = np.broadcast_shapes(*(a.shape[:-2] for a in (q, k, v, mask) if a is not None))
    y = _by_position(launcher, q, leading, v.shape[-1])
    logarithm = launcher.empty((*leading, q.shape[-2]), _wide(q.dtype.name))
    if not y.size:
        return y, logarithm
    if not k.shape[-2]:
        launch.fill(launcher, y, 0.0)
        launch.fill(launcher, logarithm, float("inf"))
        return y, logarithm
    q, k, v = _rows_in_one_piece(launcher, q, k, v)
    variant, rows = _chosen(launcher, q.dtype.name, max(q.shape[-1], v.shape[-1]), None)
    packed = _pack(launcher, leading, {"q": q, "k": k, "v": v, "y": y}, mask, (logarithm, None, None), 1, how)
    if packed is None or not _launchable(launcher, variant):
        return NotImplemented
    launcher.launch(variant, (prod(leading) * -(-q.shape[-2] // rows), 1, 1), packed)
    return y, logarithm


def backward(
    launcher: Launcher, g: Any, g_logarithm: Any, y: Any, logarithm: Any, q: Any, k: Any, v: Any, mask: Any, **how: Any
) -> Any:
    """What the op `attention_grad` returns, in the dtype of q, or NotImplemented."""
    if not _suit(q, k, v, *(a for a in (g, y) if a is not None), mask=mask):
        return NotImplemented
    leading, length = y.shape[:-2], y.shape[-2]
    groups, of_keys = _shared_heads(leading, k, v)
    if not (y.size and k.size):
        return tuple(launch.full(launcher, (*leading, *a.shape[-2:]), 0.0, a.dtype) for a in (q, k, v))
    if g is None:
        g = launch.full(launcher, y.shape, 0.0, y.dtype)
    per_query = [a if a is None else launch.contiguous(launcher, a) for a in (logarithm, g_logarithm)]
    delta = launcher.empty(logarithm.shape, logarithm.dtype)
    g, y, q, k, v = _rows_in_one_piece(launcher, g, y, q, k, v)
    gradients = tuple(_gradient_of(launcher, a, n) for a, n in ((q, leading), (k, of_keys), (v, of_keys)))
    arrays = dict(zip(_NAMES, (q, k, v, y, g, *gradients)))
    packed = _pack(launcher, leading, arrays, _as_matrices(mask), (per_query[0], delta, per_query[1]), groups, how)
    dtype, width, items = q.dtype.name, max(q.shape[-1], v.shape[-1]), prod(leading)
    launches = [(_chosen(launcher, dtype, width, False), items, length)]
    launches.append((_chosen(launcher, dtype, width, True), items // groups, k.shape[-2]))
    if packed is None or not all(_launchable(launcher, variant) for (variant, _), _, _ in launches):
        return NotImplemented
    launcher.launch(_delta_variant(dtype), launch.grid_of(launcher, items * length, 8), packed)
    for (variant, rows), matrices, count in launches:
        launcher.launch(variant, (matrices * -(-count // rows), 1, 1), packed)
    return gradients


def _chosen(launcher: Launcher, dtype: str, width: int, of_keys: bool | None) -> tuple[Variant, int]:
    """The kernel for heads of that width, and how many queries or keys a block of it has.

    Args:
        of_keys: whether it is for the gradients of keys and values, or of queries; None for the forward pass.
    """
    compute = "tf32" if dtype == "float32" and get_float32_precision() == "high" else dtype
    on_cores = _tensor_core_variant(compute, width, of_keys)
    if on_cores and on_cores.runs_on(launcher.architecture) and _launchable(launcher, on_cores):
        return on_cores, _OWN
    return _forward_variant(dtype, width) if of_keys is None else _backward_variant(dtype, width, of_keys)


def _launchable(launcher: Launcher, variant: Variant) -> bool:
    """Whether a block may have so much shared memory."""
    return variant.shared <= limits(launcher.architecture).block_shared


# --- variants ---------------------------------------------------------------------------------------------------------

# Rows of a block's own tile and of those it goes through, by the width of heads.
_FORWARD = {32: (64, 64), 64: (64, 32), 128: (32, 32), 256: (32, 16)}
_FORWARD_DOUBLE = {32: (32, 32), 64: (32, 32), 128: (32, 16), 256: (16, 16)}
_BACKWARD = {32: (64, 32), 64: (64, 32), 128: (32, 32), 256: (16, 16)}
_BACKWARD_DOUBLE = {32: (32, 32), 64: (32, 16), 128: (16, 16), 256: (16, 16)}


def _wide(dtype: str) -> str:
    """The type that numbers of another are computed in."""
    return "float64" if dtype == "float64" else "float32"


def _width(width: int) -> int:
    return next(w for w in _FORWARD if width <= w)


@cache
def _forward_variant(dtype: str, width: int) -> tuple[Variant, int]:
    """The kernel for heads of that width, and how many queries a block of it has."""
    width = _width(width)
    own, others = (_FORWARD_DOUBLE if dtype == "float64" else _FORWARD)[width]
    shared = _shared(dtype, width, own, others, own + others)
    expression = f"attention_forward<{NUMBERS[dtype]}, {width}, {own}, {others}>"
    return Variant("attention", expression, 256, shared, instructions=(r"LDG\S*128",)), own


@cache
def _backward_variant(dtype: str, width: int, of_keys: bool) -> tuple[Variant, int]:
    """The kernel for heads of that width, and how many queries or keys a block of it has."""
    width = _width(width)
    own, others = (_BACKWARD_DOUBLE if dtype == "float64" else _BACKWARD)[width]
    shared = _shared(dtype, width, own, others, 2 * (own + others))
    expression = f"attention_backward<{NUMBERS[dtype]}, {width}, {own}, {others}, {str(of_keys).lower()}>"
    return Variant("attention", expression, 256, shared, instructions=(r"LDG\S*128",)), own


def _shared(dtype: str, width: int, own: int, others: int, rows: int) -> int:
    """Bytes of shared memory: rows of heads, a tile of weights, and dropout's bits."""
    itemsize = 8 if dtype == "float64" else 4
    pad = 16 // itemsize
    bits = max(own * (others // 8 + 1), others * (own // 8 + 1))
    return itemsize * (rows * (width + pad) + own * (others + pad)) + -(-bits // 16) * 16


# Rows of a block's own tile; and of those that it goes through, by the width of heads, forwards and backwards.
_OWN = 64
_HALF = {32: 64, 64: 64, 128: 64, 256: 32}, {32: 64, 64: 64, 128: 32}
_TF32 = {32: 64, 64: 64, 128: 32}, {32: 64, 64: 32, 128: 16}
_ON_CORES = {"float16": _HALF, "bfloat16": _HALF, "tf32": _TF32}


@cache
def _tensor_core_variant(dtype: str, width: int, of_keys: bool | None) -> Variant | None:
    """The kernel of kernels/attention_mma.cu for heads of that width, if there is one; see `_chosen`."""
    width = _width(width)
    if dtype not in _ON_CORES:
        return None
    others = _ON_CORES[dtype][of_keys is not None].get(width)
    if others is None:
        return None
    itemsize = 4 if dtype == "tf32" else 2
    rows = _OWN + 2 * others if of_keys is None else 2 * _OWN + 4 * others
    bits = max(_OWN * (others // 8 + 1), others * (_OWN // 8 + 1))
    shared = rows * (width * itemsize + 16) + -(-bits // 16) * 16
    name, last = ("forward", "") if of_keys is None else ("backward", f", {str(of_keys).lower()}")
    expression = f"attention_{name}<{NUMBERS.get(dtype, dtype)}, {width}, {others}{last}>"
    return Variant("attention_mma", expression, 128, shared, "sm_80+", instructions=("HMMA", "LDSM", "LDGSTS"))


@cache
def _delta_variant(dtype: str) -> Variant:
    return Variant("attention", f"attention_delta<{NUMBERS[dtype]}>", 256, instructions=(r"LDG\S*128",))


@register_variants
def _variants() -> Iterable[Variant]:
    for dtype, widths in (("float32", (32, 64, 128, 256)), ("bfloat16", (64,)), ("float64", (32,))):
        yield _delta_variant(dtype)
        for width in widths:
            yield _forward_variant(dtype, width)[0]
            yield _backward_variant(dtype, width, False)[0]
            yield _backward_variant(dtype, width, True)[0]
    on_cores = [("bfloat16", width) for width in _HALF[0]] + [("float16", 64), ("tf32", 64), ("tf32", 128)]
    for (dtype, width), of_keys in product(on_cores, (None, False, True)):
        variant = _tensor_core_variant(dtype, width, of_keys)
        if variant:
            yield variant
