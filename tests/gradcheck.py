"""Derivatives checked against finite differences in float64: the reference of every gradient test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpunet as gn


def check_gradients(
    f: Callable[..., Any],
    inputs: Sequence[Any],
    order: int = 2,
    *,
    rtol: float = 1e-6,
    step: float = 1e-5,
    directions: int = 2,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Assert that the gradients of `f` are right, up to `order` times differentiated: `gpunet.testing.check_grads` of
    the reverse mode, on a device.

    f: takes Tensors of the shapes of `inputs` and returns a Tensor (or several).
    inputs: float64 or complex128 arrays at which to differentiate; f should be smooth within `step` of them.
    """
    args = [gn.asarray(np.array(x), device=device) for x in inputs]
    gn.testing.check_grads(f, args, order, ("rev",), rtol, rtol, step=step, directions=directions, seed=seed)
