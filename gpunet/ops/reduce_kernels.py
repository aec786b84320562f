"""Reductions on a device with kernels (kernels/reduce.cu): which axes are kept, which kernel reduces the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.dtypes import default_dtype
from gpunet.ops import launch


class Reduction(NamedTuple):
    """What is done.

    Attributes:
        functor: its name in kernels/reduce.cu.
        computed: of the elements' dtype, the dtypes that it is computed in and that the result has; None if unknown.
        words: of an element's size in memory while it is computed, how many bytes a state takes.
    """

    functor: str
    computed: Any
    words: Any


def _wide(dtype: np.dtype) -> np.dtype:
    """What NumPy adds up integers in."""
    if dtype.kind not in "iub":
        return dtype
    return np.dtype(np.uint64) if dtype.kind == "u" else np.dtype(np.int64)


def _added_up(dtype: np.dtype) -> tuple[np.dtype, np.dtype]:
    return _wide(dtype), _wide(dtype)


def _real(dtype: np.dtype) -> tuple[np.dtype, np.dtype]:
    dtype = default_dtype() if dtype.kind in "iub" else dtype
    return dtype, dtype


def _same(dtype: np.dtype) -> tuple[np.dtype, np.dtype]:
    return dtype, dtype


def _to(result: Any) -> Any:
    return lambda dtype: (dtype, np.dtype(result))


REDUCTIONS = {
    "sum": Reduction("Sum", _added_up, lambda size: size),
    "prod": Reduction("Product", _added_up, lambda size: size),
    "mean": Reduction("Mean", _real, lambda size: size),
    "var": Reduction("Variance", _real, lambda size: 3 * size),
    "std": Reduction("Deviation", _real, lambda size: 3 * size),
    "max": Reduction("Maximum", _same, lambda size: size),
    "min": Reduction("Minimum", _same, lambda size: size),
    "any": Reduction("Any", _to(bool), lambda size: 4),
    "all": Reduction("All", _to(bool), lambda size: 4),
    "count_nonzero": Reduction("Count", _to(np.int64), lambda size: 8),
    "argmax": Reduction("ArgMax", _to(np.int64), lambda size: 16),
    "argmin": Reduction("ArgMin", _to(np.int64), lambda size: 16),
}
# What a reduction of nothing is; the others have no answer.
_OF_NOTHING = {
    "sum": 0,
    "prod": 1,
    "mean": math.nan,
    "var": math.nan,
    "std": math.nan,
    "any": 0,
    "all": 1,
    "count_nonzero": 0,
}


class _Layout(NamedTuple):
    """What `launch.axes_of` asks of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


def reduce(
    launcher: Launcher, name: str, x: Any, axis: Any, keepdims: bool, dtype: Any = None, correction: float = 0.0
) -> Any:
    """A reduction of x over some axes, or NotImplemented.

    Args:
        launcher: of the device of x.
        name: which, as in REDUCTIONS.
        x: any shape.
        axis: an int, a tuple or None for all.
        keepdims: whether the reduced axes stay, with length one.
        dtype: of sums and products; None: NumPy's choice.
        correction: of variances.

    Raises:
        ValueError: there is no such axis, or there are no elements to find an extreme among.
    """
    if x.dtype.name not in launch.NUMBERS:
        return NotImplemented
    axes = tuple(range(x.ndim)) if axis is None else np.lib.array_utils.normalize_axis_tuple(axis, x.ndim)
    reduction = REDUCTIONS[name]
    computed, result = reduction.computed(x.dtype if dtype is None else np.dtype(dtype))
    if dtype is not None:
        computed = result = np.dtype(dtype)
    if computed.name not in launch.NUMBERS or (dtype is not None and computed.kind == "b"):
        return NotImplemented
    if name in ("argmax", "argmin") and len(axes) > 1:  # positions count in C order
        y = reduce(launcher, name, launch.contiguous(launcher, x).reshape(-1), 0, False)
        return y.reshape((1,) * x.ndim) if keepdims else y
    kept = [a for a in range(x.ndim) if a not in axes]
    length = math.prod(x.shape[a] for a in axes)
    out = _empty(launcher, x, kept, result)
    if out.size and not length:
        if name not in _OF_NOTHING:
            raise ValueError(f"{name}: there are no elements along axis {axis} of an array of shape {x.shape}")
        launch.fill(launcher, out, _OF_NOTHING[name])
    elif out.size:
        parameter = float(length) if name == "mean" else max(length - correction, 0.0)
        if not _launch(launcher, reduction, x, kept, axes, out, computed, parameter):
            return NotImplemented
    return out[tuple(None if a in axes else slice(None) for a in range(x.ndim))] if keepdims else out


def _empty(launcher: Launcher, x: Any, kept: list[int], dtype: np.dtype) -> Any:
    """A new array of the axes `kept` of x, which lie in memory in the order in which they lie in x."""
    order = sorted(kept, key=lambda a: (-abs(x.strides[a]), a))
    new = launcher.empty(tuple(x.shape[a] for a in order), dtype)
    return new.transpose(tuple(order.index(a) for a in kept)) if order != kept else new


def _launch(
    launcher: Launcher,
    reduction: Reduction,
    x: Any,
    kept: list[int],
    axes: tuple[int, ...],
    out: Any,
    computed: np.dtype,
    parameter: float,
) -> bool:
    """Write to `out`; False if kernels cannot address x."""
    itemsize = x.dtype.itemsize
    own = _Layout(tuple(x.shape[a] for a in kept), tuple(x.strides[a] for a in kept), x.dtype)
    away = _Layout(tuple(x.shape[a] for a in axes), tuple(x.strides[a] for a in axes), x.dtype)
    outer, inner = launch.axes_of(own.shape, out, own), launch.axes_of(away.shape, away)
    if outer is None or inner is None:
        return False
    outer = outer._replace(strides=outer.strides[1:])
    outputs, length = outer.size, inner.size
    pointer = launcher.pointer(x)
    adjacent = outer.strides[0][-1] == 1 and outputs > 1 and not (inner.strides[0][-1] == 1 and length > 1)
    along, others = (outer, inner) if adjacent else (inner, outer)
    vector = launch.vector_of(along, (itemsize,), (pointer,))
    while vector > 1 and any(s % vector for s in others.strides[0]):
        vector //= 2
    if adjacent:
        vector = min(vector, 4)  # each thread has the states of so many outputs
        width = min(32, 1 << (-(-outputs // vector) - 1).bit_length())
        blocks, group = -(-outputs // (width * vector)), 256 // width
    else:
        width = 1
        group = next(g for g in (4, 32, 256) if length <= 32 * g or g == 256)
        blocks = -(-outputs // (256 // group))
    part, parts = length, 1
    wanted = 4 * launcher.processors
    if blocks < wanted:
        least = 16 * group * (1 if adjacent else vector)  # elements that are worth a block of their own
        parts = max(1, min(-(-wanted // blocks), length // least, 1024))
        part = -(-length // parts)
        part += -part % vector
        parts = -(-length // part)
    size = max(4, computed.itemsize)
    states = launcher.empty((parts * outputs * reduction.words(size),), np.dtype(np.uint8)) if parts > 1 else None
    to = launcher.pointer(out if states is None else states)
    names = reduction.functor, computed.name, out.dtype.name
    args = (
        _POINTERS.pack(pointer, to)
        + outer.pack()[:_AXES]
        + inner.pack()[:_AXES]
        + outer.pack_strides()
        + inner.pack_strides()
        + _REST.pack(outputs, length, part, parameter, parts, width)
    )
    grid = min(blocks, launcher.processors * 16), parts, 1
    launcher.launch(variant_of(*names, x.dtype.name, vector, 0 if adjacent else group), grid, args)
    if states is not None:
        lanes = 1 if outputs >= 4096 else 32
        args = _PARTS.pack(launcher.pointer(states), launcher.pointer(out), outputs, parameter, parts)
        launcher.launch(parts_variant(*names, lanes), (-(-outputs * lanes // 256), 1, 1), args)
    return True


_AXES = 36  # bytes of `Axes` in kernels/array.cuh, where another follows
_POINTERS, _REST, _PARTS = Struct("2P"), Struct("3qd2i"), Struct("2Pqdi4x")


@cache
def variant_of(functor: str, computed: str, result: str, source: str, vector: int, group: int) -> Variant:
    """The kernel of a reduction.

    Args:
        functor: its name in kernels/reduce.cu.
        computed, result, source: names of the dtypes that it is computed in, that the result and the elements have.
        vector: how many elements are read at a time.
        group: how many threads share an output; 0 where outputs are adjacent.
    """
    numbers = launch.NUMBERS
    types = f"{functor}<{numbers[computed]}>, {numbers[result]}, {numbers[source]}, {vector}"
    kernel = f"reduce_rows<{types}, {group}>" if group else f"reduce_columns<{types}>"
    wide = vector * (2 if source == "bfloat16" else np.dtype(source).itemsize) == 16
    return Variant("reduce", kernel, 256, instructions=(r"LDG\S*128",) if wide else ())


@cache
def parts_variant(functor: str, computed: str, result: str, group: int) -> Variant:
    """The kernel that puts the parts of a reduction together."""
    types = f"{functor}<{launch.NUMBERS[computed]}>, {launch.NUMBERS[result]}"
    return Variant("reduce", f"reduce_parts<{types}, {group}>", 256)


def scan(launcher: Launcher, functor: str, x: Any, axis: int, dtype: Any, include_initial: bool) -> Any:
    """Running sums or products of x along an axis, or NotImplemented."""
    if x.dtype.name not in launch.NUMBERS:
        return NotImplemented
    computed = _wide(x.dtype)
    if dtype is not None and np.dtype(dtype) != computed:
        return NotImplemented
    shape = (*x.shape[:axis], x.shape[axis] + include_initial, *x.shape[axis + 1 :])
    y = launch.empty_like(launcher, x, computed, shape)
    if not y.size:
        return y
    rest = [a for a in range(x.ndim) if a != axis]
    source, target = (
        _Layout(tuple(x.shape[a] for a in rest), tuple(v.strides[a] for a in rest), v.dtype) for v in (x, y)
    )
    axes = launch.axes_of(source.shape, target, source)
    if axes is None or x.strides[axis] % x.dtype.itemsize:
        return NotImplemented
    steps = [v.strides[axis] // v.dtype.itemsize for v in (x, y)]
    lines, length = axes.size, x.shape[axis]
    in_rows = length > 1 and (abs(steps[0]) == 1 or lines < 256)
    args = _POINTERS.pack(launcher.pointer(x), launcher.pointer(y)) + axes.pack()
    args += axes._replace(strides=axes.strides[::-1]).pack_strides() + _SCAN.pack(
        lines, length, *steps, include_initial
    )
    variant = scan_variant(functor, computed.name, x.dtype.name, in_rows)
    launcher.launch(variant, launch.grid_of(launcher, lines, 1 if in_rows else 256), args)
    return y


_SCAN = Struct("4qi4x")


@cache
def scan_variant(functor: str, computed: str, source: str, in_rows: bool) -> Variant:
    """The kernel of running sums or products."""
    to, source = launch.NUMBERS[computed], launch.NUMBERS[source]
    return Variant("reduce", f"scan_{'rows' if in_rows else 'lines'}<{functor}<{to}>, {to}, {source}>", 256)


@register_variants
def _variants() -> Iterable[Variant]:
    """Sums in every type and of every form; of other reductions, one each."""
    for name, vector in (("float32", 4), ("float16", 8), ("bfloat16", 8), ("float64", 2)):
        for group in (4, 32, 256):
            yield variant_of("Sum", name, name, name, vector, group)
        yield variant_of("Sum", name, name, name, min(vector, 4), 0)
        yield parts_variant("Sum", name, name, 32)
    yield parts_variant("Sum", "float32", "float32", 1)
    for reduction in ("Mean", "Variance", "Deviation", "Maximum", "ArgMax"):
        result = "int64" if reduction == "ArgMax" else "float32"
        yield variant_of(reduction, "float32", result, "float32", 4, 256)
        yield variant_of(reduction, "float32", result, "float32", 4, 0)
    yield variant_of("Any", "bool", "bool", "bool", 16, 256)
    yield variant_of("Count", "float32", "int64", "float32", 4, 256)
    for in_rows in (False, True):
        yield scan_variant("Sum", "float32", "float32", in_rows)
