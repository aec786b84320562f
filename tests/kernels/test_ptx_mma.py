"""The wrappers of kernels/ptx/mma.cuh on the emulated device: what each lane gets, and when.

The layouts expected here are written down from the PTX ISA manual a second time, lane by lane, in other words than the
wrappers' host twins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpunet.backends.emulated import EmulatedLauncher, emulation
from gpunet.backends.kernel import Variant
from gpunet.errors import DeviceError, KernelError
from tests.kernels.gemm_cases import exact, rounded

SOURCE = """
#include "ptx/mma.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

template <class T, int N>
struct Lane {
    T at[N];
};

// The table's 16-byte rows, read by ldmatrix at the rows that lanes name.
template <bool TRANSPOSED, int N>
__global__ void load(const int* rows, const unsigned* table, Lane<unsigned, N>* out) {
    for (int i = threadIdx.x; i < 1024; i += 32) reinterpret_cast<unsigned*>(gn_shared)[i] = table[i];
    __syncthreads();
    ldmatrix<TRANSPOSED>(out[threadIdx.x].at, shared_address(gn_shared) + rows[threadIdx.x]);
}

__global__ void multiply_half(const Lane<unsigned, 4>* a, const Lane<unsigned, 2>* b, Lane<float, 4>* d) {
    mma_m16n8k16<half>(d[threadIdx.x].at, a[threadIdx.x].at, b[threadIdx.x].at);
}

__global__ void multiply_bfloat16(const Lane<unsigned, 4>* a, const Lane<unsigned, 2>* b, Lane<float, 4>* d) {
    mma_m16n8k16<bfloat16>(d[threadIdx.x].at, a[threadIdx.x].at, b[threadIdx.x].at);
}

__global__ void multiply_half_k8(const Lane<unsigned, 2>* a, const Lane<unsigned, 1>* b, Lane<float, 4>* d) {
    mma_m16n8k8_half(d[threadIdx.x].at, a[threadIdx.x].at, b[threadIdx.x].at[0]);
}

__global__ void multiply_tf32(const Lane<unsigned, 4>* a, const Lane<unsigned, 2>* b, Lane<float, 4>* d) {
    mma_m16n8k8_tf32(d[threadIdx.x].at, a[threadIdx.x].at, b[threadIdx.x].at);
}

__global__ void round_all(const unsigned* in, unsigned* out) { out[threadIdx.x] = round_to_tf32(in[threadIdx.x]); }

// Thread i asks for BYTES to byte i * BYTES; then shared memory is copied out.
template <int BYTES>
__global__ void copy(const unsigned char* from, const int* valid, unsigned char* out) {
    const int i = threadIdx.x;
    cp_async<BYTES>(shared_address(gn_shared) + i * BYTES, from + i * BYTES, valid[i]);
    cp_async_commit();
    cp_async_wait<0>();
    for (int j = 0; j < BYTES; j++) out[i * BYTES + j] = gn_shared[i * BYTES + j];
}

// Three groups of one word each and a word that is in none; after each wait, what has arrived.
__global__ void wait(const unsigned* from, unsigned* out) {
    const volatile unsigned* words = reinterpret_cast<unsigned*>(gn_shared);
    for (int i = 0; i < 4; i++) {
        cp_async<4>(shared_address(gn_shared) + 4 * i, from + i, 4);
        if (i < 3) cp_async_commit();
    }
    for (int i = 0; i < 4; i++) out[i] = words[i];
    cp_async_wait<2>();
    for (int i = 0; i < 4; i++) out[4 + i] = words[i];
    cp_async_wait<1>();
    for (int i = 0; i < 4; i++) out[8 + i] = words[i];
    cp_async_wait<0>();
    for (int i = 0; i < 4; i++) out[12 + i] = words[i];
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 4; i++) out[16 + i] = words[i];
}
"""
NOT_ARRIVED = 0xFFFFFFFF  # what shared memory starts as


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels")
    (path / "ptx_mma.cu").write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def launcher() -> Iterator[EmulatedLauncher]:
    try:
        yield EmulatedLauncher()
    except DeviceError as error:
        pytest.skip(f"no emulated device: {error}")


def launch(
    launcher: EmulatedLauncher,
    folder: Path,
    expression: str,
    inputs: list[np.ndarray],
    out: np.ndarray,
    *,
    threads: int = 32,
    architecture: str = "sm_80",
    late: bool = False,
) -> np.ndarray:
    """Run one block on device copies of `inputs` and `out`; returns what `out` became."""
    on_device = []
    for array in (*inputs, out):
        new = launcher.empty(array.shape, array.dtype)
        new[...] = array
        on_device.append(new)
    pointers = (launcher.pointer(x).to_bytes(8, "little") for x in on_device)
    with emulation(architecture=architecture, late=late, folder=folder):
        launcher.launch(Variant("ptx_mma", expression, threads, shared=4096), (1, 1, 1), *pointers)
    return np.array(on_device[-1])


@pytest.mark.parametrize("matrices", [4, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(launcher: EmulatedLauncher, folder: Path, matrices: int, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2**16, (256, 8), dtype=np.uint16)
    rows = rng.permutation(256)[:32].astype(np.int32)
    expression = f"load<{str(transposed).lower()}, {matrices}>"
    out = launch(launcher, folder, expression, [rows * 16, table.view(np.uint32)], np.zeros((32, matrices), np.uint32))
    for matrix in range(matrices):
        elements = table[rows[8 * matrix : 8 * matrix + 8]]
        if transposed:
            elements = elements.T
        for lane in range(32):
            low, high = elements[lane // 4, 2 * (lane % 4)], elements[lane // 4, 2 * (lane % 4) + 1]
            assert out[lane, matrix] == int(low) + (int(high) << 16)


def test_ldmatrix_wants_rows_at_multiples_of_16_bytes(launcher: EmulatedLauncher, folder: Path) -> None:
    rows = np.arange(32, dtype=np.int32) * 16
    rows[5] += 8
    table = np.zeros(1024, np.uint32)
    with pytest.raises(KernelError, match=r"thread \(5, 0, 0\): ldmatrix: an address"):
        launch(launcher, folder, "load<false, 4>", [rows, table], np.zeros((32, 4), np.uint32))


def fragments(a: np.ndarray, b: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The registers of A (16, K) and B (K, 8), given as the bits of their elements, for each lane."""
    k = a.shape[1]
    per = 32 // bits  # elements in a register
    left, right = np.zeros((32, 2 * k // (4 * per)), np.uint32), np.zeros((32, k // (4 * per)), np.uint32)
    for row in range(16):
        for column in range(k):
            lane = row % 8 * 4 + column // per % 4
            register = row // 8 + column // (4 * per) * 2
            left[lane, register] |= np.uint32(int(a[row, column]) << column % per * bits)
    for row in range(k):
        for column in range(8):
            lane = column * 4 + row // per % 4
            right[lane, row // (4 * per)] |= np.uint32(int(b[row, column]) << row % per * bits)
    return left, right


@pytest.mark.parametrize(
    ("kernel", "number", "k", "architecture"),
    [
        ("multiply_half", "half", 16, "sm_80"),
        ("multiply_bfloat16", "bfloat16", 16, "sm_80"),
        ("multiply_half_k8", "half", 8, "sm_75"),
        ("multiply_tf32", "tf32", 8, "sm_80"),
    ],
)
def test_mma(launcher: EmulatedLauncher, folder: Path, kernel: str, number: str, k: int, architecture: str) -> None:
    rng = np.random.default_rng(1)
    a, b = (rounded(rng.integers(-8, 8, shape), number) for shape in ((16, k), (k, 8)))  # sums are exact
    c = rng.integers(-99, 99, (16, 8)).astype(np.float32)
    bits = 8 * a.itemsize
    left, right = fragments(a.view(f"u{a.itemsize}"), b.view(f"u{a.itemsize}"), bits)
    if number == "tf32":  # these bits the hardware ignores
        left |= rng.integers(0, 2**13, left.shape, dtype=np.uint32)
        right |= rng.integers(0, 2**13, right.shape, dtype=np.uint32)
    d = np.zeros((32, 4), np.float32)
    for row in range(16):
        for column in range(8):
            d[row % 8 * 4 + column // 2, row // 8 * 2 + column % 2] = c[row, column]
    out = launch(launcher, folder, kernel, [left, right], d, architecture=architecture)
    expected = c + exact(a, number) @ exact(b, number)
    for row in range(16):
        for column in range(8):
            assert out[row % 8 * 4 + column // 2, row // 8 * 2 + column % 2] == expected[row, column]


def test_rounding_to_tf32(launcher: EmulatedLauncher, folder: Path) -> None:
    unit = np.float32(2.0**-10)
    values = np.array(
        [1 + unit / 2, 1 + 3 * unit / 2, 1 + unit / 2 - 2.0**-23, 2 - unit / 4, 0, 1e30, 3e-38, 1e-45], np.float32
    )
    random = np.random.default_rng(2).integers(0, 0x7F000000, 488, dtype=np.uint32).view(np.float32)
    special = np.array([np.inf, np.nan, np.finfo(np.float32).max, np.finfo(np.float32).tiny], np.float32)
    nans = np.array([0x7FFFFFFF, 0x7F800001, 0xFFC00000, 0x7FC00000], np.uint32).view(np.float32)
    x = np.concatenate([values, random, special, nans])
    x = np.concatenate([x, -x])
    out = launch(launcher, folder, "round_all", [x.view(np.uint32)], np.zeros(len(x), np.uint32), threads=len(x))
    got = (out & ~np.uint32(0x1FFF)).view(np.float32)
    expected = (x.view(np.uint32) + np.uint32(0x1000) & ~np.uint32(0x1FFF)).view(np.float32)  # ties away from zero
    normal = np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)
    np.testing.assert_array_equal(got[normal].view(np.uint32), expected[normal].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
    np.testing.assert_array_equal(got[np.isinf(x)], x[np.isinf(x)])
    small = np.abs(x) < np.finfo(np.float32).tiny
    assert np.abs(got[small] - x[small]).max() < 2.0**-136


@pytest.mark.parametrize(("size", "architecture"), [(4, "sm_80"), (8, "sm_80"), (16, "sm_80"), (16, "sm_75")])
@pytest.mark.parametrize("late", [False, True])
def test_copies_fill_up_with_zeros(
    launcher: EmulatedLauncher, folder: Path, size: int, architecture: str, late: bool
) -> None:
    source = np.random.default_rng(3).integers(1, 256, (size + 1, size), dtype=np.uint8)
    valid = np.arange(size + 1, dtype=np.int32)
    out = launch(
        launcher, folder, f"copy<{size}>", [source, valid], np.zeros_like(source),
        threads=size + 1, architecture=architecture, late=late,
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.where(np.arange(size) < valid[:, None], source, 0))


def test_copies_have_arrived_when_waited_for_and_no_sooner(launcher: EmulatedLauncher, folder: Path) -> None:
    words = np.arange(10, 14, dtype=np.uint32)

    def arrived(late: bool, architecture: str = "sm_80") -> list[list[int]]:
        out = np.zeros((5, 4), np.uint32)
        out = launch(launcher, folder, "wait", [words], out, threads=1, late=late, architecture=architecture)
        assert set(out.ravel()) <= {*words, NOT_ARRIVED}
        return [[i for i in range(4) if row[i] != NOT_ARRIVED] for row in out]

    assert arrived(late=True) == [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert arrived(late=False) == [[0, 1, 2, 3]] * 5
    assert arrived(late=True, architecture="sm_75") == [[0, 1, 2, 3]] * 5  # which copies by itself


def test_copies_want_addresses_at_multiples_of_their_size(launcher: EmulatedLauncher, folder: Path) -> None:
    source, valid = np.zeros(80, np.uint8), np.full(4, 16, np.int32)
    on_device = launcher.empty(source.shape, source.dtype)
    pointers = [launcher.pointer(on_device) + 4, *(launcher.pointer(x) for x in (valid, source))]
    with emulation(architecture="sm_80", folder=folder), pytest.raises(KernelError, match="cp.async: an address"):
        launcher.launch(
            Variant("ptx_mma", "copy<16>", 4, shared=4096), (1, 1, 1), *(p.to_bytes(8, "little") for p in pointers)
        )
