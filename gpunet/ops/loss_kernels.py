"""How the CUDA kernels of losses are launched: kernels/loss.cu."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from struct import Struct
from typing import Any

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.ops import launch, row_kernels
from gpunet.ops.launch import FLOATING, MOST_AXES, NUMBERS

_CROSS_ENTROPY = Struct("5P2qd")
_CLASS_SUMS = Struct("8P3qi4x")
_POINTERS = Struct("4P")
_PART = 1 << 15  # rows that a block adds up; of more, several do


def cross_entropy(
    launcher: Launcher, x: Any, target: Any, weight: Any, smoothing: float, ignored: int, reduction: str, kept: Any
) -> Any:
    """What the op of that name returns, or NotImplemented."""
    if not _suit(x, target, weight):
        return NotImplemented
    n = x.shape[0]
    if not n:
        if reduction == "none":
            return launcher.empty((0,), x.dtype)
        return launch.full(launcher, (), float("nan") if reduction == "mean" else 0.0, x.dtype)
    with_gradient = kept is not None and reduction != "none"
    x, target, weight = _in_order(launcher, x, target, weight)
    losses = launcher.empty((n,), _wide(x.dtype.name))
    share = None
    if with_gradient and reduction == "mean":
        share = launcher.empty((), losses.dtype)
        _add_up(launcher, None, target, weight, x, ignored, None, share, True)
    dx = launch.empty_like(launcher, x) if with_gradient else None
    if not _run(launcher, x, target, weight, None, share, losses, dx, ignored, smoothing):
        return NotImplemented
    if with_gradient:
        kept.append(dx)
    if reduction == "none":
        return losses if losses.dtype == x.dtype else launch.copy(launcher, losses, x.dtype)
    total = launcher.empty((), x.dtype)
    _add_up(launcher, losses, target, weight, x, ignored, total, None, reduction == "mean")
    return total


def cross_entropy_grad(
    launcher: Launcher, g: Any, x: Any, target: Any, weight: Any, smoothing: float, ignored: int, reduction: str
) -> Any:
    """What the op of that name returns, or NotImplemented."""
    if not _suit(x, target, weight) or g.dtype != x.dtype or g.shape not in ((), x.shape[:1]):
        return NotImplemented
    x, target, weight = _in_order(launcher, x, target, weight)
    dx = launch.empty_like(launcher, x)
    if not x.size:
        return dx
    share = None
    if reduction == "mean":
        share = launcher.empty((), _wide(x.dtype.name))
        _add_up(launcher, None, target, weight, x, ignored, None, share, True)
    return dx if _run(launcher, x, target, weight, g, share, None, dx, ignored, smoothing) else NotImplemented


def _suit(x: Any, target: Any, weight: Any) -> bool:
    return (
        x.ndim == 2
        and x.shape[1] > 0
        and x.dtype.name in FLOATING
        and target.dtype == np.int64
        and target.shape == x.shape[:1]
        and (weight is None or (weight.dtype == x.dtype and weight.shape == x.shape[1:]))
    )


def _in_order(launcher: Launcher, x: Any, target: Any, weight: Any) -> tuple[Any, Any, Any]:
    """The arguments as kernels take them: classes adjacent, and indices and weights without gaps."""
    if x.shape[1] > 1 and x.strides[1] != x.dtype.itemsize:
        x = launch.copy(launcher, x)
    return x, launch.contiguous(launcher, target), weight if weight is None else launch.contiguous(launcher, weight)


def _wide(dtype: str) -> np.dtype:
    """The type that numbers of another are computed in."""
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def _address(launcher: Launcher, a: Any) -> int:
    return 0 if a is None else launcher.pointer(a)


def _run(
    launcher: Launcher,
    x: Any,
    target: Any,
    weight: Any,
    g: Any,
    share: Any,
    losses: Any,
    dx: Any,
    ignored: int,
    s: float,
) -> bool:
    """Compute the losses, the gradient or both, where arrays for them are given. False if no kernel can."""
    rows = row_kernels.make_rows(launcher, 1, (x,), x if dx is None else dx)
    if rows is None:
        return False
    step = g.strides[0] // g.dtype.itemsize if g is not None and g.ndim else 0
    pointers = (_address(launcher, a) for a in (target, weight, g, share, losses))
    more = _CROSS_ENTROPY.pack(*pointers, step, ignored, s)
    body = _body(x.dtype.name, losses is not None, dx is not None)
    row_kernels.run(launcher, "loss", body, rows, more, rereads=dx is not None)
    return True


def _add_up(
    launcher: Launcher, losses: Any, target: Any, weight: Any, x: Any, ignored: int, result: Any, share: Any, mean: bool
) -> None:
    """The sum or mean of losses into `result`; or what each counts in the mean into `share`."""
    n, classes = x.shape
    variant, parts = _sums_variant(x.dtype.name), min(-(-n // _PART), 256)
    rest, ends = (classes, ignored, mean), (_address(launcher, result), _address(launcher, share))
    many = parts > 1
    partial = [launcher.empty((parts,), _wide(x.dtype.name)) if many else None for _ in range(2)]
    sums = [_address(launcher, a) for a in partial]
    heads = [_address(launcher, losses), launcher.pointer(target), 0, _address(launcher, weight), *sums]
    launcher.launch(variant, (parts, 1, 1), _CLASS_SUMS.pack(*heads, *((0, 0) if many else ends), n, *rest))
    if many:
        launcher.launch(variant, (1, 1, 1), _CLASS_SUMS.pack(sums[0], 0, sums[1], 0, 0, 0, *ends, parts, *rest))


def binary_cross_entropy(launcher: Launcher, x: Any, target: Any, g: Any = None) -> Any:
    """What the op of that name returns, or given g, its gradient with respect to x; or NotImplemented."""
    arrays = [a for a in (x, target, g) if a is not None]
    if x.dtype.name not in FLOATING or any(a.dtype != x.dtype or a.shape != x.shape for a in arrays):
        return NotImplemented
    y = launch.empty_like(launcher, x)
    if not y.size:
        return y
    axes = launch.axes_of(x.shape, y, *arrays, *[x] * (3 - len(arrays)))
    if axes is None:
        return NotImplemented
    strides = (*axes.strides[1:], axes.strides[0])
    addresses = [launcher.pointer(a) for a in (*arrays, *[x] * (3 - len(arrays)), y)]
    full = 16 // x.dtype.itemsize
    reordered = axes._replace(strides=strides)
    vector = full if launch.vector_of(reordered, [x.dtype.itemsize] * 4, addresses) == full else 1
    count = axes.size // vector
    packed = _POINTERS.pack(*addresses) + axes.pack() + reordered.pack_strides() + _COUNT.pack(count)
    launcher.launch(_binary_variant(x.dtype.name, vector, g is not None), launch.grid_of(launcher, count, 256), packed)
    return y


_COUNT = Struct("q")


def scaled(launcher: Launcher, x: Any, factor: Any) -> Any:
    """x, dense, multiplied in place by a number in memory, or NotImplemented."""
    if x.dtype.name not in FLOATING or factor.dtype != x.dtype or factor.size != 1 or not launch.is_dense(x):
        return NotImplemented
    if x.size:
        unused = bytes(_ELEMENTS - _POINTERS.size - _COUNT.size)
        packed = _POINTERS.pack(launcher.pointer(factor), 0, 0, launcher.pointer(x)) + unused + _COUNT.pack(x.size)
        grid = launch.grid_of(launcher, x.size, 256 * 16 // x.dtype.itemsize)
        launcher.launch(_scale_variant(x.dtype.name), grid, packed)
    return x


_ELEMENTS = _POINTERS.size + 40 + 4 * MOST_AXES * 8 + _COUNT.size  # bytes of `ElementsArgs`


# --- variants ---------------------------------------------------------------------------------------------------------


def _body(dtype: str, with_loss: bool, with_gradient: bool) -> str:
    return f"CrossEntropy<{NUMBERS[dtype]}, {str(with_loss).lower()}, {str(with_gradient).lower()}>"


@cache
def _sums_variant(dtype: str) -> Variant:
    return Variant("loss", f"class_sums<{NUMBERS[dtype]}>", 512)


@cache
def _binary_variant(dtype: str, vector: int, gradient: bool) -> Variant:
    expression = f"binary_cross_entropy<{NUMBERS[dtype]}, {vector}, {str(gradient).lower()}>"
    return Variant("loss", expression, 256, instructions=(r"LDG\S*128",) if vector > 1 else ())


@cache
def _scale_variant(dtype: str) -> Variant:
    return Variant("loss", f"scale<{NUMBERS[dtype]}>", 256, instructions=(r"LDG\S*128",))


@register_variants
def _variants() -> Iterable[Variant]:
    for dtype, vector in (("float32", 4), ("bfloat16", 8)):
        for outputs in ((True, False), (False, True), (True, True)):
            body = _body(dtype, *outputs)
            for lanes, per in ((4, 1), (32, 4), (256, 4)):
                yield row_kernels.register_variant("loss", body, vector, lanes, per)
            yield row_kernels.long_variant("loss", body, vector, 0)
            if outputs[1]:
                yield row_kernels.long_variant("loss", body, vector, (208 if dtype == "float32" else 112) << 10)
        yield _sums_variant(dtype)
        yield _scale_variant(dtype)
    for gradient in (False, True):
        yield _binary_variant("float32", 4, gradient)
