"""Derivatives on complex numbers, against finite differences along their real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import GradientError

rng = np.random.default_rng(0)


def z(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def x(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


CASES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    **{
        name: (getattr(gn, name), (z(3, 2),))
        for name in (
            "abs",
            "acos",
            "acosh",
            "asin",
            "asinh",
            "atan",
            "atanh",
            "conj",
            "cos",
            "cosh",
            "exp",
            "expm1",
            "imag",
            "log",
            "log10",
            "log1p",
            "log2",
            "negative",
            "positive",
            "real",
            "reciprocal",
            "sign",
            "sin",
            "sinh",
            "sqrt",
            "square",
            "tan",
            "tanh",
        )
    },
    **{
        f"{name}: {kinds}": (getattr(gn, name), args)
        for name in ("add", "subtract", "multiply", "divide", "pow")
        for kinds, args in {
            "complex, complex": (z(3, 2), z(2)),
            "complex, real": (z(3, 1), x(3, 2)),
            "real, complex": (x(3, 2), z(3, 2)),
        }.items()
    },
    "pow: a number": (lambda a: a**2.5, (z(4),)),
    "pow: a complex number": (lambda a: a ** (1 + 2j), (z(4),)),
    "a number to the power": (lambda a: 2.0**a, (z(4),)),
    "abs at zero of a sum": (lambda a: gn.abs(a) ** 2, (z(3),)),
    "matmul": (gn.matmul, (z(2, 3, 4), z(4, 2))),
    "matmul: real, complex": (gn.matmul, (x(3, 4), z(4, 2))),
    "vecdot": (gn.vecdot, (z(3, 4), z(4))),
    "tensordot": (gn.tensordot, (z(2, 3, 4), z(3, 4, 2))),
    "einsum": (lambda a, b: gn.einsum("ij,kj->ik", a, b), (z(2, 3), z(4, 3))),
    "outer": (gn.linalg.outer, (z(3), x(2))),
    "sum": (lambda a: gn.sum(a, axis=0), (z(3, 2),)),
    "mean": (lambda a: gn.mean(a, axis=1, keepdims=True), (z(3, 2),)),
    "prod": (lambda a: gn.prod(a, axis=1), (z(3, 2),)),
    "prod with a zero": (gn.prod, (np.array([1 + 1j, 0, 2 - 1j]),)),
    "cumulative_sum": (lambda a: gn.cumulative_sum(a, axis=1), (z(2, 3),)),
    "cumulative_prod": (lambda a: gn.cumulative_prod(a, axis=1), (z(2, 3),)),
    "cumulative_prod with zeros": (lambda a: gn.cumulative_prod(a, axis=0), (np.array([[1j, 2], [0, 1], [3, 0]]),)),
    "where": (lambda a, b: gn.where(gn.real(a) > 0, a, b), (z(5), x(5))),
    "shapes": (lambda a: gn.concat([gn.flip(a, axis=0), a.T.reshape(3, 2)], axis=1)[::2], (z(3, 2),)),
    "take": (lambda a: gn.take(a, gn.asarray([2, 0, 2], device=a.device), axis=0), (z(3, 2),)),
    "astype": (lambda a: a.astype("complex128") * 1j, (x(3),)),
    "in and out": (lambda a: gn.real(a) * gn.exp(1j * gn.imag(a)), (z(3),)),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str, device: str) -> None:
    f, arrays = CASES[name]
    check(f, arrays, device)
    check(*gradient_of(f, arrays, device), device)


def check(f: Callable[..., Any], arrays: tuple[np.ndarray, ...], device: str, step: float = 1e-6) -> None:
    """dL = Re(conj(gradient) dz), for the real L = Re(sum(conj(v) f(z)))."""
    tensors = [gn.tensor(a, device=device, requires_grad=True) for a in arrays]
    y = f(*tensors)
    v = rng.standard_normal(y.shape) + (1j * rng.standard_normal(y.shape) if y.dtype.kind == "c" else 0.0)
    y.backward(gn.tensor(v, device=device))

    def along(direction: list[np.ndarray], length: float) -> float:
        moved = [gn.asarray(a + length * d, device=device) for a, d in zip(arrays, direction)]
        return float(np.sum(np.conj(v) * f(*moved).detach().cpu().numpy()).real)

    for part in (1.0, 1j):
        direction = [part * x(*a.shape) if a.dtype.kind == "c" else x(*a.shape) for a in arrays]
        expected = (along(direction, step) - along(direction, -step)) / (2 * step)
        found = 0.0
        for t, a, d in zip(tensors, arrays, direction):
            assert t.grad.shape == a.shape and t.grad.dtype == a.dtype
            found += float(np.sum(np.conj(t.grad.cpu().numpy()) * d).real)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def gradient_of(f: Callable[..., Any], arrays: tuple[np.ndarray, ...], device: str) -> Any:
    """The gradient with respect to the first array as a function of all, to be differentiated in turn."""
    y = f(*(gn.asarray(a, device=device) for a in arrays))
    v = gn.asarray(z(*y.shape) if y.dtype.kind == "c" else x(*y.shape), device=device)

    def gradient(*tensors: Any) -> Any:
        first, *rest = tensors
        if not first.requires_grad:  # evaluated at a point, to be compared
            first = first.detach()
            first.requires_grad = True
        total = gn.sum(gn.real(gn.conj(v) * f(first, *rest)))
        (g,) = gn.grad(total, [first], create_graph=True)
        return g + 0.0 * first + sum((0.0 * gn.sum(t) for t in rest), 0.0)

    return gradient, arrays


def test_gradient_descent_goes_downhill(device: str) -> None:
    target = gn.asarray(z(4), device=device)
    w = gn.tensor(np.zeros(4, complex), device=device, requires_grad=True)
    for _ in range(200):
        w.grad = None
        loss = gn.sum(gn.abs(w - target) ** 2)
        loss.backward()
        with gn.no_grad():
            w -= 0.1 * w.grad
    np.testing.assert_allclose(w.detach().cpu().numpy(), target.cpu().numpy(), rtol=1e-10)


def test_the_convention_is_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    a, b, v = z(3, 4), z(4, 2), z(3, 2)
    ours, theirs = ([make(n, requires_grad=True) for n in (a, b)] for make in (gn.tensor, torch.tensor))
    gn.sin(ours[0] @ ours[1]).backward(gn.tensor(v))
    torch.sin(theirs[0] @ theirs[1]).backward(torch.tensor(v))
    for mine, other in zip(ours, theirs):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-12)


def test_a_complex_scalar_has_no_gradient_of_its_own(device: str) -> None:
    w = gn.tensor(np.array(1 + 1j), device=device, requires_grad=True)
    with pytest.raises(GradientError, match="only a real scalar can be differentiated without a gradient"):
        (w * w).backward()


def test_a_functions_backward_sees_the_users_convention(device: str) -> None:
    class Square(gn.Function):
        @staticmethod
        def forward(ctx: Any, a: Any) -> Any:
            ctx.save_for_backward(a)
            return a * a

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (a,) = ctx.saved_tensors
            return g * gn.conj(2.0 * a)

    a, v = z(3), z(3)
    grads = []
    for f in (Square.apply, gn.square):
        t = gn.tensor(a, device=device, requires_grad=True)
        f(t).backward(gn.tensor(v, device=device))
        grads.append(t.grad.cpu().numpy())
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-12)
