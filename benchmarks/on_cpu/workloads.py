"""The networks and their training steps, written once for both libraries.

Networks are plain PyTorch, which gpunet speaks too: `library.nn` and `library.functional` are either library's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_cpu.libraries import Library

INPUT = "input"  # what the gradient of the input is called, beside those of parameters

# --- networks


def perceptron(library: Library) -> Any:
    nn = library.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))


def wide_perceptron(library: Library) -> Any:
    nn = library.nn
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def small_convolutional(library: Library) -> Any:
    return _convolutional(library.nn, (1, 16, 32), features=32 * 7 * 7)


def deep_convolutional(library: Library) -> Any:
    return _convolutional(library.nn, (3, 16, 32, 64, 128, 256), features=256)


def _convolutional(nn: Any, channels: tuple[int, ...], features: int) -> Any:
    layers: list[Any] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10))


def residual_block(library: Library) -> Any:
    """A basic block of a residual network (He et al., 2015), 64 channels."""
    nn: Any = library.nn
    F: Any = library.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.conv2 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(64)

        def forward(self, x: Any) -> Any:
            h = F.relu(self.bn1(self.conv1(x)))
            return F.relu(self.bn2(self.conv2(h)) + x)

    return Block()


def transformer(library: Library, width: int = 128, heads: int = 4, classes: int = 65) -> Any:
    """A pre-norm block of a language model (Radford et al., 2019), and its head."""
    nn: Any = library.nn
    F: Any = library.functional

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)
            self.norm2 = nn.LayerNorm(width)
            self.fc1 = nn.Linear(width, 4 * width)
            self.fc2 = nn.Linear(4 * width, width)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, classes)

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, heads, width // heads)
            q, k, v = library.permute(qkv, (2, 0, 3, 1, 4))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.swapaxes(1, 2).reshape(batch, length, width))
            x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
            return self.head(self.norm(x)).reshape(batch * length, classes)

    return Transformer()


def recurrent(library: Library) -> Any:
    nn: Any = library.nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(128, 128)
            self.head = nn.Linear(128, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][-1])

    return Recurrent()


# --- what is trained, on what


@dataclass(frozen=True)
class Workload:
    """A network, what it is trained on, and how.

    Attributes:
        title: what it is, in a table.
        model: makes the network.
        shape: of the input.
        labels: how many labels an input of a shape has.
        classes: how many classes these are of; 0: there are none, and the loss is the mean of the output.
        optimizer: "adam" or "sgd".
        bars: for a number of threads, how much faster than PyTorch a training step should be.
        inference: the same for a forward pass of one sample, where that is measured.
        convolves: whether there are convolutions, which PyTorch has a memory format for.
        needs: what not every version of gpunet has.
    """

    title: str
    model: Callable[[Library], Any]
    shape: tuple[int, ...]
    optimizer: str
    bars: dict[int, float]
    labels: Callable[[tuple[int, ...]], int] = lambda shape: shape[0]
    classes: int = 10
    inference: dict[int, float] = field(default_factory=dict)
    convolves: bool = False
    needs: tuple[str, ...] = ()


WORKLOADS = {
    "a": Workload(
        "MLP 784-128-10, dropout, Adam, batch 64", perceptron, (64, 1, 28, 28), "adam",
        bars={1: 2.0, 2: 1.7}, inference={1: 2.0, 2: 2.0},
    ),
    "b": Workload(
        "MLP 784-1024-1024-10, SGD, batch 256", wide_perceptron, (256, 784), "sgd", bars={1: 1.9, 2: 1.8}
    ),
    "c": Workload(
        "CNN 1-16-32, 28x28, Adam, batch 64", small_convolutional, (64, 1, 28, 28), "adam", bars={1: 1.5, 2: 1.2},
        convolves=True,
    ),
    "d": Workload(
        "CNN 3-16-32-64-128-256, 32x32, SGD, batch 64", deep_convolutional, (64, 3, 32, 32), "sgd",
        bars={1: 1.2, 2: 1.2}, inference={1: 1.5, 2: 1.5}, convolves=True,
    ),
    "e": Workload(
        "residual block, 64 channels, 32x32, SGD, batch 32", residual_block, (32, 64, 32, 32), "sgd",
        bars={1: 1.2, 2: 1.15}, classes=0, convolves=True,
    ),
    "f": Workload(
        "transformer block d128, T 64, Adam, batch 16", transformer, (16, 64, 128), "adam", bars={1: 1.7, 2: 1.5},
        labels=lambda shape: shape[0] * shape[1], classes=65, needs=("nn.functional.scaled_dot_product_attention",),
    ),
    "g": Workload(
        "LSTM 128, T 32, Adam, batch 32", recurrent, (32, 32, 128), "adam", bars={1: 1.1, 2: 1.0},
        labels=lambda shape: shape[1], needs=("nn.LSTM",),
    ),
}  # fmt: skip


class Training:
    """A workload on a library, ready to run.

    Args:
        library: which.
        key: of the workload.
        weights: the file that `save_weights` wrote.
        shape: of the input; None: the workload's own.
        dropout: whether there is any. The two libraries drop different elements.
    """

    def __init__(
        self, library: Library, key: str, weights: Path, shape: tuple[int, ...] | None = None, dropout: bool = True
    ) -> None:
        workload = WORKLOADS[key]
        shape = shape or workload.shape
        library.manual_seed(1)  # for dropout
        random = np.random.default_rng([ord(key), *shape])
        x = random.standard_normal(shape, dtype=np.float32)
        y = random.integers(0, max(workload.classes, 1), workload.labels(shape))
        model = workload.model(library)
        with np.load(weights) as state:
            library.load(model, state)
        if not dropout:
            for module in model.modules():
                if isinstance(module, library.nn.Dropout):
                    module.eval()
        self._cross_entropy = library.functional.cross_entropy
        self._no_grad = library.no_grad
        self.model = library.prepare(model)
        self.x = library.tensor(x, requires_grad=not workload.classes)
        self.y = library.tensor(y) if workload.classes else None
        self.optimizer = library.optimizer(workload.optimizer, self.model.parameters())
        self.loss = library.compiled(self._loss)

    def _loss(self) -> Any:
        output = self.model(self.x)
        return output.mean() if self.y is None else self._cross_entropy(output, self.y)

    def step(self) -> Any:
        """One training step; returns the loss before it."""
        self.optimizer.zero_grad()
        self.x.grad = None
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss

    def infer(self) -> Any:
        with self._no_grad():
            return self.model(self.x)


def save_weights(library: Library, key: str, file: Path) -> None:
    """Write the weights that the library gives the workload's network at first, from a seed."""
    library.manual_seed(0)
    state = WORKLOADS[key].model(library).state_dict()
    np.savez(file, **{name: value.numpy() for name, value in state.items()})
