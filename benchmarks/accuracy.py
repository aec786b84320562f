"""Whether networks learn what they should: test accuracy on Fashion-MNIST, for several seeds, beside what is expected.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --model mlp --seeds 0 1 2 3 4

Batches of 128, Adam with a learning rate of 1e-3, no augmentation. What is expected holds for 5 epochs on Fashion-MNIST
and is a little below what PyTorch reaches with the same networks and settings.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence

import numpy as np

import gpunet as gn
from gpunet import data, nn, train

EXPECTED = {"mlp": 0.862, "cnn": 0.893}
EPOCHS = 5


def mlp(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """784-128-10 with dropout 0.2."""
    pixels = image_shape[0] * image_shape[1] * image_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, classes))


def cnn(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two convolutions of 16 and 32 filters, each halved by max-pooling, and a hidden layer of 128."""
    channels, height, width = image_shape
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Linear(128, classes)),
    )


MODELS = {"mlp": mlp, "cnn": cnn}


def measure(name: str, seed: int, args: argparse.Namespace) -> tuple[float, float, float]:
    """Train one network: the last epoch's loss, the test accuracy, and the seconds that an epoch of training took."""
    gn.manual_seed(seed)
    train_data, test_data = (data.named(args.data, train=part) for part in (True, False))
    model = MODELS[name](train_data[0][0].shape, len(train_data.classes)).to(args.device)
    start = time.perf_counter()
    history = train.fit(
        model, train_data, loss="cross_entropy", optimizer="adam", batch_size=128, epochs=args.epochs, progress=False
    )
    seconds = (time.perf_counter() - start) / args.epochs
    return history["loss"][-1], train.evaluate(model, test_data)["accuracy"], seconds


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the measurement; returns each model's mean test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--data", default="fashion-mnist", help="a name such as fashion-mnist, digits, mnist:/folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    args = parser.parse_args(argv)

    device = gn.zeros(1, device=args.device).device
    print(
        f"gpunet {gn.__version__}, NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}; "
        f"{args.data}, {args.epochs} epochs, device {device}"
    )
    print(f"{'model':5s} {'seed':>5s} {'training loss':>14s} {'test accuracy':>14s} {'s per epoch':>12s}")
    means = {}
    for name in MODELS if args.model == "all" else [args.model]:
        rows = []
        for seed in args.seeds:
            rows.append(measure(name, seed, args))
            loss, accuracy, seconds = rows[-1]
            print(f"{name:5s} {seed:5d} {loss:14.4f} {accuracy:14.4f} {seconds:12.2f}", flush=True)
        loss, means[name], seconds = map(statistics.mean, zip(*rows))
        line = f"{name:5s} {'mean':>5s} {loss:14.4f} {means[name]:14.4f} {seconds:12.2f}"
        if (args.data, args.epochs) == ("fashion-mnist", EPOCHS):
            line += f"   expected at least {EXPECTED[name]:.3f}: {'ok' if means[name] >= EXPECTED[name] else 'MISSED'}"
        print(line, flush=True)
    return means


if __name__ == "__main__":
    main()
