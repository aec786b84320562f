"""How a transformation sees the ops of the function that it transforms.

While one is at work, arrays that mean more than one array stand in for the function's Tensors: `Tracer`s, such as a
Tensor with an axis of samples that the function does not see, or one with its derivative along a direction. Every op
that is given one asks the innermost of them what to do. Transformations nest, so what a Tracer is made of may be
Tracers of those further out; at the bottom are plain Tensors, on the tape or not.

Ops get to know of Tracers only inside `interception`, so that they cost nothing otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunet import autograd, backends
from gpunet.backends import Backend, Device
from gpunet.errors import DeviceError, GradientError, ShapeError
from gpunet.ops import elementwise as ew
from gpunet.ops import index
from gpunet.ops.op import Op
from gpunet.tensor import Memory, Tensor

if TYPE_CHECKING:
    from gpunet.autograd import Node

next_level = count(1).__next__  # the number of a transformation; those further in have higher ones


class Tracer(Tensor):
    """A Tensor inside a transformed function; each transformation has a subclass.

    Attributes:
        level: the number of the transformation that it belongs to.
        inner: what has its shape without that transformation's part, or more: a Tensor or Tracer of a lower level.
    """

    __slots__ = ("inner", "level")

    level: int
    inner: Tensor

    what = "a transformed function"  # for messages

    def interpret(self, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        """Do what `op` means for arguments of which this one has the highest level."""
        raise NotImplementedError

    def parts(self) -> list[Tensor]:
        """The Tensors that it is made of, on the next level."""
        return [self.inner]

    # --- what a Tensor says of itself

    @property
    def data(self) -> Any:
        """A stand-in for the raw array, which tells whoever reads it that there is none."""
        return Hidden(self.what)

    @property
    def _node(self) -> Node | None:  # type: ignore[override]
        return self.inner._node

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype:
        return self.inner.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        n = 1
        for length in self.shape:
            n *= length
        return n

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def device(self) -> Device:
        return self.inner.device

    def _backend(self) -> Backend:
        return self.inner._backend()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} tensor {self.shape} {self.dtype} inside {self.what}>"

    def __format__(self, spec: str) -> str:
        return object.__format__(self, spec)

    # --- differentiation

    @property
    def requires_grad(self) -> bool:
        return self.inner.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.inner.requires_grad = value

    @property
    def grad(self) -> Tensor | None:
        raise GradientError(f"x.grad inside {self.what} is not available; use gpunet.grad(f)(x)")

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        raise GradientError(f"x.grad inside {self.what} cannot be set")

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        raise GradientError(
            f"backward() inside {self.what} would have to add up gradients in .grad; use gpunet.grad(f)(x), or "
            "gpunet.grad(y, x), which return them"
        )

    def register_hook(self, hook: Any) -> Any:
        raise GradientError(f"register_hook inside {self.what} is not available")

    def detach(self) -> Tensor:
        return self.remade(self.inner.detach())

    def remade(self, inner: Any) -> Any:
        """A Tracer of the same kind and level with another `inner`, and nothing else of this one."""
        raise NotImplementedError

    # --- values

    def _unknown(self, *_args: Any, **_options: Any) -> Any:
        raise Hidden(self.what).error()

    numpy = __array__ = __dlpack__ = __dlpack_device__ = item = tolist = __bool__ = __deepcopy__ = _scalar = _unknown
    __cuda_array_interface__ = property(_unknown)

    # --- in place and by position

    def _known_memory(self) -> Memory:
        memory = self._memory
        if memory is None:
            memory = self._memory = Memory(self.shape)
        return memory

    def _write(self, op: Any, other: Any, **params: Any) -> Tensor:
        if self._memory is not None and self._memory.is_shared(self):
            raise GradientError(
                f"{op.name} in place on a tensor of shape {self.shape} inside {self.what} that is an argument of the "
                "function or shares memory with another tensor; write to a copy (x.copy()), or use the out-of-place "
                "form"
            )
        found = op(self, other, **params)
        if getattr(found, "level", 0) != self.level:
            raise GradientError(
                f"{op.name} in place inside {self.what}: the tensor written to belongs to a transformation further out "
                "than the values; use the out-of-place form"
            )
        if found.shape != self.shape or found.dtype != self.dtype:
            raise ShapeError(
                f"{op.name}: the result, {found.shape} {found.dtype}, does not fit into {self.shape} {self.dtype}"
            )
        self._become(found)
        return self

    def _become(self, other: Any) -> None:
        self.inner = other.inner

    def __getitem__(self, key: Any) -> Tensor:
        if _has_tracers(key):
            return _getitem_by(self, key)
        return index.getitem(self, key=index.raw_key(bottom(self).data, key))

    def __setitem__(self, key: Any, value: Any) -> None:
        if _has_tracers(key):
            raise _no_write_by(key)
        self._write(index.setitem, value, key=index.raw_key(bottom(self).data, key))


for _name, _op in {"add": ew.add, "sub": ew.subtract, "mul": ew.multiply, "truediv": ew.divide}.items():
    setattr(Tracer, f"__{_name}__", lambda a, b, op=_op: op(a, b))
    setattr(Tracer, f"__r{_name}__", lambda b, a, op=_op: op(a, b))


def bottom(x: Tensor) -> Tensor:
    """The plain Tensor that a Tracer comes down to."""
    while isinstance(x, Tracer):
        x = x.inner
    return x


def bottoms(x: Tensor) -> list[Tensor]:
    """All plain Tensors that a Tracer is made of."""
    return [y for part in x.parts() for y in bottoms(part)] if isinstance(x, Tracer) else [x]


def level_of(x: Any) -> int:
    """The level of a Tracer; 0 for anything else."""
    return x.level if isinstance(x, Tracer) else 0


# --- what code sees that looks at the raw array of a Tracer


class Hidden:
    """Stands where a raw array would be. Code that only looks at its class goes on; any other use says why it fails."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def error(self) -> Exception:
        what = object.__getattribute__(self, "_what")
        return GradientError(
            f"inside {what}, a tensor has no values of its own that could be looked at (by item, bool, float, numpy, "
            "a loop or an if on values, a layer that updates its buffers, or a function written for raw arrays); use "
            "array functions only, such as gpunet.where for a choice"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.error()

    def _refuse(self, *_args: Any) -> Any:
        raise self.error()

    __setattr__ = __getitem__ = __setitem__ = __len__ = __iter__ = __bool__ = _refuse
    __array__ = _refuse


class _HiddenBackend(Backend):
    """The backend of stand-ins: it has no kernels, and can do nothing."""

    name = "hidden"
    array_type = Hidden

    @property
    def xp(self) -> Any:
        return Hidden("a transformed function")

    def array_from(self, value: Any) -> Any:
        raise value.error() if isinstance(value, Hidden) else DeviceError("there are no arrays of this kind")

    def implement(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: Any, **_params: Any) -> Any:
            raise next(a for a in args if isinstance(a, Hidden)).error()

        return refuse


backends._by_type[Hidden] = _HiddenBackend()


# --- interception


class _Thread(threading.local):
    watch: Callable[..., Any] | None = None


_thread = _Thread()
_lock = threading.Lock()
_users = 0


@contextmanager
def interception(watch: Callable[..., Any] | None = None) -> Iterator[None]:
    """Within the block, ops that are given Tracers ask them what to do.

    Args:
        watch: if given, what runs this thread's ops on Tensors that are no Tracers: `watch(op, args, params)`.
    """
    _change(1)
    before = _thread.watch
    if watch is not None:
        _thread.watch = watch
    try:
        yield
    finally:
        _thread.watch = before
        _change(-1)


def _change(users: int) -> None:
    global _users
    with _lock:
        before, _users = _users, _users + users
        if not before or not _users:
            for where, name, ours, theirs in _REPLACED:
                setattr(where, name, ours if _users else theirs)


def _record(op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
    top: Tracer | None = None
    for a in args:
        if isinstance(a, Tracer) and (top is None or a.level > top.level):
            top = a
    if top is not None:
        return top.interpret(op, args, params)
    return autograd.record(op, args, params) if _thread.watch is None else _thread.watch(op, args, params)


def _gradients(outputs: list[Tensor], inputs: list[Tensor], gradients: Any, retain: Any, create_graph: bool) -> Any:
    if not any(isinstance(t, Tracer) for t in (*outputs, *inputs, *gradients)):
        return _plain_gradients(outputs, inputs, gradients, retain, create_graph)
    from gpunet.transforms.reverse import differentiated, seeds

    retain = create_graph if retain is None else retain
    return differentiated(outputs, inputs, seeds(outputs, gradients), create_graph=create_graph, retain_graph=retain)


def _get(x: Tensor, key: Any) -> Tensor:
    return _getitem_by(x, key) if _has_tracers(key) else _plain_get(x, key)


def _set(x: Tensor, key: Any, value: Any) -> None:
    if _has_tracers(key):
        raise _no_write_by(key)
    if isinstance(value, Tracer):
        raise _no_write_to(x, value)
    _plain_set(x, key, value)


def _write(x: Tensor, op: Any, other: Any, **params: Any) -> Tensor:
    if isinstance(other, Tracer):
        raise _no_write_to(x, other)
    return _plain_write(x, op, other, **params)


_plain_gradients = autograd._gradients
_plain_get, _plain_set, _plain_write = Tensor.__getitem__, Tensor.__setitem__, Tensor._write

_REPLACED: list[tuple[Any, str, Any, Any]] = [
    (autograd, "_gradients", _gradients, _plain_gradients),
    (Op, "record", staticmethod(_record), Op.__dict__["record"]),
    (Op, "record_one", staticmethod(lambda op, x: _record(op, (x,), {})), Op.__dict__["record_one"]),
    (Tensor, "__getitem__", _get, _plain_get),
    (Tensor, "__setitem__", _set, _plain_set),
    (Tensor, "_write", _write, _plain_write),
    *(
        (Tensor, name, Tracer.__dict__[name], Tensor.__dict__[name])
        for operator in ("add", "sub", "mul", "truediv")
        for name in (f"__{operator}__", f"__r{operator}__")
    ),
]


def _has_tracers(key: Any) -> bool:
    return any(isinstance(k, Tracer) for k in key) if isinstance(key, tuple) else isinstance(key, Tracer)


def _getitem_by(x: Tensor, key: Any) -> Tensor:
    from gpunet.transforms.batching import getitem_by

    return getitem_by(x, key if isinstance(key, tuple) else (key,))


def _no_write_by(key: Any) -> Exception:
    what = next(k for k in (key if isinstance(key, tuple) else (key,)) if isinstance(k, Tracer)).what
    return GradientError(f"x[i] = value inside {what} cannot write where i differs by sample; use gpunet.where")


def _no_write_to(x: Tensor, value: Tracer) -> Exception:
    return GradientError(
        f"a tensor of shape {x.shape} from outside {value.what} cannot be written to in place with what was computed "
        "inside; use the out-of-place form"
    )
