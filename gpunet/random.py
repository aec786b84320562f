"""Random numbers: reproducible from a seed, and the same on every device.

`gpunet.manual_seed(n)` starts the process-wide stream afresh. Initial weights, dropout, shuffling and augmentation all
draw from `generator()`, so one seed fixes a whole training run. The method is in gpunet/ops/random.py.
"""

from __future__ import annotations

import operator
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpunet import dtypes
from gpunet.creation import get_device
from gpunet.errors import DTypeError
from gpunet.ops import random as draw
from gpunet.tensor import Tensor

__all__ = [
    "Generator", "bernoulli", "derive", "generator", "manual_seed", "normal", "permutation", "randint", "seed",
    "uniform", "using",
]  # fmt: skip


class Generator:
    """A stream of random numbers.

    Args:
        seed: any int from 0 to 2**64 - 1.
        offset: how far along the stream to start, in blocks of 256 bits.
        stream: three words that tell apart streams of one seed; see `derive`.

    Raises:
        ValueError: a seed out of range.
    """

    def __init__(self, seed: int = 0, offset: int = 0, stream: tuple[int, int, int] = (0, 0, 0)) -> None:
        if not hasattr(seed, "__index__") or not 0 <= operator.index(seed) < 2**64:
            raise ValueError(f"seed: expected an int from 0 to 2**64 - 1, got {seed!r}")
        self.seed = operator.index(seed)
        self.offset = offset
        self.stream = stream
        self._lock = threading.Lock()

    def key(self, shape: tuple[int, ...], kind: str = "float64") -> draw.Key:
        """The name of the next draw, of `shape` numbers of `kind`; the stream moves on past it."""
        with self._lock:
            key = draw.Key(self.seed, self.stream, self.offset)
            self.offset += draw.blocks(shape, kind)
        return key

    def uniform(
        self, shape: Any = (), low: float = 0.0, high: float = 1.0, dtype: Any = None, device: Any = None
    ) -> Tensor:
        """Uniform in [low, high).

        Args:
            shape: of the result, an int or a tuple.
            dtype: floating-point; the default dtype if None.
            device: where the result is; the default device if None.
        """
        dtype, shape = _floating(dtype), _shape(shape)
        key = self.key(shape, "float64" if dtype == "float64" else "float32")
        return Tensor._wrap(draw.uniform(key, shape, low, high, dtype, get_device(device)))

    def normal(
        self, shape: Any = (), mean: float = 0.0, std: float = 1.0, dtype: Any = None, device: Any = None
    ) -> Tensor:
        """Normally distributed, with the given mean and standard deviation; arguments as of `uniform`."""
        dtype, shape = _floating(dtype), _shape(shape)
        return Tensor._wrap(draw.normal(self.key(shape or (2,)), shape, mean, std, dtype, get_device(device)))

    def randint(
        self, low: int, high: int | None = None, shape: Any = (), dtype: Any = None, device: Any = None
    ) -> Tensor:
        """Integers from `low` up to but not including `high`; with one bound, from 0 up to it. int64 unless `dtype`.

        Raises:
            TypeError: a bound is no int.
            ValueError: there are no integers in between, more than 2**53, or some that `dtype` cannot hold.
        """
        low, high = (0, operator.index(low)) if high is None else (operator.index(low), operator.index(high))
        if not low < high <= low + 2**53:
            raise ValueError(f"randint: expected 1 to 2**53 integers from {low} up to but not including {high}")
        dtype = dtypes.int64 if dtype is None else np.dtype(dtype)
        if dtype.kind in "iu" and not np.iinfo(dtype).min <= low < high <= np.iinfo(dtype).max + 1:
            raise ValueError(f"randint: {dtype} cannot hold the integers from {low} up to but not including {high}")
        shape = _shape(shape)
        return Tensor._wrap(draw.integers(self.key(shape), shape, low, high, dtype, get_device(device)))

    def permutation(self, n: int, device: Any = None) -> Tensor:
        """The integers from 0 to n - 1 in random order, int64 of shape (n,)."""
        return Tensor._wrap(draw.permutation(self.key((n,)), n, get_device(device)))

    def bernoulli(self, p: float, shape: Any = (), device: Any = None) -> Tensor:
        """Booleans that are true with probability p.

        Raises:
            ValueError: p is not in [0, 1].
        """
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"bernoulli: expected a probability from 0 to 1, got {p}")
        shape = _shape(shape)
        return Tensor._wrap(draw.bernoulli(self.key(shape, "float32"), shape, p, get_device(device)))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: {"seed", "offset", "stream"}."""
        return {"seed": self.seed, "offset": self.offset, "stream": list(self.stream)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken."""
        a, b, c = state.get("stream", (0, 0, 0))
        self.seed, self.offset, self.stream = int(state["seed"]), int(state["offset"]), (int(a), int(b), int(c))

    def __reduce__(self) -> Any:
        return Generator, (self.seed, self.offset, self.stream)  # to copy and pickle: all but the lock

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, offset={self.offset}, stream={self.stream})"


def derive(seed: int, *numbers: int) -> Generator:
    """A stream of its own for `seed` and up to three non-negative ints, such as (epoch, sample).

    Raises:
        ValueError: more than three numbers, or one out of range.
    """
    if len(numbers) > 3 or any(not 0 <= n < 2**60 for n in numbers):
        raise ValueError(f"derive: expected up to three ints from 0 to 2**60 - 1, got {numbers}")
    a, b, c = (*numbers, 0, 0, 0)[:3]
    return Generator(seed, stream=(a, b, c * 4 + len(numbers)))  # the count keeps (1,) and (1, 0) apart


_global = Generator(0)


class _Current(threading.local):
    generator: Generator | None = None


_current = _Current()


def generator() -> Generator:
    """The stream that random functions draw from now: the process-wide one, or the one that `using` installed."""
    return _current.generator or _global


@contextmanager
def using(source: Generator) -> Iterator[Generator]:
    """Draw from `source` within a `with` block, in this thread."""
    before, _current.generator = _current.generator, source
    try:
        yield source
    finally:
        _current.generator = before


def manual_seed(seed: int) -> Generator:
    """Start the process-wide stream afresh from `seed`, an int from 0 to 2**64 - 1."""
    _global.load_state_dict(Generator(seed).state_dict())
    return _global


def seed() -> int:
    """Start the process-wide stream afresh from a seed that nobody can foresee, and return it."""
    return manual_seed(secrets.randbits(63)).seed


def uniform(shape: Any = (), low: float = 0.0, high: float = 1.0, dtype: Any = None, device: Any = None) -> Tensor:
    """`Generator.uniform` of the current stream."""
    return generator().uniform(shape, low, high, dtype, device)


def normal(shape: Any = (), mean: float = 0.0, std: float = 1.0, dtype: Any = None, device: Any = None) -> Tensor:
    """`Generator.normal` of the current stream."""
    return generator().normal(shape, mean, std, dtype, device)


def randint(low: int, high: int | None = None, shape: Any = (), dtype: Any = None, device: Any = None) -> Tensor:
    """`Generator.randint` of the current stream."""
    return generator().randint(low, high, shape, dtype, device)


def permutation(n: int, device: Any = None) -> Tensor:
    """`Generator.permutation` of the current stream."""
    return generator().permutation(n, device)


def bernoulli(p: float, shape: Any = (), device: Any = None) -> Tensor:
    """`Generator.bernoulli` of the current stream."""
    return generator().bernoulli(p, shape, device)


def _shape(shape: Any) -> tuple[int, ...]:
    return (operator.index(shape),) if hasattr(shape, "__index__") else tuple(shape)


def _floating(dtype: Any) -> Any:
    dtype = dtypes.default_dtype() if dtype is None else np.dtype(dtype)
    if dtype.kind != "f":
        raise DTypeError(f"expected a floating-point dtype, got {dtype}")
    return dtype
