"""Transformations of functions, against finite differences, loops and, where it is installed, torch.func."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpunet as gn
import gpunet.nn.functional as F
from gpunet import nn
from gpunet.errors import DTypeError, GradientError, ShapeError
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(3)


def normal(*shape: int, device: str = "cpu") -> gn.Tensor:
    return gn.asarray(rng.standard_normal(shape), device=device)


def check(found: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    found = found.detach().cpu().numpy() if isinstance(found, gn.Tensor) else np.asarray(found)
    expected = expected.detach().cpu().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def loss(x: Any, w: Any) -> Any:
    return (gn.tanh(w @ x) ** 2).sum() + gn.exp(x).mean()


def along(f: Callable[[np.ndarray], Any], x: gn.Tensor, step: float = 1e-6) -> np.ndarray:
    """The Jacobian of f, a function of one Tensor, by central differences."""
    flat, columns = x.numpy(), []
    for i in np.ndindex(flat.shape):
        d = np.zeros_like(flat)
        d[i] = step
        columns.append((f(gn.asarray(flat + d)).numpy() - f(gn.asarray(flat - d)).numpy()) / (2 * step))
    return np.stack(columns, axis=-1).reshape(*columns[0].shape, *flat.shape)


# --- gradients of functions


def test_grad_of_a_function_is_that_of_tensors(device: str) -> None:
    x, w = normal(4, device=device), normal(3, 4, device=device)
    a, b = x.copy().requires_grad_(), w.copy().requires_grad_()
    expected = gn.grad(loss(a, b), (a, b))
    value, (gx, gw) = gn.value_and_grad(loss, argnums=(0, 1))(x, w)
    check(value, loss(x, w))
    check(gx, expected[0])
    check(gw, expected[1])
    check(gn.grad(loss)(x, w), expected[0])
    check(gn.grad(loss, 1)(x, w), expected[1])
    check(gn.grad(loss, argnums=-1)(x, w), expected[1])
    assert not value.requires_grad and not gx.requires_grad and x.grad is None and not x.requires_grad


class Pair(NamedTuple):
    first: Any
    second: Any


def test_nested_arguments_and_results() -> None:
    tree = {"a": normal(2), "b": [normal(3), (normal(), None)], "c": Pair(normal(2, 2), normal(1))}

    def f(t: Any, scale: float) -> Any:
        b = t["b"]
        value = (t["a"] ** 2).sum() + (b[0] * b[1][0]).sum() + (t["c"].first @ t["a"]).sum() * scale
        return value, {"seen": t["c"].second * 2}

    found, more = gn.grad(f, has_aux=True)(tree, 3.0)
    assert list(found) == ["a", "b", "c"] and isinstance(found["b"], list) and isinstance(found["c"], Pair)
    check(found["a"], 2 * tree["a"].numpy() + 3 * tree["c"].first.numpy().sum(0))
    check(found["b"][1][0], tree["b"][0].sum())
    assert found["b"][1][1] is None
    check(found["c"].second, np.zeros(1))  # which the value does not depend on
    check(more["seen"], tree["c"].second * 2)
    outputs, pullback = gn.vjp(lambda t: {"y": t["a"] * 2, "z": (t["b"][0],)}, tree)
    (back,) = pullback({"y": gn.ones(2, dtype=gn.float64), "z": (tree["b"][0],)})
    check(back["a"], np.full(2, 2.0))
    check(back["b"][0], tree["b"][0])
    with pytest.raises(ValueError, match=r"nested as \(\*, \*\), the outputs as \{'y': \*, 'z': \(\*,\)\}"):
        pullback((outputs["y"], outputs["z"][0]))


def test_gradients_of_gradients(device: str) -> None:
    f: Any = lambda x: gn.sin(x) * x  # noqa: E731
    x = gn.asarray(np.array(0.7), device=device)
    third = gn.grad(gn.grad(gn.grad(f)))(x)
    check(third, -(3 * np.sin(0.7) + 0.7 * np.cos(0.7)))


def test_on_tensors_that_are_on_the_tape_already() -> None:
    w, x = normal(3, 4).requires_grad_(), normal(4).requires_grad_()
    h = gn.sin(x)
    g = gn.grad(loss)(h, w)  # depends on w, through what it uses, and on x
    check(gn.grad(g.sum(), w, retain_graph=True), gn.grad(lambda w: gn.grad(loss)(h, w).sum())(w.detach()))
    check(gn.grad(g.sum(), x), gn.grad(lambda x: gn.grad(loss)(gn.sin(x), w).sum())(x.detach()))
    y, pullback = gn.vjp(lambda x: gn.tanh(w @ x), x)
    assert y.requires_grad
    (gx,) = pullback(y.detach())
    assert gx.requires_grad
    with gn.no_grad():
        assert not gn.grad(loss)(h, w).requires_grad
        y, pullback = gn.vjp(lambda x: gn.tanh(w @ x), x)
        assert not y.requires_grad and not pullback(y)[0].requires_grad


def test_grad_of_a_module_and_of_what_it_uses() -> None:
    layer = nn.Linear(3, 2)
    x = gn.random.normal((4, 3))
    f = lambda x: (layer(x) ** 2).sum()  # noqa: E731
    g = gn.grad(f)(x)
    check(g, 2 * layer(x).detach().numpy() @ layer.weight.detach().numpy(), rtol=1e-5)
    (g**2).sum().backward()  # the penalty of gradients
    assert layer.weight.grad is not None


def test_complex_gradients_point_downhill() -> None:
    z = normal(3) + 1j * normal(3)
    g = gn.grad(lambda z: (gn.abs(z) ** 2).sum())(z)
    check(g, 2 * z)
    y, t = gn.jvp(gn.exp, (z,), (z * 1j,))
    check(t, y * z * 1j)
    check(gn.jacobian(lambda z: z**2 * z[0])(z), gn.jacobian(lambda z: z**2 * z[0], mode="forward")(z))
    diagonal = gn.jacobian(gn.sin)(z)
    check(diagonal, np.diag(np.cos(z.numpy())))
    x = normal(2)
    for mode in ("reverse", "forward"):
        check(gn.jacobian(lambda x: gn.exp(1j * x), mode=mode)(x), np.diag(1j * np.exp(1j * x.numpy())))
    with pytest.raises(DTypeError, match="must be complex too"):
        gn.jacobian(gn.abs)(z)


def test_jacobian_and_hessian(device: str) -> None:
    x, w = normal(4, device=device), normal(3, 4, device=device)
    f: Any = lambda x: gn.tanh(w @ x) * x[:3]  # noqa: E731
    host = w.cpu()
    expected = along(lambda x: gn.tanh(host @ x) * x[:3], x.cpu())
    for mode in ("reverse", "forward"):
        check(gn.jacobian(f, mode=mode)(x), expected, 1e-6, 1e-8)
    expected = along(lambda x: gn.grad(loss)(x, host), x.cpu())
    check(gn.hessian(loss)(x, w), expected, 1e-6, 1e-8)
    both = gn.hessian(loss, argnums=(0, 1))(x, w)
    assert both[0][1].shape == (4, 3, 4) and both[1][0].shape == (3, 4, 4)
    check(both[0][1], np.moveaxis(both[1][0].cpu().numpy(), 2, 0))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_jacobian_of_nested_and_empty_arguments(mode: str) -> None:
    f = lambda t: {"y": t["a"] * t["b"].sum(), "z": t["b"] * 2}  # noqa: E731
    t = {"a": normal(2), "b": normal(3)}
    found = gn.jacobian(f, mode=mode)(t)
    check(found["y"]["b"], np.repeat(t["a"].numpy()[:, None], 3, axis=1))
    check(found["z"]["a"], np.zeros((3, 2)))
    assert gn.jacobian(lambda x: x * 2, mode=mode)(gn.zeros((0, 2))).shape == (0, 2, 0, 2)
    assert gn.jacobian(lambda x: x.sum(), mode=mode)(gn.zeros((0,))).shape == (0,)


def test_jacobian_can_be_differentiated() -> None:
    x, w = normal(3), normal(2, 3).requires_grad_()
    for mode in ("reverse", "forward"):
        total = (gn.jacobian(lambda x: gn.tanh(w @ x), mode=mode)(x) ** 2).sum()
        (found,) = gn.grad(total, [w])
        check(found, gn.grad(lambda w: (((1 - gn.tanh(w @ x) ** 2)[:, None] * w) ** 2).sum())(w.detach()))


def test_a_pullback_may_be_called_again_and_mapped() -> None:
    x, w = normal(4), normal(3, 4)
    y, pullback = gn.vjp(lambda x: gn.tanh(w @ x), x)
    (rows,) = gn.vmap(pullback)(gn.eye(3, dtype=gn.float64))
    check(rows, gn.jacobian(lambda x: gn.tanh(w @ x))(x))
    check(pullback(y)[0], y @ rows)


# --- forward mode


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_and_both_modes_twice(name: str) -> None:
    f, inputs = CASES[name]
    gn.testing.check_grads(f, inputs, order=2, rtol=1e-5)


def test_jvp_keeps_dtypes_and_constants() -> None:
    x = gn.asarray(np.ones(3, np.float32))
    y, t = gn.jvp(lambda x: (x * 2, gn.arange(2), gn.zeros(2)), (x,), (x,))
    assert t[0].dtype == gn.float32 and t[1].shape == (2,)
    check(t[2], np.zeros(2, np.float32))
    assert gn.jvp(lambda x: x.astype(gn.float64) * 2, (x,), (x,))[1].dtype == gn.float64
    y, t = gn.jvp(lambda x, k: x * k, (x, 3), (x, None))
    check(t, np.full(3, 3, np.float32))
    assert not y.requires_grad


def test_jvp_sees_values_and_respects_no_grad() -> None:
    def f(x: Any) -> Any:
        with gn.no_grad():
            scale = x * 2
        return x * scale if x.sum() > 0 and float(x[0]) == 1.0 else -x

    x = gn.asarray(np.array([1.0, 2.0]))
    check(gn.jvp(f, (x,), (gn.ones_like(x),))[1], 2 * x)
    check(gn.grad(lambda x: f(x).sum())(x), 2 * x)


def test_jvp_of_what_writes_in_place() -> None:
    def f(x: Any) -> Any:
        y = x * 1.0
        y += x**2
        y[0] = x[1] * 3
        return y

    gn.testing.check_grads(f, (normal(3),), order=2)


def test_pooling_has_a_tangent_although_it_is_written_for_tapes() -> None:
    x = normal(1, 1, 4, 4)
    with gn.no_grad():
        y, t = gn.jvp(lambda x: F.max_pool2d(x, 2), (x,), (x,))
    check(t, y)


# --- many samples at once

MAPPED = [name for name in CASES if name.split(":")[0] not in ("dropout", "unique", "bincount")]


def _tuple(y: Any) -> tuple[Any, ...]:
    return tuple(y) if isinstance(y, (tuple, list)) else (y,)


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_is_a_loop(name: str) -> None:
    f, inputs = CASES[name]
    many = [np.stack([x, x * 1.01, x * 1.001]) for x in inputs]
    n = len(inputs)
    for mask in {(True,) * n, *(tuple(i == j for j in range(n)) for i in range(n))}:
        args = [gn.asarray(b if m else a) for a, b, m in zip(inputs, many, mask)]
        found = _tuple(gn.vmap(f, in_axes=tuple(0 if m else None for m in mask))(*args))
        rows = [_tuple(f(*(a[i] if m else a for a, m in zip(args, mask)))) for i in range(3)]
        for y, expected in zip(found, zip(*rows)):
            check(y, np.stack([e.numpy() for e in expected]), 1e-9, 1e-10)


INDEXING: dict[str, Callable[..., Any]] = {
    "numbers": lambda x, i: x[1, ..., None, -1],
    "slices": lambda x, i: x[::-1, 1:3, ..., 0],
    "array": lambda x, i: x[:, gn.asarray([2, 0, 0])],
    "arrays apart": lambda x, i: x[gn.asarray([0, 1]), :, gn.asarray([1, 0])],
    "arrays apart by a new axis": lambda x, i: x[0, None, gn.asarray([1, 0])],
    "mask": lambda x, i: x[gn.asarray([True, False, True])],
    "own number": lambda x, i: x[i[0]],
    "own array": lambda x, i: x[i],
    "own array, later": lambda x, i: x[:, i, 1:],
    "own array after ...": lambda x, i: x[..., i],
    "own arrays": lambda x, i: x[i, :, i[::-1]],
    "own and shared": lambda x, i: x[i, gn.asarray([[0], [1]])],
    "take": lambda x, i: gn.take(x, i, axis=1),
    "take shared": lambda x, i: gn.take(x, gn.asarray([1, 1], device=x.device), axis=-1),
    "take along": lambda x, i: gn.take_along_axis(x, gn.broadcast_to(i[:, None, None], (3, 3, 3)), axis=0),
    "one hot": lambda x, i: x[:, 0, 0] * F.one_hot(i % 3, 3)[0],
    "embedded": lambda x, i: F.embedding(i % 3, x[0]),
    "write": lambda x, i: _written(x, (slice(None), 1), x[:, 0] * 2),
    "write one": lambda x, i: _written(x, (0, gn.asarray([1, 2])), 7.0),
    "write what is shared": lambda x, i: _written(gn.zeros(3, dtype=gn.float64, device=x.device) + x[0, 0, 0], 1, 5.0),
    "sorted": lambda x, i: gn.sort(x, axis=1, descending=True),
    "searched": lambda x, i: gn.searchsorted(gn.asarray(np.array([-1.0, 0.0, 1.0]), device=x.device), x.reshape(-1)),
    "unstacked": lambda x, i: x[0] + sum(x),
    "repeated": lambda x, i: gn.repeat(x, 2) + gn.repeat(x, 2, axis=None),
    "extremes": lambda x, i: gn.max(x, axis=(0, -1), keepdims=True) - gn.argmax(x) + gn.min(x),
    "stacked": lambda x, i: gn.stack([x, gn.ones_like(x)], axis=1),
    "joined": lambda x, i: gn.concat([x[0], gn.zeros_like(x[1])]) + gn.concat([x, x[0]], axis=None)[0],
    "equations": lambda x, i: gn.einsum("ijk,kl->ijl", x, x[0]) + gn.tensordot(x, x[0], axes=1),
}  # fmt: skip


def _written(x: Any, key: Any, value: Any) -> Any:
    y = x * 1.0
    y[key] = value
    return y


@pytest.mark.parametrize("name", INDEXING)
def test_vmap_of_indexing(name: str, device: str) -> None:
    f = INDEXING[name]
    x, i = normal(4, 3, 3, 3), gn.asarray(np.array([[0, 2, 1], [1, 1, 0], [-1, 2, 2], [0, 0, -2]]))
    x, i = x.to(device), i.to(device)
    found = gn.vmap(f)(x, i)
    expected = np.stack([f(x[k], i[k]).cpu().numpy() for k in range(4)])
    check(found, expected)
    again = gn.vmap(gn.vmap(f, (0, None)), (None, 0))(x, i)  # each sample with each index
    for k in range(4):
        check(again[k], np.stack([f(x[j], i[k]).cpu().numpy() for j in range(4)]))
    if found.dtype == gn.float64:
        g = gn.grad(lambda x: (gn.vmap(f)(x, i) ** 2).sum())(x)
        for k in range(4):
            check(g[k], gn.grad(lambda x, k=k: (f(x, i[k]) ** 2).sum())(x[k]))


def test_vmap_of_x_for_all_and_an_index_for_each() -> None:
    x, i = normal(5, 2), gn.asarray(np.array([[0, 1], [4, 4], [2, 0]]))
    for f in (lambda i: x[i], lambda i: x[:, i[0] * 0], lambda i: gn.take(x, i, axis=0)):
        check(gn.vmap(f)(i), np.stack([f(i[k]).numpy() for k in range(3)]))
    with pytest.raises(IndexError):
        gn.vmap(lambda i: x[i])(i + 5)


def test_axes() -> None:
    x, y = normal(2, 5, 3), normal(5)
    f = lambda x, t: {"s": x.sum() * t["y"], "x": x}  # noqa: E731
    found = gn.vmap(f, in_axes=(1, {"y": 0}), out_axes={"s": 0, "x": -1})(x, {"y": y})
    check(found["s"], x.numpy().sum(axis=(0, 2)) * y.numpy())
    check(found["x"], np.moveaxis(x.numpy(), 1, -1))
    check(gn.vmap(lambda *, a: a.sum())(a=x), x.sum(axis=(1, 2)))
    check(gn.vmap(lambda x: gn.asarray(np.arange(2.0)))(y), np.tile(np.arange(2.0), (5, 1)))
    check(gn.vmap(lambda x: 2.0)(y), np.full(5, 2, np.float32))


def test_vmap_of_gradients_and_gradients_of_vmap(device: str) -> None:
    xs, w = normal(6, 4, device=device), normal(3, 4, device=device)
    found = gn.vmap(gn.grad(loss, argnums=1), in_axes=(0, None))(xs, w)
    check(found, np.stack([gn.grad(loss, 1)(x, w).cpu().numpy() for x in xs]))
    found = gn.vmap(gn.hessian(loss), in_axes=(0, None))(xs, w)
    check(found, np.stack([gn.hessian(loss)(x, w).cpu().numpy() for x in xs]))
    total = lambda w: (gn.vmap(gn.grad(loss), (0, None))(xs, w) ** 2).sum()  # noqa: E731
    slow = lambda w: sum((gn.grad(loss)(x, w) ** 2).sum() for x in xs)  # noqa: E731
    check(gn.grad(total)(w), gn.grad(slow)(w))
    check(gn.jvp(gn.grad(total), (w,), (w,))[1], gn.jvp(gn.grad(slow), (w,), (w,))[1])
    gn.testing.check_grads(lambda w: gn.vmap(loss, (0, None))(xs, w), (w,), order=2)


def test_gradients_of_tensors_inside_vmap() -> None:
    xs, w = normal(6, 4), normal(3, 4).requires_grad_()

    def inside(x: Any) -> Any:
        h = gn.sin(x.requires_grad_() if not x.requires_grad else x)
        return gn.grad(loss(h, w), [h, w])

    gh, gw = gn.vmap(inside)(xs.copy())
    for i, x in enumerate(xs):
        check(gh[i], gn.grad(loss)(gn.sin(x), w.detach()))
        check(gw[i], gn.grad(loss, 1)(gn.sin(x), w.detach()))


def test_gradients_of_each_sample_of_a_network() -> None:
    x, y = normal(5, 1, 6, 6), gn.asarray(np.array([0, 2, 1, 1, 0]))
    parameters = {"w": normal(4, 1, 3, 3), "b": normal(4), "v": normal(3, 16)}

    def of_one(p: Any, x: Any, y: Any) -> Any:
        h = F.max_pool2d(F.relu(F.conv2d(x[None], p["w"], p["b"])), 2)
        return F.cross_entropy(F.linear(h.reshape(1, -1), p["v"]), y[None])

    found = gn.vmap(gn.grad(of_one), in_axes=(None, 0, 0))(parameters, x, y)
    for i in range(5):
        expected = gn.grad(of_one)(parameters, x[i], y[i])
        for name in parameters:
            check(found[name][i], expected[name])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)),
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()).eval(),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda: nn.GRU(4, 3, batch_first=True),
        lambda: nn.RMSNorm(4),
    ],
)
def test_vmap_of_layers(layer: Any) -> None:
    module = layer()
    x = gn.random.normal((5, 2, 3, 4) if isinstance(module, (nn.GRU, nn.MultiheadAttention)) else (5, 3, 4))

    def call(x: Any) -> Any:
        return module(x, x, x)[0] if isinstance(module, nn.MultiheadAttention) else _tuple(module(x))[0]

    for grad in (False, True):
        with gn.set_grad_enabled(grad):
            found = gn.vmap(call)(x)
            check(found, np.stack([call(x[i]).detach().numpy() for i in range(5)]), 1e-5, 1e-6)


def test_random_numbers_under_vmap() -> None:
    x = gn.ones((3, 1000))
    y = gn.vmap(lambda x: F.dropout(x, 0.5))(x).numpy()
    assert (y[0] != y[1]).any() and (y[1] != y[2]).any() and abs(y.mean() - 1) < 0.1
    z = gn.vmap(lambda x: gn.random.normal((4,)) + x[0] * 0)(x).numpy()
    assert (z[0] == z[1]).all()


def test_vmap_refuses_what_it_cannot_do() -> None:
    x = normal(3, 4)
    with pytest.raises(GradientError, match=r"inside vmap.*gpunet\.where"):
        gn.vmap(lambda x: x if x.sum() > 0 else -x)(x)
    for look in (lambda x: x[0].item(), lambda x: np.asarray(x), lambda x: float(x[0]), lambda x: x.tolist()):
        with pytest.raises(GradientError, match="inside vmap, a tensor has no values"):
            gn.vmap(look)(x)
    with pytest.raises(ShapeError, match="depends on values"):
        gn.vmap(lambda x: gn.nonzero(x)[0])(x)
    with pytest.raises(GradientError, match="in place on a tensor of shape"):

        def write(x: Any) -> Any:
            x += 1
            return x

        gn.vmap(write)(x)
    outside = gn.zeros(4, dtype=gn.float64)
    with pytest.raises(GradientError, match="from outside vmap cannot be written"):
        gn.vmap(lambda x: outside.__setitem__(0, x[0]))(x)
    with pytest.raises(GradientError, match="from outside vmap cannot be written"):
        gn.vmap(lambda x: outside.__iadd__(x))(x)
    with pytest.raises(GradientError, match=r"x\[i\] = value inside vmap"):
        gn.vmap(lambda x: gn.zeros(3).__setitem__(gn.argmax(x), 1.0))(x)
    with pytest.raises(DTypeError, match="for a mask use"):
        gn.vmap(lambda x: x[x > 0])(x)
    with pytest.raises(GradientError, match="backward.. inside vmap"):
        gn.vmap(lambda x: x.sum().backward())(x.copy().requires_grad_())
    with pytest.raises(ShapeError, match="there is no axis 1 in an array of 1 axes"):
        gn.vmap(lambda x: x.sum(axis=1))(x)
    with pytest.raises(ShapeError, match=r"an array of shape \(4,\) cannot be given the shape"):
        gn.vmap(lambda x: x.reshape(3, 2))(x)
    with pytest.raises(ShapeError, match=r"inner.*inside vmap over 3 samples, each.*given \(4,\) float64 and \(3, 4\)"):
        gn.vmap(lambda x: x @ gn.ones((3, 4), dtype=gn.float64))(x)

    def write_to_view(x: Any) -> Any:
        y = x * 2
        z = y[1:]
        z += 1
        return y

    with pytest.raises(GradientError, match="shares memory with another tensor"):
        gn.vmap(write_to_view)(x)
    outside.requires_grad = True
    with pytest.raises(GradientError, match="inside vmap"):
        gn.vmap(lambda x: _Own.apply(x * outside))(x)


class _Own(gn.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 2


def test_vmap_checks_its_axes() -> None:
    x, y = normal(3, 4), normal(2)
    with pytest.raises(ShapeError, match="different numbers of samples: 3, and 2"):
        gn.vmap(lambda x, y: x)(x, y)
    with pytest.raises(ShapeError, match=r"axis 2, and value 0 of the arguments has shape \(3, 4\)"):
        gn.vmap(lambda x: x, in_axes=2)(x)
    with pytest.raises(ValueError, match="is for 1 arguments, and there are 2"):
        gn.vmap(lambda x, y: x, in_axes=(0,))(x, y)
    with pytest.raises(ValueError, match=r"is not nested as"):
        gn.vmap(lambda x: x, in_axes=((0, 0),))(x)
    with pytest.raises(DTypeError, match=r"value 1 of the arguments is a float.*None in in_axes"):
        gn.vmap(lambda x, s: x * s)(x, 2.0)
    with pytest.raises(ShapeError, match="no argument has samples"):
        gn.vmap(lambda x: x, in_axes=None)(x)
    with pytest.raises(DTypeError, match="must return Tensors, got a str"):
        gn.vmap(lambda x: "y")(x)
    with pytest.raises(ShapeError, match="out_axes says axis 2"):
        gn.vmap(lambda x: x, out_axes=2)(x)
    with pytest.raises(TypeError, match="expected a function"):
        gn.vmap(x)


def test_threads_do_not_see_each_other() -> None:
    x = normal(50, 20)
    expected = gn.vmap(gn.grad(lambda x: (x**3).sum()))(x)
    wrong = []

    def transform() -> None:
        for _ in range(20):
            if not (gn.vmap(gn.grad(lambda x: (x**3).sum()))(x) == expected).all():
                wrong.append("mapped")

    def plain() -> None:
        for _ in range(200):
            y = x.copy().requires_grad_()
            (y**3).sum().backward()
            if not (y.grad == expected).all():
                wrong.append("plain")

    threads = [threading.Thread(target=f) for f in (transform, plain, transform, plain)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_ops_cost_nothing_more_afterwards() -> None:
    before = gn.ops.op.Op.record, gn.Tensor.__add__, gn.Tensor.__getitem__
    with pytest.raises(ZeroDivisionError):
        gn.vmap(lambda x: 1 / 0)(normal(2))
    assert (gn.ops.op.Op.record, gn.Tensor.__add__, gn.Tensor.__getitem__) == before


# --- bad arguments


def test_errors_in_the_users_words() -> None:
    x = normal(3)
    with pytest.raises(GradientError, match=r"one element, got \(3,\) float64; reduce it first"):
        gn.grad(lambda x: x)(x)
    with pytest.raises(GradientError, match="got a float"):
        gn.grad(lambda x: 1.0)(x)
    with pytest.raises(DTypeError, match=r"an argument of shape \(2,\) is int64.*argnums"):
        gn.grad(lambda x: x.sum())(gn.asarray([1, 2]))
    with pytest.raises(DTypeError, match="expected a Tensor to differentiate with respect to, got 'x'"):
        gn.grad(lambda x: x)("x")
    with pytest.raises(ValueError, match="argnums is 1, and the function was given 1 arguments"):
        gn.grad(lambda x: x.sum(), argnums=1)(x)
    with pytest.raises(DTypeError, match=r"gpunet\.grad\(y, x\)"):
        gn.grad(x.copy().requires_grad_().sum())
    with pytest.raises(TypeError, match="must return a pair"):
        gn.grad(lambda x: x.sum(), has_aux=True)(x)
    with pytest.raises(TypeError, match="expected a function"):
        gn.value_and_grad(x)
    with pytest.raises(ValueError, match='the mode "reverse" or "forward"'):
        gn.jacobian(lambda x: x, mode="backward")
    with pytest.raises(DTypeError, match="must return Tensors, got a float"):
        gn.vjp(lambda x: 1.0, x)
    with pytest.raises(ShapeError, match=r"an output of shape \(3,\) must have that shape, got \(2,\)"):
        gn.vjp(lambda x: x, x)[1](normal(2))
    with pytest.raises(TypeError, match=r"jvp\(f, \(x,\), \(dx,\)\)"):
        gn.jvp(lambda x: x, x, x)
    with pytest.raises(ShapeError, match=r"shape \(3,\) must have that shape, got \(2,\)"):
        gn.jvp(lambda x: x, (x,), (normal(2),))
    with pytest.raises(ValueError, match="1 arguments and 2 tangents"):
        gn.jvp(lambda x: x, (x,), (x, x))
    with pytest.raises(GradientError, match="in place"):
        gn.grad(lambda x: x.__iadd__(1).sum())(x)


# --- recomputation


def _network() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def _gradients(model: Any, x: Any, call: Callable[[Any, Any], Any]) -> list[np.ndarray]:
    gn.manual_seed(3)
    model.zero_grad()
    x.grad = None
    value = (call(model, x) ** 2).sum() * gn.random.uniform(()).item()
    value.backward()
    return [value.detach().numpy(), x.grad.numpy(), *(p.grad.numpy() for p in model.parameters())]


def test_checkpoint_changes_no_gradient() -> None:
    model, x = _network(), gn.random.normal((5, 4)).requires_grad_()
    expected = _gradients(model, x, lambda f, x: f(x))
    ways: list[Callable[[Any, Any], Any]] = [
        gn.checkpoint,
        lambda f, x: gn.checkpoint(lambda x: gn.checkpoint(f, x), x),  # nested
        lambda f, x: gn.checkpoint(lambda: f(x)),  # x from outside
        lambda f, x: gn.checkpoint(lambda t, *, k: t["x"][0], {"x": (f(x), 3)}, k=None),  # a view of an argument
        lambda f, x: gn.checkpoint(lambda x: (x, f(x)), x)[1],  # an argument is a result
        lambda f, x: f[3](gn.checkpoint(lambda x: f[2](f[1](f[0](x))), x)),
    ]
    for way in ways:
        for a, b in zip(_gradients(model, x, way), expected):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_checkpoint_keeps_no_values_and_calls_again() -> None:
    calls, alive = [], []

    class Watched(gn.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            y = x * 1.0
            alive.append(y._memory)
            calls.append(x.shape)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g + 0 * ctx.saved_tensors[0]

    x = normal(3).requires_grad_()
    y = gn.checkpoint(lambda x: Watched.apply(x * 2) * 3, x)
    assert len(calls) == 1
    assert y._node.inputs[0].inputs == [x._node] and y._node.inputs[0].saved == [x._node]
    y.sum().backward()
    assert len(calls) == 2
    check(x.grad, np.full(3, 6.0))
    with gn.no_grad():
        assert not gn.checkpoint(lambda x: x * 2, x).requires_grad


def test_checkpoint_twice_differentiated_and_through_paths_that_meet() -> None:
    w, x = normal(3).requires_grad_(), normal(3).requires_grad_()

    def f(call: Any) -> Any:
        h = gn.sin(x)
        a, b = call(lambda h: (gn.exp(h * w) * x, h + w), h)  # x also reaches h
        return (a * b).sum() + b.sum()

    found, expected = (
        gn.grad(f(call), [x, w], create_graph=True) for call in (gn.checkpoint, lambda f, *args: f(*args))
    )
    for a, b in zip(found, expected):
        check(a, b)
        check(gn.grad((a**2).sum(), x, retain_graph=True), gn.grad((b**2).sum(), x, retain_graph=True))
    gn.testing.check_grads(lambda x: gn.checkpoint(lambda x: gn.tanh(x) * x, x), (normal(3),))
    check(gn.vmap(lambda x: gn.checkpoint(gn.tanh, x))(w.detach()), gn.tanh(w.detach()))


def test_checkpoint_refuses_what_would_be_wrong() -> None:
    x, b = normal(3).requires_grad_(), normal(3)
    y = gn.checkpoint(lambda x, b: x * b, x, b)
    b += 1
    with pytest.raises(GradientError, match=r"shape \(3,\) that the function uses was changed in place"):
        y.sum().backward()
    calls: list[int] = []

    def different(x: Any) -> Any:
        calls.append(1)
        return x * 2 if len(calls) < 2 else (x * 2)[:1]

    with pytest.raises(GradientError, match="something else than the first time"):
        gn.checkpoint(different, x).sum().backward()
    with pytest.raises(TypeError, match="expected a function and its arguments"):
        gn.checkpoint(x)


# --- hooks


def test_hooks_of_tensors(device: str) -> None:
    x = normal(3, device=device).requires_grad_()
    h = x * 2
    seen: list[Any] = []
    first = h.register_hook(lambda g: seen.append(g))
    second = h.register_hook(lambda g: g * 10)
    leaf = x.register_hook(lambda g: g + 1)
    (h * h).sum().backward(retain_graph=True)
    check(seen[0], 2 * h.detach())
    check(x.grad, 10 * 2 * 2 * h.detach() + 1)
    first.remove()
    first.remove()
    second.remove()
    leaf.remove()
    x.grad = None
    y = h.sum() + (h * 3).sum()
    with h.register_hook(lambda g: seen.append(g)):
        check(gn.grad(y, x, create_graph=True), np.full(3, 8.0))
    check(seen[1], np.full(3, 4.0))  # once, when it is complete
    assert len(seen) == 2


def test_hooks_are_differentiated_and_checked() -> None:
    x = normal(3).requires_grad_()
    y = x * x
    y.register_hook(lambda g: g * x)
    (g,) = gn.grad(y.sum(), [x], create_graph=True)
    check(g, 2 * x.detach() ** 2)
    check(gn.grad(g.sum(), x), 4 * x.detach())
    z = x * 1.0
    handle = z.register_hook(lambda g: g[:2])
    with pytest.raises(GradientError, match=r"a hook must return a gradient of shape \(3,\), got \(2,\)"):
        z.sum().backward()
    handle.remove()
    z = x * 1.0
    z.register_hook(lambda g: 1.0)
    with pytest.raises(GradientError, match="must return a Tensor or None, got float"):
        z.sum().backward()
    with pytest.raises(GradientError, match="does not require gradients"):
        x.detach().register_hook(print)
    with pytest.raises(TypeError, match="a function of the gradient"):
        x.register_hook(3)
    w = (normal(2) + 1j * normal(2)).requires_grad_()
    seen: list[Any] = []
    w.register_hook(lambda g: seen.append(g))
    (gn.abs(w) ** 2).sum().backward()
    check(seen[0], 2 * w.detach())  # as .grad has it
    check(w.grad, 2 * w.detach())


# --- anomalies


def test_anomaly_names_op_line_and_shapes(device: str) -> None:
    x = gn.asarray(np.array([1.0, 0.0]), device=device).requires_grad_()
    with np.errstate(all="ignore"):
        with pytest.raises(FloatingPointError) as error, gn.detect_anomaly():
            gn.log(x * 2.0)  # here
        text = str(error.value)
        assert text.startswith("log made the first infinity in values: 1 of the 2 elements of its result, (2,) float64")
        assert "test_transforms.py" in text and "# here" in text
        big = gn.asarray(np.array([np.inf, 0.0]), device=device)
        made = r"add made the first NaN in values.*given \(2,\) float64 and"
        with pytest.raises(FloatingPointError, match=made), gn.detect_anomaly():
            big + -big
        with pytest.raises(FloatingPointError) as error, gn.detect_anomaly():
            y = gn.sqrt(x)  # there
            (y * 2).sum().backward()
        text = str(error.value)
        assert text.startswith("the derivative of sqrt made the first infinity in gradients: 1 of the 2 elements")
        assert "input 0, (2,) float64" in text and "# there" in text
        y = gn.sqrt(x).sum()
        with pytest.raises(FloatingPointError, match="a line outside detect_anomaly"), gn.detect_anomaly():
            y.backward()
        with pytest.raises(FloatingPointError, match="the derivative of sqrt"), gn.detect_anomaly():
            gn.grad(gn.sqrt(x).sum(), x, create_graph=True)


def test_anomaly_lets_pass_what_is_put_in_and_ends() -> None:
    x = normal(2, 3).requires_grad_()
    with gn.detect_anomaly(), gn.detect_anomaly():
        masked = gn.where(gn.asarray([True, False, True]), x, -gn.inf)
        p = F.softmax(masked, axis=-1)
        p.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    with np.errstate(all="ignore"):
        assert np.isinf(gn.log(x * 0.0).detach().numpy()).all()

        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        model[0].weight.data[:] = 1e38
        with pytest.raises(FloatingPointError, match="linear_relu made the first"), gn.detect_anomaly(), gn.no_grad():
            model(gn.full((2, 3), 1e30))

        @gn.detect_anomaly()
        def f() -> None:
            gn.vmap(gn.log)(x.detach() * 0.0)

        with pytest.raises(FloatingPointError, match="log made the first"):
            f()


# --- torch.func


def test_as_torch() -> None:
    torch = pytest.importorskip("torch")
    x, w, xs = normal(4), normal(3, 4), normal(6, 4)
    tx, tw, txs = (torch.tensor(t.numpy()) for t in (x, w, xs))

    def other(x: Any, w: Any) -> Any:
        return (torch.tanh(w @ x) ** 2).sum() + torch.exp(x).mean()

    check(gn.grad(loss, (0, 1))(x, w)[1], torch.func.grad(other, (0, 1))(tx, tw)[1])
    check(gn.hessian(loss)(x, w), torch.func.hessian(other)(tx, tw))
    for a, b in zip(gn.jvp(loss, (x, w), (x, w)), torch.func.jvp(other, (tx, tw), (tx, tw))):
        check(a, b)
    mapped = gn.vmap(gn.jacobian(gn.grad(loss), 1), (0, None))(xs, w)
    check(mapped, torch.func.vmap(torch.func.jacrev(torch.func.grad(other), 1), (0, None))(txs, tw))
    z = normal(3) + 1j * normal(3)
    tz = torch.tensor(z.numpy())
    check(
        gn.grad(lambda z: (gn.abs(gn.exp(z) * z) ** 2).sum())(z),
        torch.func.grad(lambda z: (torch.abs(torch.exp(z) * z) ** 2).sum())(tz),
    )
    _, pull = gn.vjp(lambda z: gn.exp(z) * gn.conj(z), z)
    _, other_pull = torch.func.vjp(lambda z: torch.exp(z) * z.conj(), tz)
    check(pull(z)[0], other_pull(tz)[0].resolve_conj())
