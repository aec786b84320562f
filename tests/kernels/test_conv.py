"""Convolutions on a device with kernels: every kernel that dispatch can choose, and what users meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation, prebuild
from gpunet.errors import DeviceError, ShapeError
from gpunet.ops import conv_kernels
from gpunet.ops.conv import conv, conv_input_grad, conv_relu, conv_relu_pool, conv_weight_grad
from tests.gradcheck import check_gradients
from tests.kernels.gemm_cases import UNITS
from tests.ops.test_gradients import CASES

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")

rng = np.random.default_rng(0)

# Of each kind of kernel, the smallest tile.
SMALLEST = ("simt 32x32", "mma 64x64", "wgmma 64x64", "direct")


class Shape(NamedTuple):
    """A convolution: shapes of x and of the weight, and how it goes."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def how(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


SHAPES = {
    "one axis": Shape((3, 3, 21), (5, 3, 4), (1,), ((2, 1),), (1,)),
    "one axis, strided": Shape((2, 8, 37), (16, 8, 5), (3,), ((2, 3),), (2,)),
    "aligned": Shape((2, 16, 7, 9), (24, 16, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "many channels": Shape((3, 72, 6, 8), (72, 72, 2, 2), (1, 1), ((1, 1), (0, 1)), (1, 2)),
    "long sums": Shape((1, 264, 2, 3), (16, 264, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "many pixels": Shape((2, 8, 24, 25), (16, 8, 2, 1), (1, 1), ((1, 0), (0, 0)), (1, 1)),
    "aligned, strided": Shape((3, 16, 8, 9), (8, 16, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    "aligned, in groups": Shape((2, 32, 6, 5), (48, 16, 3, 2), (1, 1), ((1, 0), (0, 1)), (1, 1), 2),
    "few channels": Shape((2, 3, 9, 11), (6, 3, 5, 3), (2, 2), ((2, 2), (1, 1)), (1, 1)),
    "asymmetric": Shape((2, 4, 7, 6), (2, 4, 3, 2), (2, 3), ((1, 0), (0, 2)), (1, 2)),
    "dilation meets stride": Shape((1, 8, 17, 16), (8, 8, 3, 3), (4, 2), ((1, 0), (0, 2)), (2, 3)),
    "more than eight classes": Shape((1, 4, 8, 7), (4, 4, 2, 4), (3, 3), ((0, 1), (2, 0)), (1, 1)),
    "pixels between windows": Shape((2, 8, 6, 7), (8, 8, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    "padding beyond the kernel": Shape((1, 8, 3, 2), (8, 8, 2, 2), (1, 1), ((3, 2), (2, 4)), (1, 1)),
    "depthwise": Shape((3, 64, 10, 10), (64, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 64),
    "depthwise, strided": Shape((2, 16, 8, 7), (16, 1, 3, 4), (2, 2), ((1, 1), (2, 1)), (1, 2), 16),
    "depthwise, odd": Shape((3, 5, 6, 4), (5, 1, 4, 3), (1, 3), ((1, 2), (0, 1)), (1, 1), 5),
    "depthwise, to more": Shape((2, 3, 6, 5), (24, 1, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 3),
    "depthwise, to odd": Shape((2, 4, 6, 5), (12, 1, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 4),
    "depthwise, one axis": Shape((2, 8, 40), (8, 1, 31), (1,), ((15, 15),), (1,), 8),
    "one channel": Shape((3, 1, 9, 10), (16, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "three channels": Shape((2, 3, 9, 10), (8, 3, 3, 3), (2, 1), ((1, 1), (0, 1)), (1, 1)),
    "three axes": Shape((2, 8, 4, 5, 3), (8, 4, 2, 3, 2), (1, 2, 1), ((0, 1), (1, 1), (1, 0)), (1, 1, 2), 2),
    "single pixels": Shape((2, 8, 5, 6), (16, 8, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "whole images": Shape((3, 8, 3, 2), (16, 8, 3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
}


def arrays(shape: Shape, dtype: Any) -> dict[str, np.ndarray]:
    """x, weight, bias, and a gradient of the result, g."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(dtype) for s in (shape.x, shape.weight))
    with gn.kernels("auto"):
        out = conv(x[:, :, ...].astype(np.float64), weight.astype(np.float64), None, **shape.how)
    g = rng.standard_normal(out.shape).astype(dtype)
    return {"x": x, "weight": weight, "bias": rng.standard_normal(shape.weight[0]).astype(dtype), "g": g}


def passes(shape: Shape) -> dict[str, tuple[Callable[..., Any], tuple[str, ...]]]:
    """Each pass as a function of some of the arrays."""
    how = shape.how
    return {
        "FORWARD": (lambda x, w, b: conv(x, w, b, **how), ("x", "weight", "bias")),
        "INPUT_GRAD": (lambda g, w: conv_input_grad(g, w, shape=shape.x, **how), ("g", "weight")),
        "WEIGHT_GRAD": (lambda x, g: conv_weight_grad(x, g, shape=shape.weight, **how), ("x", "g")),
    }


def dtype_of(compute: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if compute == "bfloat16" else compute.replace("tf32", "float32"))


def bound(function: Callable[..., Any], compute: str, names: tuple[str, ...], values: dict[str, np.ndarray]) -> Any:
    """By how much a pass may differ from that in float64: by the rounding of the result, of the operands where they are
    rounded, and of sums, for which the pass of magnitudes says how large they get."""
    stored, multiplied, summed = UNITS[compute]
    with gn.kernels("auto"):
        magnitude = function(*(np.abs(values[name]).astype(np.float64) for name in names))
        exact = function(*(values[name].astype(np.float64) for name in names))
    return exact, 1e-30 + 2 * stored * np.abs(exact) + (2 * multiplied + 40 * summed) * magnitude


def on(backend: Backend, x: np.ndarray) -> Any:
    return backend.from_numpy(x, Device(backend.name))


def geometry_of(shape: Shape) -> conv_kernels.Geometry:
    y = conv(np.zeros(shape.x), np.zeros(shape.weight), None, **shape.how).shape
    about = conv_kernels.geometry(shape.x, y, shape.weight, shape.stride, shape.padding, shape.dilation, shape.groups)
    assert about is not None
    return about


def plans(shape: Shape, which: str, compute: str, architecture: str, processors: int) -> Iterator[conv_kernels.Plan]:
    """Of the ways to compute a pass, one for each kernel, and one more for each where sums are split."""
    about = geometry_of(shape)
    seen = set()
    precision = "high" if compute == "tf32" else "highest"
    found = conv_kernels.plans(
        about, which, dtype_of(compute).name, True, 0, which == "FORWARD", architecture, processors, precision
    )
    for plan in found:
        key = plan.choice.variant, plan.choice.splits > 1
        if key not in seen:
            seen.add(key)
            yield plan


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def weight_last(weight: np.ndarray) -> np.ndarray:
    """(O, I, *kernel) as (*kernel, I, O)."""
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(weight, 0, -1), 0, -2))


def check(backend: Backend, shape: Shape, which: str, compute: str, made: list[conv_kernels.Plan]) -> None:
    """Compare what plans for a pass make with float64."""
    values = arrays(shape, dtype_of(compute))
    exact, limit = bound(*passes(shape)[which][:1], compute, passes(shape)[which][1], values)
    turn = weight_last if which == "WEIGHT_GRAD" else channels_last
    exact, limit = turn(exact), turn(limit)
    operands = {"FORWARD": ("x", "weight"), "INPUT_GRAD": ("g", "weight"), "WEIGHT_GRAD": ("x", "g")}[which]
    a, b = (on(backend, weight_last(values[k]) if k == "weight" else channels_last(values[k])) for k in operands)
    bias = on(backend, values["bias"]) if which == "FORWARD" else None
    launcher = backend.launcher("conv")  # type: ignore[misc]
    for plan in made:
        out = launcher.empty(exact.shape, values["x"].dtype)
        conv_kernels.run(launcher, plan, a, b, out, bias)
        error = np.abs(backend.to_numpy(out).astype(np.float64) - exact)
        assert (error <= limit).all(), f"{plan.choice}: off by up to {(error / limit).max():.1f} times what it may be"


@pytest.mark.parametrize("compute", UNITS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_kernel(name: str, compute: str, kernel_device: Backend) -> None:
    launcher = kernel_device.launcher("conv")  # type: ignore[misc]
    made = {
        which: list(plans(SHAPES[name], which, compute, launcher.architecture, launcher.processors))
        for which in conv_kernels.PASSES
    }
    assert all(made.values())
    if compute == "bfloat16":  # the large tiles are half's
        made = {which: [p for p in found if p.choice.tile in SMALLEST] or found for which, found in made.items()}
    if kernel_device.name == "emulated":
        prebuild([plan.choice.variant for found in made.values() for plan in found])
    with emulation(order="random", late=True):
        for which, found in made.items():
            check(kernel_device, SHAPES[name], which, compute, found)


@pytest.mark.parametrize(
    "name", [n for n in CASES if n.split(":")[0] in ("conv", "conv_input_grad", "conv_weight_grad")]
)
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    with gn.kernels("force"):
        check_gradients(f, inputs, device=kernel_device.name)


@pytest.mark.parametrize("name", ["aligned", "aligned, in groups", "asymmetric", "whole images", "three axes"])
def test_results_of_ops_lie_channels_last(name: str, kernel_device: Backend) -> None:
    shape = SHAPES[name]
    values = arrays(shape, np.dtype(np.float32))
    device = {k: gn.asarray(v, device=kernel_device.name) for k, v in values.items()}
    with gn.kernels("force"):
        for function, names in passes(shape).values():
            y = function(*(device[n] for n in names)).data
            exact, limit = bound(function, "float32", names, values)
            assert (np.abs(kernel_device.to_numpy(y) - exact) <= limit).all()
            if exact.shape == shape.weight:
                assert y.transpose(*range(2, y.ndim), 1, 0).flags.c_contiguous
            else:
                assert y.transpose(0, *range(2, y.ndim), 1).flags.c_contiguous


@pytest.mark.parametrize("name", ["three channels", "few channels"])
@pytest.mark.parametrize("compute", ["float16", "tf32"])
def test_channels_are_padded_for_tensor_cores(
    name: str, compute: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_kernels, "_WORTH_PADDING", 1)
    shape = SHAPES[name]._replace(weight=(8, *SHAPES[name].weight[1:]))
    values = arrays(shape, dtype_of(compute))
    log: list[Any] = []
    gn.set_float32_precision("high" if compute == "tf32" else "highest")
    try:
        with gn.kernels("force"), emulation(log=log):
            for function, names in passes(shape).values():
                y = kernel_device.to_numpy(function(*(on(kernel_device, values[n]) for n in names)))
                exact, limit = bound(function, compute, names, values)
                assert y.shape == exact.shape and (np.abs(y - exact) <= limit).all()
    finally:
        gn.set_float32_precision("highest")
    assert kernel_device.name != "emulated" or sum(e.startswith("conv_mma") for e, _ in log) == 3


def test_any_layout_is_taken(kernel_device: Backend) -> None:
    shape = SHAPES["aligned"]
    values = arrays(shape, np.dtype(np.float32))
    exact, limit = bound(*passes(shape)["FORWARD"][:1], "float32", ("x", "weight", "bias"), values)
    x, weight = (on(kernel_device, values[k]) for k in ("x", "weight"))
    turned = on(kernel_device, np.ascontiguousarray(values["x"].T)).T
    last = on(kernel_device, np.ascontiguousarray(np.moveaxis(values["x"], 1, -1))).transpose(0, 3, 1, 2)
    every_second = on(kernel_device, np.repeat(values["weight"], 2, axis=2))[:, :, ::2]
    bias = on(kernel_device, np.repeat(values["bias"], 2))[::2]
    with gn.kernels("force"):
        for a, w in ((x, weight), (turned, weight), (last, weight), (x, every_second)):
            y = kernel_device.to_numpy(conv(a, w, bias, **shape.how))
            assert (np.abs(y - exact) <= limit).all()


@pytest.mark.parametrize("name", ["aligned", "in one pixel"])
def test_relu_is_part_of_the_epilogue(name: str, kernel_device: Backend) -> None:
    shape = SHAPES["single pixels" if name == "in one pixel" else name]
    values = arrays(shape, np.dtype(np.float32))
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        y = conv_relu(*(gn.asarray(values[k], device=kernel_device.name) for k in ("x", "weight", "bias")), **shape.how)
    exact, limit = bound(*passes(shape)["FORWARD"][:1], "float32", ("x", "weight", "bias"), values)
    assert (np.abs(y.cpu().numpy() - np.maximum(exact, 0)) <= limit).all()
    if kernel_device.name == "emulated":
        assert [e.split("<")[0] for e, _ in log if not e.startswith("copy")] in (["conv_simt"], ["matmul_simt"])


def test_layers_in_a_row_take_few_launches(kernel_device: Backend) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3), nn.ReLU())
    x = rng.standard_normal((2, 8, 8, 10)).astype(np.float32)
    results = []
    log: list[Any] = []
    for device in ("cpu", kernel_device.name):
        model.to(device).zero_grad()
        data = gn.tensor(x, device=device, requires_grad=True)
        with gn.kernels("auto" if device == "cpu" else "force"):
            with emulation(log=log):
                y = model(data)
            (y * y).sum().backward()
        results.append([a.detach().cpu().numpy() for a in (y, data.grad, *(p.grad for p in model.parameters()))])
    for got, expected in zip(*results):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    if kernel_device.name == "emulated":
        kernels = [e.split("<")[0] for e, _ in log if not e.startswith("copy")]
        assert len(kernels) == 3 and kernels[0].startswith("conv") and kernels[2].startswith("conv")


def test_pooling_behind_a_convolution(kernel_device: Backend) -> None:
    shape = SHAPES["aligned"]
    values = arrays(shape, np.dtype(np.float32))
    with gn.kernels("force"):
        y, offsets = conv_relu_pool(*(on(kernel_device, values[k]) for k in ("x", "weight", "bias")), **shape.how)
    expected, places = conv_relu_pool(*(values[k] for k in ("x", "weight", "bias")), **shape.how)
    np.testing.assert_allclose(kernel_device.to_numpy(y), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(kernel_device.to_numpy(offsets), places)


def test_residuals_are_added_behind_the_activation(kernel_device: Backend) -> None:
    for name in ("aligned", "single pixels", "depthwise"):
        shape = SHAPES[name]
        values = arrays(shape, np.dtype(np.float32))
        exact, limit = bound(*passes(shape)["FORWARD"][:1], "float32", ("x", "weight", "bias"), values)
        about = geometry_of(shape)
        x, weight, bias, residual = (on(kernel_device, values[k]) for k in ("x", "weight", "bias", "g"))
        launcher = kernel_device.launcher("conv")  # type: ignore[misc]
        y = conv_kernels.forward(launcher, about, x, weight, bias, residual, "silu")
        expected = exact / (1 + np.exp(-exact)) + values["g"]
        assert (np.abs(kernel_device.to_numpy(y) - expected) <= 2 * limit + 1e-6 * np.abs(expected)).all()


def test_the_order_of_blocks_makes_no_difference(kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device runs blocks in another order")
    for name in ("aligned, strided", "few channels", "depthwise"):
        shape = SHAPES[name]
        values = arrays(shape, np.dtype(np.float32))
        results = []
        for order, seed in (("forward", 0), ("reverse", 0), ("random", 3)):
            with gn.kernels("force"), emulation(order=order, seed=seed, late=True):
                device = {k: gn.asarray(v, device="emulated") for k, v in values.items()}
                outs = [function(*(device[n] for n in names)) for function, names in passes(shape).values()]
            results.append([out.cpu().numpy().tobytes() for out in outs])
        assert results[0] == results[1] == results[2]


def test_infinities_and_nans_stay_in_their_windows(kernel_device: Backend) -> None:
    shape = SHAPES["aligned"]
    values = arrays(shape, np.dtype(np.float32))
    values["x"][0, 3, 2, 4], values["x"][1, 0, 0, 0] = np.nan, np.inf
    with gn.kernels("force"):
        y = conv(*(on(kernel_device, values[k]) for k in ("x", "weight", "bias")), **shape.how)
    result = kernel_device.to_numpy(y)
    assert np.isnan(result[0, :, 1:4, 3:6]).all() and np.isfinite(result[0, :, 4:]).all()
    assert np.isinf(result[1, :, :2, :2]).all() and np.isfinite(result[1, :, 2:]).all()


def test_empty_batches(kernel_device: Backend) -> None:
    shape = SHAPES["aligned"]
    x = gn.zeros((0, *shape.x[1:]), device=kernel_device.name)
    weight = gn.ones(shape.weight, device=kernel_device.name)
    with gn.kernels("force"):
        y = conv(x, weight, None, **shape.how)
        assert y.shape == (0, 24, 7, 9)
        assert conv_input_grad(y, weight, shape=x.shape, **shape.how).shape == x.shape
        total = conv_weight_grad(x, y, shape=shape.weight, **shape.how)
    np.testing.assert_array_equal(total.cpu().numpy(), np.zeros(shape.weight, np.float32))


def test_what_does_not_fit_is_an_error(kernel_device: Backend) -> None:
    def ones(*shape: int) -> Any:
        return gn.ones(shape, device=kernel_device.name)

    how = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    with gn.kernels("force"):
        with pytest.raises(ShapeError, match="is larger than the padded input"):
            conv(ones(1, 2, 2, 2), ones(3, 2, 3, 3), None, **how)
        with pytest.raises(ShapeError, match="3 output channels do not divide into 2 groups"):
            conv(ones(1, 2, 4, 4), ones(3, 1, 3, 3), None, **{**how, "groups": 2})
        with pytest.raises(ShapeError, match="takes 2 input channels, got 3"):
            conv(ones(1, 3, 4, 4), ones(3, 2, 3, 3), None, **how)
        with pytest.raises(ShapeError, match="must be positive"):
            conv(ones(1, 2, 4, 4), ones(3, 2, 3, 3), None, **{**how, "stride": (0, 1)})
        with pytest.raises(ShapeError, match=r"expected a bias of shape \(3,\), got \(2,\)"):
            conv(ones(1, 2, 4, 4), ones(3, 2, 3, 3), ones(2), **how)


def test_types_that_no_kernel_has(kernel_device: Backend) -> None:
    how = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,)}
    x = gn.asarray(np.ones((1, 2, 3), np.complex64), device=kernel_device.name)
    assert conv(x, x[:, :, :2], None, **how).dtype == gn.complex64
    with gn.kernels("force"), pytest.raises(DeviceError, match="conv: none of its kernels applies"):
        conv(x, x[:, :, :2], None, **how)


def test_plans_split_long_sums() -> None:
    """The gradient of a small weight is a sum over all pixels: it needs blocks for every processor."""
    about = conv_kernels.Geometry(32, 64, 64, 1, (1, 56, 56), (1, 56, 56), (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1))
    plan = conv_kernels.make_plan(about, "WEIGHT_GRAD", "float32", True, 0, False, "sm_90a", 132, "highest")
    assert plan is not None and plan.reduction is not None
    blocks = np.prod(plan.launches[0][0])
    assert 132 <= blocks <= 132 * 8
    assert plan.workspace == plan.choice.splits * 64 * 576
