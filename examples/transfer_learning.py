"""Transfer learning: what a network learned from many images helps it with a few images of classes that it never saw.

python examples/transfer_learning.py
python examples/transfer_learning.py --data fashion-mnist --shift 0 --pretrain-epochs 2

1. Train a small convolutional network on all samples of the first half of the classes, and save its weights.
2. Load them, freeze the features, put a new head on top, and train that on a few samples ("shots") of each class of the
   other half.
3. To compare, train the same network, from random weights, on the same few samples.

Which samples are drawn matters when they are few: 2 and 3 are repeated with several draws, and averaged.

What can be transferred? Something that the new classes need as well and that a few samples do not show. Here each image
stands at a random place in a wider frame: many images teach features that cope with that, whatever the classes. Try
--shift 0: five of the centred 8 x 8 digits show all that is needed, and training from scratch wins a little; on
Fashion-MNIST, with many more images to learn from first, transfer wins all the same. With --shots 20, nothing is left
of its advantage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import gpunet as gn
from gpunet import data, io, nn, optim, train
from gpunet.data import transforms
from gpunet.nn import functional as F


class Network(nn.Module):
    """Two convolutions make features of an image; the head, a linear layer, makes one score per class of them."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        channels, height, width = image_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(64 * (height // 4) * (width // 4), classes)
        self.frozen = False

    def forward(self, x: gn.Tensor) -> gn.Tensor:
        return self.head(self.features(x))

    def freeze_features(self) -> None:
        """From now on only the head learns."""
        self.features.requires_grad_(False)
        self.frozen = True

    def train(self, mode: bool = True) -> Network:
        # Weights that stay are not enough: in training mode, BatchNorm's running mean and variance would still change.
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self


def samples(dataset: data.ImageDataset, classes: range, shots: int | None = None) -> data.TensorDataset:
    """The images of some classes, labelled 0, 1, ...: all of them, or `shots` of each class, drawn at random."""
    of_class = [np.flatnonzero(dataset.labels == label) for label in classes]
    if shots is not None:
        of_class = [indices[gn.random.permutation(len(indices)).numpy()[:shots]] for indices in of_class]
    images, labels = dataset.get_batch(np.concatenate(of_class))
    return data.TensorDataset(images, labels - classes.start)


def learn(model: Network, few: data.Dataset, test_data: data.Dataset, args: argparse.Namespace) -> dict[int, float]:
    """Train what is not frozen on a few samples; the test accuracy after 1, 2, 5 ... epochs, and after the last."""
    model.to(args.device)
    optimizer = optim.Adam([p for p in model.parameters() if p.requires_grad], lr=args.lr)
    loader = data.DataLoader(few, batch_size=32, shuffle=True, device=args.device)
    test_after = {1, 2, 5, 10, 20, 50, 100, 200, 500, args.epochs}
    curve = {}
    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in test_after:
            curve[epoch] = train.evaluate(model, test_data)["accuracy"]
    return curve


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; returns the test accuracies "pretrained" (on its own classes), "transfer" and "scratch"."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="a name such as digits, fashion-mnist, mnist:/folder")
    parser.add_argument("--download", action="store_true", help="fetch the data's files where they are missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=50, help="how often to go through the few samples")
    parser.add_argument("--pretrain-epochs", type=int, default=20, help="how often through the first half's samples")
    parser.add_argument("--shots", type=int, default=5, help="samples of each class of the second half")
    parser.add_argument("--shift", type=int, default=4, help="how many pixels wider the frame is than the image")
    parser.add_argument("--draws", type=int, default=5, help="draws of the few samples, to average over")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=Path("runs/pretrained.safetensors"), help="where they go")
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    train_data = data.named(args.data, train=True, download=args.download)
    test_data = data.named(args.data, train=False, download=args.download)
    _channels, height, width = train_data[0][0].shape
    for dataset in (train_data, test_data):
        dataset.transform = transforms.RandomCrop((height + args.shift, width + args.shift), padding=args.shift)
    image_shape = train_data[0][0].shape
    classes = len(train_data.classes)
    first, second = range(classes // 2), range(classes // 2, classes)

    # 1. Many samples of the first half of the classes.
    model = Network(image_shape, len(first))
    many = samples(train_data, first)
    adam = optim.Adam(model.parameters(), lr=args.lr)
    train.fit(model, many, loss="cross_entropy", optimizer=adam, epochs=args.pretrain_epochs, device=args.device)
    pretrained = train.evaluate(model, samples(test_data, first))["accuracy"]
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    io.save(args.weights, model.state_dict())
    print(
        f"{len(many)} samples of {len(first)} classes: test accuracy {pretrained:.4f}, weights saved to {args.weights}"
    )

    test_second = samples(test_data, second)
    curves: dict[str, list[dict[int, float]]] = {"transfer": [], "scratch": []}
    for _draw in range(args.draws):
        few = samples(train_data, second, args.shots)

        # 2. The features that were learned, and a new head.
        model = Network(image_shape, len(first))
        model.load_state_dict(io.load(args.weights))
        model.freeze_features()
        model.head = nn.Linear(model.head.in_features, len(second))
        curves["transfer"].append(learn(model, few, test_second, args))

        # 3. From random weights.
        model = Network(image_shape, len(second))
        curves["scratch"].append(learn(model, few, test_second, args))

    print(f"{len(few)} samples of the {len(second)} other classes, mean test accuracy of {args.draws} draws after")
    print("epochs  ", *(f"{epoch:7}" for epoch in curves["scratch"][0]))
    for way, runs in curves.items():
        means = np.mean([list(run.values()) for run in runs], axis=0)
        print(f"{way:8}", *(f"{mean:7.4f}" for mean in means))
    ends = {way: np.array([run[args.epochs] for run in runs]) for way, runs in curves.items()}
    gain = ends["transfer"] - ends["scratch"]
    print(f"transfer - scratch: {gain.mean():+.4f}, from {gain.min():+.4f} to {gain.max():+.4f} in single draws")
    return {"pretrained": pretrained, **{way: float(end.mean()) for way, end in ends.items()}}


if __name__ == "__main__":
    main()
