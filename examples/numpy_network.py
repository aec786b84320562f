"""Backpropagation by hand: a two-layer sigmoid network in plain NumPy, beside the same network in gpunet.

    python examples/numpy_network.py
    python examples/numpy_network.py --data fashion-mnist --epochs 5

Both start from the same weights and see the same batches, in float64. NumPy's gradients come from formulas derived by
hand (see NumPyNetwork.gradients), gpunet's from `loss.backward()`. They must agree, and so must what the two learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import gpunet as gn
from gpunet import data, nn, optim

TOLERANCE = 1e-10  # between gradients that are computed in float64


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


class NumPyNetwork:
    """h = sigmoid(x W1' + b1), y = sigmoid(h W2' + b2), for rows x (n, pixels); ' is the transpose.

    weights: W1 (hidden, pixels), b1 (hidden,), W2 (classes, hidden), b2 (classes,), changed in place by training.
    """

    def __init__(self, weights: list[np.ndarray]) -> None:
        self.weights = weights

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w1, b1, w2, b2 = self.weights
        h = sigmoid(x @ w1.T + b1)
        y = sigmoid(h @ w2.T + b2)
        return h, y

    def gradients(self, x: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        """The derivatives of the loss by W1, b1, W2, b2, for targets t (n, classes) of zeros and ones.

        The loss is half the squared error, summed over the outputs and averaged over the n samples:

            L = 1/(2n) sum (y - t)^2

        The chain rule, from the loss backwards. Write z1 = x W1' + b1, z2 = h W2' + b2, and D for dL/dz.
        The sigmoid s(z) = 1 / (1 + exp(-z)) has the derivative s'(z) = s(z) (1 - s(z)), and * is element by element:

            dL/dy = (y - t) / n
            D2    = dL/dy * s'(z2) = (y - t) / n * y * (1 - y)

        Sample i contributes z2[i] = W2 h[i] + b2, so that W2[k, j] acts on z2[i, k] with the factor h[i, j], and b2[k]
        with the factor 1. Summed over the samples that gives

            dL/dW2[k, j] = sum_i D2[i, k] h[i, j]          dL/dW2 = D2' h
            dL/db2[k]    = sum_i D2[i, k]

        One layer further back, h[i, j] acts on all z2[i, k], with the factors W2[k, j]:

            dL/dh[i, j] = sum_k D2[i, k] W2[k, j]          dL/dh = D2 W2
            D1          = dL/dh * s'(z1) = (D2 W2) * h * (1 - h)

        and the first layer, whose input is x, is like the second:

            dL/dW1 = D1' x          dL/db1[j] = sum_i D1[i, j]
        """
        w2 = self.weights[2]
        h, y = self.forward(x)
        d2 = (y - t) / len(x) * y * (1 - y)
        d1 = (d2 @ w2) * h * (1 - h)
        return [d1.T @ x, d1.sum(axis=0), d2.T @ h, d2.sum(axis=0)]

    def step(self, gradients: list[np.ndarray], lr: float) -> None:
        """Gradient descent: each weight moves against its gradient."""
        for weight, gradient in zip(self.weights, gradients):
            weight -= lr * gradient


def flat(images: np.ndarray) -> np.ndarray:
    """Images (n, channels, height, width) as rows of float64 (n, pixels)."""
    return images.reshape(len(images), -1).astype(np.float64)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; returns the test accuracies "numpy" and "gpunet", and the largest "difference" of gradients."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="a name such as digits, fashion-mnist, mnist:/folder")
    parser.add_argument("--device", default="auto", help="for gpunet: auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3.0, help="large, because the sigmoid's derivative is small")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--compare-every", type=int, default=10, help="steps from one comparison to the next")
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    train_data = data.named(args.data, train=True)
    test_data = data.named(args.data, train=False)
    pixels, classes = train_data[0][0].size, len(train_data.classes)
    loader = data.DataLoader(train_data, args.batch_size, shuffle=True)

    model = nn.Sequential(
        nn.Linear(pixels, args.hidden), nn.Sigmoid(), nn.Linear(args.hidden, classes), nn.Sigmoid()
    ).to("float64", args.device)
    optimizer = optim.SGD(model.parameters(), lr=args.lr)
    parameters = list(model.parameters())  # W1, b1, W2, b2, like those of the network by hand
    by_hand = NumPyNetwork([np.array(parameter.detach().cpu()) for parameter in parameters])

    def test() -> dict[str, float]:
        x = flat(test_data.get_batch(np.arange(len(test_data)))[0])
        with gn.no_grad():
            scores = {"numpy": by_hand.forward(x)[1], "gpunet": model(gn.asarray(x, device=args.device)).numpy()}
        return {name: float(np.mean(y.argmax(axis=1) == test_data.labels)) for name, y in scores.items()}

    step, largest = 0, 0.0
    for epoch in range(args.epochs):
        total, difference = 0.0, 0.0
        for images, labels in loader:
            x, t = flat(images.numpy()), np.eye(classes)[labels.numpy()]

            gradients = by_hand.gradients(x, t)

            y = model(gn.asarray(x, device=args.device))
            loss = ((y - gn.asarray(t, device=args.device)) ** 2).sum() / (2 * len(x))
            optimizer.zero_grad()
            loss.backward()

            if step % args.compare_every == 0:
                pairs = zip(gradients, (parameter.grad.numpy() for parameter in parameters))
                difference = max(difference, *(float(np.abs(a - b).max()) for a, b in pairs))
                assert difference < TOLERANCE, f"step {step}: the gradients differ by {difference:.1e}"

            by_hand.step(gradients, args.lr)
            optimizer.step()
            step += 1
            total += loss.item() * len(x)
        largest = max(largest, difference)
        accuracy = ", ".join(f"{name} {value:.4f}" for name, value in test().items())
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {total / len(train_data):.4f}, test accuracy {accuracy}, "
            f"gradients differ by at most {difference:.1e}"
        )

    accuracy = test()
    print(f"test accuracy: NumPy {accuracy['numpy']:.4f}, gpunet {accuracy['gpunet']:.4f}")
    print(f"largest difference between the gradients: {largest:.1e}")
    return {**accuracy, "difference": largest}


if __name__ == "__main__":
    main()
