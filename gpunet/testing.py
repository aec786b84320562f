"""What tests of differentiable functions need: `check_grads`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunet import random
from gpunet.creation import asarray
from gpunet.dtypes import SMOOTH, complex128, float64
from gpunet.tensor import Tensor
from gpunet.transforms import jvp, trees, vjp

__all__ = ["check_grads"]


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int = 2,
    modes: Sequence[str] = ("fwd", "rev"),
    rtol: float | None = None,
    atol: float | None = None,
    *,
    step: float = 1e-5,
    directions: int = 1,
    seed: int = 0,
) -> None:
    """Assert that the derivatives of `f` are those that finite differences show, in double precision.

        gn.testing.check_grads(lambda x, w: gn.tanh(x @ w), (x, w))

    Along a random direction d, complex for complex arguments, f(x + step * d) - f(x - step * d) is compared with what
    `gpunet.jvp` gives ("fwd") and with what `gpunet.vjp` does ("rev"). Then the same is asked of what these compute, as
    functions of the arguments and of the direction or gradient, up to `order` times.

    Args:
        f: takes and returns Tensors, or tuples, lists and dicts of them; smooth within `step` of the arguments. Random
            numbers of `gpunet.random` are the same in every call.
        args: its arguments. Floating-point ones are converted to float64 or complex128; others, and what is no array,
            are passed on as they are.
        order: how many times to differentiate.
        modes: "fwd", "rev" or both; of higher orders, all their combinations.
        rtol: what may be missing, relative to the largest derivative (of "rev", to the sum of the absolute values
            of what it is a sum of); default 1e-6, and ten times as much with each order.
        atol: what may be missing in any case; default: as rtol.
        step: of the finite differences.
        directions: how many to try.
        seed: of these.

    Raises:
        AssertionError: a derivative is wrong; the message says of which order and mode, and both numbers.
        ValueError: another mode, an order below one, or no argument that can be differentiated.
    """
    if not modes or any(mode not in ("fwd", "rev") for mode in modes) or order < 1:
        raise ValueError(f'check_grads: expected modes "fwd" and "rev" and an order from 1, got {modes!r} and {order}')
    leaves, structure = trees.flatten(tuple(args))
    values = [_double(x) for x in leaves]
    places = [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.dtype.kind in SMOOTH]
    if not places:
        raise ValueError("check_grads: none of the arguments is a floating-point array")
    state = random.generator().state_dict()

    def smooth(*xs: Any) -> list[Any]:
        given = list(values)
        for i, x in zip(places, xs):
            given[i] = x
        again = random.Generator()
        again.load_state_dict(state)
        with random.using(again):
            found = trees.flatten(f(*trees.unflatten(structure, given)))[0]
        outputs = [y for y in found if isinstance(y, Tensor) and y.dtype.kind in SMOOTH]
        if not outputs:
            raise ValueError("check_grads: the function returns no floating-point Tensors")
        return outputs

    tolerances = 1e-6 if rtol is None else rtol, (1e-6 if rtol is None else rtol) if atol is None else atol
    rng = np.random.default_rng(seed)
    check = _Check(modes, tolerances, step, directions, rng, order)
    check.run(smooth, [values[i] for i in places], order, "")


def _double(x: Any) -> Any:
    if not isinstance(x, (Tensor, np.ndarray, np.generic, float, complex)):
        return x
    x = x.detach() if isinstance(x, Tensor) else asarray(x)
    if x.dtype.kind not in SMOOTH:
        return x
    return x.astype(complex128 if x.dtype.kind == "c" else float64, copy=False)


class _Check:
    def __init__(
        self, modes: Sequence[str], tolerances: tuple[float, float], step: float, directions: int, rng: Any, order: int
    ) -> None:
        self.modes, self.step, self.directions, self.rng, self.order = modes, step, directions, rng, order
        self.rtol, self.atol = tolerances

    def run(self, f: Callable[..., list[Any]], xs: list[Tensor], left: int, how: str) -> None:
        """Check the first derivatives of f at xs, and if more are `left`, those of these; `how` they were taken."""
        done = self.order - left
        ds: list[Any] = []
        for _ in range(self.directions):
            ds = [self.like(x) for x in xs]
            up, down = (self.values(f, [x + sign * self.step * d for x, d in zip(xs, ds)]) for sign in (1.0, -1.0))
            numeric = [(a - b) / (2 * self.step) for a, b in zip(up, down)]
            scale = 10.0**done
            if "fwd" in self.modes:
                self.forward(f, xs, ds, numeric, scale, how)
            if "rev" in self.modes:
                self.backward(f, xs, ds, numeric, scale, how)
        if left == 1:
            return
        n = len(xs)
        if "fwd" in self.modes:
            self.run(lambda *a: list(jvp(f, a[:n], a[n:])[1]), xs + ds, left - 1, f"{how}fwd of ")
        if "rev" in self.modes:
            vs = [self.like(y) for y in self.outputs(f, xs)]
            self.run(lambda *a: list(vjp(f, *a[:n])[1](list(a[n:]))), xs + vs, left - 1, f"{how}rev of ")

    def like(self, x: Tensor) -> Tensor:
        """Random numbers of the shape and kind of x."""
        values: Any = self.rng.standard_normal(x.shape)
        if x.dtype.kind == "c":
            values = values + 1j * self.rng.standard_normal(x.shape)
        return asarray(values, dtype=x.dtype, device=x.device)

    def outputs(self, f: Callable[..., list[Any]], xs: list[Tensor]) -> list[Tensor]:
        return f(*_leaves(xs))

    def values(self, f: Callable[..., list[Any]], xs: list[Tensor]) -> list[np.ndarray]:
        return [_array(y) for y in self.outputs(f, xs)]

    def forward(self, f: Any, xs: Any, ds: Any, numeric: list[np.ndarray], scale: float, how: str) -> None:
        found = [_array(t) for t in jvp(f, tuple(_leaves(xs)), tuple(ds))[1]]
        for i, (a, b) in enumerate(zip(found, numeric)):
            if a.shape != b.shape:
                raise AssertionError(f"check_grads: {how}fwd: output {i} has shape {b.shape}, its tangent {a.shape}")
            if not a.size:
                continue
            allowed = scale * (self.atol + self.rtol * float(np.max(np.abs(b))))
            wrong = np.abs(a - b)
            if not (wrong <= allowed).all():
                at = tuple(int(k) for k in np.unravel_index(np.argmax(np.where(wrong <= allowed, 0, 1)), wrong.shape))
                raise AssertionError(
                    f"check_grads: {how}fwd, of arguments {_shapes(xs)}: along a random direction the derivative of "
                    f"output {i}{list(at) if at else ''} is {a[at]!s}, and finite differences give {b[at]!s} "
                    f"({np.count_nonzero(~(wrong <= allowed))} of {a.size} elements differ by more than {allowed:.1e})"
                )

    def backward(self, f: Any, xs: Any, ds: Any, numeric: list[np.ndarray], scale: float, how: str) -> None:
        outputs, pullback = vjp(f, *_leaves(xs))
        vs = [self.like(y) for y in outputs]
        gradients = pullback(vs)
        for i, (g, x) in enumerate(zip(gradients, xs)):
            if g.shape != x.shape or g.dtype != x.dtype:
                raise AssertionError(
                    f"check_grads: {how}rev: argument {i} is {x.shape} {x.dtype}, its gradient {g.shape} {g.dtype}"
                )
        expected = sum(float(np.sum((np.conj(_array(v)) * b).real)) for v, b in zip(vs, numeric))
        parts = [(np.conj(_array(g)) * _array(d)).real for g, d in zip(gradients, ds)]
        found = sum(float(np.sum(part)) for part in parts)
        allowed = scale * (self.atol + self.rtol * sum(float(np.sum(np.abs(part))) for part in parts))
        if not abs(found - expected) <= allowed:
            raise AssertionError(
                f"check_grads: {how}rev, of arguments {_shapes(xs)}: along a random direction the gradients give "
                f"{found!s}, and finite differences {expected!s} (a difference of {abs(found - expected):.1e}, with "
                f"{allowed:.1e} allowed)"
            )


def _leaves(xs: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that require gradients, for functions that differentiate with respect to their arguments themselves."""
    return [x.detach().requires_grad_() for x in xs]


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _shapes(xs: Sequence[Tensor]) -> str:
    return ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in xs)
