"""What all examples have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_takes_the_common_options(load_example, name, capsys):
    with pytest.raises(SystemExit) as end:
        load_example(name).main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--device", "--data", "--epochs", "--seed"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_is_listed_in_the_readme(name):
    assert f"({name}.py)" in (EXAMPLES / "README.md").read_text()


def test_an_unknown_dataset_is_refused(load_example):
    with pytest.raises(ValueError, match="unknown dataset 'digit'; known: digits, mnist"):
        load_example("mlp").main(["--data", "digit"])
