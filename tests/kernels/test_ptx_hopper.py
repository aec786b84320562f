"""The wrappers of kernels/ptx/hopper.cuh on the emulated device: what lands where, who holds what, and when.

The layouts expected here are written down from the PTX ISA manual a second time, in other words than the wrappers' host
twins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from gpunet.backends import nvrtc, sources
from gpunet.backends.emulated import EmulatedLauncher, emulation
from gpunet.backends.kernel import Variant
from gpunet.errors import DeviceError, KernelError
from tests.kernels.gemm_cases import exact, rounded

SOURCE = """
#include "ptx/hopper.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

enum Mistake { NONE, NOT_ALIGNED, TOO_FEW_BYTES, TOO_MANY_ARRIVALS, NOT_INITIALISED };

// Copies one box to shared memory, and all of its bytes out in the order of their addresses.
template <int AXES>
__global__ void __launch_bounds__(32)
copy(unsigned* out, const int* at, int bytes, int mistake, const __grid_constant__ TensorMap map) {
    __shared__ Barrier full;
    if (threadIdx.x == 0 && mistake != NOT_INITIALISED) {
        prefetch(map);
        mbarrier_init(&full, 1);
        fence_barriers();
    }
    __syncthreads();
    if (elect()) {
        unsigned char* const to = gn_shared + (mistake == NOT_ALIGNED ? 64 : 0);
        mbarrier_arrive_expect(&full, mistake == TOO_FEW_BYTES ? bytes - 128 : bytes);
        if (mistake == TOO_MANY_ARRIVALS) mbarrier_arrive(&full);
        if (AXES == 2) tma_load(to, map, &full, at[0], at[1]);
        if (AXES == 3) tma_load(to, map, &full, at[0], at[1], at[2]);
        if (AXES == 4) tma_load(to, map, &full, at[0], at[1], at[2], at[3]);
    }
    mbarrier_wait(&full, 0);
    for (int i = threadIdx.x; i < bytes / 4; i += 32) out[i] = reinterpret_cast<unsigned*>(gn_shared)[i];
}

// Two copies to one barrier; what has landed is copied out before the wait and after it.
__global__ void __launch_bounds__(32) land(unsigned* out, const __grid_constant__ TensorMap map) {
    __shared__ Barrier full;
    volatile unsigned* const words = reinterpret_cast<unsigned*>(gn_shared);
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        fence_barriers();
        mbarrier_arrive_expect(&full, 2048);
        tma_load(gn_shared, map, &full, 0, 0);
        tma_load(gn_shared + 1024, map, &full, 0, 8);
    }
    __syncwarp();
    for (int half = 0; half < 2; half++) {
        out[half * 64 + threadIdx.x] = words[threadIdx.x];
        out[half * 64 + 32 + threadIdx.x] = words[256 + threadIdx.x];
        __syncwarp();
        mbarrier_wait(&full, 0);
    }
}

// D = A B for operands that lie as tma_load lays them, of either kind, for each N. d is (majors, N, threads, N / 2).
template <class T, int N, bool A_MN_MAJOR, bool B_MN_MAJOR>
DEVICE void product(float*& d, int left, int right) {
    float sums[N / 2];
    const unsigned long long a = matrix_in_shared(gn_shared + left, 8192);
    const unsigned long long b = matrix_in_shared(gn_shared + right, 8192);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma<T, N, A_MN_MAJOR, B_MN_MAJOR>(sums, a + i * (A_MN_MAJOR ? 128 : 2), b + i * (B_MN_MAJOR ? 128 : 2),
                                            i > 0);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[threadIdx.x * (N / 2) + i] = sums[i];
    d += 128 * (N / 2);
}

template <class T, bool A_MN_MAJOR, bool B_MN_MAJOR>
DEVICE void products(float*& d) {
    const int left = A_MN_MAJOR ? 8192 : 0, right = B_MN_MAJOR ? 49152 : 16384;
    product<T, 64, A_MN_MAJOR, B_MN_MAJOR>(d, left, right);
    product<T, 128, A_MN_MAJOR, B_MN_MAJOR>(d, left, right);
    product<T, 256, A_MN_MAJOR, B_MN_MAJOR>(d, left, right);
}

template <class T>
__global__ void __launch_bounds__(128)
multiply(float* d, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
         const __grid_constant__ TensorMap a_mn, const __grid_constant__ TensorMap b_mn) {
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        fence_barriers();
        mbarrier_arrive_expect(&full, sizeof(T) == 2 ? 81920 : 40960);
        tma_load(gn_shared, a, &full, 0, 0);
        tma_load(gn_shared + 16384, b, &full, 0, 0);
        if (sizeof(T) == 2) {
            tma_load(gn_shared + 8192, a_mn, &full, 0, 0);
            for (int i = 0; i < 4; i++) tma_load(gn_shared + 49152 + i * 8192, b_mn, &full, 64 * i, 0);
        }
    }
    __syncthreads();
    mbarrier_wait(&full, 0);
    products<T, false, false>(d);
    if constexpr (sizeof(T) == 2) {
        products<T, false, true>(d);
        products<T, true, false>(d);
        products<T, true, true>(d);
    }
}

// All elements of A are x and all of B are y. D is read after the products of each of three groups, of which `BUT` may
// be under way.
template <int BUT>
__global__ void __launch_bounds__(128) groups(float* out, float x, float y, int fence) {
    for (int i = threadIdx.x; i < 64 * 32; i += 128) {
        reinterpret_cast<float*>(gn_shared)[i] = x;
        reinterpret_cast<float*>(gn_shared)[64 * 32 + i] = y;
    }
    fence_stores();
    __syncthreads();
    float sums[32];
    for (int i = 0; i < 32; i++) sums[i] = -1;
    for (int i = 0; i < 3; i++) {
        if (fence) wgmma_fence();
        wgmma<tf32, 64>(sums, matrix_in_shared(gn_shared), matrix_in_shared(gn_shared + 8192), i > 0);
        wgmma_commit();
        wgmma_wait<BUT>();
        out[i * 128 + threadIdx.x] = sums[7];
    }
    wgmma_wait<0>();
}

// Threads 0 to 31 and 64 to 95 hand a number to those 64 above, twice, while the others wait for nobody.
__global__ void __launch_bounds__(128) meet(int* out) {
    __shared__ int numbers[128];
    const int i = threadIdx.x, from = (i + 64) % 128;
    if (i / 32 % 2 == 0)
        for (int round = 0; round < 2; round++) {
            numbers[i] = round * 1000 + i;
            named_barrier(3, 64);
            out[round * 128 + i] = numbers[from];
            named_barrier(3, 64);
        }
}

// A phase of two arrivals after another: thread 32 hands numbers to thread 0, which hands them back.
__global__ void __launch_bounds__(64) phases(int* out) {
    __shared__ Barrier there, back;
    __shared__ int number;
    if (threadIdx.x == 0) {
        mbarrier_init(&there, 2);
        mbarrier_init(&back, 1);
        fence_barriers();
    }
    __syncthreads();
    for (int i = 0; i < 5; i++) {
        if (threadIdx.x == 32) {
            mbarrier_wait(&back, i + 1 & 1);
            number = 10 * i;
            mbarrier_arrive(&there);
        }
        if (threadIdx.x == 33) mbarrier_arrive(&there);
        if (threadIdx.x == 33) mbarrier_wait(&there, i & 1);
        if (threadIdx.x == 0) {
            mbarrier_wait(&there, i & 1);
            out[i] = number;
            mbarrier_arrive(&back);
        }
    }
}

// Registers change hands: setmaxnreg has nothing to do on the host.
__global__ void __launch_bounds__(256, 1) registers(int* out) {
    if (threadIdx.x / 128 == 0) {
        release_registers<40>();
        out[threadIdx.x] = 1;
    } else {
        claim_registers<216>();
        out[threadIdx.x] = 2;
    }
}
"""
EXPRESSIONS = [
    *(f"copy<{axes}>" for axes in (2, 3, 4)),
    *(f"multiply<{number}>" for number in ("half", "bfloat16", "tf32")),
    *("land", "groups<0>", "groups<1>", "meet", "phases", "registers"),
]
NOT_WRITTEN = 0xFFFFFFFF  # what shared memory starts as


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels")
    (path / "ptx_hopper.cu").write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def launcher() -> Iterator[EmulatedLauncher]:
    launcher = EmulatedLauncher()
    try:
        launcher.empty((1,), np.float32)
    except DeviceError as error:
        pytest.skip(f"no emulated device: {error}")
    yield launcher


def on_device(launcher: EmulatedLauncher, array: np.ndarray) -> np.ndarray:
    new = launcher.empty(array.shape, array.dtype)
    new[...] = array
    return new


def launch(
    launcher: EmulatedLauncher,
    folder: Path,
    expression: str,
    out: tuple[tuple[int, ...], type],
    *parameters: bytes,
    threads: int = 32,
    shared: int = 0,
    **options: object,
) -> np.ndarray:
    """Run one block with a new array and `parameters`; returns the array."""
    array = launcher.empty(*out)
    variant = Variant("ptx_hopper", expression, threads, shared, requires="sm_90a")
    with emulation(folder=folder, **options):  # type: ignore[arg-type]
        launcher.launch(variant, (1, 1, 1), launcher.pointer(array).to_bytes(8, "little"), *parameters)
    return np.array(array)


def number(value: int | float) -> bytes:
    return (np.float32(value) if isinstance(value, float) else np.int32(value)).tobytes()


def tensor_map(launcher: EmulatedLauncher, array: np.ndarray, box: Sequence[int]) -> bytes:
    """Of a C-contiguous array on the device; the box's axes in the array's order."""
    return launcher.tensor_map(
        launcher.pointer(array), array.itemsize, array.shape[::-1], array.strides[-2::-1], tuple(box[::-1])
    )


def as_it_lands(box: np.ndarray) -> np.ndarray:
    """A box (rows, elements of 128 bytes) in memory: the 16-byte pieces of row r change places p -> p ^ (r % 8)."""
    pieces = box.reshape(box.shape[0], 8, -1)
    landed = np.empty_like(pieces)
    for row in range(len(pieces)):
        for piece in range(8):
            landed[row, piece ^ (row % 8)] = pieces[row, piece]
    return landed.reshape(box.shape)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("corner", [(0, 0), (8, 2), (-3, -1), (33, 15), (500, 0), (0, 20)])
def test_bulk_copy(
    launcher: EmulatedLauncher, folder: Path, axes: int, itemsize: int, corner: tuple[int, int], late: bool
) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 3, 17, 40)[-axes:]
    values = rng.integers(1, 2**16, shape).astype(f"u{itemsize}")
    if itemsize == 4:
        values <<= 13  # floats that TF32 holds exactly
    width, rows = 128 // itemsize, 11
    around = (2, 1)[: axes - 2]
    at = np.array([*corner, *around, 0, 0], np.int32)
    array = on_device(launcher, values)
    got = launch(
        launcher,
        folder,
        f"copy<{axes}>",
        ((rows * 32,), np.uint32),
        *(
            launcher.pointer(coordinates := on_device(launcher, at)).to_bytes(8, "little"),
            number(rows * 128),
            number(0),
        ),
        tensor_map(launcher, array, (*[1] * (axes - 2), rows, width)),
        shared=4096,
        late=late,
    )
    assert (np.array(coordinates) == at).all()
    matrix = values[around[::-1]] if around else values
    expected = np.zeros((rows, width), values.dtype)
    for row in range(rows):
        for i in range(width):
            y, x = corner[1] + row, corner[0] + i
            if 0 <= y < 17 and 0 <= x < 40:
                expected[row, i] = matrix[y, x]
    np.testing.assert_array_equal(got.view(values.dtype).reshape(rows, width), as_it_lands(expected))


def test_bulk_copy_outside_along_a_further_axis(launcher: EmulatedLauncher, folder: Path) -> None:
    array = on_device(launcher, np.ones((2, 3, 8, 64), np.uint16))
    for around, value in (((2, 1), 0x00010001), ((3, 1), 0), ((0, 2), 0), ((-1, 0), 0)):
        at = on_device(launcher, np.array([0, 0, *around], np.int32))
        parameters = (launcher.pointer(at).to_bytes(8, "little"), number(1024), number(0))
        box = tensor_map(launcher, array, (1, 1, 8, 64))
        got = launch(launcher, folder, "copy<4>", ((256,), np.uint32), *parameters, box, shared=1024)
        assert (got == value).all()


def test_bulk_copies_round_floats_to_tf32(launcher: EmulatedLauncher, folder: Path) -> None:
    unit = 2.0**-10
    pairs = [
        *((1 + unit / 2, 1), (1 + 3 * unit / 2, 1 + 2 * unit), (1 + unit * 0.75, 1 + unit), (1 + unit / 4, 1)),
        *((-1 - unit * 0.75, -1 - unit), (2 - unit / 4, 2), (np.inf, np.inf), (-np.inf, -np.inf), (0, 0), (-0.0, -0.0)),
    ]
    values = np.zeros((8, 32), np.float32)
    values[0, : len(pairs)] = [value for value, _ in pairs]
    values[0, 31] = np.nan
    array = on_device(launcher, values)
    at = on_device(launcher, np.array([0, 0, 0, 0], np.int32))
    parameters = (launcher.pointer(at).to_bytes(8, "little"), number(1024), number(0))
    got = launch(
        launcher,
        folder,
        "copy<2>",
        ((256,), np.float32),
        *parameters,
        tensor_map(launcher, array, (8, 32)),
        shared=1024,
    )
    np.testing.assert_array_equal(got[: len(pairs)], np.array([value for _, value in pairs], np.float32))
    assert np.isnan(got[31])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (1, "not aligned to 128 bytes"),
        (2, "other than the expected number of bytes landed"),
        (3, "more threads arrive at an mbarrier than it expects"),
        (4, "before mbarrier_init"),
    ],
)
def test_mistakes_are_named(launcher: EmulatedLauncher, folder: Path, mistake: int, message: str) -> None:
    array = on_device(launcher, np.ones((8, 64), np.uint16))
    at = on_device(launcher, np.array([0, 0, 0, 0], np.int32))
    parameters = (launcher.pointer(at).to_bytes(8, "little"), number(1024), number(mistake))
    box = tensor_map(launcher, array, (8, 64))
    with pytest.raises(KernelError, match=message):
        launch(launcher, folder, "copy<2>", ((256,), np.uint32), *parameters, box, shared=2048)


def test_coordinates_are_as_many_as_axes(launcher: EmulatedLauncher, folder: Path) -> None:
    array = on_device(launcher, np.ones((2, 8, 64), np.uint16))
    at = on_device(launcher, np.array([0, 0, 0, 0], np.int32))
    parameters = (launcher.pointer(at).to_bytes(8, "little"), number(1024), number(0))
    with pytest.raises(KernelError, match="more or fewer coordinates"):
        box = tensor_map(launcher, array, (1, 8, 64))
        launch(launcher, folder, "copy<2>", ((256,), np.uint32), *parameters, box, shared=2048)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("corner", [(0, 0, 0, 0), (8, 1, 1, 1), (-3, -2, -1, 0), (33, 15, 2, 1), (0, 3, 0, -1)])
def test_boxes_of_four_axes(
    launcher: EmulatedLauncher, folder: Path, corner: tuple[int, int, int, int], late: bool
) -> None:
    """Rows land one behind the other, those of the second axis first; what is outside along any axis is zero."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 2**16, (2, 3, 17, 72)).astype(np.uint16)
    box = (2, 2, 5, 64)
    around = np.zeros([n + 2 * b + 80 for n, b in zip(values.shape, box)], np.uint16)
    inside = tuple(slice(40, 40 + n) for n in values.shape)
    around[inside] = values
    expected = around[tuple(slice(40 + c, 40 + c + b) for c, b in zip(corner[::-1], box))]
    at = on_device(launcher, np.array(corner, np.int32))
    parameters = (launcher.pointer(at).to_bytes(8, "little"), number(20 * 128), number(0))
    array = on_device(launcher, values)
    got = launch(
        *(launcher, folder, "copy<4>", ((20 * 32,), np.uint32), *parameters),
        tensor_map(launcher, array, box),
        shared=4096,
        late=late,
    )
    np.testing.assert_array_equal(got.view(np.uint16).reshape(20, 64), as_it_lands(expected.reshape(20, 64)))


def test_late_copies_land_at_the_wait(launcher: EmulatedLauncher, folder: Path) -> None:
    array = on_device(launcher, np.full((16, 32), 1.0, np.float32))
    one = int(np.float32(1).view(np.uint32))
    for late, first in ((False, one), (True, NOT_WRITTEN)):
        got = launch(
            launcher, folder, "land", ((128,), np.uint32), tensor_map(launcher, array, (8, 32)), shared=2048, late=late
        )
        assert (got[:32] == first).all()
        assert (got[32:] == one).all()  # of two late copies, the second lands at once


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["half", "bfloat16", "tf32"])
def test_products(launcher: EmulatedLauncher, folder: Path, kind: str, late: bool) -> None:
    rng = np.random.default_rng(1)
    k = 32 if kind == "tf32" else 64
    a, b = (rounded(rng.integers(-8, 8, shape), kind) for shape in ((64, k), (k, 256)))  # sums are exact
    arrays = [on_device(launcher, np.ascontiguousarray(x)) for x in (a, b.T, a.T, b)]
    boxes = [(64, k), (256, k), (k, 64), (k, 64)]
    if kind == "tf32":
        boxes[2:] = boxes[:2]  # not used
        arrays[2:] = arrays[:2]
    maps = [tensor_map(launcher, array, box) for array, box in zip(arrays, boxes)]
    majors = 1 if kind == "tf32" else 4
    got = launch(
        launcher,
        folder,
        f"multiply<{kind}>",
        ((majors * 128 * (32 + 64 + 128),), np.float32),
        *maps,
        threads=128,
        shared=81920,
        late=late,
    )
    expected = exact(a, kind) @ exact(b, kind)
    thread = np.arange(128)[:, None]
    for major in range(majors):
        for n in (64, 128, 256):
            d, got = got[: 64 * n].reshape(128, n // 2), got[64 * n :]
            i = np.arange(n // 2)
            rows = thread // 32 * 16 + thread % 32 // 4 + i % 4 // 2 * 8
            columns = i // 4 * 8 + thread % 4 * 2 + i % 2
            np.testing.assert_array_equal(d, expected[rows, columns], f"majors {major}, N = {n}")
    assert got.size == 0


def test_products_take_effect_when_they_are_waited_for(launcher: EmulatedLauncher, folder: Path) -> None:
    def sums(but: int, late: bool) -> list[float]:
        parameters = (number(1.0), number(0.5), number(1))
        out = launch(
            launcher, folder, f"groups<{but}>", ((384,), np.float32), *parameters, threads=128, shared=16384, late=late
        )
        assert (out.reshape(3, 128) == out[::128, None]).all()
        return list(out[::128])

    assert sums(0, False) == sums(0, True) == sums(1, False) == [4, 8, 12]
    assert sums(1, True) == [-1, 4, 8]


def test_products_read_the_upper_bits_of_tf32_only(launcher: EmulatedLauncher, folder: Path) -> None:
    almost = float(np.uint32(0x3F801FFF).view(np.float32))  # 1 + 2^-10 less one bit
    parameters = (number(almost), number(1.0), number(1))
    out = launch(launcher, folder, "groups<0>", ((384,), np.float32), *parameters, threads=128, shared=16384)
    assert out[0] == 8


def test_products_without_fence_are_named(launcher: EmulatedLauncher, folder: Path) -> None:
    parameters = (number(1.0), number(1.0), number(0))
    with pytest.raises(KernelError, match="wgmma without wgmma_fence"):
        launch(launcher, folder, "groups<0>", ((384,), np.float32), *parameters, threads=128, shared=16384)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_named_barriers_hold_some_of_the_warps(launcher: EmulatedLauncher, folder: Path, order: str) -> None:
    out = launch(launcher, folder, "meet", ((2, 128), np.int32), threads=128, order=order)
    threads = np.r_[0:32, 64:96]
    for i in range(2):
        np.testing.assert_array_equal(out[i, threads], i * 1000 + (threads + 64) % 128)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_barriers_go_from_phase_to_phase(launcher: EmulatedLauncher, folder: Path, order: str) -> None:
    out = launch(launcher, folder, "phases", ((5,), np.int32), threads=64, order=order)
    np.testing.assert_array_equal(out, [0, 10, 20, 30, 40])


def test_registers_change_hands(launcher: EmulatedLauncher, folder: Path) -> None:
    out = launch(launcher, folder, "registers", ((256,), np.int32), threads=256)
    np.testing.assert_array_equal(out, np.repeat([1, 2], 128))


def test_all_of_it_is_machine_code(folder: Path) -> None:
    """Each wrapper assembles, and each product runs beside others: the assembler has no remark on lost speed."""
    try:
        nvrtc.capabilities()
    except KernelError as error:
        pytest.skip(f"no compiler: {error}")
    headers = sources.read("matmul_wgmma").headers
    source = sources.Source("ptx_hopper.cu", SOURCE, headers)
    for expression in EXPRESSIONS:
        made = nvrtc.build(source, expression, "sm_90a")
        if expression == "groups<1>":  # which does read sums while products are under way: the assembler sees it
            assert any("serialized" in note for note in made.notes)
        else:
            assert made.notes == (), expression
