"""Batch and layer normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.nn.layers import check_against_torch, check_layer

rng = np.random.default_rng(0)

BATCH: list[tuple[str, tuple[int, ...]]] = [
    ("BatchNorm1d", (6, 3)),
    ("BatchNorm1d", (4, 3, 5)),
    ("BatchNorm2d", (3, 3, 4, 2)),
    ("BatchNorm3d", (2, 3, 3, 2, 2)),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.3, "eps": 1e-2},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
]


def spread(shape: tuple[int, ...]) -> np.ndarray:
    """Channels of different means and variances."""
    along = (3,) + (1,) * (len(shape) - 2)
    return rng.standard_normal(shape) * np.array([0.5, 1.0, 3.0]).reshape(along) + np.arange(3.0).reshape(along)


@pytest.mark.parametrize(("make", "shape"), BATCH)
def test_batch_norm_by_its_definition(make: str, shape: tuple[int, ...], device: str) -> None:
    layer = getattr(nn, make)(3, dtype="float64", device=device)
    mean, var = np.zeros(3), np.ones(3)
    axes = (0, *range(2, len(shape)))
    along = (3,) + (1,) * (len(shape) - 2)
    for batch in range(1, 4):
        x = spread(shape)
        y = layer(gn.tensor(x, device=device)).detach().cpu().numpy()
        m, v = x.mean(axes), x.var(axes)
        np.testing.assert_allclose(y, (x - m.reshape(along)) / np.sqrt(v.reshape(along) + 1e-5), rtol=1e-9, atol=1e-12)
        mean, var = 0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * x.var(axes, ddof=1)
        np.testing.assert_allclose(layer.running_mean.cpu().numpy(), mean, rtol=1e-12)
        np.testing.assert_allclose(layer.running_var.cpu().numpy(), var, rtol=1e-12)
        assert layer.num_batches_tracked.item() == batch and layer.num_batches_tracked.dtype == "int64"
    y = layer.eval()(gn.tensor(x, device=device)).detach().cpu().numpy()
    np.testing.assert_allclose(y, (x - mean.reshape(along)) / np.sqrt(var.reshape(along) + 1e-5), rtol=1e-9, atol=1e-12)
    assert layer.num_batches_tracked.item() == 3
    np.testing.assert_allclose(layer.running_mean.cpu().numpy(), mean, rtol=1e-12)


def test_momentum_none_averages_all_batches() -> None:
    layer = nn.BatchNorm1d(3, momentum=None, dtype="float64")
    batches = [spread((5, 3)) for _ in range(4)]
    for x in batches:
        layer(gn.tensor(x))
    np.testing.assert_allclose(layer.running_mean.numpy(), np.mean([x.mean(0) for x in batches], axis=0))
    np.testing.assert_allclose(layer.running_var.numpy(), np.mean([x.var(0, ddof=1) for x in batches], axis=0))
    layer.reset_parameters()
    assert layer.running_mean.tolist() == [0, 0, 0] and layer.running_var.tolist() == [1, 1, 1]
    assert layer.num_batches_tracked.item() == 0


def test_buffers() -> None:
    layer = nn.BatchNorm2d(3)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert layer.num_batches_tracked.shape == () and layer.to("float64").num_batches_tracked.dtype == "int64"
    assert list(nn.BatchNorm2d(3, affine=False, track_running_stats=False).state_dict()) == []
    assert list(nn.BatchNorm2d(3, bias=False, track_running_stats=False).state_dict()) == ["weight"]


@pytest.mark.parametrize(("make", "shape"), BATCH)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_batch_norm_gradients(make: str, shape: Any, training: bool, options: Any, device: str) -> None:
    layer = getattr(nn, make)(3, **options).train(training)
    if layer.running_mean is not None:
        layer.load_state_dict({"running_mean": np.arange(3.0), "running_var": np.array([0.5, 2, 1])}, strict=False)
    check_layer(layer, spread(shape), device=device)


@pytest.mark.parametrize(("make", "shape"), BATCH)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_batch_norm_against_torch(make: str, shape: Any, training: bool, options: Any) -> None:
    check_against_torch(make, spread(shape).astype("float32"), 3, training=training, **options)


LAYER: list[tuple[Any, dict[str, Any]]] = [
    (5, {}),
    ((4, 5), {"eps": 1e-2}),
    ((5,), {"elementwise_affine": False}),
    (5, {"bias": False}),
]


@pytest.mark.parametrize(("shape", "options"), LAYER)
def test_layer_norm_by_its_definition(shape: Any, options: Any, device: str) -> None:
    layer = nn.LayerNorm(shape, dtype="float64", device=device, **options)
    x = rng.standard_normal((3, 4, 5)) * 3 + 1
    axes = (-2, -1) if shape == (4, 5) else (-1,)
    if layer.weight is not None:
        with gn.no_grad():
            layer.weight *= 2.0
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + layer.eps)
    expected *= 1 if layer.weight is None else 2
    y = layer(gn.tensor(x, device=device)).detach().cpu().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("shape", "options"), LAYER)
def test_layer_norm_gradients(shape: Any, options: Any, device: str) -> None:
    check_layer(nn.LayerNorm(shape, **options), rng.standard_normal((3, 4, 5)), device=device)


@pytest.mark.parametrize(("shape", "options"), LAYER)
def test_layer_norm_against_torch(shape: Any, options: Any) -> None:
    check_against_torch("LayerNorm", rng.standard_normal((3, 4, 5)).astype("float32"), shape, **options)


OTHERS: list[tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = [
    ("GroupNorm", (2, 6, 4, 3), (3, 6), {}),
    ("GroupNorm", (2, 6, 4), (1, 6), {"eps": 1e-2}),
    ("GroupNorm", (3, 6), (2, 6), {}),
    ("GroupNorm", (2, 4, 2, 3, 2), (4, 4), {"affine": False}),
    ("GroupNorm", (2, 4, 5), (2, 4), {"bias": False}),
    ("InstanceNorm1d", (2, 3, 5), (3,), {}),
    ("InstanceNorm2d", (2, 3, 4, 3), (3,), {"affine": True}),
    ("InstanceNorm2d", (2, 3, 4, 3), (3,), {"track_running_stats": True, "momentum": 0.3}),
    ("InstanceNorm3d", (2, 3, 2, 3, 2), (3,), {"affine": True, "bias": False}),
    ("RMSNorm", (3, 4, 5), (5,), {}),
    ("RMSNorm", (3, 4, 5), ((4, 5),), {"eps": 1e-2}),
    ("RMSNorm", (3, 5), (5,), {"elementwise_affine": False}),
]


@pytest.mark.parametrize(("make", "shape", "args", "options"), OTHERS)
def test_others_gradients(make: str, shape: Any, args: Any, options: Any, device: str) -> None:
    check_layer(getattr(nn, make)(*args, **options), rng.standard_normal(shape) * 2 + 1, device=device)


@pytest.mark.parametrize(("make", "shape", "args", "options"), OTHERS)
@pytest.mark.parametrize("training", [True, False])
def test_others_against_torch(make: str, shape: Any, args: Any, options: Any, training: bool) -> None:
    x = (rng.standard_normal(shape) * 2 + 1).astype("float32")
    check_against_torch(make, x, *args, training=training, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_batch_norm_with_relu(training: bool, added: bool, device: str) -> None:
    """The same as one after the other: values, gradients and running statistics."""
    a, r = spread((3, 3, 4, 2)), rng.standard_normal((3, 3, 4, 2))
    results = []
    for fused in (True, False):
        layer = nn.BatchNorm2d(3, dtype="float64", device=device).train(training)
        x = gn.tensor(a, device=device, requires_grad=True)
        residual = gn.tensor(r, device=device, requires_grad=True) if added else None
        if fused:
            y = layer(x, relu=True, residual=residual)
        else:
            y = layer(x)
            y = nn.functional.relu(y if residual is None else y + residual)
        (y * y).sum().backward()
        wanted = [x, residual, layer.weight, layer.bias] if added else [x, layer.weight, layer.bias]
        found = [y.detach(), layer.running_mean, layer.running_var, *(t.grad for t in wanted)]
        results.append([t.cpu().numpy() for t in found])
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_bad_residuals() -> None:
    layer, x = nn.BatchNorm1d(3), gn.zeros((4, 3))
    with pytest.raises(ValueError, match="a residual is added only where relu=True"):
        layer(x, residual=x)
    with pytest.raises(gn.errors.ShapeError, match=r"the residual must have the shape of the input, \(4, 3\), got"):
        layer(x, relu=True, residual=gn.zeros((4, 1)))


def test_repr() -> None:
    assert repr(nn.BatchNorm1d(4, momentum=None, bias=False)) == (
        "BatchNorm1d(4, eps=1e-05, momentum=None, affine=True, bias=False, track_running_stats=True)"
    )
    assert repr(nn.LayerNorm((2, 3))) == "LayerNorm((2, 3), eps=1e-05, elementwise_affine=True, bias=True)"


def test_one_value_per_channel_in_training() -> None:
    layer = nn.BatchNorm1d(3)
    before = {name: v.numpy().copy() for name, v in layer.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"BatchNorm1d\(3, .*in training, a channel needs more than one value, got an "
    ):
        layer(gn.zeros((1, 3)))
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    assert layer.eval()(gn.zeros((1, 3))).shape == (1, 3)


@pytest.mark.parametrize(
    ("layer", "shape", "text"),
    [
        (nn.BatchNorm1d(3), (3,), r"expected an input of shape \(N, C\) or \(N, C, L\), got \(3,\)"),
        (nn.BatchNorm1d(3), (2, 3, 4, 4), r"expected an input of shape \(N, C\) or \(N, C, L\), got \(2, 3, 4, 4\)"),
        (nn.BatchNorm2d(3), (2, 3), r"expected an input of shape \(N, C, H, W\), got \(2, 3\)"),
        (nn.BatchNorm2d(3), (2, 4, 5, 5), r"expected 3 channels, got 4 in an input of shape \(2, 4, 5, 5\)"),
        (nn.LayerNorm((4, 5)), (2, 5, 4), r"expected an input of shape \(..., 4, 5\), got \(2, 5, 4\)"),
        (nn.GroupNorm(2, 4), (2, 6, 3), r"expected 4 channels, got 6 in an input of shape \(2, 6, 3\)"),
        (nn.InstanceNorm2d(3), (2, 3, 4), r"expected an input of shape \(N, C, H, W\), got \(2, 3, 4\)"),
        (nn.InstanceNorm1d(3), (2, 3, 1), r"a channel needs more than one value, got an input of shape \(2, 3, 1\)"),
        (nn.RMSNorm(4), (2, 3), r"rms_norm: expected an input of shape \(..., 4\), got \(2, 3\)"),
        (nn.LayerNorm(5), (), r"expected an input of shape \(..., 5\), got \(\)"),
    ],
)
def test_bad_shapes(layer: nn.Module, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(gn.errors.ShapeError, match=text):
        layer(gn.zeros(shape))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="BatchNorm2d: num_features must be at least 1, got -2"):
        nn.BatchNorm2d(-2)
    with pytest.raises(ValueError, match="GroupNorm: num_channels=6 does not divide into num_groups=4"):
        nn.GroupNorm(4, 6)
    with pytest.raises(ValueError, match="LayerNorm: normalized_shape must be at least 1, got 0"):
        nn.LayerNorm((3, 0))
    for layer in (nn.BatchNorm1d(3), nn.LayerNorm(3)):
        with pytest.raises(gn.errors.DTypeError, match="expected a floating-point input, got int64: use x.astype"):
            layer(gn.zeros((2, 3), dtype="int64"))
