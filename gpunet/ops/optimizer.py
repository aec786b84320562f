"""The update rules of the optimizers.

A rule changes parameters and its state in place. It is given lists: 1-D arrays of parameters and 1-D arrays of their
gradients, all of one dtype and on one device. Each quantity of the state is a single 1-D array that holds the values of
all of these parameters one after the other (or None where the options do not call for it). Everything else is a number.
So a kernel launches once for all parameters, and a caller that keeps parameters or gradients in one buffer passes lists
of length one.

float16 parameters are updated in float32, in which their state is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Any

from gpunet.backends import backend_of_type, threads
from gpunet.dtypes import accumulation_dtype
from gpunet.ops.op import op


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
    xp, params, grads, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, maximize, first
):  # fmt: skip
    """Stochastic gradient descent, with momentum as in Sutskever et al., 2013. `first`: the buffer is still empty."""
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
def _(native, params, grads, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, maximize, first):
    numbers = (lr, momentum, 1.0 - dampening, weight_decay, nesterov, maximize, first)
    return _in_one_pass(native.sgd, params, grads, (momentum_buffer,), numbers)


@op
def adam(
    xp, params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq, *, step, lr, beta1, beta2, eps, weight_decay, decoupled,
    maximize,
):  # fmt: skip
    """Adam (Kingma and Ba, 2014); AMSGrad (Reddi et al., 2018) where there is max_exp_avg_sq; AdamW (Loshchilov and
    Hutter, 2017) where the weight decay is decoupled. `step` counts from 1.
    """
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
    maximize,
):  # fmt: skip
    scale = sqrt(1.0 - beta2**step)
    rate = lr * scale / (1.0 - beta1**step)
    decay, shrink = (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    numbers = (rate, 1.0 - beta1, beta2, 1.0 - beta2, eps * scale, decay, shrink, maximize)
    return _in_one_pass(native.adam, params, grads, (exp_avg, exp_avg_sq, max_exp_avg_sq), numbers)


@op
def rmsprop(
    xp, params, grads, square_avg, grad_avg, momentum_buffer, *, lr, alpha, eps, weight_decay, momentum, maximize
):  # fmt: skip
    """RMSprop (Tieleman and Hinton, 2012), centred (Graves, 2013) where there is grad_avg."""
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
    native, params, grads, square_avg, grad_avg, momentum_buffer, *, lr, alpha, eps, weight_decay, momentum, maximize
):  # fmt: skip
    numbers = (lr, alpha, 1.0 - alpha, eps, weight_decay, momentum, maximize)
    return _in_one_pass(native.rmsprop, params, grads, (square_avg, grad_avg, momentum_buffer), numbers)


@op
def adagrad(xp, params, grads, sum, *, step, lr, lr_decay, eps, weight_decay, maximize):
    """Adagrad (Duchi, Hazan and Singer, 2011). `step` counts from 1."""
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
def _(native, params, grads, sum, *, step, lr, lr_decay, eps, weight_decay, maximize):
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
