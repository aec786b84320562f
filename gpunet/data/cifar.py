"""CIFAR-10 and CIFAR-100 in their binary version: records of one or two label bytes and 3 x 32 x 32 pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpunet.data.images import ImageDataset
from gpunet.data.source import RemoteFile, Source
from gpunet.errors import FileFormatError

_PIXELS = 3 * 32 * 32


def read_cifar(path: str | os.PathLike[str], classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels uint8 (N, len(classes)) of a CIFAR file in the binary version.

    Args:
        path: the file.
        classes: how many classes each of the label bytes tells apart: (10,) for CIFAR-10, (20, 100) for CIFAR-100.

    Raises:
        FileFormatError: a file that is empty or truncated, or that has other labels and so is not of this kind.
    """
    path = Path(path)
    record = len(classes) + _PIXELS
    size = path.stat().st_size
    if size == 0 or size % record:
        raise FileFormatError(
            f"{path}: truncated, or not a CIFAR file: {size} bytes are not a whole number of records of {record} bytes"
        )
    records = np.fromfile(path, np.uint8).reshape(-1, record)
    labels = records[:, : len(classes)]
    wrong = np.flatnonzero((labels >= np.array(classes)).any(axis=1))
    if wrong.size:
        raise FileFormatError(
            f"{path}: not a CIFAR file of {classes[-1]} classes: record {wrong[0]} has the label "
            f"{', '.join(map(str, labels[wrong[0]]))}"
        )
    return records[:, len(classes) :].reshape(-1, 3, 32, 32), labels


class _CifarDataset(ImageDataset):
    source: Source
    classes: tuple[str, ...]
    label_classes: tuple[int, ...]
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Any = None,
        download: bool = False,
    ):
        paths = self.source.find(self.train_files if train else self.test_files, root, download)
        parts = [read_cifar(path, self.label_classes) for path in paths]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        super().__init__(images, labels[:, -1], self.classes, transform=transform)
        self._all_labels = labels


class CIFAR10(_CifarDataset):
    """Photographs in ten classes: samples (image float32 (3, 32, 32) RGB in 0..1, label int64).

    A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).

    Args:
        root: the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, or with cifar-10-batches-bin or
            CIFAR10 that has them, or with cifar-10-binary.tar.gz. None: $GPUNET_DATA, or gpunet/data in the user's
            cache folder.
        train: the 50,000 images to train with, or the 10,000 to test.
        transform: see `ImageDataset`.
        download: fetch the archive (170 MB) into root/CIFAR10 and unpack it; SHA-256 checked, resumable.

    Raises:
        FileNotFoundError: files are missing; it says what to do.
        FileFormatError: a damaged file.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    label_classes = (10,)
    train_files = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    test_files = ("test_batch.bin",)
    source = Source(
        "CIFAR10",
        [
            RemoteFile(
                "cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                [
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
                ],
            )
        ],
        folder="cifar-10-batches-bin",
        members={f"cifar-10-batches-bin/{name}": 10000 * (1 + _PIXELS) for name in (*train_files, *test_files)},
    )


class CIFAR100(_CifarDataset):
    """Photographs in 100 classes: samples (image float32 (3, 32, 32) RGB in 0..1, label int64).

    `.coarse_labels` (N,) int64 has the label among the 20 `coarse_classes`. The arguments are those of `CIFAR10`; the
    files are train.bin and test.bin, in cifar-100-binary, in cifar-100-binary.tar.gz (169 MB).
    """

    # fmt: off
    classes = (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
        "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
        "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
        "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
        "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
        "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
        "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
        "willow_tree", "wolf", "woman", "worm",
    )
    coarse_classes = (
        "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
        "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
        "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals",
        "non-insect_invertebrates", "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
    )
    # fmt: on
    label_classes = (20, 100)
    train_files = ("train.bin",)
    test_files = ("test.bin",)
    source = Source(
        "CIFAR100",
        [
            RemoteFile(
                "cifar-100-binary.tar.gz",
                168513733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                [
                    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                    "https://cave.cs.toronto.edu/kriz/cifar-100-binary.tar.gz",
                ],
            )
        ],
        folder="cifar-100-binary",
        members={
            "cifar-100-binary/train.bin": 50000 * (2 + _PIXELS),
            "cifar-100-binary/test.bin": 10000 * (2 + _PIXELS),
        },
    )

    @property
    def coarse_labels(self) -> np.ndarray:
        return self._all_labels[:, 0].astype(np.int64)
