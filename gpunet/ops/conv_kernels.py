"""How a convolution is launched: which kernel of kernels/conv_*.cu, with which tile, in which grid.

Each of the three passes is a product of matrices, one of which, the windows of an image, is never made; see
kernels/conv.cuh. `forward`, `input_grad` and `weight_grad` make a `Plan` once for each combination of shapes, types and
alignment they meet, and launch it. Where windows are the pixels themselves (kernels of one element) or whole images,
the pass is a plain product and `gpunet.ops.gemm` has it. Arrays lie with their channels last, weights as (*kernel,
inputs, outputs); others are copied first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import product
from struct import Struct
from typing import Any, NamedTuple

from gpunet.backends.kernel import Launcher, Variant, capability, register_variants
from gpunet.dtypes import get_float32_precision
from gpunet.ops import gemm, launch

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

# `ConvArgs` of kernels/conv.cuh behind its MatmulArgs.
_WINDOWS = Struct("4q29i4x")
_CLASS = Struct("q12i")
_MOST_CLASSES = 8
_POINTERS = Struct("7P")
_MATMUL = Struct("9q10q2d8i")
_MOST = 2**31 - 257

FORWARD, INPUT_GRAD, WEIGHT_GRAD = PASSES = ("FORWARD", "INPUT_GRAD", "WEIGHT_GRAD")


class Geometry(NamedTuple):
    """A convolution's shape, always with three spatial axes: the first ones have length 1 where there are fewer.

    Attributes:
        images: how many there are.
        inputs, outputs: channels of x and of y, of all groups.
        size, out: pixels of x and of y.
        before: padding before the first pixel of x.
    """

    images: int
    inputs: int
    outputs: int
    groups: int
    size: Ints
    out: Ints
    kernel: Ints
    stride: Ints
    before: Ints
    dilation: Ints

    @property
    def is_product(self) -> bool:
        """Whether windows are single pixels, each one once, or whole images: then x itself is the window matrix."""
        if self.groups > 1 or any(self.before):
            return False
        if self.kernel == (1, 1, 1):
            return self.size == self.out
        return self.kernel == self.size and self.dilation == (1, 1, 1) and self.out == (1, 1, 1)


@lru_cache(maxsize=4096)
def geometry(
    x: Ints, out: Ints, weight: Ints, stride: Ints, padding: Pairs, dilation: Ints, groups: int
) -> Geometry | None:
    """That of a convolution of x (N, C, *spatial) to `out` (N, O, *output); None with more than three spatial axes."""
    missing = 5 - len(x)
    if missing < 0:
        return None
    ones, zeros = (1,) * missing, (0,) * missing
    return Geometry(
        *(x[0], x[1], weight[0], groups, ones + x[2:], ones + out[2:], ones + weight[2:], ones + stride),
        *(zeros + tuple(p for p, _ in padding), ones + dilation),
    )


# --- the parts of a convolution ---------------------------------------------------------------------------------------


class Class(NamedTuple):
    """The rows of a result that have the same taps: ConvClass of kernels/conv.cuh."""

    weight: int
    rows: Ints
    origin: Ints
    taps: Ints
    target: Ints

    @property
    def pixels(self) -> int:
        """How many rows there are of each image."""
        return math.prod(self.rows)


class Windows(NamedTuple):
    """How the rows of a window matrix lie in its image, as in kernels/conv.cuh."""

    size: Ints
    row_step: Ints
    tap_step: Ints
    weight_step: Ints
    target_step: Ints
    target_size: Ints
    classes: tuple[Class, ...]


def windows_of(g: Geometry, which: str) -> Windows:
    """The windows of x, or for INPUT_GRAD those of y's gradient."""
    strides = tuple(math.prod(g.kernel[i + 1 :]) * g.inputs // g.groups * g.outputs for i in range(3))
    if which != INPUT_GRAD:
        whole = Class(0, g.out, tuple(-p for p in g.before), g.kernel, (0, 0, 0))
        return Windows(g.size, g.stride, g.dilation, strides, (1, 1, 1), g.out, (whole,))
    classes = []
    for axes in product(*map(_remainders, g.size, g.kernel, g.stride, g.before, g.dilation, strides)):
        first, rows, origin, taps, target = zip(*axes)
        if 0 in taps:
            taps = (0, 1, 1)  # what kernels divide by is not zero
        classes.append(Class(sum(first), rows, origin, taps, target))
    common = tuple(map(math.gcd, g.stride, g.dilation))
    steps = tuple(s // c * step for s, c, step in zip(g.stride, common, strides))
    backwards = tuple(-d // c for d, c in zip(g.dilation, common))
    return Windows(g.out, (1, 1, 1), backwards, steps, g.stride, g.size, tuple(classes))


def _remainders(length: int, kernel: int, stride: int, before: int, dilation: int, tap: int) -> Iterator[Ints]:
    """Of the pixels along an axis, for each remainder modulo the stride: where the first tap that reaches them is in
    the weight, how many pixels they are, which pixel of y that tap of the first one comes from, how many taps, and the
    first one."""
    step = stride // math.gcd(stride, dilation)
    for first in range(min(stride, length)):
        count = -(-(length - first) // stride)
        k = next((k for k in range(min(step, kernel)) if (first + before - k * dilation) % stride == 0), None)
        if k is None:
            yield 0, count, 0, 0, first
        else:
            yield k * tap, count, (first + before - k * dilation) // stride, -(-(kernel - k) // step), first


# --- the kernels ------------------------------------------------------------------------------------------------------

# Multiply-adds: block tile (M, N), a warp's part of it, and how many elements it loads at a time. INPUT_GRAD has no
# registers for the largest, nor has sm_70 for FORWARD.
_SIMT_TILES = {
    "double": (((64, 64, 32, 32), (2,)), ((32, 32, 16, 16), (1,))),
    "float": (
        ((128, 128, 64, 32), (4,)),
        ((128, 64, 32, 32), (1,)),
        ((64, 64, 32, 32), (1, 4)),
        ((32, 32, 32, 16), (1, 4)),
    ),
    "half": (((64, 64, 32, 32), (1, 8)), ((32, 32, 32, 16), (1,))),
    "bfloat16": (((64, 64, 32, 32), (1, 8)), ((32, 32, 32, 16), (1,))),
}
_WIDTHS = {"double": 2, "float": 4, "tf32": 4, "half": 8, "bfloat16": 8}  # elements in 16 bytes


def _simt_choice(number: str, which: str, tile: tuple[int, int, int, int], vector: int) -> gemm.Choice:
    m, n, warp_m, warp_n = tile
    k = 2 * max(_WIDTHS[number], 4)
    arguments = ", ".join(map(str, (number, which, m, n, k, warp_m, warp_n, vector)))
    variant = Variant(
        "conv_simt",
        f"conv_simt<{arguments}>",
        m // warp_m * (n // warp_n) * 32,
        requires="sm_80+" if (m, n) == (128, 128) else "sm_70+",
        registers=255 if number == "double" else 168,  # 128 before sm_100, where they suffice
        instructions=("DFMA" if number == "double" else "FFMA", *(() if vector == 1 else (r"LDG\S*128",))),
    )
    return gemm.Choice(f"simt {m}x{n}", variant, m, n, k)


def _simt(number: str, which: str, vector: int) -> Iterator[gemm.Choice]:
    for tile, vectors in _SIMT_TILES[number]:
        if vector in vectors and (which != INPUT_GRAD or tile[:2] != (128, 128)):
            yield _simt_choice(number, which, tile, vector)


# Sums that are short, without tiles. Gradients of weights hold sums for nine taps in registers, so have fewer channels.
_PIXELS, _TAPS = 4, 9  # as in kernels/conv_direct.cu
_DIRECT_WIDTHS = {"double": 2, "float": 4, "half": 8, "bfloat16": 8}
_FEW = 32  # sums of so many products are short


def _direct_choice(number: str, which: str, sharing: str, vector: int) -> gemm.Choice:
    if which == WEIGHT_GRAD:
        variant = Variant("conv_direct", f"conv_direct_weight_grad<{number}, {vector}, {sharing}>", 256)
    else:
        wide = (r"LDG\S*128", r"STG\S*128") if vector > 1 else ()
        name = f"conv_direct<{number}, {which}, {vector}, {sharing}>"
        variant = Variant("conv_direct", name, 256, instructions=wide)
    return gemm.Choice("direct", variant, _PIXELS, vector, 1)


def _direct_vector(number: str, which: str) -> int:
    return min(_DIRECT_WIDTHS[number], 4) if which == WEIGHT_GRAD else _DIRECT_WIDTHS[number]


def _direct(g: Geometry, number: str, which: str, aligned: bool) -> gemm.Choice | None:
    """The kernel for depthwise convolutions and those of few input channels; None for others."""
    inputs, outputs = g.inputs // g.groups, g.outputs // g.groups
    few = which != INPUT_GRAD and inputs <= 4 and inputs * math.prod(g.kernel) <= _FEW
    if not (few if g.groups == 1 else inputs == 1):
        return None
    vector = _direct_vector(number, which)
    if aligned and inputs == outputs == 1 and g.groups > 1 and g.groups % vector == 0:
        return _direct_choice(number, which, "ALIKE", vector)
    if aligned and which != INPUT_GRAD and outputs % vector == 0:
        return _direct_choice(number, which, "SHARED", vector)
    return _direct_choice(number, which, "EACH", 1)


def _all_direct() -> Iterator[gemm.Choice]:
    for number, which in product(_DIRECT_WIDTHS, PASSES):
        yield _direct_choice(number, which, "ALIKE", _direct_vector(number, which))
        if which != INPUT_GRAD:
            yield _direct_choice(number, which, "SHARED", _direct_vector(number, which))
        yield _direct_choice(number, which, "EACH", 1)


# Tensor cores: block tile, bytes along K in a stage, a warp's part of the tile, and stages.
_MMA_TILES = (
    gemm.MmaTile(128, 256, 64, 64, 64, 4),
    gemm.MmaTile(128, 128, 64, 64, 64, 3),
    gemm.MmaTile(64, 64, 128, 32, 32, 3),
)


def _mma_choice(number: str, which: str, tile: gemm.MmaTile) -> gemm.Choice:
    m, n, line, warp_m, warp_n, stages = tile
    k = line * _WIDTHS[number] // 16
    arguments = ", ".join(map(str, (number, which, m, n, k, warp_m, warp_n, stages)))
    instructions = [gemm.HMMA[number], r"LDGSTS\S*128"]
    if number != "tf32" or which != WEIGHT_GRAD:
        instructions.append("LDSM")
    variant = Variant(
        "conv_mma",
        f"conv_mma<{arguments}>",
        threads=m // warp_m * (n // warp_n) * 32,
        shared=stages * (m + n) * line,
        requires="sm_80+",
        instructions=tuple(instructions),
    )
    return gemm.Choice(f"mma {m}x{n}", variant, m, n, k)


def _mma(number: str, which: str, vector: int) -> Iterator[gemm.Choice]:
    if number not in ("float", "double") and vector > 1:
        for tile in _MMA_TILES:
            yield _mma_choice(number, which, tile)


# Hopper's tensor cores: block tile, and how many of its steps along K shared memory holds.
_WGMMA_TILES = ((128, 256, 4), (128, 128, 6), (64, 128, 4), (64, 64, 6))


def _wgmma_choice(number: str, layout: str | None, tile: tuple[int, int, int]) -> gemm.Choice:
    """layout: of the weight; None for WEIGHT_GRAD."""
    m, n, stages = tile
    kernel = "conv_wgmma" if layout else "conv_wgmma_weight_grad"
    arguments = ", ".join(map(str, (number, *tile, *([layout] if layout else []))))
    variant = Variant(
        "conv_wgmma",
        f"{kernel}<{arguments}>",
        threads=128 + 2 * m,
        shared=stages * (m + n) * 128 + m // 64 * 16384 + 16 * stages,  # the ring, the epilogue's strips, barriers
        requires="sm_90a",
        registers=168 if m == 128 else 128,
        instructions=("HGMMA", "UTMALDG", "USETMAXREG"),
    )
    return gemm.Choice(f"wgmma {m}x{n}", variant, m, n, 128 * _WIDTHS[number] // 16, persistent=1 if m == 128 else 2)


def _wgmma(g: Geometry, number: str, which: str, vector: int) -> Iterator[gemm.Choice]:
    """For boxes of pixels whose windows are boxes of the image."""
    is_flat = g.out[0] == g.size[0] == g.kernel[0] == 1
    is_box = g.groups == 1 and g.stride == (1, 1, 1) and is_flat
    if not is_box or number in ("float", "double") or vector == 1 or (number == "tf32" and which == WEIGHT_GRAD):
        return
    layout = None if which == WEIGHT_GRAD else "MN_MAJOR" if which == FORWARD and number != "tf32" else "K_MAJOR"
    for tile in _WGMMA_TILES:
        yield _wgmma_choice(number, layout, tile)


@lru_cache(maxsize=4096)
def _box_of(images: int, rows: int, columns: int, most: int) -> tuple[Ints, int]:
    """The box of at most so many pixels that the fewest of cover all pixels: images, rows and columns; and how many
    boxes these are."""
    found = []
    for c in range(1, min(columns, most) + 1):
        for r in range(1, min(rows, most // c) + 1):
            n = min(images, most // (c * r))
            found.append((-(-images // n) * -(-rows // r) * -(-columns // c), -c, -r, (n, r, c)))
    count, *_, box = min(found)
    return box, count


def choices(g: Geometry, number: str, which: str, vector: int, architecture: str) -> list[gemm.Choice]:
    """The kernels for a pass on an architecture; `number` is what products are computed in, and `vector` how many
    elements can be loaded at a time."""
    plain = "float" if number == "tf32" else number
    found = (*_simt(plain, which, vector), *_mma(number, which, vector), *_wgmma(g, number, which, vector))
    return [choice for choice in found if choice.variant.runs_on(architecture)]


@register_variants
def _variants() -> Iterator[Variant]:
    for number, which in product(_SIMT_TILES, PASSES):
        for vector in (1, _WIDTHS[number]):
            for choice in _simt(number, which, vector):
                yield choice.variant
    for choice in _all_direct():
        yield choice.variant
    for number, which in product(("tf32", "half", "bfloat16"), PASSES):
        for choice in _mma(number, which, _WIDTHS[number]):
            yield choice.variant
    for number, layout, tile in product(("tf32", "half", "bfloat16"), ("K_MAJOR", "MN_MAJOR", None), _WGMMA_TILES):
        if number != "tf32" or layout == "K_MAJOR":
            yield _wgmma_choice(number, layout, tile).variant


# --- the plan ---------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How to compute a pass.

    Attributes:
        choice: the kernel.
        launches: grid and arguments, behind the pointers, of each.
        reduction: what adds up the parts of a split sum, and its grid; or None.
        workspace: how many elements these take.
        maps: what `Launcher.tensor_map` is to be told of the image and the weight, by kernels that read them so.
        turned: whether the weight is to be (*kernel, outputs, inputs).
    """

    choice: gemm.Choice
    launches: tuple[tuple[tuple[int, int, int], bytes], ...]
    reduction: tuple[Variant, tuple[int, int, int], bytes] | None
    workspace: int
    maps: tuple[tuple[Any, ...], ...] = ()
    turned: bool = False


class Sizes(NamedTuple):
    """A pass as a product of matrices for each group: C (M, N), sums of K products."""

    m: int
    n: int
    k: int


def sizes_of(g: Geometry, which: str) -> Sizes:
    """M of INPUT_GRAD counts the pixels of all classes; K is the longest sum."""
    taps, inputs, outputs = math.prod(g.kernel), g.inputs // g.groups, g.outputs // g.groups
    if which == FORWARD:
        return Sizes(g.images * math.prod(g.out), outputs, taps * inputs)
    if which == WEIGHT_GRAD:
        return Sizes(taps * inputs, outputs, g.images * math.prod(g.out))
    longest = max(math.prod(part.taps) for part in windows_of(g, which).classes)
    return Sizes(g.images * math.prod(g.size), inputs, longest * outputs)


@lru_cache(maxsize=4096)
def make_plan(
    g: Geometry, which: str, dtype: str, aligned: bool, activation: int, has_bias: bool, architecture: str,
    processors: int, precision: str,
) -> Plan | None:  # fmt: skip
    """The plan by the kernel that should be the quickest; None where no kernel can do it.

    aligned: whether all addresses are multiples of 16 bytes.
    """
    found = plans(g, which, dtype, aligned, activation, has_bias, architecture, processors, precision)
    return next(found, None)


def plans(
    g: Geometry, which: str, dtype: str, aligned: bool, activation: int, has_bias: bool, architecture: str,
    processors: int, precision: str,
) -> Iterator[Plan]:  # fmt: skip
    """The ways to compute a pass, the one first that should be the quickest."""
    sizes, windows = sizes_of(g, which), windows_of(g, which)
    if max(sizes) > _MOST or 0 in (sizes.m, sizes.n, g.inputs, g.outputs):
        return
    source = g.outputs if which == INPUT_GRAD else g.inputs
    image = math.prod(windows.size) * source
    rows = min(part.pixels for part in windows.classes)
    if image * (128 // rows + 2) >= 2**31:  # what a block reads, it counts in 32 bits
        return
    compute = "tf32" if dtype == "float32" and precision == "high" else dtype
    direct = _direct(g, launch.NUMBERS[dtype], which, aligned)
    if direct is not None and sizes.m * max(g.inputs, g.outputs) < 2**31 * direct.n:  # threads are counted in 32 bits
        yield _direct_plan(g, which, direct, windows, sizes, activation, processors, dtype)
    number = "tf32" if compute == "tf32" else launch.NUMBERS[dtype]
    vector = _WIDTHS[number]
    uneven = (g.inputs // g.groups) % vector and which != INPUT_GRAD  # whose loads are all along the outputs
    if not aligned or uneven or (g.outputs // g.groups) % vector:
        vector = 1
    # The mean length of the sums decides how long it takes.
    reach = sum(part.pixels * math.prod(part.taps) for part in windows.classes)
    work = (
        sizes.k
        if which == WEIGHT_GRAD
        else max(1, reach * source // g.groups // sum(p.pixels for p in windows.classes))
    )
    one = gemm.Operand(1, 1, 16)
    problem = gemm.Problem(dtype, compute, sizes.m, sizes.n, work, (gemm.Axis(g.groups, 1, 1, 1),), one, one)
    can_split = len(windows.classes) == 1 and (g.groups == 1 or not has_bias)
    rates = gemm.rates_of(architecture)
    ranked = []
    plain = problem
    for whole in choices(g, number, which, vector, architecture):
        problem = plain
        if whole.persistent:  # its tiles, or its steps, are boxes, and not all of them are full
            most = whole.k if which == WEIGHT_GRAD else whole.m
            boxes = _box_of(g.images, *windows.classes[0].rows[1:], most)[1]
            if which == WEIGHT_GRAD:
                problem = plain._replace(m=math.prod(g.kernel) * -(-g.inputs // 64) * 64, k=boxes * most)
            else:
                problem = plain._replace(m=boxes * most)
        for splits in gemm.split_counts(problem, whole, processors) if can_split else (1,):
            choice = whole._replace(splits=splits)
            ranked.append((gemm.predict(problem, choice, processors, rates), choice))
    for _, choice in sorted(ranked, key=lambda pair: pair[0]):
        plan = _wgmma_plan if choice.persistent else _plan_of
        yield plan(g, which, choice, windows, sizes, activation, processors, dtype, vector)


def _plan_of(
    g: Geometry, which: str, choice: gemm.Choice, windows: Windows, sizes: Sizes, activation: int, processors: int,
    dtype: str, vector: int,
) -> Plan:  # fmt: skip
    inputs, outputs = g.inputs // g.groups, g.outputs // g.groups
    m, n, k = sizes
    split_k = -(-k // (choice.splits * choice.k)) * choice.k
    splits = max(1, -(-k // split_k)) if k else 1
    row = {FORWARD: g.outputs, INPUT_GRAD: g.inputs, WEIGHT_GRAD: g.outputs}[which]
    batch_a, batch_b, batch_c = {
        FORWARD: (inputs, outputs, outputs),
        INPUT_GRAD: (outputs, outputs, inputs),
        WEIGHT_GRAD: (inputs, outputs, outputs),
    }[which]
    b_row, b_col = (1, g.outputs) if which == INPUT_GRAD else (g.outputs, 1)
    matmul = _MATMUL.pack(
        0, 0, b_row, b_col, row, 0, 1, row, row,
        0, batch_a, 0, batch_b, 0, batch_c, 0, batch_c, 0, batch_c,
        1.0, 0.0,
        m, n, k, g.groups, g.groups, splits, split_k, activation,
    )  # fmt: skip
    advance: Ints = (0, 0, 0, 0)
    if which == WEIGHT_GRAD:
        # A thread's next load is as many windows on as all threads load at a time.
        advance = _digits(choice.variant.threads * vector // choice.m, windows.classes[0].rows)
    launches = []
    for classes, about in _launches(g, which, windows, advance):
        rows = m if which == WEIGHT_GRAD else g.images * max(c.pixels for c in classes)
        grid = -(-rows // choice.m) * -(-n // choice.n), min(g.groups * len(classes), 65535), splits
        launches.append((grid, matmul + about))
    return _finish(choice._replace(splits=splits), launches, matmul, g.groups * m * n, processors, dtype)


def _wgmma_plan(
    g: Geometry, which: str, choice: gemm.Choice, windows: Windows, sizes: Sizes, activation: int, processors: int,
    dtype: str, vector: int,
) -> Plan:  # fmt: skip
    """The plan by conv_wgmma, whose tiles are boxes of pixels, or conv_wgmma_weight_grad, whose steps are; the parts of
    a split sum are counted in steps."""
    (whole,) = windows.classes
    m, n, k = sizes
    source = g.outputs if which == INPUT_GRAD else g.inputs
    taps = math.prod(g.kernel)
    box, boxes = _box_of(g.images, *whole.rows[1:], choice.k if which == WEIGHT_GRAD else choice.m)
    if which == WEIGHT_GRAD:
        rows, steps = -(-taps * -(-source // 64) * 64 // choice.m), boxes
    else:
        rows, steps = boxes, taps * -(-source // choice.k)
    split_k = -(-steps // choice.splits)
    splits = -(-steps // split_k)
    matmul = _MATMUL.pack(
        *(4 * [0]), n, 0, 1, n, n, *(10 * [0]), 1.0, 0.0, m, n, k, 1, 1, splits, split_k, activation
    )  # fmt: skip
    ((_, about),) = _launches(g, which, windows, (0, 0, 0, 0), box=box)
    grid = min(rows * -(-n // choice.n) * splits, processors * choice.persistent), 1, 1
    itemsize = 16 // vector

    def pixels(channels: int, size: Ints) -> tuple[Any, ...]:
        line = channels * itemsize
        shape, strides = (channels, *size[:0:-1], g.images), (line, size[2] * line, size[1] * size[2] * line)
        return itemsize, shape, strides, (choice.k, *box[::-1])

    plan = _finish(choice._replace(splits=splits), [(grid, matmul + about)], matmul, m * n, processors, dtype)
    if which == WEIGHT_GRAD:
        return plan._replace(maps=(pixels(g.inputs, g.size), pixels(g.outputs, g.out)))
    by_lines = ", K_MAJOR" in choice.variant.expression
    turned = which == FORWARD and by_lines
    along, across = (g.inputs, g.outputs) if turned else (g.outputs, g.inputs)
    strides = (along * itemsize, along * across * itemsize)
    weight = itemsize, (along, across, taps), strides, (choice.k, choice.n if by_lines else choice.k, 1)
    return plan._replace(maps=(pixels(source, windows.size), weight), turned=turned)


def _direct_plan(
    g: Geometry, which: str, choice: gemm.Choice, windows: Windows, sizes: Sizes, activation: int, processors: int,
    dtype: str,
) -> Plan:  # fmt: skip
    """The plan by a kernel of conv_direct.cu, which sees one product whose columns are the channels of all groups."""
    vector = choice.n
    m, _, k = sizes
    n = g.inputs if which == INPUT_GRAD else g.outputs
    b_row, b_col = (1, g.outputs) if which == INPUT_GRAD else (g.outputs, 1)
    splits, split_k, lanes, across = 1, k, 0, 1
    advance: Ints = (0, 0, 0, 0)
    if which == WEIGHT_GRAD:
        lanes = min(32, 2 ** math.ceil(math.log2(n / vector)))
        streams, across = 256 // lanes, -(-n // (lanes * vector)) * -(-m // _TAPS)
        splits = max(1, min(4 * processors // across, k // (8 * streams), 1024))
        split_k = -(-k // splits)
        splits = -(-k // split_k)
        advance = _digits(streams, windows.classes[0].rows)
    matmul = _MATMUL.pack(
        0, 0, b_row, b_col, n, 0, 1, n, n,
        *(10 * [0]),
        1.0, 0.0,
        m, n, k, 1, g.groups, splits, split_k, activation,
    )  # fmt: skip
    launches = []
    for classes, about in _launches(g, which, windows, advance, lanes):
        if which == WEIGHT_GRAD:
            grid = -(-n // (lanes * vector)), -(-m // _TAPS), splits
        else:
            pixels = max(c.rows[0] * c.rows[1] * -(-c.rows[2] // _PIXELS) for c in classes)
            blocks = -(-g.images * pixels * (n // vector) // 256)
            grid = min(blocks, 32 * processors), len(classes), 1
        launches.append((grid, matmul + about))
    return _finish(choice._replace(splits=splits), launches, matmul, m * n, processors, dtype)


def _finish(
    choice: gemm.Choice, launches: list[Any], matmul: bytes, elements: int, processors: int, dtype: str
) -> Plan:
    """The plan of these launches, and of what adds up their parts."""
    if choice.splits == 1:
        return Plan(choice, tuple(launches), None, 0)
    grid = min(-(-elements // 1024), 4 * processors), 1, 1
    reduction = gemm.reduction(launch.NUMBERS[dtype]), grid, matmul
    return Plan(choice, tuple(launches), reduction, choice.splits * elements)


def _launches(
    g: Geometry, which: str, windows: Windows, advance: Ints, lanes: int = 0, box: Ints = (0, 0, 0)
) -> Iterator[tuple[tuple[Class, ...], bytes]]:
    """The classes that each launch has, and ConvArgs behind its MatmulArgs."""
    source = g.outputs if which == INPUT_GRAD else g.inputs
    pixel = (math.prod(windows.size[i + 1 :]) * source for i in range(3))
    common = (
        math.prod(windows.size) * source, *windows.weight_step, *pixel, *windows.size, *windows.row_step,
        *windows.tap_step, source // g.groups, g.images, *windows.target_step, *windows.target_size, *advance,
    )  # fmt: skip
    for start in range(0, len(windows.classes), _MOST_CLASSES):
        classes = windows.classes[start : start + _MOST_CLASSES]
        packed = b"".join(_CLASS.pack(c.weight, *c.rows, *c.origin, *c.taps, *c.target) for c in classes)
        yield (
            classes,
            _WINDOWS.pack(*common, len(classes), lanes, *box) + packed.ljust(_MOST_CLASSES * _CLASS.size, b"\0"),
        )


def _digits(count: int, rows: Ints) -> Ints:
    """`count` rows in images and rows along each axis."""
    digits: list[int] = []
    for length in reversed(rows):
        count, digit = divmod(count, length)
        digits.insert(0, digit)
    return (count, *digits)


def run(launcher: Launcher, plan: Plan, a: Any, b: Any, c: Any, bias: Any = None, residual: Any = None) -> None:
    """Launch a plan. a: the image; b: the weight (*kernel, inputs, outputs), or y's gradient; all of them dense, with
    their channels last."""
    workspace: Any = None
    if plan.turned:
        b = launch.copy(launcher, b.swapaxes(-1, -2))
    if plan.workspace:
        workspace = launcher.empty((plan.workspace,), "float64" if c.dtype == "float64" else "float32")
    pointers = _POINTERS.pack(
        *(0 if array is None else launcher.pointer(array) for array in (a, b, c, bias, residual, None, workspace))
    )
    maps = tuple(launcher.tensor_map(launcher.pointer(array), *about) for array, about in zip((a, b), plan.maps))
    for grid, constants in plan.launches:
        launcher.launch(plan.choice.variant, grid, pointers + constants, *maps)
    if plan.reduction is not None:
        variant, grid, constants = plan.reduction
        launcher.launch(variant, grid, pointers + constants)


# --- the passes -------------------------------------------------------------------------------------------------------


@cache
def _name(dtype: Any) -> str:
    """That of a dtype, which takes NumPy a while to say."""
    return dtype.name


def _fit(*arrays: Any) -> bool:
    """Whether arrays have one dtype that kernels take."""
    dtypes = {array.dtype for array in arrays if array is not None}
    return len(dtypes) == 1 and _name(next(iter(dtypes))) in launch.FLOATING


def _plan(launcher: Launcher, g: Geometry, which: str, activation: int, has_bias: bool, *arrays: Any) -> Plan | None:
    aligned = all(launcher.pointer(array) % 16 == 0 for array in arrays)
    return make_plan(
        g, which, _name(arrays[0].dtype), aligned, activation, has_bias, launcher.architecture, launcher.processors,
        get_float32_precision(),
    )  # fmt: skip


_WORTH_PADDING = 2**29  # multiplications from which on tensor cores make up for a copy of the image


def _padded(launcher: Launcher, g: Geometry, which: str, dtype: str) -> Geometry:
    """With as many input channels as tensor cores want, where that is worth copies with zeros in the rest."""
    number = "tf32" if dtype == "float32" and get_float32_precision() == "high" else launch.NUMBERS[dtype]
    vector = _WIDTHS[number]
    if (
        number in ("float", "double")
        or capability(launcher.architecture) < 80
        or g.groups > 1
        or g.inputs % vector == 0
        or g.outputs % vector
        or math.prod(sizes_of(g, which)) < _WORTH_PADDING
    ):
        return g
    return g._replace(inputs=-(-g.inputs // vector) * vector)


def _with_zeros(launcher: Launcher, x: Any, axis: int, length: int) -> Any:
    """x with zeros behind it along an axis, up to a length."""
    if x.shape[axis] == length:
        return x
    y = launch.full(launcher, (*x.shape[:axis], length, *x.shape[axis + 1 :]), 0, x.dtype)
    launch.copy_into(launcher, y[(slice(None),) * axis + (slice(x.shape[axis]),)], x)
    return y


def _weight_last(launcher: Launcher, weight: Any) -> Any:
    """The weight (O, I, *kernel) as a dense array (*kernel, I, O)."""
    return launch.contiguous(launcher, weight.transpose(*range(2, weight.ndim), 1, 0))


def _pixels(launcher: Launcher, x: Any) -> Any:
    """x (N, C, *spatial) as a dense array (N, *spatial, C)."""
    return launch.contiguous(launcher, x.transpose(0, *range(2, x.ndim), 1))


def _channels_first(x: Any) -> Any:
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def forward(
    launcher: Launcher, g: Geometry | None, x: Any, weight: Any, bias: Any = None, residual: Any = None,
    activation: str | None = None,
) -> Any:  # fmt: skip
    """activation(convolution of x + bias) + residual.

    Returns:
        (N, O, *output), channels last; or NotImplemented.
    """
    if g is None or not _fit(x, weight, bias, residual):
        return NotImplemented
    out = g.out[5 - x.ndim :]
    source, weights = _pixels(launcher, x), _weight_last(launcher, weight)
    bias = None if bias is None else launch.contiguous(launcher, bias)
    residual = None if residual is None else _pixels(launcher, residual)
    if g.is_product and source.size and weights.size:
        length = math.prod(g.kernel) * g.inputs
        rows = g.images * math.prod(g.out)
        y = gemm.multiply(
            launcher, source.reshape(rows, length), weights.reshape(length, g.outputs), bias=bias,
            residual=None if residual is None else residual.reshape(rows, g.outputs), activation=activation,
        )  # fmt: skip
        if y is not NotImplemented:
            return _channels_first(y.reshape(g.images, *out, g.outputs))
    y = launcher.empty((g.images, *out, g.outputs), x.dtype)
    if y.size:
        g = _padded(launcher, g, FORWARD, _name(x.dtype))
        source = _with_zeros(launcher, source, source.ndim - 1, g.inputs)
        weights = _with_zeros(launcher, weights, weights.ndim - 2, g.inputs // g.groups)
        plan = _plan(launcher, g, FORWARD, gemm.ACTIVATIONS[activation], bias is not None, source, weights)
        if plan is None:
            return NotImplemented
        run(launcher, plan, source, weights, y, bias, residual)
    return _channels_first(y)


def input_grad(launcher: Launcher, g: Geometry | None, gradient: Any, weight: Any) -> Any:
    """The gradient with respect to the input (N, C, *spatial), channels last; or NotImplemented."""
    if g is None or not _fit(gradient, weight):
        return NotImplemented
    size = g.size[5 - gradient.ndim :]
    source, weights = _pixels(launcher, gradient), _weight_last(launcher, weight)
    if g.is_product and source.size and weights.size:
        length = math.prod(g.kernel) * g.inputs
        rows = g.images * math.prod(g.out)
        y = gemm.multiply(launcher, source.reshape(rows, g.outputs), weights.reshape(length, g.outputs).T)
        if y is not NotImplemented:
            return _channels_first(y.reshape(g.images, *size, g.inputs))
    y = launcher.empty((g.images, *size, g.inputs), gradient.dtype)
    if y.size:
        plan = _plan(launcher, g, INPUT_GRAD, 0, False, source, weights)
        if plan is None:
            return NotImplemented
        run(launcher, plan, source, weights, y)
    return _channels_first(y)


def weight_grad(launcher: Launcher, g: Geometry | None, x: Any, gradient: Any) -> Any:
    """The gradient with respect to the weight (O, I, *kernel), in memory as layers' weights lie; or NotImplemented."""
    if g is None or not _fit(x, gradient):
        return NotImplemented
    kernel = g.kernel[5 - x.ndim :]
    source, rows = _pixels(launcher, x), _pixels(launcher, gradient)
    shape = (*kernel, g.inputs // g.groups, g.outputs)
    total = NotImplemented
    if not math.prod(rows.shape):
        total = launch.full(launcher, shape, 0, x.dtype)
    elif g.is_product and source.size:
        count = g.images * math.prod(g.out)
        length = math.prod(g.kernel) * g.inputs
        total = gemm.multiply(launcher, source.reshape(count, length).T, rows.reshape(count, g.outputs))
    if total is NotImplemented:
        wide = _padded(launcher, g, WEIGHT_GRAD, _name(x.dtype))
        source = _with_zeros(launcher, source, source.ndim - 1, wide.inputs)
        total = launcher.empty((*kernel, wide.inputs // g.groups, g.outputs), x.dtype)
        if total.size:
            plan = _plan(launcher, wide, WEIGHT_GRAD, 0, False, source, rows)
            if plan is None:
                return NotImplemented
            run(launcher, plan, source, rows, total)
        total = launch.contiguous(launcher, total[..., : g.inputs // g.groups, :])
    total = total.reshape(shape)
    return total.transpose(total.ndim - 1, total.ndim - 2, *range(len(kernel)))
