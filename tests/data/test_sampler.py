import numpy as np
import pytest

import gpunet as gn
from gpunet.data import BatchSampler, RandomSampler, SequentialSampler, WeightedRandomSampler


@pytest.fixture(autouse=True)
def seed():
    gn.manual_seed(0)


def test_sequential():
    sampler = SequentialSampler("abc")
    assert list(sampler) == [0, 1, 2] and len(sampler) == 3


def test_random_is_a_permutation_and_follows_the_seed():
    sampler = RandomSampler(range(100))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(100)) and first != second != list(range(100))
    gn.manual_seed(0)
    assert list(sampler) == first


def test_random_num_samples():
    few = list(RandomSampler(range(100), num_samples=10))
    assert len(set(few)) == 10
    many = list(RandomSampler(range(4), num_samples=10))
    assert len(many) == 10 and sorted(many[:4]) == sorted(many[4:8]) == [0, 1, 2, 3]


def test_random_with_replacement():
    drawn = list(RandomSampler(range(4), replacement=True, num_samples=4000))
    counts = np.bincount(drawn, minlength=4)
    assert len(drawn) == 4000 and np.all(np.abs(counts - 1000) < 150)  # 5 standard deviations


def test_weighted_with_replacement_has_the_given_shares():
    weights = np.array([0, 1.0, 3, 0, 6, 0])
    drawn = np.bincount(list(WeightedRandomSampler(weights, 10_000)), minlength=6)
    np.testing.assert_allclose(drawn / 10_000, weights / 10, atol=0.025)
    assert drawn[[0, 3, 5]].sum() == 0


def test_weighted_without_replacement():
    weights = [1.0, 2, 4, 0, 1]
    assert sorted(WeightedRandomSampler(weights, 4, replacement=False)) == [0, 1, 2, 4]
    # The first one drawn has probability weight / sum.
    first = [next(iter(WeightedRandomSampler(weights, 1, replacement=False))) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(first, minlength=5) / 4000, np.array(weights) / 8, atol=0.04)


@pytest.mark.parametrize(
    ("weights", "count", "replacement", "message"),
    [
        ([1, -1], 1, True, "finite numbers >= 0"),
        ([1, np.nan], 1, True, "finite numbers >= 0"),
        ([[1], [2]], 1, True, "one list"),
        ([0, 0], 1, True, "at least one weight must be above 0"),
        ([1, 0, 1], 3, False, "cannot draw num_samples=3 without replacement from the 2 samples"),
        ([1], 0, True, "num_samples must be at least 1, got 0"),
    ],
)
def test_weighted_refuses(weights, count, replacement, message):
    with pytest.raises(ValueError, match=message):
        WeightedRandomSampler(weights, count, replacement)


def test_batches():
    sampler = BatchSampler(range(10), 4)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(sampler) == 3
    sampler = BatchSampler(range(10), 4, drop_last=True)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(sampler) == 2


def test_batches_of_an_endless_sampler():
    def forever():
        while True:
            yield from (1, 2, 3)

    batches = iter(BatchSampler(forever(), 2))
    assert [next(batches) for _ in range(3)] == [[1, 2], [3, 1], [2, 3]]


def test_repr():
    sampler = BatchSampler(RandomSampler(range(9), replacement=True), 4)
    assert repr(sampler) == "BatchSampler(RandomSampler(9 of 9, with replacement), batch_size=4, drop_last=False)"
    assert repr(WeightedRandomSampler([1, 2], 5)) == "WeightedRandomSampler(5 of 2, replacement=True)"
    assert repr(SequentialSampler([1])) == "SequentialSampler(1)"


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_batch_size_must_be_a_positive_int(value, error):
    with pytest.raises(error, match=rf"BatchSampler: batch_size must be (at least 1|an int), got {value}"):
        BatchSampler(range(3), value)
