"""What `fit`, `evaluate` and `predict` accept as data, brought to one form: an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpunet.backends import Device
from gpunet.data import DataLoader, Dataset, TensorDataset
from gpunet.data.collate import to_tensors
from gpunet.dtypes import default_dtype
from gpunet.errors import ShapeError
from gpunet.nn import Module
from gpunet.tensor import Tensor
from gpunet.train.bar import length


def as_batches(data: Any, where: str, model: Module, batch_size: int = 32, shuffle: bool = False) -> Iterable[Any]:
    """Batches from a DataLoader or another iterable of batches (as it is), a Dataset, or a tuple of arrays (x, y).

    A Dataset is also what has a length and items and cannot be iterated over otherwise, such as a dataset of PyTorch.

    Args:
        where: the caller, for errors.
        model: what the batches are for, see `arrays_dataset`.
        batch_size, shuffle: for a Dataset or arrays; an iterable of batches has its own.

    Raises:
        ShapeError: arrays of different lengths.
        ValueError: there is no data.
        TypeError: none of these.
    """
    if isinstance(data, tuple):
        data = arrays_dataset(data, where, model)
    if isinstance(data, Dataset) or (
        hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, Iterable)
    ):
        if not len(data):
            raise ValueError(f"{where}: the dataset is empty")
        data = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    elif isinstance(data, np.ndarray | Tensor) or not isinstance(data, Iterable):
        raise TypeError(f"{where}: expected a DataLoader, a Dataset or a tuple of arrays (x, y), got {_describe(data)}")
    if length(data) == 0:
        raise no_batches(where)
    return data


def arrays_dataset(arrays: tuple[Any, ...], where: str, model: Module) -> TensorDataset:
    """A dataset of (x, y) from arrays of one length; float64, NumPy's own default, becomes the model's dtype.

    Raises:
        ShapeError: the lengths differ.
    """
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ShapeError(f"{where}: x and y must have one length, got {' and '.join(map(str, lengths))} samples")
    dtype = next((p.dtype for p in model.parameters()), default_dtype())
    return TensorDataset(*(_of_dtype(array, dtype) for array in arrays))


def _of_dtype(array: Any, dtype: np.dtype) -> Any:
    return array.astype(dtype) if isinstance(array, np.ndarray) and array.dtype == np.float64 != dtype else array


def split_batch(batch: Any, where: str) -> tuple[Any, Any]:
    """Inputs and targets of a batch (x, y).

    Raises:
        TypeError: the batch is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"{where}: a batch must be (inputs, targets), got {_describe(batch)}")
    return batch[0], batch[1]


def device_of(model: Module) -> Device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), Device("cpu"))


def to_device(batch: Any, device: Any) -> Any:
    """The batch with every array as a Tensor on `device`."""
    return to_tensors(batch, device)


def no_batches(where: str) -> ValueError:
    """The error for data that gave no batch."""
    return ValueError(
        f"{where}: the data gave no batches; an iterator can be used only once, give a list or a DataLoader"
    )


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
