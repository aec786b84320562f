"""Convolution, pooling, normalization, dropout, embedding: against loops, finite differences and torch; errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.nn import functional as F
from tests.gradcheck import check_gradients

RNG = np.random.default_rng(5)


def close(actual: gn.Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual.detach().cpu().numpy(), expected, rtol=tolerance, atol=tolerance)


def message(error: type[Exception], f: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        f(*args, **options)
    return str(caught.value)


def as_torch(torch: Any, function: str, *arrays: np.ndarray, **options: Any) -> None:
    """Value and gradients as those of torch's function of that name, in float32."""
    a = [gn.tensor(x.astype("float32"), requires_grad=True) for x in arrays]
    b = [torch.tensor(x.astype("float32"), requires_grad=True) for x in arrays]
    ya = getattr(F, function)(*a, **options)
    options = {"dim" if k == "axis" else k: v for k, v in options.items()}
    yb = getattr(torch.nn.functional, function)(*b, **options)
    close(ya, yb.detach().numpy(), 1e-5)
    g = RNG.normal(size=ya.shape).astype("float32")
    ya.backward(gn.asarray(g))
    yb.backward(torch.tensor(g))
    for p, q in zip(a, b):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-4, atol=1e-5)


# --- convolution and pooling


def windows(x: np.ndarray, kernel: Any, stride: Any, padding: Any, dilation: Any, fill: float) -> Any:
    """For each place in the output: its index, and the window (N, C, *kernel) of the padded input."""
    padded = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=fill)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride)]
    for place in itertools.product(*map(range, counts)):
        cut = tuple(slice(p * s, p * s + r, d) for p, s, r, d in zip(place, stride, reach, dilation))
        yield place, padded[(slice(None), slice(None), *cut)], counts


def convolve(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int
) -> np.ndarray:
    y = None
    per, out = w.shape[1], w.shape[0] // groups
    for place, window, counts in windows(x, w.shape[2:], stride, padding, dilation, 0.0):
        y = np.empty((len(x), len(w), *counts)) if y is None else y
        for n, o in itertools.product(range(len(x)), range(len(w))):
            first = o // out * per
            y[(n, o, *place)] = np.sum(window[n, first : first + per] * w[o]) + b[o]
    assert y is not None
    return y


CONV: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any], Any]] = {
    "1d": ("conv1d", (2, 3, 7), (4, 3, 3), {}, ((0, 0),)),
    "1d tuple": ("conv1d", (2, 3, 7), (4, 3, 3), {"stride": (2,), "padding": (1,), "dilation": (2,)}, ((1, 1),)),
    "1d same": ("conv1d", (2, 4, 6), (2, 2, 4), {"padding": "same", "groups": 2}, ((1, 2),)),
    "2d": ("conv2d", (2, 3, 5, 4), (2, 3, 3, 2), {}, ((0, 0), (0, 0))),
    "2d padded": ("conv2d", (2, 3, 5, 4), (2, 3, 3, 3), {"padding": 1, "stride": 2}, ((1, 1), (1, 1))),
    "2d tuples": (
        "conv2d",
        (1, 2, 6, 7),
        (4, 1, 2, 3),
        {"padding": (0, 2), "stride": (1, 2), "dilation": (3, 1), "groups": 2},
        ((0, 0), (2, 2)),
    ),
    "2d same": ("conv2d", (1, 2, 4, 5), (2, 2, 3, 2), {"padding": "same", "dilation": (1, 3)}, ((1, 1), (1, 2))),
    "2d valid": ("conv2d", (1, 2, 4, 5), (2, 2, 3, 2), {"padding": "valid", "stride": 2}, ((0, 0), (0, 0))),
}


def pair(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else value


@pytest.mark.parametrize("name", CONV)
def test_conv(name: str, device: str) -> None:
    function, x_shape, w_shape, options, padding = CONV[name]
    n = len(x_shape) - 2
    x, w, b = RNG.normal(size=x_shape), RNG.normal(size=w_shape), RNG.normal(size=w_shape[0])
    stride, dilation = (pair(options.get(k, 1), n) for k in ("stride", "dilation"))
    expected = convolve(x, w, b, stride, padding, dilation, options.get("groups", 1))

    def f(x: gn.Tensor, w: gn.Tensor, b: gn.Tensor) -> gn.Tensor:
        return getattr(F, function)(x, w, b, **options)

    close(f(*(gn.asarray(a, device=device) for a in (x, w, b))), expected, 1e-10)
    check_gradients(f, [x, w, b], device=device)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONV)
def test_conv_as_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    function, x_shape, w_shape, options, _padding = CONV[name]
    as_torch(torch, function, *(RNG.normal(size=s) for s in (x_shape, w_shape, w_shape[:1])), **options)


def test_conv_errors() -> None:
    x, w = gn.zeros((2, 3, 8, 9)), gn.zeros((5, 3, 3, 3))
    shape_error = gn.errors.ShapeError
    assert message(shape_error, F.conv2d, x[0], w) == (
        "conv2d: expected an input of shape (N, C, H, W), got (3, 8, 9); a batch of one is x[None]"
    )
    assert message(shape_error, F.conv1d, x, w[..., 0]).startswith(
        "conv1d: expected an input of shape (N, C, L), got (2, 3, 8, 9)"
    )
    assert message(shape_error, F.conv2d, x, w[..., 0]) == (
        "conv2d: the weight must have 4 axes, (O, C / groups, *kernel), got (5, 3, 3)"
    )
    assert message(shape_error, F.conv2d, gn.zeros((2, 8, 9, 3)), w) == (
        "conv2d: expected 3 channels, got 8 in an input of shape (2, 8, 9, 3); the channels seem to be last: "
        "gpunet.moveaxis(x, -1, 1) puts them first"
    )
    assert "conv2d: expected 6 channels, got 3" in message(shape_error, F.conv2d, x, w, groups=2)
    assert message(ValueError, F.conv2d, x, w, padding="full") == (
        'conv2d: padding must be an int, ints, "valid" or "same", got \'full\''
    )
    assert message(ValueError, F.conv2d, x, w, padding="same", stride=2) == (
        'conv2d: padding="same" needs stride 1, got stride (2, 2)'
    )
    assert message(ValueError, F.conv2d, x, w, stride=(1, 2, 3)) == (
        "conv2d: stride must be an int or 2 of them, got (1, 2, 3)"
    )
    assert "conv2d: stride must be at least 1, got 0" in message(ValueError, F.conv2d, x, w, stride=0)
    assert "conv2d: padding must be at least 0, got -1" in message(ValueError, F.conv2d, x, w, padding=-1)
    assert "conv2d: dilation must be an int, got 1.5" in message(TypeError, F.conv2d, x, w, dilation=1.5)
    assert "larger than the padded input" in message(shape_error, F.conv2d, x[..., :2], w)
    assert "conv2d: expected a Tensor, got a list" in message(TypeError, F.conv2d, [1.0], w)


POOL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 7), {"kernel_size": 2}),
    "1d padded": ((2, 3, 7), {"kernel_size": (3,), "stride": (2,), "padding": 1}),
    "2d": ((2, 3, 4, 6), {"kernel_size": 2}),
    "2d tuples": ((1, 2, 5, 6), {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
}


@pytest.mark.parametrize("kind", ["max", "avg", "avg without padding"])
@pytest.mark.parametrize("name", POOL)
def test_pool(name: str, kind: str, device: str) -> None:
    shape, options = POOL[name]
    n = len(shape) - 2
    x = RNG.permutation(np.linspace(-1, 1, math.prod(shape))).reshape(shape)
    kernel = pair(options["kernel_size"], n)
    stride, padding = pair(options.get("stride", kernel), n), pair(options.get("padding", 0), n)
    around = [(p, p) for p in padding]
    fill = {"max": -np.inf, "avg": 0.0}.get(kind, np.nan)
    average = {"max": np.max, "avg": np.mean}.get(kind, np.nanmean)
    expected = None
    for place, window, counts in windows(x, kernel, stride, around, (1,) * n, fill):
        expected = np.empty((*shape[:2], *counts)) if expected is None else expected
        expected[(slice(None), slice(None), *place)] = average(window, axis=tuple(range(2, n + 2)))
    more = {"count_include_pad": False} if kind == "avg without padding" else {}

    def f(x: gn.Tensor) -> gn.Tensor:
        return getattr(F, f"{kind[:3]}_pool{n}d")(x, **options, **more)

    close(f(gn.asarray(x, device=device)), expected)
    check_gradients(f, [x], device=device)


@pytest.mark.parametrize("name", POOL)
def test_pool_as_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    shape, options = POOL[name]
    x, n = RNG.normal(size=shape), len(shape) - 2
    for ceil_mode in (False, True):
        as_torch(torch, f"max_pool{n}d", x, **options, ceil_mode=ceil_mode)
        as_torch(torch, f"avg_pool{n}d", x, **options, ceil_mode=ceil_mode)
        as_torch(torch, f"avg_pool{n}d", x, **options, ceil_mode=ceil_mode, count_include_pad=False)
    as_torch(torch, f"max_pool{n}d", x, kernel_size=2, stride=1, dilation=2)


@pytest.mark.parametrize("size", [1, (2, 3), (None, 2), (4, None)])
def test_adaptive_avg_pool2d(size: Any, device: str) -> None:
    x = RNG.normal(size=(2, 3, 4, 5))
    wanted = tuple(n if s is None else s for n, s in zip((4, 5), pair(size, 2)))
    expected = np.empty((2, 3, *wanted))
    for i, j in np.ndindex(*wanted):
        rows = slice(i * 4 // wanted[0], -(-(i + 1) * 4 // wanted[0]))
        columns = slice(j * 5 // wanted[1], -(-(j + 1) * 5 // wanted[1]))
        expected[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    close(F.adaptive_avg_pool2d(gn.asarray(x, device=device), size), expected)
    check_gradients(lambda x: F.adaptive_avg_pool2d(x, size), [x], device=device)


def test_adaptive_avg_pool_as_torch() -> None:
    torch = pytest.importorskip("torch")
    as_torch(torch, "adaptive_avg_pool2d", RNG.normal(size=(2, 3, 7, 5)), output_size=(3, None))
    as_torch(torch, "adaptive_avg_pool1d", RNG.normal(size=(2, 3, 7)), output_size=3)


def test_pool_errors() -> None:
    x = gn.zeros((2, 3, 8, 9))
    for name in ("max_pool2d", "avg_pool2d"):
        f = getattr(F, name)
        assert message(gn.errors.ShapeError, f, x[0], 2) == (
            f"{name}: expected an input of shape (N, C, H, W), got (3, 8, 9); a batch of one is x[None]"
        )
        assert message(ValueError, f, x, (2, 2, 2)) == f"{name}: kernel_size must be an int or 2 of them, got (2, 2, 2)"
    assert "adaptive_avg_pool1d: expected an input of shape (N, C, L), got (2, 3, 8, 9)" in message(
        gn.errors.ShapeError, F.adaptive_avg_pool1d, x, 2
    )
    for size in ((2,), (1, 2, 3)):
        assert message(ValueError, F.adaptive_avg_pool2d, x, size) == (
            f"adaptive_avg_pool2d: output_size must be an int or 2 of them, got {size}"
        )


def test_linear() -> None:
    x, w, b = RNG.normal(size=(4, 3)), RNG.normal(size=(2, 3)), RNG.normal(size=2)
    expected = [[sum(x[n, i] * w[o, i] for i in range(3)) + b[o] for o in range(2)] for n in range(4)]
    close(F.linear(*map(gn.asarray, (x, w, b))), expected)


# --- normalization

IMAGES = RNG.normal(size=(3, 2, 4, 3)) * 2 + 1


def batch_norm_of_loops(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    y, means, variances = np.empty_like(x), [], []
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].ravel()]
        mean = math.fsum(values) / len(values)
        squares = math.fsum((v - mean) ** 2 for v in values)
        means.append(mean)
        variances.append(squares / (len(values) - 1))
        y[:, c] = (x[:, c] - mean) / math.sqrt(squares / len(values) + 1e-3) * w[c] + b[c]
    return y, np.array(means), np.array(variances)


@pytest.mark.parametrize("x", [IMAGES, IMAGES[:, :, :, 0], IMAGES[:, :, 0, 0]], ids=["images", "signals", "rows"])
def test_batch_norm(x: np.ndarray, device: str) -> None:
    w, b = np.array([0.5, 2.0]), np.array([1.0, -1.0])
    expected, mean, var = batch_norm_of_loops(x, w, b)
    running_mean, running_var = gn.tensor(np.array([1.0, 2.0]), device=device), gn.tensor(np.ones(2), device=device)
    held = running_mean
    y = F.batch_norm(
        gn.asarray(x, device=device), running_mean, running_var, gn.asarray(w, device=device),
        gn.asarray(b, device=device), training=True, momentum=0.3, eps=1e-3,
    )  # fmt: skip
    close(y, expected, 1e-10)
    close(held, 0.7 * np.array([1.0, 2.0]) + 0.3 * mean)
    close(running_var, 0.7 + 0.3 * var)
    check_gradients(lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=1e-3), [x, w, b], device=device)


def test_batch_norm_in_evaluation(device: str) -> None:
    mean, var = np.array([1.0, 2.0]), np.array([4.0, 0.25])
    w, b = np.array([0.5, 2.0]), np.array([1.0, -1.0])
    m, v = gn.tensor(mean, device=device), gn.tensor(var, device=device)
    along = (1, 2, 1, 1)
    plain = (IMAGES - mean.reshape(along)) / np.sqrt(var.reshape(along) + 1e-5)
    x = gn.asarray(IMAGES, device=device)
    close(F.batch_norm(x, m, v), plain)
    weighted = F.batch_norm(x, m, v, gn.asarray(w, device=device), gn.asarray(b, device=device))
    close(weighted, plain * w.reshape(along) + b.reshape(along))
    close(m, mean)
    close(v, var)
    check_gradients(lambda x, w, b: F.batch_norm(x, m, v, w, b), [IMAGES, w, b], device=device)
    half = F.batch_norm(x.astype("float16"), m.astype("float32"), v.astype("float32"))
    assert half.dtype == "float16"


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_norms_of_float16_do_not_overflow(name: str, device: str) -> None:
    x = (IMAGES * 2e3).astype("float16")
    given = gn.tensor(x, device=device, requires_grad=True)
    mean, var = gn.zeros(2, device=device), gn.ones(2, device=device)

    def f(x: gn.Tensor) -> gn.Tensor:
        return F.batch_norm(x, mean, var, training=True) if name == "batch" else F.layer_norm(x, 3)

    y = f(given)
    assert y.dtype == "float16"
    close(y, f(gn.asarray(x.astype("float64"), device=device)).cpu().numpy(), 2e-3)
    assert np.isfinite(var.cpu().numpy()).all()
    (y * y * y).sum().backward()
    exact = gn.tensor(x.astype("float64"), device=device, requires_grad=True)
    (f(exact) ** 3).sum().backward()
    np.testing.assert_allclose(given.grad.cpu().numpy(), exact.grad.cpu().numpy(), atol=2e-5)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_as_torch(training: bool) -> None:
    torch = pytest.importorskip("torch")
    x, w, b = IMAGES.astype("float32"), np.array([0.5, 2.0], "float32"), np.array([1.0, -1.0], "float32")
    ours = [gn.tensor(a, requires_grad=True) for a in (x, w, b)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    statistics = gn.zeros(2), gn.ones(2)
    their_statistics = torch.zeros(2), torch.ones(2)
    g = RNG.normal(size=x.shape).astype("float32")
    F.batch_norm(ours[0], *statistics, *ours[1:], training=training).backward(gn.asarray(g))
    torch.nn.functional.batch_norm(theirs[0], *their_statistics, *theirs[1:], training=training).backward(
        torch.tensor(g)
    )
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-4, atol=1e-5)
    for s, t in zip(statistics, their_statistics):
        close(s, t.numpy(), 1e-6)


def test_batch_norm_errors() -> None:
    x, three = gn.zeros((4, 2)), gn.zeros(3)
    shape_error = gn.errors.ShapeError
    assert message(shape_error, F.batch_norm, x[0], None, None, training=True) == (
        "batch_norm: expected an input of shape (N, C) or (N, C, *spatial), got (2,)"
    )
    assert message(shape_error, F.batch_norm, x, three, three) == (
        "batch_norm: running_mean of shape (3,) is for 3 channels, got an input of shape (4, 2), which has 2"
    )
    assert "batch_norm: bias of shape (3,) is for 3 channels" in message(
        shape_error, F.batch_norm, x, None, None, bias=three, training=True
    )
    assert message(shape_error, F.batch_norm, x[:1], None, None, training=True) == (
        "batch_norm: in training, a channel needs more than one value, got an input of shape (1, 2); use a larger "
        "batch (DataLoader(drop_last=True) leaves out a last one of one sample), or model.eval()"
    )
    assert message(ValueError, F.batch_norm, x, None, None) == (
        "batch_norm: without training, it needs running_mean and running_var"
    )


@pytest.mark.parametrize("shape", [3, (4, 3)])
def test_layer_norm(shape: Any, device: str) -> None:
    sizes = pair(shape, 1)
    w, b = RNG.normal(size=sizes), RNG.normal(size=sizes)
    expected = np.empty_like(IMAGES)
    for place in np.ndindex(IMAGES.shape[: 4 - len(sizes)]):
        values = IMAGES[place]
        mean = values.mean()
        expected[place] = (values - mean) / math.sqrt(((values - mean) ** 2).mean() + 1e-5) * w + b
    x, wt, bt = (gn.asarray(a, device=device) for a in (IMAGES, w, b))
    close(F.layer_norm(x, shape, wt, bt), expected, 1e-10)
    check_gradients(lambda x, w, b: F.layer_norm(x, shape, w, b), [IMAGES, w, b], device=device)


def test_layer_norm_errors() -> None:
    x = gn.zeros((2, 3))
    assert "layer_norm: expected an input of shape (..., 4), got (2, 3)" in message(
        gn.errors.ShapeError, F.layer_norm, x, 4
    )
    assert message(gn.errors.ShapeError, F.layer_norm, x, 3, gn.zeros(1)) == (
        "layer_norm: expected a weight of the normalized shape (3,), got (1,)"
    )


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_normalize(axis: int, p: float, device: str) -> None:
    size = np.abs(IMAGES)
    norms = size.max(axis, keepdims=True) if p == math.inf else (size**p).sum(axis, keepdims=True) ** (1 / p)
    close(F.normalize(gn.asarray(IMAGES, device=device), p, axis), IMAGES / norms)
    check_gradients(lambda x: F.normalize(x, p, axis), [IMAGES], device=device)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_normalizing_zeros_gives_zeros_and_finite_gradients(dtype: str, device: str) -> None:
    x = gn.tensor(np.zeros((2, 3), dtype), device=device, requires_grad=True)
    y = F.normalize(x, eps=1e-3)
    y.sum().backward()
    assert not y.detach().cpu().numpy().any() and np.isfinite(x.grad.cpu().numpy()).all()
    assert y.dtype == dtype


def test_cosine_similarity(device: str) -> None:
    a, b = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
    expected = [np.dot(u, v) / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in zip(a, b)]
    close(F.cosine_similarity(gn.asarray(a, device=device), gn.asarray(b, device=device)), expected)
    check_gradients(F.cosine_similarity, [a, b], device=device)
    zeros = gn.zeros((2, 3), device=device)
    assert F.cosine_similarity(zeros, zeros + 1.0).tolist() == [0, 0]


def test_normalizing_as_torch() -> None:
    torch = pytest.importorskip("torch")
    for p in (1.0, 2.0, 3.0):
        as_torch(torch, "normalize", IMAGES, p=p, axis=2)
    as_torch(torch, "cosine_similarity", IMAGES, IMAGES[::-1].copy(), axis=-1)
    as_torch(torch, "cosine_similarity", IMAGES, IMAGES[:1], axis=1)


# --- dropout, embeddings


def test_dropout(device: str) -> None:
    gn.manual_seed(7)
    x = gn.tensor(np.ones((100, 100), "float32"), device=device, requires_grad=True)
    y = F.dropout(x, 0.25)
    values = y.detach().cpu().numpy()
    assert set(np.unique(values)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((values == 0).mean() - 0.25) < 0.02
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.cpu().numpy(), values)
    second = F.dropout(x, 0.25).detach().cpu().numpy()
    assert (second != values).any()
    gn.manual_seed(7)
    np.testing.assert_array_equal(F.dropout(gn.asarray(np.ones((100, 100), "float32")), 0.25).numpy(), values)


def test_the_mask_does_not_depend_on_the_dtype() -> None:
    masks = []
    for dtype in ("float16", "float32", "float64"):
        gn.manual_seed(1)
        masks.append(F.dropout(gn.ones((50,), dtype=dtype), 0.5).numpy() != 0)
    assert (masks[0] == masks[1]).all() and (masks[1] == masks[2]).all()


def test_dropout_of_nothing_and_of_everything(device: str) -> None:
    x = gn.tensor(np.ones(5), device=device, requires_grad=True)
    before = gn.random.generator().offset
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
    y = F.dropout(x, 1.0)
    assert y.tolist() == [0] * 5
    y.sum().backward()
    assert x.grad.tolist() == [0] * 5
    assert gn.random.generator().offset == before


def test_dropout_twice_differentiated() -> None:
    def f(x: gn.Tensor) -> gn.Tensor:
        with gn.random.using(gn.random.Generator(3)):
            return F.dropout(x, 0.4) ** 2

    check_gradients(f, [RNG.normal(size=(4, 5))])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_probability_out_of_range(p: float) -> None:
    assert message(ValueError, F.dropout, gn.ones(3), p) == f"dropout: p must be a probability, from 0 to 1, got {p}"


def test_dropout_of_integers() -> None:
    assert message(gn.errors.DTypeError, F.dropout, gn.ones(3, dtype="int64")) == (
        'dropout: expected a floating-point input, got int64: use x.astype("float32")'
    )


TABLE = RNG.normal(size=(5, 3))
INDICES = np.array([[0, 4, 1], [1, 1, 3]])


@pytest.mark.parametrize("padding", [None, 1, -4])
def test_embedding(padding: int | None, device: str) -> None:
    indices = gn.asarray(INDICES, device=device)
    close(F.embedding(indices, gn.asarray(TABLE, device=device), padding), TABLE[INDICES])
    table = gn.tensor(TABLE, device=device, requires_grad=True)
    g = RNG.normal(size=(2, 3, 3))
    F.embedding(indices, table, padding).backward(gn.asarray(g, device=device))
    expected = np.zeros_like(TABLE)
    for place, i in np.ndenumerate(INDICES):
        expected[i] += g[place] * (padding is None or i != 1)
    close(table.grad, expected)
    if padding is None:
        check_gradients(lambda w: F.embedding(indices, w) ** 2, [TABLE], device=device)


def test_embedding_errors() -> None:
    table = gn.asarray(TABLE)
    assert message(IndexError, F.embedding, gn.asarray([[0, 5]]), table) == (
        "embedding: index 5 at (0, 1) is out of range: there are 5 rows"
    )
    assert "index -1 at row 2 is out of range" in message(IndexError, F.embedding, gn.asarray([0, 1, -1]), table)
    assert message(gn.errors.DTypeError, F.embedding, gn.zeros(3), table) == (
        "embedding: indices must be integers, got float32 of shape (3,)"
    )
    assert "padding_idx=5 is out of range: there are 5 rows" in message(
        ValueError, F.embedding, gn.asarray([0]), table, 5
    )


def test_embedding_out_of_range_is_nan_where_looking_would_wait() -> None:
    table = gn.tensor(TABLE, device="strict", requires_grad=True)
    y = F.embedding(gn.asarray(np.array([1, 9]), device="strict"), table)
    values = y.detach().cpu().numpy()
    assert np.isnan(values).all(axis=1).tolist() == [False, True]
    np.testing.assert_array_equal(values[0], TABLE[1])
    y.sum().backward()
    assert np.isnan(table.grad.cpu().numpy()).any()


def test_one_hot(device: str) -> None:
    indices = gn.asarray(INDICES, device=device)
    expected = [[[int(c == i) for c in range(6)] for i in row] for row in INDICES]
    y = F.one_hot(indices, 6)
    assert y.tolist() == expected and y.dtype == "int64"
    assert F.one_hot(indices).shape == (2, 3, 5)


def test_one_hot_errors() -> None:
    assert message(IndexError, F.one_hot, gn.asarray([0, 3]), 3) == (
        "one_hot: index 3 at row 1 is out of range for 3 classes"
    )
    assert "one_hot: indices must be integers, got float32" in message(gn.errors.DTypeError, F.one_hot, gn.zeros(2))
    assert "give num_classes" in message(ValueError, F.one_hot, gn.zeros(0, dtype="int64"))


def test_all_names_are_there_and_documented() -> None:
    for name in F.__all__:
        assert getattr(F, name).__doc__, name
