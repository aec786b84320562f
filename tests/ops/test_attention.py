"""The op `attention`: what it keeps, and what else it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import ShapeError
from gpunet.ops import shape
from gpunet.ops.attention import attention, attention_weights
from gpunet.ops.random import Key

rng = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"dropout": 0.5, "key": Key(1, (0, 0, 0), 0)}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_logarithm_and_weights(masked: bool, options: dict[str, Any], device: str) -> None:
    q, k, v = (gn.tensor(normal(2, n, 4), device=device) for n in (3, 5, 5))
    mask = None
    if masked:
        mask = gn.tensor(np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool), device=device)
    y, logarithm = attention(q, k, v, mask, scale=0.5, **options)
    scores = (q @ k.swapaxes(-1, -2)).cpu().numpy() * 0.5
    if masked:
        scores = np.where(mask.cpu().numpy(), scores, -np.inf)
    if options.get("causal"):
        scores = np.where(np.tri(3, 5, dtype=bool), scores, -np.inf)
    with np.errstate(divide="ignore"):
        wanted = np.log(np.exp(scores).sum(-1))
    wanted[np.isneginf(wanted)] = np.inf
    np.testing.assert_allclose(logarithm.cpu().numpy(), wanted, rtol=1e-12)
    weights = attention_weights(q, k, logarithm, mask, scale=0.5, **options)
    np.testing.assert_allclose((weights @ v).cpu().numpy(), y.cpu().numpy(), rtol=1e-12, atol=1e-15)
    if "dropout" not in options:
        np.testing.assert_allclose(weights.cpu().numpy().sum(-1), np.isfinite(wanted), rtol=1e-12)


def test_one_gradient_of_several(device: str) -> None:
    """Only a mask's, or only that of the logarithm."""
    q, k, v, mask = (gn.tensor(normal(*s), device=device, requires_grad=True) for s in ((3, 4), (5, 4), (5, 2), (5,)))
    y, logarithm = attention(q, k, v, mask, scale=0.5)
    (gradient,) = gn.grad(y.sum() * 2, [mask], retain_graph=True)
    assert gradient.shape == (5,) and abs(gradient.sum().item()) < 1e-12  # all scores moved alike change nothing
    to_mask, to_values = gn.grad(logarithm.sum(), [mask, v])
    np.testing.assert_allclose(to_mask.sum().item(), 3)
    assert not to_values.cpu().numpy().any()


@pytest.mark.parametrize(
    "shapes", [((3, 4), (5, 3), (5, 2)), ((3, 4), (5, 4), (6, 2)), ((4,), (5, 4), (5, 4))], ids=str
)
def test_shapes_that_do_not_fit(shapes: Any, device: str) -> None:
    with pytest.raises(ShapeError, match=r"attention: expected q \(\.\.\., L, E\)"):
        attention(*(gn.zeros(s, device=device) for s in shapes), scale=1.0)


def test_gradients_of_slices_are_joined(device: str) -> None:
    x = gn.tensor(normal(3, 4), device=device, requires_grad=True)
    a, _b, c = x
    (a * 2 + c * c).sum().backward()
    wanted = np.stack([np.full(4, 2.0), np.zeros(4), 2 * x.detach().cpu().numpy()[2]])
    np.testing.assert_array_equal(x.grad.cpu().numpy(), wanted)
    assert [t.shape for t in shape.unstack(x, axis=1)] == [(3,)] * 4
    assert all(t.ndim == 0 for t in x[0])


def test_gradients_that_lie_as_their_slices_are_not_copied() -> None:
    x = gn.tensor(normal(6, 10, 3 * 8).astype("float32"), requires_grad=True)
    seen = []

    class Watch(gn.Function):
        @staticmethod
        def forward(ctx: Any, a: Any) -> Any:
            return a * 1.0

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            seen.append(g.data)
            return g

    parts = gn.permute_dims(Watch.apply(x).reshape((6, 10, 3, 2, 4)), (2, 0, 3, 1, 4))
    q, k, v = parts
    y = attention(q, k, v, scale=0.5)[0]
    y.swapaxes(1, 2).reshape((6, 10, 8)).sum().backward()
    (g,) = seen
    assert g.flags.c_contiguous and g.shape == (6, 10, 24) and not g.flags.owndata
    np.testing.assert_array_equal(x.grad.numpy(), g)


def test_few_gradients_far_apart() -> None:
    """Slices that are alike, but not one after another."""
    whole = np.zeros((5, 3), np.float32)
    assert shape.evenly_spaced([whole[0], whole[1], whole[2]]) == 12
    assert shape.evenly_spaced([whole[4], whole[2], whole[0]]) == -24
    assert not shape.evenly_spaced([whole[0], whole[1], whole[3]])
    assert not shape.evenly_spaced([whole[0], whole[0].copy(), whole[1]])
    assert not shape.evenly_spaced([whole[0], None, whole[1]])
    assert not shape.evenly_spaced([whole[0], whole[1, :2], whole[2]])
