"""The occupancy calculator, against published values and cases worked by hand."""

from __future__ import annotations

import pytest

from gpunet.backends.occupancy import limits, occupancy


@pytest.mark.parametrize(
    "architecture, threads, registers, shared, blocks, share, limit",
    [
        # CUDA C++ Best Practices Guide, "Calculating Occupancy": 37 registers on 7.0 give 75 % with blocks of 128
        # threads, and 63 % with blocks of 320.
        ("sm_70", 128, 37, 0, 12, 0.75, "registers"),
        ("sm_70", 320, 37, 0, 4, 0.625, "registers"),
        ("sm_70", 256, 32, 0, 8, 1.0, "warps"),
        ("sm_70", 32, 16, 0, 32, 0.5, "blocks"),
        ("sm_75", 256, 64, 32 << 10, 2, 0.5, "shared memory"),  # nothing is reserved: two halves fit
        ("sm_80", 256, 32, 82 << 10, 1, 0.125, "shared memory"),  # 1 KiB is reserved: two halves do not
        ("sm_80", 256, 32, 81 << 10, 2, 0.25, "shared memory"),
        ("sm_86", 1024, 32, 0, 1, 2 / 3, "warps"),
        ("sm_89", 64, 32, 0, 24, 1.0, "warps"),
        ("sm_90a", 384, 168, 200 << 10, 1, 12 / 64, "registers"),  # a product with wgmma
        ("sm_90a", 256, 255, 0, 1, 8 / 64, "registers"),
        ("sm_120", 128, 128, 99 << 10, 1, 4 / 48, "shared memory"),
        ("sm_80", 128, 32, 164 << 10, 0, 0.0, "shared memory"),
        ("sm_80", 1024, 128, 0, 0, 0.0, "registers"),
    ],
)
def test_known_values(
    architecture: str, threads: int, registers: int, shared: int, blocks: int, share: float, limit: str
) -> None:
    found = occupancy(architecture, threads, registers, shared)
    assert (found.blocks, found.share, found.limit) == (blocks, pytest.approx(share), limit)


def test_an_architecture_between_those_of_the_tables() -> None:
    assert limits("sm_103") == limits("sm_100") != limits("sm_120") and limits("sm_90a") == limits("sm_90")
