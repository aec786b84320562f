"""A convolutional network on the photographs of CIFAR-10, with augmentation and a learning rate that rises and falls.

python examples/convnet_cifar10.py --download                    # fetches 170 MB the first time
python examples/convnet_cifar10.py --data cifar10:/data/cifar    # where its binary files are
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gpunet as gn
from gpunet import data, nn, optim, train
from gpunet.data import transforms

# Mean and standard deviation of the training images' red, green and blue.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def network(classes: int) -> nn.Module:
    """Five times convolution, ReLU, max-pooling: each halves the image's sides, 32, 16, 8, 4, 2, 1."""
    layers: list[nn.Module] = []
    channels = 3
    for filters in (16, 32, 64, 128, 256):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, classes))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; returns the last epoch's "loss", "accuracy" (in training) and "lr", and the "test_accuracy"."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="cifar10", help="cifar10 or cifar100, or cifar10:/folder")
    parser.add_argument("--download", action="store_true", help="fetch the data's files where they are missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate")
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    normalize = transforms.Normalize(MEAN, STD)
    # Shifted and mirrored copies show the same thing: no two epochs see quite the same images.
    augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), normalize])
    train_data = data.named(args.data, train=True, transform=augment, download=args.download)
    test_data = data.named(args.data, train=False, transform=normalize, download=args.download)
    train_loader = data.DataLoader(train_data, args.batch_size, shuffle=True, device=args.device)
    test_loader = data.DataLoader(test_data, batch_size=500, device=args.device)

    model = network(len(train_data.classes)).to(args.device)
    print(model.summary((1, 3, 32, 32)))
    optimizer = optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, epochs=args.epochs, steps_per_epoch=len(train_loader)
    )
    history = train.fit(
        model,
        train_loader,
        loss="cross_entropy",
        optimizer=optimizer,
        scheduler=schedule,
        metrics=["accuracy"],
        epochs=args.epochs,
    )
    test_accuracy = train.evaluate(model, test_loader)["accuracy"]
    print(f"test accuracy {test_accuracy:.4f}")
    return {**history.epoch(-1), "test_accuracy": test_accuracy}


if __name__ == "__main__":
    main()
