"""Special functions against SciPy and, where mpmath is installed, against 40 digits; and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DTypeError
from gpunet.ops import special as ops
from gpunet.ops import special_tables as tables
from tests.gradcheck import check_gradients

scipy_special = pytest.importorskip("scipy.special", reason="SciPy is the reference")

rng = np.random.default_rng(9)

inf, nan = np.inf, np.nan


def even(low: float, high: float, n: int = 200) -> np.ndarray:
    return rng.uniform(low, high, n)


def scales(low: float, high: float, n: int = 200) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


def polygamma(n: int) -> Callable[[Any], Any]:
    return lambda x: gn.special.polygamma(n, x)


# Arguments over the whole range, and how far off the result may be, in ulp (beside 1, where it may cross zero).
NEAR_ONE = joined(1 + scales(1e-12, 0.3), 1 - scales(1e-12, 0.3), 2 + scales(1e-12, 0.3), 2 - scales(1e-12, 0.3))
RANGES: dict[str, tuple[np.ndarray, int]] = {
    "erfc": (joined(even(-7, 26), scales(1e-10, 1), -scales(1e-10, 1)), 6),
    "erfcx": (joined(even(-26, 30), scales(1e-3, 1e6)), 6),
    "erfinv": (joined(even(-1, 1), 1 - scales(1e-15, 0.5), scales(1e-300, 0.5)), 6),
    "ndtr": (even(-37, 9), 6),
    "log_ndtr": (joined(even(-100, 36), even(-2, 2), -scales(1, 1e6)), 6),
    "gammaln": (joined(scales(1e-300, 1), even(1e-3, 10), NEAR_ONE, scales(5, 1e300)), 8),
    "digamma": (joined(scales(1e-300, 1), even(1e-3, 12), 1.4616321449683622 + scales(1e-15, 0.3)), 4),
    "logit": (joined(even(0, 1), scales(1e-300, 1), 0.5 - scales(1e-15, 0.4)), 4),
    "log_expit": (joined(even(-700, 700), even(-10, 10)), 4),
    "i0": (joined(even(-30, 30), scales(1e-3, 700)), 10),
    "i1": (joined(even(-30, 30), scales(1e-3, 700)), 10),
    "i0e": (joined(even(-30, 30), scales(1e-3, 1e4)), 10),
    "i1e": (joined(even(-30, 30), scales(1e-3, 1e4)), 10),
    "entr": (even(0, 3), 4),
}
NEGATIVE: dict[str, int] = {"gammaln": 8, "digamma": 10}


def assert_within(found: np.ndarray, expected: np.ndarray, ulp: float, least: float = 0.0) -> None:
    """`expected`: float64 or longdouble; least: what an error is measured against where the result is smaller."""
    off = np.abs(found - expected) / np.spacing(np.maximum(np.abs(expected), least).astype(found.dtype))
    assert off.max() <= ulp, f"{off.max()} ulp: {found[off.argmax()]!r} instead of {expected[off.argmax()]!r}"


def run(function: Callable[..., Any], *arguments: np.ndarray, device: str = "cpu") -> np.ndarray:
    return function(*(gn.asarray(a, device=device) for a in arguments)).cpu().numpy()


@pytest.mark.parametrize("name", RANGES)
def test_float32_over_the_whole_range(name: str, device: str) -> None:
    """Against SciPy in float64, which is more than exact enough."""
    x, ulp = RANGES[name]
    with np.errstate(over="ignore", under="ignore"):
        x = np.unique(x.astype(np.float32))
        expected = getattr(scipy_special, name)(x.astype(np.float64))
    limits = np.finfo(np.float32)
    known = np.isfinite(x) & (np.abs(expected) > limits.tiny) & (np.abs(expected) < limits.max)
    found = run(getattr(gn.special, name), x, device=device)
    assert found.dtype == np.float32 and found.shape == x.shape
    assert_within(found[known], expected[known], ulp)


@pytest.mark.parametrize("name", RANGES)
def test_float64_is_as_scipy(name: str, device: str) -> None:
    x, _ = RANGES[name]
    found, expected = run(getattr(gn.special, name), x, device=device), getattr(scipy_special, name)(x)
    assert found.dtype == np.float64
    # SciPy itself is off by up to 2000 ulp, far out in the tails of normal distributions.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15 if name in ("gammaln", "digamma") else 0)


@pytest.mark.parametrize("name", RANGES)
def test_float64_over_the_whole_range(name: str) -> None:
    mpmath = pytest.importorskip("mpmath", reason="gives more digits than float64 has")
    mp = mpmath.mp
    exact: dict[str, Callable[[Any], Any]] = {
        "erfc": mp.erfc,
        "erfcx": lambda x: mp.exp(x * x) * mp.erfc(x),
        "erfinv": mp.erfinv,
        "ndtr": lambda x: mp.erfc(-x / mp.sqrt(2)) / 2,
        "log_ndtr": lambda x: mp.log1p(-mp.erfc(x / mp.sqrt(2)) / 2) if x > 0 else mp.log(mp.erfc(-x / mp.sqrt(2)) / 2),
        "gammaln": mp.loggamma,
        "digamma": mp.digamma,
        "logit": lambda x: mp.log(x / (1 - x)),
        "log_expit": lambda x: -mp.log1p(mp.exp(-x)),
        "i0": lambda x: mp.besseli(0, x),
        "i1": lambda x: mp.besseli(1, x),
        "i0e": lambda x: mp.exp(-abs(x)) * mp.besseli(0, x),
        "i1e": lambda x: mp.exp(-abs(x)) * mp.besseli(1, x),
        "entr": lambda x: -x * mp.log(x),
    }
    x, ulp = RANGES[name]
    x = x[::3]
    with mpmath.workdps(40):
        expected = np.array([longdouble(mp, exact[name](mp.mpf(float(v)))) for v in x])
    assert_within(run(getattr(gn.special, name), x), expected, ulp)


def longdouble(mp: Any, value: Any) -> np.longdouble:
    """The nearest sum of two float64, which is that of 80 bits where there is such a type."""
    high = float(value)
    return np.longdouble(high) + np.longdouble(float(value - mp.mpf(high)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NEGATIVE)
def test_below_zero(name: str, dtype: str, device: str) -> None:
    x = joined(-even(0, 30), -scales(1e-3, 0.5)).astype(dtype)
    mpmath = pytest.importorskip("mpmath", reason="SciPy is off by hundreds of ulp there")
    mp = mpmath.mp
    exact = (lambda v: mp.log(abs(mp.gamma(v)))) if name == "gammaln" else mp.digamma
    with mpmath.workdps(40):
        expected = np.array([longdouble(mp, exact(mp.mpf(float(v)))) for v in x])
    assert_within(run(getattr(gn.special, name), x, device=device), expected, NEGATIVE[name], least=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 30])
def test_polygamma(n: int, dtype: str, device: str) -> None:
    x = joined(even(0.1, 40), scales(5, 1e6 if n < 4 else 100)).astype(dtype)
    found, expected = run(polygamma(n), x, device=device), scipy_special.polygamma(n, x.astype(np.float64))
    known = np.abs(expected) < np.finfo(dtype).max
    assert found.dtype == dtype
    assert_within(found[known], expected[known], 20 if n < 10 else 40)  # SciPy is off by half of that
    below = -even(0, 20).astype(dtype)
    if n in (1, 2):  # SciPy has no others there
        found = run(polygamma(n), below, device=device)
        assert_within(found, scipy_special.polygamma(n, below.astype(np.float64)), 60, least=1.0)


def test_polygamma_says_what_n_may_be() -> None:
    for n in (-1, 101, 1.5):
        with pytest.raises(ValueError, match=f"polygamma: n must be an integer from 0 to 100, got {n}"):
            gn.special.polygamma(n, gn.ones((2,)))  # type: ignore[arg-type]


def test_betaln(device: str) -> None:
    mpmath = pytest.importorskip("mpmath", reason="SciPy is off by any number of ulp for large arguments")
    mp = mpmath.mp
    for low, high in [(1e-5, 10), (0.1, 200), (1e-3, 1e15)]:
        for dtype in ("float32", "float64"):
            a, b = scales(low, high, 100).astype(dtype), scales(low, high, 100).astype(dtype)
            with mpmath.workdps(60):
                pairs = [(mp.mpf(float(v)), mp.mpf(float(w))) for v, w in zip(a, b)]
                expected = [mp.loggamma(v) + mp.loggamma(w) - mp.loggamma(v + w) for v, w in pairs]
                expected = np.array([longdouble(mp, v) for v in expected])
            assert_within(run(gn.special.betaln, a, b, device=device), expected, 12, least=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["xlogy", "xlog1py", "rel_entr"])
def test_of_two_arrays(name: str, dtype: str, device: str) -> None:
    x, y = scales(1e-20, 1e20).astype(dtype), scales(1e-20, 1e20).astype(dtype)
    close = (x * (1 + scales(1e-10, 0.6) * rng.choice([-1, 1], 200))).astype(dtype)
    for other in (y, close):
        expected = getattr(scipy_special, name)(x.astype(np.float64), other.astype(np.float64))
        known = np.abs(expected) > np.finfo(dtype).tiny
        assert_within(run(getattr(gn.special, name), x, other, device=device)[known], expected[known], 4)
    grid = np.array([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, inf, nan], dtype)
    a, b = np.meshgrid(grid, grid)
    expected = getattr(scipy_special, name)(a, b)
    np.testing.assert_array_almost_equal(run(getattr(gn.special, name), a, b, device=device), expected)
    of_number = getattr(gn.special, name)(gn.asarray(x, device=device), 2.0)
    assert of_number.dtype == dtype
    np.testing.assert_allclose(of_number.cpu().numpy(), getattr(scipy_special, name)(x, 2.0), rtol=1e-5)


SPECIAL_VALUES = {
    "erfc": [(inf, 0), (-inf, 2), (0.0, 1), (30, 0)],
    "erfcx": [(inf, 0), (-inf, inf), (0.0, 1), (-27, inf)],
    "erfinv": [(1, inf), (-1, -inf), (0.0, 0), (-0.0, -0.0), (1.5, nan), (-1.5, nan)],
    "ndtr": [(inf, 1), (-inf, 0), (0.0, 0.5)],
    "log_ndtr": [(inf, 0), (-inf, -inf), (-1e20, -5e39)],
    "gammaln": [(inf, inf), (-inf, -inf), (0.0, inf), (-0.0, inf), (-3, inf), (1, 0), (2, 0)],
    "digamma": [(inf, inf), (-inf, nan), (0.0, -inf), (-0.0, inf), (-3, nan)],
    "logit": [(0.0, -inf), (1, inf), (0.5, 0), (-1, nan), (2, nan), (inf, nan)],
    "log_expit": [(inf, 0), (-inf, -inf)],
    "i0": [(inf, inf), (-inf, inf), (0.0, 1), (1000, inf)],
    "i1": [(inf, inf), (-inf, -inf), (0.0, 0), (-1000, -inf)],
    "i0e": [(inf, 0), (-inf, 0), (0.0, 1)],
    "i1e": [(inf, 0), (-inf, 0), (0.0, 0)],
    "entr": [(inf, -inf), (-inf, -inf), (0.0, 0), (-0.0, 0), (-1, -inf), (1, 0)],
}


@pytest.mark.parametrize("name", SPECIAL_VALUES)
def test_special_values(name: str, device: str) -> None:
    arguments, expected = np.array([*SPECIAL_VALUES[name], (nan, nan)]).T
    for dtype in ("float16", "float32", "float64"):
        x = np.clip(arguments, -6e4, 6e4) if dtype == "float16" else arguments
        x = np.where(np.isinf(arguments), arguments, x).astype(dtype)
        found = run(getattr(gn.special, name), x, device=device)
        assert found.dtype == dtype
        usual = np.abs(arguments) < 1e10
        np.testing.assert_array_equal(found[usual], expected[usual])
        if dtype != "float16":
            with np.errstate(over="ignore"):
                np.testing.assert_allclose(found, expected.astype(dtype))


def test_polygamma_at_its_poles(device: str) -> None:
    x = np.array([0.0, -0.0, -1.0, -2.0, inf, nan])
    np.testing.assert_array_equal(run(polygamma(1), x, device=device), [inf, inf, inf, inf, 0, nan])
    np.testing.assert_array_equal(run(polygamma(2), x, device=device), [-inf, -inf, -inf, -inf, 0, nan])


@pytest.mark.parametrize("name", [*RANGES, "betaln", "xlogy", "xlog1py", "rel_entr"])
def test_types(name: str, device: str) -> None:
    function = getattr(gn.special, name)
    count = 2 if name in ("betaln", "xlogy", "xlog1py", "rel_entr") else 1
    for given, returned in (("int64", "float32"), ("bool", "float32"), ("float16", "float16"), ("float64", "float64")):
        found = function(*[gn.asarray(np.ones((2, 0), given), device=device)] * count)
        assert found.dtype == returned and found.shape == (2, 0)
    with pytest.raises(DTypeError, match="expected real numbers, got complex64"):
        function(*[gn.ones((2,), dtype=gn.complex64, device=device)] * count)


SMOOTH: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "erfc": (gn.special.erfc, [even(-2, 3, 5)]),
    "erfcx": (gn.special.erfcx, [even(-1, 3, 5)]),
    "erfinv": (gn.special.erfinv, [even(-0.9, 0.9, 5)]),
    "ndtr": (gn.special.ndtr, [even(-3, 3, 5)]),
    "log_ndtr": (gn.special.log_ndtr, [even(-6, 3, 5)]),
    "gammaln": (gn.special.gammaln, [joined(even(0.3, 12, 5), [-0.4, -2.3])]),
    "digamma": (gn.special.digamma, [joined(even(0.5, 12, 5), [-0.4, -2.3])]),
    "polygamma": (polygamma(2), [joined(even(1, 12, 5), [-2.4])]),
    "betaln": (gn.special.betaln, [np.array([0.7, 3.0, 9.0, 12.0, 0.6]), np.array([0.5, 1.5, 2.0, 15.0, 20.0])]),
    "logit": (gn.special.logit, [even(0.2, 0.8, 5)]),
    "log_expit": (gn.special.log_expit, [even(-5, 5, 5)]),
    "xlogy": (gn.special.xlogy, [np.array([0.0, 0.5, -2.0]), np.array([0.5, 2.0, 1.5])]),
    "xlog1py": (gn.special.xlog1py, [np.array([0.0, 0.5, -2.0]), np.array([0.5, 2.0, -0.5])]),
    "entr": (gn.special.entr, [even(0.2, 3, 5)]),
    "rel_entr": (gn.special.rel_entr, [even(0.3, 3, 5), even(0.3, 3, 5)]),
    "i0": (gn.special.i0, [np.array([-2.0, 0.0, 0.7, 15.9])]),
    "i1": (gn.special.i1, [np.array([-2.0, 0.0, 0.7, 15.9])]),
    "i0e": (gn.special.i0e, [np.array([-20.0, -2.0, 0.7, 17.0])]),
    "i1e": (gn.special.i1e, [np.array([-20.0, -2.0, 0.7, 17.0])]),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name: str, device: str) -> None:
    function, inputs = SMOOTH[name]
    scale = np.exp(-16.0) if name in ("i0", "i1") else 1.0
    check_gradients(lambda *x: function(*x) * scale, inputs, device=device)


def test_gradients_where_nothing_is_left(device: str) -> None:
    """Of x log(y) where both are zero, the gradients are zero and not NaN."""
    for function, y in ((gn.special.xlogy, 0.0), (gn.special.xlog1py, -1.0)):
        x = gn.tensor([0.0], device=device, requires_grad=True)
        other = gn.tensor([y], device=device, requires_grad=True)
        function(x, other).sum().backward()
        assert x.grad is not None and x.grad.tolist() == [0.0] and other.grad is not None
        assert other.grad.tolist() == [0.0]


def test_every_function_of_scipys_name_has_its_value(device: str) -> None:
    x = even(0.1, 0.9, 20)
    for name in gn.special.__all__:
        if name in ("softmax", "log_softmax", "logsumexp", "polygamma"):
            continue
        count = getattr(scipy_special, name).nin if hasattr(getattr(scipy_special, name), "nin") else 1
        found = run(getattr(gn.special, name), *[x] * count, device=device)
        np.testing.assert_allclose(found, getattr(scipy_special, name)(*[x] * count), rtol=1e-13, atol=1e-15)


def test_tables() -> None:
    """The tables are what their comments say."""
    mpmath = pytest.importorskip("mpmath", reason="computes the tables")
    mp = mpmath.mp
    with mpmath.workdps(60):
        root = mp.findroot(mp.digamma, 1.4616)
        assert (float(root), float(root - mp.mpf(float(root)))) == tables.DIGAMMA_ROOT

        def erfcx(u: Any) -> Any:
            x = 3 * (1 + u) / (1 - u)
            return (1 + 2 * x) * mp.exp(x * x) * mp.erfc(x)

        def bessel(order: int, u: Any) -> Any:
            x = 32 / (1 + u)
            return mp.sqrt(x) * mp.exp(-x) * mp.besseli(order, x)

        functions = {
            tables.ERFCX: erfcx,
            tables.GAMMALN: lambda u: mp.loggamma(2 + u / 2) / (u / 2),
            tables.DIGAMMA: lambda u: mp.digamma((u + 3) / 2) / ((u + 3) / 2 - root),
            tables.BESSEL0: lambda u: bessel(0, u),
            tables.BESSEL1: lambda u: bessel(1, u),
        }
        for table, function in functions.items():
            n = len(table)
            zeros = [mp.cos(mp.pi * (k + mp.mpf(1) / 2) / n) for k in range(n)]
            off = [mp.polyval(list(map(mp.mpf, reversed(table))), u) / function(u) - 1 for u in zeros]
            assert max(map(abs, off)) < 5e-16  # what rounding the coefficients to float64 does


def test_raw_arrays_stay_raw() -> None:
    assert type(ops.gammaln(np.ones(3))) is np.ndarray
