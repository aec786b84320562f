"""kernels/matmul_mma.cu on the emulated device, against float64.

Run as a program (`python -m tests.kernels.test_matmul_mma MISTAKE`), it launches the kernel with one mistake planted in
it, for the sanitizers to find.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpunet.backends import kernel_folder
from gpunet.backends.emulated import EmulatedLauncher, emulation, prebuild
from gpunet.backends.kernel import Variant
from gpunet.errors import DeviceError, KernelError
from tests.backends.sanitizers import FOUND, run_under
from tests.kernels.gemm_cases import EPILOGUES, MATMUL_ARGS, Epilogue, check_product, operand, rounded

BOTH = ("K_MAJOR", "MN_MAJOR")
CROSSED = (("K_MAJOR", "MN_MAJOR"), ("MN_MAJOR", "K_MAJOR"))  # every layout of each operand
# Block tile, bytes along K in a stage, a warp's part, stages.
Tile = tuple[int, int, int, int, int, int]
SMALL: Tile = (64, 64, 128, 32, 32, 3)
SHORT: Tile = (64, 64, 64, 32, 32, 2)
MIDDLE: Tile = (128, 128, 64, 64, 64, 3)
WIDE: Tile = (128, 256, 64, 64, 64, 4)
SLIM: Tile = (128, 128, 64, 64, 32, 2)


def instance(number: str, tile: Tile, layouts: tuple[str, str], copy: int = 16) -> Variant:
    m, n, line, warp_m, warp_n, stages = tile
    k = line // rounded(0, number).itemsize
    return Variant(
        "matmul_mma",
        f"matmul_mma<{number}, {m}, {n}, {k}, {warp_m}, {warp_n}, {stages}, {', '.join(layouts)}, {copy}>",
        threads=m // warp_m * (n // warp_n) * 32,
        shared=stages * (m + n) * line,
        requires="sm_75+" if number == "half" else "sm_80+",
    )


# What is checked in every shape, and on which architecture.
INSTANCES = [
    *(("sm_80", instance("half", SMALL, (a, b))) for a in BOTH for b in BOTH),
    *(("sm_80", instance("tf32", SMALL, layouts)) for layouts in (*CROSSED, ("MN_MAJOR", "MN_MAJOR"))),
    *(("sm_80", instance("bfloat16", SHORT, layouts, 4)) for layouts in CROSSED),
    *(("sm_80", instance("half", SHORT, layouts, 2)) for layouts in CROSSED),
    *(("sm_80", instance("tf32", SHORT, layouts, 4)) for layouts in CROSSED),
    *(("sm_75", instance("half", SHORT, layouts)) for layouts in CROSSED),
    *(("sm_75", instance("half", SHORT, layouts, 2)) for layouts in CROSSED),
]
LARGE = [
    ("sm_120", instance("bfloat16", WIDE, ("K_MAJOR", "MN_MAJOR"))),
    ("sm_80", instance("tf32", WIDE, ("MN_MAJOR", "MN_MAJOR"))),
    ("sm_86", instance("half", MIDDLE, ("MN_MAJOR", "K_MAJOR"))),
    ("sm_75", instance("half", SLIM, ("K_MAJOR", "MN_MAJOR"))),
]
HALF, TF32 = instance("half", SMALL, CROSSED[0]), instance("tf32", SMALL, ("MN_MAJOR", "MN_MAJOR"))
ODD = instance("half", SHORT, CROSSED[0], 2)


def name(case: tuple[str, Variant]) -> str:
    return f"{case[0]} {case[1].expression}"


def arguments(variant: Variant) -> list[str]:
    """The template's arguments, as they are written."""
    return variant.expression[len("matmul_mma<") : -1].split(", ")


def check(
    launcher: EmulatedLauncher,
    variant: Variant,
    shape: tuple[int, int, int],
    *,
    a_batch: tuple[int, ...] = (),
    b_batch: tuple[int, ...] = (),
    **options: Any,
) -> np.ndarray:
    """Multiply random matrices that are aligned as the variant needs, and no better, and check the result."""
    number, tile_m, tile_n, tile_k, _, _, _, a_layout, b_layout, copy = arguments(variant)
    rng = np.random.default_rng(0)
    m, n, k = shape
    unit = int(copy) // rounded(0, number).itemsize

    def make(batch: tuple[int, ...], rows: int, columns: int, adjacent: int) -> np.ndarray:
        length = columns if adjacent == -1 else rows
        return operand(rng, number, (*batch, rows, columns), adjacent, offset=unit, padding=unit + -length % unit)

    a = make(a_batch, m, k, -1 if a_layout == "K_MAJOR" else -2)
    b = make(b_batch, k, n, -2 if b_layout == "K_MAJOR" else -1)
    return check_product(
        launcher, variant, number, a, b, tile=(int(tile_m), int(tile_n)), split_unit=int(tile_k), **options
    )


@pytest.fixture(scope="module")
def launcher() -> Iterator[EmulatedLauncher]:
    try:
        for architecture in ("sm_75", "sm_80", "sm_86", "sm_120"):
            prebuild([variant for where, variant in (*INSTANCES, *LARGE) if where == architecture], architecture)
    except DeviceError as error:
        pytest.skip(f"no emulated device: {error}")
    yield EmulatedLauncher()


SHAPES = [(1, 1, 1), (64, 64, 64), (65, 3, 130), (100, 74, 197), (7, 130, 9), (33, 31, 2)]


@pytest.mark.parametrize("case", INSTANCES, ids=name)
def test_shapes(launcher: EmulatedLauncher, case: tuple[str, Variant]) -> None:
    architecture, variant = case
    for shape in SHAPES:
        results = []
        for order, late in (("forward", False), ("reverse", True), ("random", True)):
            with emulation(architecture=architecture, order=order, seed=shape[0], late=late):
                results.append(check(launcher, variant, shape).tobytes())
        assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("case", LARGE, ids=name)
def test_large_tiles(launcher: EmulatedLauncher, case: tuple[str, Variant]) -> None:
    architecture, variant = case
    with emulation(architecture=architecture, late=True, order="random", seed=3):
        check(launcher, variant, (200, 300, 136))
        check(launcher, variant, (129, 257, 300), epilogue=EPILOGUES[5], offset=1)


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
@pytest.mark.parametrize(("offset", "padding"), [(0, 0), (8, 8), (3, 1)])
def test_epilogues(launcher: EmulatedLauncher, epilogue: Epilogue, offset: int, padding: int) -> None:
    with emulation(architecture="sm_80"):
        for variant, shape in ((HALF, (80, 72, 64)), (TF32, (66, 77, 32))):
            check(launcher, variant, shape, epilogue=epilogue, offset=offset, padding=padding)


@pytest.mark.parametrize(
    ("a_batch", "b_batch"), [((2, 3), (2, 3)), ((1, 3), (2, 1)), ((2, 1), (1, 1)), ((1, 5), (1, 5)), ((1, 1), (1, 4))]
)
def test_batches(launcher: EmulatedLauncher, a_batch: tuple[int, ...], b_batch: tuple[int, ...]) -> None:
    with emulation(architecture="sm_80", late=True):
        for variant in (HALF, ODD):
            check(launcher, variant, (70, 40, 72), a_batch=a_batch, b_batch=b_batch, epilogue=EPILOGUES[5])


@pytest.mark.parametrize("late", [False, True])
def test_a_block_goes_from_product_to_product(launcher: EmulatedLauncher, late: bool) -> None:
    with emulation(architecture="sm_80", late=late, order="random"):
        for variant in (HALF, TF32):
            check(launcher, variant, (30, 70, 200), a_batch=(1, 5), b_batch=(1, 5), grid=(2, 2, 1))


def test_no_sum_at_all_is_a_sum_of_zero(launcher: EmulatedLauncher) -> None:
    with emulation(architecture="sm_80", late=True):
        for variant in (HALF, TF32, ODD):
            check(launcher, variant, (70, 40, 0), epilogue=EPILOGUES[5])


@pytest.mark.parametrize("late", [False, True])
def test_split_sums(launcher: EmulatedLauncher, late: bool) -> None:
    with emulation(architecture="sm_80", late=late):
        for splits in (2, 5):  # of five the last is empty
            check(launcher, HALF, (70, 70, 250), splits=splits, epilogue=EPILOGUES[5])
        check(launcher, TF32, (30, 41, 100), splits=3, a_batch=(2, 1), b_batch=(2, 1))
        check(launcher, ODD, (30, 41, 77), splits=2)


def test_tf32_rounds_to_nearest(launcher: EmulatedLauncher) -> None:
    """Truncated, each product would be off in the same direction, and their sum by the number of them."""
    unit = 2.0**-10
    a, b = np.full((64, 8), 1 + 0.75 * unit, np.float32).T, np.full((64, 8), 1 + 0.25 * unit, np.float32)
    with emulation(architecture="sm_80"):
        c = check_product(launcher, TF32, "tf32", a, b, tile=(64, 64))
    assert (c == 64 * (1 + unit)).all()


def test_offsets_beyond_32_bits(launcher: EmulatedLauncher, tmp_path: Path) -> None:
    """Rows of A and of C, columns of B, and products, each 2^31 elements and more apart: in files of few pages."""
    apart, k = 2**31 + 64, 9
    rng = np.random.default_rng(0)
    values = rng.integers(-4, 5, (2, 3, k)).astype(
        np.float16
    )  # of A and B; product z has rows (or columns) z and z + 1
    a, b, c = (np.memmap(tmp_path / x, np.float16, "w+", shape=(2 * apart + 64,)) for x in "abc")
    for memory, rows in zip((a, b), values):
        for i, row in enumerate(rows):
            memory[i * apart :][:k] = row
    args = MATMUL_ARGS.pack(
        *(x.ctypes.data for x in (a, b, c)), *(0, 0, 0, 0),
        *(apart, 1, 1, apart, apart, 0, 0, 0, 0),
        *(0, apart, 0, apart, 0, 8, 0, 0, 0, 0),
        *(1.0, 0.0, 2, 2, k, 2, 2, 1, k, 0),
    )  # fmt: skip
    variant = instance("half", SMALL, ("K_MAJOR", "K_MAJOR"))
    with emulation(architecture="sm_80"):
        launcher.launch(variant, (1, 1, 1), args)
    left, right = values.astype(np.float64)
    for z in range(2):
        got = [c[8 * z + i * apart :][:2] for i in range(2)]
        np.testing.assert_array_equal(got, left[z : z + 2] @ right[z : z + 2].T)


# --- shared memory ----------------------------------------------------------------------------------------------------

PLACES = """
template <class T, Layout LAYOUT, int SPAN, int BK, int EXTENT, bool IS_A>
__global__ void load_places(int* out) {
    using Loads = Fragments<T, LAYOUT, SPAN, BK, EXTENT, IS_A>;
    const Loads loads(threadIdx.x, SPAN - EXTENT);
    out += threadIdx.x;
    for (int step = 0; step < BK / Loads::K; step++)
        for (int i = 0; i < Loads::PIECES; i++) {
            *out = loads.place(i, step);
            out += 32;
        }
}

template <class T, Layout LAYOUT, int SPAN, int BK, int BYTES, int THREADS>
__global__ void copy_places(int* out) {
    using Copies = Copier<T, LAYOUT, SPAN, BK, BYTES, THREADS>;
    const Copies copies(threadIdx.x, nullptr, 0, 0, 0);
    for (int i = 0; i < Copies::TIMES; i++) out[i * THREADS + threadIdx.x] = copies.target(0, i);
}

// What a warp's slab holds if every sum is its lane, piece and register.
template <class T, int WN, bool BY_FOURS>
__global__ void slab_places(float* out) {
    using WarpSlab = Slab<T, WN, BY_FOURS>;
    const WarpSlab slab(threadIdx.x);
    float sums[WN / 8][4];
    for (int i = 0; i < WN / 8; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = (threadIdx.x * (WN / 8) + i) * 4 + j;
    slab.put(sums);
    __syncthreads();
    for (int i = threadIdx.x; i < WarpSlab::FLOATS; i += 32) out[i] = slab.slab[i];
}
"""


@pytest.fixture(scope="module")
def places_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    text = (kernel_folder() / "matmul_mma.cu").read_text(encoding="utf-8") + PLACES
    (folder / "matmul_mma.cu").write_text(text, encoding="utf-8")
    return folder


def run_places(launcher: EmulatedLauncher, folder: Path, expression: str, threads: int, out: np.ndarray) -> np.ndarray:
    on_device = launcher.empty(out.shape, out.dtype)
    with emulation(architecture="sm_80", folder=folder):
        variant = Variant("matmul_mma", expression, threads, shared=32768)
        launcher.launch(variant, (1, 1, 1), launcher.pointer(on_device).to_bytes(8, "little"))
    return np.array(on_device)


def conflicts(addresses: np.ndarray, size: int) -> int:
    """By how much the 32 lanes' accesses of `size` bytes take longer than they must: shared memory has 32 banks of 4
    bytes, and serves as many lanes at a time as make 128 bytes of wide accesses, or all."""
    together = 128 // max(size, 4)
    most = 1
    for lanes in addresses.reshape(-1, together):
        words = {int(a) // 4 + i for a in lanes for i in range(max(size // 4, 1))}
        banks = np.bincount([word % 32 for word in words])
        most = max(most, banks.max())
    return most - 1


@pytest.mark.parametrize("number", ["half", "tf32"])
@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("line", [64, 128])
def test_loads_of_fragments_have_no_bank_conflicts(
    launcher: EmulatedLauncher, places_folder: Path, number: str, layout: str, line: int
) -> None:
    k = line // rounded(0, number).itemsize
    steps, pieces = line // 32, 2
    out = np.full((steps * pieces, 32), -1, np.int32)
    for is_a in ("true", "false"):
        expression = f"load_places<{number}, {layout}, 64, {k}, 32, {is_a}>"
        places = run_places(launcher, places_folder, expression, 32, out)
        assert places.min() >= 0 and places.max() < 64 * line
        assert [conflicts(row, 16) for row in places] == [0] * len(places)


@pytest.mark.parametrize(("number", "copies"), [("half", (16, 4, 2)), ("tf32", (16, 4))])
@pytest.mark.parametrize("layout", BOTH)
def test_copies_fill_the_stage_without_bank_conflicts(
    launcher: EmulatedLauncher, places_folder: Path, number: str, copies: tuple[int, ...], layout: str
) -> None:
    size = rounded(0, number).itemsize
    for copy in copies:
        out = np.full(64 * 64 // copy, -1, np.int32)
        expression = f"copy_places<{number}, {layout}, 64, {64 // size}, {copy}, 128>"
        places = run_places(launcher, places_folder, expression, 128, out)
        assert sorted(places) == list(range(0, 64 * 64, copy))
        assert [conflicts(row, copy) for row in places.reshape(-1, 32)] == [0] * (len(places) // 32)


@pytest.mark.parametrize("by_fours", [False, True])
@pytest.mark.parametrize("columns", [32, 64])
def test_sums_reach_the_slab_without_bank_conflicts(
    launcher: EmulatedLauncher, places_folder: Path, by_fours: bool, columns: int
) -> None:
    pitch = columns + (4 if by_fours else 8)
    expression = f"slab_places<tf32, {columns}, {str(by_fours).lower()}>"
    slab = run_places(launcher, places_folder, expression, 32, np.zeros(16 * pitch, np.float32))
    where = {int(value): at for at, value in enumerate(slab) if value == value}
    assert len(where) == 16 * columns
    pieces, width = columns // 8, 4 if by_fours else 2
    for piece in range(0, pieces, width if by_fours else 1):
        for register in range(0, 4, 1 if by_fours else 2):
            lanes = [where[(lane * pieces + piece) * 4 + register] * 4 for lane in range(32)]
            assert conflicts(np.array(lanes), 4 * width) == 0


# --- mistakes ---------------------------------------------------------------------------------------------------------

# What of the kernel's text is replaced by what. The first ones give wrong numbers where copies are late, or threads run
# in another order; barriers that are missing, only thread sanitizer sees, as emulated warps go on at about one pace.
MISTAKES = {
    "none": ("", ""),
    "no wait for the next stage": ("                cp_async_wait<STAGES - 2>();\n", ""),
    "no wait for the first stage": ("    }\n    cp_async_wait<STAGES - 2>();\n", "    }\n"),
    "waits for a stage too few": ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>"),
    "slab read too early": ("        __syncwarp();\n#pragma unroll 1\n", "#pragma unroll 1\n"),
    "no barrier between steps": ("                __syncthreads();\n", ""),
    "ring used before it is free": ("    __syncthreads();  // the ring is free\n", ""),
    "ring filled too soon": ("        __syncthreads();  // before the next product fills the ring\n", ""),
}
FOUND_BY_THREAD_SANITIZER = list(MISTAKES)[-3:]


def launch_with(mistake: str, folder: Path, **options: Any) -> None:
    """Multiply by the kernel with a mistake."""
    text, header = ((kernel_folder() / f"matmul_mma.{kind}").read_text(encoding="utf-8") for kind in ("cu", "cuh"))
    text = text.replace('#include "matmul_mma.cuh"', header.replace("#pragma once", ""))
    right, wrong = MISTAKES[mistake]
    assert right in text
    (folder / "matmul_mma.cu").write_text(text.replace(right, wrong) if right else text, encoding="utf-8")
    with emulation(architecture="sm_80", folder=folder, **options):
        check(EmulatedLauncher(), HALF, (100, 72, 300), a_batch=(1, 2), b_batch=(1, 2), grid=(4, 1, 1))


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m not in FOUND_BY_THREAD_SANITIZER])
def test_mistakes_are_caught(launcher: EmulatedLauncher, mistake: str, tmp_path: Path) -> None:
    if mistake == "none":
        launch_with(mistake, tmp_path, late=True, order="random")
        return
    with pytest.raises(AssertionError, match="elements are wrong"):
        launch_with(mistake, tmp_path, late=True, order="random")


@pytest.mark.parametrize("mistake", ["none", *FOUND_BY_THREAD_SANITIZER])
def test_thread_sanitizer(mistake: str) -> None:
    done = run_under("thread", "tests.kernels.test_matmul_mma", mistake)
    if mistake == "none":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == FOUND and "data race" in done.stderr, done.stdout + done.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for is_late in (False, True):
            try:
                launch_with(sys.argv[1], Path(temporary), late=is_late)
            except (KernelError, AssertionError):
                if sys.argv[1] == "none":
                    raise
