"""A program for the sanitizers to watch: optimizers, what is done to gradients, and recurrent networks, on sizes that
end within vectors and chunks.

python -m tests.kernels.sanitized_training
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunet.backends.emulated import prebuild
from gpunet.ops import optimizer, recurrent
from tests.kernels.watched import Watched

watched = Watched()

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# Of the others, the threads do the same.
KERNELS = [
    *("update<half, Sgd<float, true, false>>", "update<float, Adam<float, true>>"),
    *("update<float, RmsProp<float, true, true>>", "numbers<ADAM>", "count_step<long long>"),
    *("gradient_norm<half, EUCLIDEAN>", "finish_norm<float, EUCLIDEAN>"),
    *("gradient_norm<float, LARGEST>", "finish_norm<float, LARGEST>"),
    *("change_gradients<float, CLIP_NORM>", "change_gradients<half, UNSCALE>"),
    *(f"{cell}{step}<float, 4>" for cell in GATES for step in ("_step", "_grad_step")),
    *("lstm_step<float, 1>", "lstm_grad_step<float, 1>"),
]


def array(*shape: int, dtype: str = "float32") -> Any:
    values = np.linspace(-1, 1, math.prod(shape)).reshape(shape)
    return watched.on(values.astype(dtype))


def run(op: Any, *args: Any, **params: Any) -> Any:
    return op.implementation(type(array(1)))(*args, **params)


def optimize() -> None:
    sizes = (4100, 3)
    for dtype in ("float32", "float16"):
        params, grads = ([array(n, dtype=dtype) for n in sizes] for _ in range(2))
        states = [np.abs(array(sum(sizes))) + 1 for _ in range(3)]
        common: dict[str, Any] = {"weight_decay": 0.1, "maximize": True}
        if dtype == "float32":
            run(optimizer.clip_by_norm, grads, run(optimizer.gradient_norm, grads, ord=math.inf), max_norm=0.5)
            step, skip = array(dtype="int64") + 3, array(dtype="int32") + 1
            run(optimizer.count_step, step, skip=skip)
            adam = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "decoupled": True}
            run(optimizer.adam, params, grads, *states, step=step, lr=array() + 2, **adam, **common)
            run(optimizer.rmsprop, params, grads, *states, lr=0.1, alpha=0.9, eps=1e-3, momentum=0.5, **common)
        else:
            run(optimizer.gradient_norm, grads)
            run(optimizer.unscale_and_check, grads, array(dtype="int32"), scale=2.0)
            sgd = {"momentum": 0.9, "dampening": 0.1, "nesterov": False, "first": False}
            run(optimizer.sgd, params, grads, states[0], lr=0.1, **sgd, **common)


def recur(cell: str, units: int) -> None:
    gates, last = GATES[cell], {"activation": "tanh", "reverse": True} if cell == "rnn" else {"reverse": True}
    states = [array(3, units) for _ in range(2 if cell == "lstm" else 1)]
    weight = array(gates * units, units)
    ys = run(getattr(recurrent, cell), array(2, 3, gates * units), *states, weight, array(gates * units), **last)
    ys = ys if isinstance(ys, tuple) else (ys,)
    run(getattr(recurrent, f"{cell}_grad"), *ys, *(ys[1:] if cell == "lstm" else ys), states[-1], weight, **last)


def recur_all() -> None:
    for cell in GATES:
        recur(cell, 4)
    recur("lstm", 3)


if __name__ == "__main__":
    if watched.is_emulated:
        variants = [*optimizer._variants(), *recurrent._variants()]
        prebuild([v for v in variants if v.expression in KERNELS])
    watched.run(optimize, recur_all)
    missing = set(KERNELS) - {expression for expression, _grid in watched.log} if watched.is_emulated else set()
    assert not missing, missing
    watched.end()
