"""A table of a model's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpunet import random
from gpunet.autograd import no_grad
from gpunet.creation import zeros
from gpunet.errors import DTypeError
from gpunet.nn.module import Module
from gpunet.tensor import Tensor


@dataclass(frozen=True)
class Row:
    """One layer: path, name of its class, shape of its output as text, and how many parameters are its own."""

    path: str
    kind: str
    output: str
    parameters: int


@dataclass(frozen=True)
class Summary:
    """What `summary` returns; its str() is the table.

    Attributes:
        rows: the layers in the order in which they are called.
        parameters: how many numbers are learned, or could be.
        trainable: how many of these require gradients.
        nbytes: what the parameters take.
        buffers: how many numbers the buffers hold.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    nbytes: int
    buffers: int

    def __str__(self) -> str:
        head = ("Layer", "Type", "Output shape", "Parameters")
        body = [(r.path, r.kind, r.output, f"{r.parameters:,}" if r.parameters else "-") for r in self.rows]
        w = [max(len(row[i]) for row in (head, *body)) for i in range(4)]
        lines = [f"{a:<{w[0]}}  {b:<{w[1]}}  {c:<{w[2]}}  {d:>{w[3]}}" for a, b, c, d in (head, *body)]
        rule = "-" * len(lines[0])
        frozen = self.parameters - self.trainable
        total = (
            f"Parameters: {self.parameters:,} ({self.trainable:,} trainable, {frozen:,} frozen), {_size(self.nbytes)}"
        )
        if self.buffers:
            total += f"\nBuffers: {self.buffers:,}"
        return "\n".join([lines[0], rule, *lines[1:], rule, total])

    __repr__ = __str__


def summary(model: Module, *inputs: Any) -> Summary:
    """The layers of a model with the shapes of their outputs for a given input, and their parameters.

    Runs the model once as in evaluation, without recording; buffers, random numbers and modes stay as they are.

    Args:
        model: the Module.
        inputs: what it is called with: Tensors, or shapes with the batch axis, such as (1, 3, 32, 32), for which zeros
            stand in. With none, the shapes of outputs are left out.

    Returns:
        A Summary, to be printed. Its rows are the modules that have parameters of their own or no modules inside.

    Raises:
        DTypeError: an input is neither a Tensor nor a shape.
    """
    calls: dict[int, str] = {}
    if inputs:
        like = next(model.parameters(), None)
        with _undisturbed(model), no_grad(), _watched(model, calls):
            model(*(_input(x, like) for x in inputs))
    rows = []
    for path, module in model.named_modules():
        own = sum(p.size for _name, p in module._own_parameters())
        if own or next(module.children(), None) is None:
            output = calls.get(id(module), "not called") if inputs else ""
            rows.append((module, Row(path or type(module).__name__, type(module).__name__, output, own)))
    order = {key: i for i, key in enumerate(calls)}
    rows.sort(key=lambda row: order.get(id(row[0]), len(order)))
    parameters = list(model.parameters())
    return Summary(
        rows=tuple(row for _module, row in rows),
        parameters=sum(p.size for p in parameters),
        trainable=sum(p.size for p in parameters if p.requires_grad),
        nbytes=sum(p.nbytes for p in parameters),
        buffers=sum(b.size for b in model.buffers()),
    )


@contextmanager
def _undisturbed(model: Module) -> Iterator[None]:
    """Evaluate within the block; put modes, buffers and the random stream back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(m, name, b, b.data.copy()) for m in model.modules() for name, b in m._own_buffers()]
    stream = random.generator()
    state = stream.state_dict()
    model.eval()
    try:
        yield
    finally:
        stream.load_state_dict(state)
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, data in buffers:
            buffer.data[...] = data
            setattr(module, name, buffer)


@contextmanager
def _watched(model: Module, calls: dict[int, str]) -> Iterator[None]:
    """Note for every module called within the block, in the order of the first calls, what shape its output has."""

    def note(module: Module, _args: Any, output: Any) -> None:
        calls[id(module)] = _shape(output)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(x: Any, like: Tensor | None) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, (tuple, list)) and all(isinstance(n, int) for n in x):
        return zeros(tuple(x), **({"dtype": like.dtype, "device": like.device} if like is not None else {}))
    given = f"an array of shape {x.shape}" if hasattr(x, "shape") else repr(x)
    raise DTypeError(f"summary: an input must be a Tensor or a shape, a tuple of ints, got {given}")


def _shape(output: Any) -> str:
    if isinstance(output, dict):
        return "{" + ", ".join(f"{name}: {_shape(value)}" for name, value in output.items()) + "}"
    if isinstance(output, (tuple, list)):
        return "[" + ", ".join(map(_shape, output)) + "]"
    return str(tuple(output.shape)) if hasattr(output, "shape") else type(output).__name__


def _size(nbytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.4g} GiB"
