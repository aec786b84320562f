"""Special functions of real numbers, under SciPy's names, with derivatives of any order.

Written in array words, so that they run on every device. They are computed in float64 for float64 and in float32 for
everything narrower; integers become the default floating-point type. Each says how far off it may be, in units in the
last place (ulp) of what it returns; where it crosses zero, of 1. Outside of the domain the result is NaN, without a
warning. Formulas by number are those of the NIST Digital Library of Mathematical Functions (DLMF).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from gpunet.dtypes import default_dtype
from gpunet.errors import DTypeError
from gpunet.ops import special_tables as tables
from gpunet.ops.elementwise import sigmoid
from gpunet.ops.op import op

_BERNOULLI = (
    1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330,
    854513 / 138, -236364091 / 2730,
)  # fmt: skip
_ASYMPTOTIC = 8.0  # from here on, ten terms of an expansion in powers of 1 / x are enough
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF = math.sqrt(0.5)
_TWO_OVER_SQRT_PI = 2 / math.sqrt(math.pi)


def _of_real_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference whose arguments arrive as float32 or float64, and whose result has the type that they promote to."""

    @wraps(function)
    def reference(xp: Any, *args: Any, **params: Any) -> Any:
        dtypes = [a.dtype for a in args if hasattr(a, "dtype")]
        if any(d.kind == "c" for d in dtypes):
            raise DTypeError(f"{function.__name__}: expected real numbers, got {', '.join(map(str, dtypes))}")
        floating = [d for d in dtypes if d.kind not in "iub"]
        dtype = np.result_type(*floating) if floating else default_dtype()
        work = dtype if dtype == "float64" else np.dtype(np.float32)
        with np.errstate(all="ignore"):  # branches that are not taken are computed too
            y = function(xp, *(xp.astype(xp.asarray(a), work, copy=False) for a in args), **params)
            return xp.astype(xp.asarray(y), dtype, copy=False)

    return reference


def _polynomial(coefficients: tuple[float, ...], u: Any) -> Any:
    """The polynomial with these coefficients, lowest power first, by Horner's rule."""
    y: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        y = y * u + c
    return y


# --- the error function's relatives


def _gaussian(xp: Any, x: Any, factor: float, limit: float) -> Any:
    """exp(factor x²), without the error that rounding x² would make where it is large.

    x² is taken apart into the square of x rounded to sixteenths, which is exact, and a small rest.
    """
    x = xp.clip(x, -limit, limit)
    rounded = xp.round(x * 16.0) / 16.0
    return xp.exp(factor * rounded * rounded) * xp.exp(factor * ((x - rounded) * (x + rounded)))


def _erfcx_positive(xp: Any, x: Any) -> Any:
    """exp(x²) erfc(x) for x >= 0."""
    return _polynomial(tables.ERFCX, 1.0 - 6.0 / (x + 3.0)) / (1.0 + 2.0 * x)


def _erf_near_zero(x: Any) -> Any:
    """erf(x) for |x| <= 0.6 (DLMF 7.6.1)."""
    series = tuple((-1) ** k * _TWO_OVER_SQRT_PI / (math.factorial(k) * (2 * k + 1)) for k in range(15))
    return x * _polynomial(series, x * x)


_LARGEST = 30.0  # beyond, exp(-x²) is 0 and exp(x²) infinite


@op
@_of_real_numbers
def erfc(xp, x, /):
    """1 - erf(x), the complement of the error function. Within 6 ulp, where it is tiny too."""
    a = xp.abs(x)
    tail = _gaussian(xp, a, -1.0, _LARGEST) * _erfcx_positive(xp, a)
    near = 1.0 - _erf_near_zero(xp.clip(x, -0.5, 0.5))
    return xp.where(a < 0.5, near, xp.where(x < 0, 2.0 - tail, tail))


@erfc.vjp
def _(xp, g, _y, x):
    return g * (-_TWO_OVER_SQRT_PI * xp.exp(-x * x))


@op
@_of_real_numbers
def erfcx(xp, x, /):
    """exp(x²) erfc(x), which does not vanish where erfc does. Within 6 ulp."""
    a = xp.abs(x)
    y = _erfcx_positive(xp, a)
    z = xp.clip(x, -0.5, 0.5)
    near = xp.exp(z * z) * (1.0 - _erf_near_zero(z))
    return xp.where(a < 0.5, near, xp.where(x < 0, 2.0 * _gaussian(xp, x, 1.0, _LARGEST) - y, y))


@erfcx.vjp
def _(xp, g, y, x):
    return g * (2.0 * x * y - _TWO_OVER_SQRT_PI)


@op
@_of_real_numbers
def erfinv(xp, y, /):
    """The x with erf(x) = y, for y from -1 to 1. Within 6 ulp.

    A first guess (Winitzki, A handy approximation for the error function and its inverse, 2008), off by 1 in 100 or
    less, and three steps of Halley's method, whose error is each time the cube of what it was.
    """
    size = xp.abs(y)
    rest = 1.0 - size
    w = xp.where(size < 0.5, xp.log1p(-size * size), xp.log(rest * (1.0 + size)))
    b = 2 / (math.pi * 0.147) + 0.5 * w
    c = w / 0.147
    x = xp.sqrt(-c / (xp.sqrt(b * b - c) + b))
    x = xp.minimum(x, 6.0)
    for _step in range(3):
        near = _erf_near_zero(xp.minimum(x, 0.6)) - size
        far = rest - _gaussian(xp, x, -1.0, _LARGEST) * _erfcx_positive(xp, x)
        distance = xp.where(size < 0.5, near, far) / (_TWO_OVER_SQRT_PI * xp.exp(-x * x))
        x = x - distance / (1.0 + x * distance)
    x = xp.where(size == 1, math.inf, xp.where(size < 1, x, math.nan))
    return xp.copysign(x, y)


@erfinv.vjp
def _(xp, g, y, _x):
    return g * (xp.exp(y * y) / _TWO_OVER_SQRT_PI)


def _normal_tail(xp: Any, a: Any) -> Any:
    """The probability that a standard normal variable is below -a, for a >= 0."""
    near = 0.5 - 0.5 * _erf_near_zero(xp.minimum(a, 0.7) * _SQRT_HALF)
    far = 0.5 * _gaussian(xp, a, -0.5, 2 * _LARGEST) * _erfcx_positive(xp, a * _SQRT_HALF)
    return xp.where(a < 0.7, near, far)


@op
@_of_real_numbers
def ndtr(xp, x, /):
    """The probability that a standard normal variable is below x: erfc(-x / sqrt(2)) / 2. Within 6 ulp."""
    tail = _normal_tail(xp, xp.abs(x))
    return xp.where(x > 0, 1.0 - tail, tail)


@ndtr.vjp
def _(xp, g, _y, x):
    return g * (xp.exp(-0.5 * x * x) * (0.5 * _SQRT_HALF * _TWO_OVER_SQRT_PI))


@op
@_of_real_numbers
def log_ndtr(xp, x, /):
    """log(ndtr(x)), also where ndtr is 0 or 1 in floating point. Within 6 ulp."""
    a = xp.abs(x)
    tail = _normal_tail(xp, a)
    below = xp.log(0.5 * _erfcx_positive(xp, a * _SQRT_HALF)) - 0.5 * x * x
    return xp.where(x < -1, below, xp.where(x < 0, xp.log(tail), xp.log1p(-tail)))


@log_ndtr.vjp
def _(xp, g, _y, x):
    return g * (_SQRT_HALF * _TWO_OVER_SQRT_PI / erfcx(-_SQRT_HALF * x))


# --- the gamma function's relatives


def _stirling(x: Any) -> Any:
    """log gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2, for x >= 8 (DLMF 5.11.1)."""
    series = tuple(b / (2 * n * (2 * n - 1)) for n, b in enumerate(_BERNOULLI[:10], 1))
    return _polynomial(series, 1.0 / (x * x)) / x


def _sine_and_cosine(xp: Any, x: Any) -> tuple[Any, Any]:
    """Those of pi times the distance of x from the nearest integer: of pi x, but for a common sign. Both exact to a few
    ulp where they are small, as the distance from an integer or a half is exact."""
    r = x - xp.round(x)
    return xp.sin(math.pi * r), xp.sin(math.pi * (0.5 - xp.abs(r)))


def _gammaln(xp: Any, x: Any) -> Any:
    # Above 8, Stirling's series. Below, the recurrence gamma(z + 1) = z gamma(z) leads to the table around 2.
    large = xp.maximum(x, _ASYMPTOTIC)
    stirling = (large - 0.5) * (xp.log(large) - 1.0) + (_HALF_LOG_2PI - 0.5) + _stirling(large)
    z = xp.clip(x, -0.5, _ASYMPTOTIC)
    product = xp.ones_like(z)
    for _step in range(6):
        above = z >= 2.5
        z = xp.where(above, z - 1.0, z)
        product = xp.where(above, product * z, product)
    delta = xp.where(z < 0.5, z, xp.where(z < 1.5, z - 1.0, z - 2.0))
    table = delta * _polynomial(tables.GAMMALN, 2.0 * delta)
    logarithm = xp.log(xp.where(z < 0.5, xp.abs(z * (z + 1.0)), xp.where(z < 1.5, z, product)))
    return xp.where(x < _ASYMPTOTIC, table + xp.where(z < 1.5, -logarithm, logarithm), stirling)


@op
@_of_real_numbers
def gammaln(xp, x, /):
    """The logarithm of the absolute value of the gamma function. Within 8 ulp for x > 0, near its zeros 1 and 2 too;
    for x < 0 within 8 ulp of the larger of 1 and |gammaln(-x)|. Infinite at 0, -1, -2 …"""
    positive = _gammaln(xp, xp.where(x < -0.5, -x, x))
    sine, _ = _sine_and_cosine(xp, x)
    reflected = xp.log(math.pi / xp.abs(x * sine)) - positive  # DLMF 5.5.3
    y = xp.where(x < -0.5, xp.where(sine == 0, math.inf, reflected), positive)
    return xp.where(xp.isinf(x), x, y)


@gammaln.vjp
def _(xp, g, _y, x):
    return g * digamma(x)


@op
@_of_real_numbers
def digamma(xp, x, /):
    """The derivative of `gammaln`. Within 4 ulp for x > 0, near its zero 1.46 too; for x < 0 within 10 ulp of the
    larger of 1 and the result. -inf at 0, +inf at -0.0, NaN at -1, -2 …"""
    positive = _digamma(xp, xp.where(x > 0, x, 1.0 - x))
    sine, cosine = _sine_and_cosine(xp, x)
    reflected = xp.where(sine == 0, math.nan, positive - math.pi * cosine / sine)  # DLMF 5.5.4
    return xp.where(x > 0, positive, xp.where(x == 0, -1.0 / x, reflected))


def _digamma(xp: Any, x: Any) -> Any:
    # Above 8, the asymptotic series (DLMF 5.11.2). Below, the recurrence leads to the table around the zero.
    large = xp.maximum(x, _ASYMPTOTIC)
    series = tuple(b / (2 * n) for n, b in enumerate(_BERNOULLI[:10], 1))
    inverse = 1.0 / (large * large)
    asymptotic = xp.log(large) - 0.5 / large - inverse * _polynomial(series, inverse)
    z = xp.clip(x, 0.0, _ASYMPTOTIC)
    total = xp.where(z < 1, -1.0 / z, 0.0)
    z = xp.where(z < 1, z + 1.0, z)
    for _step in range(6):
        above = z >= 2
        z = xp.where(above, z - 1.0, z)
        total = xp.where(above, total + 1.0 / z, total)
    root, rest = tables.DIGAMMA_ROOT
    rounded = float(z.dtype.type(root))
    from_root = (z - rounded) - ((root - rounded) + rest)
    table = from_root * _polynomial(tables.DIGAMMA, 2.0 * z - 3.0)
    return xp.where(x < _ASYMPTOTIC, table + total, asymptotic)


@digamma.vjp
def _(xp, g, _y, x):
    return g * _polygamma(x, n=1)


@op
@_of_real_numbers
def _polygamma(xp, x, *, n):
    """The n-th derivative of `digamma`, n >= 1."""
    if n > _OVERFLOWING:
        x = xp.astype(x, "float64", copy=False)
    zeta = _hurwitz_zeta(xp, n + 1, xp.where(x > 0, x, 1.0 - x))
    positive = (-1.0) ** (n + 1) * math.gamma(n + 1) * zeta  # DLMF 25.11.12
    # DLMF 5.15.6: the n-th derivative of the cotangent is a polynomial in it, odd or even as n is.
    sine, cosine = _sine_and_cosine(xp, x)
    cotangent = cosine / xp.abs(sine)  # +inf at the poles
    cotangent = xp.where(sine < 0, -cotangent, cotangent)
    terms = _cotangent_derivative(n)
    derivative = _polynomial(terms[(n + 1) % 2 :: 2], cotangent * cotangent)
    if n % 2 == 0:
        derivative = derivative * cotangent
    return xp.where(x > 0, positive, (-1.0) ** n * positive - math.pi ** (n + 1) * derivative)


@_polygamma.vjp
def _(xp, g, _y, x, *, n):
    return g * _polygamma(x, n=n + 1)


_OVERFLOWING = 20  # beyond, factorials and powers do not stay in the range of float32, though their product may


def _cotangent_derivative(n: int) -> tuple[float, ...]:
    """The coefficients of the polynomial in the cotangent that is its n-th derivative: c' = -(1 + c²)."""
    p = [0, 1]
    for _step in range(n):
        slope = [k * p[k] for k in range(1, len(p))]
        p = [-(a + b) for a, b in zip([*slope, 0, 0], [0, 0, *slope])]
    return tuple(map(float, p))


def _hurwitz_zeta(xp: Any, s: int, q: Any) -> Any:
    """The sum over k >= 0 of (q + k)^-s, for s > 1 and q > 0, by Euler and Maclaurin's formula (DLMF 25.11.5)."""
    count = max(9, s)
    total = xp.zeros_like(q)
    for k in range(count):
        total = total + xp.pow(q + k, -float(s))
    end = q + count
    inverse = 1.0 / (end * end)
    rising, terms = 1.0, []
    for j, bernoulli in enumerate(_BERNOULLI, 1):
        rising *= s if j == 1 else (s + 2 * j - 3) * (s + 2 * j - 2)
        terms.append(bernoulli / math.factorial(2 * j) * rising)
    rest = 1 / (s - 1) + (0.5 + _polynomial(tuple(terms), inverse) / end) / end
    return total + xp.pow(end, 1.0 - s) * rest


def polygamma(n: int, x: Any, /) -> Any:
    """The n-th derivative of `digamma`; itself for n = 0. Differentiable with respect to x.

    Within 10 ulp for x > 0, within 20 for n > 10; for x < 0 and n <= 4 within 12 ulp of the larger of 1 and the result.

    Args:
        n: from 0 to 100.
        x: any shape.

    Raises:
        ValueError: n is no integer from 0 to 100.
    """
    if not isinstance(n, int) or not 0 <= n <= 100:
        raise ValueError(f"polygamma: n must be an integer from 0 to 100, got {n!r}")
    return _polygamma(x, n=n) if n else digamma(x)


@op
@_of_real_numbers
def betaln(xp, a, b, /):
    """The logarithm of the absolute value of the beta function, gammaln(a) + gammaln(b) - gammaln(a + b).

    For a and b > 0 within 12 ulp of the larger of 1 and the result, however large they are. For others it is that sum.
    """
    small, large = xp.minimum(a, b), xp.maximum(a, b)
    both = _gammaln(xp, xp.where(small > 0, small, 1.0))
    plain = gammaln.reference(xp, a) + gammaln.reference(xp, b) - gammaln.reference(xp, a + b)
    # With Stirling's formula, so that the large terms cancel before they are computed.
    high = xp.maximum(large, _ASYMPTOTIC)
    low = xp.where(small > 0, small, 1.0)
    rest = _stirling(high) - _stirling(high + low) - (high - 0.5) * xp.log1p(low / high)
    one = both + rest - low * (xp.log(high + low) - 1.0)
    least = xp.maximum(low, _ASYMPTOTIC)
    two = _HALF_LOG_2PI - 0.5 * xp.log(least) + _stirling(least) + rest - least * xp.log1p(high / least)
    y = xp.where(large < _ASYMPTOTIC, plain, xp.where(small < _ASYMPTOTIC, one, two))
    y = xp.where((small > 0) & xp.isinf(large), -math.inf, y)
    return xp.where(small > 0, y, plain)


@betaln.vjp
def _(xp, g, _y, a, b):
    return (lambda: g * (digamma(a) - digamma(a + b))), (lambda: g * (digamma(b) - digamma(a + b)))


# --- logarithms


@op
@_of_real_numbers
def logit(xp, x, /):
    """log(x / (1 - x)), the inverse of `expit`, for x from 0 to 1. Within 4 ulp."""
    s = 2.0 * (x - 0.5)
    near = xp.abs(s) < 0.5
    middle = xp.where(near, s, 0.0)
    return xp.where(near, xp.log1p(middle) - xp.log1p(-middle), xp.log(x / (1.0 - x)))


@logit.vjp
def _(xp, g, _y, x):
    return g / (x * (1.0 - x))


@op
@_of_real_numbers
def log_expit(xp, x, /):
    """log(1 / (1 + exp(-x))). Within 4 ulp."""
    return xp.where(x < 0, x, 0.0) - xp.log1p(xp.exp(-xp.abs(x)))


@log_expit.vjp
def _(xp, g, _y, x):
    return g * sigmoid(-x)


@op
@_of_real_numbers
def xlogy(xp, x, y, /):
    """x log(y), and 0 where x is 0, unless y is NaN. Within 2 ulp."""
    return xp.where((x == 0) & ~xp.isnan(y), 0.0, x * xp.log(y))


@xlogy.vjp
def _(xp, g, _z, x, y):
    nothing = (x == 0) & (y <= 0)  # where it is zero, and remains so
    safe = xp.where(nothing, 1.0, y)
    return (lambda: g * xp.log(safe)), (lambda: g * (x / safe))


@op
@_of_real_numbers
def xlog1py(xp, x, y, /):
    """x log(1 + y), and 0 where x is 0, unless y is NaN. Within 2 ulp."""
    return xp.where((x == 0) & ~xp.isnan(y), 0.0, x * xp.log1p(y))


@xlog1py.vjp
def _(xp, g, _z, x, y):
    safe = xp.where((x == 0) & (y <= -1), 0.0, y)
    return (lambda: g * xp.log1p(safe)), (lambda: g * (x / (1.0 + safe)))


@op
@_of_real_numbers
def entr(xp, x, /):
    """-x log(x), the terms of an entropy: 0 at 0, -inf below. Within 4 ulp."""
    return xp.where(x < 0, -math.inf, xp.where(x == 0, 0.0, -x * xp.log(x)))


@entr.vjp
def _(xp, g, _y, x):
    return -g * (xp.log(x) + 1.0)


@op
@_of_real_numbers
def rel_entr(xp, x, y, /):
    """x log(x / y), the terms of a Kullback-Leibler divergence: 0 where x is 0 and y >= 0, inf where either is
    negative, or y alone is 0. Within 4 ulp."""
    ratio = x / y
    near = xp.abs(ratio - 1.0) < 0.5
    usual = xp.isfinite(ratio) & (ratio >= float(np.finfo(ratio.dtype).tiny))
    logarithm = xp.where(
        near,
        xp.log1p(xp.where(near, (x - y) / y, 0.0)),
        xp.log(xp.where(usual, ratio, 1.0)) + xp.where(usual, 0.0, xp.log(x) - xp.log(y)),
    )
    result = xp.where((x > 0) & (y > 0), x * logarithm, xp.where((x == 0) & (y >= 0), xp.zeros_like(x), math.inf))
    return xp.where(xp.isnan(x) | xp.isnan(y), math.nan, result)


@rel_entr.vjp
def _(xp, g, _z, x, y):
    safe = xp.where((x == 0) & (y == 0), 1.0, y)
    return (lambda: g * (xp.log(x) - xp.log(safe) + 1.0)), (lambda: -g * (x / safe))


# --- modified Bessel functions of the first kind

_SERIES_UP_TO = 16.0
_TERMS = 36


@op
@_of_real_numbers
def _bessel_i(xp, x, *, order, scaled):
    """I of a whole order, or exp(-|x|) times it."""
    size = xp.abs(x)
    small = xp.clip(size, 0.0, _SERIES_UP_TO)
    z = 0.25 * small * small
    series = xp.ones_like(z)
    for k in range(_TERMS, 0, -1):  # DLMF 10.25.2, all terms of one sign
        series = series * z * (1.0 / (k * (k + order))) + 1.0
    low = series * xp.pow(0.5 * small, float(order)) * (1.0 / math.factorial(order))
    large = xp.maximum(size, _SERIES_UP_TO)
    u = (2 * _SERIES_UP_TO) / large - 1.0
    high, following = _polynomial(tables.BESSEL0, u), _polynomial(tables.BESSEL1, u)
    for k in range(order):  # DLMF 10.29.1, which is stable while the order is below x
        high, following = following, high - (2.0 * (k + 1)) / large * following
    high = high / xp.sqrt(large)
    if scaled:
        low = low * xp.exp(-small)
    else:  # in two steps, as exp(x) is infinite before I(x) is
        half = xp.exp(xp.clip(0.5 * large, 0.0, 1000.0))
        high = xp.where(xp.isinf(large), math.inf, high * half * half)
    y = xp.where(size < _SERIES_UP_TO, low, high)
    return xp.where(x < 0, -y, y) if order % 2 else y


@_bessel_i.vjp
def _(xp, g, y, x, *, order, scaled):
    above = _bessel_i(x, order=order + 1, scaled=scaled)  # DLMF 10.29.1
    slope = 0.5 * (_bessel_i(x, order=order - 1, scaled=scaled) + above) if order else above
    return g * (slope - xp.sign(x) * y if scaled else slope)


def i0(x: Any, /) -> Any:
    """The modified Bessel function of the first kind, of order 0. Within 10 ulp."""
    return _bessel_i(x, order=0, scaled=False)


def i0e(x: Any, /) -> Any:
    """exp(-|x|) i0(x), which does not overflow. Within 10 ulp."""
    return _bessel_i(x, order=0, scaled=True)


def i1(x: Any, /) -> Any:
    """The modified Bessel function of the first kind, of order 1. Within 10 ulp."""
    return _bessel_i(x, order=1, scaled=False)


def i1e(x: Any, /) -> Any:
    """exp(-|x|) i1(x), which does not overflow. Within 10 ulp."""
    return _bessel_i(x, order=1, scaled=True)
