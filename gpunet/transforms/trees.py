"""Nested tuples, lists and dicts of values: what the functions that are transformed take and return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Structure(NamedTuple):
    """How values are nested: the class of the container, the keys of a dict, and what is inside.

    `kind` is None for a value itself, and for None, which holds no value, `kind` is NoneType.
    """

    kind: type | None
    keys: tuple[Any, ...] = ()
    parts: tuple[Structure, ...] = ()


LEAF = Structure(None)
_NOTHING = Structure(type(None))


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The values in `tree`, those of a dict in the order of its keys, and how they are nested."""
    leaves: list[Any] = []
    return leaves, _walk(tree, leaves)


def _walk(tree: Any, leaves: list[Any]) -> Structure:
    if tree is None:
        return _NOTHING
    if isinstance(tree, (tuple, list)):
        return Structure(type(tree), (), tuple(_walk(part, leaves) for part in tree))
    if isinstance(tree, dict):
        return Structure(type(tree), tuple(tree), tuple(_walk(part, leaves) for part in tree.values()))
    leaves.append(tree)
    return LEAF


def unflatten(structure: Structure, leaves: Any) -> Any:
    """The opposite of `flatten`."""
    return _build(structure, iter(leaves))


def _build(structure: Structure, leaves: Iterator[Any]) -> Any:
    kind = structure.kind
    if kind is None:
        return next(leaves)
    if kind is type(None):
        return None
    parts = [_build(part, leaves) for part in structure.parts]
    if issubclass(kind, dict):
        return dict(zip(structure.keys, parts))
    build: Any = kind
    return build(*parts) if hasattr(kind, "_fields") else build(parts)  # a named tuple takes its fields one by one


def over(function: Callable[..., Any], tree: Any) -> Any:
    """`tree` with `function` of each value in its place."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [function(leaf) for leaf in leaves])


def spread(prefix: Any, structure: Structure, what: str) -> list[Any]:
    """For each value of a tree of `structure`, what `prefix` says of it: a value there speaks for all that is nested
    at its place, and None is a value too.

    Raises:
        ValueError: the nesting of `prefix` does not fit; the message begins with `what`.
    """
    if not isinstance(prefix, (tuple, list, dict)):
        return [prefix] * _count(structure)
    parts = prefix.values() if isinstance(prefix, dict) else prefix
    kind = structure.kind
    fits = kind is not None and issubclass(kind, dict) == isinstance(prefix, dict)
    if not fits or len(parts) != len(structure.parts):
        raise ValueError(f"{what}: {prefix!r} is not nested as {describe(structure)} is")
    if isinstance(prefix, dict):
        if set(prefix) != set(structure.keys):
            raise ValueError(f"{what}: the keys of {prefix!r} are not {', '.join(map(repr, structure.keys))}")
        parts = [prefix[key] for key in structure.keys]
    return [value for part, inside in zip(parts, structure.parts) for value in spread(part, inside, what)]


def _count(structure: Structure) -> int:
    return 1 if structure.kind is None else sum(map(_count, structure.parts))


def describe(structure: Structure) -> str:
    """The nesting as it would be written, with * for each value: "(*, [*, *])"."""
    kind = structure.kind
    if kind is None:
        return "*"
    if kind is type(None):
        return "None"
    parts = [describe(part) for part in structure.parts]
    if issubclass(kind, dict):
        return "{" + ", ".join(f"{key!r}: {part}" for key, part in zip(structure.keys, parts)) + "}"
    if issubclass(kind, list):
        return f"[{', '.join(parts)}]"
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
