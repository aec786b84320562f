import numpy as np
import pytest

import gpunet as gn
from gpunet.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split
from gpunet.data.transforms import Transform
from gpunet.errors import ShapeError


def pairs(count, start=0):
    return TensorDataset(np.arange(start, start + count) * 1.0, np.arange(start, start + count))


def test_tensor_dataset():
    dataset = TensorDataset(np.arange(6.0).reshape(3, 2), gn.asarray([7, 8, 9]), [[1.5], [2.5], [3.5]])
    assert len(dataset) == 3
    x, y, z = dataset[-1]
    assert x.tolist() == [4, 5] and y == 9 and z == np.float32(3.5) and z.dtype == np.float32
    assert [a.tolist() for a in dataset.get_batch(np.array([2, 0]))] == [[[4, 5], [0, 1]], [9, 7], [[3.5], [1.5]]]
    assert repr(dataset) == "TensorDataset(3 samples of float64(2,), int64(), float32(1,))"


def test_tensor_dataset_shares_its_arrays():
    array = np.zeros(3)
    assert TensorDataset(array).arrays[0] is array


def test_tensor_dataset_of_unequal_lengths():
    with pytest.raises(ShapeError, match=r"different lengths, 3, 4; shapes \(3, 2\), \(4,\)"):
        TensorDataset(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ShapeError, match="array 1 is a scalar"):
        TensorDataset(np.zeros(3), np.float32(1))
    with pytest.raises(ValueError, match="at least one array"):
        TensorDataset()


class Negate(Transform):
    calls = 0

    def apply(self, x):
        self.calls += 1
        return -x


def test_transform_of_a_tensor_dataset_is_batched_where_it_can_be():
    images = np.random.default_rng(0).random((6, 1, 2, 2), np.float32)
    batched, single = Negate(), Negate()
    fast = TensorDataset(images, np.arange(6), transform=batched)
    slow = TensorDataset(images, np.arange(6), transform=lambda x: single(x))
    (x, _), (z, _) = next(iter(DataLoader(fast, 6))), next(iter(DataLoader(slow, 6)))
    np.testing.assert_array_equal(x.numpy(), -images)
    np.testing.assert_array_equal(x.numpy(), z.numpy())
    assert batched.calls == 1 and single.calls == 6
    np.testing.assert_array_equal(fast[2][0], -images[2])


def test_a_subclass_that_changes_samples_changes_batches():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return 2 * x, y

    class Tripled(Doubled):
        def get_batch(self, indices):
            x, y = TensorDataset.get_batch(self, indices)
            return 3 * x, y

    arrays = np.arange(4.0), np.arange(4)
    ((x, _),) = DataLoader(Doubled(*arrays), 4)
    assert x.numpy().tolist() == [0, 2, 4, 6]
    ((x, _),) = DataLoader(Subset(Doubled(*arrays), [3, 1]), 4)
    assert x.numpy().tolist() == [6, 2]
    ((x, _),) = DataLoader(Tripled(*arrays), 4)
    assert x.numpy().tolist() == [0, 3, 6, 9]


def test_subset():
    subset = Subset(pairs(10), [7, 3])
    assert len(subset) == 2 and subset[0] == (7.0, 7) and subset[-1] == (3.0, 3)
    assert subset.get_batch(np.array([1, 0, 1]))[1].tolist() == [3, 7, 3]
    assert len(Subset(pairs(3), [])) == 0
    assert Subset([5, 6, 7], [2])[0] == 7 and Subset([5, 6, 7], [2]).get_batch(np.array([0])) is NotImplemented


@pytest.mark.parametrize("bad", [10, -1])
def test_subset_outside_the_dataset(bad):
    with pytest.raises(IndexError, match=rf"Subset: index {bad} is outside the dataset's 0\.\.9"):
        Subset(pairs(10), [0, bad])


def test_subset_of_a_mask_is_refused():
    with pytest.raises(TypeError, match="Subset: indices must be integers, got bool"):
        Subset(pairs(3), np.array([True, False, True]))


def test_concat():
    dataset = ConcatDataset([pairs(3), Subset(pairs(10), [5, 4]), pairs(2, start=100)])
    assert len(dataset) == 7
    assert [int(dataset[i][1]) for i in range(7)] == [0, 1, 2, 5, 4, 100, 101]
    assert dataset[-1][1] == 101
    order = np.array([6, 0, 3, 4, 1, 6])
    x, y = dataset.get_batch(order)
    assert y.tolist() == [101, 0, 5, 4, 1, 101] and x.tolist() == y.tolist()
    with pytest.raises(IndexError, match="index 7 is outside its 7 samples"):
        dataset[7]


def test_concat_with_a_part_that_has_no_batches():
    dataset = ConcatDataset([pairs(3), [(9.0, 9)]])
    assert dataset.get_batch(np.array([0, 3])) is NotImplemented
    (_, y), = DataLoader(dataset, 4)  # fmt: skip
    assert y.tolist() == [0, 1, 2, 9]
    with pytest.raises(ValueError, match="at least one dataset"):
        ConcatDataset([])


def test_random_split_by_sizes_and_by_fractions():
    parts = random_split(pairs(10), [7, 3], seed=1)
    assert [len(p) for p in parts] == [7, 3]
    assert sorted(np.concatenate([p.indices for p in parts])) == list(range(10))
    assert [len(p) for p in random_split(pairs(11), [0.5, 0.25, 0.25])] == [6, 3, 2]
    assert [len(p) for p in random_split(pairs(10), [0.7, 0.3])] == [7, 3]
    assert [len(p) for p in random_split(pairs(10), [10, 0])] == [10, 0]


def test_random_split_is_seeded():
    def split(seed=None):
        return random_split(pairs(20), [10, 10], seed)[0].indices.tolist()

    assert split(1) == split(1) != split(2)
    gn.manual_seed(3)
    first, second = split(), split()
    gn.manual_seed(3)
    assert split() == first != second


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([7, 4], r"the lengths \[7, 4\] add up to 11; the dataset has 10 samples"),
        ([0.5, 0.4], r"the fractions \[0.5, 0.4\] add up to 0.9, not to 1"),
        ([11, -1], "lengths must not be negative"),
    ],
)
def test_random_split_that_does_not_add_up(lengths, message):
    with pytest.raises(ValueError, match=message):
        random_split(pairs(10), lengths)


def test_unfinished_dataset_says_what_it_lacks():
    class Half(Dataset):
        pass

    with pytest.raises(NotImplementedError, match="Half must define __len__"):
        len(Half())
    with pytest.raises(NotImplementedError, match="Half must define __getitem__"):
        Half()[0]
