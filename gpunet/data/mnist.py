"""MNIST and Fashion-MNIST: 28 x 28 grey images in ten classes, 60,000 to train and 10,000 to test, in IDX files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from gpunet.data.idx import read_idx
from gpunet.data.images import ImageDataset
from gpunet.data.source import RemoteFile, Source
from gpunet.errors import FileFormatError


def _remote(digests: dict[str, tuple[int, str]], addresses: tuple[str, ...]) -> list[RemoteFile]:
    return [
        RemoteFile(f"{name}.gz", size, sha256, [f"{address}{name}.gz" for address in addresses])
        for name, (size, sha256) in digests.items()
    ]


class _IdxDataset(ImageDataset):
    """The two IDX files of a part, checked against each other."""

    source: Source
    classes: tuple[str, ...]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Any = None,
        download: bool = False,
    ):
        part = "train" if train else "t10k"
        paths = self.source.find([f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"], root, download)
        images, labels = load_idx_pair(paths[0], paths[1], classes=len(self.classes))
        super().__init__(images, labels, self.classes, transform=transform)


class MNIST(_IdxDataset):
    """Handwritten digits 0 to 9: samples (image float32 (1, 28, 28) in 0..1, label int64).

    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition" (1998).

    Args:
        root: the folder with the four IDX files (gzipped or not), or with a folder MNIST that has them, as torchvision
            lays them out. None: $GPUNET_DATA, or gpunet/data in the user's cache folder.
        train: the 60,000 images to train with, or the 10,000 to test.
        transform: see `ImageDataset`.
        download: fetch missing files into root/MNIST; SHA-256 checked, resumable.

    Raises:
        FileNotFoundError: files are missing; it says what to do.
        FileFormatError: a damaged file.
    """

    classes = tuple("0123456789")
    source = Source(
        "MNIST",
        _remote(
            {
                "train-images-idx3-ubyte": (
                    9912422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                "train-labels-idx1-ubyte": (
                    28881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                "t10k-images-idx3-ubyte": (
                    1648877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                "t10k-labels-idx1-ubyte": (
                    4542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            },
            # The authors' own address comes last: it has been answering with errors for years.
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
                "http://yann.lecun.com/exdb/mnist/",
            ),
        ),
    )


class FashionMNIST(_IdxDataset):
    """Zalando's articles of clothing: samples (image float32 (1, 28, 28) in 0..1, label int64).

    The same arguments as `MNIST`; with root=None it is also found where Debian's package dataset-fashion-mnist has it.

    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms" (2017), https://github.com/zalandoresearch/fashion-mnist (MIT licence).
    """

    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    source = Source(
        "FashionMNIST",
        _remote(
            {
                "train-images-idx3-ubyte": (
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                "train-labels-idx1-ubyte": (
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                "t10k-images-idx3-ubyte": (
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                "t10k-labels-idx1-ubyte": (
                    5148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            },
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
        ),
        package=("apt install dataset-fashion-mnist (Debian, Ubuntu)", "/usr/share/datasets/fashion-mnist"),
    )


def load_idx_pair(images_path: Path, labels_path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W) and labels uint8 (N,) from two IDX files.

    Raises:
        FileFormatError: a damaged file, or two that do not fit each other.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise FileFormatError(f"{images_path}: expected images, uint8 of 3 axes; got {images.dtype} {images.shape}")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise FileFormatError(f"{labels_path}: expected labels, uint8 of 1 axis; got {labels.dtype} {labels.shape}")
    if len(images) != len(labels):
        raise FileFormatError(f"{images_path} has {len(images)} images, and {labels_path} has {len(labels)} labels")
    if labels.size and labels.max() >= classes:
        raise FileFormatError(f"{labels_path}: a label is {labels.max()}; expected 0..{classes - 1}")
    return images, labels
