"""Stopping and going on: the same weights, bit for bit, as a run that was never stopped."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpunet import io, train
from gpunet.errors import FileFormatError
from tests.train.small_run import assert_same_bits, make, weights

EPOCHS = 4
KILLS = int(os.environ.get("KILLS", 5))  # how often to kill the run below; 50 takes about a minute


class StopAt(train.Callback):
    """As if the process had been stopped after so many steps, once the others have been told."""

    order = 2

    def __init__(self, step):
        self.step = step

    def on_batch_end(self, state):
        if state.step == self.step:
            raise KeyboardInterrupt

    def on_epoch_end(self, state):
        if state.step == -self.step:
            raise KeyboardInterrupt


def extras(folder):
    return [
        train.EarlyStopping("val_accuracy", patience=3),
        train.CSVLogger(folder / "log.csv"),
        train.Checkpoint(folder, every_steps=1),
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    model, options = make()
    history = train.fit(model, **options, epochs=EPOCHS, callbacks=extras(folder))
    return weights(model), history, (folder / "log.csv").read_text(), options["optimizer"].state_dict()


@pytest.mark.parametrize("step", [1, 7, 10, 13, 20, -10, -20, -40])  # 10 batches per epoch; negative: at its very end
def test_stopped_run_goes_on_exactly(tmp_path, unbroken, step):
    model, options = make()
    with pytest.raises(KeyboardInterrupt):
        train.fit(model, **options, epochs=EPOCHS, callbacks=[*extras(tmp_path), StopAt(step)])
    model, options = make(seed=123)
    history = train.fit(model, **options, epochs=EPOCHS, callbacks=extras(tmp_path), resume=tmp_path)
    expected, expected_history, csv, optimizer_state = unbroken
    assert_same_bits(weights(model), expected)
    assert history == expected_history
    assert (tmp_path / "log.csv").read_text() == csv
    assert repr(options["optimizer"].state_dict()) == repr(optimizer_state)


def test_more_epochs_later(tmp_path, unbroken):
    model, options = make()
    train.fit(model, **options, epochs=2, callbacks=extras(tmp_path)[1:])
    model, options = make(seed=5)
    history = train.fit(
        model, **options, epochs=EPOCHS, callbacks=extras(tmp_path)[1:], resume=tmp_path / "last.safetensors"
    )
    assert history["loss"] == unbroken[1]["loss"]


def test_resuming_what_is_done_changes_nothing(tmp_path):
    model, options = make()
    history = train.fit(model, **options, epochs=1, callbacks=[train.Checkpoint(tmp_path)])
    other, options = make(seed=5)
    assert train.fit(other, **options, epochs=1, resume=tmp_path) == history
    assert_same_bits(weights(other), weights(model))


def test_early_stopped_run_stays_stopped(tmp_path):
    def run(seed, **more):
        model, options = make(seed)
        stopping = train.EarlyStopping("loss", patience=1, min_delta=100.0)
        train.fit(model, **options, epochs=5, callbacks=[stopping, train.Checkpoint(tmp_path)], **more)
        return model, stopping

    model, stopping = run(0)
    assert stopping.best_epoch == 0
    again, stopping = run(1, resume=tmp_path)
    assert stopping.best_epoch == 0
    assert_same_bits(weights(again), weights(model))  # the best weights, restored


def test_best_checkpoint_outlives_a_resume(tmp_path):
    model, options = make()
    train.fit(model, **options, epochs=2, callbacks=[train.Checkpoint(tmp_path, monitor="lr", mode="max")])
    best = (tmp_path / "best.safetensors").read_bytes()
    model, options = make()
    train.fit(model, **options, epochs=3, callbacks=[train.Checkpoint(tmp_path, monitor="lr", mode="max")], resume=True)
    assert (tmp_path / "best.safetensors").read_bytes() == best  # the rate fell, no later epoch is better


def test_plain_list_of_batches_goes_on_in_the_middle(tmp_path):
    batches = [(np.random.default_rng(i).random((8, 64)).astype(np.float32), np.arange(8)) for i in range(5)]

    def run(**more):
        model, options = make()
        options |= {"train_data": batches, "validation_data": None}
        with contextlib.suppress(KeyboardInterrupt):
            train.fit(model, **options, epochs=2, **more)
        return weights(model)

    expected = run()
    run(callbacks=[train.Checkpoint(tmp_path, every_steps=1), StopAt(3)])
    assert_same_bits(run(resume=tmp_path), expected)


def test_resume_true_begins_afresh_or_goes_on(tmp_path, unbroken):
    model, options = make()
    train.fit(model, **options, epochs=2, callbacks=[train.Checkpoint(tmp_path / "new")], resume=True)
    model, options = make(seed=9)
    train.fit(model, **options, epochs=EPOCHS, callbacks=[train.Checkpoint(tmp_path / "new")], resume=True)
    assert_same_bits(weights(model), unbroken[0])


def test_bad_resume(tmp_path):
    model, options = make()
    with pytest.raises(FileNotFoundError, match=r"fit: there is no checkpoint '.*nowhere' to resume from"):
        train.fit(model, **options, resume=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*last.safetensors' to resume from"):
        train.fit(model, **options, resume=tmp_path)
    with pytest.raises(ValueError, match="resume=True needs a Checkpoint among the callbacks"):
        train.fit(model, **options, resume=True)
    io.save_checkpoint(tmp_path / "by_hand", model=model, optimizer=options["optimizer"], loader=options["train_data"])
    with pytest.raises(FileFormatError, match="is a checkpoint, but fit did not write it"):
        train.fit(model, **options, resume=tmp_path / "by_hand")


def test_checkpoint_of_another_model_is_refused(tmp_path):
    model, options = make()
    train.fit(model, **options, callbacks=[train.Checkpoint(tmp_path)])
    other, options = make(width=20)
    before = weights(other)
    with pytest.raises(
        ValueError, match=r"of a different model: [^\0]*wrong shape: 1\.weight is \(20, 64\), the state has \(24, 64\)"
    ):
        train.fit(other, **options, resume=tmp_path)
    assert_same_bits(weights(other), before)


# --- kill -9


def start(folder, epochs):
    command = [sys.executable, str(Path(__file__).with_name("crash_run.py")), str(folder), str(epochs)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"offset"', '"offsex"', "the random stream's state"),
        ('["position",0]', '["place",0]', "the loader's state"),
        ('"betas"', "null", "the optimizer's state"),
        ('["step",10],["stop"', '["step",null],["stop"', "the state of the run"),
        ('["batch",0]', '["batches",0]', "the state of the run"),
        ('["Checkpoint",', '7,["Checkpoint",', "the state of the run"),
        ('["best",', '["worst",', "the state of the run"),
    ],
)
def test_a_damaged_part_is_named(tmp_path, old, new, what):
    model, options = make()
    train.fit(model, **options, epochs=1, callbacks=[train.Checkpoint(tmp_path)])
    arrays, metadata = io.safetensors.read(tmp_path / "last.safetensors")
    tree = metadata["gpunet.checkpoint"]
    assert old in tree
    io.save(tmp_path / "damaged", arrays, metadata={"gpunet.checkpoint": tree.replace(old, new)})
    model, options = make()
    with pytest.raises(FileFormatError, match=f"damaged': {what} is damaged, or of another version: "):
        train.fit(model, **options, epochs=2, callbacks=[train.Checkpoint(tmp_path)], resume=tmp_path / "damaged")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_random_moments(tmp_path):
    """Killed while it writes checkpoints, again and again; the last whole one always loads, and the end is the same."""
    chance = random.Random(0)
    epochs = KILLS + 2  # of 10 steps: each life lasts up to 10 steps
    last = tmp_path / "killed" / "last.safetensors"
    during_a_write = 0
    for _ in range(KILLS):
        child = start(tmp_path / "killed", epochs)
        for _ in range(chance.randint(1, 9)):
            assert child.stdout.readline().startswith("step"), "it ended before it was killed"
        time.sleep(chance.uniform(0, 0.01))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        during_a_write += any(path.name.endswith(".tmp") for path in last.parent.iterdir())
        if last.exists():
            io.load_checkpoint(last, random=False)
    print(f"{KILLS} kills, {during_a_write} of them during a write")
    if KILLS >= 20:
        assert during_a_write, "no kill hit a write: the test shows nothing"

    for name in ("killed", "unbroken"):
        child = start(tmp_path / name, epochs)
        child.communicate()
        assert child.returncode == 0
    assert not list(last.parent.glob(".*.tmp"))
    expected = io.load(tmp_path / "unbroken" / "weights")
    assert_same_bits(io.load(tmp_path / "killed" / "weights"), expected)
