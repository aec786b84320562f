"""Convolution (cross-correlation, as every deep-learning library means it) in one, two or three dimensions.

The three ops of the family differentiate into each other: each is linear in both of its arguments, and the
derivative of any one is another. Shapes are channels-first, (N, C, *spatial); results lie channels-last in memory,
where a window's channels are together, and so is what comes of them elementwise, so conversion happens at a
network's edge only.

The references' method: gather the windows of a block of images as the rows of a matrix ("im2col"), multiply by the
weights as a matrix. A block's matrix fits in cache. The CPU's kernels (kernels/cpu/conv.cpp) make no such matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpunet.backends import backend_of_type, threads
from gpunet.errors import ShapeError
from gpunet.ops.op import op
from gpunet.ops.reduce import sum

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def output_size(n: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int) -> int:
    """How many windows of `kernel` elements, `dilation` apart, fit into n elements with padding, `stride` apart."""
    return (n + pad[0] + pad[1] - dilation * (kernel - 1) - 1) // stride + 1


def _is_plain(x: Any, weight: Any, bias: Any = None, **how: Any) -> bool:
    """Whether the CPU's kernels take these arrays."""
    return (
        x.dtype == weight.dtype == np.float32
        and x.ndim in (3, 4)
        and (bias is None or (bias.dtype == np.float32 and bias.ndim == 1))
        and how.get("groups", 1) <= 16
    )


@op
def conv(xp, x, weight, bias=None, *, stride, padding, dilation, groups=1):
    """y[n, o, p] = bias[o] + sum over c, k of x[n, c, p * stride + k * dilation - padding] * weight[o, c, k].

    Args:
        x: (N, C, *spatial).
        weight: (O, C / groups, *kernel).
        bias: (O,), or None.
        stride, dilation: one int for each spatial axis.
        padding: for each spatial axis, zeros (before, after).
        groups: the channels of x and of the result fall into this many groups, each of which sees only its own.

    Returns:
        (N, O, *output).

    Raises:
        ShapeError: shapes that do not fit each other, or a kernel larger than the padded input.
    """
    out = _check(x.shape, weight.shape, stride, padding, dilation, groups)
    outputs = weight.shape[0]
    if bias is not None and bias.shape != (outputs,):
        raise ShapeError(f"conv: expected a bias of shape {(outputs,)}, got {tuple(bias.shape)}")
    y = xp.empty((x.shape[0], *out, outputs), dtype=xp.result_type(x, weight))
    matrices = _weight_matrices(xp, weight, groups)

    def work(blocks: Sequence[slice]) -> None:
        for images in blocks:
            columns = _columns(xp, x[images], weight.shape[2:], stride, padding, dilation, out)
            target = y[images].reshape(-1, outputs)
            if groups > 1:
                target[...] = _from_groups(xp, xp.matmul(_by_group(columns, groups, weight.shape), matrices))
            else:
                xp.matmul(columns, matrices[0], out=target)
            if bias is not None:
                target += bias

    _spread(work, x, weight.shape, out)
    return xp.moveaxis(y, -1, 1)


@conv.kernel("conv", platform="cpu", when=_is_plain)
def _(native, x, weight, bias, *, stride, padding, dilation, groups):
    return _forward(native, x, weight, bias, False, stride, padding, dilation, groups)


@conv.vjp
def _(xp, g, _y, x, weight, _bias, *, stride, padding, dilation, groups):
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (
        lambda: conv_input_grad(g, weight, shape=x.shape, **how),
        lambda: conv_weight_grad(x, g, shape=weight.shape, **how),
        lambda: sum(g, axis=(0, *range(2, g.ndim))),
    )


@op
def conv_input_grad(xp, g, weight, *, shape, stride, padding, dilation, groups):
    """The gradient of a convolution with respect to its input, of `shape`; also the transposed convolution of g.

    Args:
        g: (N, O, *output), the gradient of the result.
        weight: (O, C / groups, *kernel).
        shape: (N, C, *spatial) of the input; the others as in `conv`.
    """
    kernel = weight.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if all(s == 1 for s in stride) and all(p <= r and q <= r for (p, q), r in zip(padding, reach)):
        # With stride 1 it is a convolution of g with the kernel turned round and input and output channels exchanged.
        turned = xp.flip(weight, axis=tuple(range(2, weight.ndim)))
        parts = turned.reshape(groups, -1, *weight.shape[1:])
        swapped = xp.moveaxis(parts, 2, 1).reshape(-1, weight.shape[0] // groups, *kernel)
        around = tuple((r - p, r - q) for (p, q), r in zip(padding, reach))
        return conv(g, swapped, None, stride=stride, padding=around, dilation=dilation, groups=groups)
    n, channels, *spatial = shape
    padded = [length + p + q for length, (p, q) in zip(spatial, padding)]
    out = xp.zeros((n, *padded, channels), dtype=xp.result_type(g, weight))
    matrices = _weight_matrices(xp, weight, groups)
    transposed = xp.matrix_transpose(matrices)
    size = g.shape[2:]
    last = xp.moveaxis(g, 1, -1)

    def work(blocks: Sequence[slice]) -> None:
        for images in blocks:
            rows = last[images].reshape(-1, g.shape[1])
            if groups > 1:
                rows = xp.moveaxis(rows.reshape(len(rows), groups, -1), 1, 0)
                columns = xp.matmul(rows, transposed).reshape(groups, -1, *size, *kernel, weight.shape[1])
                columns = xp.moveaxis(columns, 0, -2)
                columns = columns.reshape(*columns.shape[:-2], channels)
            else:
                columns = xp.matmul(rows, transposed[0]).reshape(-1, *size, *kernel, channels)
            target = out[images]
            for k in product(*map(range, kernel)):
                target[(slice(None), *_window(k, stride, dilation, size))] += columns[(..., *k, slice(None))]

    _spread(work, g, weight.shape, size)
    inside = tuple(slice(p, p + length) for length, (p, _q) in zip(spatial, padding))
    return xp.moveaxis(out[(slice(None), *inside)], -1, 1)


@conv_input_grad.kernel("conv", platform="cpu", when=lambda g, weight, **how: _is_plain(g, weight))
def _(native, g, weight, *, shape, stride, padding, dilation, groups):
    kernel = weight.shape[2:]
    _check(shape, weight.shape, stride, padding, dilation, groups)
    around = tuple((d * (k - 1) - p, d * (k - 1) - q) for d, k, (p, q) in zip(dilation, kernel, padding))
    flip = all(s == 1 for s in stride) and min(map(min, around)) >= 0 and not _is_small(g.shape, shape[2:])
    packed = _packed(native, weight, groups, turned=True, flip=flip)
    bias = np.zeros((groups, packed.shape[1], packed.shape[4]), np.float32)
    out = np.empty((shape[0], *shape[2:], shape[1]), np.float32)
    elements = g.size * prod(weight.shape[1:])
    if flip:  # with stride 1, a convolution of g
        about = _geometry(g.shape[1:], shape[1:], kernel, stride, around, dilation, groups)
        lifted = _images(g)

        def work(start: int, stop: int) -> None:
            native.conv_forward(lifted, packed, bias, out, about, False, start, stop)
    else:
        about = _geometry(shape[1:], g.shape[1:], kernel, stride, padding, dilation, groups)
        dense = _channels_last(g)

        def work(start: int, stop: int) -> None:
            native.conv_gather(dense, packed, bias, out, about, False, True, start, stop)

    threads.split(shape[0], work, elements)
    return np.moveaxis(out, -1, 1)


@conv_input_grad.vjp
def _(xp, gg, _y, g, weight, *, shape, stride, padding, dilation, groups):
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (
        lambda: conv(gg, weight, None, **how),
        lambda: conv_weight_grad(gg, g, shape=weight.shape, **how),
    )


@op
def conv_weight_grad(xp, x, g, *, shape, stride, padding, dilation, groups):
    """The gradient of a convolution with respect to its weight, of `shape`.

    Args:
        x: (N, C, *spatial), the input.
        g: (N, O, *output), the gradient of the result.
        shape: (O, C / groups, *kernel) of the weight; the others as in `conv`.
    """
    outputs, channels, *kernel = shape
    size = g.shape[2:]
    last = xp.moveaxis(g, 1, -1)

    def work(blocks: Sequence[slice]) -> Any:
        total = xp.zeros((groups, prod(kernel) * channels, outputs // groups), dtype=xp.result_type(x, g))
        for images in blocks:
            columns = _columns(xp, x[images], tuple(kernel), stride, padding, dilation, size)
            rows = last[images].reshape(-1, outputs)
            if groups > 1:
                columns = _by_group(columns, groups, shape)
                rows = xp.moveaxis(rows.reshape(len(rows), groups, -1), 1, 0)
                total += xp.matmul(xp.matrix_transpose(columns), rows)
            else:
                total[0] += xp.matmul(columns.T, rows)
        return total

    total, *others = _spread(work, x, shape, size)
    for other in others:
        total += other
    total = total.reshape(groups, *kernel, channels, outputs // groups)
    return xp.moveaxis(xp.moveaxis(total, -1, 1), -1, 2).reshape(shape)


@conv_weight_grad.kernel("conv", platform="cpu", when=lambda x, g, **how: _is_plain(x, g))
def _(native, x, g, *, shape, stride, padding, dilation, groups):
    outputs, channels, *kernel = shape
    about = _geometry(x.shape[1:], g.shape[1:], tuple(kernel), stride, padding, dilation, groups)
    small = _is_small(x.shape, g.shape[2:])
    source = _channels_last(x) if small else _images(x)
    rows = _channels_last(g)
    lanes = native.conv_lanes(outputs // groups)
    lanes *= -(-(outputs // groups) // lanes)

    def work(images: Sequence[int]) -> Any:
        sums = np.zeros((groups, prod(kernel), channels, lanes), np.float32)
        native.conv_weight_sums(source, rows, sums, about, small, images[0], images[-1] + 1)
        return sums

    if not x.shape[0]:
        return np.zeros(shape, np.float32)
    images = range(x.shape[0])
    total, *others = threads.spread(work, images) if g.size * prod(shape[1:]) > _SPREAD else [work(images)]
    for other in others:
        total += other
    total = total[..., : outputs // groups].reshape(groups, *kernel, channels, outputs // groups)
    grad = np.moveaxis(np.moveaxis(total, -1, 1), -1, 2)  # (groups, O / groups, C / groups, *kernel)
    return grad[0] if groups == 1 else grad.reshape(shape)


@conv_weight_grad.vjp
def _(xp, gg, _y, x, g, *, shape, stride, padding, dilation, groups):
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (
        lambda: conv_input_grad(g, gg, shape=x.shape, **how),
        lambda: conv(x, gg, None, **how),
    )


def _check(x: Ints, weight: Ints, stride: Ints, padding: Pairs, dilation: Ints, groups: int) -> Ints:
    """The spatial size of the result.

    Raises:
        ShapeError: what does not fit, and how it should be.
    """
    if len(x) != len(weight):
        raise ShapeError(
            f"conv: a weight of shape {tuple(weight)} takes an input of {len(weight)} axes, (N, C, *spatial), "
            f"got shape {tuple(x)}"
        )
    if groups < 1 or weight[0] % groups:
        raise ShapeError(f"conv: {weight[0]} output channels do not divide into {groups} groups")
    if x[1] != weight[1] * groups:
        raise ShapeError(
            f"conv: a weight of shape {tuple(weight)} with {groups} group(s) takes {weight[1] * groups} input "
            f"channels, got {x[1]} in an input of shape {tuple(x)}"
        )
    if min(stride) < 1 or min(dilation) < 1:
        raise ShapeError(f"conv: stride {stride} and dilation {dilation} must be positive")
    out = tuple(map(output_size, x[2:], weight[2:], stride, padding, dilation))
    if min(out) < 1:
        raise ShapeError(
            f"conv: the kernel {tuple(weight[2:])} with dilation {dilation} is larger than the padded input: "
            f"shape {tuple(x)}, padding {padding}"
        )
    return out


def _spread(work: Callable[[Sequence[slice]], Any], x: Any, weight_shape: Ints, out: Ints) -> list[Any]:
    """`work` done on blocks of the first axis of x, such that the window matrix of each fits into the workspace."""
    backend = backend_of_type(type(x))
    row = x.dtype.itemsize * prod(weight_shape[1:]) * max(1, prod(out))
    step = max(1, backend.workspace // row)
    return backend.spread(work, [slice(i, i + step) for i in range(0, x.shape[0], step)])


def _window(k: Ints, stride: Ints, dilation: Ints, out: Ints) -> tuple[slice, ...]:
    """Where in a padded image the element k of every window lies."""
    return tuple(slice(i * d, i * d + s * (n - 1) + 1, s) for i, s, d, n in zip(k, stride, dilation, out))


def _columns(xp: Any, x: Any, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints, out: Ints) -> Any:
    """The windows of the images x (N, C, *spatial) as rows: (N * prod(out), prod(kernel) * C).

    With few channels, the copies would be of a few elements each: then the matrix is gathered transposed, where the
    copies run along the images' rows.
    """
    n, channels, *spatial = x.shape
    few = channels < 4
    padded = [length + p + q for length, (p, q) in zip(spatial, padding)]
    inside = tuple(slice(p, p + length) for length, (p, _q) in zip(spatial, padding))
    if few:
        source = xp.moveaxis(x, 1, 0)
        if any(map(any, padding)):
            source, image = xp.zeros((channels, n, *padded), dtype=x.dtype), source
            source[(slice(None), slice(None), *inside)] = image
        columns = xp.empty((*kernel, channels, n, *out), dtype=x.dtype)
        for k in product(*map(range, kernel)):
            columns[k] = source[(slice(None), slice(None), *_window(k, stride, dilation, out))]
        return columns.reshape(prod(kernel) * channels, n * prod(out)).T
    source = xp.moveaxis(x, 1, -1)
    if any(map(any, padding)):
        source, image = xp.zeros((n, *padded, channels), dtype=x.dtype), source
        source[(slice(None), *inside)] = image
    columns = xp.empty((n, *out, *kernel, channels), dtype=x.dtype)
    for k in product(*map(range, kernel)):
        columns[(..., *k, slice(None))] = source[(slice(None), *_window(k, stride, dilation, out))]
    return columns.reshape(n * prod(out), prod(kernel) * channels)


def _weight_matrices(xp: Any, weight: Any, groups: int) -> Any:
    """The weight (O, C / groups, *kernel) as one matrix (prod(kernel) * C / groups, O / groups) for each group."""
    parts = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    last = xp.moveaxis(xp.moveaxis(parts, 1, -1), 1, -2)  # (groups, *kernel, C / groups, O / groups)
    return last.reshape(groups, -1, weight.shape[0] // groups)


def _by_group(columns: Any, groups: int, weight_shape: Ints) -> Any:
    """The window matrix (rows, prod(kernel) * C) as one for each group: (groups, rows, prod(kernel) * C / groups)."""
    split = columns.reshape(len(columns), prod(weight_shape[2:]), groups, weight_shape[1])
    return split.transpose(2, 0, 1, 3).reshape(groups, len(columns), -1)


def _from_groups(xp: Any, parts: Any) -> Any:
    """(groups, rows, O / groups) side by side: (rows, O)."""
    return xp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1)


# --- the CPU's kernels

_SPREAD = 8_000_000  # multiply-adds from which on several threads are quicker


def _forward(
    native: Any,
    x: Any,
    weight: Any,
    bias: Any,
    relu: bool,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
    groups: int,
) -> Any:
    """`conv`, and the larger of the result and zero if `relu`."""
    out = _check(x.shape, weight.shape, stride, padding, dilation, groups)
    outputs = weight.shape[0]
    if bias is not None and bias.shape != (outputs,):
        raise ShapeError(f"conv: expected a bias of shape {(outputs,)}, got {tuple(bias.shape)}")
    packed = _packed(native, weight, groups)
    starts = np.zeros((groups, packed.shape[1] * packed.shape[4]), np.float32)
    if bias is not None:
        starts[:, : outputs // groups] = bias.reshape(groups, -1)
    y = np.empty((x.shape[0], *out, outputs), np.float32)
    about = _geometry(x.shape[1:], (outputs, *out), weight.shape[2:], stride, padding, dilation, groups)
    if _is_small(x.shape, out):
        source = _channels_last(x)

        def work(start: int, stop: int) -> None:
            native.conv_gather(source, packed, starts, y, about, relu, False, start, stop)
    else:
        source = _images(x)

        def work(start: int, stop: int) -> None:
            native.conv_forward(source, packed, starts, y, about, relu, start, stop)

    threads.split(x.shape[0], work, y.size * prod(weight.shape[1:]))
    return np.moveaxis(y, -1, 1)


def _is_small(x: Ints, out: Ints) -> bool:
    """Whether results are computed a pixel of several images at a time, instead of along the pixels of each image."""
    return x[0] >= 6 and prod(out) <= 64


def _packed(native: Any, weight: Any, groups: int, turned: bool = False, flip: bool = False) -> Any:
    """The weight (O, C / groups, *kernel) as kernels/cpu/conv.cpp wants it."""
    outs, ins = weight.shape[0] // groups, weight.shape[1]
    if turned:
        outs, ins = ins, outs
    lanes = native.conv_lanes(outs)
    packed = np.empty((groups, -(-outs // lanes), prod(weight.shape[2:]), ins, lanes), np.float32)
    native.conv_pack(weight if weight.ndim == 4 else weight[:, :, None], packed, groups, turned, flip)
    return packed


def _images(x: Any) -> Any:
    """x (N, C, *spatial) with two spatial axes."""
    return x if x.ndim == 4 else x[:, :, None]


def _channels_last(x: Any) -> Any:
    """x (N, C, *spatial) as a dense array (N, *spatial, C)."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


@lru_cache(maxsize=1024)
def _geometry(
    x: Ints, out: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints, groups: int
) -> np.ndarray:
    """A Geometry for kernels/cpu/conv.cpp, from (C, *spatial) and (O, *output); one spatial axis becomes the second."""

    def two(values: Ints, filler: int = 1) -> Ints:
        return values if len(values) == 2 else (filler, *values)

    before = tuple(p for p, _q in padding)
    numbers = (x[0], *two(x[1:]), out[0], *two(out[1:]), *two(kernel), *two(stride), *two(before, 0), *two(dilation))
    return np.array([*numbers, groups], np.int64)
