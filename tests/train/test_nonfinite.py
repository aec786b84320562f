import numpy as np
import pytest

import gpunet as gn
from gpunet import io, nn, optim, train
from gpunet.train import NonFiniteError
from tests.train.small_run import assert_same_bits, weights

X = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
Y = np.arange(24) % 2


class Poison(nn.Module):
    """Divides by zero from call number `at` on."""

    def __init__(self, at=0):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x):
        self.calls += 1
        return x / (1.0 if self.calls <= self.at else 0.0)


def net(*middle):
    gn.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.BatchNorm1d(8), *middle), nn.Dropout(0.5), nn.Linear(8, 2))


def fit(model, x=X, y=Y, loss="cross_entropy", lr=0.1, **options):
    options = {"batch_size": 8, "progress": False, "optimizer": optim.SGD(model.parameters(), lr=lr)} | options
    with np.errstate(all="ignore"):
        return train.fit(model, (x, y), loss=loss, **options)


def test_names_the_layer_that_gave_it_first():
    with pytest.raises(
        NonFiniteError, match=r"epoch 1, batch 3: the loss is nan: layer '1\.1', Poison\(.*\) gave the first"
    ):
        fit(net(Poison(at=2)))


def test_the_model_itself_where_no_layer_did():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x) + float("inf")

    with pytest.raises(NonFiniteError, match="the model gave the first output that is not finite"):
        fit(Net())


def test_input_and_targets():
    x = X.copy()
    x[20, 1] = np.inf
    with pytest.raises(
        NonFiniteError, match=r"batch 3: the loss is nan: the input batch itself holds NaN or infinite values"
    ):
        fit(net(), x, shuffle=False)
    target = np.full((24, 2), np.nan, np.float32)
    with pytest.raises(NonFiniteError, match="the targets hold NaN or infinite values"):
        fit(net(), X, target, loss="mse")


def test_loss_function_itself():
    with pytest.raises(NonFiniteError, match="output of the model is finite: the loss function itself gave the value"):
        fit(net(), loss=lambda output, target: gn.mean(output) / 0.0)


def test_parameters_that_a_step_broke():
    model = net()
    with pytest.raises(NonFiniteError, match=r"batch 2: .* parameters were not finite already: 0\.weight, 0\.bias"):
        fit(model, lr=float("inf"))


def test_parameters_that_the_last_step_broke():
    with pytest.raises(
        NonFiniteError, match=r"epoch 1, after its last batch: parameters of the model are not finite: 0\.weight"
    ):
        fit(net(), lr=float("inf"), batch_size=24)


def test_gradient_that_is_not_finite_is_found_when_clipping():
    def loss(output, target):
        return gn.sqrt(gn.mean(output) * 0.0)  # 0, whose square root has an infinite slope

    with pytest.raises(NonFiniteError, match=r"batch 1: the loss is finite but its gradient is not, in 0\.weight"):
        fit(net(), loss=loss, clip_grad_norm=1.0)


def test_validation():
    x = X.copy()
    x[3] = np.nan
    with pytest.raises(NonFiniteError, match=r"epoch 1, validation: the loss is nan: the input batch itself"):
        fit(net(), validation_data=(x, Y))


@pytest.mark.parametrize("seed", range(8))
def test_the_search_repeats_the_same_dropout(seed):
    class Fragile(nn.Module):
        """Infinite where the dropout before it left the first unit alive."""

        def forward(self, x):
            return gn.where(x[:, :1] != 0, float("inf"), x)

    gn.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), Fragile(), nn.Linear(8, 2))
    with pytest.raises(NonFiniteError, match=r"layer '2', Fragile"):
        fit(model, X[:1], Y[:1], epochs=50)


def test_the_search_leaves_no_trace():
    model = net(Poison(at=2))
    with pytest.raises(NonFiniteError):
        fit(model)
    norm = model[1][0]
    assert norm.num_batches_tracked.item() == 3
    assert np.isfinite(norm.running_mean.numpy()).all()
    calls = model[1][1].calls
    with gn.no_grad(), np.errstate(all="ignore"):
        model(gn.asarray(X))
    assert model[1][1].calls == calls + 1
    assert not any(module._hooks for module in model.modules())


def test_last_good_checkpoint_stays(tmp_path):
    kept = []

    class Keep(train.Callback):
        def on_batch_end(self, state):
            kept.append(weights(state.model))

    model = net(Poison(at=5))
    callbacks = [Keep(), train.Checkpoint(tmp_path, every_steps=1)]
    with pytest.raises(NonFiniteError):
        fit(model, epochs=9, callbacks=callbacks)
    assert len(kept) == 5
    saved = io.load_checkpoint(tmp_path / "last.safetensors", random=False)
    assert saved["extra"]["step"] == 5
    assert_same_bits(saved["model"], kept[-1])


def test_broken_parameters_are_not_saved(tmp_path):
    rates = iter([0.1, 0.1, float("inf")])

    class Rate(train.Callback):
        def on_batch_begin(self, state):
            state.optimizer.param_groups[0]["lr"] = next(rates)

    callbacks = [Rate(), train.Checkpoint(tmp_path, every_steps=1)]
    with pytest.raises(
        NonFiniteError, match=r"epoch 1, after batch 3, no checkpoint is written: parameters .* 0\.weight"
    ):
        fit(net(), epochs=9, callbacks=callbacks)
    saved = io.load_checkpoint(tmp_path / "last.safetensors", random=False)
    assert saved["extra"]["step"] == 2
    assert all(np.isfinite(value).all() for value in saved["model"].values())
