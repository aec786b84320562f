"""Datasets: anything with a length and an item for each index, and ways to cut and join them."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

import gpunet as gn
from gpunet.data.collate import map_leaves
from gpunet.data.transforms import is_batched
from gpunet.errors import ShapeError


class Indexable(Protocol):
    """What a DataLoader needs of a dataset. A list of samples is one, too."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Dataset:
    """The samples of a data set, held as NumPy arrays. Subclasses write `__len__` and `__getitem__`.

    A sample is an array, a number, or a tuple, list or dict of these, e.g. `(image, label)`.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def get_batch(self, indices: np.ndarray) -> Any:
        """The samples at `indices` (int64, (n,)) as one batch, with a leading axis of n, where that is faster.

        Optional. The DataLoader asks this first; NotImplemented, the default, makes it fetch each sample and collate
        them. Random numbers drawn here come from a stream that belongs to the batch, not to each sample.
        """
        return NotImplemented


def get_batch(dataset: Any, indices: np.ndarray) -> Any:
    """`dataset.get_batch(indices)`, or NotImplemented for a dataset without it.

    A subclass that changes `__getitem__` alone counts as one without: the inherited batches would not be its samples.
    """
    for kind in type(dataset).__mro__:
        if "get_batch" in vars(kind):
            return dataset.get_batch(indices)
        if "__getitem__" in vars(kind):
            break
    return NotImplemented


class TensorDataset(Dataset):
    """Arrays of equal length, side by side: sample i is the tuple of their i-th elements.

    Args:
        arrays: NumPy arrays, Tensors or nested lists with the same first length. NumPy arrays are shared, not copied.
        transform: applied to the first array's elements: by the DataLoader to a whole batch at once if it is a
            `transforms.Transform`, otherwise to one element at a time.

    Raises:
        ShapeError: the lengths differ.
    """

    def __init__(self, *arrays: Any, transform: Any = None):
        if not arrays:
            raise ValueError("TensorDataset: give it at least one array")
        self.arrays = tuple(a if isinstance(a, np.ndarray) else gn.asarray(a).detach().cpu().numpy() for a in arrays)
        self.transform = transform
        for position, array in enumerate(self.arrays):
            if array.ndim == 0:
                raise ShapeError(
                    f"TensorDataset: array {position} is a scalar; each array needs a first axis of samples"
                )
        lengths = [len(array) for array in self.arrays]
        if len(set(lengths)) > 1:
            raise ShapeError(
                f"TensorDataset: the arrays have different lengths, {', '.join(map(str, lengths))}; "
                f"shapes {', '.join(str(array.shape) for array in self.arrays)}"
            )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        first, *rest = (array[operator.index(index)] for array in self.arrays)
        return (first if self.transform is None else self.transform(first), *rest)

    def get_batch(self, indices: np.ndarray) -> Any:
        if self.transform is not None and not is_batched(self.transform):
            return NotImplemented
        first, *rest = (array[indices] for array in self.arrays)
        return (first if self.transform is None else self.transform.batch(first), *rest)

    def __repr__(self) -> str:
        fields = ", ".join(f"{array.dtype}{array.shape[1:]}" for array in self.arrays)
        return f"TensorDataset({len(self)} samples of {fields})"


class Subset(Dataset):
    """The samples of `dataset` at `indices`, in that order.

    Raises:
        IndexError: an index outside the dataset.
        TypeError: indices that are not integers.
    """

    def __init__(self, dataset: Indexable, indices: Sequence[int] | np.ndarray):
        self.dataset = dataset
        given = np.asarray(indices) if len(indices) else np.empty(0, np.int64)
        if given.dtype.kind not in "iu":
            raise TypeError(f"Subset: indices must be integers, got {given.dtype}")
        self.indices = given.astype(np.int64)
        if self.indices.ndim != 1:
            raise ShapeError(f"Subset: indices must be one list of integers, got shape {self.indices.shape}")
        bad = self.indices[(self.indices < 0) | (self.indices >= len(dataset))]
        if bad.size:
            raise IndexError(f"Subset: index {bad[0]} is outside the dataset's 0..{len(dataset) - 1}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def get_batch(self, indices: np.ndarray) -> Any:
        return get_batch(self.dataset, self.indices[indices])

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.dataset!r})"


class ConcatDataset(Dataset):
    """Several datasets one after the other. Their samples must have the same structure."""

    def __init__(self, datasets: Sequence[Indexable]):
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: give it at least one dataset")
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"ConcatDataset: index {index} is outside its {len(self)} samples")
        part = bisect_right(self._ends, position)
        return self.datasets[part][position - (self._ends[part - 1] if part else 0)]

    def get_batch(self, indices: np.ndarray) -> Any:
        parts = np.searchsorted(self._ends, indices, side="right")
        starts = np.array([0, *self._ends[:-1]])
        batches = []
        for part in np.unique(parts):
            batch = get_batch(self.datasets[part], indices[parts == part] - starts[part])
            if batch is NotImplemented:
                return NotImplemented
            batches.append(batch)
        back = np.argsort(np.argsort(parts, kind="stable"))  # from the parts' order to the order asked for
        return map_leaves(lambda *leaves: np.concatenate(leaves)[back], *batches)

    def __repr__(self) -> str:
        return f"ConcatDataset({len(self)} samples in {self.datasets!r})"


def random_split(dataset: Indexable, lengths: Sequence[float], seed: int | None = None) -> list[Subset]:
    """Cut `dataset` at random into disjoint Subsets that cover it.

    Args:
        dataset: what to cut.
        lengths: sizes that add up to len(dataset), or fractions that add up to 1; with fractions, the samples left
            over by rounding down go one each to the first subsets.
        seed: the same seed always gives the same split. None: draw from gpunet.random, which gn.manual_seed sets.

    Raises:
        ValueError: the lengths do not add up.
    """
    count = len(dataset)
    if any(length < 0 for length in lengths):
        raise ValueError(f"random_split: lengths must not be negative, got {list(lengths)}")
    if all(isinstance(length, (int, np.integer)) for length in lengths):
        sizes = [int(length) for length in lengths]
        if sum(sizes) != count:
            raise ValueError(
                f"random_split: the lengths {sizes} add up to {sum(sizes)}; the dataset has {count} samples"
            )
    else:
        if abs(sum(lengths) - 1) > 1e-6:
            raise ValueError(f"random_split: the fractions {list(lengths)} add up to {sum(lengths):g}, not to 1")
        sizes = [int(count * fraction + 1e-9) for fraction in lengths]
        for position in range(count - sum(sizes)):
            sizes[position % len(sizes)] += 1
    stream = gn.random.generator() if seed is None else gn.random.Generator(seed)
    order = stream.permutation(count, device="cpu").numpy()
    return [Subset(dataset, part) for part in np.split(order, list(accumulate(sizes))[:-1])]
