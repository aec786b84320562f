"""Neither AddressSanitizer, UndefinedBehaviorSanitizer nor ThreadSanitizer finds anything in the kernels."""

from __future__ import annotations

import pytest

from tests.backends.sanitizers import run_under

SECONDS = {  # that each program may take
    "sanitized": 900,  # matrix products
    "sanitized_conv": 900,  # convolutions
    "sanitized_training": 300,  # optimizers and recurrent networks
    "sanitized_elements": 300,  # elementwise ops, reductions and indexing
    "sanitized_rows": 600,  # softmax, losses and attention
    "sanitized_layers": 300,  # pooling and normalization
}


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("program", SECONDS)
def test_kernels(program: str, sanitizer: str) -> None:
    done = run_under(sanitizer, f"tests.kernels.{program}", timeout=SECONDS[program])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels ran" in done.stdout
