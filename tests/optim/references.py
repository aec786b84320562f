"""The update rules written out in float64, one parameter at a time, without gpunet: what optimizers must equal."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
State = dict[str, Any]


def sgd(
    p: Array, g: Array, state: State, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False
) -> Array:
    g = (-g if maximize else g) + weight_decay * p
    if momentum:
        state["b"] = momentum * state["b"] + (1 - dampening) * g if "b" in state else g
        g = g + momentum * state["b"] if nesterov else state["b"]
    return p - lr * g


def adam(
    p: Array, g: Array, state: State, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False,
    maximize=False, decoupled=False,
) -> Array:  # fmt: skip
    b1, b2 = betas
    t = state["t"] = state.get("t", 0) + 1
    g = -g if maximize else g
    if decoupled:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    if amsgrad:
        v = state["vmax"] = np.maximum(state.get("vmax", 0), v)
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def adamw(p: Array, g: Array, state: State, weight_decay=1e-2, **options) -> Array:
    return adam(p, g, state, weight_decay=weight_decay, decoupled=True, **options)


def rmsprop(
    p: Array, g: Array, state: State, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False,
    maximize=False,
) -> Array:  # fmt: skip
    g = (-g if maximize else g) + weight_decay * p
    v = state["v"] = alpha * state.get("v", 0) + (1 - alpha) * g**2
    if centered:
        mean = state["mean"] = alpha * state.get("mean", 0) + (1 - alpha) * g
        v = v - mean**2
    move = g / (np.sqrt(v) + eps)
    if momentum:
        move = state["b"] = momentum * state.get("b", 0) + move
    return p - lr * move


def adagrad(
    p: Array, g: Array, state: State, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10,
    maximize=False,
) -> Array:  # fmt: skip
    t = state["t"] = state.get("t", 0) + 1
    g = (-g if maximize else g) + weight_decay * p
    total = state["sum"] = state.get("sum", initial_accumulator_value) + g**2
    return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(total) + eps)
