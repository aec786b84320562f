"""Hooks of modules that see gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.errors import GradientError


class Two(nn.Module):
    def __init__(self) -> None:
        self.w = nn.Parameter(gn.asarray(np.array([2.0, 3.0])))

    def forward(self, x: Any, k: Any, y: Any = None) -> Any:
        return {"p": x * self.w, "q": (y * 2 if y is not None else x, 5)}


def test_hooks_see_gradients_of_arguments_and_results(device: str) -> None:
    module = Two().to(device)
    x, y = (gn.asarray(np.array(v), device=device).requires_grad_() for v in ([1.0, 2.0], [3.0, 4.0]))
    k = gn.asarray([1], device=device)
    seen: list[Any] = []
    handle = module.register_full_backward_hook(lambda m, gi, go: seen.append((m, gi, go)))
    out = module(x, k, y)
    (out["p"].sum() * 3).backward()
    (m, grad_input, grad_output) = seen.pop()
    assert m is module and not seen
    np.testing.assert_allclose(grad_input[0].cpu().numpy(), [6.0, 9.0])
    assert grad_input[1] is None and grad_input[2] is None
    np.testing.assert_allclose(grad_output[0].cpu().numpy(), [3.0, 3.0])
    assert grad_output[1] is None
    np.testing.assert_allclose(x.grad.cpu().numpy(), [6.0, 9.0])
    np.testing.assert_allclose(module.w.grad.cpu().numpy(), [3.0, 6.0])
    handle.remove()
    module(x, k)["p"].sum().backward()
    assert not seen


def test_hooks_replace_gradients_and_can_be_differentiated() -> None:
    module = nn.Linear(2, 2)
    x = gn.random.normal((3, 2)).requires_grad_()
    (plain,) = gn.grad((module(x) ** 2).sum(), [x])
    module.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))
    (doubled,) = gn.grad((module(x) ** 2).sum(), [x], create_graph=True)
    np.testing.assert_allclose(doubled.detach().numpy(), 2 * plain.numpy(), rtol=1e-6)
    assert gn.grad(doubled.sum(), module.weight).shape == (2, 2)


def test_a_module_whose_arguments_need_no_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    seen: list[Any] = []
    for layer in model:
        layer.register_full_backward_hook(lambda m, gi, go: seen.append((type(m).__name__, gi[0], go[0].shape)))
    x = gn.ones((4, 2))
    with gn.no_grad():
        model(x)
    assert not seen
    model(x).sum().backward()
    assert [name for name, _gi, _go in seen] == ["Linear", "ReLU", "Linear"]
    assert seen[-1][1] is None and seen[0][1].shape == (4, 3) and seen[1][2] == (4, 3)


def test_bad_hooks() -> None:
    module = nn.Linear(2, 2)
    x = gn.ones((1, 2)).requires_grad_()
    handle = module.register_full_backward_hook(lambda m, gi, go: (gi[0], gi[0]))
    with pytest.raises(GradientError, match="a gradient for each of the 1 Tensors that the module was given, got 2"):
        module(x).sum().backward()
    handle.remove()
    module.register_full_backward_hook(lambda m, gi, go: gi[0][:, :1])
    with pytest.raises(GradientError, match=r"must return a gradient of shape \(1, 2\), got \(1, 1\)"):
        module(x).sum().backward()
