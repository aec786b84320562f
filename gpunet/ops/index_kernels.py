"""Reading and adding up elements by position on a device with kernels: kernels/index.cu."""

from __future__ import annotations

import math
from collections.abc import Iterable
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.ops import elementwise_kernels as elementwise
from gpunet.ops import launch, reduce_kernels, sort_kernels

MOST_INDICES = 4  # as in kernels/index.cu
_RUN_TILE = 16
_WORDS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
_INDEX_TYPES = {"int64": "long long", "int32": "int"}
_POINTERS = {n: Struct(f"{n}P") for n in (2, 3, 5, 6)}
_FOUR, _TAIL, _PAIR = Struct("4q"), Struct("qi4x"), Struct("2q2i")
_ALONG, _ONE_HOT = Struct("6q"), Struct("2P2q")
_MASKED, _TRIANGLE, _PADDED = Struct("4P2q"), Struct("2qi4x"), Struct("16iqi8s4x")


class Layout(NamedTuple):
    """What `launch.axes_of` asks of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class Indexed(NamedTuple):
    """An index expression with arrays of integers, taken apart.

    Attributes:
        view: what is left if every index array becomes a full slice.
        axes: those of the view that the arrays index.
        arrays: the arrays.
        inner: the axes of the index arrays, broadcast against each other.
        at: which axis of the result is the first of these.
    """

    view: Any
    axes: tuple[int, ...]
    arrays: tuple[Any, ...]
    inner: tuple[int, ...]
    at: int

    @property
    def outer(self) -> list[int]:
        """The axes of the view that are not indexed."""
        return [a for a in range(self.view.ndim) if a not in self.axes]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the result."""
        outer = [self.view.shape[a] for a in self.outer]
        return (*outer[: self.at], *self.inner, *outer[self.at :])

    def places(self) -> list[int]:
        """For each outer axis, which one of the result it is."""
        return [i if i < self.at else i + len(self.inner) for i in range(len(self.outer))]

    def index_layout(self, array: Any, ndim: int) -> Layout:
        """An index array, broadcast to the result's shape."""
        missing = len(self.inner) - array.ndim
        strides = [0] * ndim
        for i, (length, stride) in enumerate(zip(array.shape, array.strides)):
            strides[self.at + missing + i] = 0 if length == 1 else stride
        return Layout(self.shape, tuple(strides), array.dtype)


def is_array(k: Any) -> bool:
    """Whether an index is an array."""
    return hasattr(k, "dtype") and not isinstance(k, np.generic) and type(k) is not np.ndarray


def is_basic(key: Any) -> bool:
    """Whether an index expression makes a view: it has no arrays."""
    return not any(
        is_array(k) or isinstance(k, (np.ndarray, list)) for k in (key if isinstance(key, tuple) else (key,))
    )


def taken_apart(x: Any, key: Any) -> Indexed | None:
    """What an index expression with arrays of integers says; None if it has others."""
    keys = list(key) if isinstance(key, tuple) else [key]
    arrays = [k for k in keys if is_array(k)]
    if any(a.dtype.kind not in "iu" for a in arrays) or any(isinstance(k, (bool, np.bool_)) for k in keys):
        return None
    if not 0 < len(arrays) <= MOST_INDICES:
        return None
    used = sum(k is not None and k is not Ellipsis for k in keys)
    if not any(k is Ellipsis for k in keys):
        keys.append(Ellipsis)
    at = next(i for i, k in enumerate(keys) if k is Ellipsis)
    keys[at : at + 1] = [slice(None)] * (x.ndim - used)
    advanced = [i for i, k in enumerate(keys) if is_array(k) or not (k is None or isinstance(k, slice))]
    view = x[tuple(slice(None) if is_array(k) else k for k in keys)]
    axes, before, axis = [], 0, 0
    for i, k in enumerate(keys):
        if is_array(k):
            axes.append(axis)
        elif i < advanced[0]:
            before += 1
        axis += is_array(k) or k is None or isinstance(k, slice)
    together = advanced[-1] - advanced[0] == len(advanced) - 1
    inner = np.broadcast_shapes(*(a.shape for a in arrays))
    return Indexed(view, tuple(axes), tuple(arrays), inner, before if together else 0)


def _indices(launcher: Launcher, arrays: Iterable[Any]) -> list[Any]:
    """Index arrays of one type that kernels know."""
    arrays = list(arrays)
    if all(a.dtype == "int32" for a in arrays):
        return arrays
    return [a if a.dtype == "int64" else launch.copy(launcher, a, np.dtype(np.int64)) for a in arrays]


def _four(numbers: Iterable[int]) -> bytes:
    return _FOUR.pack(*(*numbers, 0, 0, 0, 0)[:MOST_INDICES])


def gather(launcher: Launcher, x: Any, key: Any) -> Any:
    """x[key], where `key` has arrays of integers, or NotImplemented."""
    indexed = taken_apart(x, key)
    if indexed is None or x.dtype.itemsize not in _WORDS or 0 in (indexed.view.shape[a] for a in indexed.axes):
        return NotImplemented
    view, arrays = indexed.view, _indices(launcher, indexed.arrays)
    strides = [0] * len(indexed.shape)
    for axis, place in zip(indexed.outer, indexed.places()):
        strides[place] = view.strides[axis]
    layouts = [indexed.index_layout(a, len(indexed.shape)) for a in arrays]
    return _gather(launcher, view, Layout(indexed.shape, tuple(strides), x.dtype), indexed.axes, arrays, layouts)


def along(launcher: Launcher, x: Any, indices: Any, axis: int) -> Any:
    """For each position the element of x at `indices` along an axis, or NotImplemented."""
    if x.ndim != indices.ndim or x.dtype.itemsize not in _WORDS or (indices.size and not x.shape[axis]):
        return NotImplemented
    shape = _along_shape(x.shape, indices.shape, axis)
    arrays = _indices(launcher, [indices])
    own = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    source = Layout(own, x.strides, x.dtype)
    return _gather(launcher, x, _broadcast(source, shape), (axis,), arrays, [_broadcast(arrays[0], shape)])


def _along_shape(x: tuple[int, ...], indices: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """That of what is taken along an axis."""
    own = (*x[:axis], 1, *x[axis + 1 :])
    other = (*indices[:axis], 1, *indices[axis + 1 :])
    shape = np.broadcast_shapes(own, other)
    return (*shape[:axis], indices[axis], *shape[axis + 1 :])


def _broadcast(x: Any, shape: tuple[int, ...]) -> Layout:
    """x as it is read for `shape`, of as many axes."""
    return Layout(shape, tuple(0 if n == 1 else s for n, s in zip(x.shape, x.strides)), x.dtype)


def _gather(
    launcher: Launcher, view: Any, source: Layout, indexed: tuple[int, ...], arrays: list[Any], layouts: list[Any]
) -> Any:
    """A new array of elements of `view`, or NotImplemented.

    Args:
        launcher: of the device.
        view: what is indexed.
        source: for each axis of the result, how far apart neighbours are in `view`; 0 where indices decide.
        indexed: the axes of `view` that these say a place along.
        arrays: the indices.
        layouts: how they are read for the result.
    """
    itemsize = view.dtype.itemsize
    y = launcher.empty(source.shape, view.dtype)
    if not y.size:
        return y
    axes = launch.axes_of(y.shape, y, source, *layouts)
    steps = [view.strides[a] for a in indexed]
    if axes is None or any(s % itemsize for s in steps):
        return NotImplemented
    steps = [s // itemsize for s in steps]
    pointers = launcher.pointer(view), launcher.pointer(y)
    vector = 1
    if not any(s[-1] for s in axes.strides[2:]):
        vector = launch.vector_of(axes._replace(strides=axes.strides[:2]), (itemsize, itemsize), reversed(pointers))
        while any(s % vector for s in steps):
            vector //= 2
    to, own, *rest = axes.strides
    none = (0,) * len(axes.shape)
    packed = axes._replace(strides=(own, to, *rest, *(none,) * (MOST_INDICES - len(arrays)))).pack_strides()
    args = _POINTERS[2].pack(*pointers) + _four(launcher.pointer(a) for a in arrays) + axes.pack() + packed
    args += _four(steps) + _four(view.shape[a] for a in indexed) + _TAIL.pack(y.size // vector, len(arrays))
    variant = gather_variant(itemsize, arrays[0].dtype.name, vector)
    launcher.launch(variant, launch.grid_of(launcher, y.size // vector, 256), args)
    return y


def gather_variant(itemsize: int, index: str, vector: int) -> Variant:
    """The kernel that copies elements of so many bytes, `vector` at a time."""
    wide = (r"LDG\S*128", r"STG\S*128") if itemsize * vector == 16 else ()
    return Variant("index", f"gather<{_WORDS[itemsize]}, {_INDEX_TYPES[index]}, {vector}>", 256, instructions=wide)


def scatter_add(launcher: Launcher, g: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with g added at [key], where `key` has arrays of integers, or NotImplemented.

    Rows are sorted by their indices, stably, and added up in that order: the same bits every time.
    """
    if g.dtype.name not in launch.FLOATING:
        return NotImplemented
    out = launch.full(launcher, shape, 0, g.dtype)
    indexed = taken_apart(out, key)
    if indexed is None or g.shape != indexed.shape:
        return NotImplemented
    view, lengths = indexed.view, [indexed.view.shape[a] for a in indexed.axes]
    count, most = math.prod(indexed.inner), math.prod(lengths)
    if not g.size:
        return out
    if count >= 2**31 or most >= 2**31 or any(s % g.dtype.itemsize for s in g.strides):
        return NotImplemented
    arrays = _indices(launcher, indexed.arrays)
    in_order = Layout(indexed.inner, launch_strides(indexed.inner), np.dtype(np.uint8))
    flat = [Layout(a.shape, a.strides, a.dtype) for a in arrays]
    row_axes = launch.axes_of(indexed.inner, in_order, *flat)
    inner = slice(indexed.at, indexed.at + len(indexed.inner))
    g_rows = Layout(indexed.inner, g.strides[inner], g.dtype)
    g_axes = launch.axes_of(indexed.inner, in_order, g_rows)
    places = indexed.places()
    columns = tuple(g.shape[p] for p in places)
    to = Layout(columns, tuple(view.strides[a] for a in indexed.outer), g.dtype)
    column_axes = launch.axes_of(columns, to, Layout(columns, tuple(g.strides[p] for p in places), g.dtype))
    if row_axes is None or g_axes is None or column_axes is None:
        return NotImplemented

    keys = launcher.empty((count,), np.dtype(np.uint32))
    none = (0,) * len(row_axes.shape)
    strides = row_axes._replace(strides=(*row_axes.strides[1:], *(none,) * (MOST_INDICES - len(arrays))))
    args = _POINTERS[5].pack(*(*map(launcher.pointer, arrays), 0, 0, 0)[:MOST_INDICES], launcher.pointer(keys))
    args += row_axes.pack() + strides.pack_strides() + _four(lengths) + _TAIL.pack(count, len(arrays))
    launcher.launch(keys_variant(arrays[0].dtype.name), launch.grid_of(launcher, count, 256), args)
    keys, positions = sort_kernels.order_of(launcher, keys, (most - 1).bit_length())

    width, tiles = column_axes.size, -(-count // _RUN_TILE)
    computed = np.dtype(np.float64 if g.dtype == "float64" else np.float32)
    parts = launcher.empty((2, tiles, width), computed)
    itemsize = g.dtype.itemsize
    pointers = launcher.pointer(g), launcher.pointer(view)
    vector = launch.vector_of(column_axes, (itemsize, itemsize), reversed(pointers))
    steps = [view.strides[a] // itemsize for a in indexed.axes]
    while any(s % vector for s in (*steps, *g_axes.strides[1])):
        vector //= 2
    args = _POINTERS[6].pack(*pointers, *map(launcher.pointer, (keys, positions, parts[0], parts[1])))
    args += g_axes.pack()[:36] + column_axes.pack()[:36]
    args += g_axes._replace(strides=g_axes.strides[1:]).pack_strides()
    args += column_axes._replace(strides=column_axes.strides[::-1]).pack_strides()
    args += _four(steps) + _four(lengths) + _PAIR.pack(count, width, len(arrays), tiles)
    grid = launch.grid_of(launcher, tiles * (width // vector), 256)
    for kernel in ("scatter_runs", "scatter_ends") if tiles > 1 else ("scatter_runs",):
        launcher.launch(scatter_variant(kernel, g.dtype.name, vector), grid, args)
    return out


def scatter_along(launcher: Launcher, g: Any, indices: Any, axis: int, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with g added at `indices` along an axis, or NotImplemented."""
    if g.dtype.name not in launch.FLOATING or g.ndim != len(shape):
        return NotImplemented
    if any(n != m for a, (n, m) in enumerate(zip(g.shape, shape)) if a != axis):  # x was broadcast
        return NotImplemented
    out = launch.full(launcher, shape, 0, g.dtype)
    (indices,) = _indices(launcher, [indices])
    at = _broadcast(indices, g.shape)
    lines = tuple(n for a, n in enumerate(shape) if a != axis)
    layouts = [Layout(lines, tuple(s for a, s in enumerate(v.strides) if a != axis), v.dtype) for v in (out, g, at)]
    if not g.size:
        return out
    axes = launch.axes_of(lines, *layouts)
    steps = [v.strides[axis] for v in (g, out, at)]
    if axes is None or any(s % v.dtype.itemsize for s, v in zip(steps, (g, out, at))):
        return NotImplemented
    steps = [s // v.dtype.itemsize for s, v in zip(steps, (g, out, at))]
    to, source, index = axes.strides
    args = _POINTERS[3].pack(*map(launcher.pointer, (g, out, indices))) + axes.pack()
    args += axes._replace(strides=(source, to, index)).pack_strides()
    args += _ALONG.pack(axes.size, g.shape[axis], *steps, shape[axis])
    variant = Variant(
        "index", f"scatter_along<{launch.NUMBERS[g.dtype.name]}, {_INDEX_TYPES[indices.dtype.name]}>", 256
    )
    launcher.launch(variant, launch.grid_of(launcher, axes.size, 256), args)
    return out


def launch_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a C-contiguous array of bytes."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return tuple(strides)


def keys_variant(index: str) -> Variant:
    """The kernel that makes one number of several indices."""
    return Variant("index", f"index_keys<{_INDEX_TYPES[index]}>", 256)


def scatter_variant(kernel: str, dtype: str, vector: int) -> Variant:
    """The kernels that add up sorted rows."""
    return Variant("index", f"{kernel}<{launch.NUMBERS[dtype]}, {vector}>", 256)


# --- boolean masks


def mask_of(x: Any, key: Any) -> Any:
    """The boolean array that is all of an index expression, if it fits the first axes of x; else None."""
    if isinstance(key, tuple) and len(key) == 1:
        key = key[0]
    is_mask = is_array(key) and key.dtype == "bool" and key.ndim and key.shape == x.shape[: key.ndim]
    return key if is_mask else None


def _masked(launcher: Launcher, name: str, mask: Any, sums: Any, source: Any, target: Any, width: int) -> None:
    variant = Variant("index", f"{name}<{_WORDS[source.dtype.itemsize]}>", 256)
    pointers = (launcher.pointer(a) for a in (mask, sums, source, target))
    grid = launch.grid_of(launcher, mask.size * width, 256)
    launcher.launch(variant, grid, _MASKED.pack(*pointers, mask.size, width))


def _sums(launcher: Launcher, mask: Any) -> Any:
    return reduce_kernels.scan(launcher, "Sum", mask.reshape(-1), 0, None, False)


def pick(launcher: Launcher, x: Any, mask: Any) -> Any:
    """x[mask], or NotImplemented. How many elements it has must be known: waits for the device."""
    if x.dtype.itemsize not in _WORDS:
        return NotImplemented
    mask, x = launch.contiguous(launcher, mask), launch.contiguous(launcher, x)
    row = x.shape[mask.ndim :]
    sums = _sums(launcher, mask) if mask.size else None
    y = launcher.empty((0 if sums is None else int(sums[-1]), *row), x.dtype)
    if y.size:
        _masked(launcher, "masked_pick", mask, sums, x, y, math.prod(row))
    return y


def spread(launcher: Launcher, target: Any, mask: Any, values: Any) -> bool:
    """target[mask] = values, one for each element that is true. False if no kernel can do it."""
    if values.dtype != target.dtype or target.dtype.itemsize not in _WORDS or not target.flags.c_contiguous:
        return False
    row = target.shape[mask.ndim :]
    if values.ndim != 1 + len(row) or values.shape[1:] != row:
        return False
    if values.size:
        mask, values = launch.contiguous(launcher, mask), launch.contiguous(launcher, values)
        _masked(launcher, "masked_spread", mask, _sums(launcher, mask), values, target, math.prod(row))
    return True


# --- ops


def _part(x: Any, key: Any) -> Any:
    """x[key] as a view, also of a single element."""
    keys = key if isinstance(key, tuple) else (key,)
    return x[keys if any(k is Ellipsis for k in keys) else (*keys, Ellipsis)]


def getitem(launcher: Launcher, x: Any, key: Any) -> Any:
    """x[key], or NotImplemented."""
    if is_basic(key):
        return _part(x, key)
    mask = mask_of(x, key)
    return gather(launcher, x, key) if mask is None else pick(launcher, x, mask)


def scatter(launcher: Launcher, g: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with g added at [key], or NotImplemented."""
    if g.dtype.name not in launch.NUMBERS:
        return NotImplemented
    if is_basic(key):
        out = launch.full(launcher, shape, 0, g.dtype)
        return out if launch.copy_into(launcher, _part(out, key), g) else NotImplemented
    mask = key[0] if isinstance(key, tuple) and len(key) == 1 else key
    if is_array(mask) and mask.dtype == "bool" and mask.ndim:
        out = launch.full(launcher, shape, 0, g.dtype)
        return out if spread(launcher, out, mask, g) else NotImplemented
    return scatter_add(launcher, g, key, shape)


def assign(launcher: Launcher, target: Any, key: Any, value: Any) -> bool:
    """target[key] = value. False if no kernel can do it: where `key` has arrays of integers, of which equal ones would
    have to be written in their order."""
    if target.dtype.name not in launch.NUMBERS:
        return False
    is_number = not is_array(value)
    if is_number and np.ndim(value):
        return False
    if is_basic(key):
        part = _part(target, key)
        return (
            _set(launcher, part, value)
            if is_number
            else part.shape == value.shape and launch.copy_into(launcher, part, value)
        )
    mask = mask_of(target, key)
    if mask is None:
        return False
    if is_number or not value.ndim:
        mask = mask.reshape(*mask.shape, *(1,) * (target.ndim - mask.ndim))
        done = elementwise.where(launcher, mask, value, target, target)
        return done is not NotImplemented
    return spread(launcher, target, mask, value)


def _set(launcher: Launcher, part: Any, value: Any) -> bool:
    """Make `value` all elements of an array."""
    try:
        number = launch.full(launcher, (), value, part.dtype)
    except (OverflowError, ValueError):
        return False
    return launch.copy_into(launcher, part, number)


def one_hot(launcher: Launcher, x: Any, classes: int, dtype: np.dtype) -> Any:
    """Rows of zeros with a one, or NotImplemented."""
    if dtype.name not in launch.NUMBERS or x.dtype.kind not in "iu":
        return NotImplemented
    (indices,) = _indices(launcher, [x])
    indices = launch.contiguous(launcher, indices)
    y = launcher.empty((*x.shape, classes), dtype)
    if y.size:
        variant = Variant("index", f"one_hot<{launch.NUMBERS[dtype.name]}, {_INDEX_TYPES[indices.dtype.name]}>", 256)
        args = _ONE_HOT.pack(launcher.pointer(indices), launcher.pointer(y), x.size, classes)
        launcher.launch(variant, launch.grid_of(launcher, y.size, 256), args)
    return y


def triangle(launcher: Launcher, x: Any, k: int, upper: bool) -> Any:
    """The lower or upper triangles of matrices, or NotImplemented."""
    if x.dtype.itemsize not in _WORDS or not 2 <= x.ndim <= launch.MOST_AXES or max(x.shape) >= 2**31:
        return NotImplemented
    y = launcher.empty(x.shape, x.dtype)
    if y.size:
        axes = _unmerged(x)
        args = _POINTERS[2].pack(launcher.pointer(x), launcher.pointer(y)) + axes.pack() + axes.pack_strides()
        args += _TRIANGLE.pack(y.size, k, upper)
        variant = Variant("index", f"triangle<{_WORDS[x.dtype.itemsize]}>", 256)
        launcher.launch(variant, launch.grid_of(launcher, y.size, 256), args)
    return y


def _unmerged(x: Any, shape: tuple[int, ...] | None = None) -> launch.Axes:
    """All axes of x in their order, with other lengths if given."""
    return launch.Axes(x.shape if shape is None else shape, (tuple(s // x.dtype.itemsize for s in x.strides),))


_MODES = {"constant": 0, "edge": 1, "reflect": 2, "wrap": 3}


def padded(launcher: Launcher, x: Any, widths: list[tuple[int, int]], mode: str, value: Any = 0) -> Any:
    """x with more elements around it, or NotImplemented. Negative widths take some away; wrapped, that rolls x."""
    shape = tuple(n + a + b for n, (a, b) in zip(x.shape, widths))
    if mode not in _MODES or x.dtype.name not in launch.NUMBERS or not 0 < x.ndim <= launch.MOST_AXES:
        return NotImplemented
    if max((*x.shape, *shape)) >= 2**31 or (0 in x.shape and mode != "constant"):
        return NotImplemented
    y = launcher.empty(shape, x.dtype)
    if y.size:
        axes, unused = _unmerged(x, shape), (0,) * (launch.MOST_AXES - x.ndim)
        number = np.asarray(value).astype(x.dtype).tobytes()
        args = _POINTERS[2].pack(launcher.pointer(x), launcher.pointer(y)) + axes.pack() + axes.pack_strides()
        args += _PADDED.pack(*x.shape, *unused, *(a for a, _ in widths), *unused, y.size, _MODES[mode], number)
        variant = Variant("index", f"padded<{_WORDS[x.dtype.itemsize]}>", 256)
        launcher.launch(variant, launch.grid_of(launcher, y.size, 256), args)
    return y


@register_variants
def _variants() -> Iterable[Variant]:
    for itemsize in (2, 4, 8):
        for index in _INDEX_TYPES:
            yield gather_variant(itemsize, index, 16 // itemsize)
        yield gather_variant(itemsize, "int64", 1)
    yield keys_variant("int64")
    for dtype, vector in (("float32", 4), ("float16", 8), ("bfloat16", 8), ("float64", 2)):
        for kernel in ("scatter_runs", "scatter_ends"):
            yield scatter_variant(kernel, dtype, vector)
    for name in ("masked_pick", "masked_spread", "triangle", "padded"):
        yield Variant("index", f"{name}<unsigned>", 256)
    yield Variant("index", "one_hot<float, long long>", 256)
    yield Variant("index", "scatter_along<float, long long>", 256)
