"""Random numbers from a counter: Philox4x64-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3", 2011).

A draw is named by (seed, stream, offset) and needs no state: block i of a draw is the Philox function of the
counter (offset + 1 + i, *stream) under the key (seed, 0), 256 bits that serve as four 64-bit or eight 32-bit
numbers, low halves first. So any device can compute any part of it, and all devices get the same numbers: NumPy's
generator on the CPU, kernels/random.cu on a GPU.
"""

from __future__ import annotations

import sys
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import Device, backend_of_type, get_backend, threads
from gpunet.dtypes import float32
from gpunet.ops import launch, sort_kernels
from gpunet.ops import random_kernels as cuda
from gpunet.ops.op import op


class Key(NamedTuple):
    """What names a draw: the seed, the stream (three words below 2**64), and how many blocks of it came before."""

    seed: int
    stream: tuple[int, int, int]
    offset: int


def _bits(key: Key) -> np.random.Generator:
    counter = np.array([key.offset % 2**64, *key.stream], np.uint64)  # of a list, NumPy may make float64
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([key.seed % 2**64, 0], np.uint64)))


def blocks(shape: tuple[int, ...], kind: str) -> int:
    """How many 256-bit blocks a draw of `shape` takes: eight float32 or four of anything else to a block."""
    n = prod(shape)
    return -(-n // (8 if kind == "float32" else 4))


def host_uniform(key: Key, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uniform in [0, 1): float64 with 53 random bits, float32 with 24, float16 with 11; in C order."""
    dtype = np.dtype(dtype)
    if dtype == "float64":
        return _bits(key).random(shape)
    u = _bits(key).random(shape, dtype=np.float32)
    return u if dtype == "float32" else (np.floor(u * 2048) / 2048).astype(dtype)


def host_normal(key: Key, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal, float64, by the transform of Box and Muller (1958): each pair of uniforms gives a pair."""
    n = prod(shape)
    u = _bits(key).random((-(-n // 2), 2))
    radius = np.sqrt(-2.0 * np.log1p(-u[:, 0]))
    angle = (2.0 * np.pi) * u[:, 1]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return z.reshape(-1)[:n].reshape(shape)


def host_integers(key: Key, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Integers from `low` up to but not including `high`, int64, each from the 53 bits of a float64."""
    return low + np.floor(host_uniform(key, shape, "float64") * (high - low)).astype(np.int64)


def host_permutation(key: Key, n: int) -> np.ndarray:
    """The numbers from 0 to n - 1 in random order: the order of n random keys."""
    return np.argsort(host_uniform(key, (n,), "float64"), kind="stable")


def uniform(key: Key, shape: tuple[int, ...], low: float, high: float, dtype: np.dtype, device: Device) -> Any:
    """Uniform in [low, high), a raw array on `device`."""
    launcher = cuda.launcher_of(device)
    if launcher is not None:
        with get_backend(device).on(device):
            return cuda.uniform(launcher, key, shape, low, high, dtype)
    u = host_uniform(key, shape, dtype)
    if (low, high) != (0.0, 1.0):
        u = u * dtype.type(high - low) + dtype.type(low)
        if low < high:  # rounding may have reached it
            u = np.minimum(u, np.nextafter(dtype.type(high), dtype.type(low)))
    return place(u, dtype, device)


def normal(key: Key, shape: tuple[int, ...], mean: float, std: float, dtype: np.dtype, device: Device) -> Any:
    """Normally distributed, a raw array on `device`."""
    launcher = cuda.launcher_of(device)
    if launcher is not None:
        with get_backend(device).on(device):
            return cuda.normal(launcher, key, shape, mean, std, dtype)
    return place(host_normal(key, shape) * std + mean, dtype, device)


def integers(key: Key, shape: tuple[int, ...], low: int, high: int, dtype: np.dtype, device: Device) -> Any:
    """Integers from `low` up to but not including `high`, a raw array on `device`."""
    launcher = cuda.launcher_of(device)
    if launcher is not None and dtype.name in launch.NUMBERS and -(2**63) <= low < 2**63:
        with get_backend(device).on(device):
            return cuda.integers(launcher, key, shape, low, high, dtype)
    return place(host_integers(key, shape, low, high), dtype, device)


def permutation(key: Key, n: int, device: Device) -> Any:
    """The numbers from 0 to n - 1 in random order, int64, a raw array on `device`."""
    launcher = cuda.launcher_of(device)
    if launcher is not None and 0 < n < 2**31:
        with get_backend(device).on(device):
            positions = sort_kernels.order_of(launcher, cuda.keys(launcher, key, n), 53)[1]
            return launch.copy(launcher, positions, np.dtype(np.int64))
    return place(host_permutation(key, n), np.dtype(np.int64), device)


def bernoulli(key: Key, shape: tuple[int, ...], p: float, device: Device) -> Any:
    """Booleans that are true with probability p, a raw array on `device`."""
    launcher = cuda.launcher_of(device)
    if launcher is not None:
        with get_backend(device).on(device):
            return cuda.bernoulli(launcher, key, shape, p)
    return place(host_uniform(key, shape, "float32") < p, np.dtype(bool), device)


def place(array: np.ndarray, dtype: Any, device: Device) -> Any:
    """What was drawn, as a raw array of `dtype` on `device`."""
    return get_backend(device).from_numpy(np.asarray(array, dtype=dtype), device)


@op
def dropout(xp, x, *, p, key, kept=None):
    """Each element set to zero with probability p, the others divided by 1 - p (Srivastava et al., 2014).

    Args:
        x: floating-point, any shape.
        p: in [0, 1).
        key: names the draw of the mask, which is float32 whatever the dtype of x. Where `kept` stays empty, it is drawn
            again for the gradient.
        kept: None, or an empty list, into which a kernel may put a bit for each element, in C order.
    """
    backend = backend_of_type(type(x))
    keep = backend.from_numpy(host_uniform(key, x.shape, "float32") >= p, backend.device_of(x))
    return x * keep * (1.0 / (1.0 - p))


@dropout.kernel("random", platform="cpu", when=lambda x, **_: x.dtype == float32 and sys.byteorder == "little")
def _(native, x, *, p, key, kept):
    if not x.flags.c_contiguous:  # the mask is drawn in C order
        return x * dropout(np.ones(x.shape, float32), p=p, key=key)
    y, n = np.empty_like(x), blocks(x.shape, "float32")
    bits = np.empty(n, np.uint8)
    scale = 1.0 / (1.0 - p)
    draw = x, y, bits, x.size, key.seed, *key.stream, key.offset, p, scale
    if n < _FEW:
        native.dropout(*draw, 0, n)
    else:
        threads.split(n, partial(native.dropout, *draw), 2 * x.size)  # a number costs as much as two elsewhere
    if kept is not None:
        kept.append(bits)
    return y


@dropout.kernel("random")
def _(launcher, x, *, p, key, kept):
    return cuda.dropout(launcher, x, p, key)


@dropout.vjp
def _(xp, g, _y, _x, *, p, key, kept):
    if kept and type(g) is np.ndarray:
        return dropout_again(g, kept[0], p=p)
    return dropout(g, p=p, key=key)


@op
def dropout_again(xp, g, kept, *, p):
    """What `dropout` makes of g if it keeps what it has `kept` before."""
    keep = xp.unpackbits(kept, count=g.size, bitorder="little").reshape(g.shape)
    return g * keep.astype(g.dtype) * (1.0 / (1.0 - p))


@dropout_again.kernel("random", platform="cpu", when=lambda g, kept, **_: g.dtype == float32 and g.flags.c_contiguous)
def _(native, g, kept, *, p):
    dx, n = np.empty_like(g), len(kept)
    if n < _FEW:
        native.dropout_again(g, kept, dx, g.size, 1.0 / (1.0 - p), 0, n)
    else:
        threads.split(n, partial(native.dropout_again, g, kept, dx, g.size, 1.0 / (1.0 - p)), g.size)
    return dx


_FEW = 2000  # blocks that are certainly not worth dividing among threads
