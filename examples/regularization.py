"""Regularization: a network with far more weights than samples learns them by heart; four remedies, each alone.

python examples/regularization.py
python examples/regularization.py --data fashion-mnist --samples 1000

The network, pixels-512-512-classes, gets few samples, and as in much data that people collect, some labels are wrong.
By and by it fits these too, at the cost of what it had understood: its test accuracy rises first and falls again.

- Dropout: half of the hidden units, others in each step, are left out: no unit can rely on a few others.
- Weight decay: each step shrinks the weights a little, so that only what many samples ask for stays large.
- Augmentation: the images are turned and shifted a little, anew in each epoch: there is nothing to learn by heart.
- Early stopping: a part of the samples is kept aside, and training ends when they are no longer predicted better. The
  weights of the best epoch are kept.

All runs begin with the same weights. One run each says how, not exactly how much: compare several --seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gpunet as gn
from gpunet import data, nn, optim, train
from gpunet.data import transforms

METHODS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "dropout": {"dropout": 0.5},
    "weight decay": {"weight_decay": 2.0},  # much, as there are few steps to act in: lr * 2 of each weight per step
    "augmentation": {"augment": True},
    "early stopping": {"patience": 10},
}


def network(pixels: int, classes: int, dropout: float) -> nn.Module:
    """Two hidden layers of 512: three hundred thousand weights on the smallest images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, 512),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(512, classes),
    )


def few_samples(dataset: data.ImageDataset, count: int, wrong: float) -> data.TensorDataset:
    """`count` samples drawn at random; the share `wrong` of them gets another label."""
    images, labels = dataset.get_batch(gn.random.permutation(len(dataset)).numpy()[:count])
    mistakes = round(wrong * len(labels))  # the order is random already, so the first ones will do
    classes = len(dataset.classes)
    labels[:mistakes] = (labels[:mistakes] + gn.random.randint(1, classes, (mistakes,)).numpy()) % classes
    shuffled = gn.random.permutation(len(labels)).numpy()
    return data.TensorDataset(images[shuffled], labels[shuffled])


class Curves(train.Callback):
    """After each epoch, accuracy and loss on the training samples, as they are, and on the test images."""

    def __init__(self, train_data: data.Dataset, test_data: data.Dataset) -> None:
        self.parts = {"train": train_data, "test": test_data}
        self.history = train.History()

    def on_epoch_end(self, state: train.State) -> None:
        self.history.append(self.measure(state.model))

    def measure(self, model: nn.Module) -> dict[str, float]:
        """ "train_accuracy", "train_loss", "test_accuracy" and "test_loss"."""
        values = {}
        for part, dataset in self.parts.items():
            for name, value in train.evaluate(model, dataset, loss="cross_entropy", metrics=["accuracy"]).items():
                values[f"{part}_{name}"] = value
        return values


def run(
    samples: data.TensorDataset,
    test_data: data.ImageDataset,
    args: argparse.Namespace,
    *,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    augment: bool = False,
    patience: int | None = None,
) -> tuple[dict[str, float], train.History]:
    """Train a new network; its final figures and its curves."""
    gn.manual_seed(args.seed)
    images, labels = samples.arrays
    stopping = None
    validation_data = None
    if patience is not None:  # a fifth is kept aside
        rest = len(labels) * 4 // 5
        validation_data = (images[rest:], labels[rest:])
        images, labels = images[:rest], labels[:rest]
        stopping = train.EarlyStopping("val_loss", patience=patience)
    transform = None
    if augment:
        height, width = images.shape[2:]
        transform = transforms.Compose(
            [
                transforms.RandomRotation(15, "bilinear"),
                transforms.RandomCrop((height, width), padding=math.ceil(height / 16)),
            ]
        )
    curves = Curves(data.TensorDataset(images, labels), test_data)
    model = network(images[0].size, len(test_data.classes), dropout)
    train.fit(
        model,
        data.TensorDataset(images, labels, transform=transform),
        loss="cross_entropy",
        optimizer=optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay),
        epochs=args.epochs,
        validation_data=validation_data,
        callbacks=[curves] if stopping is None else [curves, stopping],
        device=args.device,
        progress=False,
    )
    final = curves.measure(model)  # after early stopping, not the last epoch's
    final["gap"] = final["train_accuracy"] - final["test_accuracy"]
    final["epochs"] = final["kept_epoch"] = curves.history.epochs
    if stopping is not None and stopping.best_epoch is not None:
        final["kept_epoch"] = stopping.best_epoch + 1
    return final, curves.history


def plot(
    histories: Mapping[str, train.History], finals: Mapping[str, Mapping[str, float]], wrong: float, path: Path
) -> None:
    """Draw the accuracies of each run, and the test losses of all, as a PNG."""
    from matplotlib.figure import Figure

    longest = max(history.epochs for history in histories.values())
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (method, history) in zip(panels.flat, histories.items()):
        epochs = range(1, history.epochs + 1)
        axes.plot(epochs, history["train_accuracy"], color="#1f6fb4", label="training samples")
        axes.plot(epochs, history["test_accuracy"], color="#d95f02", label="test images")
        axes.fill_between(epochs, history["train_accuracy"], history["test_accuracy"], color="#888888", alpha=0.15)
        axes.axhline(1 - wrong, color="#444444", linewidth=1, linestyle=":", label="labels that are right")
        end = finals[method]
        axes.plot(
            end["kept_epoch"], end["test_accuracy"], "o", color="#d95f02", label="the network kept", clip_on=False
        )
        axes.set_title(f"{method}: test accuracy {end['test_accuracy']:.3f}")
        axes.set_ylim(0, 1.03)
        axes.set_ylabel("accuracy")
    panels[0, 0].legend(loc="lower right", frameon=False)
    losses = panels[1, 2]
    for method, history in histories.items():
        losses.plot(range(1, history.epochs + 1), history["test_loss"], label=method)
    losses.set_title("test loss of all")
    losses.set_ylim(0)
    losses.set_ylabel("cross-entropy")
    losses.legend(frameon=False)
    for axes in panels.flat:
        axes.set_xlim(0, longest)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set_xlabel("epoch")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the example; returns for each method "train_accuracy", "test_accuracy", their "gap", "epochs" run ..."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="a name such as digits, fashion-mnist, mnist:/folder")
    parser.add_argument("--download", action="store_true", help="fetch the data's files where they are missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--samples", type=int, default=500, help="how many to train with")
    parser.add_argument("--wrong", type=float, default=0.3, help="the share of their labels that is wrong, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("runs/regularization.png"), help="where the curves go")
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    samples = few_samples(data.named(args.data, train=True, download=args.download), args.samples, args.wrong)
    test_data = data.named(args.data, train=False, download=args.download)

    print(f"{len(samples)} samples, {args.wrong:.0%} of their labels wrong; {len(test_data)} test images, all right")
    print(f"{'':14}   train    test      gap  epochs")
    finals, histories = {}, {}
    for method, options in METHODS.items():
        final, histories[method] = run(samples, test_data, args, **options)
        finals[method] = final
        print(
            f"{method:14}  {final['train_accuracy']:.4f}  {final['test_accuracy']:.4f}  {final['gap']:+.4f}"
            f"  {final['epochs']:6}"
        )
    print(f"More than {1 - args.wrong:.0%} of the training labels can be right only by learning wrong ones by heart.")
    share = finals["nothing"]["test_accuracy"]
    error = math.sqrt(share * (1 - share) / len(test_data))
    print(f"With so many test images, a test accuracy is uncertain by about {2 * error:.3f}, two standard errors.")

    try:
        plot(histories, finals, args.wrong, args.plot)
        print(f"curves: {args.plot}")
    except ImportError:
        print("no curves are drawn: that needs matplotlib, pip install 'gpunet[plot]'")
    return finals


if __name__ == "__main__":
    main()
