import numpy as np
import pytest

from gpunet import nn, optim, train


def state(**options):
    model = nn.Linear(2, 2)
    return train.State(model, optim.SGD(model.parameters(), lr=0.1), None, [], epochs=3, **options)


def test_history_is_lists_by_name():
    history = train.History()
    assert history.epochs == 0
    history.append({"loss": 2.0})
    history.append({"loss": 1.0, "val_loss": 3.0})
    history.append({"val_loss": 4.0})
    assert history == {"loss": [2.0, 1.0, None], "val_loss": [None, 3.0, 4.0]}
    assert history.epochs == 3
    assert history.epoch(1) == {"loss": 1.0, "val_loss": 3.0}


def test_logs_run_within_an_epoch_and_are_the_history_after_it():
    s = state(metrics=[train.Accuracy()])
    s.mean_loss.update(2.0, 1)
    s.metrics[0].update(np.array([1, 0]), np.array([1, 1]))
    assert s.logs == {"loss": 2.0, "accuracy": 0.5}
    s.history.append({"loss": 7.0})
    assert s.logs["loss"] == 2.0
    s.epoch_done = True
    assert s.logs == {"loss": 7.0}


def test_a_value_that_is_not_there_is_named_with_those_that_are():
    s = state(metrics=[train.Accuracy(), train.ConfusionMatrix()])
    assert np.isnan(s.value_of("loss", "me"))
    s.metrics[1].update([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"me: there is no value 'confusion_matrix'; there is: loss, accuracy$"):
        s.value_of("confusion_matrix", "me")
    with pytest.raises(ValueError, match=r"no value 'val_loss' \(fit was given no validation_data\); there is"):
        s.value_of("val_loss", "me")


def test_states_saved_by_callbacks_of_one_kind_are_told_apart(tmp_path):
    def callbacks(*values):
        made = [train.EarlyStopping(), train.CSVLogger(tmp_path / "x.csv"), train.EarlyStopping()]
        for callback, value in zip((made[0], made[2]), values):
            callback.best_epoch = value
        return made

    state(callbacks=callbacks(3, 5)).save(tmp_path / "c")
    restored = callbacks(None, None)
    state(callbacks=restored).restore(tmp_path / "c")
    assert [restored[0].best_epoch, restored[2].best_epoch] == [3, 5]
    one = [train.EarlyStopping()]
    state(callbacks=one).restore(tmp_path / "c")
    assert one[0].best_epoch == 3
