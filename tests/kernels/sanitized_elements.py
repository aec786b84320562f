"""A program for the sanitizers to watch: elementwise ops, reductions, random numbers, indexing and sorting, of sizes
that end within vectors, tiles and parts.

python -m tests.kernels.sanitized_elements
"""

from __future__ import annotations

import numpy as np

from gpunet.ops import elementwise as ew
from gpunet.ops import index, random, reduce, shape
from tests.kernels.watched import Watched

watched = Watched()
on = watched.on

rng = np.random.default_rng(0)


def work() -> None:
    x, row = on(rng.standard_normal((5, 37)).astype(np.float32)), on(rng.standard_normal(37).astype(np.float32))
    half, image = on(np.ones((3, 21), np.float16)), on(rng.standard_normal((2, 9, 6, 4)).astype(np.float32))
    indices, tall = on(rng.integers(-5, 5, 75)), on(rng.standard_normal((1500, 3)).astype(np.float32))
    key = random.Key(1, (2, 3, 4), 5)
    ew.add(x, row)
    ew.add(x, x)
    ew.where(ew.greater(half, 0), half, 2.0)
    ew.gelu_grad(image, image.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2), approximate="none")
    for axis in (0, 1, None):
        reduce.sum(x, axis=axis)
        reduce.argmax(tall, axis=axis)
    reduce.var(image, axis=(0, 2, 3))
    reduce.max(image.transpose(0, 3, 1, 2), axis=(2, 3))
    reduce.cumulative_sum(tall, axis=0, include_initial=True)
    reduce.cumulative_sum(tall, axis=1)
    random.dropout(x[:, 1:], p=0.5, key=key)
    random.normal(key, (37,), 0.0, 1.0, np.dtype(np.float32), watched.device)
    random.integers(key, (37,), 0, 9, np.dtype(np.int32), watched.device)
    index.take(x, indices, axis=0)
    index.getitem(x, key=(indices[:7], indices[7:14]))
    index._scatter(on(np.ones((75, 37), np.float32)), key=(indices,), shape=x.shape)
    index._scatter(on(np.ones(75, np.float32)), key=(indices, indices), shape=x.shape)
    index.take_along_axis(x, indices[:10].reshape(5, 2), axis=1)
    index._scatter_along(x[:, :2], indices[:10].reshape(5, 2), axis=1, shape=x.shape)
    index.getitem(x, key=ew.greater(x, 0.0))
    index._scatter(index.getitem(x, key=ew.greater(row, 0.0)[:5]), key=ew.greater(row, 0.0)[:5], shape=x.shape)
    index.argsort(tall, axis=0, descending=True, stable=True)
    index.one_hot(indices, num_classes=5, dtype=None)
    shape.pad(image, pad_width=3, mode="reflect", constant_values=0)
    shape.roll(x, shift=3, axis=1)
    shape.tril(x, k=1)
    shape.concat([x, x], axis=1)
    shape.reshape(x.T, shape=(-1,))


if __name__ == "__main__":
    watched.run(work)
    watched.end()
