"""What `Module.register_full_backward_hook` does: gates on the tape before and behind the module's forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpunet import autograd
from gpunet.autograd import is_grad_enabled
from gpunet.errors import GradientError
from gpunet.ops.op import Op
from gpunet.tensor import Tensor
from gpunet.transforms import trees

if TYPE_CHECKING:
    from gpunet.nn.module import Module


def call(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The module's forward, with its backward hooks called when gradients come back through it."""
    if not is_grad_enabled():
        return module.forward(*args, **kwargs)
    leaves, structure = trees.flatten(args)
    tensors = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    places = [i for i in tensors if leaves[i].requires_grad]
    arrived: list[tuple[Any, ...]] = []  # gradients of the outputs, from when they are known until the hooks are called

    def before(xp: Any, gs: Any, _y: Any, *_inputs: Any) -> tuple[Any, ...]:
        seen = [None if g is None else _shown(g) for g in gs]
        given = tuple(seen[places.index(i)] if i in places else None for i in tensors)
        found = _call_hooks(module, given, arrived.pop() if arrived else ())
        return tuple(
            g if found[tensors.index(i)] is given[tensors.index(i)] else _replaced(found[tensors.index(i)], given, s, g)
            for i, s, g in zip(places, seen, gs)
        )

    def behind(xp: Any, gs: Any, _y: Any, *_inputs: Any) -> tuple[Any, ...]:
        known = dict(zip(outs, gs))
        arrived[:] = [tuple(None if known.get(i) is None else _shown(known[i]) for i in results)]
        if not places:
            _call_hooks(module, (None,) * len(tensors), arrived.pop())
        return gs

    if places:
        for i, x in zip(places, _gate("before", before, [leaves[i] for i in places])):
            leaves[i] = x
    output = module.forward(*trees.unflatten(structure, leaves), **kwargs)
    ys, nesting = trees.flatten(output)
    results = [i for i, y in enumerate(ys) if isinstance(y, Tensor)]
    outs = [i for i in results if ys[i].requires_grad]
    if outs:
        for i, y in zip(outs, _gate("behind", behind, [ys[i] for i in outs])):
            ys[i] = y
    return trees.unflatten(nesting, ys)


def _gate(name: str, derivative: Any, tensors: list[Tensor]) -> list[Tensor]:
    op = Op(_untouched)
    op.name = f"{name} a module with hooks"
    op.vjp(derivative)
    return autograd.gate(tensors, op, [t._node for t in tensors])


def _shown(g: Any) -> Tensor:
    return autograd.across(g if isinstance(g, Tensor) else Tensor._wrap(g))


def _call_hooks(module: Module, given: tuple[Any, ...], arrived: tuple[Any, ...]) -> tuple[Any, ...]:
    for (hook,) in list(module._backward_hooks or ()):
        changed = hook(module, given, arrived)
        if changed is None:
            continue
        changed = changed if isinstance(changed, tuple) else (changed,)
        if len(changed) != len(given):
            raise GradientError(
                f"a backward hook of {type(module).__name__} must return a gradient for each of the {len(given)} "
                f"Tensors that the module was given, got {len(changed)}"
            )
        given = changed
    return given


def _replaced(changed: Any, given: tuple[Any, ...], seen: Tensor | None, g: Any) -> Any:
    if seen is None or changed is None:
        return None
    return autograd._replacement("a backward hook", changed, seen, isinstance(g, Tensor))


def _untouched(xp: Any, x: Any) -> Any:
    raise NotImplementedError("a gate is only passed by gradients")
