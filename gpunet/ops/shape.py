"""The same elements otherwise arranged, joined, repeated, padded, converted or moved to another device."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gpunet.backends import Device, backend_of_type, get_backend
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops import index_kernels, launch
from gpunet.ops import shape_kernels as cuda
from gpunet.ops.op import op


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis`, an int, a tuple of ints or None for all, as a tuple of non-negative ints."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in ((axis,) if hasattr(axis, "__index__") else axis))


def axis_of(name: str, axis: int, ndim: int) -> int:
    """A non-negative axis.

    Raises:
        ShapeError: there is no such axis.
    """
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{name}: there is no axis {axis} in an array of {ndim} axes")
    return axis % ndim


@op(view=True)
def reshape(xp, x, *, shape, copy=None):
    """The elements, in C order, in another shape; one entry of `shape` may be -1, to be worked out.

    Args:
        x: any shape.
        shape: an int or a tuple.
        copy: True: never share memory with x; False: raise ValueError where that is not possible; None: if possible.
    """
    y = x.reshape((shape,) if isinstance(shape, int) else tuple(shape))
    if copy is None:
        return y
    shared = xp.may_share_memory(x, y)
    if not copy and not shared:
        raise ValueError("a copy is needed, and copy=False forbids it")
    return y.copy() if copy and shared else y


@reshape.vjp
def _(xp, g, _y, _x, *, shape, copy):
    return reshape(g, shape=_x.shape)


@op(view=True)
def permute_dims(xp, x, *, axes):
    """The axes in another order: axis i of the result is axis axes[i] of x."""
    return xp.permute_dims(x, tuple(axes))


@permute_dims.vjp
def _(xp, g, _y, _x, *, axes):
    inverse = [0] * len(axes)
    for i, a in enumerate(axes):
        inverse[a] = i
    return permute_dims(g, axes=tuple(inverse))


@op(view=True)
def matrix_transpose(xp, x):
    """The last two axes exchanged."""
    return xp.matrix_transpose(x)


@matrix_transpose.vjp
def _(xp, g, _y, _x):
    return matrix_transpose(g)


@op(view=True)
def moveaxis(xp, x, *, source, destination):
    """Axis (or axes) `source` moved to position `destination`, the others in their order."""
    return xp.moveaxis(x, source, destination)


@moveaxis.vjp
def _(xp, g, _y, _x, *, source, destination):
    return moveaxis(g, source=destination, destination=source)


@op(view=True)
def expand_dims(xp, x, *, axis):
    """With axes of length one inserted, so that they are at position(s) `axis` of the result.

    Raises:
        ShapeError: the result has no such axis, or one is named twice.
    """
    if hasattr(axis, "__index__"):
        return xp.expand_dims(x, axis=axis)
    ndim = x.ndim + len(axis)
    places = {axis_of("expand_dims", a, ndim) for a in axis}
    if len(places) < len(axis):
        raise ShapeError(f"expand_dims: an axis is named twice in {tuple(axis)}")
    lengths = iter(x.shape)
    return xp.reshape(x, tuple(1 if i in places else next(lengths) for i in range(ndim)))


@expand_dims.vjp
def _(xp, g, _y, _x, *, axis):
    return reshape(g, shape=_x.shape)


@op(view=True)
def squeeze(xp, x, *, axis):
    """Without the axes `axis`, each of length one."""
    for a in axes_of(axis, x.ndim):
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of shape {x.shape} is not of length one")
    return xp.squeeze(x, axis=axis)


@squeeze.vjp
def _(xp, g, _y, _x, *, axis):
    return reshape(g, shape=_x.shape)


@op(view=True)
def broadcast_to(xp, x, *, shape):
    """Repeated, without a copy, to a larger shape."""
    return xp.broadcast_to(x, tuple(shape))


@broadcast_to.vjp
def _(xp, g, _y, _x, *, shape):
    return g  # the tape sums it down to the shape of x


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that arrays of these shapes broadcast to.

    Raises:
        ShapeError: they do not broadcast together.
    """
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(f"broadcast_shapes: {', '.join(map(str, shapes))} do not broadcast together") from None


def broadcast_arrays(*arrays: Any) -> tuple[Any, ...]:
    """Arrays repeated, without a copy, to the shape that they broadcast to.

    Raises:
        ShapeError: they do not broadcast together.
    """
    shape = broadcast_shapes(*(a.shape for a in arrays))
    return tuple(broadcast_to(a, shape=shape) for a in arrays)


@op
def _concat(xp, *arrays, axis=0):
    if axis is None:
        return xp.concat([xp.reshape(a, (-1,)) for a in arrays], axis=0)
    return xp.concat(arrays, axis=axis)


@_concat.vjp
def _(xp, g, _y, *_arrays, axis):
    ndim = _arrays[0].ndim
    parts = []
    start = 0
    for a in _arrays:
        if axis is None:
            n = 1
            for length in a.shape:
                n *= length
            parts.append(reshape(g[start : start + n], shape=a.shape))
        else:
            n = a.shape[axis]
            parts.append(g[(slice(None),) * (axis % ndim) + (slice(start, start + n),)])
        start += n
    return tuple(parts)


def concat(arrays: Any, /, *, axis: int | None = 0) -> Any:
    """Arrays joined along an existing axis; axis=None joins them flattened."""
    return _concat(*_several("concat", arrays), axis=axis)


def stack(arrays: Any, /, *, axis: int = 0) -> Any:
    """Arrays of one shape joined along a new axis."""
    arrays = _several("stack", arrays)
    if not all(hasattr(a, "shape") for a in arrays):
        raise DTypeError(f"stack: expected Tensors or arrays, got {', '.join(type(a).__name__ for a in arrays)}")
    shapes = {tuple(a.shape) for a in arrays}
    if len(shapes) > 1:
        raise ShapeError(f"stack: the arrays must have one shape, got {', '.join(map(str, sorted(shapes)))}")
    return _concat(*(expand_dims(a, axis=axis) for a in arrays), axis=axis)


def _several(name: str, arrays: Any) -> list[Any]:
    arrays = list(arrays)
    if not arrays:
        raise ValueError(f"{name}: expected at least one array")
    return arrays


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
    """The slices of x along an axis, as a tuple."""
    axis = axis_of("unstack", axis, x.ndim)
    if 0 < x.shape[axis] <= _FEW:
        return _unstack(x, axis=axis)
    before = (slice(None),) * axis
    return tuple(x[(*before, i)] for i in range(x.shape[axis]))


_FEW = 8


@op(view=True)
def _unstack(xp, x, *, axis):
    """A few slices at once, whose gradients are joined instead of each being added to zeros."""
    before = (slice(None),) * axis
    return tuple(x[(*before, i, ...)] for i in range(x.shape[axis]))


@_unstack.vjp
def _(xp, gs, _ys, _x, *, axis):
    step = evenly_spaced(gs)
    if step:
        whole = np.lib.stride_tricks.as_strided(gs[0], (len(gs), *gs[0].shape), (step, *gs[0].strides))
        return np.moveaxis(whole, 0, axis)
    some = next(g for g in gs if g is not None)
    return stack([xp.zeros_like(some) if g is None else g for g in gs], axis=axis)


def evenly_spaced(arrays: Any) -> int:
    """How many bytes each of several NumPy arrays begins after the one before, where they are like slices of one array
    along an axis; else 0.
    """
    first, *others = arrays
    if type(first) is not np.ndarray or first.base is None:
        return 0
    for a in others:
        if a is None or a.base is not first.base or a.strides != first.strides:
            return 0
        if a.shape != first.shape or a.dtype != first.dtype:
            return 0
    at = [a.__array_interface__["data"][0] for a in arrays]
    steps = {after - before for before, after in pairwise(at)}
    return steps.pop() if len(steps) == 1 else 0


def split(x: Any, /, indices_or_sections: Any, axis: int = 0) -> tuple[Any, ...]:
    """x cut along an axis, into equal sections or before the given indices.

    Raises:
        ShapeError: the axis does not divide into that many sections.
    """
    axis = axis_of("split", axis, x.ndim)
    n = x.shape[axis]
    if isinstance(indices_or_sections, int):
        if indices_or_sections < 1 or n % indices_or_sections:
            raise ShapeError(f"split: an axis of length {n} does not divide into {indices_or_sections} equal sections")
        step = n // indices_or_sections
        cuts = list(range(0, n + 1, step)) if step else [0] * (indices_or_sections + 1)
    else:
        cuts = [0, *indices_or_sections, n]
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(a, b))] for a, b in pairwise(cuts))


@op(view=True)
def flip(xp, x, *, axis=None):
    """In reverse order along the given axes, or all."""
    return xp.flip(x, axis=axis)


@flip.vjp
def _(xp, g, _y, _x, *, axis):
    return flip(g, axis=axis)


@op
def roll(xp, x, *, shift, axis=None):
    """Moved by `shift` places along an axis; what leaves at one end enters at the other."""
    return xp.roll(x, shift, axis=axis)


@roll.vjp
def _(xp, g, _y, _x, *, shift, axis):
    back = tuple(-s for s in shift) if isinstance(shift, tuple) else -shift
    return roll(g, shift=back, axis=axis)


@op
def repeat(xp, x, *, repeats, axis=None):
    """Each element `repeats` times, along an axis, or of the flattened array."""
    return xp.repeat(x, repeats if isinstance(repeats, int) else [int(n) for n in repeats], axis=axis)


@repeat.vjp
def _(xp, g, _y, _x, *, repeats, axis):
    if isinstance(repeats, int):
        if axis is None:
            return reshape(xp.sum(reshape(g, shape=(-1, repeats)), axis=1), shape=_x.shape)
        axis %= _x.ndim
        grouped = (*_x.shape[: axis + 1], repeats, *_x.shape[axis + 1 :])
        return xp.sum(reshape(g, shape=grouped), axis=axis + 1)
    ends = [int(e) for e in repeats]
    pieces = []
    start = 0
    before = () if axis is None else (slice(None),) * (axis % _x.ndim)
    for n in ends:
        pieces.append(xp.sum(g[(*before, slice(start, start + n))], axis=len(before)))
        start += n
    return reshape(stack(pieces, axis=len(before)), shape=_x.shape)


@op
def tile(xp, x, *, repetitions):
    """x as a whole repeated along each axis."""
    return xp.tile(x, tuple(repetitions))


@tile.vjp
def _(xp, g, _y, _x, *, repetitions):
    ndim = max(len(repetitions), _x.ndim)
    times = (1,) * (ndim - len(repetitions)) + tuple(repetitions)
    lengths = (1,) * (ndim - _x.ndim) + tuple(_x.shape)
    pairs = [n for pair in zip(times, lengths) for n in pair]
    return reshape(xp.sum(reshape(g, shape=tuple(pairs)), axis=tuple(range(0, 2 * ndim, 2))), shape=_x.shape)


@op
def pad(xp, x, *, pad_width, mode="constant", constant_values=0):
    """With more elements around: NumPy's `pad`.

    Args:
        x: any shape.
        pad_width: for each axis, (how many before, how many after); one pair, or one int, stands for all axes.
        mode: "constant", "reflect", "edge" or "wrap".
        constant_values: the value of mode "constant".
    """
    widths = _pairs(pad_width, x.ndim)
    if mode == "constant":
        out = xp.full(tuple(n + a + b for n, (a, b) in zip(x.shape, widths)), constant_values, dtype=x.dtype)
        out[tuple(slice(a, a + n) for n, (a, b) in zip(x.shape, widths))] = x
        return out
    return xp.pad(x, widths, mode=mode)


@pad.vjp
def _(xp, g, _y, _x, *, pad_width, mode, constant_values):
    widths = _pairs(pad_width, _x.ndim)
    if mode == "constant":
        return g[tuple(slice(a, a + n) for n, (a, b) in zip(_x.shape, widths))]
    for axis, (n, (a, b)) in enumerate(zip(_x.shape, widths)):
        g = _fold(xp, g, axis, n, a, b, mode)
    return g


def _fold(xp: Any, g: Any, axis: int, n: int, a: int, b: int, mode: str) -> Any:
    """Along one axis, add the gradient of what was padded to the elements that it was copied from."""
    sources = np.pad(np.arange(n), (a, b), mode=mode)  # type: ignore[call-overload]
    selects = np.zeros((n, n + a + b))
    selects[sources, np.arange(n + a + b)] = 1.0
    moved = xp.tensordot(g, xp.asarray(selects, dtype=g.dtype, device=g.device), axes=((axis,), (1,)))
    return moveaxis(moved, source=-1, destination=axis)


def _pairs(width: Any, ndim: int) -> list[tuple[int, int]]:
    if isinstance(width, int):
        return [(width, width)] * ndim
    width = list(width)
    if len(width) == 2 and isinstance(width[0], int):
        return [(width[0], width[1])] * ndim
    if len(width) == 1:
        width *= ndim
    if len(width) != ndim:
        raise ShapeError(f"pad: expected a (before, after) pair for each of {ndim} axes, got {width}")
    return [(int(a), int(b)) for a, b in width]


@op
def tril(xp, x, *, k=0):
    """The lower triangle of each matrix, up to the k-th diagonal; zeros elsewhere."""
    return xp.tril(x, k=k)


@tril.vjp
def _(xp, g, _y, _x, *, k):
    return tril(g, k=k)


@op
def triu(xp, x, *, k=0):
    """The upper triangle of each matrix, from the k-th diagonal on; zeros elsewhere."""
    return xp.triu(x, k=k)


@triu.vjp
def _(xp, g, _y, _x, *, k):
    return triu(g, k=k)


@op
def astype(xp, x, *, dtype):
    """With elements of another data type.

    Raises:
        DTypeError: x is complex and dtype neither that nor bool.
    """
    if x.dtype.kind == "c" and np.dtype(dtype).kind not in "cb":
        raise DTypeError(f"astype: {x.dtype} does not become {np.dtype(dtype)} by itself; take real, imag or abs of it")
    return x.astype(dtype)


@astype.vjp
def _(xp, g, _y, _x, *, dtype):
    return g  # the tape casts it to the type of x


@op
def copy(xp, x):
    """The same values in memory of their own."""
    return x.copy()


@copy.vjp
def _(xp, g, _y, _x):
    return g


def transfer(x: Any, device: Device) -> Any:
    """The raw array `x` on another device, of this backend or of another."""
    backend, target = backend_of_type(type(x)), get_backend(device)
    if backend is target:
        return backend.transfer(x, device)
    return target.from_numpy(backend.to_numpy(x), device)


@op
def to_device(xp, x, *, device, source=None):
    """On another device."""
    return transfer(x, device)


@to_device.vjp
def _(xp, g, _y, _x, *, device, source):
    return to_device(g, device=source, source=device)


# --- on a GPU: what needs no other place in memory is a view there too


@reshape.kernel("copy")
def _(launcher, x, *, shape, copy):
    return cuda.reshape(launcher, x, shape, copy)


@_concat.kernel("copy")
def _(launcher, *arrays, axis):
    return cuda.concat(launcher, arrays, axis)


@roll.kernel("copy")
def _(launcher, x, *, shift, axis):
    return cuda.roll(launcher, x, shift, axis)


@repeat.kernel("copy")
def _(launcher, x, *, repeats, axis):
    return cuda.repeat(launcher, x, repeats, axis)


@tile.kernel("copy")
def _(launcher, x, *, repetitions):
    return cuda.tile(launcher, x, repetitions)


@pad.kernel("index")
def _(launcher, x, *, pad_width, mode, constant_values):
    return index_kernels.padded(launcher, x, _pairs(pad_width, x.ndim), mode, constant_values)


@tril.kernel("index")
def _(launcher, x, *, k):
    return index_kernels.triangle(launcher, x, k, upper=False)


@triu.kernel("index")
def _(launcher, x, *, k):
    return index_kernels.triangle(launcher, x, k, upper=True)


@astype.kernel("copy")
def _(launcher, x, *, dtype):
    return cuda.astype(launcher, x, dtype)


@copy.kernel("copy")
def _(launcher, x):
    return launch.copy(launcher, x)
