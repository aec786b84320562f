import numpy as np
import pytest

import gpunet as gn
from gpunet import data, nn, optim, train
from gpunet.errors import ShapeError
from tests.train.small_run import assert_same_bits, weights

X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def trainer(compiled=True, hidden=8):
    gn.manual_seed(0)
    result = train.Trainer(nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2)))
    return result.compile("adam", "cross_entropy", ["accuracy"], lr=0.03) if compiled else result


def test_compile_fit_evaluate_predict():
    t = trainer()
    history = t.fit(X, Y, epochs=30, batch_size=10, validation_data=(X, Y), progress=False)
    assert history is t.history and history.epochs == 30
    result = t.evaluate(X, Y, batch_size=32)
    assert result["accuracy"] > 0.9 and result == pytest.approx(
        {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}, rel=1e-6
    )
    assert np.mean(t.predict(X).numpy().argmax(1) == Y) == result["accuracy"]


def test_is_the_same_as_fit():
    t = trainer()
    t.fit(X, Y, epochs=3, progress=False)
    other = trainer(compiled=False).model
    optimizer = optim.Adam(other.parameters(), lr=0.03)
    train.fit(other, (X, Y), loss="cross_entropy", optimizer=optimizer, epochs=3, progress=False)
    assert_same_bits(weights(t.model), weights(other))


def test_accepts_objects_loaders_and_datasets():
    t = trainer(compiled=False)
    t.compile(optim.SGD(t.model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [train.Accuracy()])
    dataset = data.TensorDataset(X, Y)
    t.fit(dataset, validation_split=0.2, progress=False)
    t.fit(data.DataLoader(dataset, batch_size=5), validation_data=dataset, progress=False)
    assert t.history.keys() == {"loss", "accuracy", "lr", "val_loss", "val_accuracy"}
    assert t.evaluate(dataset).keys() == {"loss", "accuracy"}
    assert t.predict(dataset).shape == (50, 2)


def test_validation_split_takes_the_last_samples():
    t = trainer()
    t.fit(X, Y, validation_split=0.2, epochs=2, progress=False)
    other = trainer()
    other.fit(X[:40], Y[:40], validation_data=(X[40:], Y[40:]), epochs=2, progress=False)
    assert t.history == other.history


def test_validation_split_is_not_off_by_rounding():
    t, sizes = trainer(), []

    class Sizes(train.Callback):
        def on_epoch_end(self, state):
            sizes.append((len(state.train_data.dataset), len(state.validation_data.dataset)))

    t.fit(X[:10], Y[:10], validation_split=0.9, callbacks=[Sizes()], progress=False)  # 10 * (1 - 0.9) is below 1
    assert sizes == [(1, 9)]


def test_loading_leaves_the_random_stream_alone(tmp_path):
    t = trainer()
    t.save(tmp_path / "t")
    gn.manual_seed(5)
    t.load(tmp_path / "t")
    found = gn.random.uniform((3,)).numpy()
    gn.manual_seed(5)
    np.testing.assert_array_equal(found, gn.random.uniform((3,)).numpy())


def test_save_and_load(tmp_path):
    t = trainer()
    t.fit(X, Y, epochs=2, progress=False)
    t.save(tmp_path / "t")
    other = trainer(hidden=8)
    other.load(tmp_path / "t")
    assert other.history == t.history
    assert_same_bits(weights(other.model), weights(t.model))
    for one in (t, other):
        gn.manual_seed(4)
        one.fit(X, Y, progress=False)
    assert_same_bits(weights(other.model), weights(t.model))  # the optimizer's moments came along

    only_model = trainer(compiled=False)
    only_model.load(tmp_path / "t")
    with pytest.raises(ValueError, match="is of a different model"):
        trainer(hidden=9).load(tmp_path / "t")
    only_model.save(tmp_path / "m")
    with pytest.raises(KeyError, match="has no optimizer"):
        trainer().load(tmp_path / "m")


def test_loads_what_a_checkpoint_callback_wrote(tmp_path):
    t = trainer()
    t.fit(X, Y, callbacks=[train.Checkpoint(tmp_path)], progress=False)
    other = trainer()
    other.load(tmp_path / "best.safetensors")
    assert_same_bits(weights(other.model), weights(t.model))


def test_float64_arrays_become_the_models_dtype():
    x, y = X.astype(np.float64), Y
    for dtype in (gn.float32, gn.float64):
        model = nn.Sequential(nn.Linear(X.shape[1], 3)).to(dtype)
        t = train.Trainer(model).compile("sgd", "cross_entropy")
        t.fit(x, y, epochs=1, validation_split=0.2, progress=False)
        assert t.predict(x).dtype == dtype
        t.evaluate(x, y)


def test_before_compile():
    t = trainer(compiled=False)
    for call in (lambda: t.fit(X, Y), lambda: t.evaluate(X, Y)):
        with pytest.raises(RuntimeError, match=r'call compile\(optimizer="adam", loss="cross_entropy"\) first'):
            call()
    assert t.predict(X).shape == (50, 2)


def test_unknown_names_leave_it_uncompiled():
    t = trainer(compiled=False)
    for arguments, text in (
        (("adm",), "unknown optimizer 'adm'; known: sgd, adam"),
        (("adam", "xent"), "unknown loss 'xent'; known: cross_entropy"),
        (("adam", "mse", ["acc"]), "unknown metric 'acc'; known: accuracy"),
    ):
        with pytest.raises(ValueError, match=text):
            t.compile(*arguments)
    with pytest.raises(ValueError, match=r"lr=0\.1 goes with an optimizer's name; SGD has its own learning rate"):
        t.compile(optim.SGD(t.model.parameters(), lr=0.1), lr=0.1)
    with pytest.raises(RuntimeError, match="call compile"):
        t.fit(X, Y)


def test_bad_data():
    t = trainer()
    with pytest.raises(ShapeError, match="fit: x and y must have one length, got 50 and 40 samples"):
        t.fit(X, Y[:40])
    with pytest.raises(ShapeError, match="evaluate: x and y must have one length, got 50 and 40 samples"):
        t.evaluate(X, Y[:40])
    for share in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=rf"fit: validation_split must be in \[0, 1\), got {share:g}"):
            t.fit(X, Y, validation_split=share)
    with pytest.raises(ValueError, match=r"validation_split=0\.999 of 50 samples leaves one part empty"):
        t.fit(X, Y, validation_split=0.999)
    with pytest.raises(ValueError, match="give validation_data or validation_split, not both"):
        t.fit(X, Y, validation_split=0.5, validation_data=(X, Y))
    with pytest.raises(ValueError, match="validation_split needs arrays or a Dataset, got a DataLoader"):
        t.fit(data.DataLoader(data.TensorDataset(X, Y)), validation_split=0.5)
    with pytest.raises(ShapeError, match="Linear"):
        t.predict(X[:, :3])
