import numpy as np
import pytest

from gpunet.data import DataLoader, ImageDataset
from gpunet.data import transforms as T
from gpunet.errors import ShapeError

GREY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 1], np.uint8)


def test_samples():
    dataset = ImageDataset(GREY, LABELS, ("a", "b", "c"), highest=60)
    x, y = dataset[1]
    assert x.shape == (1, 4, 5) and x.dtype == np.float32 and y == 0 and y.dtype == np.int64
    np.testing.assert_allclose(x[0], GREY[1] / 60, rtol=1e-6)
    assert dataset.images is GREY and dataset.labels.dtype == np.int64 and dataset.classes == ("a", "b", "c")
    assert len(dataset) == 3 and dataset[-1][1] == 1
    assert repr(dataset) == "ImageDataset(3 images (1, 4, 5), 3 classes)"


@pytest.mark.parametrize("images", [GREY, GREY[:, None].repeat(3, axis=1)])
@pytest.mark.parametrize("transform", [None, T.Normalize(0.5, 0.5), T.Compose([T.ToTensor(), T.CenterCrop(2)])])
def test_batches_are_the_samples_together(images, transform):
    dataset = ImageDataset(images, LABELS, transform=transform)
    x, y = dataset.get_batch(np.array([2, 0]))
    np.testing.assert_array_equal(x, np.stack([dataset[2][0], dataset[0][0]]))
    assert y.tolist() == [1, 2]


def test_a_transform_of_single_images():
    dataset = ImageDataset(GREY, LABELS, transform=lambda x: x[:, :1, :1])
    assert dataset.get_batch(np.array([0])) is NotImplemented
    ((x, _),) = DataLoader(dataset, 3)
    assert x.shape == (3, 1, 1, 1)


def test_one_index_at_a_time():
    with pytest.raises(TypeError):
        ImageDataset(GREY, LABELS)[0:2]
    with pytest.raises(IndexError):
        ImageDataset(GREY, LABELS)[3]


def test_images_and_labels_must_fit():
    with pytest.raises(ShapeError, match=r"ImageDataset: expected images .* got \(3, 4, 5\) and \(2,\)"):
        ImageDataset(GREY, LABELS[:2])
