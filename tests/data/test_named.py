"""Datasets by name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gpunet import data


def test_digits() -> None:
    assert len(data.named("digits")) + len(data.named("digits", train=False)) == 1797
    with pytest.raises(ValueError, match="take no folder"):
        data.named("digits:somewhere")


def test_a_folder(tmp_path: Path) -> None:
    images = np.arange(3 * 28 * 28, dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4I", 2051, 3, 28, 28) + images.tobytes())
    )
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 2049, 3) + bytes([7, 1, 3])))
    test = data.named(f"mnist:{tmp_path}", train=False)
    assert test.labels.tolist() == [7, 1, 3] and (test.images.ravel() == images).all()


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown dataset 'imagenet'; known: digits, mnist, fashion-mnist, cifar10"):
        data.named("imagenet")
    with pytest.raises(FileNotFoundError, match="cifar"):
        data.named(f"cifar10:{tmp_path}")
