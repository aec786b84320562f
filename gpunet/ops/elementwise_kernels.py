"""Elementwise ops on a device with kernels: kernels/elementwise.cu with functors of kernels/elementwise.cuh."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.dtypes import default_dtype
from gpunet.errors import DeviceError
from gpunet.ops import launch
from gpunet.ops.op import Op, describe, kernels_mode

MOST_INPUTS = 6  # as in kernels/elementwise.cu


class Rule(NamedTuple):
    """How inputs are converted.

    Attributes:
        like: NumPy's function whose types of inputs and results are those of the op.
        floating: integers become the floating-point type of the other input first, or the default one.
        only_floating: there is no kernel for integers.
        untyped: how many inputs, the first ones, do not count.
    """

    like: np.ufunc
    floating: bool = False
    only_floating: bool = False
    untyped: int = 0


FLOATING = Rule(np.multiply, only_floating=True)
_EXTREME = Rule(np.maximum)  # NumPy's only function for every type
_CHOICE = Rule(np.maximum, untyped=1)


class Types(NamedTuple):
    """What a functor is computed in, and what its result is stored as."""

    computed: np.dtype
    result: np.dtype


FUNCTORS: dict[str, Op] = {}  # by name, the ops that a functor of kernels/elementwise.cuh computes


def attach(op: Op, like: Any = None, *, floating: bool = False, only_floating: bool = False) -> None:
    """Give `op` the functor of its name as a kernel candidate, and as what writes its results in place.

    Args:
        op: of arrays and numbers that broadcast; parameters of the op that the functor takes are numbers behind them.
        like: NumPy's function with the same types of inputs and results; None: that of the op's name.
        floating: integers become the floating-point type of the other input first, or the default one.
        only_floating: the reference is used for integers.
    """
    rule = Rule(getattr(np, op.name) if like is None else like, floating, only_floating)
    functor, names = op.name, op.param_names
    FUNCTORS[op.name] = op

    @op.kernel("elementwise")
    def run(launcher: Launcher, *args: Any, **params: Any) -> Any:
        return apply(launcher, functor, rule, (*args, *(params[name] for name in names)))

    if op.arity == 2 and not names:
        op.in_place = lambda target, other: write(op, rule, target, other)


def apply(launcher: Launcher, functor: str, rule: Rule, inputs: Sequence[Any], out: Any = None) -> Any:
    """A functor of arrays and numbers, broadcast against each other.

    Args:
        launcher: of the arrays' device.
        functor: its name in kernels/elementwise.cuh, or several as gpunet/ops/chain.py writes them.
        rule: how types are converted.
        inputs: arrays, NumPy and Python numbers.
        out: an array to write the results to; None for a new one, whose axes lie as those of the first of the inputs
            that has its shape.

    Returns:
        The results, or NotImplemented where kernels do not know the types or cannot address the arrays.

    Raises:
        ValueError: the inputs do not broadcast.
    """
    arrays = [a for a in inputs if _is_array(a)]
    types = _types(rule, tuple(_type_of(a) for a in inputs[rule.untyped :]), default_dtype())
    if types is None or not arrays:
        return NotImplemented
    numbers = [0 if _is_array(a) else _number(a, types.computed) for a in inputs]
    if None in numbers:
        return NotImplemented
    if functor in _EXACT_ON_INTEGERS and types.computed.kind in "iu":
        functor = "positive"
    if types.computed.kind == "b" and functor == "bitwise_invert":
        functor = "bitwise_invert_truth"
    if functor == "pow":
        if types.computed.kind in "iu" and not (type(inputs[1]) is int and inputs[1] >= 0):
            return NotImplemented
        if type(inputs[1]) in (int, float) and inputs[1] == 2:
            functor, inputs, numbers = "square", inputs[:1], numbers[:1]
    shape = arrays[0].shape
    if any(a.shape != shape for a in arrays):
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    if out is None:
        like = next((a for a in arrays if a.shape == shape), None)
        out = launcher.empty(shape, types.result) if like is None else launch.empty_like(launcher, like, types.result)
    elif out.shape != shape or not np.can_cast(types.result, out.dtype, "same_kind"):
        return NotImplemented  # the reference says what is wrong
    if out.size and not _launch(launcher, functor, types, inputs, numbers, out):
        return NotImplemented
    return out


def where(launcher: Launcher, condition: Any, a: Any, b: Any, out: Any = None) -> Any:
    """a or b, as the boolean `condition` says; `out` as of `apply`."""
    if getattr(condition, "dtype", None) != "bool":
        return NotImplemented
    if any(type(v) is float for v in (a, b)):  # the other, of integers, becomes the default floating-point type
        floating = next((v.dtype for v in (a, b) if hasattr(v, "dtype") and v.dtype.kind != "b"), None)
        if floating is None or floating.kind in "iu":
            return apply(launcher, "where", _CHOICE._replace(floating=True), (condition, a, b), out)
    return apply(launcher, "where", _CHOICE, (condition, a, b), out)


def clip(launcher: Launcher, x: Any, least: Any, most: Any) -> Any:
    """x limited to an interval, of which either end may be None."""
    if most is None:
        return NotImplemented if least is None else apply(launcher, "maximum", _EXTREME, (x, least))
    if least is None:
        return apply(launcher, "minimum", _EXTREME, (x, most))
    return apply(launcher, "clip", _EXTREME, (x, least, most))


def write(op: Op, rule: Rule, target: Any, other: Any) -> bool:
    """Replace the elements of `target` by op(target, other). False where there is no kernel for that.

    Raises:
        DeviceError: there is none, and `gpunet.kernels("force")` asks for one.
    """
    backend, mode = backend_of_type(type(target)), kernels_mode()
    if backend.launcher is None or backend.platform != "cuda" or mode == "off":
        return False
    launcher = backend.launcher(op.name)
    run = backend.implement(lambda *inputs: apply(launcher, op.name, rule, inputs, target))
    done = run(target, other) is not NotImplemented
    if mode == "force" and not done:
        raise DeviceError(f"{op.name}: none of its kernels applies to {describe((target, other))}, in place")
    return done


def _is_array(a: Any) -> bool:
    """Whether it is an array on the device: no Python number, NumPy scalar or NumPy array without axes."""
    return hasattr(a, "shape") and not isinstance(a, np.generic) and type(a) is not np.ndarray


def _type_of(a: Any) -> Any:
    return a.dtype if hasattr(a, "dtype") else type(a)


# Where integers are what they are already.
_EXACT_ON_INTEGERS = ("floor", "ceil", "trunc", "round", "conj")
# Functions of kernels/elementwise.cuh on 16-bit types would step by floats.
_NOT_HALF = (np.nextafter,)


@lru_cache(maxsize=4096)
def _types(rule: Rule, given: tuple[Any, ...], default: np.dtype) -> Types | None:
    """The types that inputs of `given` dtypes, or types of Python numbers, are computed in; None if no kernel is."""
    dtypes = [t for t in given if isinstance(t, np.dtype)]
    if any(d.name not in launch.NUMBERS for d in dtypes) or any(
        t not in (bool, int, float) for t in given if not isinstance(t, np.dtype)
    ):
        return None
    if rule.floating:
        floating = next((d for d in dtypes if d.kind not in "iub"), default)
        given = tuple(floating if isinstance(t, np.dtype) and t.kind in "iub" else t for t in given)
    brain = next((d for d in dtypes if d.name == "bfloat16"), None)
    if brain is not None:  # NumPy knows nothing of it: it promotes as float16 does, with which alone it does not mix
        if any(d.name == "float16" or (d.kind in "iu" and d.itemsize > 1) for d in dtypes):
            return None
        given = tuple(np.dtype(np.float16) if t == brain else t for t in given)
    count = rule.like.nin
    arrays = [np.dtype(t) if t is bool else t for t in given] * (count if len(given) == 1 else 1)
    try:
        for_two = [*arrays[:count], None]
        for more in arrays[count:]:  # NumPy has no function of three that tells its types
            for_two[0] = rule.like.resolve_dtypes(tuple(for_two))[0]
            for_two[1] = more
        loop = rule.like.resolve_dtypes(tuple(for_two))
    except TypeError:
        return None
    *computed, result = loop
    if any(d != computed[0] for d in computed) or not all(d.name in launch.NUMBERS for d in loop):
        return None
    types = Types(computed[0], result)
    if rule.only_floating and types.computed.kind != "f":
        return None
    if brain is not None:
        types = Types(*(brain if d.name == "float16" else d for d in types))
    if rule.like in _NOT_HALF and types.computed.itemsize < 4:
        return None
    return types


def _number(value: Any, dtype: np.dtype) -> float | int | None:
    """A number as arguments hold it, rounded to `dtype`; None if that cannot hold it."""
    if dtype.kind in "iub":
        try:
            whole = int(dtype.type(value))
        except OverflowError:
            return None
        return whole if whole < 2**63 else whole - 2**64
    return float(dtype.type(value))


def _launch(
    launcher: Launcher, functor: str, types: Types, inputs: Sequence[Any], numbers: Sequence[Any], out: Any
) -> bool:
    """Write to `out`; False if kernels cannot address the arrays."""
    arrays = [a if _is_array(a) else None for a in inputs]
    if out.size >= _LARGE:
        arrays = [None if a is None else _turned_as(launcher, out, a) for a in arrays]
    given = [a for a in arrays if a is not None]
    axes = launch.axes_of(out.shape, out, *given)
    if axes is None:
        return False
    pointers = [0 if a is None else launcher.pointer(a) for a in arrays]
    to = launcher.pointer(out)
    sizes = [out.dtype.itemsize, *(a.dtype.itemsize for a in given)]
    addresses = [to, *(p for p in pointers if p)]
    names = tuple(None if a is None else a.dtype.name for a in arrays)
    unused = MOST_INPUTS - len(arrays)
    integer = types.computed.kind in "iub"
    constants = (_INTEGERS if integer else _REALS).pack(*numbers, *(0,) * unused)
    pointers += [0] * unused
    if axes.is_dense():
        vector = 16 // max(sizes)
        if any(address % (vector * size) for address, size in zip(addresses, sizes)):
            vector = 1
        variant = variant_of(functor, types.computed.name, out.dtype.name, vector, names, True)
        grid = launch.grid_of(launcher, axes.size, 256 * vector)
        launcher.launch(variant, grid, _DENSE.pack(*pointers, to, axes.size) + constants)
        return True
    vector = _vector(axes, sizes, addresses)
    variant = variant_of(functor, types.computed.name, out.dtype.name, vector, names, False)
    strides = iter(axes.strides[1:])
    none = (0,) * len(axes.shape)
    ordered = [none if a is None else next(strides) for a in arrays] + [none] * unused
    count = axes.size // vector
    packed = axes._replace(strides=(*ordered, axes.strides[0])).pack_strides()
    args = _POINTERS.pack(*pointers, to) + axes.pack() + packed + _COUNT.pack(count) + constants
    launcher.launch(variant, launch.grid_of(launcher, count, 256), args)
    return True


_LARGE = 1 << 14  # elements
_REALS, _INTEGERS = Struct(f"{MOST_INPUTS}d"), Struct(f"{MOST_INPUTS}q")
_DENSE = Struct(f"{MOST_INPUTS + 1}Pq")
_POINTERS, _COUNT = Struct(f"{MOST_INPUTS + 1}P"), Struct("q")


def _vector(axes: launch.Axes, sizes: Sequence[int], addresses: Sequence[int]) -> int:
    """How many adjacent elements are taken at once: `launch.vector_of`, where an input may be broadcast along them."""
    kept = [i for i, strides in enumerate(axes.strides) if strides[-1] or not i]
    some = axes._replace(strides=tuple(axes.strides[i] for i in kept))
    return min(launch.vector_of(some, [sizes[i] for i in kept], [addresses[i] for i in kept]), 16 // max(sizes))


def _turned_as(launcher: Launcher, out: Any, a: Any) -> Any:
    """`a`, or a copy that lies as `out` where the elements of one are far from each other in the order of the other:
    a copy by squares reads and writes whole lines of memory."""
    if a.shape != out.shape or a.strides == out.strides:
        return a
    axes = launch.axes_of(out.shape, out, a)
    if axes is None or axes.strides[1][-1] <= 1 or 1 not in axes.strides[1] or axes.strides[0][-1] != 1:
        return a
    copy = launch.empty_like(launcher, out, a.dtype)
    return copy if launch.copy_into(launcher, copy, a) else a


@cache
def variant_of(
    functor: str, computed: str, result: str, vector: int, inputs: tuple[str | None, ...], dense: bool
) -> Variant:
    """The kernel that applies a functor.

    Args:
        functor: its name in kernels/elementwise.cuh, or several as gpunet/ops/chain.py writes them.
        computed, result: names of the dtypes that it is computed in, and that the result has.
        vector: how many elements a thread takes at a time.
        inputs: names of the inputs' dtypes; None for a number.
        dense: whether all arrays lie alike.
    """
    kernel = "elementwise_dense" if dense else "elementwise_strided"
    types = [launch.NUMBERS[computed], launch.NUMBERS[result], str(vector)]
    types += ["Constant" if name is None else launch.NUMBERS[name] for name in inputs]
    widest = max(2 if name == "bfloat16" else np.dtype(name).itemsize for name in (result, *filter(None, inputs)))
    wide = (r"LDG\S*128",) if vector * widest == 16 else ()
    functor = functor if functor.startswith("Apply<") else f"op::{functor}"
    return Variant("elementwise", f"{kernel}<{functor}, {', '.join(types)}>", 256, instructions=wide)


@register_variants
def _variants() -> Iterable[Variant]:
    """Of each kind of kernel and type one, and all the functors in float32."""
    for name, size in (("float32", 4), ("float16", 2), ("bfloat16", 2), ("float64", 8)):
        yield variant_of("add", name, name, 16 // size, (name, name), True)
        yield variant_of("add", name, name, 16 // size, (name, name), False)
        yield variant_of("add", name, name, 1, (name, name), False)
        yield variant_of("where", name, name, 16 // size, ("bool", name, None), True)
    yield variant_of("multiply", "float32", "float32", 4, ("float32", "float16"), True)
    yield variant_of("greater", "float32", "bool", 4, ("float32", None), True)
    for functor in ("relu", "exp", "tanh", "sigmoid", "gelu", "gelu_tanh", "sin", "pow"):
        yield variant_of(
            functor, "float32", "float32", 4, ("float32", None) if functor == "pow" else ("float32",), True
        )
    for functor in ("relu_grad", "tanh_grad", "silu_grad", "gelu_grad", "gelu_tanh_grad", "floor_divide", "remainder"):
        yield variant_of(functor, "float32", "float32", 4, ("float32", "float32"), True)
