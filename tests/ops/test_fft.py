"""Fourier transforms against NumPy's in float64, and their derivatives against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DTypeError, ShapeError
from tests.gradcheck import check_gradients

rng = np.random.default_rng(6)

ALONG_ONE = ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]
ALONG_SEVERAL = ["fftn", "ifftn", "rfftn", "irfftn"]
FROM_REAL = {"rfft", "ihfft", "rfftn"}
TO_REAL = {"irfft", "hfft", "irfftn"}
NORMS = ["backward", "ortho", "forward"]
# Lengths and axes of a (4, 5) array: as it is, cut off, filled up, odd and even.
ONE = [{}, {"n": 3}, {"n": 4, "axis": 0}, {"n": 7}, {"n": 8, "axis": -2}, {"n": 1}]
SEVERAL = [
    {}, {"axes": (0,)}, {"axes": (1, 0)}, {"s": (3, 6), "axes": (0, 1)}, {"s": (-1, 3), "axes": (1, 0)},
    {"s": (9, 2), "axes": (-1, 0)},
]  # fmt: skip
CASES = [(name, how) for name in ALONG_ONE for how in ONE] + [(name, how) for name in ALONG_SEVERAL for how in SEVERAL]
each_case = pytest.mark.parametrize(("name", "how"), CASES, ids=str)


def numbers(name: str, dtype: Any = np.float64) -> np.ndarray:
    x = rng.standard_normal((4, 5))
    return (x if name in FROM_REAL else x + 1j * rng.standard_normal((4, 5))).astype(dtype)


@pytest.mark.parametrize("norm", NORMS)
@each_case
def test_transforms(name: str, how: dict[str, Any], norm: str, device: str) -> None:
    real, complex_ = ("float32", "complex64"), ("float64", "complex128")
    for (of_real, of_complex), rtol in ((real, 1e-5), (complex_, 1e-13)):
        x = numbers(name, of_real if name in FROM_REAL else of_complex)
        found = getattr(gn.fft, name)(gn.asarray(x, device=device), norm=norm, **how)
        wide = x.astype("float64" if name in FROM_REAL else "complex128")
        s = how.get("s") and [x.shape[a] if n == -1 else n for n, a in zip(how["s"], how["axes"])]
        expected = getattr(np.fft, name)(wide, norm=norm, **how | ({"s": s} if s else {}))
        assert found.dtype == (of_real if name in TO_REAL else of_complex)
        assert found.device == device
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=rtol * np.abs(expected).max() + 1e-300)


@pytest.mark.parametrize("name", ["fft", "ifft", "fftn", "ifftn", "rfft", "ihfft", "rfftn", "irfft", "hfft", "irfftn"])
def test_of_real_arrays_of_every_type(name: str, device: str) -> None:
    for dtype, result in (("int64", "float32"), ("bool", "float32"), ("float16", "float32"), ("float64", "float64")):
        x = rng.integers(0, 2, (3, 4)).astype(dtype)
        found = getattr(gn.fft, name)(gn.asarray(x, device=device))
        expected = getattr(np.fft, name)(x.astype("float64"))
        assert np.finfo(found.dtype).dtype == result and (found.dtype.kind == "f") == (name in TO_REAL)
        np.testing.assert_allclose(found.cpu().numpy(), expected, atol=1e-5)


@each_case
def test_gradients(name: str, how: dict[str, Any], device: str) -> None:
    """Of parts of a transform, as functions of the real and imaginary parts of what is transformed."""

    def parts(*args: Any) -> Any:
        z = args[0] if name in FROM_REAL else args[0] + args[1] * 1j
        y = getattr(gn.fft, name)(z, norm="ortho", **how)
        return y**2 if name in TO_REAL else (gn.real(y) ** 2, gn.imag(y) * gn.real(y))

    count = 1 if name in FROM_REAL else 2
    check_gradients(parts, [rng.standard_normal((4, 5)) for _ in range(count)], device=device)


@pytest.mark.parametrize("norm", ["backward", "forward"])
@pytest.mark.parametrize("name", ALONG_ONE)
def test_gradients_with_each_norm(name: str, norm: str, device: str) -> None:
    def size(x: Any) -> Any:
        y = getattr(gn.fft, name)(x, norm=norm, axis=0)
        return (gn.real(y) ** 2).sum() if y.dtype.kind == "f" else (gn.real(y) ** 2 + 3 * gn.imag(y) ** 2).sum()

    check_gradients(size, [rng.standard_normal((6, 2))], device=device)  # of a real array the complex ones have too


def test_gradient_of_a_convolution(device: str) -> None:
    def convolved(a: Any, b: Any) -> Any:
        return gn.fft.irfft(gn.fft.rfft(a, n=7) * gn.fft.rfft(b, n=7), n=7)

    a, b = rng.standard_normal(4), rng.standard_normal(4)
    found = convolved(gn.asarray(a, device=device), gn.asarray(b, device=device))
    np.testing.assert_allclose(found.cpu().numpy(), np.convolve(a, b), atol=1e-14)
    check_gradients(convolved, [a, b], device=device)


def test_nothing_of_something(device: str) -> None:
    """No rows to transform, of some length."""
    x = gn.asarray(np.zeros((0, 4)), device=device)
    assert gn.fft.rfft(x).shape == (0, 3) and gn.fft.fft(x, n=5).dtype == gn.complex128


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_frequencies(n: int, device: str) -> None:
    for name in ("fftfreq", "rfftfreq"):
        found = getattr(gn.fft, name)(n, d=0.3, dtype=gn.float64, device=device)
        np.testing.assert_allclose(found.cpu().numpy(), getattr(np.fft, name)(n, 0.3), rtol=1e-15)
        assert getattr(gn.fft, name)(n).dtype == gn.float32 and found.device == device
        with pytest.raises(DTypeError, match=f"{name}: expected a real floating-point dtype, got int64"):
            getattr(gn.fft, name)(n, dtype=gn.int64)


@pytest.mark.parametrize("name", ["fftshift", "ifftshift"])
def test_shifts(name: str, device: str) -> None:
    shift = getattr(gn.fft, name)
    for shape, axes in [((5,), None), ((4, 5), None), ((4, 5), 1), ((4, 5, 2), (0, -1))]:
        x = rng.standard_normal(shape)
        found = shift(gn.asarray(x, device=device), axes=axes).cpu().numpy()
        np.testing.assert_array_equal(found, getattr(np.fft, name)(x, axes=axes))
    assert shift(gn.asarray(2.0, device=device)).item() == 2.0
    check_gradients(lambda x: shift(x, axes=(0, 1)) ** 2, [rng.standard_normal((3, 4))], device=device)
    with pytest.raises(ShapeError, match=f"{name}: there is no axis 2"):
        shift(gn.zeros((3, 4)), axes=2)


def test_mistakes(device: str) -> None:
    x, z = gn.zeros((3, 4), device=device), gn.zeros((3, 4), dtype=gn.complex64, device=device)
    for name in ("rfft", "ihfft", "rfftn"):
        with pytest.raises(DTypeError, match=f"{name}: expected a real array, got complex64"):
            getattr(gn.fft, name)(z)
    for name in ALONG_ONE:
        with pytest.raises(ShapeError, match=f"{name}: there is no axis 2 in an array of 2 axes"):
            getattr(gn.fft, name)(x, axis=2)
        with pytest.raises(ShapeError, match=f"{name}: cannot .* 0 elements, along axis 1 of shape \\(3, 4\\)"):
            getattr(gn.fft, name)(x, n=0)
    for name in ALONG_SEVERAL:
        transform = getattr(gn.fft, name)
        with pytest.raises(ShapeError, match=f"{name}: s needs axes"):
            transform(x, s=(2, 2))
        with pytest.raises(ShapeError, match=f"{name}: each axis can be transformed once, got axes \\(1, 1\\)"):
            transform(x, axes=(1, -1))
        with pytest.raises(ShapeError, match=f"{name}: expected a length for each of 2 axes, got s = \\(3,\\)"):
            transform(x, s=(3,), axes=(0, 1))
        with pytest.raises(ShapeError, match=f"{name}: there is no axis to transform"):
            transform(gn.zeros((), device=device))
    for name in ALONG_ONE + ALONG_SEVERAL:
        with pytest.raises(ValueError, match=f"{name}: norm must be .* got 'unitary'"):
            getattr(gn.fft, name)(x, norm="unitary")
    with pytest.raises(ShapeError, match="irfft: cannot make 0 elements, along axis 0 of shape \\(1,\\); give n"):
        gn.fft.irfft(gn.zeros((1,), device=device))
