"""kernels/matmul_simt.cu, matmul_vector.cu and matmul_reduce.cu on the emulated device, against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpunet.backends import kernel_folder
from gpunet.backends.emulated import EmulatedLauncher, emulation, prebuild
from gpunet.backends.kernel import Variant
from gpunet.errors import DeviceError
from tests.kernels.gemm_cases import EPILOGUES, MATMUL_ARGS, Epilogue, check_product, layout_operands, operand
from tests.kernels.test_matmul_mma import conflicts

WIDTHS = {"double": 2, "float": 4, "half": 8, "bfloat16": 8}  # elements in 16 bytes
BOTH = ("K_MAJOR", "MN_MAJOR")
STRIDED = ("STRIDED", "STRIDED")


def simt(number: str, layouts: tuple[str, str], vector: int, tile: tuple[int, ...] = ()) -> Variant:
    """An instance of matmul_simt, of a small tile (M, N, K, and a warp's M and N) where none is given."""
    m, n, k, warp_m, warp_n = (
        tile
        or {
            "double": (32, 32, 8, 16, 16),
            "float": (32, 32, 8, 32, 16),
            "half": (32, 32, 16, 32, 16),
            "bfloat16": (32, 32, 16, 32, 16),
        }[number]
    )
    arguments = ", ".join(map(str, (number, m, n, k, warp_m, warp_n, *layouts, vector)))
    return Variant("matmul_simt", f"matmul_simt<{arguments}>", threads=m // warp_m * (n // warp_n) * 32)


def matrix_vector(number: str, layout: str, vector: int) -> Variant:
    return Variant("matmul_vector", f"matmul_vector<{number}, {layout}, {vector}>", threads=256)


def name(variant: Variant) -> str:
    return variant.expression


def arguments(variant: Variant) -> list[str]:
    """The template's arguments, as they are written."""
    return variant.expression.partition("<")[2][:-1].split(", ")


FLOATS = simt("float", ("K_MAJOR", "MN_MAJOR"), 4)
ANY = simt("float", STRIDED, 1)
SIMT = [
    *(simt("float", (a, b), 4) for a in BOTH for b in BOTH),
    simt("float", ("MN_MAJOR", "K_MAJOR"), 1),
    ANY,
    simt("double", ("MN_MAJOR", "K_MAJOR"), 2),
    simt("double", STRIDED, 1),
    simt("half", ("K_MAJOR", "MN_MAJOR"), 8),
    simt("bfloat16", ("MN_MAJOR", "K_MAJOR"), 8),
    simt("bfloat16", ("K_MAJOR", "MN_MAJOR"), 1),
]
LARGE = [
    simt("float", ("K_MAJOR", "MN_MAJOR"), 4, (128, 128, 8, 64, 32)),
    simt("float", ("MN_MAJOR", "K_MAJOR"), 1, (128, 64, 8, 32, 32)),
    simt("double", ("K_MAJOR", "MN_MAJOR"), 2, (64, 64, 8, 32, 32)),
    simt("half", ("MN_MAJOR", "K_MAJOR"), 8, (64, 64, 16, 32, 32)),
]
VECTORS = [
    matrix_vector("float", "K_MAJOR", 4),
    matrix_vector("float", "MN_MAJOR", 4),
    matrix_vector("float", "STRIDED", 1),
    matrix_vector("double", "MN_MAJOR", 2),
    matrix_vector("half", "K_MAJOR", 8),
    matrix_vector("bfloat16", "K_MAJOR", 1),
]
REFERENCES = [Variant("matmul_simt", f"matmul_reference<{number}>", threads=256) for number in ("float", "double")]


@pytest.fixture(scope="module")
def launcher() -> EmulatedLauncher:
    try:
        reductions = [Variant("matmul_reduce", f"matmul_reduce<{number}>", 256) for number in WIDTHS]
        prebuild([*SIMT, *LARGE, *VECTORS, *REFERENCES, *reductions])
    except DeviceError as error:
        pytest.skip(str(error))
    return EmulatedLauncher()


def check(
    launcher: EmulatedLauncher, variant: Variant, shape: tuple[int, int, int], seed: int = 0, **options: object
) -> np.ndarray:
    """A product of operands in the layouts that an instance of matmul_simt is for."""
    number, m, n, k, _, _, a_layout, b_layout, vector = arguments(variant)
    memory = {"offset": int(vector), "padding": int(vector)}  # aligned as little as is allowed
    a, b = layout_operands(np.random.default_rng(seed), number, shape, a_layout, b_layout, **memory)
    given = {"tile": (int(m), int(n)), "split_unit": int(k), **options}
    return check_product(launcher, variant, number, a, b, **given)  # type: ignore[arg-type]


# --- matmul_simt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", SIMT, ids=name)
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 5, 2), (8, 4, 1), (9, 10, 7), (5, 9, 3), (3, 2, 0)], ids=str)
def test_every_size(launcher: EmulatedLauncher, variant: Variant, size: tuple[int, int, int]) -> None:
    """In vectors; single elements also in lengths that nothing divides. No tile, 1, and 2 or 3 each way."""
    vector = int(arguments(variant)[-1])
    step = vector if vector > 1 else 7
    check(launcher, variant, (size[0] * step, size[1] * step, size[2] * step), offset=1, padding=3)
    if vector == 1:
        check(launcher, variant, size)


@pytest.mark.parametrize("variant", LARGE, ids=name)
def test_large_tiles(launcher: EmulatedLauncher, variant: Variant) -> None:
    check(launcher, variant, (136, 72, 40))
    check(launcher, variant, (24, 136, 8), splits=2, epilogue=EPILOGUES[3])


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
@pytest.mark.parametrize("variant", [FLOATS, SIMT[7], SIMT[8], SIMT[9], *REFERENCES], ids=name)
def test_epilogues(launcher: EmulatedLauncher, variant: Variant, epilogue: Epilogue) -> None:
    if variant in REFERENCES:
        number = arguments(variant)[0]
        a, b = layout_operands(np.random.default_rng(0), number, (13, 22, 9), *STRIDED)
        check_product(launcher, variant, number, a, b, grid=(2, 1, 1), epilogue=epilogue)
    else:
        check(launcher, variant, (40, 24, 16), epilogue=epilogue)
        check(launcher, variant, (16, 40, 24), epilogue=epilogue, offset=3, padding=1, splits=2)


@pytest.mark.parametrize("variant", [FLOATS, ANY, SIMT[7], SIMT[9]], ids=name)
@pytest.mark.parametrize(("k", "splits"), [(64, 3), (24, 2), (8, 4), (0, 2)])
def test_splits(launcher: EmulatedLauncher, variant: Variant, k: int, splits: int) -> None:
    """Also with parts that are shorter, or empty."""
    check(launcher, variant, (24, 40, k), splits=splits)
    if variant is ANY:
        check(launcher, variant, (5, 7, k + 1), splits=splits, epilogue=EPILOGUES[5])


def test_any_strides(launcher: EmulatedLauncher) -> None:
    rng = np.random.default_rng(0)
    a, b = operand(rng, "float", (37, 21), step=3, offset=1), operand(rng, "float", (21, 34), -2, step=2, padding=1)
    column, row = np.broadcast_to(a[:, :1], a.shape), np.broadcast_to(b[:1], b.shape)
    for left, right in ((a[::-1], b), (a[:, ::-1], b[::-1]), (column, b[:, ::-1]), (a, row), (column, row)):
        for variant, tile, grid in ((ANY, (32, 32), None), (REFERENCES[0], (1, 1), (5, 1, 1))):
            check_product(launcher, variant, "float", left, right, tile=tile, grid=grid)


@pytest.mark.parametrize("variant", [FLOATS, ANY, REFERENCES[0]], ids=name)
@pytest.mark.parametrize("blocks", [6, 4, 1])
def test_batches(launcher: EmulatedLauncher, variant: Variant, blocks: int) -> None:
    """Two batch axes, over which operands may be broadcast; with fewer blocks than products, these take turns."""
    rng = np.random.default_rng(0)
    for left, right in (((2, 3), (2, 3)), ((2, 1), (1, 3)), ((1, 1), (2, 3)), ((2, 3), (2, 1))):
        a, b = operand(rng, "float", (*left, 36, 12), padding=4), operand(rng, "float", (*right, 12, 40))
        tiles = 6 if variant in REFERENCES else 4
        for splits in (1, 2):
            grid = (tiles, blocks, splits)
            options = {"epilogue": EPILOGUES[5], "splits": splits, "split_unit": 8, "padding": 4}
            check_product(launcher, variant, "float", a, b, grid=grid, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", [*SIMT[:4], SIMT[8]], ids=name)
def test_the_order_of_threads_makes_no_difference(launcher: EmulatedLauncher, variant: Variant) -> None:
    results = []
    for order in ("forward", "reverse", "random"):
        with emulation(order=order, seed=1):
            results.append(check(launcher, variant, (40, 72, 56), splits=2, epilogue=EPILOGUES[3]))
    assert all(result.tobytes() == results[0].tobytes() for result in results)


# --- matmul_vector ----------------------------------------------------------------------------------------------------


def check_vector(
    launcher: EmulatedLauncher, variant: Variant, m: int, k: int, x_step: int = 1, x_offset: int = 0, **options: object
) -> np.ndarray:
    """A matrix, aligned as little as is allowed, times a column whose elements are anywhere."""
    number, layout, width = arguments(variant)
    rng, vector = np.random.default_rng(0), int(width)
    length = m if layout == "MN_MAJOR" else k
    a = operand(
        rng,
        number,
        (m, k),
        -2 if layout == "MN_MAJOR" else -1,
        offset=vector,
        padding=-length % vector + vector,
        step=3 if layout == "STRIDED" else 1,
    )
    x = operand(rng, number, (k, 1), -2, offset=x_offset, step=x_step)
    rows = 8 if layout == "K_MAJOR" else 32 * vector
    unit = 8 if layout != "K_MAJOR" else 32 * vector
    given = {"tile": (rows, 1), "split_unit": unit, **options}
    return check_product(launcher, variant, number, a, x, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VECTORS, ids=name)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (9, 37), (70, 131), (33, 1100), (300, 8), (3, 0)])
def test_vectors(launcher: EmulatedLauncher, variant: Variant, m: int, k: int) -> None:
    check_vector(launcher, variant, m, k)
    check_vector(launcher, variant, m, k, x_offset=1)
    check_vector(launcher, variant, m, k, x_step=3)
    check_vector(launcher, variant, m, k, x_step=3, x_offset=1, splits=3, offset=1, padding=2)


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
@pytest.mark.parametrize("variant", [VECTORS[0], VECTORS[3]], ids=name)
def test_epilogues_of_vectors(launcher: EmulatedLauncher, variant: Variant, epilogue: Epilogue) -> None:
    check_vector(launcher, variant, 43, 29, epilogue=epilogue)


@pytest.mark.parametrize("variant", VECTORS[:3], ids=name)
def test_batches_of_vectors(launcher: EmulatedLauncher, variant: Variant) -> None:
    rng = np.random.default_rng(0)
    _, layout, _ = arguments(variant)
    for left, right in (((2, 3), (2, 3)), ((1, 3), (2, 1)), ((1, 1), (2, 3))):
        a = operand(rng, "float", (*left, 40, 28), -2 if layout == "MN_MAJOR" else -1)
        x = operand(rng, "float", (*right, 28, 1), -2, padding=1)
        for blocks in (6, 2):
            grid = (5 if layout == "K_MAJOR" else 2, blocks, 1)
            check_product(launcher, variant, "float", a, x, grid=grid, epilogue=EPILOGUES[5])


@pytest.mark.parametrize("variant", VECTORS[:3], ids=name)
def test_infinities_stay_where_they_are(launcher: EmulatedLauncher, variant: Variant) -> None:
    """What stands in for columns beyond the last is not multiplied by zero, which would make infinity a NaN."""
    m, k = 8, 44
    rows, columns, x = (launcher.empty(shape, np.float32) for shape in ((m, k), (k, m), (k, 1)))
    rows[...] = columns[...] = np.inf
    x[...] = 1
    _, layout, _ = arguments(variant)
    a = columns.T if layout == "MN_MAJOR" else rows
    out = launcher.empty((m, 1), np.float32)
    strides = [s // 4 for s in a.strides]
    launcher.launch(
        variant,
        (1, 1, 1),
        MATMUL_ARGS.pack(
            *(*(launcher.pointer(array) for array in (a, x, out)), 0, 0, 0, 0),
            *(*strides, 1, 0, 1, 0, 0, 0, 0, *(10 * [0]), 1.0, 0.0, m, 1, k, 1, 1, 1, k, 0),
        ),
    )
    assert (out == np.inf).all()


@pytest.mark.parametrize("variant", VECTORS[:3], ids=name)
def test_the_order_of_threads_makes_no_difference_to_vectors(launcher: EmulatedLauncher, variant: Variant) -> None:
    results = []
    for order in ("forward", "reverse", "random"):
        with emulation(order=order, seed=1):
            results.append(check_vector(launcher, variant, 70, 300, splits=2))
    assert all(result.tobytes() == results[0].tobytes() for result in results)


# --- shared memory ----------------------------------------------------------------------------------------------------

PLACES = """
// What a tile holds if each element is its thread, load and place in the load.
template <class T, int LENGTH, int BK, Layout LAYOUT, int VECTOR, int THREADS>
__global__ void stored_places(float* out) {
    using Part = Operand<T, LENGTH, BK, LAYOUT, VECTOR, THREADS>;
    __shared__ __align__(16) typename Part::F tile[Part::SIZE];
    Part part(nullptr, LENGTH, 0, 0, threadIdx.x);
    for (int load = 0; load < Part::LOADS; load++)
        for (int i = 0; i < VECTOR; i++)
            part.held[load].at[i] = Number<T>::store((load * VECTOR + i) * THREADS + threadIdx.x);
    part.put(tile);
    __syncthreads();
    for (int i = threadIdx.x; i < Part::SIZE; i += THREADS) out[i] = tile[i];
}

// Where threads read from in a tile of A, and in one of B.
template <int BM, int BN, int WM, int WN, int GROUP>
__global__ void read_places(float* out) {
    const Place<BM, BN, WM, WN, GROUP> place(Tile{0, 0});
    out[threadIdx.x] = place.thread_row;
    out[blockDim.x + threadIdx.x] = place.thread_col;
}
"""


@pytest.fixture(scope="module")
def places_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    text = (kernel_folder() / "matmul_simt.cu").read_text(encoding="utf-8") + PLACES
    (folder / "matmul_simt.cu").write_text(text, encoding="utf-8")
    return folder


def run_places(launcher: EmulatedLauncher, folder: Path, expression: str, threads: int, size: int) -> np.ndarray:
    out = launcher.empty((size,), np.float32)
    out[...] = np.nan
    with emulation(folder=folder):
        variant = Variant("matmul_simt", expression, threads)
        launcher.launch(variant, (1, 1, 1), launcher.pointer(out).to_bytes(8, "little"))
    return np.array(out)


@pytest.mark.parametrize(
    ("number", "length", "k", "layout", "vector", "threads", "expected"),
    [
        ("float", 128, 8, "K_MAJOR", 4, 256, 0),
        ("float", 64, 8, "K_MAJOR", 4, 128, 0),
        ("float", 128, 8, "K_MAJOR", 1, 256, 0),
        ("float", 32, 8, "STRIDED", 1, 64, 0),
        ("float", 128, 8, "MN_MAJOR", 4, 256, 0),
        ("half", 64, 16, "K_MAJOR", 8, 128, 0),
        ("half", 32, 16, "K_MAJOR", 1, 64, 0),
        ("half", 64, 16, "MN_MAJOR", 8, 128, 1),  # 16 bytes go to shared memory as 32, in two steps
        ("double", 64, 8, "K_MAJOR", 2, 128, 0),
        ("double", 64, 8, "MN_MAJOR", 2, 128, 0),
    ],
)
def test_bank_conflicts_of_stores(
    launcher: EmulatedLauncher,
    places_folder: Path,
    number: str,
    length: int,
    k: int,
    layout: str,
    vector: int,
    threads: int,
    expected: int,
) -> None:
    itemsize = 8 if number == "double" else 4
    expression = f"stored_places<{number}, {length}, {k}, {layout}, {vector}, {threads}>"
    tile = run_places(launcher, places_folder, expression, threads, k * (length + 4) + (k - 1) // 8 * 16)
    where = {int(value): at for at, value in enumerate(tile) if value == value}
    assert len(where) == length * k
    width = min(vector, 16 // itemsize) if layout == "MN_MAJOR" else 1  # elements of a store
    for access in range(0, length * k // threads, width):
        for warp in range(0, threads, 32):
            lanes = [where[access * threads + thread] * itemsize for thread in range(warp, warp + 32)]
            assert conflicts(np.array(lanes), width * itemsize) == expected


@pytest.mark.parametrize("tile", [(128, 128, 64, 32, 4), (32, 32, 32, 16, 4), (64, 64, 32, 32, 2)], ids=str)
def test_reads_have_no_bank_conflicts(
    launcher: EmulatedLauncher, places_folder: Path, tile: tuple[int, int, int, int, int]
) -> None:
    m, n, warp_m, warp_n, group = tile
    threads = m // warp_m * (n // warp_n) * 32
    expression = f"read_places<{', '.join(map(str, tile))}>"
    places = run_places(launcher, places_folder, expression, threads, 2 * threads).astype(int) * (16 // group)
    assert [conflicts(warp, 16) for warp in places.reshape(-1, 32)] == [0] * (2 * threads // 32)
