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
from functools import cache, lru_cache, partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import backend_of_type, threads
from gpunet.backends.native import library
from gpunet.errors import ShapeError
from gpunet.ops import conv_kernels
from gpunet.ops.elementwise import lying_as, relu
from gpunet.ops.op import op
from gpunet.ops.pool import max_offsets, max_pool, max_with_offsets, unpool_relu
from gpunet.ops.reduce import sum

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

# Pooling by 2 x 2 that do not overlap.
_PAIRS: dict[str, Ints] = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}


def output_size(n: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int) -> int:
    """How many windows of `kernel` elements, `dilation` apart, fit into n elements with padding, `stride` apart."""
    return (n + pad[0] + pad[1] - dilation * (kernel - 1) - 1) // stride + 1


def _is_plain(x: Any, weight: Any, bias: Any = None, **how: Any) -> bool:
    """Whether the CPU's kernels take these arrays."""
    return (
        x.dtype == weight.dtype == np.float32
        and x.ndim in (3, 4)
        and (bias is None or (bias.dtype == np.float32 and bias.ndim == 1))
    )


def _is_depthwise(x: Ints, out: Ints, groups: int) -> bool:
    """Whether each channel makes one of the result, for shapes (N, C, *spatial)."""
    return 1 < groups == x[1] == out[1]


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
    _check_bias(bias, outputs)
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


@conv.kernel("depthwise", platform="cpu", when=_is_plain)
def _(native, x, weight, bias, *, stride, padding, dilation, groups):
    return _depthwise(native, x, weight, bias, False, stride, padding, dilation, groups)


@conv.kernel("conv", platform="cpu", when=_is_plain)
def _(native, x, weight, bias, *, stride, padding, dilation, groups):
    return _forward(native, x, weight, bias, False, False, stride, padding, dilation, groups)[0]


@conv.kernel("conv")
def _(launcher, x, weight, bias, *, stride, padding, dilation, groups):
    about = _about(x.shape, weight.shape, bias, stride, padding, dilation, groups)
    return conv_kernels.forward(launcher, about, x, weight, bias)


@conv.vjp
def _(xp, g, _y, x, weight, _bias, *, stride, padding, dilation, groups):
    return _gradients(
        lambda: g, x, weight, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    )


@op
def conv_relu(xp, x, weight, bias=None, *, stride, padding, dilation, groups=1):
    """The larger of `conv` and zero, in one pass."""
    return relu(conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups))


@conv_relu.kernel("depthwise", platform="cpu", when=_is_plain)
def _(native, x, weight, bias, *, stride, padding, dilation, groups):
    return _depthwise(native, x, weight, bias, True, stride, padding, dilation, groups)


@conv_relu.kernel("conv", platform="cpu", when=_is_plain)
def _(native, x, weight, bias, *, stride, padding, dilation, groups):
    return _forward(native, x, weight, bias, True, False, stride, padding, dilation, groups)[0]


@conv_relu.kernel("conv")
def _(launcher, x, weight, bias, *, stride, padding, dilation, groups):
    about = _about(x.shape, weight.shape, bias, stride, padding, dilation, groups)
    return conv_kernels.forward(launcher, about, x, weight, bias, activation="relu")


@conv_relu.vjp
def _(xp, g, y, x, weight, _bias, *, stride, padding, dilation, groups):
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _gradients(cache(lambda: relu.derivative(xp, g, y, y)), x, weight, how)


@op
def conv_relu_pool(xp, x, weight, bias=None, *, stride, padding, dilation, groups=1):
    """`conv`, then the larger of that and zero, then the maximum of each 2 x 2 neighbours: a block of many networks.

    Args:
        x, weight, bias, stride, padding, dilation, groups: as of `conv`, with two spatial axes.

    Returns:
        (N, O, H', W'), a last odd row or column left out, and for the derivative which of its four neighbours each
        maximum is: uint8, as `max_offsets` gives them.
    """
    z = relu(conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups))
    y = max_pool(z, **_PAIRS, ceil_mode=False)
    return y, max_offsets(z, y, **_PAIRS)


@conv_relu_pool.kernel("conv", platform="cpu", when=_is_plain)
def _(native, x, weight, bias, *, stride, padding, dilation, groups):
    if _is_depthwise(x.shape, weight.shape[:1] * 2, groups):
        return NotImplemented
    return _forward(native, x, weight, bias, True, True, stride, padding, dilation, groups)


@conv_relu_pool.kernel("conv")
def _(launcher, x, weight, bias, *, stride, padding, dilation, groups):
    about = _about(x.shape, weight.shape, bias, stride, padding, dilation, groups)
    z = conv_kernels.forward(launcher, about, x, weight, bias, activation="relu")
    return z if z is NotImplemented else max_with_offsets(z, **_PAIRS, ceil_mode=False)


@conv_relu_pool.vjp
def _(xp, gs, ys, x, weight, _bias, *, stride, padding, dilation, groups):
    y, offsets = ys
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    @cache
    def inner() -> Any:
        size = _output(x.shape, weight.shape, stride, padding, dilation)
        return unpool_relu(gs[0], y, offsets, shape=(*y.shape[:2], *size), **_PAIRS)

    return _gradients(inner, x, weight, how)


def _gradients(inner: Callable[[], Any], x: Any, weight: Any, how: dict[str, Any]) -> tuple[Callable[[], Any], ...]:
    """The derivatives with respect to x, weight and bias, given the gradient of the convolution's own result."""
    return (
        lambda: conv_input_grad(inner(), weight, shape=x.shape, **how),
        lambda: conv_weight_grad(x, inner(), shape=weight.shape, **how),
        lambda: sum(inner(), axis=(0, *range(2, x.ndim))),
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


@conv_input_grad.kernel("depthwise", platform="cpu", when=lambda g, weight, **how: _is_plain(g, weight))
def _(native, g, weight, *, shape, stride, padding, dilation, groups):
    if not _is_depthwise(shape, g.shape, groups):
        return NotImplemented
    _check(shape, weight.shape, stride, padding, dilation, groups)
    about = _geometry(shape[1:], g.shape[1:], weight.shape[2:], stride, padding, dilation, groups)
    y = np.empty((shape[0], *shape[2:], shape[1]), np.float32)
    source, weights = _channels_last(g), _depthwise_weights(weight)
    work = partial(native.depthwise_forward, source, weights, None, y, about, False, True)
    threads.split(shape[0], work, g.size * len(weights) // 4)
    return _channels_first(y)


@conv_input_grad.kernel("conv", platform="cpu", when=lambda g, weight, **how: _is_plain(g, weight))
def _(native, g, weight, *, shape, stride, padding, dilation, groups):
    kernel = weight.shape[2:]
    _check(shape, weight.shape, stride, padding, dilation, groups)
    around = tuple((d * (k - 1) - p, d * (k - 1) - q) for d, k, (p, q) in zip(dilation, kernel, padding))
    if all(s == 1 for s in stride) and min(map(min, around)) >= 0:  # a convolution of g
        plan = _plan(g.shape, (shape[1], g.shape[1] // groups, *kernel), stride, around, dilation, groups)
        packed = _packed(native, weight, groups, turned=True, flip=True)
        return _convolve(native, plan, g, packed, None, groups)[0]
    packed = _packed(native, weight, groups, turned=True)
    starts = np.zeros((groups, packed.shape[1] * packed.shape[4]), np.float32)
    out = np.empty((shape[0], *shape[2:], shape[1]), np.float32)
    about = _geometry(shape[1:], g.shape[1:], kernel, stride, padding, dilation, groups)
    source = _channels_last(g)
    work = partial(native.conv_gather, source, packed, starts, out, None, about, False, True)
    threads.split(shape[0], work, g.size * prod(weight.shape[1:]) // 16)
    return _channels_first(out)


@conv_input_grad.kernel("conv")
def _(launcher, g, weight, *, shape, stride, padding, dilation, groups):
    about = _about(shape, weight.shape, None, stride, padding, dilation, groups)
    return conv_kernels.input_grad(launcher, about, g, weight)


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


@conv_weight_grad.kernel("depthwise", platform="cpu", when=lambda x, g, **how: _is_plain(x, g))
def _(native, x, g, *, shape, stride, padding, dilation, groups):
    if not _is_depthwise(x.shape, g.shape, groups):
        return NotImplemented
    _outputs, _one, *kernel = shape
    about = _geometry(x.shape[1:], g.shape[1:], tuple(kernel), stride, padding, dilation, groups)
    source, gradient = _channels_last(x), _channels_last(g)
    total = _total(
        (prod(kernel), groups),
        x.shape[0],
        g.size * prod(kernel) // 4,
        lambda sums: partial(native.depthwise_weight_sums, source, gradient, sums, about),
    ).reshape(*kernel, 1, groups)
    return total.transpose(total.ndim - 1, total.ndim - 2, *range(len(kernel)))


@conv_weight_grad.kernel("conv", platform="cpu", when=lambda x, g, **how: _is_plain(x, g))
def _(native, x, g, *, shape, stride, padding, dilation, groups):
    outputs, channels, *kernel = shape
    about = _geometry(x.shape[1:], g.shape[1:], tuple(kernel), stride, padding, dilation, groups)
    rows = _channels_last(g)
    elements = g.size * prod(shape[1:]) // 16
    if not x.shape[0]:
        return np.zeros(shape, np.float32)
    if _is_winograd(shape, g.shape[2:], stride, dilation, groups):
        winograd, source = library("winograd"), _source(x)
        sums = _total(
            (16, channels, outputs),
            x.shape[0] * winograd.winograd_tiles(about, False),
            elements,
            lambda sums: partial(winograd.winograd_weight_sums, source, rows, sums, about),
        )
        total = np.empty((1, 9, channels, outputs), np.float32)
        winograd.winograd_weight_grad(sums, total)
    else:
        small = _is_small(x.shape, g.shape[2:])
        source = _channels_last(x) if small else _source(x)
        lanes = _lanes(outputs // groups)
        lanes *= -(-(outputs // groups) // lanes)
        total = _total(
            (groups, prod(kernel), channels, lanes),
            x.shape[0],
            elements,
            lambda sums: partial(native.conv_weight_sums, source, rows, sums, about, small),
        )
    total = total[..., : outputs // groups].transpose(1, 2, 0, 3).reshape(*kernel, channels, outputs)
    return total.transpose(total.ndim - 1, total.ndim - 2, *range(len(kernel)))  # which lies as a layer's weight does


@conv_weight_grad.kernel("conv")
def _(launcher, x, g, *, shape, stride, padding, dilation, groups):
    about = _about(x.shape, shape, None, stride, padding, dilation, groups)
    return conv_kernels.weight_grad(launcher, about, x, g)


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
    out = _output(x, weight, stride, padding, dilation)
    if min(out) < 1:
        raise ShapeError(
            f"conv: the kernel {tuple(weight[2:])} with dilation {dilation} is larger than the padded input: "
            f"shape {tuple(x)}, padding {padding}"
        )
    return out


def _check_bias(bias: Any, outputs: int) -> None:
    """Raises ShapeError if there is a bias and it is not one for so many channels."""
    if bias is not None and bias.shape != (outputs,):
        raise ShapeError(f"conv: expected a bias of shape {(outputs,)}, got {tuple(bias.shape)}")


def _output(x: Ints, weight: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> Ints:
    return tuple(map(output_size, x[2:], weight[2:], stride, padding, dilation))


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


# --- CUDA's kernels


def _about(
    x: Ints, weight: Ints, bias: Any, stride: Ints, padding: Pairs, dilation: Ints, groups: int
) -> conv_kernels.Geometry | None:
    """What the launching side of CUDA's kernels wants to know; errors as of `conv`."""
    out = _check(x, weight, stride, padding, dilation, groups)
    _check_bias(bias, weight[0])
    y = (x[0], weight[0], *out)
    return conv_kernels.geometry(tuple(x), y, tuple(weight), tuple(stride), tuple(padding), tuple(dilation), groups)


# --- the CPU's kernels


def _total(shape: Ints, n: int, elements: int, add: Callable[[Any], partial[None]]) -> Any:
    """Sums of `shape` over n things: those of one range for each thread, by the kernel `add(sums (parts, *shape))`."""
    parts = max(1, min(n, threads.parts(elements)))
    sums = np.zeros((parts, *shape), np.float32)
    threads.split(parts, add(sums), elements)
    total = sums[0]
    for other in sums[1:]:
        total += other
    return total


class _Plan(NamedTuple):
    """How a convolution is computed, which depends on shapes alone."""

    algorithm: str  # "winograd", "gather" or "forward", after the kernels of these names
    final: Ints  # shape of the result in memory: (N, *spatial, O)
    geometry: np.ndarray
    bands: int  # that "forward" cuts an image into
    ranges: int  # of what is divided among threads: images, parts of images, or tiles
    work: int  # multiplications, of which 16 take about as long as a number elsewhere


@lru_cache(maxsize=1024)
def _plan(
    x: Ints, weight: Ints, stride: Ints, padding: Pairs, dilation: Ints, groups: int, pooled: bool = False
) -> _Plan:
    """The plan for an input and a weight of these shapes; errors as of `conv`."""
    n, outputs, kernel = x[0], weight[0], weight[2:]
    out = _check(x, weight, stride, padding, dilation, groups)
    final = tuple(size // 2 for size in out) if pooled else out
    if min(final) < 1:
        raise ShapeError(f"conv: a result of shape {(n, outputs, *out)} is too small to be pooled by (2, 2)")
    geometry = _geometry(x[1:], (outputs, *out), kernel, stride, padding, dilation, groups)
    work = n * prod(out) * prod(weight)
    algorithm, bands, ranges = "gather", 1, n
    if not _is_small(x, out):
        outs = outputs // groups
        algorithm, blocks = "forward", groups * -(-outs // _lanes(outs))
        if n == blocks == 1:
            bands = min(4, final[0])
        ranges = n * bands * blocks
    if n * prod(out) >= 256 and _is_winograd(weight, out, stride, dilation, groups):
        algorithm, ranges = "winograd", n * library("winograd").winograd_tiles(geometry, pooled)
    return _Plan(algorithm, (n, *final, outputs), geometry, bands, ranges, work)


def _forward(
    native: Any, x: Any, weight: Any, bias: Any, relu: bool, pooled: bool, stride: Ints, padding: Pairs, dilation: Ints,
    groups: int,
) -> tuple[Any, Any]:  # fmt: skip
    """`conv`, and what `conv_relu_pool` does with it where `relu` and `pooled` are set; the offsets, or None."""
    plan = _plan(x.shape, weight.shape, stride, padding, dilation, groups, pooled)
    _check_bias(bias, weight.shape[0])
    packed = _packed(native, weight, groups, few=x.shape[0] == 1 and plan.work <= 64 * weight.size)
    return _convolve(native, plan, x, packed, bias, groups, relu, pooled)


def _depthwise(
    native: Any, x: Any, weight: Any, bias: Any, relu: bool, stride: Ints, padding: Pairs, dilation: Ints, groups: int
) -> Any:
    """As `_forward`, where kernels/cpu/depthwise.cpp can do it."""
    if not _is_depthwise(x.shape, weight.shape[:1] * 2, groups):
        return NotImplemented
    plan = _plan(x.shape, weight.shape, stride, padding, dilation, groups)
    _check_bias(bias, weight.shape[0])
    y = np.empty(plan.final, np.float32)
    source, weights = _channels_last(x), _depthwise_weights(weight)
    starts = None if bias is None else np.ascontiguousarray(bias)
    work = partial(native.depthwise_forward, source, weights, starts, y, plan.geometry, relu, False)
    threads.split(x.shape[0], work, plan.work // 4)
    return _channels_first(y)


def _depthwise_weights(weight: Any) -> Any:
    """The weight (C, 1, *kernel) as a dense array (taps, C)."""
    last = _images(weight).transpose(2, 3, 1, 0)
    return np.ascontiguousarray(last).reshape(-1, weight.shape[0])


def _convolve(
    native: Any,
    plan: _Plan,
    x: Any,
    packed: Any,
    bias: Any,
    groups: int,
    relu: bool = False,
    pooled: bool = False,
) -> tuple[Any, Any]:
    """The convolution of x with packed weights, pooled as in `conv_relu_pool` if so wanted; and the offsets, or
    None."""
    outputs = plan.final[-1]
    starts, lanes = bias, packed.shape[1] * packed.shape[4]
    if bias is None:
        starts = np.zeros(groups * lanes, np.float32)
    elif groups * lanes != outputs or not bias.flags.c_contiguous:
        starts = np.zeros((groups, lanes), np.float32)
        starts[:, : outputs // groups] = bias.reshape(groups, -1)
    y = np.empty(plan.final, np.float32)
    offsets = np.empty(plan.final, np.uint8) if pooled else None
    geometry = plan.geometry
    if plan.algorithm == "winograd":
        winograd, source = library("winograd"), _source(x)
        transformed = np.empty((16, packed.shape[1], *packed.shape[3:]), np.float32)
        winograd.winograd_weights(packed, transformed)
        work = partial(winograd.winograd_forward, source, transformed, starts, y, offsets, geometry, relu)
    elif plan.algorithm == "gather":
        source = _channels_last(x)
        work = partial(native.conv_gather, source, packed, starts, y, offsets, geometry, relu, False)
    else:
        source = _source(x)
        work = partial(native.conv_forward, source, packed, starts, y, offsets, geometry, relu, plan.bands)
    threads.split(plan.ranges, work, plan.work // 16)
    return _channels_first(y), None if offsets is None else _channels_first(offsets)


def _is_winograd(weight: Ints, out: Ints, stride: Ints, dilation: Ints, groups: int) -> bool:
    """Whether to compute by the algorithm of kernels/cpu/winograd.cpp."""
    outputs, channels, *kernel = weight
    width = _lanes(1)
    return (
        kernel == [3, 3]
        and stride == dilation == (1, 1)
        and groups == 1
        and min(out) >= 4
        and not channels % width
        and not outputs % width
        and library("winograd").usable()
    )


@cache
def _lanes(outputs: int) -> int:
    """How many output channels, of so many, a block of weights has."""
    return library("conv").conv_lanes(outputs)


def _is_small(x: Ints, out: Ints) -> bool:
    """Whether results are computed a pixel of several images at a time, instead of along the pixels of each image."""
    return x[0] >= 6 and prod(out) <= 64


def _packed(native: Any, weight: Any, groups: int, turned: bool = False, flip: bool = False, few: bool = False) -> Any:
    """The weight (O, C / groups, *kernel) as kernels/cpu/conv.h wants it.

    few: for few pixels, so that a copy would cost more than rows that are far apart do.
    """
    weight = _images(weight)
    (outs, ins), taps = weight.shape[:2], weight.shape[2] * weight.shape[3]
    outs //= groups
    if turned:
        outs, ins = ins, outs
    lanes = _lanes(outs)
    blocks = -(-outs // lanes)
    if not turned and blocks * lanes == outs and (few or blocks == groups == 1):
        last = weight.transpose(2, 3, 1, 0)
        if last.flags.c_contiguous:
            return last.reshape(taps, ins, groups, blocks, lanes).transpose(2, 3, 0, 1, 4)
    packed = np.empty((groups, blocks, taps, ins, lanes), np.float32)
    native.conv_pack(weight, packed, groups, turned, flip)
    return packed


def _images(x: Any) -> Any:
    """x (N, C, *spatial) with two spatial axes."""
    return x if x.ndim == 4 else x[:, :, None]


def _source(x: Any) -> Any:
    """x (N, C, *spatial) with two spatial axes, laid so that kernels need not gather many channels one by one."""
    if x.shape[1] > 4 and x.strides[1] != x.itemsize:
        x = _channels_first(_channels_last(x))
    return _images(x)


def _channels_last(x: Any) -> Any:
    """x (N, C, *spatial) as a dense array (N, *spatial, C)."""
    last = x.transpose(0, *range(2, x.ndim), 1)
    if not last.flags.c_contiguous:
        last = lying_as(_channels_first(np.empty(last.shape, x.dtype)), x).transpose(0, *range(2, x.ndim), 1)
    return last


def _channels_first(x: Any) -> Any:
    """x (N, *spatial, C) seen as (N, C, *spatial)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


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
