"""Steps so small that they show what recording an op, differentiating it and starting an optimizer costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.on_cpu.libraries import Library

CHAIN = 20


@dataclass(frozen=True)
class Small:
    """A small step.

    Attributes:
        title: what it is, in a table.
        make: for a library, the function to call.
        ops: how many ops a call runs; times are divided by it.
        bar: how many times as long PyTorch should take.
    """

    title: str
    make: Callable[[Library], Callable[[], Any]]
    ops: int
    bar: float


def _chain(link: Callable[[Library, Any, Any], Any]) -> Callable[[Library], Callable[[], Any]]:
    """A chain of 20 times `link(library, y, x)`, its mean, and backward to x."""

    def make(library: Library) -> Callable[[], Any]:
        x = library.tensor(np.ones((8, 8), np.float32), requires_grad=True)

        def call() -> None:
            x.grad = None
            y = x
            for _ in range(CHAIN):
                y = link(library, y, x)
            y.mean().backward()

        return call

    return make


def _linear(library: Library) -> Callable[[], Any]:
    x = library.tensor(np.ones((8, 8), np.float32))
    weight = library.tensor(np.full((8, 8), 0.125, np.float32), requires_grad=True)
    bias = library.tensor(np.zeros(8, np.float32), requires_grad=True)
    linear = library.functional.linear

    def call() -> None:
        weight.grad = bias.grad = None
        y = x
        for _ in range(CHAIN):
            y = linear(y, weight, bias)
        y.mean().backward()

    return call


def _cross_entropy(library: Library) -> Callable[[], Any]:
    x = library.tensor(np.ones((8, 8), np.float32), requires_grad=True)
    labels = library.tensor(np.arange(8))

    def call() -> None:
        x.grad = None
        library.functional.cross_entropy(x, labels).backward()

    return call


def _network(library: Library) -> Callable[[], Any]:
    nn = library.nn
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x, labels = library.tensor(np.ones((8, 8), np.float32)), library.tensor(np.arange(8))
    parameters = list(model.parameters())

    def call() -> None:
        for p in parameters:
            p.grad = None
        library.functional.cross_entropy(model(x), labels).backward()

    return call


def _adam(library: Library) -> Callable[[], Any]:
    parameters = [library.tensor(np.ones((8, 8), np.float32), requires_grad=True) for _ in range(4)]
    optimizer = library.optimizer("adam", parameters)
    sum((p * p).mean() for p in parameters).backward()
    return optimizer.step


SMALL = {
    "multiply": Small(
        "x * y, forward and backward, in a chain of 20", _chain(lambda library, y, x: y * x), CHAIN + 1, 2.0
    ),
    "add": Small("x + y, forward and backward, in a chain of 20", _chain(lambda library, y, x: y + x), CHAIN + 1, 2.0),
    "relu": Small(
        "relu, forward and backward, in a chain of 20",
        _chain(lambda library, y, x: library.functional.relu(y)),
        CHAIN + 1,
        2.0,
    ),
    "linear": Small("linear, forward and backward, in a chain of 20", _linear, CHAIN + 1, 2.0),
    "cross_entropy": Small("cross_entropy, forward and backward", _cross_entropy, 1, 2.0),
    "network": Small("MLP 8-8-8, batch 8, forward and backward", _network, 1, 2.0),
    "adam": Small("Adam's step, 4 parameters of (8, 8)", _adam, 1, 1 / 0.3),
}
