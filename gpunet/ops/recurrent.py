"""Recurrent networks: one direction of one layer over a whole sequence, as one op for each type of cell.

What the steps get from their inputs is computed before, by `linear`, for all of them at once: it arrives here as
`inputs`. What a step gets from the state before it is a product within the step. Backward, too, only the gradient of
the state goes from step to step; those of the weights are one product each, at the end.

Each gradient is an op of its own, which runs on raw arrays. To be differentiated again it runs, the same words, on
Tensors: it needs nothing but arguments and results of the op, all of which are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from struct import Struct
from typing import Any

import numpy as np

from gpunet.backends import threads
from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.dtypes import accumulation_dtype, float32, float64
from gpunet.errors import ShapeError
from gpunet.ops import gemm, launch
from gpunet.ops.elementwise import relu, relu_grad, sigmoid, tanh, tanh_grad
from gpunet.ops.matmul import matmul
from gpunet.ops.op import Op, Traced, op
from gpunet.ops.reduce import sum
from gpunet.ops.shape import astype, concat, reshape, stack


def _steps(length: int, reverse: bool) -> range:
    """The steps in the order in which a layer takes them."""
    return range(length - 1, -1, -1) if reverse else range(length)


def _wide(a: Any) -> Any:
    """float16 as float32, in which all is computed; anything else as it is."""
    return a if a is None else _as(accumulation_dtype(a.dtype), a)


def _as(dtype: Any, a: Any) -> Any:
    return a if a.dtype == dtype else astype(a, dtype=dtype)


def _parts(a: Any, count: int) -> tuple[Any, ...]:
    """The gates, which lie side by side along the last axis."""
    n = a.shape[-1] // count
    return tuple(a[..., k * n : (k + 1) * n] for k in range(count))


def _in_order(steps: dict[int, Any]) -> Any:
    """What was found for each step, along a first axis."""
    return stack([steps[t] for t in range(len(steps))])


def _check(name: str, inputs: Any, weight: Any, gates: int, projection: Any = None, **others: Any) -> None:
    """Raise ShapeError, in the name of an op, if its arguments do not fit each other.

    Args:
        others: the state before the first step, h and perhaps c, and the bias; each may be None.
    """
    features = weight.shape[-1]
    units = features if projection is None else projection.shape[-1]
    if weight.ndim != 2 or weight.shape[0] != gates * units:
        raise ShapeError(f"{name}: expected a weight of shape ({gates} * H, H), got {tuple(weight.shape)}")
    if inputs.ndim != 3 or not inputs.shape[0] or inputs.shape[2] != gates * units:
        raise ShapeError(
            f"{name}: a weight of shape {tuple(weight.shape)} takes inputs (T, B, {gates * units}) of at least one "
            f"step, got {tuple(inputs.shape)}"
        )
    batch = inputs.shape[1]
    wanted = {"h": (batch, features), "c": (batch, units), "bias": (gates * units,)}
    for what, a in others.items():
        if a is not None and tuple(a.shape) != wanted[what]:
            raise ShapeError(f"{name}: expected {what} of shape {wanted[what]}, got {tuple(a.shape)}")


def _state(xp: Any, state: Any, inputs: Any, size: int) -> Any:
    """The state before the first step, (B, size)."""
    return xp.zeros_like(inputs[0][:, :size]) if state is None else state


def _plus(a: Any, b: Any, t: int | None = None) -> Any:
    """a + b, or a + b[t], where b may be None for zeros."""
    return a if b is None else a + (b if t is None else b[t])


def _differentiate(gradient: Op, xp: Any, gs: tuple[Any, ...], *args: Any, **params: Any) -> Any:
    """What computes, once, the gradients that the op `gradient` gives: on Tensors, so that it is recorded, if need be.

    Args:
        gs: those of the results, None for zeros.
    """
    run = partial(gradient.reference, xp) if any(isinstance(g, Traced) for g in gs) else gradient
    return cache(lambda: run(*gs, *args, **params))


def _weight_gradient(d: Any, h: Any, hs: Any, reverse: bool) -> Any:
    """The gradient of the weight, given that of the products (T, B, n * H): the sum of dᵀ @ state over all steps, in
    the dtype of d."""

    def product(d: Any, state: Any) -> Any:
        return matmul(reshape(d, shape=(-1, d.shape[-1])).T, reshape(state, shape=(-1, state.shape[-1])))

    hs, h = _as(d.dtype, hs), None if h is None else _as(d.dtype, h)
    if len(d) == 1 and h is not None:
        return product(d, h)
    later = product(d[:-1], hs[1:]) if reverse else product(d[1:], hs[:-1])
    return later if h is None else later + product(d[-1 if reverse else 0], h)


def _over_steps(d: Any) -> Any:
    """The gradient of the bias, likewise."""
    return sum(reshape(d, shape=(-1, d.shape[-1])), axis=0)


# --- LSTM


@op
def lstm(xp, inputs, h, c, weight, bias=None, *, reverse=False):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), with forget gates (Gers et al., 2000).

        (i, f, g, o) = inputs[t] + h @ weightᵀ + bias
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)

    Args:
        inputs: (T, B, 4H), what each step gets from its input.
        h, c: (B, H), the state before the first step; None for zeros.
        weight: (4H, H).
        bias: (4H,), or None.
        reverse: go from the last step to the first.

    Returns:
        h after each step (T, B, H), c after each step (T, B, H), and the gates after their activations (T, B, 4H). Of
        float16, the latter two are float32, in which all is computed.

    Raises:
        ShapeError: the arguments do not fit each other.
    """
    return projected_lstm(xp, inputs, h, c, weight, bias, None, reverse=reverse)


def projected_lstm(
    xp: Any, inputs: Any, h: Any, c: Any, weight: Any, bias: Any, projection: Any, *, reverse: bool = False
) -> tuple[Any, Any, Any]:
    """`lstm` as it is composed of other ops. With a projection (P, H), h becomes h @ projectionᵀ, of P features, at the
    end of each step (Sak, Senior and Beaufays, 2014), and the weight is (4H, P).
    """
    _check("lstm", inputs, weight, 4, projection, h=h, c=c, bias=bias)
    dtype, inputs, weight, bias, projection = inputs.dtype, *map(_wide, (inputs, weight, bias, projection))
    h = _state(xp, _wide(h), inputs, weight.shape[1])
    c = _state(xp, _wide(c), inputs, weight.shape[0] // 4)
    hs, cs, gates = {}, {}, {}
    for t in _steps(inputs.shape[0], reverse):
        i, f, g, o = _parts(_plus(inputs[t] + matmul(h, weight.T), bias), 4)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * tanh(c)
        if projection is not None:
            h = matmul(h, projection.T)
        hs[t], cs[t], gates[t] = h, c, concat([i, f, g, o], axis=-1)
    return _as(dtype, _in_order(hs)), _in_order(cs), _in_order(gates)


@lstm.vjp
def _(xp, gs, ys, _inputs, h, c, weight, _bias, *, reverse):
    hs, cs, gates = ys
    found = _differentiate(lstm_grad, xp, gs, cs, gates, c, weight, reverse=reverse)
    return (
        lambda: found()[0],
        lambda: found()[1],
        lambda: found()[2],
        lambda: _weight_gradient(found()[0], h, hs, reverse),
        lambda: _over_steps(found()[0]),
    )


@op
def lstm_grad(xp, g_hs, g_cs, g_gates, cs, gates, c, weight, *, reverse):
    """The gradients of `lstm` with respect to its inputs, h and c. Not differentiable.

    Args:
        g_hs, g_cs, g_gates: the gradients of what it returned; None for zeros.
        cs, gates, c, weight: what it returned and was given.
    """
    g_hs, weight, c = _wide(g_hs), _wide(weight), _state(xp, _wide(c), cs, cs.shape[2])
    dh = dc = xp.zeros_like(c)
    order = _steps(len(cs), reverse)
    ds = {}
    for n in reversed(range(len(order))):
        t = order[n]
        before = cs[order[n - 1]] if n else c
        i, f, g, o = _parts(gates[t], 4)
        tanh_c = tanh(cs[t])
        dh = _plus(dh, g_hs, t)
        dc = _plus(dc, g_cs, t) + dh * o * (1.0 - tanh_c * tanh_c)
        d = _plus(concat([dc * g, dc * before, dc * i, dh * tanh_c], axis=-1), g_gates, t)
        di, df, dg, do = _parts(d, 4)
        ds[t] = concat([di * i * (1.0 - i), df * f * (1.0 - f), dg * (1.0 - g * g), do * o * (1.0 - o)], axis=-1)
        dh, dc = matmul(ds[t], weight), dc * f
    return _in_order(ds), dh, dc


# --- GRU


@op
def gru(xp, inputs, h, weight, bias=None, *, reverse=False):
    """The gated recurrent unit (Cho et al., 2014), with the reset gate applied after the product, as in PyTorch.

        (p, q, s) = h @ weightᵀ + bias
        r = sigmoid(inputs_r[t] + p)
        z = sigmoid(inputs_z[t] + q)
        n = tanh(inputs_n[t] + r * s)
        h = (1 - z) * n + z * h

    Args:
        inputs: (T, B, 3H), what each step gets from its input: for r, z and n, side by side.
        h: (B, H), the state before the first step; None for zeros.
        weight: (3H, H).
        bias: (3H,), or None.
        reverse: go from the last step to the first.

    Returns:
        h after each step (T, B, H); and r, z, n and s (T, B, 4H), which of float16 are float32, in which all is
        computed.

    Raises:
        ShapeError: the arguments do not fit each other.
    """
    _check("gru", inputs, weight, 3, h=h, bias=bias)
    dtype, inputs, weight, bias = inputs.dtype, *map(_wide, (inputs, weight, bias))
    h = _state(xp, _wide(h), inputs, weight.shape[1])
    hs, gates = {}, {}
    for t in _steps(inputs.shape[0], reverse):
        a, b, n = _parts(inputs[t], 3)
        p, q, s = _parts(_plus(matmul(h, weight.T), bias), 3)
        r, z = sigmoid(a + p), sigmoid(b + q)
        n = tanh(n + r * s)
        h = n + z * (h - n)
        hs[t], gates[t] = h, concat([r, z, n, s], axis=-1)
    return _as(dtype, _in_order(hs)), _in_order(gates)


@gru.vjp
def _(xp, gs, ys, _inputs, h, weight, _bias, *, reverse):
    hs, gates = ys
    found = _differentiate(gru_grad, xp, gs, hs, gates, h, weight, reverse=reverse)
    return (
        lambda: found()[0],
        lambda: found()[2],
        lambda: _weight_gradient(found()[1], h, hs, reverse),
        lambda: _over_steps(found()[1]),
    )


@op
def gru_grad(xp, g_hs, g_gates, hs, gates, h, weight, *, reverse):
    """The gradients of `gru` with respect to its inputs, to h @ weightᵀ + bias, and to h. Not differentiable.

    Args:
        g_hs, g_gates: the gradients of what it returned; None for zeros.
        hs, gates, h, weight: what it returned and was given.
    """
    g_hs, hs, weight = map(_wide, (g_hs, hs, weight))
    h = _state(xp, _wide(h), gates, weight.shape[1])
    dh = xp.zeros_like(h)
    order = _steps(len(gates), reverse)
    to_inputs, to_products = {}, {}
    for step in reversed(range(len(order))):
        t = order[step]
        before = hs[order[step - 1]] if step else h
        r, z, n, s = _parts(gates[t], 4)
        dh = _plus(dh, g_hs, t)
        dn, dz = dh * (1.0 - z), dh * (before - n)
        dr = ds = xp.zeros_like(dh)
        if g_gates is not None:
            g_r, g_z, g_n, ds = _parts(g_gates[t], 4)
            dr, dz, dn = g_r, dz + g_z, dn + g_n
        dn = dn * (1.0 - n * n)
        dr = (dr + dn * s) * r * (1.0 - r)
        dz = dz * z * (1.0 - z)
        to_inputs[t] = concat([dr, dz, dn], axis=-1)
        to_products[t] = concat([dr, dz, ds + dn * r], axis=-1)
        dh = dh * z + matmul(to_products[t], weight)
    return _in_order(to_inputs), _in_order(to_products), dh


# --- the plain network


@op
def rnn(xp, inputs, h, weight, bias=None, *, activation="tanh", reverse=False):
    """The plain recurrent network (Elman, 1990): h = activation(inputs[t] + h @ weightᵀ + bias).

    Args:
        inputs: (T, B, H), what each step gets from its input.
        h: (B, H), the state before the first step; None for zeros.
        weight: (H, H).
        bias: (H,), or None.
        activation: "tanh" or "relu".
        reverse: go from the last step to the first.

    Returns:
        h after each step (T, B, H).

    Raises:
        ShapeError: the arguments do not fit each other.
    """
    _check("rnn", inputs, weight, 1, h=h, bias=bias)
    dtype, inputs, weight, bias = inputs.dtype, *map(_wide, (inputs, weight, bias))
    function = tanh if activation == "tanh" else relu
    h = _state(xp, _wide(h), inputs, weight.shape[1])
    hs = {}
    for t in _steps(inputs.shape[0], reverse):
        h = hs[t] = function(_plus(inputs[t] + matmul(h, weight.T), bias))
    return _as(dtype, _in_order(hs))


@rnn.vjp
def _(xp, g, hs, _inputs, h, weight, _bias, *, activation, reverse):
    found = _differentiate(rnn_grad, xp, (g,), hs, h, weight, activation=activation, reverse=reverse)
    return (
        lambda: found()[0],
        lambda: found()[1],
        lambda: _weight_gradient(found()[0], h, hs, reverse),
        lambda: _over_steps(found()[0]),
    )


@op
def rnn_grad(xp, g, hs, h, weight, *, activation, reverse):
    """The gradients of `rnn` with respect to its inputs and h, given that of its result. Not differentiable.

    Args:
        hs, h, weight: what it returned and was given.
    """
    g, hs, weight = map(_wide, (g, hs, weight))
    dh = xp.zeros_like(_state(xp, _wide(h), hs, weight.shape[1]))
    slope = tanh_grad.reference if activation == "tanh" else relu_grad.reference
    ds = {}
    for t in reversed(_steps(len(hs), reverse)):
        ds[t] = slope(xp, dh + g[t], hs[t])
        dh = matmul(ds[t], weight)
    return _in_order(ds), dh


# --- kernels of the CPU


def _are_float32(*arrays: Any) -> bool:
    return all(a is None or a.dtype == float32 for a in arrays)


def _fit(gates: int, inputs: Any, *states: Any, weight: Any, bias: Any) -> bool:
    """Whether the CPU's kernels take the arguments of an op; where shapes do not fit, the reference says so."""
    units = weight.shape[-1]
    return (
        inputs.size > 0
        and _are_float32(inputs, *states, weight, bias)
        and weight.shape == (gates * units, units)
        and inputs.shape[2:] == weight.shape[:1]
        and all(state is None or state.shape == (inputs.shape[1], units) for state in states)
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _dense(*arrays: Any) -> tuple[Any, ...]:
    return tuple(a if a is None or a.flags.c_contiguous else np.ascontiguousarray(a) for a in arrays)


def _first_product(inputs: np.ndarray, h: Any, weight: np.ndarray) -> tuple[np.ndarray, Any]:
    """Inputs and state for a kernel that only adds its products to the inputs. For a single step the weight is not
    worth packing: the product is here already, and no state is left.
    """
    if h is None or len(inputs) > 1:
        return inputs, h
    product = threads.matmul(h, weight.T)
    product += inputs[0]
    return product[None], None


def _packed_for(native: Any, inputs: np.ndarray, h: Any, weight: np.ndarray, gates: int) -> np.ndarray | None:
    """As `_packed`, if there is any state to multiply."""
    return None if h is None and len(inputs) == 1 else _packed(native, weight, gates)


def _packed(native: Any, weight: np.ndarray, gates: int) -> np.ndarray:
    """The weight as the kernels' products of states take it: `gates` vectors of each unit; 0: as those of gradients."""
    packed = np.empty(native.packed_size(weight), float32)
    native.pack(weight, packed, gates)
    return packed


def _split(work: Any, batch: int, length: int, weight: np.ndarray) -> None:
    """Run a kernel for ranges of the batch; 40 multiplications count as much as a number that is read or written."""
    threads.split(batch, work, batch * length * weight.size // 40)


@lstm.kernel(
    "recurrent",
    platform="cpu",
    when=lambda inputs, h, c, weight, bias, **_: _fit(4, inputs, h, c, weight=weight, bias=bias),
)
def _(native, inputs, h, c, weight, bias, *, reverse):
    inputs, h, c, weight, bias = _dense(*_first_product(inputs, h, weight), c, weight, bias)
    length, batch, _gates = inputs.shape
    units = weight.shape[1]
    hs, cs = np.empty((length, batch, units), float32), np.empty((length, batch, units), float32)
    gates = np.empty_like(inputs)
    packed = _packed_for(native, inputs, h, weight, 4)
    work = partial(native.lstm, inputs, h, c, bias, packed, hs, cs, gates, reverse)
    _split(work, batch, length, weight)
    return hs, cs, gates


@lstm_grad.kernel(
    "recurrent",
    platform="cpu",
    when=lambda g_hs, g_cs, g_gates, cs, *arrays, **_: (
        cs.size > 0 and g_gates is None and _are_float32(g_hs, g_cs, cs, *arrays)
    ),
)
def _(native, g_hs, g_cs, _g_gates, cs, gates, c, weight, *, reverse):
    g_hs, g_cs, cs, gates, c, weight = _dense(g_hs, g_cs, cs, gates, c, weight)
    length, batch, units = cs.shape
    d, dh, dc = np.empty_like(gates), np.empty((batch, units), float32), np.empty((batch, units), float32)
    work = partial(native.lstm_grad, g_hs, g_cs, cs, gates, c, _packed(native, weight, 0), d, dh, dc, reverse)
    _split(work, batch, length, weight)
    return d, dh, dc


@gru.kernel(
    "recurrent", platform="cpu", when=lambda inputs, h, weight, bias, **_: _fit(3, inputs, h, weight=weight, bias=bias)
)
def _(native, inputs, h, weight, bias, *, reverse):
    inputs, h, weight, bias = _dense(inputs, h, weight, bias)
    length, batch, _gates = inputs.shape
    units = weight.shape[1]
    hs, gates = np.empty((length, batch, units), float32), np.empty((length, batch, 4 * units), float32)
    packed = _packed_for(native, inputs, h, weight, 3)
    _split(partial(native.gru, inputs, h, bias, packed, hs, gates, reverse), batch, length, weight)
    return hs, gates


@gru_grad.kernel(
    "recurrent",
    platform="cpu",
    when=lambda g_hs, g_gates, hs, *arrays, **_: (
        hs.size > 0 and g_hs is not None and g_gates is None and _are_float32(g_hs, hs, *arrays)
    ),
)
def _(native, g_hs, _g_gates, hs, gates, h, weight, *, reverse):
    g_hs, hs, gates, h, weight = _dense(g_hs, hs, gates, h, weight)
    length, batch, units = hs.shape
    to_inputs, to_products = (np.empty((length, batch, 3 * units), float32) for _ in range(2))
    dh = np.empty((batch, units), float32)
    work = partial(native.gru_grad, g_hs, hs, gates, h, _packed(native, weight, 0), to_inputs, to_products, dh, reverse)
    _split(work, batch, length, weight)
    return to_inputs, to_products, dh


@rnn.kernel(
    "recurrent", platform="cpu", when=lambda inputs, h, weight, bias, **_: _fit(1, inputs, h, weight=weight, bias=bias)
)
def _(native, inputs, h, weight, bias, *, activation, reverse):
    inputs, h, weight, bias = _dense(*_first_product(inputs, h, weight), weight, bias)
    length, batch, _units = inputs.shape
    hs = np.empty_like(inputs)
    packed = _packed_for(native, inputs, h, weight, 1)
    work = partial(native.rnn, inputs, h, bias, packed, hs, activation == "relu", reverse)
    _split(work, batch, length, weight)
    return hs


@rnn_grad.kernel("recurrent", platform="cpu", when=lambda g, *arrays, **_: g.size > 0 and _are_float32(g, *arrays))
def _(native, g, hs, _h, weight, *, activation, reverse):
    g, hs, weight = _dense(g, hs, weight)
    length, batch, units = hs.shape
    d, dh = np.empty_like(hs), np.empty((batch, units), float32)
    work = partial(native.rnn_grad, g, hs, _packed(native, weight, 0), d, dh, activation == "relu", reverse)
    _split(work, batch, length, weight)
    return d, dh


# --- kernels of CUDA

# For each kernel of kernels/recurrent.cu: how many arrays it takes, and whether an activation is to be chosen.
_STEPS = {
    "lstm": (6, False),
    "lstm_grad": (10, False),
    "gru": (7, False),
    "gru_grad": (9, False),
    "rnn": (3, True),
    "rnn_grad": (4, True),
}


def _step_kernel(
    launcher: Launcher, name: str, dtype: Any, batch: int, units: int, arrays: tuple[Any, ...], relu: bool = False
) -> Callable[..., None]:
    """What launches the kernel of that name for one step, on arrays (None for those that are not there) that are
    contiguous.

    Args:
        arrays: those given to the op, or made for it, whose steps it will be called on.
    """
    pointer = launcher.pointer
    vector = 2 if dtype == float64 else 4
    if units % vector or any(a is not None and pointer(a) % 16 for a in arrays):
        vector = 1
    count, chooses = _STEPS[name]
    variant = _variant(name, dtype.name, vector)
    form, rest = Struct(f"{count}P2i{'i4x' if chooses else ''}"), (batch, units, *((relu,) if chooses else ()))
    grid = launch.grid_of(launcher, batch * units // vector, 256)

    def run(*step: Any) -> None:
        launcher.launch(variant, grid, form.pack(*(0 if a is None else pointer(a) for a in step), *rest))

    return run


@cache
def _variant(name: str, dtype: str, vector: int) -> Variant:
    instructions = (r"LDG\S*128", r"STG\S*128") if vector > 1 and name != "rnn" and dtype[-2:] != "16" else ()
    return Variant(
        "recurrent", f"{name}_step<{launch.NUMBERS[dtype]}, {vector}>", 256, registers=128, instructions=instructions
    )


@register_variants
def _variants() -> Iterable[Variant]:
    for name in _STEPS:
        for dtype in launch.FLOATING:
            yield _variant(name, dtype, 2 if dtype == "float64" else 4)
        yield _variant(name, "float32", 1)


def _fit_kernels(batch: int, units: int, dtype: Any, same: tuple[Any, ...], wide: tuple[Any, ...]) -> bool:
    """Whether kernels take arrays that are to be of a dtype, and others that are to be of the one it is computed in."""
    computed = accumulation_dtype(dtype)
    return (
        dtype.name in launch.FLOATING
        and all(a is None or a.dtype == dtype for a in same)
        and all(a is None or a.dtype == computed for a in wide)
        and 4 * batch * units < 2**31
    )


def _laid_out(launcher: Launcher, dtype: Any, *arrays: Any) -> tuple[Any, ...]:
    """The arrays (or None) as contiguous ones of a dtype."""
    return tuple(
        a if a is None or (a.dtype == dtype and a.flags.c_contiguous) else launch.copy(launcher, a, dtype)
        for a in arrays
    )


def _plain_product(launcher: Launcher, a: Any, b: Any, out: Any) -> Any:
    """a @ b, in `out` or elsewhere."""
    product = gemm.multiply(launcher, a, b, out=out)
    return matmul(a, b) if product is NotImplemented else product


@lstm.kernel("recurrent")
def _(launcher, inputs, h, c, weight, bias, *, reverse):
    _check("lstm", inputs, weight, 4, h=h, c=c, bias=bias)
    (length, batch, _gates), units, dtype = inputs.shape, weight.shape[1], inputs.dtype
    if not _fit_kernels(batch, units, dtype, (h, c, weight, bias), ()):
        return NotImplemented
    wide = accumulation_dtype(dtype)
    inputs, h, bias = _laid_out(launcher, dtype, inputs, h, bias)
    (c,) = _laid_out(launcher, wide, c)
    hs, cs = launcher.empty((length, batch, units), dtype), launcher.empty((length, batch, units), wide)
    gates = launcher.empty(inputs.shape, wide)
    if not inputs.size:
        return hs, cs, gates
    step = _step_kernel(launcher, "lstm", dtype, batch, units, (inputs, bias, c))
    sums = launcher.empty(inputs.shape[1:], dtype)
    for t in _steps(length, reverse):
        if h is None:
            step(inputs[t], bias, c, hs[t], cs[t], gates[t])
        else:
            if gemm.multiply(launcher, h, weight.T, bias=bias, residual=inputs[t], out=sums) is NotImplemented:
                return NotImplemented
            step(sums, None, c, hs[t], cs[t], gates[t])
        h, c = hs[t], cs[t]
    return hs, cs, gates


@lstm_grad.kernel("recurrent")
def _(launcher, g_hs, g_cs, g_gates, cs, gates, c, weight, *, reverse):
    (length, batch, units), dtype = cs.shape, weight.dtype
    if not _fit_kernels(batch, units, dtype, (g_hs, c), (g_cs, g_gates, cs, gates)):
        return NotImplemented
    wide = accumulation_dtype(dtype)
    (g_hs,) = _laid_out(launcher, dtype, g_hs)
    g_cs, g_gates, cs, gates, c = _laid_out(launcher, wide, g_cs, g_gates, cs, gates, c)
    d, dc = launcher.empty(gates.shape, dtype), launcher.empty((batch, units), wide)
    product = launcher.empty((batch, units), dtype)
    if not cs.size:
        return d, product, dc
    step = _step_kernel(launcher, "lstm_grad", dtype, batch, units, (g_hs, g_cs, g_gates, cs, gates, c))
    order = _steps(length, reverse)
    dh = later = None
    for n in reversed(range(length)):
        t = order[n]
        before = cs[order[n - 1]] if n else c
        from_outside = (None if g is None else g[t] for g in (g_hs, g_cs, g_gates))
        step(gates[t], cs[t], before, dh, *from_outside, later, d[t], dc)
        dh, later = _plain_product(launcher, d[t], weight, product), dc
    return d, dh, dc


@gru.kernel("recurrent")
def _(launcher, inputs, h, weight, bias, *, reverse):
    _check("gru", inputs, weight, 3, h=h, bias=bias)
    (length, batch, _gates), units, dtype = inputs.shape, weight.shape[1], inputs.dtype
    if not _fit_kernels(batch, units, dtype, (h, weight, bias), ()):
        return NotImplemented
    wide = accumulation_dtype(dtype)
    inputs, h, bias = _laid_out(launcher, dtype, inputs, h, bias)
    hs, gates = launcher.empty((length, batch, units), dtype), launcher.empty((length, batch, 4 * units), wide)
    if not inputs.size:
        return hs, gates
    step = _step_kernel(launcher, "gru", dtype, batch, units, (inputs, bias, h))
    products = launcher.empty(inputs.shape[1:], dtype)
    # What goes from step to step is not rounded to half precision, or small changes would be lost.
    carried = launcher.empty((batch, units), wide) if dtype != wide else None
    (before,) = _laid_out(launcher, wide, h)
    for t in _steps(length, reverse):
        if h is None:
            step(inputs[t], None, bias, None, hs[t], carried, gates[t])
        else:
            found, added = gemm.multiply(launcher, h, weight.T, bias=bias, out=products), None
            if found is NotImplemented:
                found, added = matmul(h, weight.T), bias
            step(inputs[t], found, added, before, hs[t], carried, gates[t])
        h = hs[t]
        before = h if carried is None else carried
    return hs, gates


@gru_grad.kernel("recurrent")
def _(launcher, g_hs, g_gates, hs, gates, h, weight, *, reverse):
    (length, batch, units), dtype = hs.shape, weight.dtype
    if not _fit_kernels(batch, units, dtype, (g_hs, hs, h), (g_gates, gates)):
        return NotImplemented
    wide = accumulation_dtype(dtype)
    g_hs, hs, h = _laid_out(launcher, dtype, g_hs, hs, h)
    g_gates, gates = _laid_out(launcher, wide, g_gates, gates)
    to_inputs, to_products = (launcher.empty((length, batch, 3 * units), dtype) for _ in range(2))
    carried, product = launcher.empty((batch, units), wide), launcher.empty((batch, units), dtype)
    if not hs.size:
        return to_inputs, to_products, product
    step = _step_kernel(launcher, "gru_grad", dtype, batch, units, (g_hs, g_gates, hs, gates, h))
    order = _steps(length, reverse)
    found = later = None
    for n in reversed(range(length)):
        t = order[n]
        before = hs[order[n - 1]] if n else h
        from_outside = (None if g is None else g[t] for g in (g_hs, g_gates))
        step(gates[t], before, found, later, *from_outside, to_inputs[t], to_products[t], carried)
        later = carried
        if n:
            found = _plain_product(launcher, to_products[t], weight, product)
    (dh,) = _laid_out(launcher, dtype, carried)
    dh = gemm.multiply(launcher, to_products[order[0]], weight, beta=1.0, out=dh)
    return dh if dh is NotImplemented else (to_inputs, to_products, dh)


@rnn.kernel("recurrent")
def _(launcher, inputs, h, weight, bias, *, activation, reverse):
    _check("rnn", inputs, weight, 1, h=h, bias=bias)
    (length, batch, _units), units, dtype = inputs.shape, weight.shape[1], inputs.dtype
    if not _fit_kernels(batch, units, dtype, (h, weight, bias), ()):
        return NotImplemented
    inputs, h, bias = _laid_out(launcher, dtype, inputs, h, bias)
    hs = launcher.empty(inputs.shape, dtype)
    if not inputs.size:
        return hs
    step = _step_kernel(launcher, "rnn", dtype, batch, units, (inputs, bias), activation == "relu")
    for t in _steps(length, reverse):
        if h is None:
            step(inputs[t], bias, hs[t])
        else:
            if gemm.multiply(launcher, h, weight.T, bias=bias, residual=inputs[t], out=hs[t]) is NotImplemented:
                return NotImplemented
            step(hs[t], None, hs[t])
        h = hs[t]
    return hs


@rnn_grad.kernel("recurrent")
def _(launcher, g, hs, h, weight, *, activation, reverse):
    (length, batch, units), dtype = hs.shape, weight.dtype
    if not _fit_kernels(batch, units, dtype, (g, hs, h), ()):
        return NotImplemented
    g, hs = _laid_out(launcher, dtype, g, hs)
    d, product = launcher.empty(hs.shape, dtype), launcher.empty((batch, units), dtype)
    if not hs.size:
        return d, product
    step = _step_kernel(launcher, "rnn_grad", dtype, batch, units, (g, hs), activation == "relu")
    dh = None
    for t in reversed(_steps(length, reverse)):
        step(hs[t], dh, g[t], d[t])
        dh = _plain_product(launcher, d[t], weight, product)
    return d, dh
