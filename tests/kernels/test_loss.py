"""Losses on a device with kernels, against their references on the CPU in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation
from gpunet.errors import DeviceError
from gpunet.nn import functional as F
from gpunet.ops import loss, loss_kernels, row_kernels
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
IGNORED = -100
TOLERANCE = {"float64": 1e-12, "float32": 3e-6, "float16": 4e-3}


def on(backend: Backend, *arrays: Any) -> list[Any]:
    return [None if a is None else gn.asarray(a, device=backend.name).data for a in arrays]


def logits(n: int, classes: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes of which some are ignored."""
    target = rng.integers(0, classes, n)
    target[1::4] = IGNORED
    return (4 * rng.standard_normal((n, classes))).astype(dtype), target


def check(backend: Backend, x: np.ndarray, target: np.ndarray, weight: Any = None, **how: Any) -> None:
    """Compare the loss, its gradient, and both of one pass with what float64 gives on the CPU."""
    how = {"label_smoothing": 0.0, "ignore_index": IGNORED, "reduction": "mean", **how}
    tolerance = TOLERANCE[x.dtype.name]
    wide = [None if a is None else a.astype(np.float64) for a in (x, weight)]
    exact = loss.cross_entropy.reference(np, wide[0], target, wide[1], **how)
    g = np.asarray(rng.standard_normal(exact.shape)).astype(x.dtype)
    gradient = loss.cross_entropy_grad.reference(np, g.astype(np.float64), wide[0], target, wide[1], **how)
    kept: list[Any] = []
    with gn.kernels("force"):
        x_, g_, target_, weight_ = on(backend, x, g, target, weight)
        got = [loss.cross_entropy(x_, target_, weight_, **how, kept=k) for k in (None, kept)]
        gradients = [loss.cross_entropy_grad(g_, x_, target_, weight_, **how)]
        gradients += [loss.scaled(kept.pop(), g_)] if kept else []
    assert len(gradients) == 1 + (how["reduction"] != "none")
    for y in got:
        assert y.dtype == x.dtype
        np.testing.assert_allclose(np.asarray(y).astype(np.float64), exact, rtol=4 * tolerance, atol=8 * tolerance)
    for dx in gradients:
        np.testing.assert_allclose(np.asarray(dx).astype(np.float64), gradient, rtol=20 * tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(weighted: bool, smoothing: float, reduction: str, kernel_device: Backend) -> None:
    x, target = logits(37, 10)
    weight = rng.uniform(0.5, 2, 10).astype(np.float32) if weighted else None
    check(kernel_device, x, target, weight, label_smoothing=smoothing, reduction=reduction)


@pytest.mark.parametrize("classes", [1, 301, 2001, 5001])
def test_more_classes(classes: int, kernel_device: Backend) -> None:
    x, target = logits(5, classes)
    check(kernel_device, x, target, label_smoothing=0.2 * (classes == 301))


def test_rows_longer_than_shared_memory(kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_kernels, "most_held", lambda launcher: 0)
    check(kernel_device, *logits(3, 5003))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_types(dtype: str, kernel_device: Backend) -> None:
    check(kernel_device, *logits(9, 10, dtype))
    check(kernel_device, *logits(9, 10, dtype), reduction="none")


def test_many_rows_are_added_up_in_parts(kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_kernels, "_PART", 16)
    check(kernel_device, *logits(101, 10), rng.uniform(0.5, 2, 10).astype(np.float32))


def test_views(kernel_device: Backend) -> None:
    x, target = logits(12, 11)
    exact = loss.cross_entropy.reference(np, x[::2, 1:].astype(np.float64), target[::2] % 10)
    x_, target_ = on(kernel_device, x, target % 10)
    turned = on(kernel_device, np.ascontiguousarray(x.T))[0].T
    with gn.kernels("force"):
        for a in (x_, turned):
            np.testing.assert_allclose(np.asarray(loss.cross_entropy(a[::2, 1:], target_[::2])), exact, rtol=1e-5)


def test_large_logits_and_no_number(kernel_device: Backend) -> None:
    x = np.array([[1e4, 0, -1e4], [0, np.nan, 0], [np.inf, 0, 0], [0, -np.inf, 0]], np.float32)
    target = np.array([1, 0, 0, 0])
    with gn.kernels("force"):
        y = loss.cross_entropy(*on(kernel_device, x, target))
    np.testing.assert_allclose(np.asarray(y), [1e4, np.nan, np.nan, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("mode", ["force", "off"])
@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.1}], ids=str)
def test_a_class_out_of_range_is_no_number(how: dict[str, Any], mode: str, kernel_device: Backend) -> None:
    x, target = logits(4, 3)
    target[:] = [0, 7, IGNORED, -1]
    with gn.kernels("auto" if mode == "force" else "off"):
        t = gn.tensor(x, device=kernel_device.name, requires_grad=True)
        y = F.cross_entropy(t, gn.asarray(target, device=kernel_device.name), reduction="none", **how)
        gn.sum(y).backward()
    assert np.isnan(y.detach().cpu().numpy()).tolist() == [False, True, False, True]
    assert np.isnan(t.grad.cpu().numpy()).all(1).tolist() == [False, True, False, True]


def test_what_does_not_count(kernel_device: Backend) -> None:
    x, target = logits(4, 3)
    target[:] = IGNORED
    with gn.kernels("force"):
        x_, target_ = on(kernel_device, x, target)
        assert np.isnan(np.asarray(loss.cross_entropy(x_, target_, reduction="mean")))
        assert np.asarray(loss.cross_entropy(x_, target_, reduction="sum")) == 0
        for n, reduction in ((0, "mean"), (0, "sum"), (0, "none")):
            y = np.asarray(loss.cross_entropy(x_[:n], target_[:n], reduction=reduction))
            assert y.shape == ((0,) if reduction == "none" else ())
            assert np.isnan(y).all() if reduction == "mean" else not y.any()


def test_one_pass_gives_the_loss_and_its_gradient(kernel_device: Backend) -> None:
    """And a second backward pass, or one of another factor, the right one too."""
    x, target = logits(9, 10)
    t = gn.tensor(x, device=kernel_device.name, requires_grad=True)
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        y = F.cross_entropy(t, gn.asarray(target, device=kernel_device.name), ignore_index=IGNORED)
        (first,) = gn.grad(y, [t], retain_graph=True)
    if kernel_device.name == "emulated":
        names = [expression.split("<")[0] for expression, _ in log]
        names = [name for name in names if name in ("class_sums", "rows_in_registers", "scale")]
        assert names == ["class_sums", "rows_in_registers", "class_sums", "scale"]
    (second,) = gn.grad(y * 3.0, [t])
    exact = loss.cross_entropy_grad.reference(
        np, np.ones(()), x.astype(np.float64), target, label_smoothing=0, ignore_index=IGNORED, reduction="mean"
    )
    np.testing.assert_allclose(first.cpu().numpy(), exact, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(second.cpu().numpy(), 3 * exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_binary_cross_entropy(dtype: str, kernel_device: Backend) -> None:
    x, target, g = (rng.uniform(0, 1, (5, 37)).astype(dtype) for _ in range(3))
    x[0, :4], target[0, :4] = [0, 1, 0, 1], [0, 1, 1, 0]
    for views in (lambda a: a, lambda a: a[::2, 1:], lambda a: a.T):
        parts = [views(a) for a in (g, x, target)]
        wide = [a.astype(np.float64) for a in parts]
        with gn.kernels("force"):
            g_, x_, target_ = (views(a) for a in on(kernel_device, g, x, target))
            y = np.asarray(loss.binary_cross_entropy(x_, target_)).astype(np.float64)
            dx = np.asarray(loss.binary_cross_entropy_grad(g_, x_, target_)).astype(np.float64)
        exact = loss.binary_cross_entropy.reference(np, *wide[1:])
        np.testing.assert_allclose(y, exact, rtol=8 * TOLERANCE[dtype], atol=TOLERANCE[dtype])
        inside = (wide[1] > 0.01) & (wide[1] < 0.99)
        exact = loss.binary_cross_entropy_grad.reference(np, *wide)
        np.testing.assert_allclose(dx[inside], exact[inside], rtol=100 * TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert np.isfinite(dx[wide[1] == wide[2]]).all()
    x[1, 1] = np.nan
    with gn.kernels("force"):
        assert np.isnan(np.asarray(loss.binary_cross_entropy(*on(kernel_device, x, target)))).sum() == 1


def test_what_no_kernel_takes(kernel_device: Backend) -> None:
    x, target = logits(4, 3)
    with gn.kernels("force"), pytest.raises(DeviceError, match="cross_entropy: none of its kernels applies"):
        loss.cross_entropy(*on(kernel_device, x, target.astype(np.int32)))


def test_the_same_bits_in_every_order(kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("a GPU chooses the order itself")
    monkeypatch.setattr(loss_kernels, "_PART", 16)
    results = []
    arrays = on(kernel_device, *logits(101, 301))
    for order, processors in (("forward", 4), ("reverse", 1), ("random", 2)):
        with emulation(order=order, seed=1, processors=processors), gn.kernels("force"):
            kept: list[Any] = []
            y = loss.cross_entropy(*arrays, reduction="mean", kept=kept)
            results.append(y.tobytes() + kept[0].tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", [n for n in CASES if "cross_entropy" in n])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)
