"""Function: an operation with a derivative of one's own, written outside the framework."""

from __future__ import annotations

from typing import Any

from gpunet import autograd
from gpunet.dtypes import SMOOTH
from gpunet.errors import GradientError
from gpunet.ops.op import Op
from gpunet.tensor import Tensor


class Context:
    """What `forward` hands on to `backward`: saved Tensors, and any attribute set on it."""

    def __init__(self) -> None:
        self._saved: list[Any] = []
        self._output: Any = None  # while `backward` runs; a reference for longer would be a cycle
        self._made = 0
        self.needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep Tensors (or None) for `backward`, where `saved_tensors` gives them back."""
        self._saved = list(tensors)

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The Tensors that `save_for_backward` was given.

        Raises:
            GradientError: one was changed in place since.
        """
        for t in self._saved:
            if isinstance(t, Tensor) and t._memory is not None and t._memory.written > self._made:
                raise GradientError(f"a saved tensor, of shape {t.shape}, was changed in place after it was saved")
        return tuple(self._output if t is _OUTPUT else t for t in self._saved)


_OUTPUT = object()  # stands for the result of `forward` among what is saved


class Function:
    """Base of operations with a hand-written derivative.

        class Cube(gpunet.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x * x

            @staticmethod
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return g * 3.0 * x * x

        y = Cube.apply(x)

    `forward` is not recorded. `backward` is given the gradient of the result and returns that of each argument of
    `forward` (None for one that has none); it is recorded under create_graph, so it can itself be differentiated.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the result from Tensors and whatever else `apply` was given."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """The gradient with respect to each positional argument of `forward`."""
        raise NotImplementedError

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Tensor:
        """Compute `forward` and record it.

        Raises:
            TypeError: `forward` does not return a Tensor.
        """
        ctx = Context()
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        with autograd.no_grad():
            y = cls.forward(ctx, *args, **kwargs)
        if not isinstance(y, Tensor):
            raise TypeError(f"{cls.__name__}.forward must return a Tensor, got {type(y).__name__}")
        if not any(ctx.needs_input_grad) or not autograd.is_grad_enabled() or y.dtype.kind not in SMOOTH:
            return y
        places = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]

        def derivative(xp: Any, g: Any, y: Any, *_inputs: Any) -> Any:
            recorded = isinstance(g, Tensor)
            ctx._output = y if recorded else Tensor._wrap(y)
            try:
                found = cls.backward(ctx, autograd.across(g if recorded else Tensor._wrap(g)))
            finally:
                ctx._output = None
            found = found if isinstance(found, tuple) else (found,)
            if len(found) != len(args):
                raise GradientError(
                    f"{cls.__name__}.backward must return a gradient for each of the {len(args)} arguments of forward, "
                    f"got {len(found)}"
                )
            gradients = [found[i] for i in places]
            for i, gradient in zip(places, gradients):
                if gradient is not None and not isinstance(gradient, Tensor):
                    raise GradientError(
                        f"{cls.__name__}.backward must return Tensors, got {type(gradient).__name__} for input {i}"
                    )
            gradients = [t if t is None else autograd.across(t) for t in gradients]
            return tuple(t if recorded or t is None else t.data.copy() for t in gradients)

        declared = Op(_untouched)
        declared.name = cls.__name__
        declared.vjp(derivative)
        same = any(y is a for a in args)
        out = Tensor._wrap(y.data.copy() if same else y.data)
        nodes = [args[i]._node for i in places]
        out._node = node = autograd.Node(declared, out.shape, out.dtype, nodes)
        node.params, node.saved = {}, nodes
        if not same and y._memory is not None:  # a view of an argument, or of something else
            out._memory = node.memory = y._memory
            y._memory.share(out)
        if any(s is y for s in ctx._saved) and not same:
            node.output = out.data
            ctx._saved = [_OUTPUT if s is y else s for s in ctx._saved]
        ctx._made = node.made
        return out


def _untouched(xp: Any, x: Any) -> Any:
    raise NotImplementedError("a Function is run by its apply, never by the tape")
