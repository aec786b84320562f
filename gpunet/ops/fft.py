"""Discrete Fourier transforms, under the names and with the arguments of the Array API's fft extension.

Three ops do the work, on arrays that already have the right lengths, and differentiate into each other. The matrix of
the transform is symmetric, so the transpose of a transform between complex arrays is that transform. A transform of a
real array gives half a spectrum, and that of half a spectrum a real array; they are each other's transposes but for the
frequencies between zero and the middle, which stand for two each: where half a spectrum comes in, a weight of 2, where
it goes out, one of 1/2.

All take `norm`: "backward" divides the inverse transforms (ifft, ifftn, irfft, irfftn, ihfft) by the number of
elements, "forward" the others, "ortho" each by its square root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunet.dtypes import default_dtype
from gpunet.errors import DTypeError, ShapeError
from gpunet.ops.op import op
from gpunet.ops.shape import axis_of, pad, roll

_HALF_FLOATS = 2  # bytes


@op
def _transform(xp, x, *, axes, norm, inverse):
    """The transform of a complex (or real) array along some axes, as a complex array."""
    return (xp.fft.ifftn if inverse else xp.fft.fftn)(_transformable(xp, x), axes=axes, norm=norm)


@_transform.vjp
def _(xp, g, _y, _x, *, axes, norm, inverse):
    return _transform(g, axes=axes, norm=norm, inverse=inverse)


@op
def _half_spectrum(xp, x, *, axis, norm, inverse):
    """The frequencies from zero to the middle of the transform of a real array."""
    return (xp.fft.ihfft if inverse else xp.fft.rfft)(_transformable(xp, x), axis=axis, norm=norm)


@_half_spectrum.vjp
def _(xp, g, _y, _x, *, axis, norm, inverse):
    n = _x.shape[axis]
    halved = g * _weights(xp, g, n, axis, 0.5)
    return _from_half_spectrum(halved, n=n, axis=axis, norm=norm, inverse=inverse)


@op
def _from_half_spectrum(xp, x, *, n, axis, norm, inverse):
    """The real array of n elements that is the transform of a Hermitian one, of which x is the first n // 2 + 1."""
    return (xp.fft.irfft if inverse else xp.fft.hfft)(_transformable(xp, x), n=n, axis=axis, norm=norm)


@_from_half_spectrum.vjp
def _(xp, g, _y, _x, *, n, axis, norm, inverse):
    half = _half_spectrum(g, axis=axis, norm=norm, inverse=inverse)
    return half * _weights(xp, g, n, axis, 2.0)


def _weights(xp: Any, like: Any, n: int, axis: int, between: float) -> Any:
    """For each frequency of half a spectrum: 1 where it stands for itself alone (zero, and n / 2), else `between`."""
    weights = np.full(n // 2 + 1, between)
    weights[0] = 1.0
    if n % 2 == 0:
        weights[-1] = 1.0
    line = (1,) * axis + (-1,) + (1,) * (like.ndim - axis - 1)
    precision = np.finfo(like.dtype).dtype  # that of the parts of a complex number
    return xp.asarray(weights.reshape(line), dtype=precision, device=like.device)


def _transformable(xp: Any, x: Any) -> Any:
    """x in a type that there are transforms of: integers become the default type, and float16 float32."""
    if x.dtype.kind in "iub":
        x = xp.astype(x, default_dtype())
    return xp.astype(x, "float32") if x.dtype.itemsize == _HALF_FLOATS else x


def _check_norm(name: str, norm: str) -> None:
    if norm not in ("backward", "ortho", "forward"):
        raise ValueError(f'{name}: norm must be "backward", "ortho" or "forward", got {norm!r}')


def _check_real(name: str, x: Any) -> None:
    if x.dtype.kind == "c":
        raise DTypeError(f"{name}: expected a real array, got {x.dtype}; for complex ones there are fft and ifft")


def _resized(name: str, x: Any, lengths: Sequence[int], axes: Sequence[int]) -> Any:
    """x cut off, or filled up with zeros, at the end of each of `axes`, to its length."""
    key, widths = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
    for n, axis in zip(lengths, axes):
        if n < 1:
            raise ShapeError(f"{name}: cannot transform {n} elements, along axis {axis} of shape {tuple(x.shape)}")
        key[axis], widths[axis] = slice(n), (0, max(n - x.shape[axis], 0))
    if any(n < x.shape[axis] for n, axis in zip(lengths, axes)):
        x = x[tuple(key)]
    return pad(x, pad_width=widths) if any(after for _, after in widths) else x


def _lengths_and_axes(name: str, x: Any, s: Sequence[int] | None, axes: Sequence[int] | None) -> tuple[Any, Any]:
    """For each axis to transform: how many elements (None: as many as there are) and its non-negative number."""
    if axes is None:
        if s is not None:
            raise ShapeError(f"{name}: s needs axes along with it, which say what its {len(s)} lengths are of")
        axes = range(x.ndim)
    axes = tuple(axis_of(name, a, x.ndim) for a in axes)
    if not axes:
        raise ShapeError(f"{name}: there is no axis to transform, of shape {tuple(x.shape)}")
    if len(set(axes)) < len(axes):
        raise ShapeError(f"{name}: each axis can be transformed once, got axes {axes}")
    if s is not None and len(s) != len(axes):
        raise ShapeError(f"{name}: expected a length for each of {len(axes)} axes, got s = {tuple(s)}")
    return [None if n == -1 else n for n in s or [-1] * len(axes)], axes


def _complex(name: str, x: Any, s: Any, axes: Any, norm: str, inverse: bool) -> Any:
    _check_norm(name, norm)
    lengths, axes = _lengths_and_axes(name, x, s, axes)
    x = _resized(name, x, [x.shape[a] if n is None else n for n, a in zip(lengths, axes)], axes)
    return _transform(x, axes=axes, norm=norm, inverse=inverse)


def _to_half(name: str, x: Any, n: int | None, axis: int, norm: str, inverse: bool) -> Any:
    _check_norm(name, norm)
    _check_real(name, x)
    axis = axis_of(name, axis, x.ndim)
    x = _resized(name, x, [x.shape[axis] if n is None else n], [axis])
    return _half_spectrum(x, axis=axis, norm=norm, inverse=inverse)


def _from_half(name: str, x: Any, n: int | None, axis: int, norm: str, inverse: bool) -> Any:
    _check_norm(name, norm)
    axis = axis_of(name, axis, x.ndim)
    n = 2 * (x.shape[axis] - 1) if n is None else n
    if n < 1:
        raise ShapeError(f"{name}: cannot make {n} elements, along axis {axis} of shape {tuple(x.shape)}; give n")
    x = _resized(name, x, [n // 2 + 1], [axis])
    return _from_half_spectrum(x, n=n, axis=axis, norm=norm, inverse=inverse)


def fft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The discrete Fourier transform along an axis: y[k] = sum over j of x[j] exp(-2 pi i j k / n). Differentiable.

    Args:
        x: complex, or real, of any shape.
        n: length of the axis, at the end of which x is cut off or filled up with zeros; default: as it is.
        axis: which one.
        norm: see the module's docstring.

    Returns:
        complex64 for float32 and complex64, complex128 for float64 and complex128; x's shape, with n along the axis.

    Raises:
        ShapeError: there is no such axis, or nothing to transform.
        ValueError: `norm` is none of the three.
    """
    return _complex("fft", x, None if n is None else (n,), (axis,), norm, False)


def ifft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The inverse of `fft`, with its arguments: y[j] = 1 / n times the sum over k of x[k] exp(2 pi i j k / n)."""
    return _complex("ifft", x, None if n is None else (n,), (axis,), norm, True)


def fftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """The discrete Fourier transform along several axes, or all. Differentiable.

    Args:
        x: complex, or real, of any shape.
        s: for each of `axes` its length, as `n` of `fft`; -1: as it is.
        axes: which ones; must be given where `s` is.
        norm: see the module's docstring; the number of elements is the product of the lengths.

    Returns:
        As of `fft`.

    Raises:
        ShapeError: there is no such axis, one comes twice, nothing to transform, or `s` does not fit `axes`.
        ValueError: `norm` is none of the three.
    """
    return _complex("fftn", x, s, axes, norm, False)


def ifftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """The inverse of `fftn`, with its arguments."""
    return _complex("ifftn", x, s, axes, norm, True)


def rfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The transform of a real array along an axis: the first n // 2 + 1 elements of `fft`, which determine the others.

    Args and errors as of `fft`; besides, DTypeError: x is complex.
    """
    return _to_half("rfft", x, n, axis, norm, False)


def irfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The inverse of `rfft`: a real array.

    Args:
        x: complex; the imaginary parts of its element 0 and, for an even n, of element n / 2, count for nothing.
        n: the length of the axis in the result; default 2 (m - 1) for x of m elements. n // 2 + 1 elements of x are
            used: it is cut off or filled up with zeros.
        axis, norm: as of `fft`.

    Returns:
        float32 for complex64, float64 for complex128.
    """
    return _from_half("irfft", x, n, axis, norm, True)


def hfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The transform of a Hermitian array, given by its first n // 2 + 1 elements: a real array. Args as of `irfft`."""
    return _from_half("hfft", x, n, axis, norm, False)


def ihfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The inverse of `hfft`: the first n // 2 + 1 elements of the inverse transform of a real array, as `rfft`."""
    return _to_half("ihfft", x, n, axis, norm, True)


def rfftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """The transform of a real array along several axes: `rfft` along the last of them, then `fftn` along the others.

    Args and errors as of `fftn`; besides, DTypeError: x is complex.
    """
    lengths, axes = _lengths_and_axes("rfftn", x, s, axes)
    half = _to_half("rfftn", x, lengths[-1], axes[-1], norm, False)
    if len(axes) == 1:
        return half
    return _complex("rfftn", half, [-1 if n is None else n for n in lengths[:-1]], axes[:-1], norm, False)


def irfftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """The inverse of `rfftn`: a real array.

    Args:
        x: complex.
        s: for each of `axes` its length in the result; of the last one by default 2 (m - 1), as of `irfft`.
        axes, norm: as of `fftn`.
    """
    lengths, axes = _lengths_and_axes("irfftn", x, s, axes)
    if len(axes) > 1:
        x = _complex("irfftn", x, [-1 if n is None else n for n in lengths[:-1]], axes[:-1], norm, True)
    return _from_half("irfftn", x, lengths[-1], axes[-1], norm, True)


def fftshift(x: Any, /, *, axes: int | Sequence[int] | None = None) -> Any:
    """With frequency zero moved to the middle of each of `axes`, or of all.

    Raises:
        ShapeError: there is no such axis.
    """
    return _shifted("fftshift", x, axes, back=False)


def ifftshift(x: Any, /, *, axes: int | Sequence[int] | None = None) -> Any:
    """The inverse of `fftshift`: with the middle of each of `axes` moved to its beginning."""
    return _shifted("ifftshift", x, axes, back=True)


def _shifted(name: str, x: Any, axes: Any, back: bool) -> Any:
    given = range(x.ndim) if axes is None else (axes,) if hasattr(axes, "__index__") else axes
    numbers = tuple(axis_of(name, a, x.ndim) for a in given)
    shift = tuple(-(x.shape[a] // 2) if back else x.shape[a] // 2 for a in numbers)
    return roll(x, shift=shift, axis=numbers) if numbers else x
