import re

import numpy as np
import pytest

import gpunet as gn
from gpunet import train
from gpunet.train.bar import Bar


@pytest.fixture
def immediate(monkeypatch):
    monkeypatch.setattr("gpunet.train.bar._INTERVAL", 0)


def test_terminal_shows_a_bar_with_values_speed_and_time_left(immediate, terminal):
    terminal()
    batches = train.progress([(np.zeros((5, 2)), np.zeros(5))] * 4, "epoch 1/2")
    for i, (x, _) in enumerate(batches):
        assert x.shape == (5, 2)
        batches.show(loss=gn.tensor(1 / (i + 1)), note="text is not shown")
    text = terminal().getvalue()
    last = text.split("\r")[-1]
    assert re.search(r"epoch 1/2 100%\|.*\| 4/4 \[00:00<00:00, loss=0.25, [\d,]+ samples/s\] *\n", last)
    assert "loss=1," in text  # values of the first batch were shown on the way
    assert "note" not in text


def test_narrow_terminal_cuts_what_is_redrawn_but_not_the_final_line(immediate, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal()
    batches = train.progress([np.zeros(5)] * 3, "epoch")
    for _ in batches:
        batches.show(**{f"quantity_{i}": 0.123 for i in range(5)})
    *drawn, last = terminal().getvalue().rstrip().split("\r")
    assert max(map(len, drawn)) <= 60
    assert "quantity_4=0.123" in last and "samples/s]" in last


def test_elsewhere_one_line_per_loop(capsys):
    batches = train.progress([np.zeros(5)] * 4, "epoch 1/2")
    for _ in range(2):
        for _batch in batches:
            batches.show(loss=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert re.fullmatch(r"epoch 1/2: loss=0.5, [\d,]+ samples/s, \d+\.\d s", err.splitlines()[0])


def test_quiet(terminal):
    terminal()
    assert len(list(train.progress(range(3), display=False))) == 3
    assert terminal().getvalue() == ""


def test_unknown_length(immediate, terminal):
    terminal()
    assert list(train.progress(iter(range(3)), "x")) == [0, 1, 2]
    assert re.search(r"x 3 \[00:00\]", terminal().getvalue().split("\r")[-1])


def test_values_are_read_only_when_shown(terminal):
    terminal()
    reads = []
    bar = Bar("x", 1000)
    for _ in range(1000):
        bar.advance(1, lambda: reads.append(1) or {})
    bar.close()
    assert len(reads) < 100


def test_an_error_in_the_loop_leaves_the_bar_closed(immediate, terminal):
    terminal()
    with pytest.raises(ZeroDivisionError):
        for _ in train.progress(range(3), "x"):
            raise ZeroDivisionError
    assert terminal().getvalue().endswith("\n")


def test_resumed_epoch_starts_in_the_middle(immediate, terminal):
    terminal()
    bar = Bar("x", 4, done=3)
    bar.advance(1)
    bar.finish()
    assert "| 4/4 " in terminal().getvalue().split("\r")[-1]
