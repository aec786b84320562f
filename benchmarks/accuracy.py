"""Whether networks learn what they should: test accuracy on Fashion-MNIST, for several seeds, beside what is expected.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --model cnn --seeds 0 1 2 3 4 5 6 7 --torch

Batches of 128, Adam with a learning rate of 1e-3, no augmentation. Pixels are in 0..1; --normalize brings them to mean
0 and standard deviation 1. --torch trains the same networks with PyTorch too, with initial weights, batches and dropout
of its own, so that the figures of the two libraries are not equal, but draws from one distribution.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import gpunet as gn
from gpunet import data, nn, train

# The mean accuracy of three seeds that a network should reach after 5 epochs on Fashion-MNIST.
EXPECTED = {"mlp": 0.862, "cnn": 0.893}
EPOCHS, BATCH = 5, 128


def mlp(nn: Any, image_shape: tuple[int, int, int], classes: int) -> Any:
    """784-128-10 with dropout 0.2; `nn` is gpunet.nn or torch.nn."""
    channels, height, width = image_shape
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(channels * height * width, 128), nn.ReLU()),
        *(nn.Dropout(0.2), nn.Linear(128, classes)),
    )


def cnn(nn: Any, image_shape: tuple[int, int, int], classes: int) -> Any:
    """Two convolutions of 16 and 32 filters, each halved by max-pooling, and a hidden layer of 128."""
    channels, height, width = image_shape
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Linear(128, classes)),
    )


MODELS = {"mlp": mlp, "cnn": cnn}
Figures = tuple[float, float, float]


def with_gpunet(
    name: str, seed: int, train_data: data.ImageDataset, test_data: data.ImageDataset, args: Any
) -> Figures:
    """Train a network: the last epoch's loss, the test accuracy, and the seconds that an epoch of training took."""
    gn.manual_seed(seed)
    model = MODELS[name](nn, train_data[0][0].shape, len(train_data.classes)).to(args.device)
    start = time.perf_counter()
    history = train.fit(
        model, train_data, loss="cross_entropy", optimizer="adam", batch_size=BATCH, epochs=args.epochs, progress=False
    )
    seconds = (time.perf_counter() - start) / args.epochs
    return history["loss"][-1], train.evaluate(model, test_data)["accuracy"], seconds


def with_torch(name: str, seed: int, train_data: data.ImageDataset, test_data: data.ImageDataset, args: Any) -> Figures:
    """The same with PyTorch, on the CPU."""
    import torch

    torch.manual_seed(seed)
    model = MODELS[name](torch.nn, train_data[0][0].shape, len(train_data.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y, x_test, y_test = (
        torch.from_numpy(array)
        for dataset in (train_data, test_data)
        for array in dataset.get_batch(np.arange(len(dataset)))
    )
    start = time.perf_counter()
    for _epoch in range(args.epochs):
        total = 0.0
        for indices in torch.randperm(len(x)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(x[indices]), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(indices)
    seconds = (time.perf_counter() - start) / args.epochs
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x_test.split(500), y_test.split(500)))
    return total / len(x), right / len(x_test), seconds


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the measurement; returns gpunet's mean test accuracy for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--data", default="fashion-mnist", help="a name such as fashion-mnist, digits, mnist:/folder")
    parser.add_argument("--device", default="auto", help="for gpunet: auto, cpu, cuda, cuda:1")
    parser.add_argument("--normalize", action="store_true", help="pixels of mean 0 and standard deviation 1")
    parser.add_argument("--torch", action="store_true", help="train with PyTorch too")
    args = parser.parse_args(argv)

    train_data, test_data = (data.named(args.data, train=part) for part in (True, False))
    if args.normalize:
        pixels = train_data.images / np.float32(train_data.highest)
        transform = data.transforms.Normalize(float(pixels.mean()), float(pixels.std()))
        train_data.transform = test_data.transform = transform

    runs = {"gpunet": with_gpunet}
    versions = [f"gpunet {gn.__version__}", f"NumPy {np.__version__}", f"Python {platform.python_version()}"]
    if args.torch:
        import torch

        runs["torch"] = with_torch
        versions.append(f"torch {torch.__version__}")
    print(f"{', '.join(versions)}, device {gn.zeros(1, device=args.device).device}")
    print(f"{args.data}{' (normalized)' if args.normalize else ''}, {args.epochs} epochs")
    print(
        f"{'model':5s} {'library':7s} {'seed':>5s} {'training loss':>14s} {'test accuracy':>14s} {'s per epoch':>12s}"
    )
    means = {}
    for name in MODELS if args.model == "all" else [args.model]:
        for library, run in runs.items():
            rows = []
            for seed in args.seeds:
                rows.append(run(name, seed, train_data, test_data, args))
                loss, accuracy, seconds = rows[-1]
                print(f"{name:5s} {library:7s} {seed:5d} {loss:14.4f} {accuracy:14.4f} {seconds:12.2f}", flush=True)
            loss, accuracy, seconds = map(statistics.mean, zip(*rows))
            line = f"{name:5s} {library:7s} {'mean':>5s} {loss:14.4f} {accuracy:14.4f} {seconds:12.2f}"
            if len(rows) > 1:
                line += f"   standard deviation of the accuracy {statistics.stdev(row[1] for row in rows):.4f}"
            if (args.data, args.epochs) == ("fashion-mnist", EPOCHS):
                verdict = "reached" if accuracy >= EXPECTED[name] else "missed"
                line += f", expected {EXPECTED[name]:.3f}: {verdict}"
            print(line, flush=True)
            if library == "gpunet":
                means[name] = accuracy
    return means


if __name__ == "__main__":
    main()
