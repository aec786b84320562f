"""The tape: how ops on Tensors are recorded, and how gradients flow back.

Every recorded op makes one `Node`, which knows the op, what its derivative needs, and the nodes that its inputs came
from. `backward` walks the nodes in the reverse of the order in which they were made. One clock numbers the nodes and
the in-place writes, so a value written to after it was recorded is noticed: its write is later than its node.

The gradient g of a complex array z is, on the tape, the one with dL = Re(sum(g * dz)): that of a holomorphic f is
g * f'(z), as for real numbers. Users see its conjugate, dL/dRe(z) + i dL/dIm(z), as PyTorch has it, so that
z - rate * z.grad goes downhill: gradients are conjugated where they enter and leave the tape. A real input of an op
whose result is complex gets the real part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from functools import partial
from itertools import count
from operator import add as plus
from operator import attrgetter
from sys import getrefcount
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import backend_of_type
from gpunet.dtypes import SMOOTH, default_dtype
from gpunet.errors import DeviceError, DTypeError, GradientError, ShapeError
from gpunet.ops import elementwise as ew
from gpunet.ops.chain import differentiate
from gpunet.ops.launch import full
from gpunet.ops.op import Op, describe, kernel_launcher
from gpunet.ops.reduce import sum
from gpunet.ops.shape import astype, copy, reshape
from gpunet.tensor import Memory, Tensor

_clock = count(1).__next__  # next() on it is atomic under the GIL, so threads may record at the same time


_new = object.__new__
_NONE: dict[str, Any] = {}


class _Mode(threading.local):
    def __init__(self) -> None:
        self.enabled = [True]  # whether to record: at first, and in each of the blocks that this thread is in
        self.watch: Callable[..., None] | None = None  # looks on at each step of `backward`; see `_flow_observed`


_mode = _Mode()
_blocks: list[None] = []  # an entry for each block, of any thread, in which recording may be off: `_mode` takes time


class set_grad_enabled(ContextDecorator):
    """Turn recording on or off within a `with` block or a decorated function, in this thread."""

    _enabled: bool

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def __enter__(self) -> None:
        _blocks.append(None)
        _mode.enabled.append(self._enabled)

    def __exit__(self, *exc: object) -> None:
        _mode.enabled.pop()
        _blocks.pop()


class no_grad(set_grad_enabled):
    """Do not record: `with gn.no_grad():` or `@gn.no_grad()`. Saves time and memory where no gradient is wanted."""

    _enabled = False

    def __init__(self) -> None:
        pass


class enable_grad(set_grad_enabled):
    """Record again, inside `no_grad`."""

    _enabled = True

    def __init__(self) -> None:
        pass


def is_grad_enabled() -> bool:
    """Whether ops on Tensors that require gradients are recorded, in this thread."""
    return not _blocks or _mode.enabled[-1]


# --- nodes ------------------------------------------------------------------------------------------------------------


class Spec(NamedTuple):
    """What a derivative is told of an input whose value it does not need."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Node:
    """A recorded op.

    Attributes:
        op, params: what was computed; for a leaf (a Tensor on which `requires_grad` was set), op is None.
        inputs: for each array the op was given, the node it came from, or None. None altogether once released.
        saved: the op's arguments as its derivative wants them: Tensors where it needs values, else things with a shape.
        output: the op's raw result, if the derivative needs it.
        made: when, on the clock.
        memory: knows when the output was written to in place, once anything could have been.
        grad: of a leaf or a retained node, what `Tensor.grad` shows.
        hooks: only where there are any: what `Tensor.register_hook` was given, in tuples.
        line: only where anomalies are looked for: the user's line that called the op.
    """

    __slots__ = (
        "dtype", "grad", "hooks", "inputs", "line", "made", "memory", "op", "output", "params", "retains_grad", "saved",
        "shape",
    )  # fmt: skip

    inputs: Sequence[Node | None] | None
    saved: Sequence[Any] | None
    params: dict[str, Any]
    output: Any
    memory: Memory | None
    retains_grad: bool
    grad: Tensor | None
    hooks: list[Any]
    line: str

    def __init__(self, op: Any, shape: tuple[int, ...], dtype: np.dtype, inputs: Sequence[Node | None]) -> None:
        self.op = op
        self.shape = shape
        self.dtype = dtype
        self.inputs = inputs
        self.saved = ()
        self.params = _NONE
        self.output = self.memory = self.grad = None
        self.retains_grad = False
        self.made = _clock()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_leaf(self) -> bool:
        return self.op is None

    def __repr__(self) -> str:
        return f"<{'leaf' if self.op is None else self.op.name} {self.shape} {self.dtype}>"


class Pair(Node):
    """A recorded op on two Tensors whose derivative needs the values of both, as an operator makes it."""

    __slots__ = ()


def leaf(tensor: Tensor) -> Node:
    """A node for a Tensor that starts to require gradients.

    Raises:
        DTypeError: it is not floating-point.
    """
    dtype = tensor.data.dtype
    if dtype.kind not in SMOOTH:
        raise DTypeError(
            f"only floating-point tensors can require gradients, and this one is {dtype}; "
            "convert it first: x.astype(gpunet.float32)"
        )
    node = Node(None, tensor.data.shape, dtype, ())
    node.retains_grad = True
    return node


# --- recording --------------------------------------------------------------------------------------------------------


def record(op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """Run `op` on arguments among which are Tensors, and record it where gradients are wanted."""
    kind = None
    tracked = weak = False
    raw: list[Any] = []
    nodes: list[Node | None] = []
    for a in args:
        if isinstance(a, Tensor):
            node = a._node
            nodes.append(node)
            if node is not None:
                tracked = True
            a = a.data
            if type(a) is not kind:
                if kind is not None:
                    raise _mixed(op, args)
                kind = type(a)
        else:
            nodes.append(None)
            if type(a) is float:
                weak = True
        raw.append(a)
    if weak and op.promotes:
        raw = [
            a.astype(default_dtype()) if getattr(getattr(a, "dtype", None), "kind", "f") in "iub" else a for a in raw
        ]
    run = op.implementations.get(kind) or op.implementation(kind)  # type: ignore[arg-type]
    try:
        y = run(*raw, **params) if params else run(*raw)
    except _TOLD:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise _explain(op, args, params, error) from error
    except AttributeError as error:
        if all(hasattr(a, "dtype") for a in args):
            raise
        given = ", ".join("an array" if hasattr(a, "dtype") else type(a).__name__ for a in args)
        raise DTypeError(f"{op.name}: expected Tensors or arrays, got {given}") from error
    if type(y) is not kind:
        if type(y) is tuple:
            return _wrap_several(op, args, params, y, nodes)
        y = backend_of_type(type(y)).array_from(y)
    out = _new(Tensor)
    out.data = y
    out._memory = None
    if tracked and op.derivative is not None and (not _blocks or _mode.enabled[-1]) and y.dtype.kind in SMOOTH:
        out._node = node = _new(Node)
        node.op = op
        node.shape = y.shape
        node.dtype = y.dtype
        node.inputs = nodes
        node.saved = args if op.keeps_all and None not in nodes else _saved(op, args, nodes)
        node.params = params
        node.output = y if op.keeps_output else None
        node.memory = node.grad = None
        node.retains_grad = False
        node.made = _clock()
    else:
        out._node = None
    if op.view and (y.base is not None or y is raw[0]):  # else it is a copy, as of x[[0, 1]]
        out._is_view_of(args[0])
    return out


def record_one(op: Op, x: Tensor) -> Any:
    """`record` of an op of one array without parameters, unrolled."""
    data = x.data
    kind = type(data)
    if op.view:
        return record(op, (x,), {})
    try:
        y = op.implementations[kind](data)
    except Exception:
        return record(op, (x,), {})  # which prepares what was not there yet, or fails again and explains why
    if type(y) is not kind:
        if type(y) is tuple:
            return _wrap_several(op, (x,), {}, y, [x._node])
        y = backend_of_type(type(y)).array_from(y)
    out = _new(Tensor)
    out.data = y
    out._memory = None
    before = x._node
    if before is None or op.derivative is None or (_blocks and not _mode.enabled[-1]) or y.dtype.kind not in SMOOTH:
        out._node = None
        return out
    out._node = node = _new(Node)
    node.inputs = inputs = (before,)
    node.saved = (x,) if op.keeps_all else inputs
    node.op = op
    node.shape = y.shape
    node.dtype = y.dtype
    node.params = _NONE
    node.output = y if op.keeps_output else None
    node.memory = node.grad = None
    node.retains_grad = False
    node.made = _clock()
    return out


def _operator(op: Op) -> Callable[[Tensor, Any], Any]:
    """`record` of an op on two arrays as an operator of Tensor: unrolled for two Tensors, being the hottest path."""
    implementations, keeps_all, keeps_none, keeps_output = (
        op.implementations, op.keeps_all, op.keeps_none, op.keeps_output
    )  # fmt: skip

    def operator(a: Tensor, b: Any) -> Any:
        if not isinstance(b, Tensor):
            return record(op, (a, b), _NONE)
        x, z = a.data, b.data
        kind = type(x)
        try:
            if type(z) is not kind:
                raise _mixed(op, (a, b))
            y = implementations[kind](x, z)
        except Exception:
            return record(op, (a, b), _NONE)  # which prepares what was not there yet, or fails again and explains why
        if type(y) is not kind:
            y = backend_of_type(type(y)).array_from(y)
        out = _new(Tensor)
        out.data = y
        out._memory = None
        first, second = a._node, b._node
        if (first is None and second is None) or (_blocks and not _mode.enabled[-1]) or y.dtype.kind not in SMOOTH:
            out._node = None
            return out
        inputs = (first, second)
        if keeps_all and first is not None and second is not None:
            node: Node = _new(Pair)
            node.saved = (a, b)
        else:
            node = _new(Node)
            node.saved = inputs if keeps_none and None not in inputs else _saved(op, (a, b), inputs)
        out._node = node
        node.inputs = inputs
        node.op = op
        node.shape = y.shape
        node.dtype = y.dtype
        node.params = _NONE
        node.output = y if keeps_output else None
        node.memory = node.grad = None
        node.retains_grad = False
        node.made = _clock()
        return out

    return operator


def _reflected(op: Op) -> Callable[[Tensor, Any], Any]:
    """The operator where it is the second array that is a Tensor."""
    return lambda b, a: record(op, (a, b), _NONE)


for _name, _op in {"add": ew.add, "sub": ew.subtract, "mul": ew.multiply, "truediv": ew.divide}.items():
    setattr(Tensor, f"__{_name}__", _operator(_op))
    setattr(Tensor, f"__r{_name}__", _reflected(_op))


def _saved(op: Op, args: tuple[Any, ...], nodes: Sequence[Any]) -> Sequence[Any]:
    """What to keep of the arguments: those whose values the derivative needs; of the others, what has their shape."""
    if op.keeps_none and None not in nodes:
        return nodes
    if op.keeps_all and not op.needs:
        return args
    saved = list(args)
    drops: Iterable[int] = op.drops
    if op.variadic:
        drops = [i for i in range(len(args)) if not op.keeps[min(i, op.arity - 1)]]
    elif op.needs and None in nodes:  # such as x * 2.0, whose derivative does not need x
        needed = {i for node, needs in zip(nodes, op.needs) if node is not None for i in needs}
        drops = [i for i in range(len(args)) if i not in needed]
    for i in drops:
        node = nodes[i]
        if node is not None:
            saved[i] = node
        elif hasattr(args[i], "shape"):
            saved[i] = Spec(tuple(args[i].shape), args[i].dtype)
    return saved


class _Part:
    """The op of a node that stands for one of several outputs of another node."""

    name = "output"
    derivative = None

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count


def _part(whole: Node, index: int, ys: tuple[Any, ...]) -> Node:
    return Node(_Part(index, len(ys)), ys[index].shape, ys[index].dtype, (whole,))


def _wrap_several(op: Op, args: Any, params: Any, ys: tuple[Any, ...], nodes: Sequence[Node | None]) -> Any:
    """Tensors for an op of several outputs: a node for the op, and one for each output that hands its gradient on."""
    whole = None
    if op.derivative is not None and _mode.enabled[-1] and any(node is not None for node in nodes):
        whole = Node(op, (), ys[0].dtype, nodes)
        whole.params, whole.saved = params, _saved(op, args, nodes)
        if op.keeps_output:
            whole.output, whole.memory = ys, Memory(())  # one record of writes for all outputs
    outs = []
    for i, y in enumerate(ys):
        out = Tensor._wrap(y)
        if whole is not None and y.dtype.kind in SMOOTH:
            out._node = _part(whole, i, ys)
            if whole.memory is not None:
                out._memory = out._node.memory = whole.memory
        if op.view:
            out._is_view_of(args[0])
        outs.append(out)
    return tuple(outs)


def write(target: Tensor, op: Op, other: Any, params: dict[str, Any]) -> None:
    """`target` becomes op(target, other) in place: the values, and on the tape also how they came about.

    Raises:
        GradientError: the tape could not tell what happened: the target is a leaf that requires gradients, or it
            shares memory with another Tensor.
        ShapeError, DTypeError: the result would not fit into the target.
    """
    tracked = _mode.enabled[-1] and (
        target._node is not None or (isinstance(other, Tensor) and other._node is not None)
    )
    data = target.data
    if not tracked:
        if isinstance(other, Tensor):
            if type(other.data) is not type(data):
                raise _mixed(op, (target, other))
            other = other.data
        try:
            op.write(target._backend().xp, data, other, params)
        except _TOLD:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise _explain(op, (target, other), params, error) from error
        mark_written([target])
        return
    if target._node is not None and target._node.is_leaf:
        raise GradientError(
            f"{op.name} in place on a leaf of shape {target.shape} that requires gradients; "
            "update parameters inside gpunet.no_grad(), or use the out-of-place form"
        )
    if target._memory is not None and target._memory.is_shared(target):
        raise GradientError(
            f"{op.name} in place on a tensor of shape {target.shape} that shares memory with another one (a view "
            "or its base) cannot be differentiated; write to a copy (x.copy()), or use the out-of-place form"
        )
    # Nodes made before now that saved the target will find it written to. The new values are in new memory, so what
    # saved the old elements themselves is not disturbed.
    memory = Memory(target.shape)
    memory.written = _now_written()
    before = Tensor._wrap(data, target._node)
    result = op(before, before if other is target else other, **params)
    if result.shape != target.shape:
        raise ShapeError(f"{op.name}: the result, {describe((result,))}, does not fit into {describe((target,))}")
    if result.dtype != target.dtype:
        if not np.can_cast(result.dtype, target.dtype, "same_kind"):
            raise DTypeError(f"{op.name}: cannot write a result of {result.dtype} to an array of {target.dtype}")
        result = astype(result, dtype=target.dtype)
    target.data, target._node, target._memory = result.data, result._node, memory
    if result._node is not None:
        result._node.memory = memory


def mark_written(tensors: Iterable[Tensor]) -> None:
    """Tell the tape that the elements of these Tensors were just written to in place."""
    now = _now_written()
    for t in tensors:
        memory = t._memory
        if memory is None:
            memory = t._known_memory()
        memory.written = now


def _now_written() -> int:
    """The time of a write."""
    global _last_written
    _last_written = now = _clock()
    return now


_last_written = 0  # the time of the latest write to any Tensor: nodes made after it need not look at what they saved


Op.record = staticmethod(record)
Op.record_one = staticmethod(record_one)


def _mixed(op: Op, args: tuple[Any, ...]) -> Exception:
    devices = [str(a.device) for a in args if isinstance(a, Tensor)]
    return DeviceError(
        f"{op.name}: its arrays are on different devices: {', '.join(devices)}; move them to one with x.to(device)"
    )


_TOLD = (ShapeError, DTypeError, DeviceError, np.linalg.LinAlgError)  # errors that ops raise in the user's words
_OURS: dict[type[Exception], type[Exception]] = {IndexError: IndexError, ValueError: ShapeError, TypeError: DTypeError}


def _explain(op: Op, args: tuple[Any, ...], params: dict[str, Any], error: Exception) -> Exception:
    """The array library's error, told in terms of the op that the user called."""
    given = describe(args)
    options = ", ".join(f"{k}={v!r}" for k, v in params.items() if not hasattr(v, "shape"))
    kind = next(ours for theirs, ours in _OURS.items() if isinstance(error, theirs))
    what = str(error)
    if "broadcast" in what:
        what = "these shapes do not broadcast together"
    elif "'dim'" in what or "'keepdim'" in what:
        what += " (gpunet says axis and keepdims, as NumPy does)"
    return kind(f"{op.name}: {what}; it was given {given}" + (f" with {options}" if options else ""))


# --- backward ---------------------------------------------------------------------------------------------------------


def backward(
    tensors: Sequence[Tensor], gradients: Sequence[Any], *, retain_graph: bool | None = None, create_graph: bool = False
) -> None:
    """Add to `.grad` of every leaf the derivative of `sum(t * g for t, g in zip(tensors, gradients))`.

    Args:
        tensors: what to differentiate.
        gradients: for each, the gradient that reaches it; None for one with a single element means 1.
        retain_graph: keep what another `backward` through the same graph needs; default: `create_graph`.
        create_graph: record the computation of the gradients, so that they can be differentiated in turn.

    Raises:
        GradientError: a tensor does not require gradients, or is no scalar and comes without a gradient; the graph
            was already used up; a value needed was changed in place.
    """
    _run(tensors, gradients, None, retain_graph, create_graph)


Op.backward = staticmethod(backward)


def grad(
    outputs: Any,
    inputs: Any = 0,
    grad_outputs: Any = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    has_aux: bool = False,
    argnums: Any = None,
) -> Any:
    """The gradients of `outputs` with respect to `inputs`; `.grad` of no tensor changes.

        gx, gw = gn.grad(loss, (x, w))          # of Tensors
        gradient = gn.grad(f)(x)                # of a function: gn.grad(f, argnums=0, has_aux=False)

    Args:
        outputs: a Tensor or several; their gradients are added up. Or a function: then what is returned is the function
            that computes its gradient, with respect to the argument number `argnums` (the second argument may say it
            too); see `gpunet.value_and_grad`.
        inputs: a Tensor or several that `outputs` were computed from.
        grad_outputs: for each output, the gradient that reaches it (its shape); may be left out for scalars.
        retain_graph, create_graph: as in `backward`.
        allow_unused: return None, instead of raising, for an input that `outputs` do not depend on.
        has_aux, argnums: of a function only.

    Returns:
        A Tensor of the shape of the input, or a tuple of Tensors where `inputs` is a sequence.
    """
    if callable(outputs):
        from gpunet.transforms import grad_of

        return grad_of(outputs, inputs if argnums is None else argnums, has_aux)
    if isinstance(inputs, int):
        raise DTypeError("grad: expected the Tensors to differentiate with respect to: gpunet.grad(y, x)")
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    gs = [grad_outputs] if isinstance(outputs, Tensor) else list(grad_outputs or [None] * len(outs))
    for what, tensors in (("output", outs), ("input", ins)):
        for i, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise DTypeError(f"grad: expected a Tensor as {what} {i}, got {type(t).__name__}")
    for i, t in enumerate(ins):
        if t._node is None:
            raise GradientError(f"grad: input {i}, of shape {t.shape}, does not require gradients")
    found = _gradients(outs, ins, gs, retain_graph, create_graph)
    for i, (t, g) in enumerate(zip(ins, found)):
        if g is None and not allow_unused:
            raise GradientError(
                f"grad: the outputs do not depend on input {i}, of shape {t.shape}; allow_unused=True gives None for it"
            )
    return found[0] if isinstance(inputs, Tensor) else tuple(found)


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], gradients: Any, retain_graph: bool | None, create_graph: bool
) -> list[Any]:
    """What `grad` finds; gpunet.transforms puts another function here while it is at work."""
    return _run(outputs, gradients, [t._node for t in inputs], retain_graph, create_graph)


def _run(
    roots: Sequence[Tensor],
    gradients: Sequence[Any],
    targets: Sequence[Any] | None,
    retain_graph: bool | None,
    create_graph: bool,
) -> list[Any]:
    if retain_graph is None:
        retain_graph = create_graph
    if not roots:
        return []
    if len(gradients) != len(roots):
        raise GradientError(f"got {len(roots)} tensors but {len(gradients)} gradients")
    pending: dict[Node, Any] = {}
    owned: set[int] = set()  # ids of arrays that are somebody's already
    for t, g in zip(roots, gradients):
        node, seed = t._node, _seed(t, g, create_graph)
        assert node is not None
        if g is not None:
            owned.add(id(seed.data if create_graph else seed))
        pending[node] = pending[node] + seed if node in pending else seed
    used_up: list[Node] | None = None if targets is None else []
    order = _reachable(pending, used_up)
    if used_up and targets:  # what was made before the targets does not come from them
        first = min(node.made for node in targets)
        if any(node.made > first and node not in targets for node in used_up):
            raise _released()
    wanted = None
    results: dict[Node, Any] = {}
    keep: Callable[[Node, Any], None] = lambda node, g: _accumulate(node, g, owned)  # noqa: E731
    if targets is not None:
        wanted = _leading_to(order, targets)
        keep = partial(_collect, targets=targets, results=results, owned=owned)

    data = roots[0].data
    _blocks.append(None)
    _mode.enabled.append(create_graph)
    try:
        with _NOWHERE if type(data) is np.ndarray else _on_device_of(data):
            if _observers and (_mode.watch is not None or _has_hooks(order, pending)):
                _flow_observed(order, pending, wanted, keep, create_graph, retain_graph)
            else:
                _flow(order, pending, wanted, keep, create_graph, retain_graph)
            for leaf, g in pending.items():
                if _observers and hasattr(leaf, "hooks") and (wanted is None or leaf in wanted):
                    g = _after_hooks(leaf, g, create_graph)
                keep(leaf, g)
    finally:
        _mode.enabled.pop()
        _blocks.pop()
    return [] if targets is None else [results.get(n) for n in targets]


_NOWHERE = nullcontext()


def _on_device_of(data: Any) -> AbstractContextManager[Any]:
    backend = backend_of_type(type(data))
    return backend.on(backend.device_of(data))


def _seed(tensor: Tensor, gradient: Any, create_graph: bool) -> Any:
    if tensor._node is None:
        why = "was computed under no_grad, or from tensors none of which requires gradients"
        raise GradientError(
            f"cannot differentiate a tensor of shape {tensor.shape} that does not require gradients: it {why}"
        )
    if gradient is None:
        if tensor.dtype.kind == "c":
            raise GradientError(
                f"only a real scalar can be differentiated without a gradient, and this tensor is {tensor.dtype}; "
                "take abs, real or imag of it first, or pass backward(gradient)"
            )
        if tensor.size != 1:
            raise GradientError(
                f"only a scalar can be differentiated without a gradient, and this tensor has shape {tensor.shape}; "
                "reduce it first (loss.mean()), or pass backward(gradient) of the same shape"
            )
        if type(tensor.data) is np.ndarray:
            seed = np.empty(tensor.data.shape, tensor.data.dtype)
            seed.fill(1)
        else:
            launcher = kernel_launcher(tensor.data)
            ones_like = tensor._backend().xp.ones_like
            seed = ones_like(tensor.data) if launcher is None else full(launcher, tensor.shape, 1, tensor.dtype)
        return Tensor._wrap(seed) if create_graph else seed
    if not isinstance(gradient, Tensor):
        gradient = Tensor._wrap(tensor._backend().xp.asarray(gradient, dtype=tensor.dtype))
    data, seed = tensor.data, gradient.data
    if seed.shape != data.shape:
        raise ShapeError(f"the gradient must have the tensor's shape {tensor.shape}, got {gradient.shape}")
    if type(seed) is not type(data) or not tensor._backend().same_device([seed, data]):
        raise DeviceError(f"the gradient is on {gradient.device}, the tensor on {tensor.device}")
    return across(gradient if create_graph else gradient.data)


def across(g: Any) -> Any:
    """A gradient that enters or leaves the tape."""
    return ew.conj(g) if g.dtype.kind == "c" else g


def _reachable(roots: Iterable[Node], used_up: list[Node] | None) -> list[Node]:
    """The nodes of all ops that `roots` come from, and of `roots` themselves, the last made first.

    Those that were released are put into `used_up` instead; where that is None they are an error.
    """
    seen = set(roots)
    order = [node for node in seen if node.op is not None]
    add, append = seen.add, order.append
    for node in order:  # grows while it is walked
        inputs = node.inputs
        if inputs is None:
            if used_up is None:
                raise _released()
            used_up.append(node)
            continue
        for parent in inputs:
            if parent is not None and parent not in seen:
                add(parent)
                if parent.op is not None:
                    append(parent)
    if used_up:
        order = [node for node in order if node.inputs is not None]
    order.sort(key=_when_made, reverse=True)
    return order


def _released() -> GradientError:
    return GradientError(
        "backward was called a second time through the same graph, whose saved values are gone; "
        "pass retain_graph=True the first time, or compute the loss again"
    )


_when_made = attrgetter("made")


def _leading_to(order: list[Node], targets: Sequence[Node]) -> set[Node]:
    """The nodes among `order` whose gradient is needed to find those of `targets`: these and what comes from them."""
    wanted = set(targets)
    for node in reversed(order):
        if not wanted.isdisjoint(node.inputs or ()):
            wanted.add(node)
    return wanted


def _flow(
    order: list[Node],
    pending: dict[Node, Any],
    wanted: set[Node] | None,
    keep: Callable[[Node, Any], None],
    create_graph: bool,
    retain_graph: bool,
) -> None:
    """Pass gradients on from node to node, until they are at the leaves.

    Args:
        order: the nodes of ops, the last made first.
        pending: for each node, the gradient of its output as far as it is known; at first, those of the roots, in the
            end those of leaves.
        wanted: the nodes that gradients are needed for; None for all.
        keep: told the gradient of each retained node and, with `wanted`, of every node.
        create_graph, retain_graph: as in `backward`.
    """
    kind: Any = None
    launches = False  # whether the device has kernels
    xp: Any = _namespace() if create_graph else None
    known, take = pending.get, pending.pop
    sums = ew.add.implementations
    arguments: tuple[Any, ...]
    summed: set[Node] = set()  # nodes whose pending gradient is a sum made here, so that more can be added in place
    for node in order:
        g = take(node, None)
        if g is None:
            continue
        if node.retains_grad or wanted is not None:
            keep(node, g)
        op, inputs = node.op, node.inputs
        if op.derivative is None:
            _collect_part(node, g, pending)
            continue
        if wanted is not None and wanted.isdisjoint(inputs):  # type: ignore[arg-type]
            continue
        if type(g) is not kind and not create_graph and type(g) is not tuple:  # the first, or from another device
            kind = type(g)
            xp = backend_of_type(kind).xp
            launches = kernel_launcher(g) is not None
        # Whether what is found has the shape and dtype of the node, so that they need not be asked for.
        whole = is_pair = False
        if op.passes_on:
            found: Any = (g, g)
            whole = True
        elif op.raw_derivative is not None and not create_graph:
            wants = inputs if wanted is None else [n if n in wanted else None for n in inputs]  # type: ignore[union-attr]
            y = node if node.output is None else _output(node, False)
            found = op.raw_derivative(xp, g, y, wants, *_values(node, False))
        elif op.derivatives is None or launches:
            found = _differentiate(node, xp, g, create_graph, launches)
            arguments = ()
        else:
            found = op.derivatives
            if type(node) is Pair and node.made > _last_written and not create_graph:
                whole = is_pair = True
                y, (a, b) = node.output, node.saved  # type: ignore[misc]
                a, b = a.data, b.data
            else:
                y = node.output
                if y is None:
                    y = node
                elif create_graph or node.memory is not None:
                    y = _output(node, create_graph)
                values: Any = node.saved if op.keeps_none else _values(node, create_graph)
                arguments = (xp, g, y, *values)
        for parent, gi in zip(inputs, found):  # type: ignore[arg-type]
            if parent is None or gi is None or (wanted is not None and parent not in wanted):
                continue
            if type(gi) is FunctionType:
                gi = gi(xp, g, y, a, b) if is_pair else gi(*arguments)
            if whole:
                if parent.shape != node.shape:
                    gi = _unbroadcast(gi, parent.shape, op)
                if parent.dtype is not node.dtype and parent.dtype != node.dtype:
                    gi = _cast_gradient(xp, gi, parent.dtype)
            else:
                if gi.shape != parent.shape:
                    gi = _unbroadcast(gi, parent.shape, op)
                if gi.dtype is not parent.dtype and gi.dtype != parent.dtype:
                    gi = _cast_gradient(xp, gi, parent.dtype)
            before = known(parent)
            if before is None:
                pending[parent] = gi
            elif parent in summed and not launches:
                before += gi
                pending[parent] = before  # a 0-d sum is a number, which += does not change
            elif parent in summed:
                ew.add.write(xp, before, gi, _NONE)
            else:
                pending[parent] = (ew.add if launches else sums.get(type(before), plus))(before, gi)
                if not create_graph:
                    summed.add(parent)
        if not retain_graph:
            node.inputs = node.saved = node.output = None
        # Else they would live until the next node's gradients are there.
        g = gi = before = found = y = a = b = values = None
        arguments = ()


def _differentiate(node: Node, xp: Any, g: Any, create_graph: bool, launches: bool) -> tuple[Any, ...]:
    """What the derivative of a node's op says, for each input; `launches`: by a device's kernels."""
    op = node.op
    if xp is None:  # the first is an op of several outputs
        xp = backend_of_type(type(next(part for part in g if part is not None))).xp
    values: Any = node.saved if op.keeps_none else _values(node, create_graph)
    y = node if node.output is None else _output(node, create_graph)
    if launches and type(g) is not tuple:
        found = differentiate(op.derivative, xp, (g, y, *values), {**op.defaults, **node.params})
    elif op.param_names:
        found = op.derivative(xp, g, y, *values, **{**op.defaults, **node.params})
    else:
        found = op.derivative(xp, g, y, *values)
    return found if type(found) is tuple else (found,)


def _values(node: Node, create_graph: bool) -> Sequence[Any]:
    """The inputs of a node as its derivative wants them: Tensors if it is to be recorded, else raw arrays."""
    saved = node.saved
    assert saved is not None
    if node.made < _last_written:
        for a in saved:
            if isinstance(a, Tensor) and a._memory is not None and a._memory.written > node.made:
                raise _changed(node.op, "an input", a.shape)
    return saved if create_graph else [a.data if isinstance(a, Tensor) else a for a in saved]


def _output(node: Node, create_graph: bool) -> Any:
    """The saved output of a node, likewise."""
    y = node.output
    if node.memory is not None and node.memory.written > node.made:
        raise _changed(node.op, "its output", node.shape)
    if not create_graph:
        return y
    if type(y) is tuple:
        return tuple(Tensor._wrap(v, _part(node, i, y) if v.dtype.kind in SMOOTH else None) for i, v in enumerate(y))
    return Tensor._wrap(y, node)


def _collect_part(node: Node, g: Any, pending: dict[Node, Any]) -> None:
    """Gather the gradients of an op's several outputs into a tuple, with None for those that get none."""
    whole = node.inputs[0]  # type: ignore[index]
    assert whole is not None
    parts = list(pending.get(whole, (None,) * node.op.count))
    before = parts[node.op.index]
    parts[node.op.index] = g if before is None else before + g
    pending[whole] = tuple(parts)


def _changed(op: Op, which: str, shape: tuple[int, ...]) -> GradientError:
    return GradientError(
        f"a value that the derivative of {op.name!r} needs ({which}, of shape {tuple(shape)}) was changed in place "
        "after it was used; use the out-of-place form (y = y + 1 instead of y += 1), or change it after backward"
    )


def _unbroadcast(g: Any, shape: tuple[int, ...], op: Op) -> Any:
    """Sum a gradient over the axes along which its input was broadcast: the one place where broadcasting is undone."""
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1)
    if extra < 0 or any(n not in (1, g.shape[i + extra]) for i, n in enumerate(shape)):
        raise GradientError(f"the derivative of {op.name!r} has shape {tuple(g.shape)} for an input of shape {shape}")
    return reshape(sum(g, axis=axes), shape=shape)


def _cast_gradient(xp: Any, g: Any, dtype: np.dtype) -> Any:
    if g.dtype.kind == "c" and dtype.kind == "f":
        g = xp.real(g)
    return astype(g, dtype=dtype)


def _accumulate(node: Node, g: Any, owned: set[int]) -> None:
    """Add a gradient to what `Tensor.grad` shows. A leaf's gradient is its own memory, so that it can be written to."""
    g = across(g)
    with _accumulating:
        before = node.grad
        if before is None:
            node.grad = _own(g, owned)
        elif isinstance(g, Tensor):
            node.grad = before + g
        else:
            total = before.data + g
            node.grad = Tensor._wrap(backend_of_type(type(total)).array_from(total))


def _collect(node: Node, g: Any, targets: Sequence[Node], results: dict[Node, Any], owned: set[int]) -> None:
    """Note the gradient of a node, if it is one of those that `grad` was asked for."""
    if node in targets:
        results[node] = _own(across(g), owned)


_accumulating = threading.Lock()  # several threads may differentiate with respect to the same leaf


def _own(g: Any, owned: set[int]) -> Tensor:
    """`g` as a Tensor; a copy where another gradient, the caller's array or a view shares its memory."""
    if isinstance(g, Tensor):
        data = g.data
    else:
        data = g if type(g) is np.ndarray else backend_of_type(type(g)).array_from(g)
        g = Tensor._wrap(data)
    if id(data) in owned or (data.base is not None and not _alone(data)):
        g = copy(g)
        data = g.data
    owned.add(id(data))
    return g


def _alone(view: Any) -> bool:
    """Whether a view is of a whole array that nothing else refers to, so that the memory is as good as its own."""
    base = type(view.base) is type(view) and view.base.base is None and view.base.size == view.size
    return base and _holders_of_base(view) == _ONE_HOLDER


def _holders_of_base(view: Any) -> int:
    return getrefcount(view.base)


_ONE_HOLDER = _holders_of_base(np.empty(2)[:])  # the view; what counting itself holds differs between Pythons


# --- observers: hooks, and who looks on ----------------------------------------------------------------------------

_observers: list[None] = []  # not empty once there was a hook, and while anybody looks on: else nobody is asked for


def is_watched() -> bool:
    """Whether somebody looks at every op of this thread, so that none may be left out."""
    return bool(_observers) and _mode.watch is not None


class Handle:
    """What registering a hook returns; `remove()` takes the hook away, as does leaving a `with` block."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks = hooks
        self._entry = (hook,)  # a tuple of its own, so that one function may be registered twice
        hooks.append(self._entry)

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        self._hooks[:] = [entry for entry in self._hooks if entry is not self._entry]

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def register_hook(tensor: Tensor, hook: Callable[[Tensor], Any]) -> Handle:
    """`Tensor.register_hook`."""
    node = tensor._node
    if node is None:
        raise GradientError("register_hook: this tensor does not require gradients, so none will arrive")
    if not callable(hook):
        raise TypeError(f"register_hook: expected a function of the gradient, got {hook!r}")
    if not hasattr(node, "hooks"):
        node.hooks = []
    _observers.append(None)
    return Handle(node.hooks, hook)


def _has_hooks(order: list[Node], pending: dict[Node, Any]) -> bool:
    return any(hasattr(n, "hooks") for n in pending) or any(
        hasattr(n, "hooks") for node in order for n in node.inputs or () if n is not None
    )


def _flow_observed(
    order: list[Node],
    pending: dict[Node, Any],
    wanted: set[Node] | None,
    keep: Callable[[Node, Any], None],
    create_graph: bool,
    retain_graph: bool,
) -> None:
    """`_flow` node by node. A node's hooks are called when its gradient is complete. Whoever looks on is called with
    the node, its gradient, `pending`, the nodes of its inputs, and a function that goes on to these."""
    for node in order:
        if node not in pending:
            continue
        if hasattr(node, "hooks") and (wanted is None or node in wanted):
            pending[node] = _after_hooks(node, pending[node], create_graph)
        step = partial(_flow, [node], pending, wanted, keep, create_graph, retain_graph)
        if _mode.watch is None:
            step()
        else:
            _mode.watch(node, pending[node], pending, node.inputs, step)


def _after_hooks(node: Node, g: Any, create_graph: bool) -> Any:
    """The gradient of a node as its hooks leave it."""
    for (hook,) in list(node.hooks):
        seen = across(g if create_graph else Tensor._wrap(backend_of_type(type(g)).array_from(g)))
        changed = hook(seen)
        if changed is not None:
            g = _replacement("a hook", changed, seen, create_graph)
    return g


def _replacement(who: str, changed: Any, before: Tensor, create_graph: bool) -> Any:
    """What a hook returned in place of a gradient, as the tape has it."""
    if not isinstance(changed, Tensor):
        raise GradientError(f"{who} must return a Tensor or None, got {type(changed).__name__}")
    if changed.shape != before.shape:
        raise GradientError(f"{who} must return a gradient of shape {before.shape}, got {changed.shape}")
    changed = across(changed if changed.dtype == before.dtype else astype(changed, dtype=before.dtype))
    return changed if create_graph else changed.data


def flow(order: list[Node], pending: dict[Node, Any], create_graph: bool) -> None:
    """Pass gradients on through the nodes `order`, the last made first, to what they were made from.

    Args:
        pending: the gradients of outputs, as the tape has them; in the end, those of nodes that are not in `order`.
    """
    watched = _observers and (_mode.watch is not None or _has_hooks(order, pending))
    keep = lambda node, g: _accumulate(node, g, set())  # noqa: E731
    (_flow_observed if watched else _flow)(order, pending, None, keep, create_graph, create_graph)


def gate(tensors: Sequence[Tensor], op: Any, inputs: Sequence[Node | None]) -> list[Tensor]:
    """The same Tensors with other places on the tape: outputs of one node of `op`, made from `inputs`.

    The derivative of `op` gets a tuple of their gradients, with None for those that get none.
    """
    whole = Node(op, (), tensors[0].dtype, inputs)
    whole.saved = inputs
    arrays = tuple(t.data for t in tensors)
    outs = []
    for i, t in enumerate(tensors):
        out = Tensor._wrap(t.data, _part(whole, i, arrays))
        out._is_view_of(t)
        outs.append(out)
    return outs


def _namespace() -> Any:
    """The array functions on Tensors, in which derivatives are computed when they are to be recorded."""
    import gpunet

    return gpunet
