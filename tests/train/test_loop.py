import numpy as np
import pytest

import gpunet as gn
from gpunet import data, nn, optim, train
from gpunet.errors import ShapeError
from gpunet.nn import functional as F
from tests.train.small_run import assert_same_bits, digits, make, weights

X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def linear(outputs=2):
    gn.manual_seed(0)
    return nn.Linear(4, outputs)


def fit(model, train_data=(X, Y), **options):
    options = {"loss": "cross_entropy", "optimizer": optim.SGD(model.parameters(), lr=0.1), "progress": False} | options
    return train.fit(model, train_data, **options)


class Recorder(train.Callback):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda state: self.events.append((name[3:], state.epoch, state.batch, state.step))
        return super().__getattribute__(name)


# --- fit


def test_learns_the_digits():
    train_set, test_set = data.Digits(train=True), data.Digits(train=False)
    gn.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    history = train.fit(
        model, train_set, loss="cross_entropy", optimizer="adam", epochs=8, metrics=["accuracy"], progress=False
    )
    assert history["accuracy"][-1] > 0.9
    assert train.evaluate(model, test_set)["accuracy"] > 0.9


def test_training_is_in_training_mode_whatever_mode_the_model_comes_in():
    model, modes = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)).eval(), []
    model[1].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    fit(model, batch_size=50, validation_data=(X, Y), epochs=2)
    assert modes == [True, False, True, False]


def test_does_what_a_hand_written_loop_does():
    model, options = make()
    history = train.fit(model, **options, epochs=3)

    other, options = make()
    for epoch in range(3):
        other.train()
        total, right, count = 0.0, 0, 0
        for x, y in options["train_data"]:
            output = other(x)
            loss = F.cross_entropy(output, y)
            options["optimizer"].zero_grad()
            loss.backward()
            optim.clip_grad_norm_(other.parameters(), options["clip_grad_norm"])
            options["optimizer"].step()
            total += loss.item() * len(y)
            right += int((output.detach().numpy().argmax(1) == y.numpy()).sum())
            count += len(y)
        options["scheduler"].step()
        assert history["loss"][epoch] == pytest.approx(total / count, rel=1e-12)
        assert history["accuracy"][epoch] == right / count
    assert_same_bits(weights(model), weights(other))
    assert history["lr"] == [0.01, 0.01, 0.005]


def test_history_has_every_quantity_of_every_epoch():
    history = fit(linear(), epochs=3, metrics=["accuracy", "confusion_matrix"], validation_data=(X, Y))
    names = ["loss", "accuracy", "confusion_matrix"]
    assert list(history) == [*names, "lr", *(f"val_{name}" for name in names)]
    assert history.epochs == 3 and all(len(values) == 3 for values in history.values())
    assert history["confusion_matrix"][0].sum() == 50
    assert history.epoch(-1)["loss"] == history["loss"][2]
    assert history["loss"][2] < history["loss"][0]


def test_validation_is_an_evaluation_of_the_weights_at_the_end():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    history = fit(model, epochs=2, metrics=["accuracy"], validation_data=(X, Y))
    result = train.evaluate(model, (X, Y), loss="cross_entropy", metrics=["accuracy"], batch_size=32)
    assert result == {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}
    assert model.training


def test_callbacks_are_told_in_order():
    recorder = Recorder()
    fit(linear(), epochs=2, batch_size=25, callbacks=[recorder])
    one = [("epoch_begin", 0, 0, 0)]
    one += [("batch_begin", 0, 0, 0), ("batch_end", 0, 1, 1), ("batch_begin", 0, 1, 1), ("batch_end", 0, 2, 2)]
    one += [("epoch_end", 0, 2, 2)]
    two = [(name, 1, batch, step + 2) for name, _, batch, step in one]
    assert recorder.events == [("train_begin", 0, 0, 0), *one, *two, ("train_end", 2, 0, 4)]


def test_callbacks_are_told_of_the_end_after_an_error():
    class Fail(train.Callback):
        def on_batch_end(self, state):
            raise ZeroDivisionError

    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        fit(linear(), callbacks=[recorder, Fail()])
    assert recorder.events[-1][0] == "train_end"


def test_a_callback_can_stop_training():
    class Stop(train.Callback):
        def on_epoch_end(self, state):
            state.stop = state.epoch == 1

    assert fit(linear(), epochs=9, callbacks=[Stop()]).epochs == 2


def test_gradients_are_clipped():
    def first_step(**options):
        model = linear()
        before = weights(model)
        fit(model, batch_size=50, shuffle=False, **options)
        return np.sqrt(sum(np.sum((weights(model)[name] - before[name]) ** 2) for name in before))

    assert first_step(clip_grad_norm=1e-3) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # lr times the norm
    assert first_step(clip_grad_norm=1e3) == first_step() > 1e-3


def test_several_inputs_and_other_kinds_of_data():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, a, b):
            return self.linear(a + b)

    batches = [((X[:10], X[10:20]), Y[:10]), ([X[:5], X[5:10]], Y[:5])]  # NumPy arrays, no loader
    assert fit(Sum(), batches, epochs=2).epochs == 2
    assert fit(linear(), data.TensorDataset(X, Y)).epochs == 1
    assert fit(linear(), (gn.asarray(X), gn.asarray(Y))).epochs == 1
    with pytest.raises(ValueError, match="fit: the data gave no batches; an iterator can be used only once"):
        fit(linear(), iter([(X, Y)]), epochs=2)


def test_loss_may_be_a_module_or_a_function_and_metrics_functions():
    model = linear(1)
    target = X[:, :1] * 2
    options = {"metrics": ["mae", "r2", lambda p, t: gn.mean(gn.abs(p - t)).item()], "epochs": 40}
    history = fit(model, (X, target), loss=nn.MSELoss(), **options)
    assert history["<lambda>"][-1] == pytest.approx(history["mae"][-1], rel=1e-5)
    assert history["r2"][-1] > 0.9
    assert fit(linear(1), (X, target), loss=lambda p, t: gn.mean((p - t) ** 2), **options)["mae"] == history["mae"]


def test_two_class_metrics_know_what_the_loss_takes():
    target = Y.astype(np.float32)[:, None]
    for loss, last in (("binary_cross_entropy_with_logits", nn.Identity()), ("binary_cross_entropy", nn.Sigmoid())):
        model = nn.Sequential(linear(1), last)
        history = fit(model, (X, target), loss=loss, metrics=["accuracy"], epochs=20, shuffle=False)
        scores = train.predict(model, X).numpy()[:, 0]
        result = train.evaluate(model, (X, target), loss=loss)["accuracy"]
        assert result == np.mean((scores > (0 if loss.endswith("logits") else 0.5)) == Y)
        assert history["accuracy"][-1] > 0.8


def test_progress_lines(capsys):
    fit(linear(), epochs=2, metrics=["accuracy"], validation_data=(X, Y), progress=None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2: loss=0.")
    for part in ("accuracy=", "val_loss=", "val_accuracy=", "samples/s", " s"):
        assert part in lines[1]
    assert "lr=" not in lines[1]


# --- evaluate, predict


def test_evaluate_weights_batches_by_samples_and_restores_modes():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[1].eval()  # frozen by hand
    result = train.evaluate(model, (X, Y), loss="cross_entropy", batch_size=7)
    assert [module.training for module in (model, *model)] == [True, True, False, True]
    model.eval()
    with gn.no_grad():
        output = model(gn.asarray(X))
        assert result["loss"] == pytest.approx(F.cross_entropy(output, gn.asarray(Y)).item(), rel=1e-6)
    assert result["accuracy"] == np.mean(output.numpy().argmax(1) == Y)
    assert train.evaluate(model, (X, Y), metrics=["f1"]).keys() == {"f1"}


def test_evaluate_returns_a_loss_that_is_not_finite():
    model = linear()
    assert np.isnan(train.evaluate(model, (X * np.float32(np.nan), Y), loss="cross_entropy", metrics=())["loss"])


def test_predict_keeps_the_order():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    output = train.predict(model, X, batch_size=7)
    assert isinstance(output, gn.Tensor) and output.shape == (50, 2) and not output.requires_grad
    for other in (
        gn.asarray(X),
        (X, Y),
        data.TensorDataset(X),
        data.DataLoader(data.TensorDataset(X, Y), batch_size=9),
        [X],
    ):
        np.testing.assert_allclose(train.predict(model, other).numpy(), output.numpy(), rtol=1e-5, atol=1e-6)
    assert model.training


def test_predict_of_several_outputs():
    class Two(nn.Module):
        def forward(self, x):
            return x + 1, {"sum": x.sum(axis=1)}

    first, second = train.predict(Two(), X, batch_size=20)
    np.testing.assert_array_equal(first.numpy(), X + 1)
    assert second["sum"].shape == (50,)


# --- names and bad input


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown loss 'crossentropy'; known: cross_entropy, nll, mse"):
        fit(linear(), loss="crossentropy")
    with pytest.raises(ValueError, match="unknown optimizer 'adm'; known: sgd, adam, adamw, rmsprop, adagrad"):
        fit(linear(), optimizer="adm")
    with pytest.raises(ValueError, match="unknown metric 'acc'; known: accuracy"):
        fit(linear(), metrics=["acc"])
    with pytest.raises(TypeError, match=r"loss must be a name or a function .*, got 3"):
        fit(linear(), loss=3)
    with pytest.raises(TypeError, match="optimizer must be a name or an Optimizer, got 3"):
        fit(linear(), optimizer=3)
    with pytest.raises(TypeError, match=r"loss is the class MSELoss itself; did you mean MSELoss\(\)\?"):
        fit(linear(), loss=nn.MSELoss)


def test_an_optimizer_of_another_model_is_refused():
    model, other = linear(), linear()
    with pytest.raises(ValueError, match="SGD has none of the model's parameters: it was made for another model"):
        fit(model, optimizer=optim.SGD(other.parameters()))
    fit(model, optimizer=optim.SGD([model.weight]))  # a part of them will do


def test_a_dataset_of_another_library():
    class Foreign:
        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            return X[index], Y[index]

    models = [linear(), linear()]
    for model, samples in zip(models, (Foreign(), data.TensorDataset(X, Y))):
        gn.manual_seed(0)
        fit(model, samples)
    np.testing.assert_array_equal(*(model.weight.detach().numpy() for model in models))


def test_no_data():
    with pytest.raises(ValueError, match="fit: the dataset is empty"):
        fit(linear(), (X[:0], Y[:0]))
    with pytest.raises(ValueError, match="evaluate: the dataset is empty"):
        train.evaluate(linear(), data.Subset(data.TensorDataset(X, Y), []))
    with pytest.raises(ValueError, match="fit: the data gave no batches"):
        fit(linear(), [])
    with pytest.raises(ValueError, match=r"predict: expected an array of inputs .*, got shape \(0, 4\)"):
        train.predict(linear(), X[:0])
    with pytest.raises(ValueError, match="batch_size=64 is more than the 50 samples, and drop_last"):
        fit(linear(), data.DataLoader(data.TensorDataset(X, Y), batch_size=64, drop_last=True))


def test_data_of_the_wrong_kind():
    with pytest.raises(ShapeError, match="fit: x and y must have one length, got 50 and 49 samples"):
        fit(linear(), (X, Y[:-1]))
    with pytest.raises(TypeError, match=r"fit: expected a DataLoader, .* got ndarray of shape \(50, 4\)"):
        fit(linear(), X)
    with pytest.raises(TypeError, match=r"fit: expected a DataLoader, .* got int"):
        fit(linear(), 3)
    with pytest.raises(TypeError, match=r"fit: a batch must be \(inputs, targets\), got a tuple of 3"):
        fit(linear(), data.TensorDataset(X, Y, Y))
    with pytest.raises(TypeError, match=r"evaluate: a batch must be \(inputs, targets\), got a tuple of 1"):
        train.evaluate(linear(), data.TensorDataset(X))


def test_loss_must_be_one_number():
    with pytest.raises(ShapeError, match=r'one number per batch, got shape \(32,\): use reduction="mean"'):
        fit(linear(), loss=nn.CrossEntropyLoss(reduction="none"))


def test_errors_of_layers_pass_through():
    with pytest.raises(ShapeError, match="Linear"):
        train.predict(linear(), X[:, :3])
    with pytest.raises(IndexError, match="target"):
        fit(linear(), (X, Y + 7))


def test_digits_with_augmentation_go_through_fit():
    model, options = make()
    options |= {"train_data": digits(64), "batch_size": 16}
    assert train.fit(model, **options, epochs=1).epochs == 1
