from collections import namedtuple

import numpy as np
import pytest

import gpunet as gn
from gpunet.data import collate
from gpunet.data.collate import map_leaves, to_tensors
from gpunet.errors import DTypeError, ShapeError


def test_arrays_are_stacked_and_keep_their_dtype():
    batch = collate([np.full((2, 3), i, np.float64) for i in range(4)])
    assert batch.shape == (4, 2, 3) and batch.dtype == np.float64
    np.testing.assert_array_equal(batch[:, 0, 0], range(4))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1, 2], "int64"), ([1.0, 2.0], "float32"), ([True, False], "bool"), ([np.float64(1), np.float64(2)], "float64")],
)
def test_scalars(values, dtype):
    batch = collate(values)
    assert batch.dtype == dtype and batch.tolist() == [float(v) for v in values]


def test_structures_are_kept():
    Point = namedtuple("Point", "x y")
    samples = [{"p": Point(np.ones(2) * i, i), "name": f"s{i}", "pair": [i, (i,)]} for i in range(3)]
    batch = collate(samples)
    assert isinstance(batch["p"], Point) and batch["p"].x.shape == (3, 2) and batch["p"].y.tolist() == [0, 1, 2]
    assert batch["name"] == ["s0", "s1", "s2"]
    assert isinstance(batch["pair"], list) and batch["pair"][1][0].tolist() == [0, 1, 2]


def test_tensors_in_samples():
    batch = collate([(gn.asarray([1.0, 2.0]), 0)] * 2)
    assert isinstance(batch[0], np.ndarray) and batch[0].shape == (2, 2)


def test_unequal_shapes_name_the_samples_and_both_shapes():
    samples = [(np.zeros((1, 4)), 0), (np.zeros((1, 4)), 0), (np.zeros((1, 5)), 0)]
    message = r"differ in field \[0\]: sample 70 has shape \(1, 4\), sample 92 has shape \(1, 5\); bring them"
    with pytest.raises(ShapeError, match=message):
        collate(samples, [70, 81, 92])


def test_unequal_structures():
    with pytest.raises(ShapeError, match="sample 0 has 2 fields, sample 1 has 3 fields"):
        collate([(1, 2), (1, 2, 3)])
    with pytest.raises(ShapeError, match="sample 0 has 2 fields, sample 1 has type int"):
        collate([(1, 2), 3])
    with pytest.raises(ShapeError, match=r"sample 0 has keys \['a'\], sample 1 has keys \['b'\]"):
        collate([{"a": 1}, {"b": 1}])


def test_what_has_no_place_in_an_array():
    with pytest.raises(DTypeError, match=r"sample 5 in field \['when'\] is a NoneType, which has no place in an array"):
        collate([{"when": None}], [5])


def test_map_leaves_runs_over_several_batches_of_one_structure():
    result = map_leaves(lambda a, b: a + b, {"x": (1, [2])}, {"x": (10, [20])})
    assert result == {"x": (11, [22])}


def test_to_tensors_shares_memory_and_leaves_strings():
    array = np.arange(3.0)
    x, names = to_tensors((array, ["a", "b"]), None)
    assert isinstance(x, gn.Tensor) and np.shares_memory(x.numpy(), array) and names == ["a", "b"]
    assert to_tensors({"y": np.int64(3)}, "cpu")["y"].item() == 3


def test_to_tensors_takes_arrays_of_other_libraries():
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    x, y = to_tensors([Foreign(np.arange(3.0)), Foreign(np.arange(2))], "cpu")
    assert isinstance(x, gn.Tensor) and x.numpy().tolist() == [0.0, 1.0, 2.0]
    assert y.dtype == np.int64
