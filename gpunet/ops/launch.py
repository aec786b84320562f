"""How ops launch CUDA kernels on arrays: the axes that kernels walk along, sizes of grids, copies between layouts.

Matrix products have a module of their own, `gpunet.ops.gemm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants

MOST_AXES = 8  # as in kernels/array.cuh
_AXES = Struct(f"{1 + MOST_AXES}i4x")
_STRIDES = Struct(f"{MOST_AXES}q")

# What kernels call the dtypes.
NUMBERS = {
    "float16": "half",
    "bfloat16": "bfloat16",
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "uint64": "unsigned long long",
}
FLOATING = ("float32", "float16", "bfloat16", "float64")


class Axes(NamedTuple):
    """The axes that arrays of one shape are walked along together, as few as their strides allow, the last one fastest.

    Attributes:
        shape: their lengths.
        strides: for each array, those along the axes, in elements; 0 where it is broadcast.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def pack(self) -> bytes:
        """`Axes` of kernels/array.cuh."""
        return _AXES.pack(len(self.shape), *self.shape, *(1,) * (MOST_AXES - len(self.shape)))

    def pack_strides(self) -> bytes:
        """The strides of one array after the other."""
        unused = (0,) * (MOST_AXES - len(self.shape))
        return b"".join(_STRIDES.pack(*strides, *unused) for strides in self.strides)

    def is_dense(self) -> bool:
        """Whether all arrays lie alike and without gaps: one axis along which all elements are adjacent."""
        return len(self.shape) == 1 and all(strides == (1,) for strides in self.strides)


def axes_of(shape: Sequence[int], *arrays: Any) -> Axes | None:
    """The axes along which to walk arrays that broadcast to `shape`, ordered by the first one's strides.

    Returns:
        None if kernels cannot address them: more than MOST_AXES axes, one of more than 2^31 - 1 elements, strides that
        are no multiples of the element, or no elements at all.
    """
    described = tuple((a.shape, a.strides, a.dtype.itemsize) for a in arrays)
    return _axes_of(tuple(shape), described)


@lru_cache(maxsize=4096)
def _axes_of(shape: tuple[int, ...], arrays: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]) -> Axes | None:
    columns: list[tuple[int, tuple[int, ...]]] = []
    for i, length in enumerate(shape):
        column = []
        for own_shape, own_strides, itemsize in arrays:
            axis = i - len(shape) + len(own_shape)
            missing = axis < 0 or own_shape[axis] == 1
            if not missing and own_strides[axis] % itemsize:
                return None
            column.append(0 if missing else own_strides[axis] // itemsize)
        if length != 1:
            columns.append((length, tuple(column)))
    if 0 in shape:
        return None
    columns.sort(key=lambda column: -abs(column[1][0]))  # stable: axes of stride 0 stay in their order, at the end
    merged: list[tuple[int, tuple[int, ...]]] = []
    for length, strides in columns:
        if merged and merged[-1][1] == tuple(length * s for s in strides):
            length *= merged.pop()[0]
        merged.append((length, strides))
    merged = merged or [(1, (1,) * len(arrays))]
    if len(merged) > MOST_AXES or max(length for length, _strides in merged) >= 2**31:
        return None
    return Axes(tuple(length for length, _ in merged), tuple(zip(*(strides for _, strides in merged))))


def grid_of(launcher: Launcher, count: int, per_block: int, most: int = 16) -> tuple[int, int, int]:
    """A grid of blocks that stride over `count` things, `per_block` at a time: no more than `most` per processor."""
    return max(1, min(-(-count // per_block), launcher.processors * most)), 1, 1


def vector_of(axes: Axes, itemsizes: Iterable[int], addresses: Iterable[int]) -> int:
    """How many adjacent elements may be moved by one instruction of at most 16 bytes, a power of two: all arrays have
    them adjacent, and in all, the elements at multiples of it are aligned."""
    itemsizes, addresses = tuple(itemsizes), tuple(addresses)
    if any(strides[-1] != 1 for strides in axes.strides):
        return 1
    best = 16 // max(itemsizes)
    while best > 1:
        whole = axes.shape[-1] % best == 0
        fits = all(
            address % (best * size) == 0 and all(s % best == 0 for s in strides[:-1])
            for address, size, strides in zip(addresses, itemsizes, axes.strides)
        )
        if whole and fits:
            break
        best //= 2
    return best


def is_dense(x: Any) -> bool:
    """Whether x lies without gaps, in whatever order of axes."""
    axes = axes_of(x.shape, x)
    return not x.size or (axes is not None and axes.is_dense())


def empty_like(launcher: Launcher, x: Any, dtype: Any = None, shape: Any = None) -> Any:
    """A new array whose axes are in memory in the same order as those of x, without gaps."""
    shape = x.shape if shape is None else tuple(shape)
    order = sorted(range(x.ndim), key=lambda i: (-abs(x.strides[i]), i))
    new = launcher.empty(tuple(shape[i] for i in order), x.dtype if dtype is None else dtype)
    return new.transpose(tuple(order.index(i) for i in range(x.ndim)))


def channels_last(launcher: Launcher, x: Any) -> Any:
    """x (N, C, *spatial) itself if its channels are adjacent and it has no gaps; else a copy that lies so."""
    last = x.transpose(0, *range(2, x.ndim), 1)
    if not last.flags.c_contiguous:
        last = copy(launcher, last)
    return last.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def contiguous(launcher: Launcher, x: Any) -> Any:
    """x itself if it is C-contiguous; else a copy that is."""
    return x if x.flags.c_contiguous else copy(launcher, x)


def copy(launcher: Launcher, x: Any, dtype: Any = None) -> Any:
    """A C-contiguous copy of x, of another dtype if one is given. NotImplemented if no kernel can make it."""
    y = launcher.empty(x.shape, x.dtype if dtype is None else dtype)
    return y if copy_into(launcher, y, x) else NotImplemented


def copy_into(launcher: Launcher, y: Any, x: Any) -> bool:
    """Replace the elements of y by those of x, which is broadcast to its shape. False if no kernel can do it."""
    if y.dtype.name not in NUMBERS or x.dtype.name not in NUMBERS:
        return False
    if not y.size:
        return True
    axes = axes_of(y.shape, y, x)
    if axes is None:
        return False
    pointers = launcher.pointer(x), launcher.pointer(y)
    last = len(axes.shape) - 1
    to_strides, from_strides = axes.strides
    turned = next((i for i in range(last) if from_strides[i] == 1 and axes.shape[i] > 1), -1)
    if to_strides[last] == 1 and from_strides[last] > 1 and turned >= 0:
        variant = _copy_variant(y.dtype.name, x.dtype.name, 0)
        count = math.prod(n for i, n in enumerate(axes.shape) if i not in (last, turned))
        count *= -(-axes.shape[last] // 32) * -(-axes.shape[turned] // 32)
        grid = grid_of(launcher, count, 1, most=64)
    else:
        vector = vector_of(axes, (y.dtype.itemsize, x.dtype.itemsize), reversed(pointers))
        variant = _copy_variant(y.dtype.name, x.dtype.name, vector)
        count = axes.size // vector
        grid = grid_of(launcher, count, 256)
    strides = axes._replace(strides=(from_strides, to_strides)).pack_strides()
    launcher.launch(variant, grid, _PAIR.pack(*pointers) + axes.pack() + strides + _REST.pack(count, turned))
    return True


_PAIR = Struct("2P")
_REST = Struct("qi4x")


@cache
def _copy_variant(to: str, source: str, vector: int) -> Variant:
    """vector: how many elements a thread moves; 0 for `copy_turned`."""
    if not vector:
        return Variant("copy", f"copy_turned<{NUMBERS[to]}, {NUMBERS[source]}>", 256)
    return Variant("copy", f"copy<{NUMBERS[to]}, {NUMBERS[source]}, {vector}>", 256)


def full(launcher: Launcher, shape: tuple[int, ...], value: Any, dtype: Any) -> Any:
    """A new C-contiguous array whose elements all are `value`."""
    y = launcher.empty(shape, dtype)
    if y.size:
        fill(launcher, y, value)
    return y


def fill(launcher: Launcher, y: Any, value: Any) -> None:
    """Make `value` all elements of y, which lies without gaps."""
    number = np.asarray(value).astype(y.dtype).tobytes()
    variant = Variant("copy", f"fill<unsigned {_WORDS[y.dtype.itemsize]}>", 256)
    args = _FILL.pack(launcher.pointer(y), y.size, number.ljust(8, b"\0"))
    launcher.launch(variant, grid_of(launcher, y.size, 256 * 16 // y.dtype.itemsize), args)


_FILL = Struct("Pq8s")
_WORDS = {1: "char", 2: "short", 4: "int", 8: "long long"}


@register_variants
def _variants() -> Iterable[Variant]:
    """Those of floating-point types among themselves; the others differ only in what a conversion is."""
    for to in FLOATING:
        for source in FLOATING:
            widest = 16 // max(_SIZES[to], _SIZES[source])
            for vector in (0, 1, widest):
                yield _copy_variant(to, source, vector)
    for word in _WORDS.values():
        yield Variant("copy", f"fill<unsigned {word}>", 256)


_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
