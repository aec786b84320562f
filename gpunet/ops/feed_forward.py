"""Linear layers with activations between them, as one op: each product finishes what stands around it.

Forward, a layer's product adds the bias and applies the activation as it stores its result. Backward, the product that
makes the gradient of a layer's output multiplies it by the activation's derivative as it stores it. So on a device with
kernels, nothing but products goes through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

from gpunet.errors import ShapeError
from gpunet.ops import elementwise as ew
from gpunet.ops import gemm
from gpunet.ops.matmul import check_linear, launch_linear, linear, matmul
from gpunet.ops.op import Traced, op
from gpunet.ops.reduce import sum
from gpunet.ops.shape import reshape

_ACTIVATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "relu": (ew.relu, {}),
    "gelu": (ew.gelu, {"approximate": "none"}),
    "gelu_tanh": (ew.gelu, {"approximate": "tanh"}),
    "silu": (ew.silu, {}),
}


@op
def feed_forward(xp, x, *parameters, activation):
    """Linear maps one after another, with an activation between each two.

    Args:
        x: (..., features).
        parameters: weight and bias of each layer in turn: (out_features, in_features) and (out_features,), or None.
        activation: "relu", "gelu", "gelu_tanh" or "silu".

    Returns:
        The last layer's output (..., out_features); and, for the derivative, what each other layer gave before and
        after the activation (after it only, for "relu").

    Raises:
        ShapeError: a layer does not fit the one before it, or x.
    """
    return _run(x, parameters, activation, _layer)


def _layer(x: Any, weight: Any, bias: Any, activation: str) -> tuple[Any, Any]:
    """A layer's output before and after the activation."""
    function, options = _ACTIVATIONS[activation]
    v = linear(x, weight, bias)
    return v, function(v, **options)


def _run(x: Any, parameters: tuple[Any, ...], activation: str, layer: Callable[..., Any]) -> tuple[Any, ...]:
    if not parameters or len(parameters) % 2:
        raise ShapeError(f"feed_forward: expected a weight and a bias for each layer, got {len(parameters)} arrays")
    kept: list[Any] = []
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2]):
        check_linear("feed_forward", x, weight, bias)
        v, x = layer(x, weight, bias, activation)
        kept += [x] if activation == "relu" else [v, x]
    return linear(x, *parameters[-2:]), *kept


@feed_forward.kernel("matmul")
def _(launcher, x, *parameters, activation):
    def layer(x: Any, weight: Any, bias: Any, activation: str) -> tuple[Any, Any]:
        v = None if activation == "relu" else launcher.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
        y = launch_linear(launcher, x, weight, bias, activation=activation, aux=v)
        return _layer(x, weight, bias, activation) if y is NotImplemented else (v, y)

    return _run(x, parameters, activation, layer)


@feed_forward.vjp
def _(xp, gs, ys, x, *parameters, activation):
    weights, biases = parameters[::2], parameters[1::2]
    last = len(weights) - 1
    per_layer = 1 if activation == "relu" else 2
    before, after = ys[1::per_layer], ys[per_layer::per_layer]  # the activations; for relu, both are after
    inputs = (x, *after)

    @cache
    def delta(i: int) -> Any:
        """The gradient with respect to what layer i gives before its activation; None if it has no influence."""
        if i == last:
            return gs[0]
        above = delta(i + 1)
        own = gs[1 + per_layer * i : 1 + per_layer * (i + 1)]  # of the kept outputs, which second derivatives use
        if above is not None and not isinstance(above, Traced) and all(g is None for g in own):
            return product_slope(above, weights[i + 1], before[i], activation=activation)
        g = _sum_of(None if above is None else matmul(above, weights[i + 1]), own[-1])
        if g is not None:
            function, options = _ACTIVATIONS[activation]
            g = function.derivative(xp, g, after[i], before[i], **options)
        return g if per_layer == 1 else _sum_of(g, own[0])

    def rows(a: Any) -> Any:
        return a if a.ndim == 2 else reshape(a, shape=(-1, a.shape[-1]))

    def gradients(i: int) -> tuple[Any, Any]:
        if delta(i) is None:
            return None, None
        return (
            lambda: matmul(rows(delta(i)).T, rows(inputs[i])),
            None if biases[i] is None else lambda: sum(rows(delta(i)), axis=0),
        )

    return lambda: matmul(delta(0), weights[0]), *chain.from_iterable(map(gradients, range(last + 1)))


def _sum_of(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


@op
def product_slope(xp, g, weight, before, *, activation):
    """(g @ weight) times the activation's derivative at `before`: a gradient on its way back through two layers.

    Args:
        g: (..., out_features).
        weight: (out_features, in_features).
        before: (..., in_features), what the activation was applied to; for "relu", what it gave serves too.
        activation: as in `feed_forward`.
    """
    function, options = _ACTIVATIONS[activation]
    return function.derivative(xp, matmul(g, weight), before, before, **options)


@product_slope.kernel("matmul")
def _(launcher, g, weight, before, *, activation):
    if not before.flags.c_contiguous or before.dtype != g.dtype:
        return NotImplemented
    return gemm.multiply(launcher, g, weight, aux=before, activation=activation, derivative=True)
