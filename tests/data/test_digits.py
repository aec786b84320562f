from pathlib import Path

import numpy as np
import pytest

from gpunet import data
from gpunet.data import Digits


def test_is_the_set_that_scikit_learn_carries():
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    whole = Digits(train=None)
    np.testing.assert_array_equal(whole.images, reference.images)
    np.testing.assert_array_equal(whole.labels, reference.target)


def test_samples():
    train = Digits()
    x, y = train[0]
    assert x.shape == (1, 8, 8) and x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_array_equal(x[0], train.images[0] / 16)
    assert train.images.dtype == np.uint8 and train.images.max() == 16
    assert repr(train) == "Digits(1438 images (1, 8, 8), 10 classes)"


def test_split_is_fixed_stratified_and_complete():
    whole, train, test = Digits(train=None), Digits(train=True), Digits(train=False)
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    np.testing.assert_array_equal(np.bincount(test.labels), np.ceil((np.bincount(whole.labels) - 2) / 5))
    together = np.concatenate([train.images, test.images]).reshape(1797, -1).tolist()
    assert sorted(together) == sorted(whole.images.reshape(1797, -1).tolist())
    zeros = np.flatnonzero(whole.labels == 0)
    np.testing.assert_array_equal(test.images[test.labels == 0], whole.images[zeros[2::5]])


def test_origin_and_licence_lie_beside_the_files():
    text = (Path(data.__file__).parent / "files" / "LICENSE.digits").read_text()
    for part in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "digits-images-idx3-ubyte.gz"):
        assert part in text
