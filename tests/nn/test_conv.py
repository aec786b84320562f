"""Convolution layers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.nn.layers import check_against_torch, check_layer

rng = np.random.default_rng(0)

# in_channels, out_channels, kernel, and the rest by name
CASES_2D: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4, 3), {}),
    ((3, 4, 3), {"bias": False, "padding": 1}),
    ((2, 4, (3, 2)), {"stride": 2, "padding": (2, 1)}),
    ((4, 6, 3), {"groups": 2, "padding": 1, "dilation": 2}),
    ((4, 4, 3), {"groups": 4, "stride": (2, 1)}),
    ((5, 3, (2, 4)), {"padding": "same", "dilation": (1, 2)}),
    ((3, 2, 3), {"padding": "valid", "stride": 3}),
    ((2, 3, 1), {}),
    ((2, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    ((2, 3, 3), {"padding": (1, 2), "padding_mode": "replicate", "stride": 2}),
    ((2, 4, 3), {"padding": "same", "padding_mode": "circular", "groups": 2}),
]
CASES_1D: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4, 3), {}),
    ((2, 4, 4), {"stride": 2, "padding": 3, "groups": 2}),
    ((4, 2, 3), {"padding": "same", "dilation": 2, "bias": False}),
    ((2, 3, 3), {"padding": 1, "padding_mode": "circular"}),
]
CASES_TRANSPOSE_2D: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4, 3), {}),
    ((3, 2, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((4, 6, (2, 3)), {"stride": (1, 2), "groups": 2, "bias": False, "dilation": 2}),
    ((2, 3, 2), {"stride": 3, "output_padding": (2, 0)}),
    ((2, 3, 2), {"dilation": 3, "padding": (0, 1), "output_padding": 2}),
]
CASES_TRANSPOSE_1D: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4, 3), {}),
    ((4, 2, 4), {"stride": 2, "padding": 1, "groups": 2}),
]
CASES_3D: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4, 3), {"padding": 1}),
    ((2, 4, (2, 3, 2)), {"stride": (2, 1, 2), "padding": "valid", "groups": 2}),
]
CASES_TRANSPOSE_3D: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 2, 3), {"stride": 2, "padding": 1, "output_padding": (1, 0, 1)}),
]


def image(channels: int, axes: int, n: int = 2) -> np.ndarray:
    return rng.standard_normal((n, channels, 7, 6, 4)[: axes + 2])


MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def loops(x: np.ndarray, layer: Any) -> np.ndarray:
    """Convolution by its definition, in float64."""
    weight = layer.weight.detach().numpy()
    axes = weight.ndim - 2
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size)]
    if layer.padding == "same":
        pads = [(r // 2, r - r // 2) for r in reach]
    else:
        pads = [(p, p) for p in ((0,) * axes if layer.padding == "valid" else layer.padding)]
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=MODES[layer.padding_mode])  # type: ignore[call-overload]
    out = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, layer.stride)]
    y = np.zeros((len(x), layer.out_channels, *out))
    per_out = layer.out_channels // layer.groups
    for o in range(layer.out_channels):
        first = (o // per_out) * weight.shape[1]
        for place in product(*map(range, out)):
            window = x[:, first : first + weight.shape[1]][
                (
                    ...,
                    *(slice(p * s, p * s + r + 1, d) for p, s, r, d in zip(place, layer.stride, reach, layer.dilation)),
                )
            ]
            y[(slice(None), o, *place)] = (window * weight[o]).reshape(len(x), -1).sum(1)
    if layer.bias is not None:
        y += layer.bias.detach().numpy().reshape(-1, *[1] * axes)
    return y


@pytest.mark.parametrize(("args", "options"), CASES_2D)
def test_conv2d_values(args: Any, options: Any) -> None:
    layer, x = nn.Conv2d(*args, dtype="float64", **options), image(args[0], 2)
    np.testing.assert_allclose(layer(gn.tensor(x)).detach().numpy(), loops(x, layer), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("args", "options"), CASES_1D)
def test_conv1d_values(args: Any, options: Any) -> None:
    layer, x = nn.Conv1d(*args, dtype="float64", **options), image(args[0], 1)
    np.testing.assert_allclose(layer(gn.tensor(x)).detach().numpy(), loops(x, layer), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("args", "options"), CASES_2D)
def test_conv2d_gradients(args: Any, options: Any, device: str) -> None:
    check_layer(nn.Conv2d(*args, **options), image(args[0], 2), device=device)


@pytest.mark.parametrize(("args", "options"), CASES_1D)
def test_conv1d_gradients(args: Any, options: Any, device: str) -> None:
    check_layer(nn.Conv1d(*args, **options), image(args[0], 1), device=device)


@pytest.mark.parametrize(("args", "options"), CASES_3D)
def test_conv3d(args: Any, options: Any, device: str) -> None:
    layer, x = nn.Conv3d(*args, dtype="float64", **options), image(args[0], 3)
    np.testing.assert_allclose(layer(gn.tensor(x)).detach().numpy(), loops(x, layer), rtol=1e-10, atol=1e-12)
    check_layer(layer, x, device=device, order=1)


@pytest.mark.parametrize(("args", "options"), CASES_TRANSPOSE_2D)
def test_conv_transpose2d_gradients(args: Any, options: Any, device: str) -> None:
    check_layer(nn.ConvTranspose2d(*args, **options), image(args[0], 2), device=device)


@pytest.mark.parametrize(("args", "options"), CASES_TRANSPOSE_1D)
def test_conv_transpose1d_gradients(args: Any, options: Any, device: str) -> None:
    check_layer(nn.ConvTranspose1d(*args, **options), image(args[0], 1), device=device)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}])
def test_conv_transpose_is_the_transpose_of_conv(options: Any) -> None:
    conv = nn.Conv2d(4, 6, 3, bias=False, dtype="float64", **options)
    transpose = nn.ConvTranspose2d(6, 4, 3, bias=False, dtype="float64", **options)
    transpose.load_state_dict(conv.state_dict())
    x = gn.tensor(rng.standard_normal((2, 4, 9, 7)))
    y = conv(x)
    g = gn.tensor(rng.standard_normal(y.shape))
    assert transpose(g).shape == x.shape
    assert (y * g).sum().item() == pytest.approx((x * transpose(g)).sum().item(), rel=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_padding_of_a_transposed_convolution_is_cut_off_and_output_padding_is_put_back(
    stride: int, padding: int, extra: int
) -> None:
    layer = nn.ConvTranspose1d(2, 3, 3, stride, padding, extra, dilation=3, bias=False)
    whole = nn.ConvTranspose1d(2, 3, 3, stride, dilation=3, bias=False)
    whole.load_state_dict(layer.state_dict())
    x = gn.tensor(image(2, 1).astype("float32"))
    y, full = layer(x).detach().numpy(), whole(x).detach().numpy()
    extended = np.pad(full, ((0, 0), (0, 0), (0, extra)))
    np.testing.assert_allclose(y, extended[:, :, padding : full.shape[2] - padding + extra], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "axes", "args", "options"),
    [
        *(("Conv2d", 2, *case) for case in CASES_2D),
        *(("Conv1d", 1, *case) for case in CASES_1D),
        *(("ConvTranspose2d", 2, *case) for case in CASES_TRANSPOSE_2D),
        *(("ConvTranspose1d", 1, *case) for case in CASES_TRANSPOSE_1D),
        *(("Conv3d", 3, *case) for case in CASES_3D),
        *(("ConvTranspose3d", 3, *case) for case in CASES_TRANSPOSE_3D),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_against_torch(make: str, axes: int, args: Any, options: Any) -> None:
    check_against_torch(make, image(args[0], axes).astype("float32"), *args, **options)


def test_float16_stays_and_a_batch_may_be_empty() -> None:
    assert nn.Conv2d(3, 4, 3, dtype="float16")(gn.zeros((2, 3, 5, 5), dtype="float16")).dtype == "float16"
    assert nn.Conv2d(3, 4, 3)(gn.zeros((0, 3, 5, 5))).shape == (0, 4, 3, 3)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"in_channels": -3}, ValueError, "Conv2d: in_channels must be at least 1, got -3"),
        ({"kernel_size": 0}, ValueError, "Conv2d: kernel_size must be at least 1, got 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"Conv2d: kernel_size must be an int or 2 of them, got \(3, 3, 3\)"),
        ({"kernel_size": 1.5}, TypeError, "Conv2d: kernel_size must be an int, got 1.5"),
        ({"stride": 0}, ValueError, "Conv2d: stride must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "Conv2d: padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, 'Conv2d: padding must be an int, ints, "valid" or "same", got \'full\''),
        ({"padding": "same", "stride": 2}, ValueError, r'padding="same" needs stride 1, got stride \(2, 2\)'),
        ({"dilation": (1, 0)}, ValueError, "Conv2d: dilation must be at least 1, got 0"),
        ({"groups": 2}, ValueError, "Conv2d: in_channels=3 does not divide into groups=2"),
        ({"groups": 3}, ValueError, "Conv2d: out_channels=4 does not divide into groups=3"),
        ({"groups": 0}, ValueError, "Conv2d: groups must be at least 1, got 0"),
        (
            {"padding_mode": "mirror"},
            ValueError,
            "padding_mode must be one of zeros, reflect, replicate, circular, got",
        ),
    ],
)
def test_bad_arguments(options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        nn.Conv2d(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3} | options)


def test_bad_arguments_of_a_transposed_convolution() -> None:
    with pytest.raises(ValueError, match=r"output_padding must be smaller than stride or dilation, got \(2, 2\)"):
        nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=2)
    with pytest.raises(gn.errors.ShapeError, match=r"with padding \(3, 3\) leaves no output: \(-3, -3\)"):
        nn.ConvTranspose2d(3, 4, 3, padding=3)(gn.zeros((1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((3, 8, 8), r"expected an input of shape \(N, C, H, W\), got \(3, 8, 8\); a batch of one is x\[None\]"),
        ((2, 192), r"expected an input of shape \(N, C, H, W\), got \(2, 192\); it seems to be flattened already"),
        ((2, 3, 8, 8, 8), r"expected an input of shape \(N, C, H, W\), got \(2, 3, 8, 8, 8\)"),
        ((2, 4, 8, 8), r"expected 3 channels, got 4 in an input of shape \(2, 4, 8, 8\)"),
        (
            (2, 8, 8, 3),
            r"got 8 in an input of shape \(2, 8, 8, 3\); the channels seem to be last: gpunet.moveaxis\(x, -1, 1",
        ),
        ((2, 3, 8, 2), r"the kernel \(3, 3\) .* is larger than the padded input: shape \(2, 3, 8, 2\)"),
    ],
)
def test_bad_inputs(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(
        gn.errors.ShapeError, match=r"^Conv2d\(3, 4, kernel_size=\(3, 3\), stride=\(1, 1\)\): .*" + text
    ):
        nn.Conv2d(3, 4, 3)(gn.zeros(shape))


def test_a_sequence_without_channels() -> None:
    with pytest.raises(
        gn.errors.ShapeError, match=r"expected an input of shape \(N, C, L\), got \(4, 9\); a batch of one"
    ):
        nn.Conv1d(1, 4, 3)(gn.zeros((4, 9)))
