"""Derivatives of functions by the tape: `grad`, `value_and_grad`, `vjp`, `jacobian` and `hessian`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

from gpunet import autograd
from gpunet.autograd import enable_grad, is_grad_enabled
from gpunet.creation import asarray, eye, ones_like, zeros, zeros_like
from gpunet.dtypes import SMOOTH
from gpunet.errors import DTypeError, GradientError, ShapeError
from gpunet.ops.elementwise import conj
from gpunet.ops.op import op
from gpunet.ops.shape import reshape, stack
from gpunet.tensor import Tensor
from gpunet.transforms import batching, trees
from gpunet.transforms.batching import Batched, batched, lifted_zero
from gpunet.transforms.tracing import Tracer, bottom, bottoms, level_of


@op(view=True)
def identity(xp, x):
    """x itself, at a place of its own on the tape."""
    return x


@identity.vjp
def _(xp, g, _y, _x):
    return g


def fresh(x: Tensor) -> Tensor:
    """x at a place of its own on the tape, to be differentiated with respect to; call it where recording is on.

    What is computed from it depends on x as before. Inside `vmap`, each sample has one of its own.
    """
    zero = lifted_zero(x)
    y = identity(x) if zero is None else x - zero
    if y._node is None:
        inner = bottom(y)
        inner._node = autograd.leaf(inner)
        inner._node.retains_grad = False
    y._is_view_of(y)  # so that nobody writes to it
    return y


def differentiated(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    create_graph: bool,
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """The gradients of `inputs`, Tensors or Tracers, given those of `outputs`; None where there is no dependence."""
    chosen = [(y, g) for y, g in zip(outputs, gradients) if y._node is not None]
    if not chosen or not inputs:
        return [None] * len(inputs)
    top = max([*inputs, *(t for pair in chosen for t in pair)], key=level_of)
    if isinstance(top, Batched):
        return _of_samples(chosen, inputs, top.level, create_graph, retain_graph)
    if isinstance(top, Tracer):
        return top.differentiated(chosen, inputs, create_graph, retain_graph)  # type: ignore[attr-defined]
    ys, gs = [list(side) for side in zip(*chosen)]
    retain_graph = retain_graph or create_graph
    places = [i for i, x in enumerate(inputs) if x._node is not None]
    found: list[Tensor | None] = [None] * len(inputs)
    for i, g in zip(
        places,
        autograd.grad(
            ys, [inputs[i] for i in places], gs, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
        ),
    ):
        found[i] = g
    return found


def seeds(outputs: Sequence[Tensor], gradients: Sequence[Any]) -> list[Tensor]:
    """The gradients that `gpunet.grad` was given, 1 for a real scalar that has none."""
    found = []
    for y, g in zip(outputs, gradients):
        if g is None and (y.size != 1 or y.dtype.kind == "c"):
            raise GradientError(
                f"only a real scalar can be differentiated without a gradient, and this tensor is {y.shape} {y.dtype}"
            )
        found.append(ones_like(y) if g is None else g)
    return found


def _of_samples(
    pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Tensor], level: int, create_graph: bool, retain_graph: bool
) -> list[Tensor | None]:
    """`differentiated` where something differs by sample."""

    def inner(x: Any) -> Any:
        return x.inner if level_of(x) == level else x

    n = next(x for pair in pairs for x in (*pair, *inputs) if level_of(x) == level).inner.shape[0]  # type: ignore[attr-defined]
    own = [level_of(x) == level for x in inputs]
    if all(own) or not any(level_of(x) == level for pair in pairs for x in pair):
        # Each sample's outputs depend on its own inputs only, so that one walk serves all.
        spread = [y if level_of(y) == level else batched(batching.repeated(y, n), level) for y, _g in pairs]
        ys: list[Any] = [inner(y) for y in spread] if all(own) else [y for y, _g in pairs]
        gs = [g if not all(own) else inner(g) if level_of(g) == level else batching.repeated(g, n) for _y, g in pairs]
        found = differentiated(ys, [inner(x) for x in inputs], gs, create_graph=create_graph, retain_graph=retain_graph)
        return [g if g is None or not all(own) else batched(g, level) for g in found]
    rows = []
    for i in range(n):
        ys, gs = [[inner(t)[i] if level_of(t) == level else t for t in side] for side in zip(*pairs)]
        last = i == n - 1
        targets = [inner(x) for x in inputs]
        with enable_grad():
            rows.append(
                differentiated(ys, targets, gs, create_graph=create_graph, retain_graph=retain_graph or not last)
            )
    found = []
    for column, mine in zip(zip(*rows), own):
        known = [g for g in column if g is not None]
        if not known:
            found.append(None)
            continue
        parts = [zeros_like(known[0]) if g is None else g for g in column]
        if mine:  # of which only sample i's own part is not zero
            parts = [g[i] for i, g in enumerate(parts)]
        found.append(batched(stack(parts, axis=0), level))
    return found


def reaches_outside(outputs: Sequence[Any], since: int) -> bool:
    """Whether any of `outputs` was computed, after the time `since`, from something recorded before: then its gradient
    may be wanted as a function of that, so that it has to be recorded in turn."""
    todo = [t._node for y in outputs if isinstance(y, Tensor) for t in bottoms(y) if t._node is not None]
    seen = set(todo)
    for node in todo:  # grows while it is walked
        if node.made < since:
            return True
        for parent in node.inputs or ():
            if parent is not None and parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return False


def settled(tree: Any, since: int, recording: bool) -> Any:
    """Results as the caller sees them: on the tape only as far as they depend on what was there before `since`."""

    def settle(y: Any) -> Any:
        return y if not isinstance(y, Tensor) or (recording and reaches_outside([y], since)) else y.detach()

    return trees.over(settle, tree)


class Arguments:
    """The arguments of a function to be differentiated with respect to some of them.

    Attributes:
        inputs: the Tensors in these, each at a place of its own on the tape.
        structure: how they are nested: in one argument, or in a tuple of several.
    """

    def __init__(self, name: str, args: tuple[Any, ...], argnums: Any) -> None:
        single = hasattr(argnums, "__index__")
        places = [argnums] if single else list(argnums)
        for i in places:
            if not hasattr(i, "__index__") or not -len(args) <= i < len(args):
                raise ValueError(f"{name}: argnums is {argnums!r}, and the function was given {len(args)} arguments")
        leaves, self.structure = trees.flatten(args[places[0]] if single else tuple(args[i] for i in places))
        self.inputs = [fresh(differentiable(name, leaf)) for leaf in leaves]
        chosen = trees.unflatten(self.structure, self.inputs)
        values = list(args)
        for i, value in zip(places, [chosen] if single else chosen):
            values[i] = value
        self.values = values

    def nested(self, gradients: Sequence[Any]) -> Any:
        """One value for each of `inputs`, nested as they are; zeros for None."""
        filled = [zeros_like(x) if g is None else g for x, g in zip(self.inputs, gradients)]
        return trees.unflatten(self.structure, filled)


def differentiable(name: str, value: Any) -> Tensor:
    """`value` as a Tensor, of a dtype that has derivatives."""
    try:
        x = value if isinstance(value, Tensor) else asarray(value)
    except TypeError as error:
        raise DTypeError(f"{name}: expected a Tensor to differentiate with respect to, got {value!r}") from error
    if x.dtype.kind not in SMOOTH:
        raise DTypeError(
            f"{name}: an argument of shape {x.shape} is {x.dtype}, and only floating-point ones have derivatives; "
            "convert it (x.astype(gpunet.float32)), or choose other arguments with argnums"
        )
    return x


def outputs_of(name: str, result: Any) -> tuple[list[Tensor], trees.Structure]:
    """The Tensors that a function returned, and how they are nested."""
    leaves, structure = trees.flatten(result)
    for y in leaves:
        if not isinstance(y, Tensor):
            raise DTypeError(f"{name}: the function must return Tensors, got a {type(y).__name__}")
    return leaves, structure


def _with_aux(name: str, result: Any, has_aux: bool) -> tuple[Any, Any]:
    if not has_aux:
        return result, None
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"{name}: with has_aux=True the function must return a pair (value, more), got {result!r}")
    return result


def value_and_grad(f: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns what `f` does, and its gradient.

        loss, gradient = gn.value_and_grad(loss_of)(parameters, x, y)

    Args:
        f: returns a real floating-point Tensor of one element.
        argnums: which argument to differentiate with respect to, by its number, or a tuple of several. An argument may
            be a tuple, list or dict of Tensors, nested.
        has_aux: `f` returns a pair: the value, and something else to be passed on.

    Returns:
        A function of the arguments of `f`, which returns (value, gradient), or ((value, more), gradient). The gradient
        is nested as the argument is; it is zero where the value does not depend on it. Where the arguments, or what
        `f` uses from outside, require gradients, so do the results. Of a complex argument it is, as in `x.grad`,
        df/dRe + i df/dIm.

    Raises:
        GradientError: the value is no real scalar.
        DTypeError: an argument to differentiate with respect to is not floating-point.
        ValueError: there is no such argument.
    """
    return _value_and_grad("value_and_grad", f, argnums, has_aux)


def _value_and_grad(name: str, f: Callable[..., Any], argnums: Any, has_aux: bool) -> Callable[..., Any]:
    if not callable(f):
        raise TypeError(f"{name}: expected a function, got {f!r}")

    @wraps(f)
    def differentiating(*args: Any, **kwargs: Any) -> Any:
        recording, since = is_grad_enabled(), autograd._clock()
        with enable_grad():
            arguments = Arguments(name, args, argnums)
            value, more = _with_aux(name, f(*arguments.values, **kwargs), has_aux)
            if not isinstance(value, Tensor) or value.size != 1 or value.dtype.kind not in "fV":
                what = f"{value.shape} {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise GradientError(
                    f"{name}: the function must return a real floating-point tensor of one element, got {what}; reduce "
                    "it first (y.sum()), or use gpunet.jacobian"
                )
            record = recording and reaches_outside([value], since)
            kept = record or has_aux
            found = differentiated(
                [value], arguments.inputs, [ones_like(value)], create_graph=record, retain_graph=kept
            )
            gradient = arguments.nested(found)
        value, more = settled((value, more), since, recording)
        return ((value, more) if has_aux else value), gradient

    return differentiating


def grad_of(f: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
    """`gpunet.grad` of a function: as `value_and_grad`, without the value (with has_aux: (gradient, more))."""
    both = _value_and_grad("grad", f, argnums, has_aux)

    @wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """What `f` returns, and the function that takes gradients back through it: reverse mode.

        y, pullback = gn.vjp(f, x)
        (gx,) = pullback(gy)

    Args:
        f: takes and returns Tensors, or tuples, lists and dicts of them.
        primals: its arguments.
        has_aux: `f` returns a pair: the outputs, and something else to be passed on.

    Returns:
        (outputs, pullback), and with has_aux the third thing. pullback takes one value, nested as the outputs are, of
        Tensors of their shapes, and returns a tuple with a gradient for each of `primals`, nested as that is: the
        products of the gradients with the Jacobian (its conjugate transpose, of complex numbers). It can be called any
        number of times; the graph is kept as long as it is.

    Raises:
        DTypeError: an argument is not floating-point, or `f` returns something else than Tensors.
    """
    recording, since = is_grad_enabled(), autograd._clock()
    with enable_grad():
        arguments = Arguments("vjp", primals, tuple(range(len(primals))))
        result, more = _with_aux("vjp", f(*arguments.values), has_aux)
        outputs, structure = outputs_of("vjp", result)
    record = recording and reaches_outside(outputs, since)

    def pullback(gradients: Any) -> tuple[Any, ...]:
        gs, given = trees.flatten(gradients)
        if given != structure:
            raise ValueError(
                f"vjp: the gradients are nested as {trees.describe(given)}, the outputs as {trees.describe(structure)}"
            )
        gs = [_gradient_for(y, g) for y, g in zip(outputs, gs)]
        kept = record or (is_grad_enabled() and any(g.requires_grad for g in gs))
        with enable_grad():
            found = differentiated(outputs, arguments.inputs, gs, create_graph=kept, retain_graph=True)
            return arguments.nested(found)

    seen = settled((result, more), since, recording)
    return (seen[0], pullback, seen[1]) if has_aux else (seen[0], pullback)


def _gradient_for(y: Tensor, g: Any) -> Tensor:
    g = g if isinstance(g, Tensor) else asarray(g, dtype=y.dtype, device=y.device)
    if g.shape != y.shape:
        raise ShapeError(f"vjp: the gradient of an output of shape {y.shape} must have that shape, got {g.shape}")
    return g if g.dtype == y.dtype else g.astype(y.dtype)


def jacobian(f: Callable[..., Any], argnums: Any = 0, mode: str = "reverse") -> Callable[..., Any]:
    """A function that returns the Jacobian of `f`: the derivative of each element of its result by each of an argument.

    Args:
        f: takes and returns Tensors, or tuples, lists and dicts of them.
        argnums: which argument to differentiate with respect to, by its number, or a tuple of several.
        mode: "reverse" walks back through `f` once for each element of the result, which is quick where there are few
            of these. "forward" runs `f` once with an axis of directions, one for each element of the argument, as
            `vmap` of `jvp` does; it is quick, and takes that much more memory, where there are few of those.

    Returns:
        A function of the arguments of `f`. What it returns is nested as the result of `f`, and in place of each Tensor
        of shape S it has, nested as the argument, Tensors of shape (*S, *shape of the Tensor in the argument). Of a
        complex argument, `f` must be holomorphic: the entries are its complex derivatives.

    Raises:
        ValueError: another mode, or no such argument.
        DTypeError: the argument is not floating-point, or it is complex and a result is not.
    """
    if mode not in ("reverse", "forward"):
        raise ValueError(f'jacobian: expected the mode "reverse" or "forward", got {mode!r}')
    if not callable(f):
        raise TypeError(f"jacobian: expected a function, got {f!r}")
    compute = _jacobian_by_rows if mode == "reverse" else _jacobian_by_columns

    @wraps(f)
    def derivative(*args: Any, **kwargs: Any) -> Any:
        return compute(f, argnums, args, kwargs)

    return derivative


def _check_holomorphic(x: Tensor, y: Tensor) -> None:
    if x.dtype.kind == "c" and y.dtype.kind != "c":
        raise DTypeError(
            f"jacobian: of a complex argument, the result must be complex too, and holomorphic, got {y.dtype}; use "
            "gpunet.grad or gpunet.vjp for a real function of complex numbers"
        )


def _jacobian_by_rows(f: Callable[..., Any], argnums: Any, args: Any, kwargs: Any) -> Any:
    recording, since = is_grad_enabled(), autograd._clock()
    with enable_grad():
        arguments = Arguments("jacobian", args, argnums)
        outputs, structure = outputs_of("jacobian", f(*arguments.values, **kwargs))
        record = recording and reaches_outside(outputs, since)
        blocks = []
        for y in outputs:
            for x in arguments.inputs:
                _check_holomorphic(x, y)
            rows = _rows(y, arguments.inputs, 1.0, record)
            if y.dtype.kind == "c":
                mixed = any(x.dtype.kind != "c" for x in arguments.inputs)
                imaginary = _rows(y, arguments.inputs, 1j, record) if mixed else rows
                rows = [
                    conj(a) if x.dtype.kind == "c" else a + 1j * b for x, a, b in zip(arguments.inputs, rows, imaginary)
                ]
            blocks.append(trees.unflatten(arguments.structure, rows))
    return trees.unflatten(structure, blocks)


def _rows(y: Tensor, inputs: Sequence[Tensor], seed: Any, record: bool) -> list[Tensor]:
    """For each input, the gradients of all elements of y, of shape (*y.shape, *x.shape)."""
    seeds = eye(y.size, dtype=y.dtype, device=y.device) * seed
    found = []
    for i in range(y.size):
        row = differentiated([y], inputs, [reshape(seeds[i], shape=y.shape)], create_graph=record, retain_graph=True)
        found.append([zeros_like(x) if g is None else g for x, g in zip(inputs, row)])
    if not found:
        return [zeros((*y.shape, *x.shape), dtype=x.dtype, device=x.device) for x in inputs]
    columns = [stack(column, axis=0) for column in zip(*found)]
    return [reshape(g, shape=(*y.shape, *x.shape)) for g, x in zip(columns, inputs)]


def _jacobian_by_columns(f: Callable[..., Any], argnums: Any, args: Any, kwargs: Any) -> Any:
    from gpunet.transforms.forward import jvp

    single = hasattr(argnums, "__index__")
    places = [argnums] if single else list(argnums)
    if any(not -len(args) <= i < len(args) for i in places):
        raise ValueError(f"jacobian: argnums is {argnums!r}, and the function was given {len(args)} arguments")
    leaves, structure = trees.flatten(args[places[0]] if single else tuple(args[i] for i in places))
    leaves = [differentiable("jacobian", leaf) for leaf in leaves]

    def along(i: int, direction: Tensor) -> Any:
        def of(x: Tensor) -> Any:
            chosen = trees.unflatten(structure, [*leaves[:i], x, *leaves[i + 1 :]])
            values = list(args)
            for place, value in zip(places, [chosen] if single else chosen):
                values[place] = value
            return f(*values, **kwargs)

        return jvp(of, (leaves[i],), (direction,))[1]

    columns = []
    for i, x in enumerate(leaves):
        n = max(x.size, 1)  # of an empty argument, one direction that leads nowhere
        directions = reshape(eye(n, x.size, dtype=x.dtype, device=x.device), shape=(n, *x.shape))
        found, nested = outputs_of("jacobian", batching.vmap(partial(along, i), out_axes=-1)(directions))
        for y in found:
            _check_holomorphic(x, y)
        columns.append([reshape(y[..., : x.size], shape=(*y.shape[:-1], *x.shape)) for y in found])
    if not leaves:
        raise ValueError("jacobian: there is nothing in the arguments to differentiate with respect to")
    return trees.unflatten(nested, [trees.unflatten(structure, list(row)) for row in zip(*columns)])


def hessian(f: Callable[..., Any], argnums: Any = 0) -> Callable[..., Any]:
    """A function that returns the second derivatives of `f`, a function to a real scalar.

    Args:
        f: as of `value_and_grad`.
        argnums: which argument to differentiate with respect to, by its number, or a tuple of several.

    Returns:
        A function of the arguments of `f`: for an argument of shape S, a Tensor of shape (*S, *S); for nested ones,
        nested twice. It is the Jacobian, by forward mode, of the gradient, by reverse mode.

    Raises:
        GradientError, DTypeError, ValueError: as of `value_and_grad` and `jacobian`.
    """
    return jacobian(grad_of(f, argnums), argnums, mode="forward")
