"""Pooling on a device with kernels: kernels/pool.cu."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from math import prod
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.ops import launch

Ints = tuple[int, ...]
_ARGS = Struct("6P18i3iIdd")
_UNPOOL = Struct("4P4I")
_DIVISIONS = {None: 0, "inside": 1, "padded": 2}
_LARGE = 32  # places: windows of so many are shared by PARTS threads
_PARTS = 16


class Windows(NamedTuple):
    """Windows along the spatial axes of an array. With strides of 0 they are adaptive, and `kernel` the longest ones'
    lengths."""

    lengths: Ints
    out: Ints
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints


def takes(*arrays: Any, floating: bool = True) -> bool:
    """Whether kernels take arrays (N, C, *spatial) of one dtype, of which those after the first may be None."""
    first = arrays[0]
    name = first.dtype.name
    known = name in launch.FLOATING or (not floating and name in launch.NUMBERS and name != "bool")
    alike = all(a is None or a.dtype == first.dtype for a in arrays)
    return known and alike and 3 <= first.ndim <= 5 and first.size < 2**31


def takes_adaptive(shape: Ints, size: Ints) -> bool:
    """Whether they take adaptive windows of an array of `shape`."""
    return prod(shape) < 2**31 and all((n + 1) * (out + 1) < 2**31 for n, out in zip(shape[2:], size))


def numbers_dtype(kernel: Ints) -> np.dtype:
    """What the numbers of the places in a window are stored as."""
    return np.dtype(np.uint8 if prod(kernel) <= 255 else np.int32)


class _Layout(NamedTuple):
    """How arrays of one call lie: as planes, or with the channels adjacent."""

    planes: bool

    @staticmethod
    def of(x: Any) -> _Layout:
        last = x.transpose(0, *range(2, x.ndim), 1)
        return _Layout(bool(x.flags.c_contiguous and not last.flags.c_contiguous))

    def put(self, launcher: Launcher, a: Any) -> Any:
        return launch.contiguous(launcher, a) if self.planes else launch.channels_last(launcher, a)

    def empty(self, launcher: Launcher, shape: Ints, dtype: Any) -> Any:
        if self.planes:
            return launcher.empty(shape, dtype)
        n, c, *spatial = shape
        return launcher.empty((n, *spatial, c), dtype).transpose(0, len(spatial) + 1, *range(1, len(spatial) + 1))

    def channels(self, a: Any) -> int:
        """How many are adjacent."""
        return 1 if self.planes else a.shape[1]

    def vector(self, launcher: Launcher, *arrays: Any) -> int:
        """How many of them are moved at once."""
        channels = self.channels(arrays[0])
        best = 16 // max(a.dtype.itemsize for a in arrays)
        while best > 1 and (channels % best or any(launcher.pointer(a) % (best * a.dtype.itemsize) for a in arrays)):
            best //= 2
        return best


def _run(
    launcher: Launcher,
    variant: Variant,
    per_block: int,
    windows: Windows,
    channels: int,
    count: int,
    *,
    x: Any = None,
    y: Any = None,
    g: Any = None,
    numbers: Any = None,
    to: Any = None,
    to_numbers: Any = None,
    divided_by: str | None = None,
    factor: float = 1.0,
    order: float = 2.0,
) -> None:
    pointers = (0 if a is None else launcher.pointer(a) for a in (x, y, g, numbers, to, to_numbers))
    words = channels, channels == 1, _DIVISIONS[divided_by]
    args = _ARGS.pack(*pointers, *_axes(windows), *words, count, factor, order)
    launcher.launch(variant, launch.grid_of(launcher, count, per_block), args)


@lru_cache(maxsize=1024)
def _axes(windows: Windows) -> Ints:
    """Three `PoolAxis`; axes that are missing come first."""
    axes = list(zip(*windows))
    return tuple(n for axis in [(1, 1, 1, 1, 0, 1)] * (3 - len(axes)) + axes for n in axis)


def largest(launcher: Launcher, x: Any, windows: Windows, numbers: np.dtype | None) -> tuple[Any, Any]:
    """The largest element of each window, and its number as `numbers` unless that is None."""
    layout = _Layout.of(x)
    x = layout.put(launcher, x)
    shape = (*x.shape[:2], *windows.out)
    y = layout.empty(launcher, shape, x.dtype)
    at = None if numbers is None else layout.empty(launcher, shape, numbers)
    kind = "Nothing" if numbers is None else launch.NUMBERS[numbers.name]
    _forward(launcher, layout, f"Largest<{{T}}, {{V}}, {kind}>", x, y, at, windows)
    return y, at


def total(launcher: Launcher, x: Any, windows: Windows, divided_by: str | None, factor: float) -> Any:
    """The sum of each window, times a factor and divided by the number of its elements that are "inside" of the input
    or of the "padded" one."""
    return _reduced(launcher, "Total<{T}, {V}>", x, windows, divided_by=divided_by, factor=factor)


def norm(launcher: Launcher, x: Any, windows: Windows, divided_by: str | None, factor: float, order: float) -> Any:
    """What `total` is of x**order, to the power of 1 / order."""
    return _reduced(launcher, "Norm<{T}, {V}>", x, windows, divided_by=divided_by, factor=factor, order=order)


def _reduced(launcher: Launcher, rule: str, x: Any, windows: Windows, **how: Any) -> Any:
    layout = _Layout.of(x)
    x = layout.put(launcher, x)
    y = layout.empty(launcher, (*x.shape[:2], *windows.out), x.dtype)
    _forward(launcher, layout, rule, x, y, None, windows, **how)
    return y


def _forward(
    launcher: Launcher, layout: _Layout, rule: str, x: Any, y: Any, at: Any, windows: Windows, **how: Any
) -> None:
    if not y.size:
        return
    vector = layout.vector(launcher, x, y) if at is None else layout.vector(launcher, x, y, at)
    parts = _PARTS if prod(windows.kernel) >= _LARGE else 1
    width = windows.kernel[-1] if windows.stride[-1] and parts == 1 and windows.kernel[-1] in (2, 3) else 0
    variant = _forward_variant(x.dtype.name, rule, vector, width, parts)
    channels = layout.channels(x) // vector
    _run(launcher, variant, 256 // parts, windows, channels, y.size // vector, x=x, to=y, to_numbers=at, **how)


def unpool(launcher: Launcher, g: Any, numbers: Any, y: Any, shape: Ints, windows: Windows) -> Any:
    """The gradient, of `shape`, of what `largest` gives with these numbers; y: its values if only that of positive
    ones counts, or None."""
    layout = _Layout.of(numbers)
    kind = launch.NUMBERS[numbers.dtype.name]
    rule = f"ToLargest<{{T}}, {{V}}, {kind}, {str(y is not None).lower()}>"
    return _back(launcher, layout, rule, shape, windows, g=g, numbers=numbers, y=y)


def spread(launcher: Launcher, g: Any, shape: Ints, windows: Windows, divided_by: str | None, factor: float) -> Any:
    """The gradient, of `shape`, of `total`."""
    rule = "ToAll<{T}, {V}>"
    return _back(launcher, _Layout.of(g), rule, shape, windows, g=g, divided_by=divided_by, factor=factor)


def norm_grad(
    launcher: Launcher,
    g: Any,
    x: Any,
    y: Any,
    windows: Windows,
    divided_by: str | None,
    factor: float,
    order: float,
) -> Any:
    """The gradient of `norm`, whose result was y."""
    how: dict[str, Any] = {"divided_by": divided_by, "factor": factor, "order": order}
    return _back(launcher, _Layout.of(x), "ToNorm<{T}, {V}>", x.shape, windows, g=g, x=x, y=y, **how)


def _back(launcher: Launcher, layout: _Layout, rule: str, shape: Ints, windows: Windows, *, g: Any, **how: Any) -> Any:
    arrays = {name: how.pop(name) for name in ("x", "y", "numbers") if how.get(name) is not None}
    arrays = {name: layout.put(launcher, a) for name, a in (arrays | {"g": g}).items()}
    dx = layout.empty(launcher, shape, g.dtype)
    if dx.size:
        vector = layout.vector(launcher, dx, *arrays.values())
        how = {name: value for name, value in how.items() if value is not None}
        channels = layout.channels(dx) // vector
        variant = _back_variant(g.dtype.name, rule, vector)
        _run(launcher, variant, 256, windows, channels, dx.size // vector, to=dx, **arrays, **how)
    return dx


def pick(launcher: Launcher, x: Any, numbers: Any, windows: Windows) -> Any:
    """The element of each window of x whose number is given; zero where that is outside."""
    layout = _Layout.of(numbers)
    x, numbers = layout.put(launcher, x), layout.put(launcher, numbers)
    y = layout.empty(launcher, numbers.shape, x.dtype)
    if y.size:
        words = launch.NUMBERS[x.dtype.name], launch.NUMBERS[numbers.dtype.name]
        variant = Variant("pool", "pool_pick<{}, {}>".format(*words), 256)
        _run(launcher, variant, 256, windows, layout.channels(y), y.size, x=x, numbers=numbers, to=y)
    return y


def indices(launcher: Launcher, numbers: Any, windows: Windows) -> Any:
    """The places in the input, counted along all spatial axes, that numbers of places in windows mean."""
    layout = _Layout.of(numbers)
    numbers = layout.put(launcher, numbers)
    y = layout.empty(launcher, numbers.shape, np.dtype(np.int64))
    if y.size:
        variant = Variant("pool", f"pool_indices<{launch.NUMBERS[numbers.dtype.name]}>", 256)
        _run(launcher, variant, 256, windows, layout.channels(y), y.size, numbers=numbers, to=y)
    return y


def place(launcher: Launcher, x: Any, indices: Any, size: Ints) -> Any:
    """Zeros (N, C, *size) with the elements of x where the indices say; of several for one place, the last."""
    layout = _Layout.of(x)
    x, indices = layout.put(launcher, x), layout.put(launcher, indices)
    shape = (*x.shape[:2], *size)
    y = layout.empty(launcher, shape, x.dtype)
    if not y.size:
        return y
    owners = layout.empty(launcher, shape, np.dtype(np.int32))
    launch.fill(launcher, owners, -1)
    pointers = map(launcher.pointer, (x, indices, owners, y))
    args = (*pointers, prod(x.shape[2:]), prod(size), layout.channels(x))
    for step, count in (("claim", x.size), ("settle", y.size)):
        if count:
            variant = Variant("pool", f"pool_{step}<{launch.NUMBERS[x.dtype.name]}>", 256)
            launcher.launch(variant, launch.grid_of(launcher, count, 256), _UNPOOL.pack(*args, count))
    return y


@cache
def _forward_variant(dtype: str, rule: str, vector: int, width: int, parts: int) -> Variant:
    number = launch.NUMBERS[dtype]
    rule = rule.replace("{T}", number).replace("{V}", str(vector))
    expression = f"pool<{number}, {rule}, {vector}, {width}, {parts}>"
    return Variant("pool", expression, 256, registers=96, instructions=_loads(dtype, vector))


@cache
def _back_variant(dtype: str, rule: str, vector: int) -> Variant:
    number = launch.NUMBERS[dtype]
    rule = rule.replace("{T}", number).replace("{V}", str(vector))
    expression = f"pool_back<{number}, {rule}, {vector}>"
    return Variant("pool", expression, 256, registers=96, instructions=_loads(dtype, vector))


def _loads(dtype: str, vector: int) -> tuple[str, ...]:
    """Patterns of instructions that move 16 bytes, where a vector has so many."""
    if vector * np.dtype("float16" if dtype == "bfloat16" else dtype).itemsize != 16:
        return ()
    # For sm_100 and sm_120 the compiler may load a vector in halves.
    return (r"STG\S*128",) if dtype == "float64" else (r"LDG\S*(128|64)", r"STG\S*128")


@register_variants
def _variants() -> Iterable[Variant]:
    """What common layers launch, for each type; and of one, the other widths, and arrays that lie as planes."""
    for dtype, vector in (("float32", 4), ("float16", 8), ("bfloat16", 8)):
        yield _forward_variant(dtype, "Largest<{T}, {V}, unsigned char>", vector, 2, 1)
        yield _forward_variant(dtype, "Largest<{T}, {V}, unsigned char>", vector, 3, 1)
        yield _forward_variant(dtype, "Total<{T}, {V}>", vector, 0, _PARTS)
        yield _back_variant(dtype, "ToLargest<{T}, {V}, unsigned char, false>", vector)
        yield _back_variant(dtype, "ToAll<{T}, {V}>", vector)
    for rule in ("Largest<{T}, {V}, Nothing>", "Largest<{T}, {V}, unsigned char>", "Total<{T}, {V}>"):
        yield _forward_variant("float32", rule, 1, 2, 1)
        yield _forward_variant("float32", rule, 4, 0, 1)
    yield _forward_variant("float32", "Largest<{T}, {V}, int>", 4, 0, _PARTS)
    yield _forward_variant("float32", "Norm<{T}, {V}>", 4, 2, 1)
    yield _forward_variant("float64", "Largest<{T}, {V}, unsigned char>", 2, 2, 1)
    yield _back_variant("float64", "ToLargest<{T}, {V}, unsigned char, false>", 2)
    yield _back_variant("float32", "ToLargest<{T}, {V}, unsigned char, true>", 4)
    yield _back_variant("float32", "ToNorm<{T}, {V}>", 4)
    yield Variant("pool", "pool_pick<float, unsigned char>", 256)
    yield Variant("pool", "pool_indices<unsigned char>", 256)
    yield Variant("pool", "pool_claim<float>", 256)
    yield Variant("pool", "pool_settle<float>", 256)
