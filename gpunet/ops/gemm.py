"""How a matrix product is launched: which kernel of kernels/matmul_*.cu, with which tile, in which grid.

`multiply` makes a `Plan` once for each combination of shapes, strides, alignment and types it meets, and launches it.
A plan takes the kernel that a model of their times says is the quickest; the model's rates are in gemm.json. Where a
tuning run on a GPU measured another kernel to be the best for shapes of about this size, gemm.json names that one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Launcher, Variant, capability, register_variants
from gpunet.dtypes import get_float32_precision
from gpunet.ops.op import kernels_mode

# The activations of an epilogue as kernels/matmul.cuh numbers them; DERIVATIVE is added to one of them.
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
DERIVATIVE = 5

# The fields of `MatmulArgs` in kernels/matmul.cuh: seven pointers, and what a plan knows beforehand.
_POINTERS = Struct("7P")
_CONSTANTS = Struct("9q10q2d8i")

_MOST = 2**31 - 257  # kernels count rows and columns in 32 bits, up to a tile beyond the last; offsets have 64
_MOST_Y = 65535  # the most blocks along a grid's second axis; a kernel's blocks take several products each, if need be


# --- the problem ------------------------------------------------------------------------------------------------------


class Operand(NamedTuple):
    """A matrix: its strides, counted in elements; and the largest power of two up to 16 that divides, in bytes, its
    address and all of its strides, those of the batch too, but that of adjacent elements."""

    row: int
    col: int
    alignment: int


class Axis(NamedTuple):
    """An axis of the batch: its length, and its strides in A, B and C; 0 where it is broadcast over."""

    length: int
    a: int
    b: int
    c: int


class Problem(NamedTuple):
    """C = A B as the kernels see it: C (M, N), A (M, K), B (K, N), for each index of the batch axes.

    Attributes:
        dtype: of the arrays, by name.
        compute: what products are computed in: `dtype`, or "tf32".
        batch: its axes, none of them of length 1, and no two that could be taken as one. C is contiguous.
    """

    dtype: str
    compute: str
    m: int
    n: int
    k: int
    batch: tuple[Axis, ...]
    a: Operand
    b: Operand

    @property
    def products(self) -> int:
        """How many products there are."""
        return math.prod(axis.length for axis in self.batch)

    @property
    def itemsize(self) -> int:
        return _ITEMSIZES[self.dtype]

    @property
    def layouts(self) -> tuple[str, str]:
        """Along which axis the elements of A and of B are adjacent."""
        return _layout(self.a.col, self.a.row), _layout(self.b.row, self.b.col)

    @property
    def alignment(self) -> int:
        return min(self.a.alignment, self.b.alignment)


def _layout(k_stride: int, mn_stride: int) -> str:
    return "K_MAJOR" if k_stride == 1 else "MN_MAJOR" if mn_stride == 1 else "STRIDED"


_ITEMSIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def make_problem(a: Any, b: Any, addresses: tuple[int, int]) -> Problem | None:
    """The product of a (..., M, K) and b (..., K, N), or None where the kernels cannot address them."""
    dtype = a.dtype.name
    itemsize = _ITEMSIZES.get(dtype)
    if itemsize is None or b.dtype != a.dtype or any(s % itemsize for s in (*a.strides, *b.strides)):
        return None
    (m, k), n = a.shape[-2:], b.shape[-1]
    if max(m, n, k, *a.shape, *b.shape) > _MOST:
        return None
    a_row, a_col = _matrix_strides(a, itemsize)
    b_row, b_col = _matrix_strides(b, itemsize)
    axes = _batch_axes(a, b, itemsize, m * n)
    # Where all products share B, and A's matrices follow each other as their rows do, all rows are one matrix's.
    if axes and axes[-1].b == 0 and (m == 1 or axes[-1].a == m * a_row) and m * axes[-1].length <= _MOST:
        rows = axes.pop()
        a_row = rows.a if m == 1 else a_row
        m *= rows.length
    compute = "tf32" if dtype == "float32" and get_float32_precision() == "high" else dtype
    return Problem(
        dtype,
        compute,
        m,
        n,
        k,
        tuple(axes),
        Operand(a_row, a_col, _alignment(addresses[0], itemsize, a_row, a_col, *(axis.a for axis in axes))),
        Operand(b_row, b_col, _alignment(addresses[1], itemsize, b_row, b_col, *(axis.b for axis in axes))),
    )


def _matrix_strides(x: Any, itemsize: int) -> tuple[int, int]:
    """The strides of the last two axes. That of an axis of length 1 is never used: it gets one that suits kernels."""
    rows, cols = x.shape[-2:]
    row, col = (s // itemsize for s in x.strides[-2:])
    if cols == 1:
        col = _wide(rows) if row == 1 and rows > 1 else 1
    if rows == 1:
        row = _wide(cols) if col == 1 else 1
    return row, col


def _wide(length: int) -> int:
    """A stride beyond `length` elements that is aligned for every type."""
    return -(-length // 16) * 16


def _batch_axes(a: Any, b: Any, itemsize: int, c_stride: int) -> list[Axis]:
    """The axes before the last two, those merged that strides allow to be taken as one."""
    axes: list[Axis] = []
    for i in range(-3, -max(a.ndim, b.ndim) - 1, -1):
        (length_a, stride_a), (length_b, stride_b) = _axis(a, i), _axis(b, i)
        length = length_b if length_a == 1 else length_a
        if length == 1:
            continue
        axis = Axis(length, stride_a // itemsize, stride_b // itemsize, c_stride)
        c_stride *= length
        if axes and axis[1:] == tuple(axes[0].length * stride for stride in axes[0][1:]):
            axes[0] = axes[0]._replace(length=length * axes[0].length)
        else:
            axes.insert(0, axis)
    return axes


def _axis(x: Any, i: int) -> tuple[int, int]:
    """Length and stride in bytes of axis i, counted from the end; an axis that is missing or broadcast has stride 0."""
    return (1, 0) if -i > x.ndim or x.shape[i] == 1 else (x.shape[i], x.strides[i])


def _alignment(address: int, itemsize: int, *strides: int) -> int:
    return math.gcd(16, address, *(s * itemsize for s in strides if s != 1))


# --- the kernels ------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """A way to compute a problem.

    Attributes:
        tile: the name of its kernel and tile in gemm.json.
        variant: the kernel.
        m, n, k: the part of C that a block makes at a time, and how far along K it goes in one step.
        splits: the number of parts that the sum over K is cut into; a second kernel adds them up.
        persistent: how many blocks a multiprocessor gets that stay and take one tile after another; 0 if every tile has
            its own.
    """

    tile: str
    variant: Variant
    m: int
    n: int
    k: int
    splits: int = 1
    persistent: int = 0


# What kernels call the types.
_NUMBERS = {"float64": "double", "float32": "float", "tf32": "tf32", "float16": "half", "bfloat16": "bfloat16"}

_LAYOUTS = [(a, b) for a in ("K_MAJOR", "MN_MAJOR") for b in ("K_MAJOR", "MN_MAJOR")]


def _vector_length(problem: Problem) -> int:
    """How many elements the kernels can load at a time: 16 bytes of them, or one."""
    return 16 // problem.itemsize if min(problem.a.alignment, problem.b.alignment) == 16 else 1


# Multiply-adds: block tile (M, N), and a warp's part of it.
_SIMT_TILES = {
    "double": ((64, 64, 32, 32), (32, 32, 16, 16)),
    "float": ((128, 128, 64, 32), (64, 64, 32, 32), (32, 32, 32, 16)),
    "half": ((64, 64, 32, 32), (32, 32, 32, 16)),
    "bfloat16": ((64, 64, 32, 32), (32, 32, 32, 16)),
}
# The tile in a tile's place where elements are loaded one by one, which takes more registers.
_SINGLY = {(128, 128, 64, 32): (128, 64, 32, 32)}
_WIDTHS = {"double": 2, "float": 4, "tf32": 4, "half": 8, "bfloat16": 8}  # elements in 16 bytes


def _simt_choice(number: str, tile: tuple[int, int, int, int], layouts: tuple[str, str], vector: int) -> Choice:
    m, n, warp_m, warp_n = tile if vector > 1 else _SINGLY.get(tile, tile)
    k = 2 * max(_WIDTHS[number], 4)
    threads = m // warp_m * (n // warp_n) * 32
    arguments = ", ".join(map(str, (number, m, n, k, warp_m, warp_n, *layouts, vector)))
    instructions = ("DFMA" if number == "double" else "FFMA", *(() if vector == 1 else (r"LDG\S*128",)))
    registers = 255 if number == "double" else 128
    variant = Variant(
        "matmul_simt", f"matmul_simt<{arguments}>", threads, registers=registers, instructions=instructions
    )
    return Choice(f"simt {m}x{n}", variant, m, n, k)


def _simt(problem: Problem, architecture: str) -> Iterator[Choice]:
    number, layouts, vector = _NUMBERS[problem.dtype], problem.layouts, _vector_length(problem)
    lengths = (
        problem.k if layouts[0] == "K_MAJOR" else problem.m,
        problem.k if layouts[1] == "K_MAJOR" else problem.n,
    )
    if "STRIDED" in layouts:
        layouts, vector = ("STRIDED", "STRIDED"), 1
    elif any(length % vector for length in lengths):
        vector = 1  # the last of a line would reach beyond its end
    for tile in _SIMT_TILES[number]:
        yield _simt_choice(number, tile, layouts, vector)


def _all_simt() -> Iterator[Choice]:
    for number, tiles in _SIMT_TILES.items():
        for tile in tiles:
            yield _simt_choice(number, tile, ("STRIDED", "STRIDED"), 1)
            for layouts, vector in product(_LAYOUTS, (1, _WIDTHS[number])):
                yield _simt_choice(number, tile, layouts, vector)


class MmaTile(NamedTuple):
    """Of matmul_mma: a block's tile, bytes along K in a stage, a warp's part of the tile, and stages."""

    m: int
    n: int
    line: int
    warp_m: int
    warp_n: int
    stages: int


# By the size of copies from global memory, in bytes. Small copies need more registers. Those of 2 bytes, and all that
# sm_75 has, go through registers themselves, for which two stages suffice.
_MMA_TILES = {
    16: (MmaTile(128, 256, 64, 64, 64, 4), MmaTile(128, 128, 64, 64, 64, 3), MmaTile(64, 64, 128, 32, 32, 3)),
    4: (MmaTile(128, 128, 64, 64, 32, 3), MmaTile(64, 64, 64, 32, 32, 3)),
    2: (MmaTile(128, 128, 64, 64, 32, 2), MmaTile(64, 64, 64, 32, 32, 2)),
}
HMMA = {
    "half": r"HMMA\.(16816|1688)\.F32",
    "bfloat16": r"HMMA\.16816\.F32\.BF16",
    "tf32": r"HMMA\.1688\.F32\.TF32",
}


def _mma_choice(number: str, tile: MmaTile, layouts: tuple[str, str], copy: int, requires: str) -> Choice:
    m, n, line, warp_m, warp_n, stages = tile
    k = line * _WIDTHS[number] // 16
    arguments = ", ".join(map(str, (number, m, n, k, warp_m, warp_n, stages, *layouts, copy)))
    instructions = [HMMA[number]]
    if number != "tf32" or layouts != ("MN_MAJOR", "MN_MAJOR"):
        instructions.append("LDSM")
    if copy > 2 and requires == "sm_80+":
        instructions.append("LDGSTS")
    variant = Variant(
        "matmul_mma",
        f"matmul_mma<{arguments}>",
        threads=m // warp_m * (n // warp_n) * 32,
        shared=stages * (m + n) * line,
        requires=requires,
        instructions=tuple(instructions),
    )
    return Choice(f"mma {m}x{n}", variant, m, n, k)


def _mma(problem: Problem, architecture: str) -> Iterator[Choice]:
    number = _NUMBERS[problem.compute]
    if number in ("double", "float") or "STRIDED" in problem.layouts:
        return
    copy = 16 if min(problem.a.alignment, problem.b.alignment) == 16 else problem.itemsize
    if architecture == "sm_75":
        if number == "half":
            for tile in _MMA_TILES[2]:
                yield _mma_choice(number, tile, problem.layouts, copy, "sm_75")
        return
    for tile in _MMA_TILES[copy]:
        yield _mma_choice(number, tile, problem.layouts, copy, "sm_80+")


def _all_mma() -> Iterator[Choice]:
    for layouts in _LAYOUTS:
        for number in ("half", "bfloat16", "tf32"):
            for copy in (16, 16 // _WIDTHS[number]):
                for tile in _MMA_TILES[copy]:
                    yield _mma_choice(number, tile, layouts, copy, "sm_80+")
        for copy, tile in product((16, 2), _MMA_TILES[2]):
            yield _mma_choice("half", tile, layouts, copy, "sm_75")


# wgmma: block tile, and how many of its steps along K shared memory holds.
_WGMMA_TILES = ((128, 256, 4), (128, 128, 6), (64, 128, 4), (64, 64, 6))


def _wgmma_choice(number: str, tile: tuple[int, int, int], layouts: tuple[str, str]) -> Choice:
    m, n, stages = tile
    arguments = ", ".join(map(str, (number, m, n, stages, *layouts)))
    variant = Variant(
        "matmul_wgmma",
        f"matmul_wgmma<{arguments}>",
        threads=128 + 2 * m,
        shared=stages * (m + n) * 128 + m // 64 * 16384 + 16 * stages,  # the ring, the epilogue's strips, barriers
        requires="sm_90a",
        registers=168 if m == 128 else 128,
        instructions=("HGMMA", "UTMALDG", "USETMAXREG"),
    )
    return Choice(f"wgmma {m}x{n}", variant, m, n, 128 * _WIDTHS[number] // 16, persistent=1 if m == 128 else 2)


def _wgmma(problem: Problem, architecture: str) -> Iterator[Choice]:
    number, layouts = _NUMBERS[problem.compute], problem.layouts
    if number in ("double", "float") or (number == "tf32" and layouts != ("K_MAJOR", "K_MAJOR")):
        return
    # The copy engine takes no matrix without elements, and no strides that are zero, negative or unaligned.
    strides = (problem.a.row, problem.a.col, problem.b.row, problem.b.col)
    batch = [s for axis in problem.batch[-2:] for s in (axis.a, axis.b)]
    if (
        "STRIDED" in layouts
        or _vector_length(problem) == 1
        or problem.k == 0
        or min(strides) < 1
        or min(batch, default=0) < 0
    ):
        return
    for tile in _WGMMA_TILES:
        yield _wgmma_choice(number, tile, layouts)


def _all_wgmma() -> Iterator[Choice]:
    for number, tile, layouts in product(("half", "bfloat16", "tf32"), _WGMMA_TILES, _LAYOUTS):
        if number != "tf32" or layouts == ("K_MAJOR", "K_MAJOR"):
            yield _wgmma_choice(number, tile, layouts)


def _maps(problem: Problem, choice: Choice) -> tuple[tuple[Any, ...], ...]:
    """What `Launcher.tensor_map` is to be told of A and B, for the kernels that read them so."""
    if choice.variant.file != "matmul_wgmma":
        return ()
    a, b, itemsize = problem.a, problem.b, problem.itemsize
    outer, inner = (Axis(1, 0, 0, 0), Axis(1, 0, 0, 0), *problem.batch)[-2:]

    def tensor_map(k_stride: int, stride: int, length: int, block: int, *batch: tuple[int, int]) -> tuple[Any, ...]:
        step = 128 // itemsize
        if k_stride == 1:
            shape, leading, box = (problem.k, length), stride, (step, block)
        else:
            shape, leading, box = (length, problem.k), k_stride, (step, step)
        # An axis that is broadcast over has one element; its stride is never used, but must be a possible one.
        lengths = tuple(count if s else 1 for count, s in batch)
        strides = tuple(s * itemsize or 16 for _, s in batch)
        return itemsize, (*shape, *lengths), (leading * itemsize, *strides), (*box, 1, 1)

    return (
        tensor_map(a.col, a.row, problem.m, choice.m, (inner.length, inner.a), (outer.length, outer.a)),
        tensor_map(b.row, b.col, problem.n, choice.n, (inner.length, inner.b), (outer.length, outer.b)),
    )


def _vector_choice(number: str, layout: str, vector: int) -> Choice:
    variant = Variant("matmul_vector", f"matmul_vector<{number}, {layout}, {vector}>", 256)
    if layout == "K_MAJOR":
        return Choice("vector", variant, 8, 1, 32 * vector)
    return Choice("vector", variant, 32 * vector, 1, 8)


def _vector(problem: Problem, architecture: str) -> Iterator[Choice]:
    if problem.n == 1:
        layout, alignment = problem.layouts[0], problem.a.alignment
    elif problem.m == 1:
        layout, alignment = problem.layouts[1], problem.b.alignment
    else:
        return
    vector = 16 // problem.itemsize if alignment == 16 and layout != "STRIDED" else 1
    choice = _vector_choice(_NUMBERS[problem.dtype], layout, vector)
    yield choice if problem.n == 1 else choice._replace(m=choice.n, n=choice.m)


def _all_vector() -> Iterator[Choice]:
    for number in _SIMT_TILES:
        yield _vector_choice(number, "STRIDED", 1)
        for layout, vector in product(("K_MAJOR", "MN_MAJOR"), (1, _WIDTHS[number])):
            yield _vector_choice(number, layout, vector)


def reduction(number: str) -> Variant:
    """What adds up the parts of a split sum; `number` is what kernels call the type of C."""
    return Variant("matmul_reduce", f"matmul_reduce<{number}>", 256)


def kernels(problem: Problem, architecture: str) -> list[Choice]:
    """The kernels that can compute a problem on an architecture, not split."""
    found = [choice for tier in (_vector, _simt, _mma, _wgmma) for choice in tier(problem, architecture)]
    return [choice for choice in found if choice.variant.runs_on(architecture)]


@register_variants
def _variants() -> Iterator[Variant]:
    for family in (_all_simt, _all_mma, _all_wgmma, _all_vector):
        for choice in family():
            yield choice.variant
    for number in _SIMT_TILES:
        yield reduction(number)


# --- the choice -------------------------------------------------------------------------------------------------------


@cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("gemm.json").read_text())["architectures"]


@cache
def rates_of(architecture: str) -> dict[str, Any]:
    """What gemm.json knows of the architecture, or else of the nearest one below it."""
    table = _table()
    if architecture in table:
        return table[architecture]
    below = [name for name in table if not name.endswith("a") and capability(name) <= capability(architecture)]
    return table[max(below, key=capability)]


def bucket(problem: Problem) -> str:
    """What gemm.json files the best choice for problems of this kind and about this size under: "float32 K_MAJOR
    MN_MAJOR 1024x512x256", with M (of all products together), N and K rounded to powers of two."""
    sizes = (problem.m * problem.products, problem.n, problem.k)
    rounded = "x".join(str(2 ** round(math.log2(max(size, 1)))) for size in sizes)
    return f"{problem.compute} {' '.join(problem.layouts)} {rounded}"


def choices(problem: Problem, architecture: str, processors: int) -> list[Choice]:
    """The ways to compute a problem on an architecture with this many multiprocessors, the quickest first; none where
    the kernels do not run."""
    whole = kernels(problem, architecture)
    if not whole:
        return []
    rates = rates_of(architecture)
    found = [choice._replace(splits=splits) for choice in whole for splits in split_counts(problem, choice, processors)]
    best = rates["best"].get(bucket(problem))
    return sorted(found, key=lambda c: (f"{c.tile} / {c.splits}" != best, predict(problem, c, processors, rates)))


def _tiles(problem: Problem, choice: Choice) -> int:
    return -(-problem.m // choice.m) * -(-problem.n // choice.n) * problem.products


def split_counts(problem: Problem, choice: Choice, processors: int) -> list[int]:
    """The numbers of parts worth a look: blocks for every processor, and work enough in each block."""
    room = min(4 * processors // max(_tiles(problem, choice), 1), problem.k // (8 * choice.k))
    return [1, *(s for s in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if s <= room)]


def predict(problem: Problem, choice: Choice, processors: int, rates: dict[str, Any]) -> float:
    """Seconds that a choice should take.

    A processor's blocks run in rounds of `resident` at a time. A full round takes as long as its products at the
    kernel's rate; one of fewer blocks hides less of their waiting and gains only by the square root. The first steps
    along K wait for memory. Parts of a split sum are written, and read by a second launch. No product is quicker than
    its operands are read.
    """
    rate, resident = rates["rates"][problem.compute][choice.tile]
    steps = -(-problem.k // (choice.k * choice.splits)) + rates["ramp"]
    block = 2.0 * choice.m * choice.n * choice.k * steps * processors / rate
    rounds, rest = divmod(-(-_tiles(problem, choice) * choice.splits // processors), resident)
    seconds = rates["launch"] + block * (rounds * resident + math.sqrt(rest * resident))
    products = problem.products
    if choice.splits > 1:
        partial = problem.m * problem.n * products * choice.splits * max(problem.itemsize, 4)
        seconds += rates["launch"] + 2 * partial / rates["bandwidth"]
    read = (problem.m * problem.k + problem.k * problem.n) * products * problem.itemsize
    return max(seconds, rates["launch"] + read / rates["bandwidth"])


# --- the plan ---------------------------------------------------------------------------------------------------------


class Epilogue(NamedTuple):
    """What is done with the products, as in kernels/matmul.cuh: which arrays there are, and how they are used.

    Attributes:
        bias, residual, aux: whether there is one.
        activation: one of ACTIVATIONS' values, with DERIVATIVE added or not.
        alpha, beta: factors of the product and of what C held before.
    """

    bias: bool = False
    residual: bool = False
    aux: bool = False
    activation: int = 0
    alpha: float = 1.0
    beta: float = 0.0


class Launch(NamedTuple):
    """One launch of a plan.

    Attributes:
        constants: the fields of MatmulArgs behind the pointers.
        swapped: whether A and B have changed places, to compute the transposed product.
        offsets: bytes from the first element of A, of B and of C to those this launch begins with.
        maps: for each operand that the kernel reads through a tensor map, what `Launcher.tensor_map` wants to know.
    """

    variant: Variant
    grid: tuple[int, int, int]
    constants: bytes
    swapped: bool = False
    offsets: tuple[int, int, int] = (0, 0, 0)
    maps: tuple[tuple[Any, ...], ...] = ()


class Plan(NamedTuple):
    """How to compute one product.

    Attributes:
        shape: of the result.
        launches: what to launch, in this order.
        workspace: elements of the workspace that they share.
        compute: the workspace's dtype.
        library: whether the array library's own product was measured to be quicker.
    """

    shape: tuple[int, ...]
    launches: tuple[Launch, ...]
    workspace: int
    compute: str
    library: bool = False


_plans: dict[Any, Plan | None] = {}
_MOST_PLANS = 4096


def multiply(
    launcher: Launcher,
    a: Any,
    b: Any,
    *,
    bias: Any = None,
    residual: Any = None,
    aux: Any = None,
    activation: str | None = None,
    derivative: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
    out: Any = None,
) -> Any:
    """activation(alpha a @ b + beta out + bias) + residual, in one launch (two where the sum is split).

    Args:
        launcher: of the device that all arrays are on.
        a: (..., M, K), of any strides.
        b: (..., K, N), of a's dtype and any strides. The batch axes broadcast.
        bias: (N,), contiguous.
        residual: (..., M, N), the shape of the result, C-contiguous.
        aux: like residual. Receives the sum before the activation; with `derivative`, holds it.
        activation: None, "relu", "gelu", "gelu_tanh" or "silu".
        derivative: multiply by the activation's derivative at `aux` instead of applying it.
        out: where the result goes: its shape, C-contiguous. A new array if None.

    Returns:
        (..., M, N), or NotImplemented where no kernel applies (another dtype, axes of more than 2^31 - 257 elements,
        strides that are no multiples of the element, a GPU before Volta), or where gemm.json says that the array
        library is quicker.
    """
    addresses = (launcher.pointer(a), launcher.pointer(b))
    epilogue = Epilogue(
        bias is not None,
        residual is not None,
        aux is not None,
        ACTIVATIONS[activation] + (DERIVATIVE if derivative else 0),
        alpha,
        beta,
    )
    key = (
        a.shape, a.strides, addresses[0] & 15, b.shape, b.strides, addresses[1] & 15, a.dtype, b.dtype,
        epilogue, launcher.architecture, launcher.processors, get_float32_precision(),
    )  # fmt: skip
    try:
        plan = _plans[key]
    except KeyError:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        plan = _plans[key] = make_plan(launcher, a, b, addresses, epilogue)
    if plan is None or (plan.library and kernels_mode() != "force" and not launcher.capturing()):
        return NotImplemented
    if out is None:
        out = launcher.empty(plan.shape, a.dtype)
    run(launcher, plan, addresses, out, bias, residual, aux)
    return out


def run(
    launcher: Launcher, plan: Plan, addresses: tuple[int, int], out: Any, bias: Any, residual: Any, aux: Any
) -> None:
    """Launch a plan on arrays at these addresses."""
    workspace = launcher.empty((plan.workspace,), plan.compute) if plan.workspace else None
    c, bias, residual, aux, partial = (
        0 if x is None else launcher.pointer(x) for x in (out, bias, residual, aux, workspace)
    )
    for variant, grid, constants, swapped, (da, db, dc), maps in plan.launches:
        x, y = addresses[0] + da, addresses[1] + db
        if swapped:
            x, y = y, x
        args = _POINTERS.pack(x, y, c + dc, bias, residual and residual + dc, aux and aux + dc, partial) + constants
        if maps:
            launcher.launch(variant, grid, args, *(launcher.tensor_map(p, *m) for p, m in zip((x, y), maps)))
        else:
            launcher.launch(variant, grid, args)


def make_plan(launcher: Launcher, a: Any, b: Any, addresses: tuple[int, int], epilogue: Epilogue) -> Plan | None:
    """The plan for a product of these arrays, by the quickest of its choices."""
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    problem = make_problem(a, b, addresses)
    if problem is None:
        return None
    if 0 in shape:
        return Plan(shape, (), 0, "")
    found = choices(problem, launcher.architecture, launcher.processors)
    if not found:
        return None
    plan = plan_of(shape, problem, found[0], epilogue, launcher.processors)
    best = rates_of(launcher.architecture)["best"].get(bucket(problem))
    return plan._replace(library=best == "library" and epilogue == Epilogue())


def plan_of(shape: tuple[int, ...], problem: Problem, choice: Choice, epilogue: Epilogue, processors: int) -> Plan:
    """The plan that computes a problem by a certain choice."""
    # A kernel counts products along two axes. Any before these two have a launch for each of their indices.
    around, batch = problem.batch[:-2], problem.batch[-2:]
    inner = problem._replace(batch=batch)
    swapped = choice.tile == "vector" and problem.n > 1
    splits = choice.splits
    split_k = -(-problem.k // (splits * choice.k)) * choice.k
    splits = max(1, -(-problem.k // split_k)) if split_k else 1  # rounding may have made the last part empty
    constants = _constants(inner, epilogue, swapped, splits, split_k)
    tiles = _tiles(inner._replace(batch=()), choice)
    count = inner.products
    if choice.persistent:
        grid = (min(tiles * count * splits, processors * choice.persistent), 1, 1)
    else:
        grid = (tiles, min(count, _MOST_Y), splits)
    adding, elements = reduction(_NUMBERS[problem.dtype]), count * problem.m * problem.n
    launches = []
    for index in product(*(range(axis.length) for axis in around)):
        da, db, dc = (
            sum(i * stride for i, stride in zip(index, strides)) * problem.itemsize
            for strides in ([axis.a for axis in around], [axis.b for axis in around], [axis.c for axis in around])
        )
        offsets = (da, db, dc)
        launches.append(Launch(choice.variant, grid, constants, swapped, offsets, _maps(inner, choice)))
        if splits > 1:
            launches.append(
                Launch(adding, (min(-(-elements // 1024), 4 * processors), 1, 1), constants, swapped, offsets)
            )
    workspace = splits * elements if splits > 1 else 0
    return Plan(shape, tuple(launches), workspace, "float64" if problem.dtype == "float64" else "float32")


def _constants(problem: Problem, epilogue: Epilogue, swapped: bool, splits: int, split_k: int) -> bytes:
    """The fields of MatmulArgs behind the pointers."""
    m, n, k, a, b = problem.m, problem.n, problem.k, problem.a, problem.b
    c_row, bias_row, bias_col = n, 0, 1
    matrices = (a.row, a.col, b.row, b.col)
    outer, inner = (Axis(1, 0, 0, 0), Axis(1, 0, 0, 0), *problem.batch)[-2:]
    a_batch, b_batch, c_batch = (outer.a, inner.a), (outer.b, inner.b), (outer.c, inner.c)
    if swapped:  # the transposed product: a column, whose rows are the one row's columns
        m, n = n, m
        c_row, bias_row, bias_col = 1, 1, 0
        matrices = (b.col, b.row, a.col, a.row)
        a_batch, b_batch = b_batch, a_batch
    return _CONSTANTS.pack(
        *matrices, c_row, bias_row, bias_col, c_row, c_row,
        *a_batch, *b_batch, *c_batch, *c_batch, *c_batch,
        epilogue.alpha, epilogue.beta,
        m, n, k, outer.length * inner.length, inner.length, splits, split_k, epilogue.activation,
    )  # fmt: skip
