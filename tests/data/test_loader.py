import time

import numpy as np
import pytest

import gpunet as gn
from gpunet.data import BatchSampler, DataLoader, Dataset, Digits, TensorDataset, WeightedRandomSampler
from gpunet.data import transforms as T


class Noisy(Dataset):
    """Sample by sample, with a random number in each; counts what is fetched."""

    def __init__(self, count=20):
        self.count = count
        self.fetched = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.fetched.append(index)
        return index, gn.random.uniform((2,)).numpy()


def add_noise(batch):
    index, x = batch
    return index, x + gn.random.normal(x.shape).numpy()


def values(loader):
    return [[leaf.numpy().tolist() for leaf in batch] for batch in loader]


def indices(loader):
    return [batch[0].numpy().tolist() for batch in loader]


def order(loader):
    return [index for batch in indices(loader) for index in batch]


def test_batches_are_tensors():
    dataset = TensorDataset(np.arange(10.0).reshape(5, 2), np.arange(5))
    loader = DataLoader(dataset, batch_size=2)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    x, _ = batches[0]
    assert isinstance(x, gn.Tensor) and x.shape == (2, 2) and x.dtype == gn.float64 and x.device == "cpu"
    assert [y.numpy().tolist() for _, y in batches] == [[0, 1], [2, 3], [4]]
    assert not np.shares_memory(x.numpy(), dataset.arrays[0])  # a batch may be changed in place


def test_a_list_is_a_dataset():
    batches = list(DataLoader([{"x": 1.0, "name": "a"}, {"x": 2.0, "name": "b"}], batch_size=2))
    assert batches[0]["x"].numpy().tolist() == [1, 2] and batches[0]["name"] == ["a", "b"]


def test_batch_size_larger_than_the_data():
    assert indices(DataLoader(Noisy(3), batch_size=100)) == [[0, 1, 2]]


def test_drop_last():
    loader = DataLoader(Noisy(10), batch_size=4, drop_last=True)
    assert indices(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(loader) == 2


def test_shuffle_visits_each_sample_in_a_new_order_each_epoch():
    loader = DataLoader(Noisy(50), batch_size=8, shuffle=True, seed=1)
    first, second = order(loader), order(loader)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))
    assert order(DataLoader(Noisy(50), batch_size=5, shuffle=True, seed=1)) == first


def test_seed_comes_from_manual_seed():
    gn.manual_seed(5)
    a, b = (values(DataLoader(Noisy(), 4, shuffle=True)) for _ in range(2))
    gn.manual_seed(5)
    assert values(DataLoader(Noisy(), 4, shuffle=True)) == a != b


def test_iterating_leaves_the_global_stream_alone():
    gn.manual_seed(0)
    loader = DataLoader(Noisy(), 4, shuffle=True, seed=3, batch_transform=add_noise)
    before = gn.random.generator().state_dict()
    values(loader)
    assert gn.random.generator().state_dict() == before


def test_drawing_between_batches_does_not_change_the_order():
    loader = DataLoader(Noisy(), 4, shuffle=True, seed=3)
    expected = indices(DataLoader(Noisy(), 4, shuffle=True, seed=3))
    seen = []
    for index, _ in loader:
        gn.random.uniform((10,))
        seen.append(index.numpy().tolist())
    assert seen == expected


def test_random_numbers_belong_to_the_sample_and_the_epoch():
    one = DataLoader(Noisy(), 4, seed=3)
    other = DataLoader(Noisy(), 5, shuffle=True, seed=3)

    def by_sample(loader):
        return {i: x for batch in values(loader) for i, x in zip(*batch)}

    first = by_sample(one)
    assert first == by_sample(other)
    assert first != by_sample(one)  # the next epoch
    assert len({tuple(x) for x in first.values()}) == 20


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_nothing_depends_on_the_number_of_workers(num_workers, persistent):
    options = {"batch_size": 3, "shuffle": True, "seed": 7, "batch_transform": add_noise}
    alone = DataLoader(Noisy(), **options)
    together = DataLoader(Noisy(), num_workers=num_workers, persistent_workers=persistent, **options)
    for _ in range(3):
        assert values(alone) == values(together)


def test_batched_random_transforms_do_not_depend_on_workers():
    augment = T.Compose([T.RandomCrop(8, padding=1), T.RandomHorizontalFlip(), T.RandomRotation(20)])
    loaders = [DataLoader(Digits(transform=augment), 100, shuffle=True, seed=1, num_workers=n) for n in (0, 2)]
    for _ in range(2):
        alone, together = (values(loader) for loader in loaders)
        assert alone == together
    assert values(loaders[0]) != alone


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_resume_in_the_middle_of_an_epoch(num_workers, stop):
    options = {"batch_size": 3, "shuffle": True, "batch_transform": add_noise, "num_workers": num_workers}
    whole = DataLoader(Noisy(), seed=11, **options)
    epochs = [values(whole) for _ in range(3)]

    running = DataLoader(Noisy(), seed=11, **options)
    values(running)
    seen = []
    for number, batch in enumerate(running, 1):
        seen.append([leaf.numpy().tolist() for leaf in batch])
        if number == stop:
            break
    state = running.state_dict() if stop else {"seed": 11, "epoch": 1, "position": 0}
    assert state == {"seed": 11, "epoch": 1, "position": stop}

    dataset = Noisy()
    resumed = DataLoader(dataset, **options)
    resumed.load_state_dict(state)
    rest = values(resumed)
    assert (seen[:stop] if stop else []) + rest == epochs[1]
    if num_workers == 0:
        assert len(dataset.fetched) == 20 - min(3 * stop, 20)  # what was seen before is not fetched again
    assert resumed.state_dict() == {"seed": 11, "epoch": 2, "position": 0}
    assert values(resumed) == epochs[2]


def test_state_counts_what_was_handed_out_not_what_was_fetched():
    loader = DataLoader(Noisy(), 2, num_workers=2, prefetch_factor=3, seed=0)
    assert loader.state_dict() == {"seed": 0, "epoch": 0, "position": 0}
    batches = iter(loader)
    next(batches)
    next(batches)
    assert loader.state_dict() == {"seed": 0, "epoch": 0, "position": 2}
    batches.close()


def test_an_iterator_that_stopped_early_is_followed_by_the_next_epoch():
    loader, reference = (DataLoader(Noisy(), 6, shuffle=True, seed=2) for _ in range(2))
    for _ in loader:
        break
    values(reference)
    assert values(loader) == values(reference)
    assert loader.epoch == reference.epoch == 2


def test_two_iterators_at_once_are_two_epochs():
    loader, reference = (DataLoader(Noisy(), 6, shuffle=True, seed=2) for _ in range(2))
    epochs = [indices(reference), indices(reference)]
    pairs = [(a[0].numpy().tolist(), b[0].numpy().tolist()) for a, b in zip(loader, loader)]
    assert [list(part) for part in zip(*pairs)] == epochs


def test_samplers():
    sampler = WeightedRandomSampler([0, 1, 0, 1], 50)
    loader = DataLoader(Noisy(4), 10, sampler=sampler, seed=0)
    first = order(loader)
    assert len(first) == 50 and set(first) == {1, 3} and order(loader) != first
    loader = DataLoader(Noisy(6), batch_sampler=BatchSampler([5, 4, 3], 2))
    assert indices(loader) == [[5, 4], [3]] and len(loader) == 2
    assert indices(DataLoader(Noisy(6), batch_sampler=[[0, 5], [1]])) == [[0, 5], [1]]
    assert indices(DataLoader(Noisy(6), sampler=iter([1, 2]), batch_size=2)) == [[1, 2]]


def test_sampler_without_a_length_has_no_loader_length():
    loader = DataLoader(Noisy(6), sampler=iter([1, 2]))
    with pytest.raises(TypeError):
        len(loader)


def test_collate_fn_gets_the_samples_even_where_batches_are_faster():
    dataset = TensorDataset(np.arange(4), np.arange(4))
    batches = list(DataLoader(dataset, 2, collate_fn=lambda samples: np.array([len(samples), samples[1][0]])))
    assert [b.numpy().tolist() for b in batches] == [[2, 1], [2, 3]]


def test_batch_transform_on_images_of_a_batch():
    dataset = TensorDataset(np.ones((4, 1, 2, 2), np.float32), np.arange(4))
    x, y = next(iter(DataLoader(dataset, 4, batch_transform=T.Normalize(3, 2))))
    assert np.all(x.numpy() == -1) and y.numpy().tolist() == [0, 1, 2, 3]
    x, y = next(iter(DataLoader(dataset, 4, batch_transform=T.Compose([T.Normalize(3, 2), lambda x: -x]))))
    assert np.all(x.numpy() == 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_contiguous(num_workers):
    dataset = TensorDataset(np.arange(4 * 9.0).reshape(4, 1, 3, 3), np.arange(4))
    loader = DataLoader(dataset, 4, batch_transform=T.CenterCrop(1), num_workers=num_workers)
    ((x, _),) = loader
    assert x.numpy().flags.c_contiguous and x.numpy().ravel().tolist() == [4, 13, 22, 31]


def test_indexing_of_whole_batches_is_fast():
    dataset = TensorDataset(np.zeros((60_000, 784), np.float32), np.zeros(60_000, np.int64))
    start = time.perf_counter()
    for _ in DataLoader(dataset, batch_size=128, shuffle=True):
        pass
    assert time.perf_counter() - start < 0.5


def test_repr():
    loader = DataLoader([1, 2, 3], batch_size=2, seed=4)
    assert repr(loader) == (
        "DataLoader([1, 2, 3], BatchSampler(SequentialSampler(3), batch_size=2, drop_last=False), num_workers=0, "
        "seed=4, device=None)"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "DataLoader: batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "DataLoader: batch_size must be an int, got 2.5"),
        ({"batch_size": None}, TypeError, "DataLoader: batch_size must be an int, got None"),
        ({"num_workers": -1}, ValueError, "DataLoader: num_workers must be at least 0, got -1"),
        ({"num_workers": "2"}, TypeError, "DataLoader: num_workers must be an int, got '2'"),
        ({"prefetch_factor": 0}, ValueError, "DataLoader: prefetch_factor must be at least 1, got 0"),
        ({"timeout": -1}, ValueError, "DataLoader: timeout must be a number of seconds >= 0, got -1"),
        ({"seed": -1}, ValueError, "DataLoader: seed must be at least 0, got -1"),
        ({"seed": 1.5}, TypeError, "DataLoader: seed must be an int, got 1.5"),
        ({"sampler": [1], "shuffle": True}, ValueError, "sampler and shuffle=True both set the order"),
        ({"batch_sampler": [[1]], "batch_size": 2}, ValueError, "batch_sampler says which samples make each batch"),
        ({"batch_sampler": [[1]], "shuffle": True}, ValueError, "batch_sampler says which samples make each batch"),
        ({"start_method": "thread"}, ValueError, "DataLoader: start_method must be one of .*'fork'.*, got 'thread'"),
        (
            {"batch_size": 64, "drop_last": True},
            ValueError,
            "no batch is left: batch_size=64 is more than the 20 samples, and drop_last=True drops a batch",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        DataLoader(Noisy(), **options)


def test_empty_dataset():
    with pytest.raises(ValueError, match=r"DataLoader: the dataset is empty: len\(TensorDataset\) is 0"):
        DataLoader(TensorDataset(np.empty((0, 3))))


def test_something_that_is_no_dataset():
    with pytest.raises(TypeError, match=r"the dataset needs len\(\) and \[index\]; generator does not have them"):
        DataLoader(x for x in [1])
    with pytest.raises(TypeError, match=r"got a tuple of 2 arrays; TensorDataset\(\*arrays\) makes a dataset of them"):
        DataLoader((np.zeros((5, 3)), np.zeros(5)))


def test_bad_states():
    loader = DataLoader(Noisy(), 5)
    with pytest.raises(KeyError, match=r"load_state_dict: the state lacks epoch, position"):
        loader.load_state_dict({"seed": 1})
    with pytest.raises(ValueError, match="stands behind batch 9, and this loader has 4 batches"):
        loader.load_state_dict({"seed": 1, "epoch": 0, "position": 9})
