"""Element by element: arithmetic, comparison, logic, powers, trigonometry, activations.

Most of these are one line each: a name that NumPy and CuPy share, the formula, and the derivative. In a derivative, g
is the gradient of the result y, and a leading underscore marks a value that it does not need.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.backends.native import library
from gpunet.dtypes import default_dtype, float32
from gpunet.ops import elementwise_kernels as cuda
from gpunet.ops.op import Op, Traced, op, pass_on


def _unary(name: str, formula: str, vjp: Callable[..., Any] | None = None, **flags: bool) -> Op:
    """An op of one array that the array library has under the same name."""

    def reference(xp: Any, x: Any) -> Any:
        return getattr(xp, name)(x)

    return _declare(reference, name, formula, vjp, direct=True, **flags)


def _floating(name: str, formula: str, vjp: Callable[..., Any]) -> Op:
    """As `_unary`, for a function whose result is floating-point: integers are converted to the default type first."""

    def reference(xp: Any, x: Any) -> Any:
        return getattr(xp, name)(_as_floating(xp, x))

    return _declare(reference, name, formula, vjp, floating=True)


def _as_floating(xp: Any, x: Any) -> Any:
    return xp.astype(x, default_dtype()) if x.dtype.kind in "iub" else x


def _binary(name: str, formula: str, vjp: Callable[..., Any] | None = None, promotes: bool = True) -> Op:
    """An op of two arrays, broadcast against each other, that the array library has under the same name."""

    def reference(xp: Any, a: Any, b: Any) -> Any:
        return getattr(xp, name)(a, b)

    return _declare(reference, name, formula, vjp, direct=True, promotes=promotes)


def _declare(
    reference: Any, name: str, formula: str, vjp: Callable[..., Any] | None, floating: bool = False, **flags: bool
) -> Op:
    reference.__name__ = reference.__qualname__ = name
    reference.__doc__ = f"{formula}, element by element."
    declared = Op(reference, **flags)
    if vjp is not None:
        (declared.vjps if declared.arity == 1 else declared.vjp)(vjp)
    if not declared.view:  # else there is nothing to compute
        cuda.attach(declared, np.positive if name == "round" else None, floating=floating)
    return declared


def _flat(xp: Any, g: Any, _y: Any, _x: Any) -> Any:
    """The derivative of a step function, zero wherever it exists."""
    return g * 0.0


def _conj(xp: Any, x: Any) -> Any:
    """The conjugate, without a copy of what is real."""
    return xp.conj(x) if x.dtype.kind == "c" else x


def _turning(xp: Any, g: Any, y: Any, x: Any) -> Any:
    """The derivative of sign: zero but for complex numbers, whose signs turn as they do."""
    if x.dtype.kind != "c":
        return g * 0.0
    return (g - xp.real(g * y) * xp.conj(y)) / xp.where(x == 0, 1.0, xp.abs(x))


# --- arithmetic

add = _binary("add", "a + b")
add.vjps(pass_on, pass_on)
subtract = _binary("subtract", "a - b", lambda xp, g, _y, _a, _b: (g, lambda: -g))
multiply = _binary("multiply", "a * b")
multiply.vjps(lambda xp, g, _y, _a, b: g * b, lambda xp, g, _y, a, _b: g * a)
maximum = _binary(
    "maximum", "The larger of a and b", lambda xp, g, _y, a, b: (lambda: g * _share(a, b), lambda: g * _share(b, a))
)
minimum = _binary(
    "minimum", "The smaller of a and b", lambda xp, g, _y, a, b: (lambda: g * _share(b, a), lambda: g * _share(a, b))
)


def _floor_divide(xp: Any, a: Any, b: Any) -> Any:
    """Of infinities, what floor(a / b) is, as the standard has it."""
    y = xp.floor_divide(a, b)
    if y.dtype.kind == "f":
        infinite = xp.isinf(a) | xp.isinf(b)
        if infinite.any():
            y = xp.where(infinite, xp.floor(xp.divide(a, b)), y)
    return y


floor_divide = _declare(_floor_divide, "floor_divide", "The largest integer not above a / b", None, promotes=True)
remainder = _binary(
    "remainder",
    "a - b * floor(a / b)",
    lambda xp, g, _y, a, b: (g, lambda: -g * xp.floor(a / b)),
)
hypot = _binary("hypot", "sqrt(a² + b²)", lambda xp, g, y, a, b: (lambda: g * a / y, lambda: g * b / y))
atan2 = _binary(
    "atan2",
    "The angle of the point (b, a)",
    lambda xp, g, _y, a, b: (lambda: g * b / (a * a + b * b), lambda: -g * a / (a * a + b * b)),
)
logaddexp = _binary(
    "logaddexp",
    "log(exp(a) + exp(b))",
    lambda xp, g, y, a, b: (lambda: g * xp.exp(a - y), lambda: g * xp.exp(b - y)),
)
copysign = _binary(
    "copysign",
    "The magnitude of a with the sign of b",
    lambda xp, g, y, a, _b: (lambda: g * xp.sign(y) * xp.sign(a), None),
)
nextafter = _binary("nextafter", "The next representable number from a towards b")


def _share(a: Any, b: Any) -> Any:
    """1 where a > b, a half where they are equal: how maximum(a, b) changes with a."""
    return (a > b) * 1.0 + (a == b) * 0.5


@op
def divide(xp, a, b):
    """a / b, element by element. Integers become the floating-point type of the other, or the default one."""
    types = [v.dtype for v in (a, b) if hasattr(v, "dtype")]
    floating = next((t for t in types if t.kind not in "iub"), default_dtype())
    a, b = (xp.astype(v, floating) if getattr(v, "dtype", floating).kind in "iub" else v for v in (a, b))
    return xp.divide(a, b)


@divide.vjp
def _(xp, g, y, _a, b):
    return (lambda: g / b), (lambda: -g * y / b)


@op(promotes=True)
def pow(xp, a, b):
    """a to the power of b, element by element."""
    return xp.pow(a, b)


@pow.vjp
def _(xp, g, y, a, b):
    def base() -> Any:
        if isinstance(b, (int, float, complex)):
            return g * (b * xp.pow(a, b - 1)) if b else g * 0.0
        return g * xp.where(b == 0, 0.0, b * xp.pow(a, xp.where(b == 0, 1.0, b - 1)))

    def exponent() -> Any:
        if y.dtype.kind == "c":
            if not hasattr(a, "dtype"):
                return g * y * (cmath.log(a) if a else 0.0)
            return g * y * xp.log(xp.where(a == 0, 1.0, xp.astype(a, y.dtype)))
        positive = a > 0
        if isinstance(a, (int, float)):
            return g * y * (math.log(a) if positive else 0.0)
        return g * y * xp.where(positive, xp.log(xp.where(positive, a, 1.0)), 0.0)

    return base, exponent


negative = _unary("negative", "-x", lambda xp, g, _y, _x: -g)
positive = _unary("positive", "x", lambda xp, g, _y, _x: g)
abs = _unary("abs", "The absolute value of x", lambda xp, g, _y, x: g * _conj(xp, xp.sign(x)))
sign = _unary("sign", "-1, 0 or 1 as x is negative, zero or positive; of complex x, x / abs(x)", _turning)
square = _unary("square", "x²", lambda xp, g, _y, x: g * (2.0 * x))
reciprocal = _floating("reciprocal", "1 / x", lambda xp, g, y, _x: -g * y * y)
floor = _unary("floor", "The largest integer not above x", _flat)
ceil = _unary("ceil", "The smallest integer not below x", _flat)
trunc = _unary("trunc", "The nearest integer towards zero", _flat)
round = _unary("round", "The nearest integer, halves to even", _flat)
real = _unary("real", "The real part of x", lambda xp, g, _y, _x: g, view=True)
imag = _unary("imag", "The imaginary part of x", lambda xp, g, _y, _x: g * -1j, view=True)
conj = _unary("conj", "The complex conjugate of x", lambda xp, g, _y, _x: _conj(xp, g))
signbit = _unary("signbit", "Whether the sign bit of x is set")
isnan = _unary("isnan", "Whether x is not a number")
isinf = _unary("isinf", "Whether x is an infinity")
isfinite = _unary("isfinite", "Whether x is finite")

# --- powers and exponentials

sqrt = _floating("sqrt", "The square root of x", lambda xp, g, y, _x: g * 0.5 / y)
exp = _floating("exp", "e to the power of x", lambda xp, g, y, _x: g * y)


def _expm1(xp: Any, x: Any) -> Any:
    x = _as_floating(xp, x)
    if x.dtype.kind != "c":
        return xp.expm1(x)
    y = xp.asarray(xp.exp(x))  # whose infinities and NaN are right, as is the imaginary part
    a, b = xp.real(x), xp.imag(x)
    exact = xp.expm1(a) * xp.cos(b) - 2.0 * xp.square(xp.sin(0.5 * b)) + 0.0
    xp.real(y)[...] = xp.where(xp.isfinite(a) & xp.isfinite(b), exact, xp.real(y) - 1.0)
    return y


expm1 = _declare(_expm1, "expm1", "e to the power of x, less 1", lambda xp, g, y, _x: g * (y + 1.0), floating=True)
log = _floating("log", "The natural logarithm of x", lambda xp, g, _y, x: g / x)
log1p = _floating("log1p", "log(1 + x)", lambda xp, g, _y, x: g / (x + 1.0))
log2 = _floating("log2", "The logarithm of x to base 2", lambda xp, g, _y, x: g / (x * math.log(2)))
log10 = _floating("log10", "The logarithm of x to base 10", lambda xp, g, _y, x: g / (x * math.log(10)))

# --- trigonometry


def _acosh_root(xp: Any, x: Any) -> Any:
    """sqrt(x² - 1), on acosh's branch."""
    return xp.sqrt(x - 1.0) * xp.sqrt(x + 1.0) if x.dtype.kind == "c" else xp.sqrt(x * x - 1.0)


sin = _floating("sin", "The sine of x", lambda xp, g, _y, x: g * xp.cos(x))
cos = _floating("cos", "The cosine of x", lambda xp, g, _y, x: -g * xp.sin(x))
tan = _floating("tan", "The tangent of x", lambda xp, g, y, _x: g * (1.0 + y * y))
asin = _floating("asin", "The inverse sine of x", lambda xp, g, _y, x: g / xp.sqrt(1.0 - x * x))
acos = _floating("acos", "The inverse cosine of x", lambda xp, g, _y, x: -g / xp.sqrt(1.0 - x * x))
atan = _floating("atan", "The inverse tangent of x", lambda xp, g, _y, x: g / (1.0 + x * x))
sinh = _floating("sinh", "The hyperbolic sine of x", lambda xp, g, _y, x: g * xp.cosh(x))
cosh = _floating("cosh", "The hyperbolic cosine of x", lambda xp, g, _y, x: g * xp.sinh(x))


def _tanh(xp: Any, x: Any) -> Any:
    x = _as_floating(xp, x)
    y = xp.tanh(x)
    if x.dtype.kind == "c":  # far out, a zero has the sign of the imaginary part
        a, b = xp.real(x), xp.imag(x)
        far = xp.isinf(a) & xp.isfinite(b)
        if far.any():
            y = xp.asarray(y)
            xp.imag(y)[...] = xp.where(far, xp.copysign(xp.zeros_like(b), b), xp.imag(y))
    return y


tanh = _declare(
    _tanh, "tanh", "The hyperbolic tangent of x", lambda xp, g, y, _x: _slope(tanh_grad, xp, g, y), floating=True
)
asinh = _floating("asinh", "The inverse hyperbolic sine of x", lambda xp, g, _y, x: g / xp.sqrt(x * x + 1.0))
acosh = _floating("acosh", "The inverse hyperbolic cosine of x", lambda xp, g, _y, x: g / _acosh_root(xp, x))
atanh = _floating("atanh", "The inverse hyperbolic tangent of x", lambda xp, g, _y, x: g / (1.0 - x * x))

# --- comparison and logic

equal = _binary("equal", "a == b", promotes=False)
not_equal = _binary("not_equal", "a != b", promotes=False)
less = _binary("less", "a < b", promotes=False)
less_equal = _binary("less_equal", "a <= b", promotes=False)
greater = _binary("greater", "a > b", promotes=False)
greater_equal = _binary("greater_equal", "a >= b", promotes=False)
logical_and = _binary("logical_and", "a and b", promotes=False)
logical_or = _binary("logical_or", "a or b", promotes=False)
logical_xor = _binary("logical_xor", "Either a or b, not both", promotes=False)
logical_not = _unary("logical_not", "not x")
bitwise_and = _binary("bitwise_and", "a & b, bit by bit", promotes=False)
bitwise_or = _binary("bitwise_or", "a | b, bit by bit", promotes=False)
bitwise_xor = _binary("bitwise_xor", "a ^ b, bit by bit", promotes=False)
bitwise_left_shift = _binary("bitwise_left_shift", "The bits of a moved left by b", promotes=False)
bitwise_right_shift = _binary("bitwise_right_shift", "The bits of a moved right by b", promotes=False)
bitwise_invert = _unary("bitwise_invert", "~x, bit by bit")


@op
def where(xp, condition, a, b):
    """a where `condition` (boolean) is true, else b; the three broadcast against each other.

    Of integers and a Python float, the result is of the default floating-point type.
    """
    y = xp.where(condition, a, b)
    if y.dtype.kind == "f" and not any(v.dtype.kind == "f" for v in (a, b) if hasattr(v, "dtype")):
        y = xp.astype(y, default_dtype())
    return y


@where.vjp
def _(xp, g, _y, condition, _a, _b):
    return None, (lambda: xp.where(condition, g, 0.0)), (lambda: xp.where(condition, 0.0, g))


@op(promotes=True)
def clip(xp, x, min=None, max=None):
    """x limited to the interval from `min` to `max` (numbers or arrays that broadcast with x; None: no limit)."""
    return xp.clip(x, min, max)


@clip.vjp
def _(xp, g, _y, x, min, max):
    def inside() -> Any:
        mask = True
        if min is not None:
            mask = mask & (x >= min)
        if max is not None:
            mask = mask & (x <= max)
        return g * mask

    return inside, (lambda: g * (x < min)), (lambda: g * (x > max))


# --- activations
#
# Gradients that the CPU computes in one pass are ops of their own, NAME_grad: of the gradient of the result, and the
# result or the input. They are not differentiable; where gradients are recorded, what they are made of is.


def _slope(gradient: Op, xp: Any, g: Any, *values: Any, **params: Any) -> Any:
    """`gradient` of raw arrays; of Tensors, its formula."""
    return gradient.reference(xp, g, *values, **params) if isinstance(g, Traced) else gradient(g, *values, **params)


def _slope_at(gradient: Op, result: bool) -> Callable[..., Any]:
    """`_slope` at the result, or else at the input, for `Op.vjps`."""
    implementations = gradient.implementations

    def at_result(xp: Any, g: Any, y: Any, _x: Any) -> Any:
        run = implementations.get(type(g))
        return run(g, y) if run is not None else _slope(gradient, xp, g, y)

    def at_input(xp: Any, g: Any, _y: Any, x: Any) -> Any:
        run = implementations.get(type(g))
        return run(g, x) if run is not None else _slope(gradient, xp, g, x)

    return at_result if result else at_input


def _one_pass(
    op: Op,
    choose: Callable[..., Callable[..., None]],
    least: int = 0,
    share: int = 2,
    otherwise: Callable[[Any], Any] | None = None,
) -> None:
    """Let `op` run on the CPU as a function of kernels/cpu/elementwise.cpp that its parameters choose.

    Args:
        op: of one array x, or of a gradient and an array of one shape.
        choose: called with the library and the op's parameters, gives a function of the arrays, the result and a range
            of their elements.
        least: below so many elements of x NumPy is quicker.
        share: of how many elements the kernel makes a result while NumPy adds one; see `threads.split`.
        otherwise: called with fewer than `least` elements; None: that is the reference.
    """

    if op.arity == 1:

        @op.kernel("elementwise", platform="cpu")
        def run(native: Any, x: Any, **params: Any) -> Any:
            size = x.size
            if x.dtype != float32:
                return NotImplemented
            if size < least:
                return NotImplemented if otherwise is None else otherwise(x)
            y = np.empty_like(x)  # without gaps; its axes lie in memory in the same order
            if x.strides != y.strides:
                x = lying_as(y, x)
            function = choose(native, **params)
            if size < _LITTLE:
                function(x, y, 0, size)
            else:
                threads.split(size, partial(function, x, y), size // share)
            return y

        return

    @op.kernel("elementwise", platform="cpu")
    def run_on_two(native: Any, g: Any, x: Any, **params: Any) -> Any:
        return _run_on_two(choose(native, **params), g, x, share)


def _run_on_two(function: Callable[..., None], g: Any, x: Any, share: int) -> Any:
    """What `function` makes of a gradient and an array; NotImplemented if they are not alike or not float32."""
    size = x.size
    if x.dtype != float32 or g.dtype != float32 or g.shape != x.shape:
        return NotImplemented
    y = np.empty_like(x)
    if g.strides != y.strides:
        g = lying_as(y, g)
    if x.strides != y.strides:
        x = lying_as(y, x)
    if size < _LITTLE:
        function(g, x, y, 0, size)
    else:
        threads.split(size, partial(function, g, x, y), size // share)
    return y


_LITTLE = 10_000  # elements that are certainly not worth dividing among threads


def lying_as(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x with its elements where those of y are in memory; a copy if it is laid out otherwise, or broadcast."""
    if x.strides == y.strides and x.dtype == y.dtype:
        return x
    copy = np.empty_like(y)
    if not _turn(x, None, copy):
        copy[...] = x
    return copy


def _turn(x: np.ndarray, a: np.ndarray | None, y: np.ndarray) -> bool:
    """Whether x (N, C, *) and y, of its shape, lie one channels-last and the other as its axes say. Then y becomes x,
    plus `a` if that is given, which lies as y."""
    if x.shape != y.shape or x.ndim < 3 or not x.dtype == y.dtype == float32:
        return False
    n, rows = x.shape[:2]
    columns = prod(x.shape[2:])
    if x.flags.c_contiguous and _is_last(y):
        pass
    elif y.flags.c_contiguous and _is_last(x) and rows > 7:  # of few channels NumPy is quicker
        rows, columns = columns, rows
    else:
        return False
    native = library("elementwise")
    if not native.usable():
        return False
    strips = -(-columns // native.turn_strip(rows, columns))
    threads.split(n * strips, partial(native.turn, x, a, y, rows, columns), x.size)
    return True


def _is_last(a: np.ndarray) -> bool:
    return a.transpose(0, *range(2, a.ndim), 1).flags.c_contiguous


@add.kernel("elementwise", platform="cpu", least=50_000)
def _(native, a, b):
    if isinstance(b, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype == float32:
        first, second = (a, b) if a.ndim < 3 or _is_last(a) else (b, a)
        y = np.empty_like(first)
        if first.strides == second.strides == y.strides:
            threads.split(a.size, partial(native.add, a, b, y), a.size)
            return y
        if _is_last(first) and _turn(second, first, y):
            return y
    return np.add(a, b)


@op
def tanh_grad(xp, g, y):
    """The gradient of `tanh` with the result y."""
    return g * (1.0 - y * y)


_one_pass(tanh, lambda native: native.tanh_all, least=2000)
_one_pass(tanh_grad, lambda native: native.tanh_grad, share=3)


@op
def relu(xp, x):
    """max(x, 0); NaN stays NaN. Its derivative at 0 is taken to be 0."""
    return xp.maximum(x, xp.zeros((), dtype=x.dtype))


@op
def relu_grad(xp, g, y):
    """The gradient of `relu` with the result y."""
    return g * (y > 0)


relu.vjps(_slope_at(relu_grad, result=True))
_ZERO = np.zeros((), float32)
_one_pass(relu, lambda native: native.relu, least=2000, share=4, otherwise=lambda x: np.maximum(x, _ZERO))


@relu_grad.kernel("elementwise", platform="cpu")
def _(native, g, y):
    if y.size < _LITTLE:
        dx = np.empty(y.shape, float32)
        if native.relu_grad_alike(g, y, dx):
            return dx
    return _run_on_two(native.relu_grad, g, y, share=3)


@op
def leaky_relu(xp, x, *, negative_slope=0.01):
    """x where it is positive, else negative_slope * x (Maas, Hannun and Ng, 2013)."""
    return xp.where(x > 0, x, negative_slope * x)


@leaky_relu.vjp
def _(xp, g, _y, x, *, negative_slope):
    return xp.where(x > 0, g, negative_slope * g)


@op
def elu(xp, x, *, alpha=1.0):
    """x where it is positive, else alpha * (exp(x) - 1) (Clevert, Unterthiner and Hochreiter, 2015)."""
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, xp.zeros((), dtype=x.dtype))))


@elu.vjp
def _(xp, g, _y, x, *, alpha):
    return g * xp.where(x > 0, 1.0, alpha * xp.exp(xp.where(x > 0, 0.0, x)))


@op
def hardtanh(xp, x, *, min_val=-1.0, max_val=1.0):
    """x limited to the interval from min_val to max_val. Its derivative at the ends is taken to be 0, as relu's."""
    return xp.clip(x, min_val, max_val)


@hardtanh.vjp
def _(xp, g, y, _x, *, min_val, max_val):
    return g * ((y > min_val) & (y < max_val))


@op
def sigmoid(xp, x):
    """1 / (1 + exp(-x)), computed as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    return 0.5 * xp.tanh(0.5 * _as_floating(xp, x)) + 0.5


@sigmoid.vjp
def _(xp, g, y, _x):
    return _slope(sigmoid_grad, xp, g, y)


@op
def sigmoid_grad(xp, g, y):
    """The gradient of `sigmoid` with the result y."""
    return g * (y * (1.0 - y))


_one_pass(sigmoid, lambda native: native.sigmoid_all)
_one_pass(sigmoid_grad, lambda native: native.sigmoid_grad, share=3)


@op
def softplus(xp, x, *, beta=1.0):
    """log(1 + exp(beta * x)) / beta, a smooth relu (Dugas et al., 2001)."""
    z = beta * x
    return (xp.maximum(z, xp.zeros((), dtype=x.dtype)) + xp.log1p(xp.exp(-xp.abs(z)))) / beta


@softplus.vjp
def _(xp, g, _y, x, *, beta):
    return g * sigmoid(beta * x)


@op
def silu(xp, x):
    """x * sigmoid(x), also called swish (Elfwing, Uchibe and Doya, 2017)."""
    return x * sigmoid(x)


@silu.vjp
def _(xp, g, _y, x):
    return _slope(silu_grad, xp, g, x)


@op
def silu_grad(xp, g, x):
    """The gradient of `silu` at x."""
    s = sigmoid(x)
    return g * (s * (1.0 + x * (1.0 - s)))


_one_pass(silu, lambda native: native.silu)
_one_pass(silu_grad, lambda native: native.silu_grad)


@op
def erf(xp, x):
    """The error function, 2/sqrt(pi) times the integral of exp(-t²) from 0 to x. Relative error: 3e-7 in float32
    (tanh of an odd polynomial, fitted for this), 5e-15 in float64 (the series 7.1.6 of Abramowitz and Stegun)."""
    x = _as_floating(xp, x)
    if x.dtype != "float64":
        z = xp.clip(x, -4.0, 4.0)
        u = z * z
        p = u * _ERF[-1] + _ERF[-2]
        for coefficient in _ERF[-3::-1]:
            p = p * u + coefficient
        return xp.tanh(p * z)
    z = xp.clip(x, -6.0, 6.0)  # beyond, it is 1 to the last bit
    term = total = z
    for n in range(1, 150):  # all terms are of one sign; at 6, the last is below 1e-17 of the sum
        term = term * (z * z) * (2.0 / (2 * n + 1))
        total = total + term
    return total * xp.exp(-z * z) * (2.0 / math.sqrt(math.pi))


_ERF = (1.12837927, 0.102769055, -0.000191826331, -0.000619790111, 8.76400812e-05, -5.66906446e-06, 1.41895891e-07)


@erf.vjp
def _(xp, g, _y, x):
    return g * (2.0 / math.sqrt(math.pi)) * xp.exp(-x * x)


@op
def gelu(xp, x, *, approximate="none"):
    """x * P(X <= x) for a standard normal X (Hendrycks and Gimpel, 2016).

    Args:
        x: floating-point, any shape.
        approximate: "none" uses the error function; "tanh" the paper's approximation
            x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x³))).
    """
    if approximate == "tanh":
        z = xp.clip(x, -_GELU_FLAT, _GELU_FLAT)
        return 0.5 * x * (1.0 + xp.tanh(_TANH_SCALE * (z + 0.044715 * z * z * z)))
    return x * (0.5 * (1.0 + erf(x * math.sqrt(0.5))))


@gelu.vjp
def _(xp, g, _y, x, *, approximate):
    return _slope(gelu_grad, xp, g, x, approximate=approximate)


@op
def gelu_grad(xp, g, x, *, approximate):
    """The gradient of `gelu` at x."""
    z = xp.clip(x, -_GELU_FLAT, _GELU_FLAT)
    if approximate == "tanh":
        t = xp.tanh(_TANH_SCALE * (z + 0.044715 * z * z * z))
        return g * (0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * _TANH_SCALE * (1.0 + 3 * 0.044715 * z * z))
    density = xp.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))
    return g * (0.5 * (1.0 + erf(x * math.sqrt(0.5))) + z * density)


_one_pass(gelu, lambda native, approximate: native.gelu_tanh if approximate == "tanh" else native.gelu)
_one_pass(gelu_grad, lambda native, approximate: native.gelu_tanh_grad if approximate == "tanh" else native.gelu_grad)

_TANH_SCALE = math.sqrt(2.0 / math.pi)
_GELU_FLAT = 40.0  # beyond, gelu is x or 0 to the last bit in float64 too, and powers of x must not overflow

# --- on a GPU: functors of kernels/elementwise.cuh, for ops that NumPy has no function of the same name and types for

cuda.attach(divide, floating=True)
cuda.attach(pow, np.power)
cuda.attach(relu, np.maximum)
cuda.attach(silu, np.multiply, floating=True)
for _op in (sigmoid, erf):
    cuda.attach(_op, np.tanh, floating=True)
for _op in (leaky_relu, elu, softplus, relu_grad, tanh_grad, sigmoid_grad, silu_grad):
    cuda.attach(_op, np.multiply, only_floating=True)


@where.kernel("elementwise")
def _(launcher, condition, a, b):
    return cuda.where(launcher, condition, a, b)


@clip.kernel("elementwise")
def _(launcher, x, min, max):
    return cuda.clip(launcher, x, min, max)


@hardtanh.kernel("elementwise")
def _(launcher, x, *, min_val, max_val):
    return cuda.clip(launcher, x, min_val, max_val)


@gelu.kernel("elementwise")
def _(launcher, x, *, approximate):
    return cuda.apply(launcher, "gelu_tanh" if approximate == "tanh" else "gelu", cuda.FLOATING, (x,))


@gelu_grad.kernel("elementwise")
def _(launcher, g, x, *, approximate):
    return cuda.apply(launcher, "gelu_tanh_grad" if approximate == "tanh" else "gelu_grad", cuda.FLOATING, (g, x))
