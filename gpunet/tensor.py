"""Tensor: an array on a device, with a place on the tape. Its methods only call ops; the maths is in gpunet/ops."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunet import dtypes
from gpunet.backends import Backend, Device, backend_of_type
from gpunet.backends import resolve as resolve_device
from gpunet.errors import DTypeError, GradientError, ShapeError
from gpunet.ops import elementwise as ew
from gpunet.ops import index, linalg, matmul, reduce, shape
from gpunet.ops.op import Op, Traced

if TYPE_CHECKING:
    from gpunet.autograd import Node


# What PyTorch's users look for, and where it is. One spelling of everything, but no dead end.
_HINTS = {
    "clone": "x.copy()",
    "cos": "gpunet.cos(x)",
    "dim": "x.ndim",
    "double": "x.astype(gpunet.float64)",
    "expand": "gpunet.broadcast_to(x, shape)",
    "float": "x.astype(gpunet.float32)",
    "gather": "gpunet.take_along_axis(x, indices, axis=...)",
    "long": "x.astype(gpunet.int64)",
    "numel": "x.size",
    "permute": "x.transpose(...)",
    "pow": "x ** y",
    "sigmoid": "gpunet.nn.functional.sigmoid(x)",
    "softmax": "gpunet.nn.functional.softmax(x, axis=...)",
    "t": "x.T",
    "topk": "gpunet.top_k(x, k)",
    "type": "x.astype(dtype)",
    "unsqueeze": "gpunet.expand_dims(x, axis=...), or x[None]",
    "view": "x.reshape(...)",
}


_new = object.__new__


class Memory:
    """What Tensors that share their elements have in common: who they are, and when they were last written to in place.

    It refers to them weakly, so that a view keeps nothing alive but the elements.
    """

    __slots__ = ("_most", "_sharing", "shape", "written")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape  # of the Tensor that was there first
        self.written = 0  # on the tape's clock
        self._sharing: list[weakref.ref[Tensor]] = []
        self._most = _FEW  # entries before those of Tensors that are gone are thrown out

    def share(self, *tensors: Tensor) -> None:
        """Note Tensors that have these elements; one that is noted twice shares them with itself, for good."""
        if len(self._sharing) >= self._most:
            self._sharing = [ref for ref in self._sharing if ref() is not None]
            self._most = 2 * len(self._sharing) + _FEW
        self._sharing += map(weakref.ref, tensors)

    def is_shared(self, tensor: Tensor) -> bool:
        """Whether another Tensor that is still there may have elements of this one."""
        alive = [t for ref in self._sharing if (t := ref()) is not None]
        return len(alive) > any(t is tensor for t in alive)


_FEW = 16


class Tensor(Traced):
    """A multidimensional array that remembers how it was computed.

    Make one with `gpunet.tensor`, `gpunet.asarray`, `gpunet.zeros` and the like. Operators and methods are NumPy's and
    the Array API's; `requires_grad`, `grad` and `backward` differentiate.

    Attributes:
        data: the raw array, a numpy.ndarray or a cupy.ndarray. Writing to it directly goes unnoticed by the tape.
    """

    __slots__ = ("__weakref__", "_memory", "_node", "data")

    data: Any
    _node: Node | None  # where it stands on the tape; None: it does not require gradients
    _memory: Memory | None  # what it has in common with the Tensors that share its elements, if any do

    __array_ufunc__ = None  # numpy_array + tensor is the tensor's to answer
    __array_priority__ = 1000
    __hash__ = object.__hash__

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self._node = self._memory = None
        if isinstance(data, Tensor):
            self._is_view_of(data)
            data = data.data
        self.data = backend_of_type(type(data)).array_from(data)
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def _wrap(data: Any, node: Node | None = None) -> Tensor:
        """A Tensor of a raw array, without a check."""
        t = _new(Tensor)
        t.data = data
        t._node = node
        t._memory = None
        return t

    if not TYPE_CHECKING:  # a type checker would take it for a promise of any attribute

        def __getattr__(self, name: str) -> Any:
            hint = f"; here it is {_HINTS[name]}" if name in _HINTS else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def _known_memory(self) -> Memory:
        """The record of its memory, made if there is none yet."""
        memory = self._memory
        if memory is None:
            memory = self._memory = Memory(self.shape)
            if self._node is not None:
                self._node.memory = memory
        return memory

    def _is_view_of(self, other: Tensor) -> None:
        """Note that this Tensor may share its elements with `other`."""
        self._memory = memory = other._known_memory()
        if memory._sharing and self is not other:
            memory.share(self)
        else:
            memory.share(other, self)

    # --- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """The data type of the elements."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self.data.nbytes

    @property
    def device(self) -> Device:
        """The device that holds the elements."""
        return self._backend().device_of(self.data)

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix; for other numbers of axes see `mT` and `permute_dims`."""
        if self.ndim != 2:
            raise ValueError(f"T: expected a matrix, got shape {self.shape}; use mT or permute_dims")
        return shape.permute_dims(self, axes=(1, 0))

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return shape.matrix_transpose(self)

    def _backend(self) -> Backend:
        return backend_of_type(type(self.data))

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        import gpunet

        return gpunet

    # --- differentiation

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are computed with respect to this tensor. Can be set on a tensor that ops did not make."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        from gpunet import autograd

        if value and self._node is None:
            self._node = autograd.leaf(self)
        elif not value and self._node is not None:
            if not self.is_leaf:
                raise GradientError(
                    "requires_grad can be turned off only on a leaf; use x.detach() for a tensor that ops made"
                )
            self._node = None

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set `requires_grad` and return the tensor."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded op made this tensor."""
        return self._node is None or self._node.is_leaf

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` added up here, of this tensor's shape, or None."""
        return None if self._node is None else self._node.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self._node is None:
            if value is None:
                return
            raise GradientError("grad can be set only on a tensor that requires gradients")
        if value is not None:
            if not isinstance(value, Tensor):
                raise DTypeError(f"grad must be a Tensor or None, got {type(value).__name__}")
            if value.shape != self.shape:
                raise GradientError(f"grad must have the tensor's shape {self.shape}, got {value.shape}")
        self._node.grad = value

    def retain_grad(self) -> None:
        """Make `backward` keep the gradient of this tensor in `.grad` although an op made it."""
        if self._node is None:
            raise GradientError("retain_grad: this tensor does not require gradients")
        self._node.retains_grad = True

    def register_hook(self, hook: Any) -> Any:
        """Call `hook(gradient)` whenever the gradient of this tensor is known, before it goes on.

            handle = x.register_hook(lambda g: g * 0.5)

        Args:
            hook: given the gradient, a Tensor of this tensor's shape, which it must not write to. What it returns, if
                not None, takes the gradient's place: in `.grad` of a leaf, and in what flows on.

        Returns:
            A handle whose `remove()` takes the hook away.

        Raises:
            GradientError: the tensor does not require gradients.
        """
        from gpunet import autograd

        return autograd.register_hook(self, hook)

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add to the `.grad` of every leaf it was computed from the derivative of this tensor.

        Args:
            gradient: of this tensor's shape; what reaches it from further on. May be left out for a scalar (1).
            retain_graph: keep what another `backward` through the same graph needs; default: `create_graph`.
            create_graph: record the computation of the gradients, so that they can be differentiated in turn.

        Raises:
            GradientError: see `gpunet.autograd.backward`.
        """
        Op.backward([self], [gradient], retain_graph=retain_graph, create_graph=create_graph)

    def detach(self) -> Tensor:
        """The same memory, off the tape."""
        t = Tensor._wrap(self.data)
        t._is_view_of(self)
        return t

    # --- moving and converting

    def numpy(self) -> np.ndarray:
        """As a NumPy array: shared memory on the CPU, a copy from a GPU.

        Raises:
            GradientError: it requires gradients, which NumPy would lose: `x.detach().numpy()` says that this is meant.
        """
        if self._node is not None:
            raise GradientError("numpy() of a tensor that requires gradients: use x.detach().numpy()")
        return self._backend().to_numpy(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._node is not None:
            raise GradientError("a NumPy array of a tensor that requires gradients: use x.detach()")
        if copy is False and self.device.type == "cuda":
            raise ValueError("an array on a GPU cannot become a NumPy array without a copy")
        array = self._backend().to_numpy(self.data)
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"cannot convert {array.dtype} to {np.dtype(dtype)} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    @property
    def __array_interface__(self) -> Any:
        if self._node is not None or self.data.dtype.kind == "V":
            raise AttributeError(
                "__array__ hands bfloat16 over, which this protocol has no name for, or says what is wrong"
            )
        return self.data.__array_interface__

    @property
    def __cuda_array_interface__(self) -> Any:
        return self.data.__cuda_array_interface__

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of DLPack, by which other libraries take the array over; arguments as in the Array API."""
        if self._node is not None:
            raise GradientError("__dlpack__ of a tensor that requires gradients: use x.detach()")
        options = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        return self.data.__dlpack__(**{name: value for name, value in options.items() if value is not None})

    def __dlpack_device__(self) -> tuple[Any, int]:
        """DLPack's device type, and the device's number."""
        return self.data.__dlpack_device__()

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: expected a tensor of one element, got shape {self.shape}")
        return self.data.item()

    def tolist(self) -> Any:
        """As nested lists of Python numbers."""
        return self.data.tolist()

    def astype(self, dtype: Any, copy: bool = True) -> Tensor:
        """With elements of another data type."""
        dtype = np.dtype(dtype)
        return shape.astype(self, dtype=dtype) if copy or dtype != self.dtype else self

    def to_device(self, device: Device | str, /, *, stream: Any = None) -> Tensor:
        """On another device; itself where it is there already. Differentiable."""
        device = resolve_device(device)
        if device == self.device:
            return self
        return shape.to_device(self, device=device, source=self.device)

    def to(self, target: Any) -> Tensor:
        """On another device (a Device or its name), or of another dtype."""
        if isinstance(target, (Device, str)) and not (isinstance(target, str) and _names_dtype(target)):
            return self.to_device(target)
        return self.astype(target, copy=False)

    def cpu(self) -> Tensor:
        """In host memory."""
        return self.to_device("cpu")

    def cuda(self, index: int = 0) -> Tensor:
        """On a GPU."""
        return self.to_device(f"cuda:{index}")

    def copy(self) -> Tensor:
        """The same values in memory of their own. Differentiable."""
        return shape.copy(self)

    def __copy__(self) -> Tensor:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        t = type(self).__new__(type(self))
        t._node = t._memory = None
        memo[id(self)] = t
        if not self.is_leaf:
            raise GradientError("only tensors that no op made can be deep-copied; use x.detach().copy()")
        t.data = self.data.copy(order="K")
        if self.requires_grad:
            t.requires_grad = True
        return t

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"the truth value of a tensor of shape {self.shape} is ambiguous; use gpunet.any(x) or gpunet.all(x)"
            )
        return bool(self.data)

    def __float__(self) -> float:
        return self._scalar(float)

    def __int__(self) -> int:
        return self._scalar(int)

    def __complex__(self) -> complex:
        return self._scalar(complex)

    def __index__(self) -> int:
        return operator.index(self._scalar(lambda x: x))

    def _scalar(self, convert: Any) -> Any:
        if self.size != 1:
            raise TypeError(f"only a tensor of one element can become a Python number, got shape {self.shape}")
        return convert(self.data.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d tensor has no length")
        return self.data.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("a 0-d tensor cannot be iterated over")
        if len(self) <= 8:  # such as q, k and v, whose gradients are then joined at no cost
            return iter(shape.unstack(self))
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __repr__(self) -> str:
        body = np.array2string(self._backend().to_numpy(self.data), separator=", ", prefix="tensor(")
        notes = []
        if self.dtype not in (dtypes.float32, dtypes.int64, dtypes.bool):
            notes.append(f"dtype={self.dtype}")
        if self.device != "cpu":
            notes.append(f'device="{self.device}"')
        if self._node is not None:
            notes.append("requires_grad=True" if self._node.is_leaf else f"made_by={self._node.op.name}")
        return f"tensor({', '.join([body, *notes])})"

    def __format__(self, spec: str) -> str:
        return (
            format(self.item(), spec)
            if spec and self.size == 1
            else str(self)
            if not spec
            else object.__format__(self, spec)
        )

    # --- operators

    # Those of arithmetic are made where ops are recorded, in gpunet/autograd.py, which can do so at a lower cost.
    if TYPE_CHECKING:

        def __add__(self, other: Any) -> Tensor: ...

        def __radd__(self, other: Any) -> Tensor: ...

        def __sub__(self, other: Any) -> Tensor: ...

        def __rsub__(self, other: Any) -> Tensor: ...

        def __mul__(self, other: Any) -> Tensor: ...

        def __rmul__(self, other: Any) -> Tensor: ...

        def __truediv__(self, other: Any) -> Tensor: ...

        def __rtruediv__(self, other: Any) -> Tensor: ...

    def __floordiv__(self, other: Any) -> Tensor:
        return ew.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return ew.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return ew.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return ew.remainder(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return ew.pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return ew.pow(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul.matmul(other, self)

    def __neg__(self) -> Tensor:
        return ew.negative(self)

    def __pos__(self) -> Tensor:
        return ew.positive(self)

    def __abs__(self) -> Tensor:
        return ew.abs(self)

    def __eq__(self, other: Any) -> Any:
        return ew.equal(self, other)

    def __ne__(self, other: Any) -> Any:
        return ew.not_equal(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return ew.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return ew.less_equal(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return ew.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return ew.greater_equal(self, other)

    def __and__(self, other: Any) -> Tensor:
        return ew.bitwise_and(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return ew.bitwise_and(other, self)

    def __or__(self, other: Any) -> Tensor:
        return ew.bitwise_or(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return ew.bitwise_or(other, self)

    def __xor__(self, other: Any) -> Tensor:
        return ew.bitwise_xor(self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return ew.bitwise_xor(other, self)

    def __lshift__(self, other: Any) -> Tensor:
        return ew.bitwise_left_shift(self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return ew.bitwise_left_shift(other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return ew.bitwise_right_shift(self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return ew.bitwise_right_shift(other, self)

    def __invert__(self) -> Tensor:
        return ew.bitwise_invert(self)

    # --- reading and writing parts

    def __getitem__(self, key: Any) -> Tensor:
        return index.getitem(self, key=index.raw_key(self.data, key))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._write(index.setitem, value, key=index.raw_key(self.data, key))

    def __iadd__(self, other: Any) -> Tensor:
        return self._write(ew.add, other)

    def __isub__(self, other: Any) -> Tensor:
        return self._write(ew.subtract, other)

    def __imul__(self, other: Any) -> Tensor:
        return self._write(ew.multiply, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._write(ew.divide, other)

    def __ifloordiv__(self, other: Any) -> Tensor:
        return self._write(ew.floor_divide, other)

    def __imod__(self, other: Any) -> Tensor:
        return self._write(ew.remainder, other)

    def __ipow__(self, other: Any) -> Tensor:
        return self._write(ew.pow, other)

    def __iand__(self, other: Any) -> Tensor:
        return self._write(ew.bitwise_and, other)

    def __ior__(self, other: Any) -> Tensor:
        return self._write(ew.bitwise_or, other)

    def __ixor__(self, other: Any) -> Tensor:
        return self._write(ew.bitwise_xor, other)

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the elements with those of `source`, which broadcasts to this tensor's shape."""
        self[...] = source
        return self

    def _write(self, op: Any, other: Any, **params: Any) -> Tensor:
        """Replace the elements by op(self, other): what every in-place form comes down to."""
        from gpunet import autograd

        autograd.write(self, op, other, params)
        return self

    # --- NumPy's methods

    def reshape(self, *shape_: Any, copy: bool | None = None) -> Tensor:
        """With the same elements in another shape: `x.reshape(2, -1)` or `x.reshape((2, -1))`."""
        new = shape_[0] if len(shape_) == 1 and not isinstance(shape_[0], int) else shape_
        return shape.reshape(self, shape=new, copy=copy)

    def flatten(self) -> Tensor:
        """As one axis."""
        return shape.reshape(self, shape=(-1,))

    ravel = flatten

    def transpose(self, *axes: Any) -> Tensor:
        """With its axes in another order: reversed, or as given."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return shape.permute_dims(self, axes=tuple(order) or tuple(range(self.ndim))[::-1])

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """With two axes exchanged."""
        order = list(range(self.ndim))
        try:
            order[axis1], order[axis2] = order[axis2], order[axis1]
        except IndexError:
            raise ShapeError(f"swapaxes: no axes {axis1} and {axis2} in an array of shape {self.shape}") from None
        return shape.permute_dims(self, axes=tuple(order))

    def squeeze(self, axis: Any = None) -> Tensor:
        """Without axes of length one: all, or those given."""
        if axis is None:
            axis = tuple(i for i, n in enumerate(self.shape) if n == 1)
        return shape.squeeze(self, axis=axis)

    def repeat(self, repeats: Any, axis: int | None = None) -> Tensor:
        """With each element repeated."""
        return shape.repeat(self, repeats=repeats, axis=axis)

    def take(self, indices: Any, axis: int | None = None) -> Tensor:
        """The elements at `indices` along an axis."""
        return index.take(self, indices, axis=axis)

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
        """The sum over some or all axes."""
        return reduce.sum(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
        """The product over some or all axes."""
        return reduce.prod(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The arithmetic mean over some or all axes."""
        return reduce.mean(self, axis=axis, keepdims=keepdims)

    def var(self, axis: Any = None, correction: Any = 0.0, keepdims: bool = False) -> Tensor:
        """The variance over some or all axes, divided by n - correction."""
        return reduce.var(self, axis=axis, correction=correction, keepdims=keepdims)

    def std(self, axis: Any = None, correction: Any = 0.0, keepdims: bool = False) -> Tensor:
        """The standard deviation over some or all axes."""
        return reduce.std(self, axis=axis, correction=correction, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The largest element over some or all axes."""
        return reduce.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The smallest element over some or all axes."""
        return reduce.min(self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The index of the first largest element."""
        return reduce.argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The index of the first smallest element."""
        return reduce.argmin(self, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Whether all elements are true."""
        return reduce.all(self, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Whether some element is true."""
        return reduce.any(self, axis=axis, keepdims=keepdims)

    def cumsum(self, axis: int | None = None) -> Tensor:
        """Running sums along an axis."""
        return reduce.cumulative_sum(self, axis=axis)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """With elements limited to an interval."""
        return ew.clip(self, min, max)

    def round(self) -> Tensor:
        """Rounded to the nearest integers, halves to even."""
        return ew.round(self)

    def exp(self) -> Tensor:
        """e to the power of each element."""
        return ew.exp(self)

    def log(self) -> Tensor:
        """The natural logarithm of each element."""
        return ew.log(self)

    def sqrt(self) -> Tensor:
        """The square root of each element."""
        return ew.sqrt(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent of each element."""
        return ew.tanh(self)

    def dot(self, other: Any) -> Tensor:
        """The matrix product, as `x @ other`."""
        return matmul.matmul(self, other)

    def trace(self) -> Tensor:
        """The sum of the diagonal of each matrix."""
        return linalg.trace(self)


def _names_dtype(name: str) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return False
    return True
