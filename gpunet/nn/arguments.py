"""Checks of what layers are given: constructor arguments and inputs."""

from __future__ import annotations

from operator import index
from typing import Any

from gpunet.backends import backend_of_type
from gpunet.errors import DTypeError, ShapeError
from gpunet.nn.errors import size_error
from gpunet.tensor import Tensor

Ints = tuple[int, ...]

# How the shape of a batch is written, by the number of spatial axes.
BATCH_OF = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}


def integer(where: str, name: str, value: Any, least: int = 1) -> int:
    """`value` as an int that is at least `least`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{where}: {name} must be an int, got {value!r}") from None
    if number < least:
        raise ValueError(f"{where}: {name} must be at least {least}, got {number}")
    return number


def integers(where: str, name: str, value: Any, n: int, least: int = 1) -> Ints:
    """`value`, an int or n of them, as a tuple of n ints that are at least `least`.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if type(value) is int and value >= least:
        return (value,) * n
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n
    if len(values) != n:
        raise ValueError(f"{where}: {name} must be an int or {n} of them, got {value!r}")
    return tuple(integer(where, name, v, least) for v in values)


def named_padding(where: str, word: str, kernel: Ints, stride: Ints, dilation: Ints) -> tuple[tuple[int, int], ...]:
    """The elements before and after each axis that "valid" or "same" means.

    Raises:
        ValueError: another word, or "same" with strides.
    """
    if word not in ("valid", "same"):
        raise ValueError(f'{where}: padding must be an int, ints, "valid" or "same", got {word!r}')
    if word == "same" and any(s != 1 for s in stride):
        raise ValueError(f'{where}: padding="same" needs stride 1, got stride {stride}')
    totals = [d * (k - 1) if word == "same" else 0 for d, k in zip(dilation, kernel)]
    return tuple((t // 2, t - t // 2) for t in totals)


def probability(where: str, p: Any) -> float:
    """`p` as a float in [0, 1].

    Raises:
        ValueError: it is outside.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"{where}: p must be a probability, from 0 to 1, got {p!r}")
    return float(p)


def check_batch(x: Any, axes: int) -> None:
    """Raise an error unless x is a Tensor (N, C, *spatial) with so many spatial axes.

    Raises:
        TypeError: x is no array.
        ShapeError: it has another number of axes.
    """
    shape = check_array(x)
    if len(shape) != axes + 2:
        hint = ""
        if len(shape) == axes + 1:
            hint = (
                "; a batch of one is x[None]" if axes > 1 else "; a batch of one is x[None], one channel is x[:, None]"
            )
        elif len(shape) == 2 and axes > 1:
            hint = "; it seems to be flattened already"
        raise ShapeError(f"expected an input of shape {BATCH_OF[axes]}, got {shape}{hint}")


def check_array(x: Any) -> tuple[int, ...]:
    """The shape of x.

    Raises:
        TypeError: x is no array.
    """
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"expected a Tensor, got {_name(x)}; gpunet.tensor(data) makes one")
    return tuple(shape)


def check_channels(x: Any, argument: str, size: int) -> None:
    """Raise ShapeError unless axis 1 of x has `size` channels, as the constructor's `argument` said."""
    if x.shape[1] != size:
        hint = ""
        if x.shape[-1] == size:
            hint = "; the channels seem to be last: gpunet.moveaxis(x, -1, 1) puts them first"
        raise size_error(
            f"expected {size} channels, got {x.shape[1]} in an input of shape {tuple(x.shape)}{hint}",
            argument,
            x.shape[1],
        )


def check_dtype(x: Any, weight: Any) -> None:
    """Raise DTypeError unless x has the dtype of the layer's weight: nothing is promoted silently."""
    if x.dtype != weight.dtype:
        _check_ours(x)
        hint = f'x.astype("{weight.dtype}")'
        if x.dtype.kind == "f":
            hint += f', or model.to("{x.dtype}")'
        raise DTypeError(f"expected an input of dtype {weight.dtype}, as the weight has, got {x.dtype}: use {hint}")


def check_floating(x: Any) -> None:
    """Raise DTypeError unless x is real floating-point."""
    if getattr(x.dtype, "kind", "") != "f":
        _check_ours(x)
        raise DTypeError(f'expected a floating-point input, got {x.dtype}: use x.astype("float32")')


def _check_ours(x: Any) -> None:
    """Raise DTypeError for an array of a library that gpunet does not compute with, such as a PyTorch tensor."""
    if not isinstance(x, Tensor):
        backend_of_type(type(x))


def _name(x: Any) -> str:
    kind = type(x).__name__
    return kind if kind == "NoneType" else f"a{'n' if kind[0] in 'aeiou' else ''} {kind}"
