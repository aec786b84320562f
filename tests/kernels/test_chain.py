"""Chains of elementwise ops, and the derivatives of all of these, as one kernel each on a device with kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation
from gpunet.ops import chain
from gpunet.ops import elementwise as ew
from gpunet.ops.chain import Number, Symbol
from gpunet.ops.op import op
from tests.ops.test_complex import CASES as COMPLEX
from tests.ops.test_complex import check, gradient_of

rng = np.random.default_rng(0)


def on(backend: Backend, x: Any) -> Any:
    return backend.from_numpy(np.asarray(x), Device(backend.name))


@chain.chained
@op
def scaled_sum(xp, x, y, *, scale):
    """x * scale + y, limited and shifted by what has no business in real networks."""
    return xp.clip(x * scale + xp.exp(-y), -2.0, 2.0) - xp.where((x > 0) & (y > 0), 0, x**2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_ops_reference_is_its_kernel(dtype: str, kernel_device: Backend) -> None:
    x, y = rng.standard_normal((5, 7)).astype(dtype), rng.standard_normal(7).astype(dtype)
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        got = scaled_sum(on(kernel_device, x), on(kernel_device, y), scale=0.75)
    expected = scaled_sum.reference(np, x.astype(np.float64), y.astype(np.float64), scale=0.75).astype(dtype)
    assert got.dtype == dtype
    epsilon = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(kernel_device.to_numpy(got), expected, rtol=8 * epsilon, atol=8 * epsilon)
    if kernel_device.name == "emulated":
        assert len(log) == 1 and log[0][0].startswith("elementwise_strided<Apply<op::subtract, Apply<op::clip")


UNARY = "sqrt exp log sin tanh sigmoid relu silu gelu abs square reciprocal expm1 log1p atan softplus elu leaky_relu"
BINARY = "add subtract multiply divide maximum minimum hypot logaddexp pow atan2"


@pytest.mark.parametrize("name", UNARY.split() + BINARY.split())
def test_derivatives_are_one_kernel_for_each_input(name: str, kernel_device: Backend) -> None:
    function = getattr(ew, name)
    values = [rng.uniform(0.5, 2.0, (4, 6)).astype(np.float32) for _ in range(function.arity)]
    g = rng.standard_normal((4, 6)).astype(np.float32)
    gradients = []
    log: list[Any] = []
    host: list[str] = []
    for device in ("cpu", kernel_device.name):
        inputs = [gn.asarray(v, device=device).requires_grad_() for v in values]
        y = function(*inputs)
        seed = gn.asarray(g, device=device)
        with emulation(log=log, host=host):
            y.backward(seed)
        gradients.append([t.grad.cpu().numpy() for t in inputs if t.grad is not None])
    for a, b in zip(*gradients):
        np.testing.assert_allclose(b, a, rtol=3e-6, atol=3e-6)
    if kernel_device.name == "emulated":
        assert host == []
        assert len([name for name, _ in log if name.startswith("elementwise")]) <= len(values)


def test_gradients_of_branches_are_added_by_kernels(kernel_device: Backend) -> None:
    x = gn.asarray(rng.standard_normal(9).astype(np.float32), device=kernel_device.name).requires_grad_()
    host: list[str] = []
    with emulation(host=host):
        y = (x + x * 2.0 + gn.exp(x) - x).mean() + x.var() + gn.max(x) * 0.5 + x.std()
        y.backward()
    assert host == []
    t = gn.asarray(x.detach().cpu().numpy()).requires_grad_()
    ((t + t * 2.0 + gn.exp(t) - t).mean() + t.var() + gn.max(t) * 0.5 + t.std()).backward()
    assert x.grad is not None and t.grad is not None
    np.testing.assert_allclose(x.grad.cpu().numpy(), t.grad.numpy(), rtol=1e-5, atol=1e-6)


def noted(formula: Any, *kinds: Any) -> Any:
    return chain._noted(formula, kinds, ())


def test_what_is_a_chain() -> None:
    twice = "Apply<op::multiply, Argument<%d>, Argument<1>>"
    both = noted(lambda xp, a, b: a * 2 + b * 2, Symbol, Symbol)
    assert both == ((f"Apply<op::add, {twice % 0}, {twice % 2}>", (0, Number(2), 1)),)
    assert noted(lambda xp, a, b: xp.maximum(a, b), Symbol, Symbol) == (("maximum", (0, 1)),)
    assert noted(lambda xp, a: (a, None, lambda: a**2, -a), Symbol) == (0, None, ("square", (0,)), ("negative", (0,)))
    assert noted(lambda xp, a, n: a**n, Symbol, Number(1)) == (0,)


@pytest.mark.parametrize(
    "formula",
    [
        lambda xp, a: a if a > 0 else -a,
        lambda xp, a: a * a.shape[0],
        lambda xp, a: xp.sum(a),
        lambda xp, a: a * [1.0],
        lambda xp, a: 2.0,
        lambda xp, a: (a, "text"),
        lambda xp, a: a + 1.0 + 2.0 + 3.0 + 4.0 + 5.0 + 6.0,  # too many inputs
        lambda xp, a: [a := a * a for _ in range(9)][-1],  # too many parts
    ],
)
def test_what_is_no_chain(formula: Any) -> None:
    assert noted(formula, Symbol) is None


def test_no_chain_runs_as_it_is(kernel_device: Backend) -> None:
    x = on(kernel_device, np.arange(6.0))
    formula = chain.fused(lambda xp, a, n: a.reshape(2, 3) * n)
    np.testing.assert_array_equal(kernel_device.to_numpy(formula(np, x, 2)), np.arange(6.0).reshape(2, 3) * 2)
    complicated = on(kernel_device, np.array([1j, 2]))
    double = chain.fused(lambda xp, a: a * 2)
    np.testing.assert_array_equal(kernel_device.to_numpy(double(np, complicated)), [2j, 4])


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_derivatives_are_no_chains(name: str, kernel_device: Backend) -> None:
    f, arrays = COMPLEX[name]
    check(f, arrays, kernel_device.name)
    check(*gradient_of(f, arrays, kernel_device.name), kernel_device.name)
