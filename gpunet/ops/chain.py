"""Chains of elementwise ops as one kernel: a formula is called once with symbols, which note what is done to them.

What comes of it is a type of kernels/elementwise.cuh: of `lambda xp, g, y, _x: g * 0.5 / y`,

    Apply<op::divide, Apply<op::multiply, Argument<0>, Argument<1>>, Argument<2>>

with the inputs g, 0.5 and y. So the derivatives of elementwise ops, which are written in Array API words for every
device and for derivatives of any order, read and write memory once on a GPU. A formula that does anything else (asks
for a shape, branches on values, moves elements) is not a chain, and runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends.kernel import Variant, register_variants
from gpunet.ops import elementwise_kernels as cuda
from gpunet.ops.op import Op, Traced, kernel_launcher

_MOST_PARTS = 48  # functors in a chain


class _Real:
    """What a formula may know of a type: chains are of real numbers, as the kernels are."""

    kind = "f"


class Symbol:
    """An array in a formula that is being noted.

    Attributes:
        functor: the op that makes it; "" for an input.
        parts: what it is made of, Symbols and numbers; of an input, its number.
    """

    __slots__ = ("functor", "parts")
    dtype = _Real

    def __init__(self, functor: str, *parts: Any) -> None:
        self.functor = functor
        self.parts = parts

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("a formula that asks for values is no chain")

    def __neg__(self) -> Symbol:
        return Symbol("negative", self)

    def __abs__(self) -> Symbol:
        return Symbol("abs", self)

    def __invert__(self) -> Symbol:
        return Symbol("logical_not", self)

    def __pow__(self, other: Any) -> Symbol:
        if type(other) in (int, float) and other in (1, 2):
            return self if other == 1 else Symbol("square", self)
        return _made("pow", self, other)


def _made(functor: str, *parts: Any) -> Symbol:
    if any(type(p) not in (Symbol, int, float, bool) for p in parts):
        raise TypeError("only arrays and numbers are parts of a chain")
    return Symbol(functor, *parts)


_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "and": "logical_and", "or": "logical_or", "xor": "logical_xor",
}  # fmt: skip
_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}


def _define_operators() -> None:
    for name, functor in (_OPERATORS | _COMPARISONS).items():
        setattr(Symbol, f"__{name}__", lambda a, b, functor=functor: _made(functor, a, b))
    for name, functor in _OPERATORS.items():
        setattr(Symbol, f"__r{name}__", lambda b, a, functor=functor: _made(functor, a, b))


_define_operators()
Symbol.__rpow__ = lambda b, a: _made("pow", a, b)  # type: ignore[attr-defined]


class _Functions:
    """The array functions that a formula may call, on symbols."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "pow":
            return lambda a, b: a**b
        if name == "clip":
            return lambda x, least, most: _made("clip", x, least, most)
        if name != "where" and name not in cuda.FUNCTORS:
            raise AttributeError(f"{name} is no function of a chain")
        return lambda *parts: _made(name, *parts)


class _Unknown:
    """What stands for a value that a formula does not need: whatever it asks of it, it is no chain."""

    __slots__ = ()


class Chain(NamedTuple):
    """A formula of several functors.

    Attributes:
        functor: its type in kernels/elementwise.cuh.
        inputs: for each input, the number of the formula's argument, or a Constant.
    """

    functor: str
    inputs: tuple[Any, ...]

    def run(self, launcher: Any, arguments: tuple[Any, ...]) -> Any:
        """The results, or NotImplemented where kernels do not know the types."""
        inputs = tuple(i.value if type(i) is Number else arguments[i] for i in self.inputs)
        return cuda.apply(launcher, self.functor, cuda.FLOATING, inputs)


class Number(NamedTuple):
    """A number in a formula."""

    value: int | float | bool


def _written(symbol: Any) -> Chain | None:
    """What a formula gave, as a chain; None if it has too many inputs or parts."""
    inputs: list[Any] = []
    count = 0

    def write(part: Any) -> str:
        nonlocal count
        count += 1
        if count > _MOST_PARTS:
            raise OverflowError
        if type(part) is Symbol and part.functor:
            return f"Apply<op::{part.functor}, {', '.join(map(write, part.parts))}>"
        key = part.parts[0] if type(part) is Symbol else Number(part)
        if key not in inputs:
            inputs.append(key)
        return f"Argument<{inputs.index(key)}>"

    try:
        functor = write(symbol)
    except OverflowError:
        return None
    if not functor.startswith("Apply<") or len(inputs) > cuda.MOST_INPUTS or all(type(i) is Number for i in inputs):
        return None
    if symbol.functor and functor == f"Apply<op::{symbol.functor}, {', '.join(_arguments(len(inputs)))}>":
        functor = symbol.functor  # the kernel of the op itself
    return Chain(functor, tuple(inputs))


def _arguments(count: int) -> list[str]:
    return [f"Argument<{i}>" for i in range(count)]


def _symbolic_ops() -> None:
    """Let ops that have a functor take symbols."""
    for name, op in cuda.FUNCTORS.items():
        op.implementations[Symbol] = lambda *args, name=name, names=op.param_names, **params: _made(
            name, *args, *(params[n] for n in names)
        )


@lru_cache(maxsize=1024)
def _noted(formula: Callable[..., Any], arguments: tuple[Any, ...], params: tuple[Any, ...]) -> Any:
    """The entries of what a formula gives, each a Chain, None, the number of the argument that is passed on, or
    Ellipsis for one that cannot be made of these arguments; None if they are not all of that kind.

    Args:
        formula: called with (xp, *arguments, **params).
        arguments: numbers where these are numbers, a type for each that is not.
        params: names and values.
    """
    _symbolic_ops()
    symbols = []
    for i, a in enumerate(arguments):
        symbols.append(a.value if type(a) is Number else Symbol("", i) if a is Symbol else a and _Unknown())
    try:
        given = formula(_Functions(), *symbols, **dict(params))
        entries = [_entry(e) for e in (given if type(given) is tuple else (given,))]
    except Exception:  # it does what no chain does; running it will say what is wrong, if something is
        return None
    found: list[Any] = []
    for entry in entries:
        if type(entry) is Symbol and not entry.functor:
            found.append(entry.parts[0])
        elif entry is ...:
            found.append(entry)
        elif entry is None or type(entry) is Symbol:
            found.append(None if entry is None else _written(entry))
            if entry is not None and found[-1] is None:
                return None
        else:
            return None
    return None if all(entry is ... for entry in found) else tuple(found)


def _entry(given: Any) -> Any:
    """An entry; Ellipsis where it needs a value that was not kept, as nobody wants it."""
    try:
        return given() if callable(given) else given
    except Exception:
        return ...


def _kind(a: Any) -> Any:
    """What a formula is told of an argument: its value if it is a number or None, else whether it is an array of real
    numbers."""
    if a is None:
        return None
    if type(a) in (int, float, bool):
        return Number(a)
    is_array = hasattr(a, "strides") and not isinstance(a, np.generic) and type(a) is not np.ndarray
    return Symbol if is_array and a.dtype.kind != "c" else _Unknown


def differentiate(derivative: Callable[..., Any], xp: Any, arguments: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """What `derivative(xp, *arguments, **params)` gives, of raw arrays on a device with kernels: each entry that is a
    chain is a function that launches it."""
    launcher = kernel_launcher(arguments[0])
    if launcher is None:
        return derivative(xp, *arguments, **params)
    try:
        entries = _noted(derivative, tuple(map(_kind, arguments)), tuple(sorted(params.items())))
    except TypeError:  # parameters that cannot be looked up
        entries = None
    if entries is None:
        return derivative(xp, *arguments, **params)

    def computed(place: int, entry: Any) -> Any:
        if not isinstance(entry, Chain) and entry is not ...:
            return None if entry is None else arguments[entry]

        def run() -> Any:
            y = NotImplemented if entry is ... else entry.run(launcher, arguments)
            if y is not NotImplemented:
                return y
            whole = derivative(xp, *arguments, **params)
            part = whole[place] if type(whole) is tuple else whole
            return part() if callable(part) else part

        return run

    return tuple(computed(place, entry) for place, entry in enumerate(entries))


def fused(formula: Callable[..., Any]) -> Callable[..., Any]:
    """`formula(xp, *arrays and numbers)`, of elementwise words, as one kernel where its first argument is a raw array
    on a device with kernels."""

    def run(xp: Any, *arguments: Any) -> Any:
        first = arguments[0]
        if type(first) is np.ndarray or isinstance(first, (np.generic, Traced)):
            return formula(xp, *arguments)
        y = differentiate(formula, xp, arguments, {})
        return y[0]() if type(y) is tuple else y

    return run


def chained(op: Op) -> Op:
    """Give an op of elementwise words a kernel: its reference, as a chain."""
    names = op.param_names

    @op.kernel("elementwise")
    def run(launcher: Any, *args: Any, **params: Any) -> Any:
        entries = _noted(op.reference, tuple(map(_kind, args)), tuple((n, params[n]) for n in names))
        if entries is None or not isinstance(entries[0], Chain):
            return NotImplemented
        return entries[0].run(launcher, args)

    return op


@register_variants
def _variants() -> Iterable[Variant]:
    """A chain: the derivative of a / b with respect to b."""
    product = Symbol("multiply", -Symbol("", 0), Symbol("", 1))
    chain = _written(Symbol("divide", product, Symbol("", 2)))
    assert chain is not None
    for name, vector in (("float32", 4), ("float16", 8)):
        for dense in (True, False):
            yield cuda.variant_of(chain.functor, name, name, vector, (name,) * 3, dense)
