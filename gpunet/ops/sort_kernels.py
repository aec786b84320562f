"""Sorting on a device with kernels (kernels/sort.cu), stable, by unsigned keys of as many bits as there are."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.ops import launch, reduce_kernels

_DIGITS, _TILE, _BITS = 16, 1024, 4  # as in kernels/sort.cu
_RADIX, _KEYS, _LINES = Struct("6Pq2i"), Struct("2P"), Struct("2Pqi4x")
_REST = Struct("qi4x")
_KEY_NAMES = {4: "unsigned", 8: "unsigned long long"}


def order_of(launcher: Launcher, keys: Any, bits: int, positions: Any = None) -> tuple[Any, Any]:
    """Sort keys by their lowest `bits`.

    Args:
        launcher: of their device.
        keys: one-dimensional and contiguous, uint32 or uint64, of less than 2^31 elements.
        bits: how many bits of them can be set.
        positions: int32, what moves with them; None for 0, 1, 2 ...

    Returns:
        The sorted keys, and the positions that they had.
    """
    n = keys.size
    tiles = -(-n // _TILE)
    key = _KEY_NAMES[keys.dtype.itemsize]
    for shift in range(0, max(bits, 1), _BITS):
        counts = launcher.empty((_DIGITS * tiles,), np.dtype(np.int32))
        moved, new_positions = launcher.empty((n,), keys.dtype), launcher.empty((n,), np.dtype(np.int32))
        pointers = [launcher.pointer(keys), 0 if positions is None else launcher.pointer(positions)]
        args = _RADIX.pack(*pointers, 0, launcher.pointer(counts), 0, 0, n, shift, tiles)
        launcher.launch(Variant("sort", f"radix_count<{key}>", 256), (tiles, 1, 1), args)
        sums = reduce_kernels.scan(launcher, "Sum", counts, 0, None, True)
        pointers += [launcher.pointer(sums), 0, launcher.pointer(moved), launcher.pointer(new_positions)]
        args = _RADIX.pack(*pointers, n, shift, tiles)
        launcher.launch(Variant("sort", f"radix_scatter<{key}>", 256), (tiles, 1, 1), args)
        keys, positions = moved, new_positions
    return keys, positions


def argsort(launcher: Launcher, x: Any, axis: int, descending: bool) -> Any:
    """The indices (int64) that sort x along an axis, equal elements in their order, or NotImplemented."""
    if x.dtype.name not in launch.NUMBERS or x.size >= 2**31:
        return NotImplemented
    lines = x.transpose(*(a for a in range(x.ndim) if a != axis), axis)
    y = launcher.empty(x.shape, np.dtype(np.int64))
    turned = y.transpose(*(a for a in range(x.ndim) if a != axis), axis)
    if not x.size:
        return y
    axes, to_axes = (
        launch.axes_of(lines.shape, _InOrder(lines), lines),
        launch.axes_of(lines.shape, _InOrder(lines), turned),
    )
    if axes is None or to_axes is None:
        return NotImplemented
    size = max(4, x.dtype.itemsize)
    keys = launcher.empty((x.size,), np.dtype(f"uint{8 * size}"))
    args = _KEYS.pack(launcher.pointer(x), launcher.pointer(keys)) + axes.pack()
    args += axes._replace(strides=axes.strides[1:]).pack_strides() + _REST.pack(x.size, descending)
    variant = Variant("sort", f"sort_keys<{launch.NUMBERS[x.dtype.name]}, {_KEY_NAMES[size]}>", 256)
    grid = launch.grid_of(launcher, x.size, 256)
    launcher.launch(variant, grid, args)
    bits = 1 if x.dtype.kind == "b" else 8 * x.dtype.itemsize
    positions = order_of(launcher, keys, bits)[1]
    length = x.shape[axis]
    if length != x.size:
        keys = launcher.empty((x.size,), np.dtype(np.uint32))
        args = _LINES.pack(launcher.pointer(positions), launcher.pointer(keys), x.size, length)
        launcher.launch(Variant("sort", "line_keys<unsigned>", 256), grid, args)
        positions = order_of(launcher, keys, (x.size // length - 1).bit_length(), positions)[1]
    args = _KEYS.pack(launcher.pointer(positions), launcher.pointer(y)) + to_axes.pack()
    args += to_axes._replace(strides=to_axes.strides[1:]).pack_strides() + _REST.pack(x.size, length)
    launcher.launch(Variant("sort", "within_lines<long long>", 256), grid, args)
    return y


class _InOrder:
    """What `launch.axes_of` takes for a C-contiguous array of the shape of another."""

    def __init__(self, x: Any) -> None:
        self.shape, self.dtype = x.shape, np.dtype(np.uint8)
        strides = [1] * (x.ndim + 1)
        for i in range(x.ndim - 1, -1, -1):
            strides[i] = strides[i + 1] * max(x.shape[i], 1)
        self.strides = tuple(strides[1:])


@register_variants
def _variants() -> Iterable[Variant]:
    for key in _KEY_NAMES.values():
        yield Variant("sort", f"radix_count<{key}>", 256)
        yield Variant("sort", f"radix_scatter<{key}>", 256)
    for name in ("float", "half", "bfloat16", "int"):
        yield Variant("sort", f"sort_keys<{name}, unsigned>", 256)
    yield Variant("sort", "sort_keys<double, unsigned long long>", 256)
    yield Variant("sort", "line_keys<unsigned>", 256)
    yield Variant("sort", "within_lines<long long>", 256)
