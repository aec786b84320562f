import json
import math

import numpy as np
import pytest

import gpunet as gn
from gpunet import data, io, nn, optim
from gpunet.errors import FileFormatError
from gpunet.optim import lr_scheduler


class Holder:
    """A part of a checkpoint that keeps whatever it is given."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def round_trip(tmp_path, value):
    io.save_checkpoint(tmp_path / "c", extra=value)
    return io.load_checkpoint(tmp_path / "c", random=False)["extra"]


def test_numbers_come_back_exactly(tmp_path):
    numbers = [
        0.1,
        1 / 3,
        5e-324,
        1.7976931348623157e308,
        -0.0,
        math.inf,
        -math.inf,
        2**80,
        -3,
        True,
        None,
        "text é\n\"'",
    ]
    back = round_trip(tmp_path, numbers)
    assert repr(back) == repr(numbers)
    assert math.isnan(round_trip(tmp_path, math.nan))
    assert round_trip(tmp_path, np.float32(0.1)) == float(np.float32(0.1))


def test_trees_keep_their_structure(tmp_path):
    tree = {
        "list": [1, [2, (3, 4)]],
        "tuple": ({"a": 1}, ()),
        0: {1: "integers as keys", "1": "beside strings"},
        "empty": {},
        "kinds": {"array": "x", "tuple": [1], "dict": []},  # words that the file's own form uses
    }
    assert round_trip(tmp_path, tree) == tree


def test_arrays_in_a_tree(tmp_path):
    tree = {"a.b": np.arange(3), "a": {"b": np.ones(2, np.float16)}, "list": [gn.tensor([[1.0]]), np.array(2.0)]}
    back = round_trip(tmp_path, tree)
    np.testing.assert_array_equal(back["a.b"], [0, 1, 2])
    np.testing.assert_array_equal(back["a"]["b"], np.ones(2, np.float16))
    assert back["a"]["b"].dtype == np.float16
    assert back["list"][0].tolist() == [[1.0]] and back["list"][1].shape == ()


def test_what_it_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint: extra\.a\.1 is a set; expected dicts, lists"):
        io.save_checkpoint(tmp_path / "c", extra={"a": [0, {1, 2}]})
    with pytest.raises(TypeError, match=r"the keys at extra must be strings or integers, got \(1, 2\)"):
        io.save_checkpoint(tmp_path / "c", extra={(1, 2): 3})
    assert not (tmp_path / "c").exists()


def make(seed=0, width=5):
    gn.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    rng = np.random.default_rng(0)
    dataset = data.TensorDataset(rng.standard_normal((30, 4)).astype(np.float32), rng.integers(0, 2, 30))
    return model, optimizer, scheduler, data.DataLoader(dataset, batch_size=4, shuffle=True)


def train(model, optimizer, scheduler, loader, until=None):
    """One epoch, or the batches of it before number `until`."""
    for number, (x, y) in enumerate(loader):
        if number == until:
            break
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def weights(model):
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def test_hand_written_loop_goes_on_exactly(tmp_path):
    run = make()
    train(*run)
    io.save_checkpoint(tmp_path / "c", **dict(zip(("model", "optimizer", "scheduler", "loader"), run)), epoch=1)
    train(*run)
    expected = weights(run[0])

    other = make(seed=99)
    saved = io.load_checkpoint(tmp_path / "c", **dict(zip(("model", "optimizer", "scheduler", "loader"), other)))
    assert saved["epoch"] == 1 and saved["history"] is None
    train(*other)
    for name, value in weights(other[0]).items():
        assert value.tobytes() == expected[name].tobytes(), name


def test_weights_of_a_checkpoint_are_plain_tensors_of_the_file(tmp_path):
    model, *_ = make()
    io.save_checkpoint(tmp_path / "c", model=model)
    loaded = io.load(tmp_path / "c")
    np.testing.assert_array_equal(loaded["model.0.weight"].numpy(), weights(model)["0.weight"])


def test_random_stream_is_restored_unless_told_not_to(tmp_path):
    gn.manual_seed(5)
    io.save_checkpoint(tmp_path / "c")
    first = gn.random.uniform((3,)).tolist()
    second = gn.random.uniform((3,)).tolist()
    io.load_checkpoint(tmp_path / "c")
    assert gn.random.uniform((3,)).tolist() == first
    io.load_checkpoint(tmp_path / "c", random=False)
    assert gn.random.uniform((3,)).tolist() == second


def test_another_model_is_refused_with_every_difference_and_nothing_changed(tmp_path):
    model, *_ = make()
    io.save_checkpoint(tmp_path / "c", model=model)
    other = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(5), nn.Identity(), nn.Linear(7, 2))
    before = weights(other)
    with pytest.raises(ValueError, match=r"checkpoint '.*c' is of a different model") as error:
        io.load_checkpoint(tmp_path / "c", model=other)
    text = str(error.value)
    assert "missing: 3.weight (2, 7)" in text
    assert "unexpected: 4.bias (2,)" in text
    assert "wrong shape: 0.weight is (7, 4), the state has (5, 4)" in text
    assert "1.weight" not in text
    assert all(np.array_equal(value, before[name]) for name, value in weights(other).items())


def test_missing_part_is_named(tmp_path):
    io.save_checkpoint(tmp_path / "c", model=Holder({}))
    with pytest.raises(KeyError, match="has no optimizer; it has epoch, extra, history, model, random"):
        io.load_checkpoint(tmp_path / "c", optimizer=Holder())


def test_weights_file_is_no_checkpoint(tmp_path):
    io.save(tmp_path / "w", {"a": np.ones(2)})
    with pytest.raises(FileFormatError, match="w' is a safetensors file but no gpunet checkpoint"):
        io.load_checkpoint(tmp_path / "w")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "c"
    io.save_checkpoint(path, extra={"a": np.arange(3)})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(FileFormatError, match="c'"):
            io.load_checkpoint(path)


TREE = {"dict": [["epoch", 0], ["history", None], ["extra", None], ["random", {"dict": [["seed", 0], ["offset", 0]]}]]}


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        json.dumps({"version": 1}),
        json.dumps({"version": 1, "tree": 3}),
        json.dumps({"version": 1, "tree": {"dict": []}}),
        json.dumps({"version": 1, "tree": {"dict": [["epoch", {"array": "nowhere"}]]}}),
        json.dumps({"version": 1, "tree": {"dict": [["epoch", {"array": ["a"]}]]}}),
        json.dumps({"version": 1, "tree": {"dict": [[["a"], 1]]}}),
        json.dumps({"version": 1, "tree": {"dict": [["epoch", {"what": 1}]]}}),
        json.dumps({"version": 1, "tree": {"dict": [["epoch", {"array": "a", "tuple": []}]]}}),
        json.dumps({"version": 1, "tree": {"tuple": 7}}),
        '{"version": 1, "tree": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_hostile_trees_are_refused(tmp_path, text):
    io.save(tmp_path / "c", {"a": np.ones(2)}, metadata={"gpunet.checkpoint": text})
    with pytest.raises(FileFormatError, match="the checkpoint's header is damaged"):
        io.load_checkpoint(tmp_path / "c")


def test_version_of_the_future_is_named(tmp_path):
    io.save(tmp_path / "c", {}, metadata={"gpunet.checkpoint": json.dumps({"version": 2, "tree": TREE})})
    with pytest.raises(FileFormatError, match="is a checkpoint of version 2; this gpunet reads version 1"):
        io.load_checkpoint(tmp_path / "c")
