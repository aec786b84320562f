"""Training checkpoints: everything that a run needs to go on as if it had never stopped, in one safetensors file.

The arrays are the file's tensors ("model.0.weight", "optimizer.state.0.exp_avg", ...; other tools can read them); the
tree that they hang in, with its numbers and strings, is JSON in the header. Numbers come back exactly. Nothing is
pickled, so a checkpoint from a stranger can do no more than fail to load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.errors import FileFormatError
from gpunet.io import safetensors

_KEY = "gpunet.checkpoint"
_VERSION = 1


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    epoch: int = 0,
    history: Any = None,
    extra: Any = None,
) -> None:
    """Write the state of a training run to the file `path`, atomically: a crash leaves the old file whole.

    The state of the random stream (`gn.random.generator()`) is always part of it.

    Args:
        path: the file; its folder must exist.
        model, optimizer, scheduler, loader: objects with `state_dict()`; None leaves a part out. The loader's state is
            the position in the epoch.
        epoch: the epoch to go on with.
        history, extra: anything made of dicts, lists, tuples, numbers, strings, None, NumPy arrays and Tensors.

    Raises:
        TypeError: a part holds something else; its place in the tree is given.
    """
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    tree: dict[str, Any] = {name: part.state_dict() for name, part in parts.items() if part is not None}
    tree |= {"random": gn.random.generator().state_dict(), "epoch": epoch, "history": history, "extra": extra}
    arrays: dict[str, Any] = {}
    text = json.dumps({"version": _VERSION, "tree": _pack(tree, "", arrays)}, separators=(",", ":"))
    safetensors.save(path, arrays, metadata={_KEY: text})


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    random: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint, put its parts into the given objects, and return all of it.

    Args:
        path: a file written by `save_checkpoint`.
        model, optimizer, scheduler, loader: objects that get their state back, by `load_state_dict`.
        random: whether `gn.random.generator()` gets its state back too.

    Returns:
        The tree that was saved, with the keys "epoch", "history", "extra", "random", and one of each part saved
        ("model", ...). Arrays are NumPy arrays.

    Raises:
        FileFormatError: the file is truncated, damaged or not a checkpoint, or a part of it makes no sense.
        KeyError: a part was asked for that the checkpoint does not have.
        ValueError: a part does not fit its state. For the model, the missing, unexpected and mis-shaped parameters are
            listed, and nothing has been changed.
    """
    tree = _read(path)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    wanted = {name: part for name, part in parts.items() if part is not None}
    for name in wanted:
        if name not in tree:
            raise KeyError(f"checkpoint {os.fspath(path)!r} has no {name}; it has {', '.join(sorted(map(str, tree)))}")
    for name, part in wanted.items():  # the model first: it changes nothing unless everything fits
        load = part.load_state_dict
        with understanding(path, f"the {name}'s state"):
            try:
                load(tree[name])
            except ValueError as error:
                raise ValueError(f"checkpoint {os.fspath(path)!r} is of a different {name}: {error}") from error
    if random:
        with understanding(path, "the random stream's state"):
            gn.random.generator().load_state_dict(tree["random"])
    return tree


@contextmanager
def understanding(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn what happens in the block, to code that expected something else in a checkpoint, into FileFormatError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise FileFormatError(
            f"checkpoint {os.fspath(path)!r}: {what} is damaged, or of another version: {error!r}"
        ) from error


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    arrays, metadata = safetensors.read(path)
    where = repr(os.fspath(path))
    if _KEY not in metadata:
        raise FileFormatError(f"{where} is a safetensors file but no gpunet checkpoint; io.load reads weights")
    try:
        header = json.loads(metadata[_KEY])
        if header["version"] != _VERSION:
            raise FileFormatError(
                f"{where} is a checkpoint of version {header['version']!r}; this gpunet reads version {_VERSION}"
            )
        tree = _unpack(header["tree"], arrays)
        return {
            "epoch": tree["epoch"],
            "history": tree["history"],
            "extra": tree["extra"],
            "random": tree["random"],
        } | tree
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{where}: the checkpoint's header is damaged: {error!r}") from error


# A tree as JSON. JSON's own lists, strings, numbers, booleans and null stand for themselves; everything else is an
# object with one key: {"array": name}, {"tuple": [...]}, or {"dict": [[key, value], ...]}, whose keys need not be
# strings (an optimizer numbers its parameters). Python writes floats so that they read back exactly, NaN and infinity
# included.
def _pack(node: Any, place: str, arrays: dict[str, Any]) -> Any:
    """`node` as JSON values; its arrays go into `arrays` under the dotted path of their place in the tree."""
    if isinstance(node, np.generic):
        node = node.item()
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str | int):
                raise TypeError(
                    f"checkpoint: the keys at {place or 'the top'} must be strings or integers, got {key!r}"
                )
        return {"dict": [[key, _pack(value, _join(place, key), arrays)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        items = [_pack(value, _join(place, index), arrays) for index, value in enumerate(node)]
        return items if isinstance(node, list) else {"tuple": items}
    if hasattr(node, "shape") and hasattr(node, "dtype"):
        name = place
        while name in arrays:  # {"a.b": x} and {"a": {"b": x}}
            name += "'"
        arrays[name] = node
        return {"array": name}
    raise TypeError(
        f"checkpoint: {place} is a {type(node).__name__}; expected dicts, lists, tuples, numbers, strings, None and"
        " arrays"
    )


def _unpack(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_unpack(value, arrays) for value in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "array":
        return arrays[value]
    if kind == "tuple":
        return tuple(_unpack(item, arrays) for item in value)
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in value}
    raise ValueError(f"unknown kind of node {kind!r}")


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)
