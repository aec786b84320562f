"""A program for the sanitizers to watch: every kind of matrix-product kernel, on sizes that end within tiles.

python -m tests.kernels.sanitized
"""

from __future__ import annotations

from functools import partial

from gpunet.backends.emulated import prebuild
from tests.kernels.test_matmul import Case, check, choices, operands
from tests.kernels.watched import Watched

# Sizes that leave ragged edges along each axis, and a second step or round of the ring along K.
CASES = [
    Case("float32", "K_MAJOR", "MN_MAJOR", 36, 40, 20),
    Case("float64", "MN_MAJOR", "K_MAJOR", 35, 37, 19),
    Case("float32", "STRIDED", "K_MAJOR", 5, 33, 19),
    Case("float32", "K_MAJOR", "K_MAJOR", 37, 1, 131),
    Case("bfloat16", "MN_MAJOR", "K_MAJOR", 40, 1, 24),
    Case("float16", "K_MAJOR", "MN_MAJOR", 72, 72, 200),
    Case("tf32", "MN_MAJOR", "K_MAJOR", 37, 29, 35),
    Case("tf32", "K_MAJOR", "K_MAJOR", 20, 72, 68),
    Case("bfloat16", "MN_MAJOR", "K_MAJOR", 72, 40, 72),
]
# Of each kind, the smallest tile: what its threads do to each other is the same in a large one.
TILES = {"simt 32x32", "mma 64x64", "wgmma 64x64", "vector"}


def main() -> None:
    watched = Watched()
    backend = watched.backend
    architecture = backend.launcher("matmul").architecture  # type: ignore[misc]
    work = []
    for case in CASES:
        a, b = operands(case, backend)
        work += [(case, c, a, b) for c in choices(case, a, b, backend, architecture) if c.tile in TILES]
    if watched.is_emulated:
        prebuild([choice.variant for _, choice, _, _ in work])
    watched.run(*(partial(check, *item, backend) for item in work), late=True)
    watched.end()


if __name__ == "__main__":
    main()
