"""A program for the sanitizers to watch: softmax, losses and attention, on sizes that end within vectors and tiles.

python -m tests.kernels.sanitized_rows
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunet.ops import loss, softmax
from gpunet.ops.attention import attention, attention_grad
from gpunet.ops.random import Key
from tests.kernels.watched import Watched

watched = Watched()

rng = np.random.default_rng(0)


def on(*arrays: Any) -> list[Any]:
    return [watched.on(a) for a in arrays]


def watch_softmax() -> None:
    """A part of a warp, a block and shared memory for a row; columns; rows that begin anywhere."""
    for shape, axis in (((5, 13), 1), ((2, 700), 1), ((1, 4203), 1), ((2, 9, 12), 1)):
        x, g = on(*rng.standard_normal((2, *shape)).astype(np.float32))
        softmax.softmax_grad(g, softmax.softmax(x, axis=axis), axis=axis)
    (x,) = on(rng.standard_normal((4, 33)).astype(np.float16))
    softmax.softmax(x[1:, 3:], axis=1)
    softmax.logsumexp(x, axis=(0, 1))


def watch_losses() -> None:
    for classes in (10, 4203):
        x, target = on(rng.standard_normal((3, classes)).astype(np.float32), np.array([1, -100, 99999]))
        kept: list[Any] = []
        total = loss.cross_entropy(x, target, label_smoothing=0.1, reduction="mean", kept=kept)
        loss.scaled(kept.pop(), total)
    x, target, g = on(*rng.random((3, 5, 7)).astype(np.float32))
    loss.binary_cross_entropy_grad(g, x, target)


def watch_attention() -> None:
    """Tiles of queries and keys that are not full, dropout, a mask, heads that share keys."""
    shapes = (1, 2, 69, 12), (1, 1, 66, 12), (1, 1, 66, 20)
    for dtype in ("float32", "float16"):
        arrays = on(*(rng.standard_normal(s).astype(dtype) for s in shapes), rng.random((69, 66)) < 0.7)
        options = {"scale": 0.3, "causal": True, "dropout": 0.2, "key": Key(1, (0, 0, 0), 0)}
        mask = arrays.pop()
        got = attention(*arrays, mask, **options)
        attention_grad(got[0], None, *got, *arrays, mask, **options)


if __name__ == "__main__":
    watched.run(watch_softmax, watch_losses, watch_attention, late=True)
    watched.end()
