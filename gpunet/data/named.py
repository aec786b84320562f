"""Datasets by name, for programs that take one on their command line."""

from __future__ import annotations

from typing import Any

from gpunet.data.cifar import CIFAR10, CIFAR100
from gpunet.data.digits import Digits
from gpunet.data.images import ImageDataset
from gpunet.data.mnist import MNIST, FashionMNIST

_NAMED: dict[str, type[ImageDataset]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
}
NAMES = tuple(_NAMED)


def named(name: str, train: bool = True, transform: Any = None, download: bool = False) -> ImageDataset:
    """The dataset `name`: one of "digits", "mnist", "fashion-mnist", "cifar10" and "cifar100", or such a name and the
    folder that holds its files: "cifar10:/data/cifar-10-batches-bin".

    Args:
        name: see above. Without a folder, the files are looked for where the dataset's class says.
        train: the part to train with, or else to test with.
        transform: see `ImageDataset`.
        download: whether to fetch files that are missing from the dataset's official source.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: the files are missing; the message says what to do.
    """
    kind, _, root = name.partition(":")
    if kind not in _NAMED:
        raise ValueError(f"unknown dataset {kind!r}; known: {', '.join(NAMES)}")
    if kind == "digits":
        if root:
            raise ValueError(f"the digits come with gpunet and take no folder, got {name!r}")
        return Digits(train=train, transform=transform)
    return _NAMED[kind](root=root or None, train=train, transform=transform, download=download)  # type: ignore[call-arg]
