"""Normalization on a device with kernels: kernels/norm.cu."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from math import gcd, prod
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.backends.occupancy import limits
from gpunet.ops import launch

Ints = tuple[int, ...]
_ROWS = Struct("8Pq2id")
_SUMS = Struct("3Pqi4x")
_CHANNELS = Struct("13P2q5i4xd")
_RUNNING = Struct("4Pi4x2d")
_HELD = 16  # elements of a row that a thread has, as in kernels/norm.cu
_LANES = (32, 64, 128, 256, 512)  # threads that a row may have
LONGEST = _HELD * _LANES[-1]  # longer rows are read more than once
_ROWS_OF_A_BLOCK = 32  # on the way back, at most: what a block writes for weight and bias is little beside them
_TILE_THREADS = 256  # of the kernels that keep channels of an image in shared memory; twice that for large tiles
_SECTOR = 32  # bytes that memory is read by
_STEP_HELD = 8 << 10  # sizes of shared memory are rounded up to this, so that they are few
_SMALL_TILE = 64 << 10  # bytes that a block moves in about the time that two further launches would take


def takes(x: Any, *parameters: Any) -> bool:
    """Whether kernels take x and parameters of it, which are contiguous, None or all of one dtype."""
    kinds = {p.dtype.name for p in parameters if p is not None}
    known = x.dtype.name in launch.FLOATING and kinds <= {x.dtype.name, "float32"} and len(kinds) < 2
    return (
        known
        and x.dtype.name + "".join(kinds) != "float64float32"
        and all(p is None or p.flags.c_contiguous for p in parameters)
    )


def statistics_dtype(x: Any) -> np.dtype:
    """What statistics of x are computed in."""
    return np.dtype(np.float64 if x.dtype == "float64" else np.float32)


def _kind(x: Any, *parameters: Any) -> str:
    """What kernels call the dtype of parameters of x."""
    return launch.NUMBERS[next((p.dtype.name for p in parameters if p is not None), x.dtype.name)]


def _vector(launcher: Launcher, x: Any, columns: int, *arrays: Any) -> int:
    """How many columns of x, and of what else a kernel reads or writes, are moved at once: by 16 bytes of x, and by up
    to 16 of others."""
    best = 16 // x.dtype.itemsize
    arrays = tuple(a for a in (x, *arrays) if a is not None)
    while best > 1 and (columns % best or any(launcher.pointer(a) % min(16, best * a.dtype.itemsize) for a in arrays)):
        best //= 2
    return best


def _pointers(launcher: Launcher, *arrays: Any) -> tuple[int, ...]:
    return tuple(0 if a is None else launcher.pointer(a) for a in arrays)


# --- rows


def rows(launcher: Launcher, x: Any, weight: Any, bias: Any, columns: int, eps: float, rms: bool) -> Any:
    """Each row of so many adjacent elements of x, which is C-contiguous, normalized. With `rms` without a shift."""
    y = launcher.empty(x.shape, x.dtype)
    if not x.size:
        return y
    count = x.size // columns
    vector = _vector(launcher, x, columns, weight, bias)
    names = launch.NUMBERS[x.dtype.name], _kind(x, weight, bias)
    if columns <= LONGEST:
        variant, per_block = _row_variant("rows_normalize", *names, vector, columns, rms)
        args = (*_pointers(launcher, x, None, weight, bias, y, None, None, None), count, columns, 0, eps)
        launcher.launch(variant, launch.grid_of(launcher, count, per_block), _ROWS.pack(*args))
        return y
    shared = _kept(launcher, x, columns, 1)
    moments = None if shared else _row_moments(launcher, x, columns, vector, eps, rms)
    args = (*_pointers(launcher, x, None, weight, bias, y, None, moments, None), count, columns, 0, eps)
    if shared:
        variant = _kept_variant("rows_kept", *names, vector, rms, shared)
    else:
        variant = Variant("norm", f"rows_apply<{names[0]}, {names[1]}, {vector}>", 512)
    launcher.launch(variant, launch.grid_of(launcher, count, 1), _ROWS.pack(*args))
    return y


def _kept(launcher: Launcher, x: Any, columns: int, arrays: int) -> int:
    """Bytes of shared memory for a row of each of so many arrays of x's type; 0 where there is less."""
    size = -(-columns * x.dtype.itemsize * arrays // _STEP_HELD) * _STEP_HELD
    return size if size + _STEP_HELD <= limits(launcher.architecture).block_shared else 0


def _row_moments(launcher: Launcher, x: Any, columns: int, vector: int, eps: float, rms: bool) -> Any:
    """Mean and one by the deviation of each long row."""
    count = x.size // columns
    moments = launcher.empty((count, 2), statistics_dtype(x))
    args = (*_pointers(launcher, x, None, None, None, None, None, moments, None), count, columns, 0, eps)
    variant = Variant("norm", f"rows_moments<{launch.NUMBERS[x.dtype.name]}, {vector}, {str(rms).lower()}>", 512)
    launcher.launch(variant, launch.grid_of(launcher, count, 1), _ROWS.pack(*args))
    return moments


def rows_grad(
    launcher: Launcher, g: Any, x: Any, weight: Any, columns: int, eps: float, rms: bool
) -> tuple[Any, Any, Any]:
    """The gradients of x, weight and bias behind `rows`, those of the last two as rows."""
    dx = launcher.empty(x.shape, x.dtype)
    like = x if weight is None else weight
    if not x.size:
        return dx, *(launch.full(launcher, (columns,), 0, like.dtype) for _ in range(2))
    count = x.size // columns
    vector = _vector(launcher, x, columns, weight, g)
    names = launch.NUMBERS[x.dtype.name], _kind(x, weight)
    height = max(1, min(_ROWS_OF_A_BLOCK, -(-count // (2 * launcher.processors))))
    wide = statistics_dtype(x)
    if columns <= LONGEST:
        variant, per_block = _row_variant("rows_grad", *names, vector, columns, rms)
        height = -(-height // per_block) * per_block
        blocks = -(-count // height)
        partial = launcher.empty((blocks, 2, columns), wide)
        args = (*_pointers(launcher, x, g, weight, None, dx, partial, None, None), count, columns, height, eps)
        launcher.launch(variant, (blocks, 1, 1), _ROWS.pack(*args))
    else:
        blocks = -(-count // height)
        partial = launcher.empty((blocks, 2, columns), wide)
        shared = _kept(launcher, x, columns, 2)
        moments = launcher.empty((count, 2), wide) if shared else _row_moments(launcher, x, columns, vector, eps, rms)
        sums = None if shared else launcher.empty((count, 2), wide)
        args = (*_pointers(launcher, x, g, weight, None, dx, partial, moments, sums), count, columns, height, eps)
        if shared:
            variants = [_kept_variant("rows_kept_grad", *names, vector, rms, shared)]
        else:
            kind = f"{names[0]}, {names[1]}, {vector}, {str(rms).lower()}"
            variants = [Variant("norm", f"rows_sums<{kind}, {second}>", 512) for second in ("false", "true")]
        for variant in variants:
            launcher.launch(variant, launch.grid_of(launcher, count, 1), _ROWS.pack(*args))
        variant = Variant("norm", f"rows_columns<{names[0]}, {vector}>", 256)
        launcher.launch(variant, (blocks, -(-columns // (256 * vector)), 1), _ROWS.pack(*args))
    return dx, *_sums(launcher, partial, like.dtype)


def _sums(launcher: Launcher, partial: Any, dtype: Any) -> tuple[Any, Any]:
    """The sums of `partial` (count, 2, columns) over its first axis."""
    count, _two, columns = partial.shape
    weight, bias = (launcher.empty((columns,), dtype) for _ in range(2))
    args = _SUMS.pack(*_pointers(launcher, partial, weight, bias), count, columns)
    variant = Variant("norm", f"columns_sum<{launch.NUMBERS[dtype.name]}>", 256)
    launcher.launch(variant, launch.grid_of(launcher, 2 * columns, 32), args)
    return weight, bias


@cache
def _row_variant(kernel: str, number: str, weight: str, vector: int, columns: int, rms: bool) -> tuple[Variant, int]:
    """The kernel for rows of so many elements, and how many rows a block has at a time."""
    lanes = next(lanes for lanes in _LANES if lanes * _HELD >= columns)
    return _row_variant_of(kernel, number, weight, vector, lanes, rms), max(1, 256 // lanes)


@cache
def _row_variant_of(kernel: str, number: str, weight: str, vector: int, lanes: int, rms: bool) -> Variant:
    expression = f"{kernel}<{number}, {weight}, {vector}, {lanes}, {str(rms).lower()}>"
    registers = 255 if number == "double" else 128
    return Variant("norm", expression, max(256, lanes), registers=registers, instructions=_moves(number, vector))


@cache
def _kept_variant(kernel: str, number: str, weight: str, vector: int, rms: bool, shared: int) -> Variant:
    expression = f"{kernel}<{number}, {weight}, {vector}, {str(rms).lower()}>"
    instructions = (r"LD(G\S*128|GSTS)", r"STG\S*128") if _moves(number, vector) else ()
    return Variant("norm", expression, 512, shared, registers=64, instructions=instructions)


def _moves(number: str, vector: int) -> tuple[str, ...]:
    whole = vector * {"double": 8, "float": 4}.get(number, 2) == 16
    return (r"LDG\S*128", r"STG\S*128") if whole else ()


# --- channels


class Channels(NamedTuple):
    """An array whose memory is (images, rows, columns), of which `group` columns of all rows of an image belong
    together.

    Attributes:
        order: of the array's axes in memory.
        parameters: the shape that weight and bias have, one element for each column.
        statistics: the shape of mean and variance, the axes kept.
    """

    images: int
    rows: int
    columns: int
    group: int
    order: Ints
    parameters: Ints
    statistics: Ints


def channels_of(x: Any, axes: Ints, *parameters: Any) -> Channels | None:
    """How x is normalized over `axes` channel by channel, or group by group, with these parameters; None if neither.

    Batch norm: x (N, C, *) over all axes but the second. Instance norm: over all behind it. Group norm: the same, of
    x (N, G, C / G, *), which parameters (G, C / G, 1, …) tell from it, or else the order in memory.
    """
    n = x.ndim
    if n < 2 or not x.size:
        return None
    parameters = tuple(p for p in parameters if p is not None)
    if axes == (0, *range(2, n)):
        how = _channels(x.shape, True, False)
    elif n > 2 and axes == tuple(range(2, n)):
        grouped = parameters[0].shape[1:2] != (1,) if parameters else x.strides[2] == x.dtype.itemsize
        how = _channels(x.shape, False, grouped)
    else:
        return None
    return how if all(p.shape == how.parameters for p in parameters) else None


def by_channel(x: Any) -> Channels:
    """Batch norm of x (N, C, *)."""
    return _channels(x.shape, True, False)


@lru_cache(maxsize=1024)
def _channels(shape: Ints, batch: bool, grouped: bool) -> Channels:
    n = len(shape)
    first = 3 if grouped else 2
    order = (0, *range(first, n), *range(1, first))
    columns, pixels = prod(shape[1:first]), prod(shape[first:])
    parameters = (*shape[1:first], *(1,) * (n - first))
    images, rows = (1, shape[0] * pixels) if batch else (shape[0], pixels)
    statistics = (1 if batch else shape[0], shape[1], *(1,) * (n - 2))
    return Channels(images, rows, columns, shape[2] if grouped else 1, order, parameters, statistics)


def _arranged(launcher: Launcher, a: Any, how: Channels) -> Any:
    """`a` with its axes in the order of memory, copied if it is not so there."""
    return launch.contiguous(launcher, a.transpose(how.order))


def _as_it_was(a: Any, how: Channels) -> Any:
    return a.transpose(tuple(how.order.index(i) for i in range(len(how.order))))


class _Plan(NamedTuple):
    """How an array is divided among blocks: `chunks` of `height` rows of each image, tiles of columns."""

    chunks: int
    height: int
    lanes: int
    blocks: int


@lru_cache(maxsize=1024)
def _plan(images: int, rows: int, columns: int, vector: int, wanted: int) -> _Plan:
    """wanted: how many blocks there should be, roughly."""
    vectors = columns // vector
    lanes = min(32, 1 << (vectors - 1).bit_length())
    tiles = -(-vectors // lanes)
    chunks = max(1, min(wanted // (tiles * images), rows // (256 // lanes * 4)))
    height = -(-rows // chunks)
    chunks = -(-rows // height)
    return _Plan(chunks, height, lanes, chunks * tiles * images)


class _Tiles(NamedTuple):
    """How the columns of each image are divided among blocks that keep theirs in shared memory: `lanes` times `vector`
    columns in each, `arrays` of them kept, in `shared` bytes."""

    lanes: int
    blocks: int
    arrays: int
    shared: int
    threads: int


def _tiles(launcher: Launcher, x: Any, how: Channels, vector: int, arrays: int) -> _Tiles | None:
    """The tiles for x, arranged; as many as possible of so many arrays of its size kept. None where the kernels that go
    through memory more than once are better, or x is not normalized image by image."""
    if how.images != x.shape[0]:
        return None
    return _tiles_within(*how[:4], x.dtype.itemsize, vector, arrays, launcher.processors, launcher.architecture)


@lru_cache(maxsize=1024)
def _tiles_within(
    images: int,
    rows: int,
    columns: int,
    group: int,
    itemsize: int,
    vector: int,
    most: int,
    processors: int,
    architecture: str,
) -> _Tiles | None:
    groups = columns // group
    # So few groups in a tile that its rows are whole sectors; more where that would not occupy a block's threads.
    count = min(groups, _SECTOR // gcd(group * itemsize, _SECTOR))
    while count < groups and rows * count * group < _TILE_THREADS * vector and images * groups > 4 * processors * count:
        count = min(groups, 2 * count)
    lanes, blocks = count * group // vector, images * -(-groups // count)
    size = rows * count * group * itemsize
    has, static = limits(architecture), 2 * _TILE_THREADS * vector * max(4, itemsize)
    arrays = min(most, (has.block_shared - static) // _STEP_HELD * _STEP_HELD // size)
    # A multiprocessor alone reaches a few times its share of the memory's rate. Where still more would be idle, a large
    # tile takes longer than dividing it among all does, although that reads more.
    busy = 4 * blocks >= processors or size <= _SMALL_TILE
    if not arrays or lanes > _TILE_THREADS or not busy:
        return None
    shared = -(-arrays * size // _STEP_HELD) * _STEP_HELD
    alone = 2 * (shared + static // 2 + has.reserved) > has.shared
    return _Tiles(lanes, blocks, arrays, shared, 2 * _TILE_THREADS if alone else _TILE_THREADS)


def _launch_channels(
    launcher: Launcher,
    variant: Variant,
    blocks: int,
    how: Channels,
    plan: _Plan,
    eps: float,
    *,
    x: Any = None,
    y: Any = None,
    g: Any = None,
    weight: Any = None,
    bias: Any = None,
    mean: Any = None,
    variance: Any = None,
    to: Any = None,
    to_y: Any = None,
    partial: Any = None,
    to_weight: Any = None,
    to_bias: Any = None,
    terms: Any = None,
) -> None:
    arrays = (x, y, g, weight, bias, mean, variance, to, to_y, partial, to_weight, to_bias, terms)
    pointers = _pointers(launcher, *arrays)
    words = how.images, plan.chunks, how.columns, how.group, plan.lanes
    launcher.launch(variant, (blocks, 1, 1), _CHANNELS.pack(*pointers, how.rows, plan.height, *words, eps))


def moments(launcher: Launcher, x: Any, how: Channels) -> tuple[Any, Any]:
    """Mean and biased variance."""
    return _moments(launcher, _arranged(launcher, x, how), how)


def _moments(launcher: Launcher, x: Any, how: Channels) -> tuple[Any, Any]:
    wide = statistics_dtype(x)
    vector = _vector(launcher, x, how.columns)
    plan = _plan(how.images, how.rows, how.columns, vector, launcher.processors * 4)
    partial = launcher.empty((how.images, plan.chunks, 2, how.columns), wide)
    variant = _channel_variant("channel_moments", launch.NUMBERS[x.dtype.name], vector)
    _launch_channels(launcher, variant, plan.blocks, how, plan, 0.0, x=x, partial=partial)
    mean, variance = (launcher.empty(how.statistics, wide) for _ in range(2))
    variant = Variant("norm", f"channel_combine<{launch.NUMBERS[x.dtype.name]}>", 128)
    blocks = how.images * how.columns // how.group
    _launch_channels(launcher, variant, blocks, how, plan, 0.0, x=x, partial=partial, mean=mean, variance=variance)
    return mean, variance


def channels(
    launcher: Launcher,
    x: Any,
    weight: Any,
    bias: Any,
    how: Channels,
    eps: float,
    statistics: Any,
    residual: Any = None,
    relu: bool = False,
) -> Any:
    """x normalized, with a residual added and ReLU behind that if so wanted.

    statistics: mean and variance, found here if None.
    """
    x = _arranged(launcher, x, how)
    residual = None if residual is None else _arranged(launcher, residual, how)
    y = launcher.empty(x.shape, x.dtype)
    vector = _vector(launcher, x, how.columns, weight, bias, residual)
    tiles = None if statistics or relu or residual is not None else _tiles(launcher, x, how, vector, 1)
    if tiles:
        variant = _tile_variant(launch.NUMBERS[x.dtype.name], _kind(x, weight, bias), vector, tiles, None)
        plan = _Plan(1, how.rows, tiles.lanes, tiles.blocks)
        _launch_channels(launcher, variant, plan.blocks, how, plan, eps, x=x, weight=weight, bias=bias, to=y)
        return _as_it_was(y, how)
    mean, variance = statistics or _moments(launcher, x, how)
    plan = _plan(how.images, how.rows, how.columns, vector, launcher.processors * 8)
    names = launch.NUMBERS[x.dtype.name], _kind(x, weight, bias), launch.NUMBERS[mean.dtype.name]
    flags = str(residual is not None).lower(), str(relu).lower()
    variant = _channel_variant("channel_apply", *names, vector, *flags)
    arrays = {"x": x, "y": residual, "weight": weight, "bias": bias, "mean": mean, "variance": variance, "to": y}
    _launch_channels(launcher, variant, plan.blocks, how, plan, eps, **arrays)
    return _as_it_was(y, how)


def channels_grad(
    launcher: Launcher,
    g: Any,
    x: Any,
    weight: Any,
    how: Channels,
    eps: float,
    statistics: Any,
    *,
    bias: Any = None,
    relu: bool = False,
    output: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """The gradients of x, weight, bias and the residual behind `channels`. That of the residual is None without
    `output`, the result of that, from which it is seen where ReLU let something pass."""
    x, g = _arranged(launcher, x, how), _arranged(launcher, g, how)
    output = None if output is None else _arranged(launcher, output, how)
    wide = statistics_dtype(x)
    vector = _vector(launcher, x, how.columns, g, weight, bias, output)
    dtype = (x if weight is None else weight).dtype
    direct = how.images == 1 and dtype == wide  # else what is found for each image is added up
    sums = None if direct else launcher.empty((how.images, 2, how.columns), wide)
    to_weight, to_bias = (launcher.empty((how.columns,), dtype) for _ in range(2)) if sums is None else sums[0]
    dx = launcher.empty(x.shape, x.dtype)
    to_residual = None if output is None else launcher.empty(x.shape, x.dtype)
    arrays = {"x": x, "y": output, "g": g, "weight": weight, "bias": bias}
    names = launch.NUMBERS[x.dtype.name], _kind(x, weight, bias), vector
    tiles = None if statistics or relu else _tiles(launcher, x, how, vector, 2)
    if tiles:
        variant = _tile_variant(*names, tiles, tiles.arrays == 2)
        plan = _Plan(1, how.rows, tiles.lanes, tiles.blocks)
        found = {"to": dx, "to_weight": to_weight, "to_bias": to_bias}
        _launch_channels(launcher, variant, plan.blocks, how, plan, eps, **arrays, **found)
    else:
        mean, variance = statistics or _moments(launcher, x, how)
        mask = "OUTPUT" if output is not None else "AGAIN" if relu else "ALL"
        found = {"to": dx, "to_y": to_residual, "to_weight": to_weight, "to_bias": to_bias}
        _grad_through_memory(launcher, how, eps, (*names, mask), {**arrays, "mean": mean, "variance": variance}, found)
    if sums is not None:
        to_weight, to_bias = _sums(launcher, sums, dtype)
    return (
        _as_it_was(dx, how),
        to_weight.reshape(how.parameters),
        to_bias.reshape(how.parameters),
        None if to_residual is None else _as_it_was(to_residual, how),
    )


def _grad_through_memory(
    launcher: Launcher, how: Channels, eps: float, names: tuple[Any, ...], arrays: dict[str, Any], found: dict[str, Any]
) -> None:
    """Launch what `channels_grad` does if blocks do not keep what they need in shared memory.

    Args:
        names: arguments of the kernels' templates.
        arrays: what they read.
        found: where the results go.
    """
    _number, kind, vector, _mask = names
    wide = arrays["mean"].dtype
    plan = _plan(how.images, how.rows, how.columns, vector, launcher.processors * 4)
    groups = how.columns // how.group
    partial = launcher.empty((how.images, plan.chunks, 2, how.columns), wide)
    terms = launcher.empty((how.images, groups, 2), wide)
    variant = _channel_variant("channel_grad_sums", *names)
    _launch_channels(launcher, variant, plan.blocks, how, plan, eps, **arrays, partial=partial)
    variant = Variant("norm", f"channel_grad_combine<{kind}, {launch.NUMBERS[wide.name]}>", 128)
    along = plan._replace(lanes=min(128, 1 << (how.group - 1).bit_length()))
    sums = {"partial": partial, "terms": terms, "to_weight": found["to_weight"], "to_bias": found["to_bias"]}
    _launch_channels(launcher, variant, how.images * groups, how, along, eps, weight=arrays["weight"], **sums)
    plan = _plan(how.images, how.rows, how.columns, vector, launcher.processors * 8)
    variant = _channel_variant("channel_grad_apply", *names)
    results = {"to": found["to"], "to_y": found["to_y"]}
    _launch_channels(launcher, variant, plan.blocks, how, plan, eps, **arrays, terms=terms, **results)


def update_running(
    launcher: Launcher, mean: Any, variance: Any, running_mean: Any, running_var: Any, momentum: float, unbias: float
) -> None:
    """Move running statistics towards a batch's."""
    first = running_mean if running_mean is not None else running_var
    variant = Variant("norm", f"running<{launch.NUMBERS[first.dtype.name]}, {launch.NUMBERS[mean.dtype.name]}>", 256)
    args = _pointers(launcher, mean, variance, running_mean, running_var)
    grid = launch.grid_of(launcher, mean.size, 256)
    launcher.launch(variant, grid, _RUNNING.pack(*args, mean.size, momentum, unbias))


@cache
def _channel_variant(kernel: str, number: str, *more: Any) -> Variant:
    expression = f"{kernel}<{', '.join((number, *map(str, more)))}>"
    vector = next(n for n in more if isinstance(n, int))
    instructions = _moves(number, vector)
    if kernel in ("channel_moments", "channel_grad_sums"):  # which write little
        instructions = instructions[:1]
    return Variant("norm", expression, 256, registers=128, instructions=instructions)


def _tile_variant(number: str, weight: str, vector: int, tiles: _Tiles, both: bool | None) -> Variant:
    return _tile_variant_of(number, weight, vector, tiles.threads, both, tiles.shared)


@cache
def _tile_variant_of(number: str, weight: str, vector: int, threads: int, both: bool | None, shared: int) -> Variant:
    """both: whether the gradient is kept beside x; None for the way forward."""
    more = "" if both is None else f", {str(both).lower()}"
    expression = f"{'tile_normalize' if both is None else 'tile_grad'}<{number}, {weight}, {vector}, {threads}{more}>"
    loads = (r"LDG\S*128",) if both is False else (r"LD(G\S*128|GSTS)",)
    instructions = (*loads, r"STG\S*128") if _moves(number, vector) else ()
    return Variant(
        "norm", expression, threads, shared, registers=80 if threads == 256 else 128, instructions=instructions
    )


@register_variants
def _variants() -> Iterable[Variant]:
    """What common layers launch, for each type; of one, the shapes and the ways that the others have too."""
    for number, vector in (("float", 4), ("half", 8), ("bfloat16", 8)):
        for kernel in ("rows_normalize", "rows_grad"):
            yield _row_variant_of(kernel, number, number, vector, 64, False)
        yield _channel_variant("channel_moments", number, vector)
        yield _channel_variant("channel_apply", number, number, "float", vector, "false", "true")
        for kernel in ("channel_grad_sums", "channel_grad_apply"):
            yield _channel_variant(kernel, number, number, vector, "AGAIN")
        yield Variant("norm", f"columns_sum<{number}>", 256)
        for both in (None, True):
            yield _tile_variant_of(number, number, vector, 256, both, 64 << 10)
    yield _tile_variant_of("float", "float", 4, 512, None, 88 << 10)
    yield _tile_variant_of("half", "float", 8, 512, False, 80 << 10)
    yield _tile_variant_of("double", "double", 2, 256, True, 48 << 10)
    yield _tile_variant_of("half", "half", 1, 256, None, 24 << 10)
    for lanes, rms in ((32, True), (512, False)):
        for kernel in ("rows_normalize", "rows_grad"):
            yield _row_variant_of(kernel, "float", "float", 4, lanes, rms)
    yield _row_variant_of("rows_grad", "double", "double", 2, 64, False)
    yield _row_variant_of("rows_grad", "half", "float", 1, 32, False)
    for number, vector in (("float", 4), ("bfloat16", 8)):
        for kernel in ("rows_kept", "rows_kept_grad"):
            yield _kept_variant(kernel, number, number, vector, False, 64 << 10)
    yield Variant("norm", "rows_moments<float, 4, false>", 512)
    yield Variant("norm", "rows_apply<float, float, 4>", 512)
    yield Variant("norm", "rows_sums<float, float, 4, false, false>", 512)
    yield Variant("norm", "rows_sums<float, float, 4, false, true>", 512)
    yield Variant("norm", "rows_columns<float, 4>", 256)
    yield Variant("norm", "channel_combine<half>", 128)
    yield Variant("norm", "channel_grad_combine<float, float>", 128)
    yield _channel_variant("channel_apply", "float", "float", "float", 4, "true", "true")
    yield _channel_variant("channel_grad_sums", "float", "float", 4, "OUTPUT")
    yield _channel_variant("channel_grad_apply", "float", "float", 4, "OUTPUT")
    yield _channel_variant("channel_grad_apply", "double", "double", 2, "ALL")
    yield Variant("norm", "running<float, float>", 256)
