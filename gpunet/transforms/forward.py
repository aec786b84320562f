"""Forward mode: `jvp`, the derivative along a direction, computed beside the values.

A `Dual` tensor is a value with its tangent, the derivative along the direction that was asked for. An op that is given
one computes both, and nothing is kept for later. How the tangent of a result comes about:

- ops that are linear in an array apply themselves to the tangent; products, to the tangent of one factor after another;
- an elementwise op of real numbers has a Jacobian that is diagonal, so what takes a gradient back takes a tangent
  forward;
- for any other op, the derivative that takes gradients back, which is linear in the gradient, is itself differentiated
  with respect to that. That records this op and its derivative for the moment: about three times the op's work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from gpunet import autograd
from gpunet.autograd import enable_grad, is_grad_enabled
from gpunet.creation import asarray, zeros_like
from gpunet.dtypes import SMOOTH
from gpunet.errors import GradientError, ShapeError
from gpunet.ops import elementwise as ew
from gpunet.ops.op import Op
from gpunet.ops.shape import astype, broadcast_to
from gpunet.tensor import Tensor
from gpunet.transforms import trees
from gpunet.transforms.reverse import differentiable, differentiated, fresh, outputs_of
from gpunet.transforms.tracing import Tracer, interception, level_of, next_level


class Dual(Tracer):
    """A value, `inner`, and its tangent, of the same shape and dtype."""

    __slots__ = ("tangent",)

    tangent: Tensor

    what = "jvp"

    def parts(self) -> list[Tensor]:
        return [self.inner, self.tangent]

    def detach(self) -> Tensor:
        """A constant: without a tangent, and off the tape."""
        return self.inner.detach()

    def item(self) -> Any:
        return self.inner.item()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __bool__(self) -> bool:
        return bool(self.inner)

    def _scalar(self, convert: Any) -> Any:
        return self.inner._scalar(convert)

    def _become(self, other: Any) -> None:
        self.inner, self.tangent = other.inner, other.tangent

    @property
    def requires_grad(self) -> bool:
        """True: functions that do less where no derivative is wanted must not do so here."""
        return True

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        raise GradientError("requires_grad inside jvp cannot be set; use gpunet.grad(f)(x)")

    def interpret(self, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        level = self.level
        primals = [a.inner if level_of(a) == level else a for a in args]
        if not is_grad_enabled():
            return op(*primals, **params)
        tangents = [a.tangent if level_of(a) == level else None for a in args]
        y, ty = _push(op, primals, tangents, params)
        if isinstance(y, tuple):
            outs = tuple(v if t is None else dual(v, t, level) for v, t in zip(y, ty))
            for out in outs if op.view else ():
                out._is_view_of(args[0])
            return outs
        if ty is None:
            return y
        out = dual(y, ty, level)
        if op.view:
            out._is_view_of(args[0])
        return out

    def differentiated(
        self, pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Tensor], create_graph: bool, retain_graph: bool
    ) -> list[Tensor | None]:
        """The gradient, and as its tangent the derivative of that along the direction: of what it was computed from,
        v * y has the tangent v * ty + tv * y."""
        level = self.level

        def primal(x: Tensor) -> Tensor:
            return x.inner if isinstance(x, Dual) and x.level == level else x

        ys, gs = [[primal(t) for t in side] for side in zip(*pairs)]
        xs = [primal(x) for x in inputs]
        values = differentiated(ys, xs, gs, create_graph=create_graph, retain_graph=True)
        more = [(y.tangent, g) for (y, _), g in zip(pairs, gs) if isinstance(y, Dual) and y.level == level]
        more += [(y, g.tangent) for y, (_, g) in zip(ys, pairs) if isinstance(g, Dual) and g.level == level]
        if not more:
            return values
        tangents = differentiated(
            *[[pair[0] for pair in more], xs, [pair[1] for pair in more]],
            create_graph=create_graph,
            retain_graph=retain_graph,
        )
        return [v if t is None else dual(zeros_like(t) if v is None else v, t, level) for v, t in zip(values, tangents)]


def dual(value: Tensor, tangent: Tensor, level: int) -> Dual:
    """A value with its tangent."""
    x = object.__new__(Dual)
    x._memory = None
    x.inner, x.tangent, x.level = value, tangent, level
    return x


# Ops whose result is linear in their first argument, the others being given; whatever else these are.
_LINEAR = {
    "sum", "mean", "reshape", "permute_dims", "matrix_transpose", "moveaxis", "expand_dims", "squeeze", "broadcast_to",
    "unstack", "flip", "roll", "repeat", "tile", "tril", "triu", "copy", "to_device", "identity", "getitem", "scatter",
    "take", "take_along_axis", "scatter_along", "cumulative_sum", "diagonal", "embed_diagonal", "negative", "positive",
    "conj", "real", "imag", "dropout", "dropout_again", "window_sum", "spread", "pick", "unpool", "adaptive_mean",
    "adaptive_mean_grad", "transform", "half_spectrum", "from_half_spectrum",
}  # fmt: skip
# Ops that are linear in all of their arrays together.
_JOINTLY_LINEAR = {"add", "subtract", "concat"}
# Ops that are linear in each of their first two arguments, and in all of the arrays of einsum.
_PRODUCTS = {"multiply", "matmul", "conv_input_grad", "conv_weight_grad", "einsum"}


def _push(op: Op, primals: list[Any], tangents: list[Any], params: dict[str, Any]) -> tuple[Any, Any]:
    """The result of an op, and its tangent or None; tuples, for an op of several results."""
    name, moving = op.name, [i for i, t in enumerate(tangents) if t is not None]
    if op.derivative is None:
        y = op(*primals, **params)
        return (y, (None,) * len(y)) if isinstance(y, tuple) else (y, None)
    if name in _LINEAR and moving == [0]:
        return op(*primals, **params), op(tangents[0], *primals[1:], **params)
    if name == "astype":
        y = op(*primals, **params)
        return y, op(tangents[0], **params) if y.dtype.kind in SMOOTH else None
    if name == "where" and moving and moving[0] > 0:
        return op(*primals), op(primals[0], *(_or_zero(p, t) for p, t in zip(primals[1:], tangents[1:])))
    if name in _JOINTLY_LINEAR or (name == "setitem" and moving):
        return op(*primals, **params), op(*(_or_zero(p, t) for p, t in zip(primals, tangents)), **params)
    if name in _PRODUCTS:
        terms = [op(*primals[:i], tangents[i], *primals[i + 1 :], **params) for i in moving]
        return op(*primals, **params), _sum(terms)
    if name in ("linear", "conv") and len(primals) == 3:
        x, weight = primals[:2]
        terms = [] if tangents[0] is None else [op(tangents[0], weight, tangents[2], **params)]
        if tangents[1] is not None:
            terms.append(op(x, tangents[1], None if terms else tangents[2], **params))
        if not terms:
            terms = [op(zeros_like(x), weight, tangents[2], **params)]
        return op(*primals, **params), _sum(terms)
    if op.__module__ == ew.__name__ and all(primals[i].dtype.kind != "c" for i in moving):
        y = op(*primals, **params)
        found = _by_diagonal(op, y, primals, tangents, moving, params)
        if found is not None:
            return y, found
    return _by_transposition(op, primals, tangents, moving, params)


def _or_zero(primal: Any, tangent: Any) -> Any:
    if tangent is not None:
        return tangent
    return zeros_like(primal) if isinstance(primal, Tensor) else primal * 0 if hasattr(primal, "dtype") else 0.0


def _sum(terms: list[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _by_diagonal(
    op: Op, y: Any, primals: list[Any], tangents: list[Any], moving: list[int], params: dict[str, Any]
) -> Any:
    """The tangent of an elementwise op, or None if its derivative is not written so that it tells."""
    if y.dtype.kind not in "fV":
        return None
    terms = []
    for i in moving:
        t = tangents[i]
        t = t if t.dtype == y.dtype else astype(t, dtype=y.dtype)
        t = t if t.shape == y.shape else broadcast_to(t, shape=y.shape)
        entries = op.derivative(autograd._namespace(), t, y, *primals, **{**op.defaults, **params})  # type: ignore[misc]
        entry = entries[i] if isinstance(entries, tuple) else entries
        if type(entry) is FunctionType:
            entry = entry()
        if entry is None:
            continue
        if not isinstance(entry, Tensor) or entry.shape != y.shape:
            return None
        terms.append(entry if entry.dtype == y.dtype else astype(entry, dtype=y.dtype))
    return _sum(terms) if terms else zeros_like(y)


def _by_transposition(
    op: Op, primals: list[Any], tangents: list[Any], moving: list[int], params: dict[str, Any]
) -> tuple[Any, Any]:
    """The tangent by differentiating the derivative with respect to the gradient, in which it is linear."""
    recording = is_grad_enabled()
    with enable_grad():
        inputs = list(primals)
        for i in moving:
            inputs[i] = fresh(primals[i])
        result = op(*inputs, **params)
        results = result if isinstance(result, tuple) else (result,)
        places = [i for i, y in enumerate(results) if y.requires_grad]
        vs = [fresh(zeros_like(results[i]).detach()) for i in places]
        found = differentiated([results[i] for i in places], [inputs[i] for i in moving], vs, create_graph=True)
        pairs = [(g, tangents[i]) for i, g in zip(moving, found) if g is not None]
        ts = differentiated([g for g, _t in pairs], vs, [t for _g, t in pairs], create_graph=recording)
    every: list[Any] = [None] * len(results)
    for i, t in zip(places, ts):
        every[i] = zeros_like(results[i]) if t is None else t
    if not recording:
        results = tuple(y.detach() for y in results)
        every = [t if t is None else t.detach() for t in every]
    return (results, tuple(every)) if isinstance(result, tuple) else (results[0], every[0])


def jvp(f: Callable[..., Any], primals: Any, tangents: Any, *, has_aux: bool = False) -> tuple[Any, ...]:
    """What `f` returns, and its derivative along a direction: forward mode.

        y, dy = gn.jvp(f, (x,), (dx,))

    Args:
        f: takes and returns Tensors, or tuples, lists and dicts of them.
        primals: a tuple of its arguments, floating-point.
        tangents: a tuple of directions, nested as the arguments are, of their shapes and dtypes; None in place of an
            argument stands for zeros.
        has_aux: `f` returns a pair: the outputs, and something else to be passed on.

    What `f` computes under `no_grad` is a constant, as in the other direction.

    Returns:
        (outputs, their tangents), the product of the Jacobian with the direction; with has_aux, the third thing. Both
        are on the tape where the arguments are. `f` is run once, and nothing is kept for later. An op of numbers
        elementwise, a linear one or a product costs twice what it did, any other about four times; see
        gpunet.transforms.forward.

    Raises:
        ValueError: the tangents are not nested as the arguments are.
        ShapeError: a tangent does not have the shape of its argument.
        DTypeError: an argument is not floating-point, or `f` returns something else than Tensors.
    """
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise TypeError("jvp: expected a tuple of arguments and a tuple of their tangents: jvp(f, (x,), (dx,))")
    if len(primals) != len(tangents):
        raise ValueError(f"jvp: there are {len(primals)} arguments and {len(tangents)} tangents")
    level = next_level()
    values = []
    for x, t in zip(primals, tangents):
        if t is None:
            values.append(x)
            continue
        xs, structure = trees.flatten(x)
        ts, given = trees.flatten(t)
        if given != structure:
            raise ValueError(
                f"jvp: a tangent is nested as {trees.describe(given)}, its argument as {trees.describe(structure)}"
            )
        values.append(trees.unflatten(structure, [_with_tangent(a, b, level) for a, b in zip(xs, ts)]))
    recording = is_grad_enabled()
    with interception(), enable_grad():
        result = f(*values)
        more = None
        if has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"jvp: with has_aux=True the function must return a pair (outputs, more), got {result!r}"
                )
            result, more = result
        leaves, structure = outputs_of("jvp", result)
        own = [isinstance(y, Dual) and y.level == level for y in leaves]
        ys = [y.inner if mine else y for y, mine in zip(leaves, own)]  # type: ignore[attr-defined]
        ts = [y.tangent if mine else zeros_like(y) for y, mine in zip(leaves, own)]  # type: ignore[attr-defined]
        more = trees.over(lambda y: y.inner if isinstance(y, Dual) and y.level == level else y, more)
        if not recording:
            ys, ts = [y.detach() for y in ys], [t.detach() for t in ts]
    found = trees.unflatten(structure, ys), trees.unflatten(structure, ts)
    return (*found, more) if has_aux else found


def _with_tangent(x: Any, t: Any, level: int) -> Tensor:
    x = differentiable("jvp", x)
    t = t if isinstance(t, Tensor) else asarray(t, dtype=x.dtype, device=x.device)
    if t.shape != x.shape:
        raise ShapeError(f"jvp: the tangent of an argument of shape {x.shape} must have that shape, got {t.shape}")
    y = dual(x, t if t.dtype == x.dtype else astype(t, dtype=x.dtype), level)
    y._is_view_of(y)  # so that it is not written to
    return y
