"""`vmap`: a function of one sample made into one of many, with an axis of samples that the function does not see.

A `Batched` tensor has that axis first in its `inner`. An op that is given one runs once, on all samples: it is told of
one axis more, in the way that its family needs (`RULES`). An op that has no rule runs once for each sample; that is
as right, and slower.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from math import prod
from typing import Any

import numpy as np

from gpunet import random
from gpunet.creation import arange, asarray, zeros
from gpunet.errors import DTypeError, GradientError, ShapeError
from gpunet.ops import matmul as products
from gpunet.ops import shape as sh
from gpunet.ops.elementwise import relu
from gpunet.ops.op import Op, describe
from gpunet.ops.reduce import sum
from gpunet.tensor import Tensor
from gpunet.transforms import trees
from gpunet.transforms.tracing import Tracer, interception, level_of, next_level


class Batched(Tracer):
    """What a function under `vmap` sees of a Tensor of many samples: one."""

    __slots__ = ()

    what = "vmap"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape[1:]

    def remade(self, inner: Any) -> Batched:
        return batched(inner, self.level)

    def interpret(self, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        level, n = self.level, self.inner.shape[0]
        mapped = [isinstance(a, Batched) and a.level == level for a in args]
        values = [a.inner if many else a for a, many in zip(args, mapped)]
        call = Call(op, values, mapped, {**op.defaults, **params}, n)
        try:
            found = call.run()
        except (ShapeError, DTypeError, IndexError) as error:
            if "inside vmap" in str(error):
                raise
            what = f"{error} (inside vmap over {n} samples, each of which was given {describe(args)})"
            raise type(error)(what) from error
        if isinstance(found, tuple):
            outs = tuple(batched(y, level) for y in found)
        else:
            outs = (batched(found, level),)
        if op.view:
            for out in outs:
                out._is_view_of(args[0])
        return outs if isinstance(found, tuple) else outs[0]


def batched(inner: Any, level: int) -> Batched:
    """The Tensor `inner`, whose first axis is that of the samples, as the function under that vmap sees it."""
    x = object.__new__(Batched)
    x._memory = None
    x.inner = inner
    x.level = level
    return x


class Call:
    """An op called with arguments some of which have an axis of samples.

    Attributes:
        op, params: what is called; `params` has all of them.
        values: the arguments; where `mapped` says so, with the axis of samples first.
        n: how many samples there are.
    """

    def __init__(self, op: Op, values: list[Any], mapped: list[bool], params: dict[str, Any], n: int) -> None:
        self.op, self.values, self.mapped, self.params, self.n = op, values, mapped, params, n

    def run(self) -> Any:
        """The result for all samples, or a tuple of results."""
        rule = RULES.get(self.op.name) or _RULES_OF_MODULES.get(self.op.__module__)
        found = NotImplemented if rule is None else rule(self)
        return self.one_by_one() if found is NotImplemented else found

    def __call__(self, *values: Any, **params: Any) -> Any:
        """The op of other values and with some other parameters."""
        return self.op(*(values or self.values), **{**self.params, **params})

    def ndim(self, i: int = 0) -> int:
        """The number of axes of an argument as the function sees it."""
        return self.values[i].ndim - self.mapped[i]

    def shape(self, i: int = 0) -> tuple[int, ...]:
        """The shape of an argument as the function sees it."""
        return tuple(self.values[i].shape[self.mapped[i] :])

    def only_first(self) -> bool:
        """Whether it is the first argument alone that differs by sample."""
        return self.mapped[0] and not any(self.mapped[1:])

    def axis(self, axis: int, ndim: int | None = None) -> int:
        """An axis that the function named, counted with that of the samples."""
        return sh.axis_of(self.op.name, axis, self.ndim() if ndim is None else ndim) + 1

    def axes(self, axis: Any, ndim: int | None = None) -> Any:
        """Likewise of an axis or several."""
        if hasattr(axis, "__index__"):
            return self.axis(axis, ndim)
        return tuple(self.axis(a, ndim) for a in axis)

    def aligned(self, places: Sequence[int] | None = None) -> list[Any]:
        """The values, of which those at `places` (all, if None) will broadcast as the function expects."""
        chosen = [i for i in (range(len(self.values)) if places is None else places) if hasattr(self.values[i], "ndim")]
        ndim = max(self.ndim(i) for i in chosen)
        values = list(self.values)
        for i in chosen:
            if self.mapped[i]:
                values[i] = _with_axes(values[i], ndim)
        return values

    def everywhere(self, i: int) -> Any:
        """An argument with the axis of samples: a value that is the same for all is repeated, without a copy."""
        x = self.values[i]
        return x if self.mapped[i] else repeated(x, self.n)

    def one_by_one(self) -> Any:
        """The op called for each sample."""
        if not self.n:
            raise ShapeError(f"vmap: {self.op.name} runs once for each sample, and there are none")
        columns = [sh._unstack(v, axis=0) if many else (v,) * self.n for v, many in zip(self.values, self.mapped)]
        # A list that a kernel puts something into for the derivative (`kept`) is of one call.
        results = [
            self.op(*row, **{k: [] if isinstance(v, list) and not v else v for k, v in self.params.items()})
            for row in zip(*columns)
        ]
        if isinstance(results[0], tuple):
            return tuple(self._joined(parts) for parts in zip(*results))
        return self._joined(results)

    def _joined(self, results: Sequence[Any]) -> Any:
        shapes = {tuple(y.shape) for y in results}
        if len(shapes) > 1:
            raise ShapeError(
                f"vmap: {self.op.name} gives different shapes for different samples ({_some(shapes)}), which do not "
                "make one array"
            )
        return sh.stack(results, axis=0)


def _some(shapes: set[tuple[int, ...]]) -> str:
    return ", ".join(map(str, sorted(shapes)[:3]))


def _with_axes(x: Any, ndim: int) -> Any:
    """x (N, *shape) with axes of length one behind the first, so that there are `ndim` behind it."""
    missing = ndim - (x.ndim - 1)
    return x if missing <= 0 else sh.reshape(x, shape=(x.shape[0],) + (1,) * missing + tuple(x.shape[1:]))


def repeated(x: Any, n: int) -> Any:
    """x with an axis of n samples before the others, without a copy."""
    return sh.broadcast_to(asarray(x), shape=(n, *x.shape))


# --- rules: functions of a Call, which return the result for all samples, or NotImplemented


def _elementwise(call: Call) -> Any:
    return call(*call.aligned())


def _as_it_is(call: Call) -> Any:
    return call() if call.only_first() else NotImplemented


def _stack_of_matrices(call: Call) -> Any:
    """Of ops that take stacks of matrices, with any axes before the last two."""
    return call() if call.only_first() and call.ndim() >= 2 else NotImplemented


def _stacks_of_matrices(call: Call) -> Any:
    """Of ops that take several such stacks, which broadcast."""
    return call(*call.aligned()) if all(call.ndim(i) >= 2 for i in range(len(call.values))) else NotImplemented


def _embed_diagonal(call: Call) -> Any:
    return call(shape=(call.n, *call.params["shape"]))


def _reduction(call: Call) -> Any:
    if not call.only_first() or "axis" not in call.params:
        return NotImplemented
    x, axis, keepdims = call.values[0], call.params["axis"], call.params.get("keepdims", False)
    if axis is not None:
        return call(axis=call.axes(axis))
    y = call(sh.reshape(x, shape=(call.n, prod(call.shape()))), axis=1, **({"keepdims": False} if keepdims else {}))
    return sh.reshape(y, shape=(call.n,) + (1,) * call.ndim()) if keepdims else y


def _along_axis(call: Call) -> Any:
    """Of ops of arrays that keep their shape, or change one axis; axis=None is for arrays of one axis."""
    axis = call.params["axis"]
    ndim = max(call.ndim(i) for i, v in enumerate(call.values) if hasattr(v, "ndim"))
    if axis is None and ndim != 1:
        return NotImplemented
    axis = call.axis(0 if axis is None else axis, ndim)
    return call(*call.aligned(), axis=axis - ndim - 1)  # counted from the end it is the same for all arrays


def _along_axes(call: Call) -> Any:
    axes = call.params["axes"]
    return NotImplemented if axes is None else call(axes=call.axes(axes))


def _flat_without_axis(call: Call) -> Any:
    """Of ops that without an axis flatten the array first, and keep its shape or not."""
    if not call.only_first():
        return NotImplemented
    if call.params["axis"] is not None:
        return call(axis=call.axes(call.params["axis"]))
    return call(sh.reshape(call.values[0], shape=(call.n, prod(call.shape()))), axis=1)


def _reshape(call: Call) -> Any:
    shape = call.params["shape"]
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if shape.count(-1) == 1:
        known = prod(length for length in shape if length != -1)
        size = prod(call.shape())
        if known and not size % known:
            shape = tuple(size // known if length == -1 else length for length in shape)
    if prod(shape) != prod(call.shape()) or -1 in shape:
        raise ShapeError(f"reshape: an array of shape {call.shape()} cannot be given the shape {call.params['shape']}")
    return call(shape=(call.n, *shape))


def _permute_dims(call: Call) -> Any:
    return call(axes=(0, *(call.axis(a) for a in call.params["axes"])))


def _moveaxis(call: Call) -> Any:
    return call(source=call.axes(call.params["source"]), destination=call.axes(call.params["destination"]))


def _expand_dims(call: Call) -> Any:
    axis = call.params["axis"]
    return call(axis=call.axes(axis, call.ndim() + (1 if hasattr(axis, "__index__") else len(axis))))


def _squeeze(call: Call) -> Any:
    return call(axis=call.axes(call.params["axis"]))


def _broadcast_to(call: Call) -> Any:
    shape = tuple(call.params["shape"])
    return call(_with_axes(call.values[0], len(shape)), shape=(call.n, *shape))


def _concat(call: Call) -> Any:
    arrays = [call.everywhere(i) for i in range(len(call.values))]
    axis = call.params["axis"]
    if axis is not None:
        return call(*arrays, axis=call.axis(axis))
    return call(*(sh.reshape(a, shape=(call.n, prod(a.shape[1:]))) for a in arrays), axis=1)


def _unstack(call: Call) -> Any:
    return call(axis=call.axis(call.params["axis"]))


def _flip(call: Call) -> Any:
    axis = call.params["axis"]
    return call(axis=tuple(range(1, call.ndim() + 1)) if axis is None else call.axes(axis))


def _roll(call: Call) -> Any:
    y = _flat_without_axis(call)
    return sh.reshape(y, shape=(call.n, *call.shape())) if call.params["axis"] is None else y


def _tile(call: Call) -> Any:
    times = tuple(call.params["repetitions"])
    times = (1,) * (call.ndim() - len(times)) + times
    return call(_with_axes(call.values[0], len(times)), repetitions=(1, *times))


def _pad(call: Call) -> Any:
    return call(pad_width=[(0, 0), *sh._pairs(call.params["pad_width"], call.ndim())])


def _matmul(call: Call) -> Any:
    (a, b), (many_a, many_b) = call.values, call.mapped
    rows, columns = call.ndim(0), call.ndim(1)
    if not rows or not columns:
        return NotImplemented  # which says what is wrong
    if not many_b and columns <= 2:
        return call()  # the axis of samples is one more of those that are multiplied one by one
    a = sh.expand_dims(a, axis=-2) if rows == 1 else a
    b = sh.expand_dims(b, axis=-1) if columns == 1 else b
    ndim = max(rows, columns, 2)
    y = call(_with_axes(a, ndim) if many_a else a, _with_axes(b, ndim) if many_b else b)
    if columns == 1:
        y = sh.squeeze(y, axis=-1)
    return sh.squeeze(y, axis=-2 if columns > 1 else -1) if rows == 1 else y


def _linear(call: Call, then: Callable[[Any], Any] = lambda y: y) -> Any:
    if call.only_first():
        return call()
    level = next_level()  # of a vmap of its own, under which the op is put together from others
    x, weight, bias = (
        batched(v, level) if many else v for v, many in zip((*call.values, None)[:3], (*call.mapped, False))
    )
    y = products.matmul(x, sh.matrix_transpose(weight))
    y = then(y if bias is None else y + bias)
    return y.inner


def _einsum(call: Call) -> Any:
    terms, result = call.params["subscripts"].split("->")
    letter = next(c for c in "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in terms + result)
    names = [letter + name if many else name for name, many in zip(terms.split(","), call.mapped)]
    return call(subscripts=f"{','.join(names)}->{letter}{result}")


def _folded(call: Call) -> Any:
    """Of ops for which the first axis of the first argument is one of samples anyway."""
    if not call.only_first():
        return NotImplemented
    return _unfolded(call, call(_fold(call.values[0]), *call.values[1:]), call.shape()[0])


def _fold(x: Any) -> Any:
    return sh.reshape(x, shape=(x.shape[0] * x.shape[1], *x.shape[2:]))


def _unfolded(call: Call, found: Any, length: int) -> Any:
    if isinstance(found, tuple):
        return tuple(_unfolded(call, y, length) for y in found)
    return sh.reshape(found, shape=(call.n, length, *found.shape[1:]))


def _conv(call: Call) -> Any:
    """Where weights differ by sample, samples are groups of channels."""
    if call.only_first():
        return _folded(call)
    x, weight = call.everywhere(0), call.everywhere(1)
    bias = None if len(call.values) < 3 or call.values[2] is None else _fold(call.everywhere(2))
    images, channels = x.shape[1:3]
    x = sh.reshape(sh.moveaxis(x, source=0, destination=1), shape=(images, call.n * channels, *x.shape[3:]))
    y = call(x, _fold(weight), bias, groups=call.n * call.params["groups"])
    y = sh.reshape(y, shape=(images, call.n, weight.shape[1], *y.shape[2:]))
    return sh.moveaxis(y, source=1, destination=0)


def _normalize(call: Call) -> Any:
    """All groups of elements lie within a sample."""
    if call.params.get("statistics") is not None:
        return NotImplemented
    values = call.aligned()
    if not call.mapped[0]:
        values[0] = call.everywhere(0)
    return call(*values, axes=call.axes(call.params["axes"]))


def _attention(call: Call) -> Any:
    places = [i for i in range(len(call.values)) if call.values[i] is not None]
    if call.params.get("dropout"):
        return NotImplemented
    values = call.aligned(places)
    if not call.mapped[0]:
        values[0] = _with_axes(call.everywhere(0), max(call.ndim(i) for i in places))
    return call(*values)


def _dropout(call: Call) -> Any:
    """A mask for each sample, of a draw of its own: the one that the function made was for a single sample."""
    shape = call.values[0].shape
    return call(key=random.generator().key(shape, "float32"), kept=None)


def _cross_entropy(call: Call) -> Any:
    x, target, weight = (*call.values, None)[:3]
    if weight is not None or len(call.shape(0)) != 2 or len(call.shape(1)) != 1:
        return NotImplemented
    rows = call.shape(0)[0]
    x, target = (_fold(call.everywhere(i)) for i in range(2))
    losses = call(x, target, None, reduction="none", kept=None)
    losses, target = (sh.reshape(a, shape=(call.n, rows)) for a in (losses, target))
    reduction = call.params["reduction"]
    if reduction == "none":
        return losses
    total = sum(losses, axis=1)
    return total if reduction == "sum" else total / sum(target != call.params["ignore_index"], axis=1, dtype=x.dtype)


def _take(call: Call) -> Any:
    (x, indices), (many_x, many_indices), axis = call.values, call.mapped, call.params["axis"]
    ndim = call.ndim(0)
    if axis is None and ndim != 1:
        return NotImplemented  # which says what is wrong
    axis = sh.axis_of("take", axis or 0, ndim)
    if not many_indices:
        return call(axis=axis + 1)
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"take: indices must be an array of integers, got {indices.dtype}")
    if not many_x:
        return sh.moveaxis(call(axis=axis), source=axis, destination=0)
    level = next_level()
    return getitem_by(batched(x, level), (slice(None),) * axis + (batched(indices, level),)).inner  # type: ignore[attr-defined]


def _take_along_axis(call: Call) -> Any:
    axis = call.axis(call.params["axis"])
    return call(call.everywhere(0), call.everywhere(1), axis=axis)


def _searchsorted(call: Call) -> Any:
    return NotImplemented if call.mapped[0] else call()


def _getitem(call: Call) -> Any:
    key = call.params["key"]
    key = key if isinstance(key, tuple) else (key,)
    if any(isinstance(k, (bool, np.bool)) for k in key):
        return NotImplemented
    y = call(key=(slice(None), *key))
    arrays, apart = _arrays_of(key)
    return sh.moveaxis(y, source=arrays, destination=0) if apart else y


def _arrays_of(key: tuple[Any, ...]) -> tuple[int, bool]:
    """How many axes the arrays in an index expression give the result, and whether other things stand between them, so
    that these axes are the result's first."""
    ndims = [1 if k.dtype.kind == "b" else k.ndim for k in key if getattr(k, "ndim", 0)]
    if not ndims:
        return 0, False
    at = [i for i, k in enumerate(key) if hasattr(k, "ndim") or hasattr(k, "__index__")]
    return max(ndims), at[-1] - at[0] >= len(at)


def _setitem(call: Call) -> Any:
    key, value = call.params["key"], call.values[1]
    key = key if isinstance(key, tuple) else (key,)
    if any(isinstance(k, (bool, np.bool)) for k in key) or _arrays_of(key)[1]:
        return NotImplemented
    if call.mapped[1]:
        selected = call.values[0][0] if call.mapped[0] else call.values[0]
        value = _with_axes(value, selected[key].ndim)
    return call(call.everywhere(0), value, key=(slice(None), *key))


def _refused(call: Call) -> Any:
    raise ShapeError(
        f"vmap: the shape of the result of {call.op.name} depends on values, so it can differ by sample; use "
        "gpunet.where, or call it outside"
    )


def getitem_by(x: Tensor, key: tuple[Any, ...]) -> Tensor:
    """x[key] where an integer array in `key` differs by sample."""
    level = max(level_of(k) for k in (x, *key))
    n = next(k.inner.shape[0] for k in (x, *key) if isinstance(k, Batched) and k.level == level)
    inner: list[Any] = []
    for k in key:
        if isinstance(k, (list, range)):
            k = asarray(list(k))
        if getattr(k, "dtype", np.dtype(int)).kind not in "iu":
            raise DTypeError(
                f"x[i] inside vmap: where some index differs by sample, all must be integers or slices, got {k.dtype}; "
                "for a mask use gpunet.where"
            )
        inner.append(k)
    apart = _arrays_of(key)[1]
    at = next(i for i, k in enumerate(key) if hasattr(k, "ndim") or hasattr(k, "__index__"))
    position = 0 if apart else _axes_before(x.ndim, key, at)
    several = max((k.ndim for k in inner if hasattr(k, "ndim")), default=0)
    for i, k in enumerate(inner):
        if isinstance(k, Batched) and k.level == level:
            inner[i] = _with_axes(k.inner, several)
    if level_of(x) != level:
        return batched(sh.moveaxis(x[tuple(inner)], source=position, destination=0), level)
    samples = sh.reshape(arange(n, device=x.device), shape=(n,) + (1,) * several)
    y = x.inner[(samples, *inner)]  # type: ignore[attr-defined]
    if position:  # NumPy has put the axes of the indices first
        places = range(several)
        y = sh.moveaxis(y, source=tuple(1 + i for i in places), destination=tuple(1 + position + i for i in places))
    return batched(y, level)


def _axes_before(ndim: int, key: tuple[Any, ...], at: int) -> int:
    """How many axes of x[key], for x of `ndim` axes, come before those of the arrays, the first of which is key[at]."""
    taken = len([k for k in key if k is not None and k is not Ellipsis])
    return builtins.sum(ndim - taken if k is Ellipsis else 1 for k in key[:at])


Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {
    "argmax": _reduction, "argmin": _reduction, "vector_norm": _reduction, "logsumexp": _reduction,
    "cumulative_sum": _along_axis, "cumulative_prod": _along_axis, "argsort": _along_axis, "sort": _along_axis,
    "softmax": _along_axis, "log_softmax": _along_axis, "softmax_grad": _along_axis, "log_softmax_grad": _along_axis,
    "reshape": _reshape, "permute_dims": _permute_dims, "moveaxis": _moveaxis, "expand_dims": _expand_dims,
    "squeeze": _squeeze, "broadcast_to": _broadcast_to, "concat": _concat, "unstack": _unstack, "flip": _flip,
    "roll": _roll, "repeat": _flat_without_axis, "tile": _tile, "pad": _pad, "astype": _as_it_is, "copy": _as_it_is,
    "to_device": _as_it_is, "identity": _as_it_is, "one_hot": _as_it_is, "binary_cross_entropy": _elementwise,
    **dict.fromkeys((
        "matrix_transpose", "tril", "triu", "diagonal", "inv", "det", "slogdet", "pinv", "triangle", "cholesky", "qr",
        "svd", "svdvals", "eigh", "eigvalsh", "eig", "eigvals", "matrix_rank", "unit_matrices", "expm",
    ), _stack_of_matrices),
    "solve": _stacks_of_matrices, "cross": _along_axis, "embed_diagonal": _embed_diagonal,
    "transform": _along_axes, "half_spectrum": _along_axis, "from_half_spectrum": _along_axis,
    "matmul": _matmul, "linear": _linear, "linear_relu": partial(_linear, then=relu), "einsum": _einsum,
    "getitem": _getitem, "setitem": _setitem, "take": _take, "take_along_axis": _take_along_axis,
    "searchsorted": _searchsorted,
    "nonzero": _refused, "unique": _refused,
    "conv": _conv, "conv_relu": _conv, "conv_relu_pool": _folded,
    "max_values": _folded, "max_with_offsets": _folded, "window_sum": _folded, "window_norm": _folded,
    "adaptive_mean": _folded,
    "normalize": _normalize, "normalize_relu": _normalize, "rms_normalize": _normalize, "attention": _attention,
    "dropout": _dropout, "cross_entropy": _cross_entropy,
}  # fmt: skip

_RULES_OF_MODULES: dict[str, Rule] = {
    "gpunet.ops.elementwise": _elementwise,
    "gpunet.ops.special": _elementwise,
    "gpunet.ops.reduce": _reduction,
}


# --- vmap


class _Active(threading.local):
    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []  # (level, number of samples), the innermost last


_active = _Active()


@contextmanager
def _block(level: int, n: int) -> Iterator[None]:
    _active.blocks.append((level, n))
    try:
        with interception():
            yield
    finally:
        _active.blocks.pop()


def lifted_zero(x: Tensor) -> Tensor | None:
    """Zero of the dtype of x that every vmap now running sees as differing by sample; None if there is none.

    A Tensor minus this one is one of each sample's own, with respect to which each can be differentiated.
    """
    if not _active.blocks:
        return None
    zero = zeros(tuple(n for _level, n in _active.blocks), dtype=x.dtype, device=x.device)
    for level, _n in _active.blocks:
        zero = batched(zero, level)
    return zero


def vmap(f: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """`f`, a function of one sample, as a function of many at once: a loop over samples without the loop.

        per_sample = gn.vmap(gn.grad(loss), in_axes=(None, 0, 0))      # of loss(weight, x, y), for each x and y
        distances = gn.vmap(gn.vmap(distance, (None, 0)), (0, None))   # of each pair

    Args:
        f: takes and returns Tensors, or tuples, lists and dicts of them. Inside it a tensor has one axis less, and no
            values that could be looked at. What it uses from outside is the same for all samples.
        in_axes: for each argument, which axis the samples lie along; None: it is the same for all. One int stands for
            all arguments; inside an argument's container, they may be nested likewise. Keyword arguments have their
            samples along axis 0.
        out_axes: where that axis is in each result, likewise nested.

    Returns:
        A function of the same arguments. Its gradients are those of the loop.

    Arithmetic, reductions, products, convolutions, and the functions that arrange, index and sort run once on all
    samples; other ops (recurrent layers, decompositions, layers with statistics) once for each sample, as a loop would.
    Random numbers: dropout draws a mask for each sample; what `f` draws by a shape (gpunet.random.normal) is the same
    for all samples. In-place writes to arguments, and to tensors from outside, are refused.

    Raises:
        ValueError: `in_axes` does not fit the arguments, or `out_axes` the results.
        ShapeError: there is no such axis, the numbers of samples differ, or no argument has any.
        DTypeError: an argument that should have samples is no array, or `f` returns something else.
        GradientError: `f` looks at values, or calls backward().
    """
    if not callable(f):
        raise TypeError(f"vmap: expected a function, got {f!r}")

    @wraps(f)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if isinstance(in_axes, (tuple, list)) and len(in_axes) != len(args):
            raise ValueError(f"vmap: in_axes {in_axes!r} is for {len(in_axes)} arguments, and there are {len(args)}")
        leaves, structure = trees.flatten(args)
        axes = trees.spread(tuple(in_axes) if isinstance(in_axes, list) else in_axes, structure, "vmap: in_axes")
        named, names = trees.flatten(kwargs)
        leaves, axes = leaves + named, axes + [0 if hasattr(v, "shape") else None for v in named]
        level, n = next_level(), -1
        inputs = []
        for i, (leaf, axis) in enumerate(zip(leaves, axes)):
            if axis is None:
                inputs.append(leaf)
                continue
            x = _sample_array(leaf, axis, i)
            if n not in (-1, x.shape[axis]):
                raise ShapeError(
                    f"vmap: the arguments have different numbers of samples: {n}, and {x.shape[axis]} along axis "
                    f"{axis} of shape {x.shape}"
                )
            n = x.shape[axis]
            sample = batched(sh.moveaxis(x, source=axis, destination=0) if axis else x, level)
            sample._is_view_of(sample)  # so that it is not written to
            inputs.append(sample)
        if n < 0:
            raise ShapeError("vmap: no argument has samples; in_axes must name an axis of at least one")
        with _block(level, n):
            count = len(leaves) - len(named)
            result = f(*trees.unflatten(structure, inputs[:count]), **trees.unflatten(names, inputs[count:]))
            found, shape = trees.flatten(result)
            places = trees.spread(out_axes, shape, "vmap: out_axes")
            outs = [_result(y, level, n, place) for y, place in zip(found, places)]
        return trees.unflatten(shape, outs)

    return mapped


def _sample_array(leaf: Any, axis: Any, i: int) -> Tensor:
    if not hasattr(axis, "__index__"):
        raise ValueError(f"vmap: in_axes must be ints or None, got {axis!r}")
    if not hasattr(leaf, "shape"):
        raise DTypeError(
            f"vmap: value {i} of the arguments is a {type(leaf).__name__}, which has no axis {axis}; None in in_axes "
            "says that it is the same for all samples"
        )
    x = leaf if isinstance(leaf, Tensor) else asarray(leaf)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"vmap: in_axes says axis {axis}, and value {i} of the arguments has shape {x.shape}")
    return x


def _result(y: Any, level: int, n: int, place: Any) -> Any:
    if not hasattr(place, "__index__"):
        raise ValueError(f"vmap: out_axes must be ints, got {place!r}")
    if not isinstance(y, Tensor):
        if not isinstance(y, (bool, int, float, complex, np.ndarray, np.generic)):
            raise DTypeError(f"vmap: the function must return Tensors, got a {type(y).__name__}")
        y = asarray(y)
    if level_of(y) > level:
        raise GradientError("vmap: the function returned a tensor from inside a transformation that had ended")
    y = y.inner if isinstance(y, Batched) and y.level == level else sh.copy(repeated(y, n))
    if not -y.ndim <= place < y.ndim:
        raise ShapeError(f"vmap: out_axes says axis {place}, and the result has shape {y.shape} with that of samples")
    return sh.moveaxis(y, source=0, destination=place) if place else y
