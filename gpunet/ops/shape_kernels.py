"""Where elements must move to be otherwise arranged, on a device with kernels: copies by kernels/copy.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from gpunet.backends.kernel import Launcher
from gpunet.ops import index_kernels, launch


@lru_cache(maxsize=4096)
def keeps_places(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether an array can be seen in another shape without moving its elements."""
    old = [(n, s) for n, s in zip(shape, strides) if n != 1]
    lengths = [n for n in new if n != 1]
    if 0 in shape or math.prod(shape) != math.prod(new):
        return 0 in shape
    i = j = 0
    while i < len(old) and j < len(lengths):
        first, here, there = i, old[i][0], lengths[j]
        while here != there:  # axes of both that hold the same elements
            if here < there:
                i += 1
                here *= old[i][0]
            else:
                j += 1
                there *= lengths[j]
        if any(old[k][1] != old[k + 1][0] * old[k + 1][1] for k in range(first, i)):
            return False
        i, j = i + 1, j + 1
    return True


def reshape(launcher: Launcher, x: Any, shape: Any, copy: bool | None) -> Any:
    """x in another shape, as a view where that is possible, or NotImplemented."""
    if copy is False:
        return NotImplemented
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if copy or not x.flags.c_contiguous:
        whole = tuple(n if n >= 0 else x.size // max(1, -math.prod(shape)) for n in shape)
        if copy or not keeps_places(x.shape, x.strides, whole):
            x = launch.copy(launcher, x)
    return x if x is NotImplemented else x.reshape(shape)


def astype(launcher: Launcher, x: Any, dtype: Any) -> Any:
    """x with elements of another type, its axes in memory as they are, or NotImplemented."""
    dtype = np.dtype(dtype)
    if dtype.name not in launch.NUMBERS or x.dtype.name not in launch.NUMBERS:
        return NotImplemented
    y = launch.empty_like(launcher, x, dtype)
    return y if launch.copy_into(launcher, y, x) else NotImplemented


def concat(launcher: Launcher, arrays: Sequence[Any], axis: int | None) -> Any:
    """Arrays joined along an axis, or NotImplemented. The result lies in memory as the first of them.

    Raises:
        ValueError: they do not fit.
    """
    if axis is None:
        arrays, axis = [reshape(launcher, a, (-1,), None) for a in arrays], 0
        if any(a is NotImplemented for a in arrays):
            return NotImplemented
    first = arrays[0]
    if first.ndim == 0 or not -first.ndim <= axis < first.ndim:
        return NotImplemented
    axis %= first.ndim
    before = (slice(None),) * axis
    for a in arrays:
        if a.shape[:axis] != first.shape[:axis] or a.shape[axis + 1 :] != first.shape[axis + 1 :]:
            shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
            raise ValueError(f"concat: arrays must have the same shape but for axis {axis}, got {shapes}")
    if any(a.dtype.name not in launch.NUMBERS for a in arrays):
        return NotImplemented
    dtype = np.result_type(*(a.dtype for a in arrays))
    length = sum(a.shape[axis] for a in arrays)
    y = launch.empty_like(launcher, first, dtype, (*first.shape[:axis], length, *first.shape[axis + 1 :]))
    at = 0
    for a in arrays:
        if not launch.copy_into(launcher, y[(*before, slice(at, at + a.shape[axis]))], a):
            return NotImplemented
        at += a.shape[axis]
    return y


def repeat(launcher: Launcher, x: Any, repeats: Any, axis: int | None) -> Any:
    """Each element `repeats` times, or NotImplemented."""
    if not isinstance(repeats, int) or repeats < 0:
        return NotImplemented
    if axis is None:
        x, axis = reshape(launcher, x, (-1,), None), 0
        if x is NotImplemented:
            return x
    if not -x.ndim <= axis < x.ndim:
        return NotImplemented
    axis %= x.ndim
    y = launcher.empty((*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :]), x.dtype)
    if not launch.copy_into(launcher, y, x[(slice(None),) * (axis + 1) + (None,)]):
        return NotImplemented
    return y.reshape(*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :])


def tile(launcher: Launcher, x: Any, repetitions: Sequence[int]) -> Any:
    """x as a whole repeated along each axis, or NotImplemented."""
    ndim = max(len(repetitions), x.ndim)
    times = (1,) * (ndim - len(repetitions)) + tuple(repetitions)
    x = x.reshape((1,) * (ndim - x.ndim) + x.shape)
    y = launcher.empty(tuple(n for pair in zip(times, x.shape) for n in pair), x.dtype)
    if not launch.copy_into(launcher, y, x[tuple(k for _ in times for k in (None, slice(None)))]):
        return NotImplemented
    return y.reshape(tuple(a * b for a, b in zip(times, x.shape)))


def roll(launcher: Launcher, x: Any, shift: Any, axis: Any) -> Any:
    """Moved by `shift` places along axes, or NotImplemented."""
    if axis is None:
        if not isinstance(shift, int):
            return NotImplemented
        flat = reshape(launcher, x, (-1,), None)
        y = flat if flat is NotImplemented else roll(launcher, flat, shift, 0)
        return y if y is NotImplemented else y.reshape(x.shape)
    axes = np.lib.array_utils.normalize_axis_tuple(axis, x.ndim, allow_duplicate=True)
    shifts = shift if isinstance(shift, tuple) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        return NotImplemented
    total = [0] * x.ndim
    for a, s in zip(axes, shifts):
        total[a] = (total[a] + s) % max(1, x.shape[a])
    return index_kernels.padded(launcher, x, [(s, -s) for s in total], "constant" if 0 in x.shape else "wrap")
