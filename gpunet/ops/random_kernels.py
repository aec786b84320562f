"""Random numbers and dropout on a device with kernels: kernels/random.cu, from the same counters as on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable
from struct import Struct
from typing import Any

import numpy as np

from gpunet.backends import Device, get_backend
from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.ops import launch
from gpunet.ops.op import kernels_mode


def launcher_of(device: Device) -> Launcher | None:
    """What launches kernels on `device`; None where numbers are drawn by NumPy."""
    backend = get_backend(device)
    if backend.launcher is None or backend.platform != "cuda" or kernels_mode() == "off":
        return None
    return backend.launcher("random")


def pack_draw(key: Any, more: int = 0) -> bytes:
    """`Draw` of kernels/philox.cuh, and what `first_block` is told.

    Args:
        key: names the draw, a `gpunet.ops.random.Key`.
        more: the address of a number in the device's memory that is added to its offset; 0 for none.
    """
    return _DRAW.pack(key.seed % 2**64, *key.stream, key.offset % 2**64, more)


_DRAW, _UNIFORM, _INTEGERS, _DROPOUT = Struct("5QP"), Struct("Pq3di4x"), Struct("P2qd"), Struct("2Pqdf4x")


def _launch(launcher: Launcher, name: str, size: int, per_block: int, args: bytes) -> None:
    launcher.launch(Variant("random", name, 256), launch.grid_of(launcher, -(-size // per_block), 256), args)


def uniform(launcher: Launcher, key: Any, shape: tuple[int, ...], low: float, high: float, dtype: np.dtype) -> Any:
    """Uniform numbers in [low, high), bit by bit those of the CPU."""
    y = launcher.empty(shape, dtype)
    number = dtype.type
    most = np.nextafter(number(high), number(low)) if low < high else number(math.inf)
    scale = float(number(low)), float(number(high - low)), float(most)
    if y.size:
        args = pack_draw(key) + _UNIFORM.pack(launcher.pointer(y), y.size, *scale, (low, high) != (0.0, 1.0))
        _launch(launcher, f"uniform<{launch.NUMBERS[dtype.name]}>", y.size, 4 if dtype.itemsize == 8 else 8, args)
    return y


def normal(launcher: Launcher, key: Any, shape: tuple[int, ...], mean: float, std: float, dtype: np.dtype) -> Any:
    """Normally distributed numbers: those of the CPU, but for what sines and logarithms differ by (some ulp of float64,
    before they are rounded to `dtype`)."""
    y = launcher.empty(shape, dtype)
    if y.size:
        args = pack_draw(key) + _UNIFORM.pack(launcher.pointer(y), y.size, mean, std, 0.0, 1)
        _launch(launcher, f"normal<{launch.NUMBERS[dtype.name]}>", y.size, 4, args)
    return y


def integers(launcher: Launcher, key: Any, shape: tuple[int, ...], low: int, high: int, dtype: np.dtype) -> Any:
    """Integers from `low` up to but not including `high`, those of the CPU."""
    y = launcher.empty(shape, dtype)
    if y.size:
        args = pack_draw(key) + _INTEGERS.pack(launcher.pointer(y), y.size, low, float(high - low))
        _launch(launcher, f"integers<{launch.NUMBERS[dtype.name]}>", y.size, 4, args)
    return y


def keys(launcher: Launcher, key: Any, n: int) -> Any:
    """The 53 bits of n uniform numbers, uint64, whose order is that of the numbers."""
    y = launcher.empty((n,), np.dtype(np.uint64))
    if n:
        _launch(
            launcher,
            "random_keys<unsigned long long>",
            n,
            4,
            pack_draw(key) + _INTEGERS.pack(launcher.pointer(y), n, 0, 0.0),
        )
    return y


def bernoulli(launcher: Launcher, key: Any, shape: tuple[int, ...], p: float) -> Any:
    """Booleans that are true with probability p, those of the CPU."""
    y = launcher.empty(shape, np.dtype(bool))
    if y.size:
        args = pack_draw(key) + _DROPOUT.pack(0, launcher.pointer(y), y.size, 1.0, p)
        _launch(launcher, "bernoulli<bool>", y.size, 8, args)
    return y


def dropout(launcher: Launcher, x: Any, p: float, key: Any) -> Any:
    """x with elements set to zero, or NotImplemented. The mask is drawn in C order: another layout is copied first."""
    if x.dtype.name not in launch.FLOATING:
        return NotImplemented
    x = launch.contiguous(launcher, x)
    y = launcher.empty(x.shape, x.dtype)
    if y.size:
        scale = float(x.dtype.type(1.0 / (1.0 - p)))
        args = pack_draw(key) + _DROPOUT.pack(launcher.pointer(x), launcher.pointer(y), x.size, scale, p)
        _launch(launcher, f"dropout<{launch.NUMBERS[x.dtype.name]}>", x.size, 8, args)
    return y


@register_variants
def _variants() -> Iterable[Variant]:
    for name in launch.FLOATING:
        number = launch.NUMBERS[name]
        yield Variant("random", f"dropout<{number}>", 256, instructions=(r"LDG\S*128", r"STG\S*128"))
        yield Variant("random", f"uniform<{number}>", 256, instructions=(r"STG\S*128",))
        yield Variant("random", f"normal<{number}>", 256)
    yield Variant("random", "integers<long long>", 256)
    yield Variant("random", "integers<int>", 256)
    yield Variant("random", "bernoulli<bool>", 256)
    yield Variant("random", "random_keys<unsigned long long>", 256)
