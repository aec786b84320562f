"""`detect_anomaly`: which op, on which line, made the first NaN or infinity."""

from __future__ import annotations

import linecache
import math
import sys
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any

import numpy as np

from gpunet import autograd
from gpunet.autograd import Node
from gpunet.backends import backend_of_type
from gpunet.ops.op import Op, describe
from gpunet.tensor import Tensor
from gpunet.transforms.tracing import interception

_PACKAGE = str(Path(__file__).parent.parent)


class detect_anomaly(ContextDecorator):
    """Find out where the first NaN or infinity comes from, in values or in gradients, within a `with` block.

        with gn.detect_anomaly():
            loss = loss_of(model(x), y)
            loss.backward()

    Each op of this thread is looked at after it ran, and so is what its derivative computes. The first that makes a NaN
    of arrays without NaN, or an infinity of arrays without infinities, raises FloatingPointError, which names the op,
    the line outside gpunet that called it, and the shapes. Infinities that are put in, such as those of a mask, are let
    pass. Outside such a block nothing is looked at, and nothing is slower; inside, every op waits for the device.

    Raises:
        FloatingPointError: see above.
    """

    def __enter__(self) -> detect_anomaly:
        self._blocks = [*getattr(self, "_blocks", []), (interception(self._forward), autograd._mode.watch)]
        self._blocks[-1][0].__enter__()
        autograd._observers.append(None)
        autograd._mode.watch = self._backward
        self._paused = False
        return self

    def __exit__(self, *error: Any) -> None:
        block, autograd._mode.watch = self._blocks.pop()
        autograd._observers.pop()
        block.__exit__(*error)

    def _forward(self, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        y = autograd.record(op, args, params)
        if self._paused:
            return y
        outs = y if isinstance(y, tuple) else (y,)
        where = None
        for out in outs:
            if out._node is not None:
                where = where or _caller()
                node = out._node if out._node.op is op else out._node.inputs[0]
                node.line = where
        made = _made(
            [t.data for t in outs], [*(a.data if isinstance(a, Tensor) else a for a in args), *params.values()]
        )
        if made:
            which, how_many, array = made
            raise FloatingPointError(
                f"{op.name} made the first {which} in values: {how_many} of the {array.size} elements of its result, "
                f"{describe((array,))}; it was given {describe(args)}; called at {where or _caller()}"
            )
        return y

    def _backward(self, node: Node, g: Any, pending: dict[Node, Any], inputs: Any, step: Any) -> None:
        before, self._paused = self._paused, True
        try:
            step()
        finally:
            self._paused = before
        found = [(i, n) for i, n in enumerate(inputs) if n is not None and n in pending]
        given = [v for v in (g if isinstance(g, tuple) else (g,)) if v is not None]
        for i, n in found:
            value = pending[n]
            made = _made(
                [_raw(v) for v in (value if isinstance(value, tuple) else (value,)) if v is not None],
                [_raw(v) for v in given],
            )
            if made:
                which, how_many, array = made
                raise FloatingPointError(
                    f"the derivative of {node.op.name} made the first {which} in gradients: {how_many} of the "
                    f"{array.size} elements of the gradient of input {i}, {describe((array,))}; the op was called at "
                    f"{getattr(node, 'line', 'a line outside detect_anomaly')}"
                )


def _raw(g: Any) -> Any:
    return g.data if isinstance(g, Tensor) else g


def _made(results: list[Any], given: list[Any]) -> tuple[str, int, Any] | None:
    """What the first array with a NaN or infinity has that nothing given has, in how many elements, and that array."""
    for y in results:
        for which in ("nan", "inf"):
            count = _count(y, which)
            if count and not any(_count(x, which) for x in given):
                return ("NaN" if which == "nan" else "infinity"), count, y
    return None


def _count(x: Any, which: str) -> int:
    """In how many elements an array or number is NaN ("nan") or infinite ("inf")."""
    if isinstance(x, (float, complex)):
        return int(getattr(np, f"is{which}")(x))
    if getattr(getattr(x, "dtype", None), "kind", "") not in "fcV" or not hasattr(x, "dtype") or not math.prod(x.shape):
        return 0
    xp = backend_of_type(type(x)).xp
    if x.dtype.kind == "V":
        x = x.astype("float32")
    return int(xp.count_nonzero(getattr(xp, f"is{which}")(x)))


def _caller() -> str:
    """The innermost line outside gpunet: "train.py:12: y = gn.log(x)"."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    name, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(name, line).strip()
    return f"{name}:{line}" + (f": {text}" if text else "")
