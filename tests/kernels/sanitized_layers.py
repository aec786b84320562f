"""A program for the sanitizers to watch: pooling and normalization, on sizes that end within vectors and blocks.

python -m tests.kernels.sanitized_layers
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunet.ops import norm, norm_kernels, pool
from tests.kernels.watched import Watched

watched = Watched()


def array(*shape: int, last: bool = False) -> Any:
    values = np.sin(np.arange(math.prod(shape))).astype("float32").reshape(shape)
    if last:
        values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    return watched.on(values)


def pooling() -> None:
    how: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)}
    x = array(2, 4, 7, 5, last=True)
    y, numbers = pool.max_with_offsets(x, **how, dilation=(1, 2), ceil_mode=True)
    pool.unpool(y, numbers, shape=x.shape, **how, dilation=(1, 2))
    pool.pick(x, numbers, **how, dilation=(1, 2))
    places = pool.numbered_places(numbers, shape=x.shape, **how, dilation=(1, 2))
    pool.place_maxima(y, places, size=(7, 5))
    y, numbers = pool.adaptive_max(array(1, 3, 13, 9), size=(2, 1))
    pool.adaptive_unpool(y, numbers, shape=(1, 3, 13, 9))
    mean = pool.adaptive_mean(array(1, 3, 13, 9), size=(2, 1))
    pool.adaptive_mean_grad(mean, shape=(1, 3, 13, 9))


def normalization() -> None:
    for rows, columns in ((3, 36), (3, norm_kernels.LONGEST + 4), (1, 60004)):
        x, weight = array(rows, columns), array(columns)
        norm.normalize(x, weight, weight, axes=(1,), eps=1e-5)
        norm.normalize_grad(x, x, weight, axes=(1,), eps=1e-5)
    x, weight = array(2, 12, 5, 3, last=True), array(12, 1, 1)
    how: dict[str, Any] = {"axes": (0, 2, 3), "eps": 1e-5}
    mean, variance = norm.moments(x, axes=how["axes"])
    norm.update_running(mean, variance, array(12), None, momentum=0.1, unbias=1.0)
    y = norm.normalize_relu(x, weight, weight, x, **how, statistics=(mean, variance))
    norm.normalize_relu_grad(y, y, x, weight, weight, **how, statistics=(mean, variance), added=True)
    x, weight = array(2, 2, 6, 5), array(2, 6, 1)
    norm.normalize_grad(x, x, weight, axes=(2, 3), eps=1e-5)
    x, weight = array(2, 12, 5, 3, last=True), array(12, 1, 1)
    norm.normalize(x, weight, weight, axes=(2, 3), eps=1e-5)
    norm.normalize_grad(x, x, weight, axes=(2, 3), eps=1e-5)
    x, weight = array(1, 3, 120, 101, last=True), array(3, 1, 1)  # with no room for the gradient beside it
    norm.normalize_grad(x, x, weight, axes=(2, 3), eps=1e-5)


if __name__ == "__main__":
    watched.run(pooling, normalization)
    watched.end()
