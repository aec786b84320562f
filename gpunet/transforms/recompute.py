"""`checkpoint`: what a function computes on the way is not kept for the derivative, but computed again for it.

Chen et al., "Training deep nets with sublinear memory cost", 2016. The function is recorded as usual; then the recorded
ops are given up, and one node stands for all of them, whose derivative calls the function again, with the same random
numbers. Its inputs are whatever the ops were computed from: arguments, and parameters that the function uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gpunet import autograd, random
from gpunet.autograd import Node, enable_grad, is_grad_enabled, set_grad_enabled
from gpunet.errors import GradientError
from gpunet.ops.op import Op
from gpunet.tensor import Tensor
from gpunet.transforms import trees
from gpunet.transforms.tracing import Tracer


def checkpoint(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """f(*args, **kwargs), without keeping for the derivative what `f` computes on the way: less memory, more time.

        for block in blocks:
            x = gn.checkpoint(block, x)

    `f` is called once now, and once more for each walk back through its results. Gradients reach its arguments and the
    parameters and other Tensors that it uses, and can be differentiated again.

    Args:
        f: any function, such as a Module. It must compute the same when called again: from its arguments, Tensors that
            do not change before the derivative is computed, and random numbers of `gpunet.random`, which are those
            of the first call. What else it does, such as BatchNorm's running statistics, it does again.
        args, kwargs: of `f`, with Tensors among them, also nested.

    Returns:
        What `f` returns. Under `no_grad`, and inside `vmap` or `jvp`, `f` is only called.

    Raises:
        GradientError: by the derivative: a Tensor that `f` uses was changed in place since, or the second call computed
            something else than the first.
    """
    if not callable(f):
        raise TypeError(f"checkpoint: expected a function and its arguments, got {f!r}")
    if not is_grad_enabled():
        return f(*args, **kwargs)
    state = random.generator().state_dict()
    since = autograd._clock()
    result = f(*args, **kwargs)
    leaves, structure = trees.flatten(result)
    places = [i for i, y in enumerate(leaves) if isinstance(y, Tensor) and y._node is not None and y._node.made > since]
    if not places or any(isinstance(y, Tracer) for y in leaves):
        return result
    region, sources = _recorded([leaves[i]._node for i in places], since)
    given = [a for a in trees.flatten((args, kwargs))[0] if isinstance(a, Tensor)]
    for node in region:
        node.inputs = node.saved = node.output = None

    def derivative(xp: Any, gs: Any, _y: Any, *_inputs: Any) -> tuple[Any, ...]:
        watched: list[Any] = [*given, *sources]
        for t in watched:
            memory = t._memory if isinstance(t, Tensor) else t.memory
            if memory is not None and memory.written > since:
                raise GradientError(
                    f"checkpoint: a tensor of shape {tuple(t.shape)} that the function uses was changed in place, so "
                    "that it cannot be computed again; change it after backward"
                )
        recorded = any(isinstance(g, Tensor) for g in gs)
        again = random.Generator()
        again.load_state_dict(state)
        started = autograd._clock()
        with enable_grad(), random.using(again):
            outs = trees.flatten(f(*args, **kwargs))[0]
        pending: dict[Node, Any] = {}
        for i, g in zip(places, gs):
            node = outs[i]._node if i < len(outs) and isinstance(outs[i], Tensor) else None
            if node is None or node.shape != leaves[i].shape:
                raise _differs()
            if g is not None:
                pending[node] = pending[node] + g if node in pending else g
        order, reached = _recorded(list(pending), started)
        if not set(reached) <= set(sources):
            raise _differs()
        with set_grad_enabled(recorded):
            autograd.flow(order, pending, recorded)
        return tuple(pending.get(node) for node in sources)

    one = Op(_untouched)
    one.name = f"checkpoint of {getattr(f, '__name__', type(f).__name__)}"
    one.vjp(derivative)
    outs = autograd.gate([leaves[i] for i in places], one, sources)
    for i, y in zip(places, outs):
        leaves[i] = y
    return trees.unflatten(structure, leaves)


def _recorded(roots: Iterable[Any], since: int) -> tuple[list[Node], list[Node]]:
    """The nodes of ops made after `since` that `roots` come from, the last made first; and the nodes that these
    were computed from, which are older or leaves."""
    todo = list(dict.fromkeys(roots))
    seen = set(todo)
    region, sources = [], []
    for node in todo:  # grows while it is walked
        if node.op is None or node.made <= since:
            sources.append(node)
            continue
        region.append(node)
        for parent in node.inputs or ():
            if parent is not None and parent not in seen:
                seen.add(parent)
                todo.append(parent)
    region.sort(key=lambda node: node.made, reverse=True)
    return region, [node for node in sources if node.made <= since]


def _differs() -> Exception:
    return GradientError("checkpoint: called again, the function computed something else than the first time")


def _untouched(xp: Any, x: Any) -> Any:
    raise NotImplementedError("a checkpoint is run by its function, never by the tape")
