"""Samples into batches: a list of equal structures into one structure of arrays, and that into Tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.errors import DTypeError, ShapeError


def collate(samples: Sequence[Any], indices: Sequence[int] | None = None) -> Any:
    """One batch from a list of samples of equal structure.

    Arrays and Tensors of one shape are stacked along a new first axis; Python ints become int64, floats gpunet's
    default dtype, bools bool; strings and bytes stay a list. Tuples, named tuples, lists and dicts are collated field
    by field. The result holds NumPy arrays.

    Args:
        samples: at least one.
        indices: the samples' places in the dataset, for the errors.

    Raises:
        ShapeError: unequal shapes or structures.
        DTypeError: something that has no place in an array.
    """
    return _collate(samples, range(len(samples)) if indices is None else indices, "")


def _collate(values: Sequence[Any], indices: Sequence[int], field: str) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        _require_equal([set(v) if isinstance(v, Mapping) else type(v) for v in values], indices, field)
        return {key: _collate([v[key] for v in values], indices, f"{field}[{key!r}]") for key in first}
    if isinstance(first, (tuple, list)):
        _require_equal([len(v) if isinstance(v, type(first)) else type(v) for v in values], indices, field)
        columns = [_collate(column, indices, f"{field}[{i}]") for i, column in enumerate(zip(*values))]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    if isinstance(first, (str, bytes)):
        return list(values)
    arrays = [_array(value, index, field) for value, index in zip(values, indices)]
    _require_equal([array.shape for array in arrays], indices, field)
    return np.stack(arrays)


def _array(value: Any, index: int, field: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        array = value
    elif isinstance(value, gn.Tensor):
        if value.device != "cpu":
            raise DTypeError(
                f"collate: sample {index}{_in(field)} is a Tensor on {value.device}; datasets give arrays in the CPU's "
                "memory, and the DataLoader's device= says where batches go"
            )
        array = value.detach().numpy()
    elif isinstance(value, float) and not isinstance(value, np.generic):
        array = np.asarray(value, gn.default_dtype())
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise DTypeError(
            f"collate: sample {index}{_in(field)} is a {type(value).__name__}, which has no place in an array; return "
            "numbers, arrays, strings, or tuples, lists and dicts of these, or pass a collate_fn"
        )
    return array


def _require_equal(forms: Sequence[Any], indices: Sequence[int], field: str) -> None:
    """forms: what must be equal of the samples: shape, number of fields, or keys; the type, for one without them."""
    for form, index in zip(forms, indices):
        if form != forms[0]:
            advice = (
                "; bring them to one shape (resize, crop, pad), or pass a collate_fn" if type(form) is tuple else ""
            )
            raise ShapeError(
                f"collate: the samples of a batch differ{_in(field)}: sample {indices[0]} has {_describe(forms[0])}, "
                f"sample {index} has {_describe(form)}{advice}"
            )


def _describe(form: Any) -> str:
    if isinstance(form, tuple):
        return f"shape {form}"
    if isinstance(form, int):
        return f"{form} fields"
    return f"type {form.__name__}" if isinstance(form, type) else f"keys {sorted(form, key=str)}"


def _in(field: str) -> str:
    return f" in field {field}" if field else ""


def map_leaves(function: Callable[..., Any], *batches: Any) -> Any:
    """Apply `function` to the leaves of batches of one structure: what is not a tuple, list of fields, or dict."""
    first = batches[0]
    if isinstance(first, Mapping):
        return {key: map_leaves(function, *(batch[key] for batch in batches)) for key in first}
    if isinstance(first, (tuple, list)):
        columns = [map_leaves(function, *fields) for fields in zip(*batches)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return function(*batches)


def to_tensors(batch: Any, device: Any) -> Any:
    """The batch with each numeric array as a Tensor on `device`; CPU memory is shared, strings and the like stay.

    Arrays of other libraries count where they offer DLPack, such as those of a loader of PyTorch's.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, gn.Tensor):
            return leaf.to(device)
        if isinstance(leaf, (np.ndarray, np.generic)):
            return gn.asarray(leaf, device=device) if leaf.dtype.kind in "biufc" else leaf
        return gn.asarray(leaf, device=device) if hasattr(leaf, "__dlpack__") else leaf

    return map_leaves(convert, batch)
