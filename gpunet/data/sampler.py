"""Samplers: in which order, and which samples of a dataset, an epoch visits.

A sampler is any iterable of indices; it may have a length. The ones here draw from gpunet.random, where the DataLoader
installs a stream of its own for each epoch: the order depends on the loader's seed and the epoch, on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice

import numpy as np

import gpunet as gn


class SequentialSampler:
    """0, 1, 2, …: every sample once, in the dataset's order."""

    def __init__(self, dataset: Sized):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.dataset)))

    def __repr__(self) -> str:
        return f"SequentialSampler({len(self)})"


class RandomSampler:
    """Every sample once, in random order; or `num_samples` of them; or, with `replacement`, as many independent draws.

    Args:
        dataset: anything with a length.
        replacement: whether a sample can be drawn again.
        num_samples: default len(dataset). More than that without replacement goes through the dataset several times,
            each time in a new order.
    """

    def __init__(self, dataset: Sized, replacement: bool = False, num_samples: int | None = None):
        self.dataset = dataset
        self.replacement = replacement
        self.num_samples = num_samples
        if num_samples is not None:
            check_positive("RandomSampler", "num_samples", num_samples)

    def __len__(self) -> int:
        return len(self.dataset) if self.num_samples is None else self.num_samples

    def __iter__(self) -> Iterator[int]:
        size, left = len(self.dataset), len(self)
        if self.replacement:
            yield from gn.random.randint(0, size, (left,), device="cpu").numpy().tolist()
            return
        while left > 0:
            order = gn.random.permutation(size, device="cpu").numpy()[:left]
            left -= len(order)
            yield from order.tolist()

    def __repr__(self) -> str:
        return f"RandomSampler({len(self)} of {len(self.dataset)}{', with replacement' if self.replacement else ''})"


class WeightedRandomSampler:
    """`num_samples` indices drawn with probability proportional to `weights` (n,), e.g. to balance rare classes.

    Without replacement it is the scheme of P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir"
    (2006): the largest keys log(u) / weight, which is the same as drawing one after the other.

    Raises:
        ValueError: negative, infinite or only zero weights; or fewer weights above 0 than are to be drawn.
    """

    def __init__(self, weights: Sequence[float] | np.ndarray, num_samples: int, replacement: bool = True):
        check_positive("WeightedRandomSampler", "num_samples", num_samples)
        self.weights = np.asarray(weights, np.float64)
        self.num_samples = num_samples
        self.replacement = replacement
        if self.weights.ndim != 1 or not np.all(np.isfinite(self.weights)) or np.any(self.weights < 0):
            raise ValueError("WeightedRandomSampler: weights must be one list of finite numbers >= 0")
        possible = int(np.count_nonzero(self.weights))
        if possible == 0:
            raise ValueError("WeightedRandomSampler: at least one weight must be above 0")
        if not replacement and num_samples > possible:
            raise ValueError(
                f"WeightedRandomSampler: cannot draw num_samples={num_samples} without replacement from the "
                f"{possible} samples with a weight above 0"
            )

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        if self.replacement:
            u = gn.random.uniform((self.num_samples,), dtype=np.float64, device="cpu").numpy()
            bounds = np.cumsum(self.weights)
            # u < 1 and side="right" never select a weight of 0, not even the last through rounding.
            last = np.flatnonzero(self.weights)[-1]
            drawn = np.minimum(np.searchsorted(bounds, u * bounds[-1], side="right"), last)
        else:
            u = gn.random.uniform((len(self.weights),), dtype=np.float64, device="cpu").numpy()
            with np.errstate(divide="ignore", invalid="ignore"):
                keys = np.where(self.weights > 0, np.log1p(-u) / self.weights, -np.inf)
            drawn = np.argsort(-keys, kind="stable")[: self.num_samples]
        return iter(drawn.tolist())

    def __repr__(self) -> str:
        return f"WeightedRandomSampler({self.num_samples} of {len(self.weights)}, replacement={self.replacement})"


class BatchSampler:
    """Groups of `batch_size` of another sampler's indices; a smaller last group unless `drop_last`."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool = False):
        check_positive("BatchSampler", "batch_size", batch_size)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]  # TypeError for a sampler without a length, as it should be
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __repr__(self) -> str:
        return f"BatchSampler({self.sampler!r}, batch_size={self.batch_size}, drop_last={self.drop_last})"


def check_positive(where: str, name: str, value: object, least: int = 1) -> None:
    """Raise TypeError unless `value` is an int (not a bool), ValueError unless it is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where}: {name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{where}: {name} must be at least {least}, got {value}")
