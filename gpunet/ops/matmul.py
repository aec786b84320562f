"""Products of matrices and vectors, and the fully connected layer's linear map."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.backends.native import library
from gpunet.dtypes import float32
from gpunet.errors import ShapeError
from gpunet.ops import gemm
from gpunet.ops.elementwise import conj, relu, relu_grad
from gpunet.ops.op import op
from gpunet.ops.reduce import sum
from gpunet.ops.shape import axis_of, expand_dims, matrix_transpose, moveaxis, permute_dims, reshape


@op
def matmul(xp, a, b):
    """The matrix product over the last two axes, the others broadcast; a one-dimensional array is a row or a column.

    Args:
        a: (..., M, K) or (K,).
        b: (..., K, N) or (K,).

    Returns:
        (..., M, N), without the axis that a one-dimensional argument lacks.

    Raises:
        ShapeError: the inner dimensions differ.
    """
    try:
        return xp.matmul(a, b)
    except ValueError:
        _check_inner(a, b)
        raise


def _check_inner(a: Any, b: Any) -> None:
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ShapeError(f"matmul: the inner dimensions of {tuple(a.shape)} and {tuple(b.shape)} differ")


@matmul.kernel("matmul")
def _(launcher, a, b):
    _check_inner(a, b)
    y = gemm.multiply(launcher, a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    if y is NotImplemented or (a.ndim > 1 and b.ndim > 1):
        return y
    return y.reshape(
        y.shape[: len(y.shape) - 2] + (y.shape[-2:-1] if a.ndim > 1 else y.shape[-1:] if b.ndim > 1 else ())
    )


@matmul.vjp
def _(xp, g, _y, a, b):
    def left() -> Any:
        if b.ndim == 1:
            return expand_dims(g, axis=-1) * b if a.ndim > 1 else g * b
        if a.ndim == 1:
            return reshape(matmul(expand_dims(g, axis=-2), matrix_transpose(b)), shape=(*g.shape[:-1], a.shape[0]))
        return matmul(g, matrix_transpose(b))

    def right() -> Any:
        if a.ndim == 1:
            return expand_dims(a, axis=-1) * expand_dims(g, axis=-2) if b.ndim > 1 else g * a
        if b.ndim == 1:
            columns = matmul(matrix_transpose(a), expand_dims(g, axis=-1))
            return reshape(columns, shape=columns.shape[:-1])
        return matmul(matrix_transpose(a), g)

    return left, right


@op
def linear(xp, x, weight, bias=None):
    """x @ weightᵀ + bias.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.

    Returns:
        (..., out_features).

    Raises:
        ShapeError: x does not have in_features columns, or the bias is not of shape (out_features,).
    """
    check_linear("linear", x, weight, bias)
    if x.ndim > 2:  # one product of matrices, not a batch of small ones
        rows = linear.reference(xp, xp.reshape(x, (-1, x.shape[-1])), weight, bias)
        return xp.reshape(rows, (*x.shape[:-1], weight.shape[0]))
    y = xp.matmul(x, weight.T)
    if bias is None:
        return y
    if bias.dtype != y.dtype:
        return y + bias
    target = y[0] if y.ndim == 2 and len(y) == 1 else y  # arrays of one shape are added faster
    target += bias
    return y


@linear.kernel("matmul", platform="cpu")
def _(native, x, weight, bias):
    return multiply_add(native, x, weight, bias, False)


def multiply_add(native: Any, x: Any, weight: Any, bias: Any, relu: bool) -> Any:
    """x @ weightᵀ + bias, through a ReLU if `relu`, of float32 arrays on the CPU; NotImplemented of anything else."""
    if x.ndim > 2 and x.shape[-1]:
        y = multiply_add(native, x.reshape(-1, x.shape[-1]), weight, bias, relu)
        return y if y is NotImplemented else y.reshape(*x.shape[:-1], len(weight))
    if x.ndim != 2 or weight.ndim != 2 or x.dtype != float32 or weight.dtype != float32:
        return NotImplemented
    if x.shape[1] != weight.shape[1]:
        return NotImplemented  # the reference says what is wrong
    work = x.size * len(weight)
    if work < threads.SMALL:
        y = x.dot(weight.T)
    elif _is_flat(x, weight, bias):
        y = np.empty((len(x), len(weight)), float32)
        product = partial(native.linear_block, x, weight.T, bias, y, relu)
        threads.split(len(weight) // _columns(len(weight)), product, work // 40)
        return y
    else:
        y = threads.matmul(x, weight.T)
    if bias is None and not relu:
        return y
    if y.size < _LITTLE:
        return y if native.finish(y, bias, relu) else NotImplemented
    fits = []
    threads.split(len(y), lambda start, stop: fits.append(native.finish_rows(y, bias, relu, start, stop)), 2 * y.size)
    return y if all(fits) else NotImplemented


def _is_flat(x: Any, weight: Any, bias: Any) -> bool:
    """Whether kernels/cpu/matmul.cpp has a product for so few rows."""
    rows, columns = len(x), len(weight)
    return (
        16 <= rows <= 96
        and weight.flags.f_contiguous
        and x.strides[1] == 4
        and not columns % _columns(columns)
        and (bias is None or (bias.shape == (columns,) and bias.dtype == float32 and bias.flags.c_contiguous))
    )


@cache
def _columns(columns: int) -> int:
    return library("matmul").linear_columns(columns)


_LITTLE = 10_000  # elements that are certainly not worth dividing among threads


def check_linear(name: str, x: Any, weight: Any, bias: Any) -> None:
    """Raise ShapeError, in the name of an op, if the arguments of `linear` do not fit each other."""
    shape = weight.shape
    if len(shape) != 2 or not x.ndim or x.shape[-1] != shape[1]:
        raise ShapeError(
            f"{name}: a weight of shape {tuple(weight.shape)} takes an input of shape (..., {weight.shape[-1]}), "
            f"got {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != shape[:1]:
        raise ShapeError(f"{name}: expected a bias of shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")


@linear.kernel("matmul")
def _(launcher, x, weight, bias):
    check_linear("linear", x, weight, bias)
    return launch_linear(launcher, x, weight, bias)


def launch_linear(launcher: Any, x: Any, weight: Any, bias: Any, **epilogue: Any) -> Any:
    """`linear` by a kernel, with more for `gemm.multiply` to do at its end; or NotImplemented."""
    if bias is not None and (bias.dtype != x.dtype or not bias.flags.c_contiguous):
        return NotImplemented
    y = gemm.multiply(launcher, x if x.ndim > 1 else x[None], weight.T, bias=bias, **epilogue)
    return y if y is NotImplemented or x.ndim > 1 else y[0]


def _rows(a: Any) -> Any:
    """As a matrix, whose rows are what lies along the last axis."""
    return a if a.ndim == 2 else reshape(a, shape=(-1, a.shape[-1]))


@linear.vjp
def _(xp, g, _y, x, weight, _bias):
    return (
        (lambda: matmul(g, weight)),
        (lambda: matmul(_rows(g).T, _rows(x))),
        (lambda: sum(_rows(g), axis=0)),
    )


@linear.vjp_of_arrays
def _linear_gradients(xp, g, _y, wanted, x, weight, _bias):
    to_x, to_weight, to_bias = wanted
    dx = dweight = dbias = None
    if type(g) is not np.ndarray:
        product = matmul
    else:  # what the op comes to, without the way there
        product = np.ndarray.dot if g.size * weight.shape[1] < threads.SMALL and g.ndim == 2 else xp.matmul
    shape = x.shape
    if g.ndim != 2:  # one product of matrices, not a batch of small ones
        g = _rows(g)
        x = x if to_weight is None else _rows(x)
    if to_x is not None:
        dx = product(g, weight)
        dx = dx if len(shape) == 2 else reshape(dx, shape=shape)
    if to_weight is not None:
        if weight.flags.f_contiguous:
            dweight = product(x.T, g).T  # in memory as the weight is, so that it need not be copied later
        else:
            dweight = product(g.T, x)
    if to_bias is not None:
        dbias = xp.sum(g, 0) if type(g) is np.ndarray and g.dtype.char in "fd" else sum(g, axis=0)
    return dx, dweight, dbias


@op
def linear_relu(xp, x, weight, bias=None):
    """The larger of `linear` and zero, in one pass behind the product."""
    return relu(linear(x, weight, bias))


@linear_relu.kernel("matmul", platform="cpu")
def _(native, x, weight, bias):
    return multiply_add(native, x, weight, bias, True)


@linear_relu.vjp
def _(xp, g, y, x, weight, _bias):
    return linear.derivative(xp, relu.derivative(xp, g, y, y), y, x, weight, _bias)


@linear_relu.vjp_of_arrays
def _(xp, g, y, wanted, x, weight, bias):
    return _linear_gradients(xp, relu_grad(g, y), y, wanted, x, weight, bias)


def vecdot(a: Any, b: Any, /, *, axis: int = -1) -> Any:
    """The inner product of vectors along an axis, the others broadcast; of complex numbers, a is conjugated."""
    a = conj(a) if a.dtype.kind == "c" else a
    a, b = moveaxis(a, source=axis, destination=-1), moveaxis(b, source=axis, destination=-1)
    product = matmul(expand_dims(a, axis=-2), expand_dims(b, axis=-1))
    return reshape(product, shape=product.shape[:-2])


def tensordot(a: Any, b: Any, /, *, axes: Any = 2) -> Any:
    """The sum of products over axes of `a` and of `b`.

    Args:
        a, b: arrays.
        axes: how many of the last axes of `a` and first axes of `b` to sum over, or a pair of sequences of axes.
    """
    pair = (range(-axes, 0), range(axes)) if isinstance(axes, int) else axes
    over_a, over_b = ([axis_of("tensordot", i, n.ndim) for i in over] for over, n in zip(pair, (a, b)))
    if len(over_a) != len(over_b) or any(a.shape[i] != b.shape[j] for i, j in zip(over_a, over_b)):
        raise ShapeError(f"tensordot: axes {axes} of shapes {tuple(a.shape)} and {tuple(b.shape)} do not match")
    rest_a = [i for i in range(a.ndim) if i not in over_a]
    rest_b = [i for i in range(b.ndim) if i not in over_b]
    k = 1
    for i in over_a:
        k *= a.shape[i]
    m = [a.shape[i] for i in rest_a]
    n = [b.shape[i] for i in rest_b]
    size_m = size_n = 1
    for length in m:
        size_m *= length
    for length in n:
        size_n *= length
    left = reshape(permute_dims(a, axes=tuple(rest_a + over_a)), shape=(size_m, k))
    right = reshape(permute_dims(b, axes=tuple(over_b + rest_b)), shape=(k, size_n))
    return reshape(matmul(left, right), shape=(*m, *n))
