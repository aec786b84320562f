"""The update rules of the optimizers, and what is done to all gradients at once.

A rule changes parameters and its state in place. It is given lists: 1-D arrays of parameters and 1-D arrays of their
gradients, all of one dtype and on one device. Each quantity of the state is a single 1-D array that holds the values of
all of these parameters one after the other (or None where the options do not call for it). Everything else is a number.
So a kernel launches once for all parameters, and a caller that keeps parameters or gradients in one buffer passes lists
of length one.

float16 parameters are updated in float32, in which their state is kept.

What changes from step to step may be in the device's memory, from where kernels read it at the time of the step, so
that a step can be recorded in a CUDA graph once and repeated with other values: the learning rate `lr`, a 0-d array of
float32 or float64; `step`, one of int64, which `count_step` advances; and `skip`, one of int32: where it is not 0, as
`unscale_and_check` leaves it where a gradient is not finite, a rule changes nothing. References wait for such arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from math import inf, sqrt
from struct import Struct
from typing import Any, NamedTuple

from gpunet.backends import backend_of_type, threads
from gpunet.backends.kernel import Launcher, Variant, register_variants
from gpunet.dtypes import accumulation_dtype, float64
from gpunet.ops import launch
from gpunet.ops.linalg import vector_norm
from gpunet.ops.op import op
from gpunet.ops.shape import astype, stack


def _in_one_pass(
    kernel: Callable[..., int], params: Sequence[Any], grads: Sequence[Any], state: tuple[Any, ...], numbers: Any
) -> Any:
    """Run a rule of kernels/cpu/optimizer.cpp; NotImplemented, before anything is changed, if the arrays do not fit."""
    ps, gs, size = tuple(params), tuple(grads), 0
    for p in ps:
        size += p.size
    if ps[0].dtype.char != "f":
        return NotImplemented
    if size < _SMALL:
        return None if kernel(ps, gs, *state, 0, size, *numbers) else NotImplemented
    fits = []
    threads.split(size, lambda start, stop: fits.append(kernel(ps, gs, *state, start, stop, *numbers)), 4 * size)
    return None if all(fits) else NotImplemented


_SMALL = 1_000_000  # elements that one thread updates about as fast as two, of which one has to be woken


@op
def sgd(
    xp, params, grads, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, maximize, first, skip=None
):  # fmt: skip
    """Stochastic gradient descent, with momentum as in Sutskever et al., 2013. `first`: the buffer is still empty."""
    if skip is not None and skip:
        return
    lr = float(lr)
    for p, g, buffer in _blocks(xp, params, grads, momentum_buffer, weight_decay=weight_decay, maximize=maximize):
        if buffer is not None:
            if first:
                buffer[...] = g
            else:
                buffer *= momentum
                buffer += g if dampening == 0 else (1.0 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        p -= lr * g


@sgd.kernel("optimizer", platform="cpu")
def _(
    native, params, grads, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, maximize, first, skip
):  # fmt: skip
    if skip is not None and skip:
        return None
    numbers = (float(lr), momentum, 1.0 - dampening, weight_decay, nesterov, maximize, first)
    return _in_one_pass(native.sgd, params, grads, (momentum_buffer,), numbers)


@op
def adam(
    xp, params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq, *, step, lr, beta1, beta2, eps, weight_decay, decoupled,
    maximize, skip=None,
):  # fmt: skip
    """Adam (Kingma and Ba, 2014); AMSGrad (Reddi et al., 2018) where there is max_exp_avg_sq; AdamW (Loshchilov and
    Hutter, 2017) where the weight decay is decoupled. `step` counts from 1.
    """
    if skip is not None and skip:
        return
    step, lr = int(step), float(lr)
    # Instead of the averages, the two numbers that are combined with them are corrected for the averages' bias:
    # lr / c1 * m / (sqrt(v / c2) + eps) = (lr * sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2))
    scale = sqrt(1.0 - beta2**step)
    rate = lr * scale / (1.0 - beta1**step)
    eps = eps * scale
    shrink = 1.0 - lr * weight_decay if decoupled else 1.0
    states = (exp_avg, exp_avg_sq, max_exp_avg_sq)
    for p, g, m, v, v_max in _blocks(
        xp, params, grads, *states, weight_decay=0.0 if decoupled else weight_decay, maximize=maximize
    ):
        if shrink != 1.0:
            p *= shrink
        s = g - m
        s *= 1.0 - beta1
        m += s
        xp.multiply(g, g, s)
        s *= 1.0 - beta2
        v *= beta2
        v += s
        if v_max is not None:
            v = xp.maximum(v_max, v, out=v_max)
        xp.sqrt(v, s)
        s += eps
        xp.divide(m, s, s)
        s *= rate
        p -= s


@adam.kernel("optimizer", platform="cpu")
def _(
    native, params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq, *, step, lr, beta1, beta2, eps, weight_decay, decoupled,
    maximize, skip,
):  # fmt: skip
    if skip is not None and skip:
        return None
    step, lr = int(step), float(lr)
    scale = sqrt(1.0 - beta2**step)
    rate = lr * scale / (1.0 - beta1**step)
    decay, shrink = (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    numbers = (rate, 1.0 - beta1, beta2, 1.0 - beta2, eps * scale, decay, shrink, maximize)
    return _in_one_pass(native.adam, params, grads, (exp_avg, exp_avg_sq, max_exp_avg_sq), numbers)


@op
def rmsprop(
    xp, params, grads, square_avg, grad_avg, momentum_buffer, *, lr, alpha, eps, weight_decay, momentum, maximize,
    skip=None,
):  # fmt: skip
    """RMSprop (Tieleman and Hinton, 2012), centred (Graves, 2013) where there is grad_avg."""
    if skip is not None and skip:
        return
    lr = float(lr)
    states = (square_avg, grad_avg, momentum_buffer)
    for p, g, v, mean, buffer in _blocks(xp, params, grads, *states, weight_decay=weight_decay, maximize=maximize):
        s = g * g
        s *= 1.0 - alpha
        v *= alpha
        v += s
        if mean is None:
            xp.sqrt(v, s)
        else:
            t = g - mean
            t *= 1.0 - alpha
            mean += t
            xp.multiply(mean, mean, s)
            xp.subtract(v, s, s)
            xp.maximum(s, 0.0, out=s)  # a variance, which rounding may have made negative
            xp.sqrt(s, s)
        s += eps
        xp.divide(g, s, s)
        if buffer is None:
            s *= lr
        else:
            buffer *= momentum
            buffer += s
            xp.multiply(buffer, lr, s)
        p -= s


@rmsprop.kernel("optimizer", platform="cpu")
def _(
    native, params, grads, square_avg, grad_avg, momentum_buffer, *, lr, alpha, eps, weight_decay, momentum, maximize,
    skip,
):  # fmt: skip
    if skip is not None and skip:
        return None
    numbers = (float(lr), alpha, 1.0 - alpha, eps, weight_decay, momentum, maximize)
    return _in_one_pass(native.rmsprop, params, grads, (square_avg, grad_avg, momentum_buffer), numbers)


@op
def adagrad(xp, params, grads, sum, *, step, lr, lr_decay, eps, weight_decay, maximize, skip=None):
    """Adagrad (Duchi, Hazan and Singer, 2011). `step` counts from 1."""
    if skip is not None and skip:
        return
    step, lr = int(step), float(lr)
    rate = lr / (1.0 + (step - 1) * lr_decay)
    for p, g, total in _blocks(xp, params, grads, sum, weight_decay=weight_decay, maximize=maximize):
        s = g * g
        total += s
        xp.sqrt(total, s)
        s += eps
        xp.divide(g, s, s)
        s *= rate
        p -= s


@adagrad.kernel("optimizer", platform="cpu")
def _(native, params, grads, sum, *, step, lr, lr_decay, eps, weight_decay, maximize, skip):
    if skip is not None and skip:
        return None
    step, lr = int(step), float(lr)
    numbers = (lr / (1.0 + (step - 1) * lr_decay), eps, weight_decay, maximize)
    return _in_one_pass(native.adagrad, params, grads, (sum,), numbers)


def _blocks(
    xp: Any,
    params: Sequence[Any],
    grads: Sequence[Any],
    *state: Any,
    weight_decay: float,
    maximize: bool,
) -> Iterator[tuple[Any, ...]]:
    """Parameters, gradients (signed, with the weight decay in them) and state, in parts that suit the device.

    A large parameter comes in blocks that stay in the cache; many small ones are gathered into a block first, so that
    they share the calls, and written back afterwards. The gradients may be the caller's own: a rule does not write to
    them.
    """
    dtype = accumulation_dtype(params[0].dtype)
    # Eight arrays of a block's size are in use at a time: at most two of parameters, one of gradients, three of state,
    # two of temporary values.
    limit = backend_of_type(type(params[0])).workspace // (8 * dtype.itemsize)
    start = 0
    for ps, gs, n in _parts(params, grads, limit):
        in_place = len(ps) == 1 and ps[0].dtype == dtype
        if in_place:
            p, g = ps[0], gs[0]
        else:
            p, g = xp.concatenate(ps, dtype=dtype), xp.concatenate(gs, dtype=dtype)
        if maximize:
            g = -g
        if weight_decay:
            decay = p * weight_decay
            decay += g
            g = decay
        yield p, g, *[None if s is None else s[start : start + n] for s in state]
        if not in_place:
            at = 0
            for piece in ps:
                piece[...] = p[at : at + piece.size]
                at += piece.size
        start += n


def _parts(
    params: Sequence[Any], grads: Sequence[Any], limit: int
) -> Iterator[tuple[Sequence[Any], Sequence[Any], int]]:
    """Runs of small parameters that make up to `limit` elements together, and pieces of up to `limit` of large ones."""
    ps: list[Any] = []
    gs: list[Any] = []
    n = 0
    for p, g in zip(params, grads):
        size = p.size
        large = size > limit // 4
        if n and (large or n + size > limit):
            yield ps, gs, n
            ps, gs, n = [], [], 0
        if large:
            for i in range(0, size, limit):
                piece = p[i : i + limit]
                yield [piece], [g[i : i + limit]], piece.size
        else:
            ps.append(p)
            gs.append(g)
            n += size
    if n:
        yield ps, gs, n


# --- all gradients at once


@op
def count_step(xp, step, *, skip=None):
    """Add 1 to `step` (0-d int64) in place, unless `skip` is not 0."""
    if skip is None or not skip:
        step += 1


@op
def gradient_norm(xp, grads, *, ord=2):
    """The norm of order `ord`, a positive number or inf, of all gradients as one vector.

    Args:
        grads: a list of arrays of one dtype, on one device.

    Returns:
        0-d, of their dtype; of float16, float32.
    """
    dtype = accumulation_dtype(grads[0].dtype)
    norms = [vector_norm(g if g.dtype == dtype else astype(g, dtype=dtype), ord=ord) for g in grads]
    return vector_norm(stack(norms), ord=ord)


@op
def clip_by_norm(xp, grads, norm, *, max_norm):
    """Scale gradients by the one factor that makes of the norm `norm` (0-d, as `gradient_norm` gives it) one of at most
    `max_norm`, in place."""
    factor = xp.minimum(max_norm / (norm + 1e-6), 1.0)
    for g in grads:
        g *= factor


@op
def clip_by_value(xp, grads, *, limit):
    """Limit each element of the gradients to the interval from -limit to limit, in place."""
    for g in grads:
        g[...] = xp.clip(g, -limit, limit)


@op
def unscale_and_check(xp, grads, found, *, scale):
    """Divide gradients by the factor of their loss, in place, and look for any that are infinite or NaN.

    Args:
        grads: a list of arrays of one dtype, on one device.
        found: 0-d int32. Becomes 1 where there are any; else it stays as it is.
        scale: a number, or a 0-d float32 array.
    """
    inverse = 1.0 / scale
    for g in grads:
        if not xp.all(xp.isfinite(g)):
            found[...] = 1
        g *= inverse


# --- kernels

_MOST_TENSORS = 128  # as in kernels/optimizer.cu
_ROUNDS, _THREADS = 4, 256
_TENSORS = Struct(f"q{_MOST_TENSORS}P{_MOST_TENSORS}P{_MOST_TENSORS + 1}q{_MOST_TENSORS + 1}i4x")
_UPDATE = Struct("2P3P3d4d2i")
_NUMBERS = Struct("3P2d5di4x")
_NORM = Struct("Pd")
_FINISH = Struct("2Pdq")
_CHANGE = Struct("2Pd")
_PAIR = Struct("2P")


class _Table(NamedTuple):
    """The arrays of one launch: `Tensors` of kernels/optimizer.cu, and how many blocks it takes."""

    packed: bytes
    chunks: int


def _tables(launcher: Launcher, changed: Sequence[Any], read: Sequence[Any] = ()) -> Iterator[_Table]:
    """Tables that name all elements of these arrays, which lie without gaps."""
    chunk = _THREADS * 16 // changed[0].dtype.itemsize * _ROUNDS
    pointer = launcher.pointer
    start = 0
    for first in range(0, len(changed), _MOST_TENSORS):
        some = changed[first : first + _MOST_TENSORS]
        starts, chunks = [start], [0]
        for a in some:
            start += a.size
            starts.append(start)
            chunks.append(chunks[-1] - (-a.size // chunk))
        others = read[first : first + _MOST_TENSORS]
        unused = (0,) * (_MOST_TENSORS - len(some))
        if chunks[-1]:
            yield _Table(
                _TENSORS.pack(
                    len(some),
                    *map(pointer, some), *unused,
                    *map(pointer, others), *(0,) * (_MOST_TENSORS - len(others)),
                    *starts, *unused,
                    *chunks, *unused,
                ),
                chunks[-1],
            )  # fmt: skip


def _are_rows(arrays: Iterable[Any], dtype: Any) -> bool:
    return all(a.ndim == 1 and a.dtype == dtype and a.flags.c_contiguous for a in arrays)


def _is_cell(kind: type, number: Any, *dtypes: str) -> bool:
    """Whether a number is in the device's memory, an array of class `kind`, in one of these dtypes."""
    return isinstance(number, kind) and number.size == 1 and number.dtype.name in dtypes  # type: ignore[attr-defined]


def _is_readable(kind: type, number: Any, *dtypes: str) -> bool:
    """Whether kernels can read a number there, or it is none of the device's arrays and can be handed over."""
    return not isinstance(number, kind) or _is_cell(kind, number, *dtypes)


@cache
def _rule(name: str, dtype: str, *flags: bool) -> Variant:
    computed = "double" if dtype == "float64" else "float"
    arguments = ", ".join((computed, *(str(flag).lower() for flag in flags)))
    return Variant("optimizer", f"update<{launch.NUMBERS[dtype]}, {name}<{arguments}>>", _THREADS, **_WIDE)


_WIDE: dict[str, Any] = {"registers": 128, "instructions": (r"LDG\S*128", r"STG\S*128")}


def _update(
    launcher: Launcher,
    rule: str,
    flags: tuple[bool, ...],
    params: Sequence[Any],
    grads: Sequence[Any],
    states: Iterable[Any],
    *,
    lr: Any,
    step: Any = 0,
    skip: Any,
    numbers: Callable[[float, float], tuple[float, float, float]],
    device_numbers: tuple[str, tuple[float, ...]],
    weight_decay: float,
    constants: tuple[float, ...],
    maximize: bool,
    first: bool = False,
) -> Any:
    """Run a rule of kernels/optimizer.cu; NotImplemented, before anything is changed, if the arrays do not fit.

    Args:
        rule, flags: its template, and the arguments behind the type.
        numbers: makes rate, eps and shrinking of learning rate and step.
        device_numbers: the kernel that does so on the device, and its constants.
    """
    dtype, kind, size = params[0].dtype, type(params[0]), sum(p.size for p in params)
    states = [s for s in states if s is not None]
    fit = (
        dtype.name in launch.FLOATING
        and len(params) == len(grads)
        and _are_rows(params, dtype)
        and all(p.shape == g.shape and g.dtype == dtype for p, g in zip(params, grads))
        and _are_rows(states, accumulation_dtype(dtype))
        and all(s.size == size for s in states)
        and _is_readable(kind, lr, "float32", "float64")
        and _is_readable(kind, step, "int64")
        and _is_readable(kind, skip, "int32")
        and -(-size // _THREADS) < 2**31
    )
    if not fit:
        return NotImplemented
    if not size:
        return None
    pointer, made = launcher.pointer, None
    if skip is not None and not isinstance(skip, kind):
        if skip:
            return None
        skip = None
    if isinstance(lr, kind) or isinstance(step, kind):
        made = launcher.empty((3,), float64)
        kernel, others = device_numbers
        args = _NUMBERS.pack(
            pointer(made),
            *(pointer(n) if isinstance(n, kind) else 0 for n in (lr, step)),
            *(0.0 if isinstance(n, kind) else n for n in (lr, step)),
            *others, *(0.0,) * (5 - len(others)),
            lr.dtype == float64 if isinstance(lr, kind) else False,
        )  # fmt: skip
        launcher.launch(Variant("optimizer", kernel, 32), (1, 1, 1), args)
    args = _UPDATE.pack(
        0 if made is None else pointer(made),
        0 if skip is None else pointer(skip),
        *map(pointer, states), *(0,) * (3 - len(states)),
        *((0.0, 0.0, 0.0) if made is not None else numbers(lr, step)),
        weight_decay,
        *constants, *(0.0,) * (3 - len(constants)),
        maximize,
        first,
    )  # fmt: skip
    variant = _rule(rule, dtype.name, *flags)
    grads = [launch.contiguous(launcher, g) for g in grads]
    for table in _tables(launcher, params, grads):
        launcher.launch(variant, (table.chunks, 1, 1), args + table.packed)
    return None


@sgd.kernel("optimizer")
def _(
    launcher, params, grads, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, maximize, first, skip
):  # fmt: skip
    has_momentum = momentum_buffer is not None
    return _update(
        launcher,
        "Sgd",
        (has_momentum, has_momentum and nesterov),
        params,
        grads,
        (momentum_buffer,),
        lr=lr,
        skip=skip,
        numbers=lambda lr, step: (lr, 0.0, 1.0),
        device_numbers=("numbers<PLAIN>", ()),
        weight_decay=weight_decay,
        constants=(momentum, 1.0 - dampening),
        maximize=maximize,
        first=first,
    )


@adam.kernel("optimizer")
def _(
    launcher, params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq, *, step, lr, beta1, beta2, eps, weight_decay,
    decoupled, maximize, skip,
):  # fmt: skip
    decay, shrinking = (0.0, weight_decay) if decoupled else (weight_decay, 0.0)

    def numbers(lr: float, step: float) -> tuple[float, float, float]:
        scale = sqrt(1.0 - beta2**step)
        return lr * scale / (1.0 - beta1**step), eps * scale, 1.0 - lr * shrinking

    return _update(
        launcher,
        "Adam",
        (max_exp_avg_sq is not None,),
        params,
        grads,
        (exp_avg, exp_avg_sq, max_exp_avg_sq),
        lr=lr,
        step=step,
        skip=skip,
        numbers=numbers,
        device_numbers=("numbers<ADAM>", (eps, beta1, beta2, shrinking)),
        weight_decay=decay,
        constants=(1.0 - beta1, beta2, 1.0 - beta2),
        maximize=maximize,
    )


@rmsprop.kernel("optimizer")
def _(
    launcher, params, grads, square_avg, grad_avg, momentum_buffer, *, lr, alpha, eps, weight_decay, momentum, maximize,
    skip,
):  # fmt: skip
    return _update(
        launcher,
        "RmsProp",
        (grad_avg is not None, momentum_buffer is not None),
        params,
        grads,
        (square_avg, grad_avg, momentum_buffer),
        lr=lr,
        skip=skip,
        numbers=lambda lr, step: (lr, eps, 1.0),
        device_numbers=("numbers<PLAIN>", (eps,)),
        weight_decay=weight_decay,
        constants=(alpha, 1.0 - alpha, momentum),
        maximize=maximize,
    )


@adagrad.kernel("optimizer")
def _(launcher, params, grads, sum, *, step, lr, lr_decay, eps, weight_decay, maximize, skip):
    return _update(
        launcher,
        "Adagrad",
        (),
        params,
        grads,
        (sum,),
        lr=lr,
        step=step,
        skip=skip,
        numbers=lambda lr, step: (lr / (1.0 + (step - 1) * lr_decay), eps, 1.0),
        device_numbers=("numbers<ADAGRAD>", (eps, 0.0, 0.0, 0.0, lr_decay)),
        weight_decay=weight_decay,
        constants=(),
        maximize=maximize,
    )


@count_step.kernel("optimizer")
def _(launcher, step, *, skip):
    kind = type(step)
    if not _is_cell(kind, step, "int64") or not (skip is None or _is_cell(kind, skip, "int32")):
        return NotImplemented
    args = _PAIR.pack(launcher.pointer(step), 0 if skip is None else launcher.pointer(skip))
    launcher.launch(Variant("optimizer", "count_step<long long>", 32), (1, 1, 1), args)
    return None


def _are_gradients(grads: Sequence[Any]) -> bool:
    """Whether kernels can take them: of one floating-point dtype, and without gaps."""
    dtype = grads[0].dtype
    return dtype.name in launch.FLOATING and all(g.dtype == dtype and launch.is_dense(g) for g in grads)


_ORDERS = {1: "SUM", 2: "EUCLIDEAN", inf: "LARGEST"}


@cache
def _norm_variants(dtype: str, order: str) -> tuple[Variant, Variant]:
    """Those of both passes."""
    wide: dict[str, Any] = {"registers": 128, "instructions": (r"LDG\S*128",)}
    computed = "double" if dtype == "float64" else "float"
    return (
        Variant("optimizer", f"gradient_norm<{launch.NUMBERS[dtype]}, {order}>", _THREADS, **wide),
        Variant("optimizer", f"finish_norm<{computed}, {order}>", 1024, registers=64),
    )


@gradient_norm.kernel("optimizer")
def _(launcher, grads, *, ord):
    if not _are_gradients(grads):
        return NotImplemented
    dtype = grads[0].dtype
    tables = list(_tables(launcher, grads))
    parts = launcher.empty((sum(table.chunks for table in tables),), float64)
    norm = launcher.empty((), accumulation_dtype(dtype))
    first, second = _norm_variants(dtype.name, _ORDERS.get(ord, "POWER"))
    at = launcher.pointer(parts)
    for table in tables:
        launcher.launch(first, (table.chunks, 1, 1), _NORM.pack(at, ord) + table.packed)
        at += table.chunks * 8
    args = _FINISH.pack(launcher.pointer(parts), launcher.pointer(norm), ord, parts.size)
    launcher.launch(second, (1, 1, 1), args)
    return norm


@cache
def _change_variant(dtype: str, change: str) -> Variant:
    return Variant("optimizer", f"change_gradients<{launch.NUMBERS[dtype]}, {change}>", _THREADS, **_WIDE)


def _change(launcher: Launcher, change: str, grads: Sequence[Any], number: Any, found: Any, limit: float) -> Any:
    if not _are_gradients(grads):
        return NotImplemented
    args = _CHANGE.pack(*(0 if a is None else launcher.pointer(a) for a in (number, found)), limit)
    variant = _change_variant(grads[0].dtype.name, change)
    for table in _tables(launcher, grads):
        launcher.launch(variant, (table.chunks, 1, 1), args + table.packed)
    return None


@clip_by_norm.kernel("optimizer")
def _(launcher, grads, norm, *, max_norm):
    if not _is_cell(type(grads[0]), norm, accumulation_dtype(grads[0].dtype).name):
        return NotImplemented
    return _change(launcher, "CLIP_NORM", grads, norm, None, max_norm)


@clip_by_value.kernel("optimizer")
def _(launcher, grads, *, limit):
    return _change(launcher, "CLIP_VALUE", grads, None, None, limit)


@unscale_and_check.kernel("optimizer")
def _(launcher, grads, found, *, scale):
    kind = type(grads[0])
    if not _is_cell(kind, found, "int32") or not _is_readable(kind, scale, "float32"):
        return NotImplemented
    on_device = isinstance(scale, kind)
    return _change(launcher, "UNSCALE", grads, scale if on_device else None, found, 1.0 if on_device else scale)


@register_variants
def _variants() -> Iterable[Variant]:
    """All rules for float32 and float16, the common ones for every type; of the norms, too, the common one."""
    for dtype in launch.FLOATING:
        yield _rule("Sgd", dtype, True, False)
        yield _rule("Adam", dtype, False)
        yield from _norm_variants(dtype, "EUCLIDEAN")
        for change in ("CLIP_NORM", "CLIP_VALUE", "UNSCALE"):
            yield _change_variant(dtype, change)
    for dtype in ("float32", "float16"):
        yield _rule("Sgd", dtype, False, False)
        yield _rule("Sgd", dtype, True, True)
        yield _rule("Adam", dtype, True)
        yield _rule("Adagrad", dtype)
        for centered, momentum in ((False, False), (False, True), (True, False), (True, True)):
            yield _rule("RmsProp", dtype, centered, momentum)
    for order in ("SUM", "LARGEST", "POWER"):
        yield from _norm_variants("float32", order)
    for kernel in ("numbers<PLAIN>", "numbers<ADAM>", "numbers<ADAGRAD>", "count_step<long long>"):
        yield Variant("optimizer", kernel, 32)
