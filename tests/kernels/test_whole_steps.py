"""Training steps of a residual network and of a language model, all of whose work kernels do: what the CPU computes
comes out, the same bits in every order, and nothing is left to the array library, which could not be captured in a CUDA
graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn, optim
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation
from gpunet.nn import functional as F

WORDS, LENGTH, WIDTH, HEADS = 40, 12, 32, 2
rng = np.random.default_rng(0)
IMAGES, LABELS = rng.standard_normal((3, 3, 16, 16)).astype(np.float32), np.array([1, 2, 7])
TEXT, NEXT = rng.integers(0, WORDS, (2, LENGTH)), rng.integers(0, WORDS, 2 * LENGTH)


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al., 2015)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: gn.Tensor) -> gn.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def resnet18(width: int = 8) -> nn.Module:
    """ResNet-18 for small images, narrow."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for factor in (1, 2, 4, 8):
        layers += [Block(before, factor * width, 1 if factor == 1 else 2), Block(factor * width, factor * width, 1)]
        before = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Layer(nn.Module):
    """Attention and a perceptron, each behind a normalization (Radford et al., 2019)."""

    def __init__(self) -> None:
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: gn.Tensor) -> gn.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(heads.transpose(0, 2, 1, 3).reshape(n, length, width)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Two layers of a language model."""

    def __init__(self) -> None:
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.Sequential(Layer(), Layer())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, text: gn.Tensor) -> gn.Tensor:
        x = self.dropout(self.words(text) + self.places.weight)
        return self.head(self.norm(self.layers(x))).reshape(-1, WORDS)


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, Callable[..., Any]]] = {
    "resnet": (resnet18, IMAGES, LABELS, lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4)),
    "gpt": (GPT, TEXT, NEXT, lambda p: optim.AdamW(p, lr=1e-3)),
}


def train(name: str, device: str, host: list[str] | None = None, **how: Any) -> tuple[list[float], list[np.ndarray]]:
    """The losses of two steps, and the parameters behind them; what the second step leaves to NumPy goes to `host`."""
    network, inputs, targets, make_optimizer = CASES[name]
    gn.manual_seed(0)
    model = network().to(device)
    optimizer = make_optimizer(model.parameters())
    x, y = gn.asarray(inputs, device=device), gn.asarray(targets, device=device)
    losses = []
    for step in range(2):
        with emulation(architecture="sm_80", host=host if step else None, **how):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss)
    return [float(loss) for loss in losses], [p.detach().cpu().numpy() for p in model.parameters()]


@pytest.mark.parametrize("name", CASES)
def test_the_cpus_results(name: str, kernel_device: Backend) -> None:
    losses, weights = train(name, "cpu")
    with gn.kernels("force"):
        got_losses, got_weights = train(name, kernel_device.name)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    for got, expected in zip(got_weights, weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_to_the_array_library(name: str, kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device knows what the array library does")
    host: list[str] = []
    log: list[Any] = []
    train(name, "emulated", host=host, log=log)
    assert host == []
    assert len(log) > 200


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_in_every_order(name: str, kernel_device: Backend) -> None:
    _losses, first = train(name, kernel_device.name)
    orders: list[dict[str, Any]] = [{"order": "reverse"}, {"order": "random", "seed": 1}]
    for how in orders:
        _losses, again = train(name, kernel_device.name, **how)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
