import hashlib
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from gpunet.data import CIFAR10, CIFAR100
from gpunet.data.cifar import read_cifar
from gpunet.data.source import RemoteFile
from gpunet.errors import FileFormatError


def records(count, classes, start=0):
    rng = np.random.default_rng(start)
    labels = np.stack([(np.arange(count) + start) % n for n in classes], axis=1).astype(np.uint8)
    pixels = rng.integers(0, 256, (count, 3072), np.uint8)
    return np.concatenate([labels, pixels], axis=1)


def small(folder, count=4):
    """All files of both data sets, with few records."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*CIFAR10.train_files, *CIFAR10.test_files]):
        records(count, (10,), number).tofile(folder / name)
    for name in ("train.bin", "test.bin"):
        records(count, (20, 100), 90).tofile(folder / name)


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin", "CIFAR10/cifar-10-batches-bin", "CIFAR10"])
def test_cifar10_from_a_folder(tmp_path, place):
    small(tmp_path / place)
    train, test = CIFAR10(tmp_path), CIFAR10(tmp_path, train=False)
    assert len(train) == 20 and len(test) == 4
    expected = np.concatenate([records(4, (10,), number) for number in range(5)])
    np.testing.assert_array_equal(train.labels, expected[:, 0])
    np.testing.assert_array_equal(train.images.reshape(20, -1), expected[:, 1:])
    x, y = train[7]
    assert x.shape == (3, 32, 32) and x.dtype == np.float32 and y == expected[7, 0]
    np.testing.assert_allclose(x.ravel(), expected[7, 1:] / 255, rtol=1e-6)
    assert train.classes[0] == "airplane" and len(train.classes) == 10
    assert repr(train) == "CIFAR10(20 images (3, 32, 32), 10 classes)"


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    small(tmp_path / "cifar-100-binary")
    train = CIFAR100(tmp_path)
    assert train.labels.tolist() == [90, 91, 92, 93] and train.coarse_labels.tolist() == [10, 11, 12, 13]
    assert train.labels.dtype == train.coarse_labels.dtype == np.int64
    np.testing.assert_array_equal(train.images.reshape(4, -1), records(4, (20, 100), 90)[:, 2:])
    assert len(train.classes) == len(set(train.classes)) == 100 and list(train.classes) == sorted(train.classes)
    assert len(set(train.coarse_classes)) == 20


@pytest.mark.parametrize("length", [0, 1, 2, 1000, 3072, 3074, 2 * 3073 - 1, 2 * 3073 + 1])
def test_truncated(tmp_path, length):
    path = tmp_path / "data.bin"
    path.write_bytes(records(4, (10,)).tobytes()[:length])
    with pytest.raises(FileFormatError, match=rf"data\.bin: truncated, or not a CIFAR file: {length} bytes are not a"):
        read_cifar(path, (10,))


def test_labels_out_of_range(tmp_path):
    content = records(4, (10,))
    content[2, 0] = 10
    content.tofile(tmp_path / "data.bin")
    with pytest.raises(FileFormatError, match=r"data\.bin: not a CIFAR file of 10 classes: record 2 has the label 10"):
        read_cifar(tmp_path / "data.bin", (10,))
    content = records(3, (20, 100))
    content[1, :2] = 3, 100
    content.tofile(tmp_path / "data.bin")
    with pytest.raises(FileFormatError, match="of 100 classes: record 1 has the label 3, 100"):
        read_cifar(tmp_path / "data.bin", (20, 100))


def test_incomplete_folder(tmp_path):
    small(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        CIFAR10(tmp_path)
    text = str(caught.value)
    assert (
        "CIFAR10: did not find data_batch_1.bin, " in text and "(or cifar-10-binary.tar.gz, which holds them)" in text
    )
    assert f"{tmp_path} (has only data_batch_1.bin, data_batch_2.bin, data_batch_4.bin, data_batch_5.bin)" in text
    assert "pass download=True: it fetches 170.1 MB" in text
    assert f"put them into {tmp_path}/CIFAR10/cifar-10-batches-bin" in text
    assert len(CIFAR10(tmp_path, train=False)) == 4


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small cifar-10-binary.tar.gz that counts as the published one."""
    small(tmp_path / "made" / "cifar-10-batches-bin")
    path = tmp_path / "made" / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(path.parent / "cifar-10-batches-bin", "cifar-10-batches-bin")
    content = path.read_bytes()
    file = RemoteFile(path.name, len(content), hashlib.sha256(content).hexdigest(), [])
    monkeypatch.setattr(CIFAR10, "source", replace(CIFAR10.source, remote=[file]))
    return path


def test_download(site, archive, tmp_path, monkeypatch):
    site.files["/c.tar.gz"] = archive.read_bytes()
    file = replace(CIFAR10.source.remote[0], urls=[site.url + "/c.tar.gz"])
    monkeypatch.setattr(CIFAR10, "source", replace(CIFAR10.source, remote=[file]))
    assert len(CIFAR10(tmp_path / "root", download=True)) == 20
    assert len(CIFAR10(tmp_path / "root", train=False, download=True)) == 4
    assert len(site.requests) == 1


@pytest.mark.parametrize("place", [".", "CIFAR10"])
def test_an_archive_in_the_folder_is_unpacked(archive, tmp_path, place):
    folder = tmp_path / "root" / place
    folder.mkdir(parents=True)
    archive.rename(folder / archive.name)
    assert len(CIFAR10(tmp_path / "root")) == 20
    assert (folder / "cifar-10-batches-bin" / "test_batch.bin").is_file()
    assert not (folder / "cifar-10-batches-bin" / "train.bin").exists()  # not one of its members


def test_an_archive_that_is_not_the_published_one(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(FileFormatError, match=r"cifar-10-binary\.tar\.gz: not the published cifar-10-binary\.tar\.gz"):
        (archive.parent / "cifar-10-batches-bin").rename(tmp_path / "away")
        CIFAR10(archive.parent)
