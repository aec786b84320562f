"""Where the time of a training step with gpunet goes: by op, forward, backward and in the optimizer.

What runs an op on raw arrays, and every derivative, is wrapped with a clock, from outside of the package. An op that
another op calls is counted by itself, and not with the other. What is left of a step is the tape's, the layers' and the
optimizer's own Python, and the clock's: some 0.5 µs for each call.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from gpunet.ops.op import Op

WARM_UP = 5


class Stopwatch:
    """Times of nested calls, each without those inside it.

    Attributes:
        phase: what is going on: "forward", "backward" or "optimizer".
        seconds, calls: for (phase, name).
    """

    def __init__(self) -> None:
        self.phase = "forward"
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)
        self._inside = [0.0]  # for each call under way, the time of those inside it

    def timed(self, name: str, function: Callable[..., Any], counts: bool = True) -> Callable[..., Any]:
        """`function`, with a clock around it; also around functions that it returns, as derivatives do: calls of these
        do not count.
        """

        @wraps(function)
        def call(*args: Any, **params: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                result = function(*args, **params)
            finally:
                took = time.perf_counter() - start
                inside = self._inside.pop()
                self._inside[-1] += took
                key = self.phase, name
                self.seconds[key] += took - inside
                self.calls[key] += counts
            if type(result) is tuple:
                return tuple(self._later(name, part) for part in result)
            return self._later(name, result)

        return call

    def _later(self, name: str, part: Any) -> Any:
        if not callable(part):
            return part
        timed = self.timed(name, part, counts=False)
        return lambda: timed()  # the tape calls what is a plain function


@contextmanager
def watching(stopwatch: Stopwatch) -> Iterator[None]:
    """Every op that there is, timed."""
    ops = [thing for thing in gc.get_objects() if isinstance(thing, Op)]
    before = [(op.derivative, op.derivatives, op.raw_derivative) for op in ops]
    implement = Op._implement

    def timed_implement(self: Op, *args: Any) -> Callable[..., Any]:
        return stopwatch.timed(self.name, implement(self, *args))

    Op._implement = timed_implement  # type: ignore[method-assign]
    try:
        for op, (derivative, derivatives, raw) in zip(ops, before):
            op.implementations.clear()
            name = f"{op.name}'s derivative"
            if derivative is not None:
                op.derivative = stopwatch.timed(name, derivative)
            if derivatives is not None:
                op.derivatives = tuple(stopwatch.timed(name, part) for part in derivatives)
            if raw is not None:
                op.raw_derivative = stopwatch.timed(name, raw)
        yield
    finally:
        Op._implement = implement  # type: ignore[method-assign]
        for op, derivatives_of in zip(ops, before):
            op.implementations.clear()
            op.derivative, op.derivatives, op.raw_derivative = derivatives_of


def profile(make: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Times of ops in `steps` training steps, in seconds for one step.

    Args:
        make: prepares a `Training`.

    Returns:
        "rows": for each phase and op, its seconds and calls, the longest first. "phases": seconds of each phase, all
        Python included. "bare": seconds of a step without clocks.
    """
    training = make()
    for _ in range(WARM_UP):
        training.step()
    start = time.perf_counter()
    for _ in range(steps):
        training.step()
    bare = (time.perf_counter() - start) / steps
    stopwatch = Stopwatch()
    phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        stopwatch.phase = name
        start = time.perf_counter()
        yield
        phases[name] += (time.perf_counter() - start) / steps

    with watching(stopwatch):
        for i in range(WARM_UP + steps):
            if i == WARM_UP:
                stopwatch.seconds.clear()
                stopwatch.calls.clear()
                phases.clear()
            with phase("optimizer"):
                training.optimizer.zero_grad()
            training.x.grad = None
            with phase("forward"):
                loss = training.loss()
            with phase("backward"):
                loss.backward()
            with phase("optimizer"):
                training.optimizer.step()
    rows: list[dict[str, Any]] = [
        {"phase": where, "op": name, "seconds": seconds / steps, "calls": stopwatch.calls[where, name] / steps}
        for (where, name), seconds in stopwatch.seconds.items()
    ]
    rows.sort(key=lambda row: -row["seconds"])
    return {"bare": bare, "phases": dict(phases), "rows": rows}
