import csv
import sys

import numpy as np
import pytest

import gpunet as gn
from gpunet import io, nn, optim, train
from gpunet.optim import lr_scheduler

X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def fit(model=None, **options):
    if model is None:
        gn.manual_seed(0)
        model = nn.Linear(4, 2)
    options = {"loss": "cross_entropy", "optimizer": optim.SGD(model.parameters(), lr=0.1), "progress": False} | options
    return train.fit(model, (X, Y), **options)


def play(callback, name, values, optimizer=None):
    """Tell `callback` of epochs whose logs say `values`, as fit would; the model's weight is the epoch's number."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = optimizer or optim.SGD(model.parameters(), lr=1.0)
    state = train.State(model, optimizer, None, [], epochs=len(values))
    callback.on_train_begin(state)
    for state.epoch, value in enumerate(values):
        model.weight.data[...] = state.epoch
        state.history.append({name: value})
        state.epoch_done = True
        callback.on_epoch_end(state)
        if state.stop:
            break
    callback.on_train_end(state)
    return state


# --- EarlyStopping


@pytest.mark.parametrize(
    ("name", "values", "options", "stopped_after", "best"),
    [
        ("loss", [3, 2, 1, 1, 1, 1], {"patience": 2}, 4, 2),
        ("loss", [3, 2, 2.5, 2.2, 1.9, 2, 2], {"patience": 2}, 3, 1),
        ("loss", [3, 2.95, 2.92, 2.5], {"patience": 2, "min_delta": 0.1}, 2, 0),
        ("accuracy", [0.5, 0.6, 0.6, 0.5], {"patience": 2}, 3, 1),
        ("top5", [0.5, 0.6, 0.6, 0.5], {"patience": 2}, 3, 1),
        ("mse", [3, 1, 2, 2], {"patience": 2}, 3, 1),
        ("speed", [1, 2, 1, 1], {"patience": 2, "mode": "max"}, 3, 1),
        ("accuracy", [0.5, 0.4, 0.6, 0.6], {"patience": 2, "mode": "min"}, 3, 1),
        ("loss", [2, np.nan, np.nan, 1], {"patience": 2}, 2, 0),
        ("loss", [np.nan, np.nan, 1], {"patience": 2}, 1, None),
        ("loss", [5, 4, 3, 2, 1], {"patience": 1}, 4, 4),
    ],
)
def test_early_stopping(name, values, options, stopped_after, best):
    callback = train.EarlyStopping(name, **options)
    state = play(callback, name, values)
    assert (state.epoch, callback.best_epoch) == (stopped_after, best)
    if best is not None:
        assert state.model.weight.item() == best


def test_early_stopping_without_restoring():
    state = play(train.EarlyStopping("loss", patience=1, restore_best=False), "loss", [1, 2])
    assert state.model.weight.item() == 1


def test_early_stopping_watches_validation_where_there_is_some():
    fit(epochs=3, callbacks=[stopping := train.EarlyStopping(patience=1, min_delta=9.0)], validation_data=(X, Y))
    assert stopping.best_epoch == 0
    assert fit(epochs=3, callbacks=[train.EarlyStopping(patience=1, min_delta=9.0)]).epochs == 2


def test_missing_quantity_is_named():
    with pytest.raises(
        ValueError, match=r"EarlyStopping: there is no value 'val_loss' \(fit was given no validation_data\)"
    ):
        fit(callbacks=[train.EarlyStopping("val_loss")])
    with pytest.raises(ValueError, match="Checkpoint: there is no value 'acc'; there is: loss, accuracy, lr"):
        fit(
            metrics=["accuracy", "confusion_matrix"],
            callbacks=[train.Checkpoint("/nowhere", monitor="acc", every_epochs=None)],
        )
    with pytest.raises(ValueError, match='EarlyStopping: unknown mode \'up\'; expected "auto", "min" or "max"'):
        train.EarlyStopping(mode="up")
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        train.EarlyStopping(patience=0)


def test_callbacks_begin_afresh_in_another_run(tmp_path):
    stopping, checkpoint = train.EarlyStopping("loss", patience=9), train.Checkpoint(tmp_path, monitor="loss")
    model = nn.Linear(4, 2)
    for lr in (0.1, 1e-9):  # the second run gets worse values than the first
        fit(model, optimizer=optim.SGD(model.parameters(), lr=lr), epochs=3, callbacks=[stopping, checkpoint])
        model = nn.Linear(4, 2)
        model.weight.data[0] = [100.0, 0.0, 0.0, 0.0]  # surely wrong
    assert stopping.best_epoch is not None
    saved = io.load_checkpoint(checkpoint.best, random=False)
    assert saved["history"]["loss"][0] > 10


# --- Checkpoint


def test_best_and_last(tmp_path):
    callback = train.Checkpoint(tmp_path / "a" / "b", monitor="loss")
    play(callback, "loss", [3, 1, 2])
    weight = [io.load(path)["model.weight"].item() for path in (callback.best, callback.last)]
    assert weight == [1, 2]
    assert io.load_checkpoint(callback.best, random=False)["epoch"] == 2


def test_how_often(tmp_path):
    written = []

    class Count(train.Checkpoint):
        def _save(self, state, path):
            written.append((state.step, path.name))

    fit(epochs=5, batch_size=10, callbacks=[Count(tmp_path, every_epochs=2, every_steps=3, save_best=False)])
    assert written == [(step, "last.safetensors") for step in (3, 6, 8, 9, 12, 15, 16, 18, 20)]
    for option in ("every_epochs", "every_steps"):
        with pytest.raises(ValueError, match=f"Checkpoint: {option} must be at least 1 or None, got 0"):
            train.Checkpoint(tmp_path, **{option: 0})


def test_the_end_of_an_early_stopped_run_is_saved(tmp_path):
    callbacks = [train.Checkpoint(tmp_path, every_epochs=100), train.EarlyStopping(patience=1, min_delta=9.0)]
    fit(epochs=5, callbacks=callbacks)
    saved = io.load_checkpoint(tmp_path / "last.safetensors", random=False)
    assert saved["epoch"] == 2 and saved["extra"]["stop"]


# --- LRSchedule


def rates(make, **options):
    gn.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    seen = []

    class Watch(train.Callback):
        def on_batch_begin(self, state):
            seen.append(optimizer.param_groups[0]["lr"])

    scheduler = make(optimizer)
    options = {"scheduler": scheduler, "epochs": 4, "batch_size": 20} | options
    if options["scheduler"] is None:
        options["callbacks"] = [train.LRSchedule(scheduler, every="batch"), Watch()]
    else:
        options["callbacks"] = [Watch()]
    history = fit(model, optimizer=optimizer, **options)
    return seen, history["lr"]


def test_schedule_per_epoch_and_per_batch():
    def halve(optimizer):
        return lr_scheduler.StepLR(optimizer, 1, 0.5)

    assert rates(halve) == ([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125], [1, 0.5, 0.25, 0.125])
    assert rates(halve, scheduler=None)[0] == [0.5**i for i in range(8)]


def test_a_scheduler_of_another_optimizer_is_refused():
    model, other = nn.Linear(2, 1), optim.SGD(nn.Linear(2, 1).parameters())
    with pytest.raises(ValueError, match="LRSchedule: StepLR is of another optimizer than the Adam that trains"):
        train.fit(
            model, (np.ones((4, 2), "f"), np.ones((4, 1), "f")), loss="mse", optimizer="adam", progress=False,
            scheduler=lr_scheduler.StepLR(other, 1),
        )  # fmt: skip


def test_one_cycle_goes_by_batches():
    seen, _ = rates(lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=8))
    assert len(set(seen)) == 8


def test_plateau_gets_the_metric():
    model = nn.Linear(1, 1)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
    play(train.LRSchedule(plateau, monitor="loss"), "loss", [3, 2, 2, 2, 2], optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="LRSchedule: there is no value 'speed'; there is: loss"):
        play(train.LRSchedule(plateau, monitor="speed"), "loss", [1], optimizer)
    with pytest.raises(ValueError, match='LRSchedule: every must be "epoch" or "batch", got \'step\''):
        train.LRSchedule(plateau, every="step")


# --- logs


def test_csv(tmp_path):
    path = tmp_path / "logs" / "run.csv"
    metrics = ["accuracy", "confusion_matrix"]
    history = fit(epochs=3, metrics=metrics, callbacks=[train.CSVLogger(path)], validation_data=(X, Y))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "lr", "val_loss", "val_accuracy"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val_loss"]) for row in rows] == history["val_loss"]


def test_csv_after_every_epoch_is_whole(tmp_path):
    lines = []

    class Read(train.Callback):
        order = 1

        def on_epoch_end(self, state):
            lines.append(len((tmp_path / "run.csv").read_text().splitlines()))

    fit(epochs=3, callbacks=[train.CSVLogger(tmp_path / "run.csv"), Read()])
    assert lines == [2, 3, 4]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    history = fit(
        epochs=2,
        batch_size=10,
        metrics=["accuracy", "confusion_matrix"],
        validation_data=(X, Y),
        callbacks=[train.TensorBoard(tmp_path, every_steps=2)],
    )
    found = scalars(tmp_path)
    assert [step for step, _ in found["val_loss"]] == [4, 8]
    np.testing.assert_allclose([value for _, value in found["val_loss"]], history["val_loss"], rtol=1e-6)
    assert [step for step, _ in found["batch/loss"]] == [2, 4, 6, 8]
    assert found.keys() == {"loss", "accuracy", "lr", "val_loss", "val_accuracy", "batch/loss", "batch/accuracy"}


def events(folder):
    """The Events of the event files: TensorBoard's record format, (length, crc, data, crc)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events*")):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def scalars(folder):
    found = {}
    for event in events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_drops_what_a_stopped_run_wrote_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboardX")
    fit(epochs=2, batch_size=10, callbacks=[train.Checkpoint(tmp_path / "c")])
    options = {"epochs": 3, "batch_size": 10, "resume": tmp_path / "c"}
    fit(callbacks=[train.TensorBoard(tmp_path / "t")], **options)
    starts = [event.step for event in events(tmp_path / "t") if event.HasField("session_log")]
    assert starts == [9]  # events of steps from 9 on, in older files, no longer count
    assert [step for step, _ in scalars(tmp_path / "t")["loss"]] == [12]


def test_tensorboard_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"TensorBoard needs tensorboardX: pip install 'gpunet\[tensorboard\]'"):
        train.TensorBoard("x")


def test_progress_bar_of_ones_own_is_the_only_one(capsys):
    fit(callbacks=[train.ProgressBar()], progress=None)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_progress_bar_of_fit_on_a_terminal(terminal):
    terminal()
    fit(epochs=2, batch_size=10, metrics=["accuracy"], validation_data=(X, Y), progress=None)
    lines = [line.split("\r")[-1] for line in terminal().getvalue().split("\n")[:-1]]
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2 100%|") and "| 4/4 [" in lines[0]
    for part in ("loss=", "accuracy=", "val_loss=", "val_accuracy=", "samples/s"):
        assert part in lines[1]
