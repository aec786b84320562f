"""New Tensors: from data, filled with a value, or of evenly spaced numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunet import dtypes
from gpunet.backends import Device, backend_of_type, get_backend, resolve
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops import creation_kernels as cuda
from gpunet.ops.random_kernels import launcher_of
from gpunet.ops.shape import broadcast_to, reshape, stack, transfer
from gpunet.tensor import Tensor

_device = Device("cpu")


def default_device() -> Device:
    """The device on which arrays are created where no `device` is given; the CPU unless changed."""
    return _device


def set_default_device(device: Any) -> None:
    """Create arrays on `device` (a Device, its name, or "auto") where none is given.

    Raises:
        DeviceError: this machine does not have it.
    """
    global _device
    device = resolve(device)
    with get_backend(device).on(device):
        _device = device


def get_device(device: Any) -> Device:
    """A Device from a Device, its name, "auto" (a GPU where there is one, else the CPU), or None (the default)."""
    return _device if device is None else resolve(device)


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """A Tensor of what `obj` holds.

    Args:
        obj: a Tensor, a NumPy or CuPy array or anything that offers DLPack or `__array__`, a Python number, or nested
            sequences of these.
        dtype: of the elements. By default arrays keep theirs; Python floats get the default dtype, ints int64.
        device: where the Tensor is. By default Tensors and CuPy arrays stay where they are.
        copy: True: always copy; None: only if needed; False: raise ValueError if it is needed.

    Returns:
        A Tensor. Without a copy it shares memory with `obj`.

    Raises:
        DTypeError: `obj` holds something else than numbers.
        ShapeError: nested sequences of different lengths.
    """
    if isinstance(obj, (list, tuple)) and any(isinstance(x, Tensor) for x in obj):
        obj = stack([asarray(x, device=device) for x in obj])
    if isinstance(obj, Tensor):
        t = obj if dtype is None else obj.astype(dtype, copy=False)
        t = t if device is None else t.to_device(get_device(device))
        if t is not obj and copy is False:
            raise _needs_copy(t)
        return t.copy() if copy and t is obj else t
    raw = given = _raw(obj, dtype)
    backend = backend_of_type(type(raw))
    where = get_device(device) if device is not None or backend.name == "cpu" else backend.device_of(raw)
    if dtype is not None and np.dtype(dtype) != raw.dtype:
        raw = raw.astype(dtype)
    if where != backend.device_of(raw):
        raw = transfer(raw, where)
    if copy and raw is given:
        raw = raw.copy()
    if copy is False and raw is not obj:
        raise _needs_copy(raw)
    return Tensor._wrap(raw)


def _needs_copy(x: Any) -> ValueError:
    return ValueError(f"asarray: making an array of {x.dtype} needs a copy here, and copy=False forbids it")


def _raw(obj: Any, dtype: Any) -> Any:
    """`obj` as a raw array of some backend."""
    try:
        backend = backend_of_type(type(obj))
    except DTypeError:
        pass
    else:
        if obj.dtype.kind not in "biufc" and obj.dtype.name != "bfloat16":
            raise DTypeError(f"asarray: cannot make an array of numbers from an array of {obj.dtype}")
        return backend.array_from(obj)
    if hasattr(obj, "__cuda_array_interface__"):
        return get_backend(Device("cuda")).xp.asarray(obj)
    if hasattr(obj, "__dlpack__") and not hasattr(obj, "__array__"):
        return np.from_dlpack(obj)
    try:
        array = np.asarray(obj, None if hasattr(obj, "__array__") else dtype)  # whole numbers keep all their digits
    except ValueError as error:
        raise ShapeError(f"asarray: the nested sequences do not all have the same lengths: {error}") from None
    if array.dtype.kind not in "biufc":
        raise DTypeError(f"asarray: cannot make an array of numbers from {type(obj).__name__} ({array.dtype})")
    if dtype is None and not hasattr(obj, "__array__") and array.dtype == np.float64:
        array = array.astype(dtypes.default_dtype())
    return array


def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A Tensor with memory of its own, holding a copy of `data`.

    Args:
        data: as of `asarray`.
        dtype: of the elements; by default NumPy arrays keep theirs, Python floats get the default dtype.
        device: where it is; the default device if None.
        requires_grad: whether gradients are computed with respect to it.
    """
    source = data.detach() if isinstance(data, Tensor) else data
    return asarray(source, dtype=dtype, device=device, copy=True).requires_grad_(requires_grad)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A Tensor that shares the memory of an object of any library that offers DLPack.

    Args:
        x: the object.
        device: where the Tensor is; by default where x is.
        copy: as of `asarray`.
    """
    if isinstance(x, Tensor) and not x.requires_grad:
        raw = x.data
    elif x.__dlpack_device__()[0] in (2, 13):
        raw = get_backend(Device("cuda")).xp.from_dlpack(x)
    else:
        raw = np.from_dlpack(x)
    where = backend_of_type(type(raw)).device_of(raw) if device is None else device
    return asarray(Tensor._wrap(raw), device=where, copy=copy)


def _made(device: Any, kernel: Callable[..., Any], reference: Callable[..., Any]) -> Tensor:
    """What `kernel(launcher)` makes where the device has kernels and one applies; else what `reference(xp)` does."""
    where = get_device(device)
    backend = get_backend(where)
    launcher = launcher_of(where)
    with backend.on(where):
        y = NotImplemented if launcher is None else kernel(launcher)
        return Tensor._wrap(reference(backend.xp) if y is NotImplemented else y)


def _full(name: str, shape: Any, value: Any, dtype: Any, device: Any) -> Tensor:
    dtype, rest = np.dtype(dtype), () if name != "full" else (value,)
    return _made(
        device,
        lambda launcher: cuda.full(launcher, shape, value, dtype),
        lambda xp: getattr(xp, name)(shape, *rest, dtype=dtype),
    )


def _floating(dtype: Any) -> Any:
    return dtypes.default_dtype() if dtype is None else np.dtype(dtype)


def empty(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of `shape`, with whatever the memory happens to hold."""
    return _made(device, lambda launcher: NotImplemented, lambda xp: xp.empty(shape, dtype=_floating(dtype)))


def zeros(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of `shape`, all zero."""
    return _full("zeros", shape, 0, _floating(dtype), device)


def ones(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of `shape`, all one."""
    return _full("ones", shape, 1, _floating(dtype), device)


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of `shape`, all `fill_value`, which decides the dtype if none is given."""
    if dtype is None:
        dtype = dtypes.default_dtype() if isinstance(fill_value, float) else np.asarray(fill_value).dtype
    return _full("full", shape, fill_value, dtype, device)


def _like(x: Tensor, dtype: Any, device: Any) -> dict[str, Any]:
    return {"dtype": x.dtype if dtype is None else dtype, "device": x.device if device is None else device}


def empty_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of the shape, dtype and device of x, with whatever the memory happens to hold."""
    return empty(x.shape, **_like(x, dtype, device))


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of the shape, dtype and device of x, all zero."""
    return zeros(x.shape, **_like(x, dtype, device))


def ones_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of the shape, dtype and device of x, all one."""
    return ones(x.shape, **_like(x, dtype, device))


def full_like(x: Tensor, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Of the shape, dtype and device of x, all `fill_value`."""
    return full(x.shape, fill_value, **_like(x, dtype, device))


def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Numbers from `start` (0, where only one bound is given) up to but not including `stop`, `step` apart."""
    if stop is None:
        start, stop = 0, start
    if dtype is None and any(isinstance(v, float) for v in (start, stop, step)):
        dtype = dtypes.default_dtype()
    return _made(
        device,
        lambda launcher: cuda.arange(launcher, start, stop, step, dtype),
        lambda xp: xp.arange(start, stop, step, dtype=dtype),
    )


def linspace(
    start: Any, stop: Any, /, num: int, *, dtype: Any = None, device: Any = None, endpoint: bool = True
) -> Tensor:
    """`num` evenly spaced numbers from `start` to `stop`, which is included if `endpoint`."""
    dtype = _floating(dtype)
    return _made(
        device,
        lambda launcher: cuda.linspace(launcher, start, stop, num, dtype, endpoint),
        lambda xp: xp.linspace(start, stop, num, dtype=dtype, endpoint=endpoint),
    )


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Tensor:
    """A matrix with ones on its k-th diagonal and zeros elsewhere."""
    dtype = _floating(dtype)
    return _made(
        device,
        lambda launcher: cuda.eye(launcher, n_rows, n_rows if n_cols is None else n_cols, k, dtype),
        lambda xp: xp.eye(n_rows, n_cols, k=k, dtype=dtype),
    )


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> tuple[Tensor, ...]:
    """Coordinate arrays of the grid that one-dimensional arrays span; with "xy", the first two axes are exchanged."""
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: indexing must be "xy" or "ij", got {indexing!r}')
    places = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        places[:2] = [1, 0]
    shape = [0] * len(arrays)
    for place, a in zip(places, arrays):
        shape[place] = a.shape[0]
    grids = []
    for place, a in zip(places, arrays):
        line = [1] * len(arrays)
        line[place] = -1
        grids.append(broadcast_to(reshape(a, shape=tuple(line)), shape=tuple(shape)))
    return tuple(grids)
