"""The DataLoader: batches of a dataset, in a reproducible order, on a device, fetched ahead by worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.data.collate import collate, map_leaves, to_tensors
from gpunet.data.dataset import Indexable, get_batch
from gpunet.data.sampler import BatchSampler, RandomSampler, SequentialSampler, check_positive
from gpunet.data.transforms import is_batched
from gpunet.data.workers import WorkerPool, start_methods

# What a random stream belongs to, beside the seed and the epoch: the order, a sample (by its index), a batch (by its
# number in the epoch), or the other libraries' generators in a worker (likewise).
_ORDER, _SAMPLE, _BATCH, _OTHERS = range(4)


class DataLoader:
    """Iterate over a dataset in batches: `for x, y in DataLoader(train, batch_size=64, shuffle=True): ...`

    Everything random is drawn from streams derived from the seed, the epoch, and the sample's index (for a sample
    fetched alone) or the batch's number (for one fetched whole, and batch_transform). So the batches do not depend on
    num_workers, and training that goes on from a `state_dict` sees what it would have seen.

    Each `iter(loader)` is the next epoch; the first after `load_state_dict` goes on where the saved one stood.

    Args:
        dataset: a `Dataset`, or anything with `len()` and `[index]`, e.g. a list of samples.
        batch_size: samples per batch; the last batch is smaller where it does not divide the dataset.
        shuffle: a new random order each epoch.
        sampler: an iterable of indices instead of shuffle. It should draw its random numbers from gpunet.random.
        batch_sampler: an iterable of lists of indices instead of batch_size, shuffle, sampler and drop_last.
        num_workers: processes that fetch batches ahead; 0 fetches in this process, which is faster for arrays in
            memory without costly transforms.
        collate_fn: from a list of samples to a batch. Default: `collate`, or the dataset's own `get_batch`, which
            indexes whole batches at once.
        drop_last: leave out a last batch that is not full.
        device: where the batches' arrays go, as Tensors; the default device if None.
        seed: None draws one from gpunet.random now, so gn.manual_seed makes everything reproducible.
        batch_transform: applied to each collated batch (NumPy arrays), in the worker. A `transforms.Transform` changes
            the first element of the batch, the images; other callables get the whole batch and return it.
        prefetch_factor: batches per worker that may be ready or under way.
        timeout: seconds to wait for a batch from a worker, 0 for ever.
        persistent_workers: keep the processes between epochs. Worth it with start_method="spawn", where starting them
            takes half a second or more; forked ones are there in milliseconds.
        start_method: how workers start; default "fork" on Linux and "spawn" elsewhere (see `workers`).

    Attributes:
        epoch: the epoch that is running or comes next, from 0.
        position: how many of its batches have been handed out.

    Raises:
        ValueError: an empty dataset; no batch left by drop_last; arguments out of range or that exclude each other.
        TypeError: an argument of the wrong type.
        An exception of the dataset's in a worker comes as it is, with the worker's traceback as its cause; a worker
        that died raises RuntimeError, one that is too slow TimeoutError.
    """

    def __init__(
        self,
        dataset: Indexable,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        device: Any = None,
        seed: int | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        prefetch_factor: int = 2,
        timeout: float = 0,
        persistent_workers: bool = False,
        start_method: str | None = None,
    ):
        check_positive("DataLoader", "batch_size", batch_size)
        check_positive("DataLoader", "num_workers", num_workers, least=0)
        check_positive("DataLoader", "prefetch_factor", prefetch_factor)
        if timeout < 0:
            raise ValueError(f"DataLoader: timeout must be a number of seconds >= 0, got {timeout!r}")
        if start_method is not None and start_method not in (known := start_methods()):
            raise ValueError(f"DataLoader: start_method must be one of {known} here, got {start_method!r}")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"DataLoader: the dataset needs len() and [index]; {type(dataset).__name__} does not have them"
            )
        if isinstance(dataset, tuple) and dataset and all(hasattr(part, "shape") for part in dataset):
            raise TypeError(
                f"DataLoader: got a tuple of {len(dataset)} arrays; TensorDataset(*arrays) makes a dataset of them"
            )
        if len(dataset) == 0:
            raise ValueError(f"DataLoader: the dataset is empty: len({type(dataset).__name__}) is 0")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "DataLoader: batch_sampler says which samples make each batch, so it excludes batch_size, shuffle, "
                    "sampler and drop_last"
                )
        else:
            if sampler is not None and shuffle:
                raise ValueError("DataLoader: sampler and shuffle=True both set the order; give one of them")
            if sampler is None:
                sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
            if drop_last and isinstance(sampler, Sized) and len(batch_sampler) == 0:
                raise ValueError(
                    f"DataLoader: no batch is left: batch_size={batch_size} is more than the {len(sampler)} samples, "
                    "and drop_last=True drops a batch that is not full"
                )
        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.device = device
        self.seed = int(gn.random.randint(0, 2**31, device="cpu").item()) if seed is None else seed
        check_positive("DataLoader", "seed", self.seed, least=0)
        self.batch_transform = batch_transform
        self.prefetch_factor = prefetch_factor
        self.timeout = timeout
        self.persistent_workers = persistent_workers
        self.start_method = start_method
        self.epoch = 0
        self.position = 0
        self._running: object | None = None  # identifies the iterator that `epoch` and `position` speak of
        self._pool: WorkerPool | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.batch_sampler)  # type: ignore[arg-type]  # TypeError where the sampler has no length

    def __iter__(self) -> Iterator[Any]:
        if self._running is not None:  # an earlier iterator stopped within its epoch; this one is for the next
            self.epoch += 1
            self.position = 0
        self._running = object()
        return self._iterate(self._running, self.epoch, self.position)

    def _iterate(self, running: object, epoch: int, position: int) -> Iterator[Any]:
        tasks = self._tasks(epoch, position)
        fetch = _Fetch(self.dataset, self.collate_fn, self.batch_transform)
        pool = None
        try:
            if self.num_workers == 0:
                batches: Iterator[Any] = (fetch(*task) for task in tasks)
            else:
                pool, self._pool = self._pool, None
                if pool is None:
                    pool = WorkerPool(
                        fetch.in_worker, self.num_workers, self.prefetch_factor, self.timeout, self.start_method
                    )
                batches = pool.map(tasks)
            for batch in batches:
                position += 1
                if self._running is running:
                    self.position = position
                yield to_tensors(batch, self.device)
                del batch  # its shared memory is free as soon as the caller has done with it
            if self._running is running:
                self.epoch, self.position, self._running = epoch + 1, 0, None
            if self.persistent_workers and self._pool is None:
                self._pool, pool = pool, None
        finally:
            if pool is not None:
                pool.close()

    def _tasks(self, epoch: int, position: int) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """(seed, epoch, number, indices) for each batch of the epoch from number `position` on."""
        stream = gn.random.derive(self.seed, epoch, _ORDER)
        with gn.random.using(stream):
            groups = iter(self.batch_sampler)
        number = 0
        while True:
            with gn.random.using(stream):  # for the sampler only: between two batches other code runs
                indices = next(groups, None)
            if indices is None:
                return
            if number >= position:
                yield self.seed, epoch, number, np.asarray(indices, np.int64)
            number += 1

    def state_dict(self) -> dict[str, int]:
        """`seed`, `epoch` and `position`: the epoch, and how many of its batches have been handed out."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next `iter` goes on behind the last batch that `state` knows of, without fetching those before it.

        Raises:
            KeyError: the state lacks one of the three numbers.
            ValueError: its position is beyond the epoch's end.
        """
        missing = {"seed", "epoch", "position"} - state.keys()
        if missing:
            raise KeyError(f"DataLoader.load_state_dict: the state lacks {', '.join(sorted(missing))}")
        if isinstance(self.batch_sampler, Sized) and state["position"] > len(self):
            raise ValueError(
                f"DataLoader.load_state_dict: the state stands behind batch {state['position']}, and this loader has "
                f"{len(self)} batches; the dataset or the batch size is another one"
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._running = None

    def __repr__(self) -> str:
        return (
            f"DataLoader({self.dataset!r}, {self.batch_sampler!r}, num_workers={self.num_workers}, seed={self.seed}, "
            f"device={self.device})"
        )


class _Fetch:
    """From indices to a batch of NumPy arrays; runs in this process and in workers alike."""

    def __init__(self, dataset: Indexable, collate_fn: Callable[..., Any] | None, batch_transform: Any):
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.batch_transform = batch_transform

    def __call__(self, seed: int, epoch: int, number: int, indices: np.ndarray) -> Any:
        with gn.random.using(gn.random.derive(seed, epoch, _BATCH, number)):
            batch = get_batch(self.dataset, indices) if self.collate_fn is None else NotImplemented
            if batch is NotImplemented:
                batch = self._collate(seed, epoch, indices.tolist())
            if self.batch_transform is not None:
                whole = is_batched(self.batch_transform)
                batch = self.batch_transform.batch(batch) if whole else self.batch_transform(batch)
            return map_leaves(_in_order, batch)

    def in_worker(self, seed: int, epoch: int, number: int, indices: np.ndarray) -> Any:
        """The same; code that draws from `random` or `numpy.random` gets other numbers for each batch, not, as forked
        copies of one generator would give, the same ones in each worker."""
        state = gn.random.derive(seed, epoch, _OTHERS, number).randint(0, 2**32, device="cpu").item()
        random.seed(state)
        np.random.seed(state)
        return self(seed, epoch, number, indices)

    def _collate(self, seed: int, epoch: int, indices: list[int]) -> Any:
        samples = []
        for index in indices:
            with gn.random.using(gn.random.derive(seed, epoch, _SAMPLE, index)):
                samples.append(self.dataset[index])
        return collate(samples, indices) if self.collate_fn is None else self.collate_fn(samples)


def _in_order(leaf: Any) -> Any:
    """Views that transforms return, such as crops, as arrays of their own: what kernels and workers' pickles want."""
    return leaf.copy() if isinstance(leaf, np.ndarray) and not leaf.flags.c_contiguous else leaf
