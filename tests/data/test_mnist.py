import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpunet.data import MNIST, DataLoader, FashionMNIST, write_idx
from gpunet.data.source import RemoteFile
from gpunet.errors import FileFormatError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def small(folder, count=6, suffix="", part="train"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return images, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "MNIST", "MNIST/raw"])
def test_from_a_folder(tmp_path, suffix, place):
    images, labels = small(tmp_path / place, suffix=suffix)
    test_images, _ = small(tmp_path / place, count=3, suffix=suffix, part="t10k")
    train = MNIST(tmp_path)
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(train.labels, labels)
    assert len(MNIST(str(tmp_path), train=False)) == len(test_images) == 3
    x, y = train[4]
    assert x.shape == (1, 28, 28) and x.dtype == np.float32 and 0 <= x.min() <= x.max() <= 1 and y == 4
    assert train.classes == MNIST.classes == tuple("0123456789")
    assert repr(train) == "MNIST(6 images (1, 28, 28), 10 classes)"


def test_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUNET_DATA", str(tmp_path))
    small(tmp_path / "FashionMNIST", count=2)
    assert len(FashionMNIST()) == 2


def test_missing_says_exactly_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        MNIST(tmp_path)
    text = str(caught.value)
    assert text.startswith("MNIST: did not find train-images-idx3-ubyte, train-labels-idx1-ubyte (gzipped or not). Lo")
    assert f"\n  {tmp_path}/MNIST\n" in text and f"\n  {tmp_path}\n" in text
    assert "pass download=True: it fetches 9.9 MB" in text
    assert f"put them into {tmp_path}/MNIST, or pass root= the folder that has them; they come from\n" in text
    assert "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz" in text
    assert "apt install" not in text


def test_missing_fashion_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUNET_DATA", str(tmp_path))
    source = replace(FashionMNIST.source, package=(FashionMNIST.source.package[0], str(tmp_path / "none")))
    monkeypatch.setattr(FashionMNIST, "source", source)
    with pytest.raises(FileNotFoundError, match="install the system package: apt install dataset-fashion-mnist"):
        FashionMNIST()


def test_a_given_root_is_not_replaced_by_the_system_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="FashionMNIST: did not find"):
        FashionMNIST(tmp_path / "typo")


def published(site, folder, change=b""):
    """The small files as if `site` published them."""
    small(folder, suffix=".gz")
    files = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        site.files["/" + path.name] = content + change
        size, digest = len(content), hashlib.sha256(content).hexdigest()
        files.append(RemoteFile(path.name, size, digest, [f"{site.url}/{path.name}"]))
    return files


def test_download(site, tmp_path, monkeypatch):
    files = published(site, tmp_path / "published")
    monkeypatch.setattr(MNIST, "source", replace(MNIST.source, remote=files))
    root = tmp_path / "root"
    assert len(MNIST(root, download=True)) == 6
    assert sorted(p.name for p in (root / "MNIST").iterdir()) == [file.name for file in files]
    assert len(MNIST(root, download=True)) == len(MNIST(root)) == 6
    assert len(site.requests) == 2


def test_download_that_fails_is_the_same_error_with_the_reason(site, tmp_path, monkeypatch):
    files = published(site, tmp_path / "published")
    site.files.clear()
    monkeypatch.setattr(MNIST, "source", replace(MNIST.source, remote=files))
    with pytest.raises(FileNotFoundError) as caught:
        MNIST(tmp_path / "root", download=True)
    text = str(caught.value)
    assert re.search(r"put them into(.|\n)*What went wrong: could not download train-images(.|\n)*404", text)
    assert "pass download=True" not in text


def test_download_of_something_else(site, tmp_path, monkeypatch):
    files = published(site, tmp_path / "published", change=b"x")
    monkeypatch.setattr(MNIST, "source", replace(MNIST.source, remote=files))
    with pytest.raises(FileFormatError, match=r"could not download train-images-idx3-ubyte\.gz:\n.*offers"):
        MNIST(tmp_path / "root", download=True)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((6, 784), np.uint8), "expected images, uint8 of 3 axes; got uint8"),
        ("train-images-idx3-ubyte", np.zeros((6, 28, 28), np.int32), "expected images, uint8 of 3 axes; got int32"),
        ("train-labels-idx1-ubyte", np.zeros((6, 1), np.uint8), "expected labels, uint8 of 1 axis; got uint8"),
        ("train-labels-idx1-ubyte", np.zeros(5, np.uint8), "has 6 images, and .* has 5 labels"),
        ("train-labels-idx1-ubyte", np.full(6, 10, np.uint8), r"a label is 10; expected 0\.\.9"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, array, message):
    small(tmp_path)
    write_idx(tmp_path / name, array)
    with pytest.raises(FileFormatError, match=message):
        MNIST(tmp_path)


def test_truncated_file(tmp_path):
    small(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="train-images-idx3-ubyte: truncated"):
        MNIST(tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    test = FashionMNIST(train=False)
    assert test.images.shape == (10_000, 28, 28) and np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[test.labels[0]] == "Ankle boot"
    x, y = next(iter(DataLoader(test, batch_size=128, shuffle=True)))
    assert x.shape == (128, 1, 28, 28) and x.dtype == np.float32 and y.dtype == np.int64


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize(("part", "time"), [("t10k-labels-idx1", 1504176627), ("train-labels-idx1", 1504176606)])
def test_published_digests_of_fashion_mnist(part, time):
    """Debian's files are the published ones, less the name and the time in the gzip header: put back, they have the
    published sizes and SHA-256."""
    path = DEBIAN / f"{part}-ubyte.gz"
    stripped = path.read_bytes()
    header = stripped[:3] + b"\x08" + time.to_bytes(4, "little") + stripped[8:10] + path.stem.encode() + b"\0"
    whole = header + stripped[10:]
    (file,) = (file for file in FashionMNIST.source.remote if file.name == path.name)
    assert (len(whole), hashlib.sha256(whole).hexdigest()) == (file.size, file.sha256)
