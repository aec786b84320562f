"""The 1,797 handwritten digits of 8 x 8 pixels that come with gpunet: real data, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpunet.data.images import ImageDataset
from gpunet.data.mnist import load_idx_pair

_FILES = Path(__file__).parent / "files"


class Digits(ImageDataset):
    """Handwritten digits 0 to 9: samples (image float32 (1, 8, 8) in 0..1, label int64). `.images` has values 0..16.

    The split is fixed: of each class, in the original order, every fifth image beginning with the third is for
    testing, so both parts have the same shares of the classes. They share the 13 writers too: the accuracy says
    little about the hand of somebody else.

    E. Alpaydin, C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    https://doi.org/10.24432/C50P49, the test part; CC BY 4.0, see files/LICENSE.digits.

    Args:
        train: True: 1,438 images to train with; False: 359 to test; None: all 1,797, in the original order.
        transform: see `ImageDataset`.
    """

    def __init__(self, train: bool | None = True, transform: Any = None):
        images, labels = load_idx_pair(
            _FILES / "digits-images-idx3-ubyte.gz", _FILES / "digits-labels-idx1-ubyte.gz", classes=10
        )
        if train is not None:
            chosen = _is_test(labels) != train
            images, labels = images[chosen], labels[chosen]
        super().__init__(images, labels, tuple("0123456789"), highest=16, transform=transform)


def _is_test(labels: np.ndarray) -> np.ndarray:
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[2::5]] = True
    return test
