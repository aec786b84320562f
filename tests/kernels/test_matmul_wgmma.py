"""kernels/matmul_wgmma.cu on the emulated device, against float64.

Run as a program (`python -m tests.kernels.test_matmul_wgmma MISTAKE`), it launches the kernel with one mistake planted
in it, for the sanitizers to find.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpunet.backends import kernel_folder
from gpunet.backends.emulated import EmulatedLauncher, emulation, prebuild
from gpunet.backends.kernel import Launcher, Variant
from gpunet.errors import DeviceError, KernelError
from tests.backends.sanitizers import FOUND, run_under
from tests.kernels.gemm_cases import EPILOGUES, Epilogue, Product, check_product, operand, rounded

BOTH = ("K_MAJOR", "MN_MAJOR")


def instance(
    number: str, tile: tuple[int, int], slots: int, layouts: tuple[str, str] = ("K_MAJOR", "K_MAJOR")
) -> Variant:
    m, n = tile
    return Variant(
        "matmul_wgmma",
        f"matmul_wgmma<{number}, {m}, {n}, {slots}, {', '.join(layouts)}>",
        threads=128 + 2 * m,
        shared=slots * (m + n) * 128 + m * 256 + slots * 16,
        requires="sm_90a",
    )


SMALL = instance("bfloat16", (64, 64), 2)
LAYOUTS = {layouts: instance("bfloat16", (64, 64), 3, layouts) for layouts in ((a, b) for a in BOTH for b in BOTH)}
LARGE = {
    ("K_MAJOR", "MN_MAJOR"): instance("half", (128, 256), 4, ("K_MAJOR", "MN_MAJOR")),
    ("MN_MAJOR", "K_MAJOR"): instance("half", (128, 128), 6, ("MN_MAJOR", "K_MAJOR")),
}
TF32 = instance("tf32", (64, 128), 4)


def arguments(variant: Variant) -> list[str]:
    """The template's arguments, as they are written."""
    return variant.expression[len("matmul_wgmma<") : -1].split(", ")


def tensor_maps(launcher: Launcher, variant: Variant) -> Callable[[Product], list[bytes]]:
    """What makes a product's parameters behind MatmulArgs: the maps of A and of B."""
    _, m, n, _, a_layout, b_layout = arguments(variant)

    def of(p: Product) -> list[bytes]:
        maps = []
        for pointer, layout, tile, length, (outer, inner, mn_stride, k_stride) in (
            (p.a, a_layout, int(m), p.m, p.a_strides),
            (p.b, b_layout, int(n), p.n, (*p.b_strides[:2], p.b_strides[3], p.b_strides[2])),
        ):
            k_box = 128 // p.itemsize
            if layout == "K_MAJOR":
                lengths, stride, box = (p.k, length), mn_stride, (k_box, tile)
            else:
                lengths, stride, box = (length, p.k), k_stride, (64, k_box)
            batch = (p.batch[1] if inner else 1, p.batch[0] if outer else 1)
            # An axis of length 1 has no stride to speak of; nor has anything if K is 0.
            strides = (-(-x * p.itemsize // 16) * 16 or 16 for x in (stride, inner, outer))
            shape = tuple(max(x, 1) for x in (*lengths, *batch))
            maps.append(launcher.tensor_map(pointer, p.itemsize, shape, tuple(strides), (*box, 1, 1)))
        return maps

    return of


def check(
    launcher: EmulatedLauncher,
    variant: Variant,
    shape: tuple[int, int, int],
    *,
    blocks: int = 3,
    a_batch: tuple[int, ...] = (),
    b_batch: tuple[int, ...] = (),
    **options: Any,
) -> np.ndarray:
    """Multiply random matrices whose strides are multiples of 16 bytes, and check the result."""
    number, _, _, _, a_layout, b_layout = arguments(variant)
    rng = np.random.default_rng(0)
    m, n, k = shape
    unit = 16 // rounded(0, number).itemsize

    def make(batch: tuple[int, ...], rows: int, columns: int, adjacent: int) -> np.ndarray:
        length = columns if adjacent == -1 else rows
        return operand(rng, number, (*batch, rows, columns), adjacent, padding=unit + -length % unit)

    a = make(a_batch, m, k, -1 if a_layout == "K_MAJOR" else -2)
    b = make(b_batch, k, n, -2 if b_layout == "K_MAJOR" else -1)
    parameters = tensor_maps(launcher, variant)
    return check_product(launcher, variant, number, a, b, grid=(blocks, 1, 1), parameters=parameters, **options)


@pytest.fixture(scope="module")
def launcher() -> Iterator[EmulatedLauncher]:
    try:
        prebuild([SMALL, *LAYOUTS.values(), *LARGE.values(), TF32])
    except DeviceError as error:
        pytest.skip(f"no emulated device: {error}")
    yield EmulatedLauncher()


SHAPES = [(1, 1, 1), (64, 64, 64), (65, 3, 130), (100, 72, 200), (7, 130, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
def test_layouts(launcher: EmulatedLauncher, layouts: tuple[str, str], shape: tuple[int, int, int]) -> None:
    check(launcher, LAYOUTS[layouts], shape)


@pytest.mark.parametrize("layouts", LARGE, ids=str)
def test_large_tiles(launcher: EmulatedLauncher, layouts: tuple[str, str]) -> None:
    check(launcher, LARGE[layouts], (200, 300, 136))
    with emulation(late=True, order="random", seed=3):
        check(launcher, LARGE[layouts], (129, 257, 300), blocks=1, epilogue=EPILOGUES[5])


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_blocks_go_from_tile_to_tile(launcher: EmulatedLauncher, blocks: int, order: str) -> None:
    """Six tiles of five steps, through two slots: the ring's phases run on across tiles, alike for all orders."""
    with emulation(order=order, seed=blocks):
        c = check(launcher, SMALL, (130, 100, 290), blocks=blocks)
    with emulation(late=True, order=order):
        late = check(launcher, SMALL, (130, 100, 290), blocks=blocks)
    first = check(launcher, SMALL, (130, 100, 290), blocks=6)
    assert c.tobytes() == late.tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("a_batch", "b_batch"), [((2, 3), (2, 3)), ((1, 3), (2, 1)), ((2, 1), (1, 1)), ((1, 5), (1, 5)), ((1, 1), (1, 4))]
)
@pytest.mark.parametrize("layouts", [("K_MAJOR", "MN_MAJOR")])
def test_batches(
    launcher: EmulatedLauncher, layouts: tuple[str, str], a_batch: tuple[int, ...], b_batch: tuple[int, ...]
) -> None:
    check(launcher, LAYOUTS[layouts], (70, 40, 72), a_batch=a_batch, b_batch=b_batch, epilogue=EPILOGUES[5])


def test_no_sum_at_all_is_a_sum_of_zero(launcher: EmulatedLauncher) -> None:
    check(launcher, SMALL, (70, 40, 0), epilogue=EPILOGUES[5])


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
@pytest.mark.parametrize(("offset", "padding"), [(0, 0), (8, 8), (3, 1)])
def test_epilogues(launcher: EmulatedLauncher, epilogue: Epilogue, offset: int, padding: int) -> None:
    for variant, shape in ((SMALL, (80, 72, 64)), (TF32, (66, 133, 32))):
        check(launcher, variant, shape, epilogue=epilogue, offset=offset, padding=padding)


@pytest.mark.parametrize("late", [False, True])
def test_split_sums(launcher: EmulatedLauncher, late: bool) -> None:
    with emulation(late=late):
        for splits in (2, 5):
            check(launcher, SMALL, (70, 70, 280), splits=splits, split_unit=64, epilogue=EPILOGUES[5])
    check(launcher, TF32, (30, 40, 100), splits=3, split_unit=32, a_batch=(2, 1), b_batch=(2, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tf32(launcher: EmulatedLauncher, shape: tuple[int, int, int]) -> None:
    with emulation(late=True):
        check(launcher, TF32, shape)


def test_tf32_rounds_to_nearest(launcher: EmulatedLauncher) -> None:
    """Truncated, each product would be off in the same direction, and their sum by the number of them."""
    unit = 2.0**-10
    a, b = np.full((8, 64), 1 + 0.75 * unit, np.float32), np.full((64, 8), 1 + 0.25 * unit, np.float32)
    parameters = tensor_maps(launcher, TF32)
    c = check_product(launcher, TF32, "tf32", a, b.T.copy().T, grid=(1, 1, 1), parameters=parameters)
    assert (c == 64 * (1 + unit)).all()


# Mistakes: what of the kernel's text is replaced by what, and what the plain emulator says: "wrong" numbers where
# copies and products are late, or part of a message.
MISTAKES = {
    "none": ("", "", ""),
    "no wait for full": ("mbarrier_wait(&full[place.slot], place.parity);", "", "more threads arrive at an mbarrier"),
    "no wait for empty": ("mbarrier_wait(&empty[place.slot], place.parity ^ 1);", "", "more threads arrive at an"),
    "no wait for the last products": ("wgmma_wait<0>();", "", "wrong"),
    "no wait for the step before": ("wgmma_wait<1>();", "", "forever"),
    "slot freed a step too soon": (
        "if (before && lane == 0) mbarrier_arrive(before);\n                before = &empty[place.slot];",
        "before = nullptr;\n                if (lane == 0) mbarrier_arrive(&empty[place.slot]);",
        "wrong",
    ),
    "bytes of A only": (
        "mbarrier_arrive_expect(landed, list.bytes())",
        "mbarrier_arrive_expect(landed, A_BYTES)",
        "bytes landed",
    ),
    "too few arrivals": (
        "mbarrier_init(&empty[i], 4 * CONSUMERS)",
        "mbarrier_init(&empty[i], 4 * CONSUMERS + 1)",
        "forever",
    ),
    "no fence": ("wgmma_fence();", "", "wgmma without wgmma_fence"),
    "barriers used too early": ("__syncthreads();", "", "before mbarrier_init"),
    "strip read too early": ("                __syncwarp();\n#pragma unroll 1\n", "", "wrong"),
}
FOUND_BY_THREAD_SANITIZER = (
    "no wait for full",
    "slot freed a step too soon",
    "strip read too early",
)


def launch_with(mistake: str, folder: Path, **options: Any) -> None:
    """Multiply by the kernel with a mistake."""
    text, header = ((kernel_folder() / f"matmul_wgmma.{kind}").read_text(encoding="utf-8") for kind in ("cu", "cuh"))
    text = text.replace('#include "matmul_wgmma.cuh"', header.replace("#pragma once", ""))
    right, wrong, _ = MISTAKES[mistake]
    assert right in text
    (folder / "matmul_wgmma.cu").write_text(text.replace(right, wrong) if right else text, encoding="utf-8")
    with emulation(folder=folder, **options):
        check(EmulatedLauncher(), SMALL, (100, 72, 300), blocks=2)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(launcher: EmulatedLauncher, mistake: str, tmp_path: Path) -> None:
    def run() -> None:
        launch_with(mistake, tmp_path, late=True, order="random")

    expected = MISTAKES[mistake][2]
    if not expected:
        run()
    elif expected == "wrong":
        with pytest.raises(AssertionError, match="elements are wrong"):
            run()
    else:
        with pytest.raises(KernelError, match=expected):
            run()


@pytest.mark.parametrize("mistake", ["none", *FOUND_BY_THREAD_SANITIZER])
def test_thread_sanitizer(mistake: str) -> None:
    done = run_under("thread", "tests.kernels.test_matmul_wgmma", mistake)
    if mistake == "none":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == FOUND and "data race" in done.stderr, done.stdout + done.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for is_late in (False, True):
            try:
                launch_with(sys.argv[1], Path(name), late=is_late)
            except (KernelError, AssertionError):
                if sys.argv[1] == "none":
                    raise
