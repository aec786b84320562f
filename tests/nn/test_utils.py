"""Clipping gradients, and parameters as one vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.nn.utils import clip_grad_norm_, clip_grad_value_, parameters_to_vector, vector_to_parameters

GRADIENTS = [np.array([[3.0, -4.0], [0.5, 1.0]]), None, np.array([12.0]), np.array(-2.0)]


def parameters(device: str = "cpu", dtype: str = "float64") -> list[gn.Tensor]:
    """Four, the second without a gradient."""
    found = []
    for g in GRADIENTS:
        p = nn.Parameter(gn.zeros((2,) if g is None else g.shape, dtype=dtype, device=device))
        if g is not None:
            p.grad = gn.tensor(g, dtype=dtype, device=device)
        found.append(p)
    return found


def gradients(several: Any) -> list[np.ndarray]:
    return [p.grad.cpu().numpy() for p in several if p.grad is not None]


def norm(arrays: list[np.ndarray], order: float) -> float:
    size = [abs(float(v)) for a in arrays for v in a.ravel()]
    return max(size) if order == math.inf else sum(v**order for v in size) ** (1 / order)


@pytest.mark.parametrize("order", [1, 2, 3.5, math.inf])
@pytest.mark.parametrize("limit", [0.0, 1.0, 1e3])
def test_clip_grad_norm(limit: float, order: float, device: str) -> None:
    several = parameters(device)
    memory = [p.grad for p in several]
    before = [g for g in GRADIENTS if g is not None]
    total = clip_grad_norm_(iter(several), limit, norm_type=order)
    assert isinstance(total, gn.Tensor) and total.shape == () and not total.requires_grad and total.device == device
    assert total.item() == pytest.approx(norm(before, order))
    factor = min(1.0, limit / (norm(before, order) + 1e-6))
    for a, b in zip(gradients(several), before):
        np.testing.assert_allclose(a, b * factor, rtol=1e-12)
    assert all(p.grad is g for p, g in zip(several, memory))


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_clip_grad_norm_as_torch(order: float) -> None:
    torch = pytest.importorskip("torch")
    ours = parameters(dtype="float32")
    theirs = [torch.zeros(p.shape, requires_grad=True) for p in ours]
    for p, q in zip(ours, theirs):
        q.grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
    total = clip_grad_norm_(ours, 0.7, order)
    assert total.item() == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 0.7, order).item(), rel=1e-6)
    for p, q in zip(ours, theirs):
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)


def test_float16_gradients_do_not_overflow() -> None:
    p = nn.Parameter(gn.zeros(4, dtype="float16"))
    p.grad = gn.tensor(np.full(4, 1e3), dtype="float16")
    assert clip_grad_norm_(p, 1.0).item() == pytest.approx(2e3)
    assert p.grad.dtype == "float16"
    np.testing.assert_allclose(p.grad.numpy(), 0.5, rtol=1e-3)


def test_no_gradients_at_all() -> None:
    p = nn.Parameter(gn.zeros(3))
    assert clip_grad_norm_([p], 1.0).item() == 0 and clip_grad_norm_([], 1.0).item() == 0
    clip_grad_value_([p], 1.0)
    assert p.grad is None


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norm_that_is_not_finite(bad: float) -> None:
    p = nn.Parameter(gn.zeros(2))
    p.grad = gn.tensor([1.0, bad])
    with pytest.raises(gn.errors.GradientError) as caught:
        clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert str(caught.value) == (
        f"clip_grad_norm_: the norm of order 2.0 of the gradients is {bad}, and cannot be clipped"
    )
    np.testing.assert_array_equal(p.grad.numpy(), np.array([1.0, bad], "float32"))
    assert not math.isfinite(clip_grad_norm_(p, 1.0).item())


def test_clip_grad_value(device: str) -> None:
    several = parameters(device)
    clip_grad_value_(several, 1.5)
    for a, b in zip(gradients(several), [g for g in GRADIENTS if g is not None]):
        np.testing.assert_array_equal(a, np.clip(b, -1.5, 1.5))
    alone = parameters(device)[0]
    clip_grad_value_(alone, 0.25)
    assert np.abs(gradients([alone])[0]).max() == 0.25


def test_clipped_gradients_train() -> None:
    w = nn.Parameter(gn.tensor([3.0, 4.0]))
    (w * w).sum().backward()
    clip_grad_norm_([w], 1.0)
    np.testing.assert_allclose(w.grad.numpy(), [0.6, 0.8], rtol=1e-5)
    w.grad = None
    (w * w).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), [6, 8])


def test_wrong_arguments() -> None:
    p = parameters()
    with pytest.raises(ValueError, match="clip_grad_norm_: max_norm must not be negative, got -1"):
        clip_grad_norm_(p, -1)
    with pytest.raises(ValueError, match="clip_grad_norm_: max_norm must not be negative, got nan"):
        clip_grad_norm_(p, math.nan)
    with pytest.raises(ValueError, match="clip_grad_norm_: norm_type must be positive, got 0"):
        clip_grad_norm_(p, 1.0, 0)
    with pytest.raises(ValueError, match="clip_grad_value_: clip_value must not be negative, got -2"):
        clip_grad_value_(p, -2)


def test_parameters_as_one_vector(device: str) -> None:
    model = nn.Linear(3, 2).to(device)
    vector = parameters_to_vector(model.parameters())
    w, b = (p.detach().cpu().numpy() for p in model.parameters())
    np.testing.assert_array_equal(vector.detach().cpu().numpy(), np.concatenate([w.ravel(), b]))
    vector.sum().backward()
    assert all((p.grad == 1).all() for p in model.parameters())
    vector_to_parameters(gn.asarray(np.arange(8.0), device=device), model.parameters())
    assert model.weight.tolist() == [[0, 1, 2], [3, 4, 5]] and model.bias.tolist() == [6, 7]
    assert model.weight.requires_grad and model.weight.dtype == "float32"


def test_vector_of_another_length_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.tolist()
    with pytest.raises(gn.errors.ShapeError) as caught:
        vector_to_parameters(gn.zeros(9), model.parameters())
    assert str(caught.value) == "vector_to_parameters: parameters of 8 elements take a vector of shape (8,), got (9,)"
    assert model.weight.tolist() == before
