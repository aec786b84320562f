import io
import sys

import pytest


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes stderr a terminal, and returns it. Call it in the test: pytest resets stderr before."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()

    def use():
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use
