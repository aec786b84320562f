"""Derivatives checked against finite differences in float64: the reference of every gradient test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpunet as gn


def check_gradients(
    f: Callable[..., Any],
    inputs: Sequence[Any],
    order: int = 2,
    *,
    rtol: float = 1e-6,
    step: float = 1e-5,
    directions: int = 2,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Assert that the gradients of `f` are right, up to `order` times differentiated.

    f: takes Tensors of the shapes of `inputs` and returns a Tensor (or several).
    inputs: float64 arrays at which to differentiate; f should be smooth within `step` of them.

    For random directions d, the derivative of sum(v * f(x)) along d, with v random, is compared to its central
    difference. Then the same for the gradient itself as a function of x and v.
    """
    arrays = [np.array(x, dtype=np.float64) for x in inputs]
    _check(f, arrays, order, rtol, step, directions, np.random.default_rng(seed), device)


def _check(f: Any, arrays: Any, order: int, rtol: float, step: float, directions: int, rng: Any, device: str) -> None:
    outputs = _call(f, arrays, device)
    cotangents = [rng.standard_normal(o.shape) for o in outputs]
    gradient = _gradient(f, len(arrays))
    gradients = gradient(*_tensors(arrays, device), *_tensors(cotangents, device))
    gradients = [g.detach().cpu().numpy() for g in gradients]
    for g, x in zip(gradients, arrays):
        assert g.shape == x.shape and g.dtype == np.float64
    for _ in range(directions):
        ds = [rng.standard_normal(x.shape) for x in arrays]
        ups = _call(f, [x + step * d for x, d in zip(arrays, ds)], device)
        downs = _call(f, [x - step * d for x, d in zip(arrays, ds)], device)
        numeric = sum(float(np.sum(v * (u - w))) for v, u, w in zip(cotangents, ups, downs)) / (2 * step)
        analytic = sum(float(np.sum(g * d)) for g, d in zip(gradients, ds))
        scale = 1.0 + sum(float(np.sum(np.abs(g * d))) for g, d in zip(gradients, ds))
        assert abs(numeric - analytic) <= rtol * scale, f"derivative {analytic}, finite difference {numeric}"
    if order > 1:
        _check(gradient, arrays + cotangents, order - 1, rtol * 10, step, directions, rng, device)


def _gradient(f: Any, n: int) -> Callable[..., tuple[Any, ...]]:
    """The function (x_1 … x_n, v…) -> gradients of sum(v * f(x)) with respect to x, itself differentiable."""

    def gradient(*args: Any) -> tuple[Any, ...]:
        xs, vs = args[:n], args[n:]
        total = sum((v * y).sum() for v, y in zip(vs, _as_tuple(f(*xs))))
        found = gn.grad(total, list(xs), create_graph=True, allow_unused=True)
        return tuple(gn.zeros_like(x) * x if g is None else g for x, g in zip(xs, found))

    return gradient


def _as_tuple(y: Any) -> tuple[Any, ...]:
    return tuple(y) if isinstance(y, (tuple, list)) else (y,)


def _tensors(arrays: Any, device: str) -> list[Any]:
    return [gn.tensor(x, device=device, requires_grad=True) for x in arrays]


def _call(f: Any, arrays: Any, device: str) -> list[np.ndarray]:
    return [y.detach().cpu().numpy() for y in _as_tuple(f(*_tensors(arrays, device)))]
