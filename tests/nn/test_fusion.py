"""Modules that run as one op give what they give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.backends.native import library
from gpunet.errors import ShapeError
from gpunet.nn.fusion import call_next

rng = np.random.default_rng(0)


def convolution(**options: Any) -> nn.Module:
    return nn.Conv2d(16, 32, 3, **{"padding": 1, **options})


NETWORKS = {
    "pooled": (convolution(), nn.ReLU(), nn.MaxPool2d(2)),
    "not pooled": (convolution(), nn.ReLU()),
    "pooled otherwise": (convolution(bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "padding same": (nn.Conv2d(16, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
    "strided": (convolution(stride=2, groups=4), nn.ReLU(), nn.MaxPool2d(2)),
}
TOGETHER = {"pooled": 3, "not pooled": 2, "pooled otherwise": 2, "padding same": 3, "strided": 3}


def one_by_one(modules: tuple[nn.Module, ...], x: gn.Tensor) -> gn.Tensor:
    for module in modules:
        x = module(x)
    return x


def run(call: Any, modules: tuple[nn.Module, ...], values: np.ndarray) -> list[np.ndarray]:
    """The result and all gradients."""
    x = gn.asarray(values).requires_grad_()
    y = call(modules, x)
    y.backward(gn.asarray(np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)))
    parameters = [p for module in modules for p in module.parameters()]
    found = [y.detach().numpy(), x.grad.numpy(), *(p.grad.numpy() for p in parameters)]
    for p in parameters:
        p.grad = None
    return found


@pytest.mark.skipif(not library("conv").usable(), reason="needs a C++ compiler: nothing is fused without kernels")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(7, 16, 9, 8), (2, 16, 20, 21)], ids=str)
def test_convolution_relu_and_pooling(name: str, shape: tuple[int, ...]) -> None:
    modules = NETWORKS[name]
    values = rng.standard_normal(shape).astype(np.float32)
    assert call_next(modules, 0, gn.asarray(values))[1] == TOGETHER[name]
    fused = run(lambda modules, x: nn.Sequential(*modules)(x), modules, values)
    for a, b in zip(fused, run(one_by_one, modules, values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_hooks_see_each_module() -> None:
    modules = convolution(), nn.ReLU(), nn.MaxPool2d(2)
    x = gn.asarray(rng.standard_normal((2, 16, 6, 6)).astype(np.float32))
    model = nn.Sequential(*modules)
    fused = model(x).detach().numpy()
    seen: list[str] = []
    for module in modules:
        module.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    np.testing.assert_allclose(model(x).detach().numpy(), fused, rtol=1e-5, atol=1e-5)
    assert seen == ["Conv2d", "ReLU", "MaxPool2d"]


def test_what_does_not_fit_is_reported_by_its_layer() -> None:
    model = nn.Sequential(convolution(), nn.ReLU(), nn.MaxPool2d(2))
    with pytest.raises(ShapeError, match="model.0 .*expected 16 channels, got 3"):
        model(gn.asarray(np.zeros((2, 3, 6, 6), np.float32)))
    with pytest.raises(
        ShapeError, match="model.2 .*MaxPool2d"
    ):  # the convolution leaves one row, which cannot be halved
        model(gn.asarray(np.zeros((2, 16, 1, 6), np.float32)))
    with pytest.raises(ShapeError, match="model.0 .*Conv2d"):
        nn.Sequential(convolution(padding=0), nn.ReLU())(gn.asarray(np.zeros((2, 16, 2, 6), np.float32)))
