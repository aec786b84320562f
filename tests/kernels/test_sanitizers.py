"""Neither AddressSanitizer, UndefinedBehaviorSanitizer nor ThreadSanitizer finds anything in the kernels."""

from __future__ import annotations

import pytest

from tests.backends.sanitizers import run_under


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_matrix_products(sanitizer: str) -> None:
    done = run_under(sanitizer, "tests.kernels.sanitized", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels ran" in done.stdout


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_optimizers_and_recurrent_networks(sanitizer: str) -> None:
    done = run_under(sanitizer, "tests.kernels.sanitized_training", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels ran" in done.stdout


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_elementwise_ops_reductions_and_indexing(sanitizer: str) -> None:
    done = run_under(sanitizer, "tests.kernels.sanitized_elements", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels ran" in done.stdout


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_softmax_losses_and_attention(sanitizer: str) -> None:
    done = run_under(sanitizer, "tests.kernels.sanitized_rows", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels ran" in done.stdout


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_pooling_and_normalization(sanitizer: str) -> None:
    done = run_under(sanitizer, "tests.kernels.sanitized_layers", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels ran" in done.stdout
