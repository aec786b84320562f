"""A program for the sanitizers to watch: every kind of convolution kernel, of the smallest tiles, on sizes that end
within tiles.

python -m tests.kernels.sanitized_conv
"""

from __future__ import annotations

from functools import partial

from gpunet.backends.emulated import prebuild
from gpunet.ops import conv_kernels
from tests.kernels.test_conv import SHAPES, SMALLEST, check, plans
from tests.kernels.watched import Watched

CASES = [
    ("few channels", "float32"),
    ("asymmetric", "float64"),
    ("aligned, strided", "float16"),
    ("aligned", "tf32"),
    ("aligned, in groups", "bfloat16"),
    ("depthwise, strided", "float16"),
    ("depthwise, to odd", "float32"),
    ("one channel", "float32"),
]


def main() -> None:
    watched = Watched()
    launcher = watched.backend.launcher("conv")  # type: ignore[misc]
    work = []
    for name, compute in CASES:
        for which in conv_kernels.PASSES:
            found = plans(SHAPES[name], which, compute, launcher.architecture, 2)
            work.append((SHAPES[name], which, compute, [p for p in found if p.choice.tile in SMALLEST]))
    if watched.is_emulated:
        prebuild({plan.choice.variant for *_, found in work for plan in found})
    watched.run(*(partial(check, watched.backend, *item) for item in work), late=True)
    watched.end()


if __name__ == "__main__":
    main()
