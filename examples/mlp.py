"""A first network, 784-128-10, trained by a loop written by hand.

python examples/mlp.py
python examples/mlp.py --data digits --epochs 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gpunet as gn
from gpunet import data, nn, optim
from gpunet.nn import functional as F


def network(pixels: int, classes: int) -> nn.Module:
    """One hidden layer of 128; Dropout sets a fifth of it to zero in training, so that no unit relies on another."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, 128),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(128, classes),
    )


def train_epoch(model: nn.Module, loader: data.DataLoader, optimizer: optim.Optimizer) -> tuple[float, float]:
    """Go through the data once, and learn from it; the mean loss and the accuracy on the way."""
    model.train()
    loss_sum, right, count = 0.0, 0, 0
    for images, labels in loader:
        scores = model(images)  # one score per class
        loss = F.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()  # the gradient of the loss for each parameter ...
        optimizer.step()  # ... says how to change it
        loss_sum += loss.item() * len(labels)
        right += (scores.argmax(axis=1) == labels).sum().item()
        count += len(labels)
    return loss_sum / count, right / count


@gn.no_grad()
def accuracy(model: nn.Module, loader: data.DataLoader) -> float:
    """The share of the samples whose highest score is that of their class."""
    model.eval()  # without Dropout
    right, count = 0, 0
    for images, labels in loader:
        right += (model(images).argmax(axis=1) == labels).sum().item()
        count += len(labels)
    return right / count


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; returns the last epoch's "loss" and the "test_accuracy"."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="fashion-mnist", help="a name such as digits, fashion-mnist, mnist:/folder")
    parser.add_argument("--download", action="store_true", help="fetch the data's files where they are missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    train_data = data.named(args.data, train=True, download=args.download)
    test_data = data.named(args.data, train=False, download=args.download)
    train_loader = data.DataLoader(train_data, batch_size=128, shuffle=True, device=args.device)
    test_loader = data.DataLoader(test_data, batch_size=1000, device=args.device)

    image, _label = train_data[0]
    model = network(image.size, len(train_data.classes)).to(args.device)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    for epoch in range(args.epochs):
        loss, train_accuracy = train_epoch(model, train_loader, optimizer)
        print(f"epoch {epoch + 1}/{args.epochs}: loss {loss:.4f}, accuracy {train_accuracy:.4f}")
    test_accuracy = accuracy(model, test_loader)
    print(f"test accuracy {test_accuracy:.4f}")
    return {"loss": loss, "test_accuracy": test_accuracy}


if __name__ == "__main__":
    main()
