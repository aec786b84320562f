"""Convolution and max-pooling in NumPy, written with plain loops, forward and backward, beside gpunet's.

    python examples/numpy_convolution.py
    python examples/numpy_convolution.py --data fashion-mnist --samples 64

Two small networks start from the same weights and see the same images, in float64. One computes its convolution and
its pooling with the loops below, the other with gpunet; for each batch their outputs and all gradients are compared.
The times show what a framework is for. On the way: how an operation of one's own becomes part of a network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import gpunet as gn
from gpunet import data, nn, optim
from gpunet.nn import functional as F

TOLERANCE = 1e-10  # between numbers that are computed in float64


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    """Convolution as networks mean it (cross-correlation): each output is a window of x times the weights, summed.

    x (n, in, height, width), weight (out, in, kh, kw), bias (out,) -> (n, out, height', width').
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    kh, kw = weight.shape[2:]
    out = np.empty((len(x), len(weight), x.shape[2] - kh + 1, x.shape[3] - kw + 1))
    for n, o, i, j in np.ndindex(out.shape):
        window = x[n, :, i : i + kh, j : j + kw]
        out[n, o, i, j] = np.sum(window * weight[o]) + bias[o]
    return out


def convolve_backward(
    g: np.ndarray, x: np.ndarray, weight: np.ndarray, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients for x, weight and bias, from the gradient g of the outputs.

    An output is sum(window * weight[o]) + bias[o]: it passes g on to its window with the factors weight[o], to
    weight[o] with the factors of the window, and to bias[o] as it is. Windows overlap, so contributions add up.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    kh, kw = weight.shape[2:]
    dx, dweight, dbias = np.zeros_like(x), np.zeros_like(weight), np.zeros(len(weight))
    for n, o, i, j in np.ndindex(g.shape):
        window = np.s_[n, :, i : i + kh, j : j + kw]
        dx[window] += g[n, o, i, j] * weight[o]
        dweight[o] += g[n, o, i, j] * x[window]
        dbias[o] += g[n, o, i, j]
    height, width = dx.shape[2:]
    return dx[:, :, padding : height - padding, padding : width - padding], dweight, dbias


def max_pool(x: np.ndarray, size: int) -> np.ndarray:
    """The largest element of each size x size tile: (n, c, height, width) -> (n, c, height // size, width // size)."""
    out = np.empty((*x.shape[:2], x.shape[2] // size, x.shape[3] // size))
    for n, c, i, j in np.ndindex(out.shape):
        out[n, c, i, j] = np.max(x[n, c, i * size : (i + 1) * size, j * size : (j + 1) * size])
    return out


def max_pool_backward(g: np.ndarray, x: np.ndarray, size: int) -> np.ndarray:
    """The gradient for x: only the largest element of a tile had a say in the output, so it gets all of g.

    Where several are equally large it is the first of them, as in PyTorch.
    """
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(g.shape):
        tile = x[n, c, i * size : (i + 1) * size, j * size : (j + 1) * size]
        di, dj = np.unravel_index(np.argmax(tile), tile.shape)
        dx[n, c, i * size + di, j * size + dj] = g[n, c, i, j]
    return dx


class LoopConvolution(gn.Function):
    """`convolve` with padding 1 and its derivative, as an operation that gpunet can differentiate through."""

    @staticmethod
    def forward(ctx: Any, x: gn.Tensor, weight: gn.Tensor, bias: gn.Tensor) -> gn.Tensor:
        ctx.save_for_backward(x, weight)
        return gn.asarray(convolve(x.data, weight.data, bias.data, padding=1))

    @staticmethod
    def backward(ctx: Any, g: gn.Tensor) -> tuple[gn.Tensor, ...]:
        x, weight = ctx.saved_tensors
        return tuple(map(gn.asarray, convolve_backward(g.data, x.data, weight.data, padding=1)))


class LoopMaxPool(gn.Function):
    """The same for `max_pool` with tiles of 2 x 2."""

    @staticmethod
    def forward(ctx: Any, x: gn.Tensor) -> gn.Tensor:
        ctx.save_for_backward(x)
        return gn.asarray(max_pool(x.data, 2))

    @staticmethod
    def backward(ctx: Any, g: gn.Tensor) -> gn.Tensor:
        (x,) = ctx.saved_tensors
        return gn.asarray(max_pool_backward(g.data, x.data, 2))


class Network(nn.Module):
    """Convolution, max-pooling, linear layer; the first two with loops or with gpunet."""

    def __init__(self, image_shape: tuple[int, int, int], channels: int, classes: int, loops: bool) -> None:
        depth, height, width = image_shape
        self.conv = nn.Conv2d(depth, channels, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(channels * (height // 2) * (width // 2), classes)
        self.loops = loops

    def forward(self, x: gn.Tensor) -> tuple[gn.Tensor, gn.Tensor, gn.Tensor]:
        """The outputs of the three layers."""
        if self.loops:
            convolved = LoopConvolution.apply(x, self.conv.weight, self.conv.bias)
            pooled = LoopMaxPool.apply(convolved)
        else:
            convolved = self.conv(x)
            pooled = self.pool(convolved)
        return convolved, pooled, self.fc(pooled.reshape(len(x), -1))


def learn(
    model: Network, optimizer: optim.Optimizer, images: np.ndarray, labels: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """One training step: the loss, and the outputs of the layers and the gradients for the images and the weights."""
    device = model.fc.weight.device
    x = gn.tensor(images, device=device, requires_grad=True)
    outputs = model(x)
    loss = F.cross_entropy(outputs[-1], gn.asarray(labels, device=device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
    return loss.item(), [tensor.detach().numpy() for tensor in (*outputs, *gradients)]


@gn.no_grad()
def accuracy(model: Network, images: np.ndarray, labels: np.ndarray) -> float:
    scores = model(gn.asarray(images, device=model.fc.weight.device))[-1]
    return float(np.mean(scores.numpy().argmax(axis=1) == labels))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example.

    Returns the test "accuracy" with gpunet and "loop_accuracy" with loops, and the largest "difference" between
    anything that was compared.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="a name such as digits, fashion-mnist, cifar10:/folder")
    parser.add_argument("--device", default="auto", help="for gpunet: auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=320, help="images to train with, as loops are slow")
    parser.add_argument("--test-samples", type=int, default=100)
    parser.add_argument("--channels", type=int, default=4, help="of the convolution")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    train_data = data.named(args.data, train=True)
    test_data = data.named(args.data, train=False)
    few = data.Subset(train_data, range(min(args.samples, len(train_data))))
    loader = data.DataLoader(few, args.batch_size, shuffle=True)

    test_images, test_labels = test_data.get_batch(np.arange(min(args.test_samples, len(test_data))))
    test_images = test_images.astype(np.float64)

    size = (train_data[0][0].shape, args.channels, len(train_data.classes))
    models = {
        "gpunet": Network(*size, loops=False).to("float64", args.device),
        "loops": Network(*size, loops=True).to("float64", "cpu"),
    }
    models["loops"].load_state_dict(models["gpunet"].state_dict())
    optimizers = {name: optim.Adam(model.parameters(), lr=args.lr) for name, model in models.items()}

    largest, seconds = 0.0, dict.fromkeys(models, 0.0)
    for epoch in range(args.epochs):
        total = 0.0
        for images, labels in loader:
            found = {}
            for name, model in models.items():
                start = time.perf_counter()
                loss, found[name] = learn(model, optimizers[name], images.numpy().astype(np.float64), labels.numpy())
                seconds[name] += time.perf_counter() - start
            difference = max(float(np.abs(a - b).max()) for a, b in zip(found["gpunet"], found["loops"]))
            assert difference < TOLERANCE, f"outputs or gradients differ by {difference:.1e}"
            largest = max(largest, difference)
            total += loss * len(images)
        right = {name: accuracy(model, test_images, test_labels) for name, model in models.items()}
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {total / len(few):.4f}, "
            f"test accuracy gpunet {right['gpunet']:.4f}, loops {right['loops']:.4f}"
        )
    print(f"largest difference between the outputs or gradients of the two: {largest:.1e}")
    print(
        f"training: gpunet {seconds['gpunet']:.3f} s, loops {seconds['loops']:.2f} s, "
        f"{seconds['loops'] / seconds['gpunet']:.0f} times as long"
    )
    return {"accuracy": right["gpunet"], "loop_accuracy": right["loops"], "difference": largest}


if __name__ == "__main__":
    main()
