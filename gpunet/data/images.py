"""Data sets of labelled images held in memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunet.data.dataset import Dataset
from gpunet.data.transforms import is_batched, to_unit_interval
from gpunet.errors import ShapeError


class ImageDataset(Dataset):
    """Labelled images: sample i is (image, label), the image float32 (C, H, W) in 0..1, the label int64.

    Args:
        images: uint8, (N, H, W) for grey or (N, C, H, W); kept as they are in `.images`.
        labels: integers (N,), kept in `.labels` as int64.
        classes: the classes' names, label by label.
        highest: the pixel value that becomes 1.
        transform: applied to the float image: by the DataLoader to a whole batch at once if it is a
            `transforms.Transform`, otherwise to one image at a time.

    Raises:
        ShapeError: images and labels that do not fit each other.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str] = (),
        highest: int = 255,
        transform: Any = None,
    ):
        if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{type(self).__name__}: expected images (N, H, W) or (N, C, H, W) and labels (N,), "
                f"got {images.shape} and {labels.shape}"
            )
        self.images = images
        self.labels = labels.astype(np.int64)
        self.classes = tuple(classes)
        self.highest = highest
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, np.int64]:
        i = operator.index(index)
        raw = self.images[i]
        x = to_unit_interval(raw[None] if raw.ndim == 2 else raw, self.highest)
        return (x if self.transform is None else self.transform(x)), self.labels[i]

    def get_batch(self, indices: np.ndarray) -> Any:
        if self.transform is not None and not is_batched(self.transform):
            return NotImplemented
        raw = self.images[indices]
        x = to_unit_interval(raw[:, None] if raw.ndim == 3 else raw, self.highest)
        return (x if self.transform is None else self.transform.batch(x)), self.labels[indices]

    def __repr__(self) -> str:
        shape = self.images.shape[1:] if self.images.ndim == 4 else (1, *self.images.shape[1:])
        transform = "" if self.transform is None else f", transform={self.transform!r}"
        return f"{type(self).__name__}({len(self)} images {shape}, {len(self.classes)} classes{transform})"
