"""Normalization on a device with kernels, against its references in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation
from gpunet.errors import DeviceError
from gpunet.ops import norm, norm_kernels
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 2e-2}
# Lengths that end within a vector, and that each number of threads has.
ROWS = [(7, 40), (5, 33), (3, 600), (2, 3, 5, 8)]
CHANNELS = [(4, 8, 5, 6), (6, 12), (2, 6, 7), (2, 3, 3, 4, 5), (2, 160, 3, 3)]


def normal(*shape: int, dtype: Any = "float32", last: bool = False) -> np.ndarray:
    x = rng.standard_normal(shape)
    if last and x.ndim > 2:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return x.astype(kind(dtype))


def kind(dtype: str) -> Any:
    return pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def on(backend: Backend, x: np.ndarray | None) -> Any:
    return None if x is None else backend.from_numpy(x, Device(backend.name))


def check(backend: Backend, op: Any, *arrays: Any, factor: float = 1.0, **how: Any) -> Any:
    """Compare what kernels make of arrays with what the reference makes of them in float64."""
    wide = [None if a is None else a.astype("float64") for a in arrays]
    with gn.kernels("off"):
        expected = op(*wide, **how)
    with gn.kernels("force"):
        found = op(*(on(backend, a) for a in arrays), **how)
    one = not isinstance(expected, tuple)
    first = next(a for a in arrays if a is not None)
    tolerance = factor * TOLERANCE[first.dtype.name]
    for y, wanted in zip(*(((t,) if one else t) for t in (found, expected))):
        if wanted is None:
            assert y is None
            continue
        y = backend.to_numpy(y).astype("float64")
        if wanted.shape != y.shape:  # of a parameter, in the shape that it broadcasts to
            wanted = wanted.sum(tuple(range(wanted.ndim - y.ndim)))
            wanted = wanted.sum(tuple(i for i, n in enumerate(y.shape) if n != wanted.shape[i]), keepdims=True)
        np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance * max(1.0, np.abs(wanted).max()))
    return found


def check_rows(backend: Backend, shape: tuple[int, ...], dtype: str, axes: tuple[int, ...], weights: str = "") -> None:
    """Layer norm and RMS norm, forward and backward, with and without parameters."""
    x, g = 3 * normal(*shape, dtype=dtype) + normal(dtype=dtype), normal(*shape, dtype=dtype)
    x = x.astype(g.dtype)
    own = tuple(shape[a] for a in axes)
    weight, bias = normal(*own, dtype=weights or dtype), normal(*own, dtype=weights or dtype)
    how = {"axes": tuple(a % len(shape) for a in axes), "eps": 1e-5}
    check(backend, norm.normalize, x, weight, bias, **how)
    check(backend, norm.normalize_grad, g, x, weight, **how)
    if dtype == "float32":
        check(backend, norm.normalize, x, None, None, **how)
        check(backend, norm.normalize_grad, g, x, None, **how)
        check(backend, norm.rms_normalize, x, weight, **how)
        check(backend, norm.rms_normalize_grad, g, x, weight, **how)


@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows(shape: tuple[int, ...], kernel_device: Backend) -> None:
    check_rows(kernel_device, shape, "float32", (-1,))
    if len(shape) > 2:
        check_rows(kernel_device, shape, "float32", (-2, -1))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_rows_of_other_types(dtype: str, kernel_device: Backend) -> None:
    check_rows(kernel_device, (7, 40), dtype, (-1,))


def test_parameters_of_float32_beside_halves(kernel_device: Backend) -> None:
    check_rows(kernel_device, (7, 40), "float16", (-1,), "float32")


def test_rows_of_all_sizes(kernel_device: Backend) -> None:
    for columns in (5000, norm_kernels.LONGEST + 800, 60004):
        check_rows(kernel_device, (3, columns), "float32", (-1,))


@pytest.mark.parametrize(("columns", "dtype"), [(9000, "float16"), (9001, "float16"), (9000, "bfloat16")])
def test_rows_in_shared_memory(columns: int, dtype: str, kernel_device: Backend) -> None:
    check_rows(kernel_device, (3, columns), dtype, (-1,))


def test_which_rows_are_kept(kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device keeps a log of launches")
    names = []
    for columns in (9000, 40000, 60004):
        x, log = on(kernel_device, normal(2, columns)), []  # type: ignore[var-annotated]
        with emulation(architecture="sm_90a", log=log), gn.kernels("force"):
            norm.normalize(x, axes=(1,), eps=1e-5)
            norm.normalize_grad(x, x, axes=(1,), eps=1e-5)
        names.append([expression.split("<")[0] for expression, _grid in log])
    read_again = ["rows_moments", "rows_sums", "rows_sums"]
    columns_too = ["rows_columns", "columns_sum"]
    assert names == [
        ["rows_kept", "rows_kept_grad", *columns_too],
        ["rows_kept", *read_again, *columns_too],  # the gradient finds no room
        ["rows_moments", "rows_apply", *read_again, *columns_too],
    ]


def test_many_rows(kernel_device: Backend) -> None:
    """More than a block has at a time, so that what it finds about the weight are sums of its own."""
    check_rows(kernel_device, (300, 40), "float32", (-1,))


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("shape", CHANNELS, ids=str)
def test_channels(shape: tuple[int, ...], last: bool, kernel_device: Backend) -> None:
    check_channels(kernel_device, shape, last, "float32")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_channels_of_other_types(dtype: str, kernel_device: Backend) -> None:
    check_channels(kernel_device, (3, 16, 3, 4), True, dtype)


def check_channels(backend: Backend, shape: tuple[int, ...], last: bool, dtype: str) -> None:
    """Batch norm in training and in evaluation, forward and backward, with ReLU and a residual."""
    x, g, residual = (normal(*shape, dtype=dtype, last=last) for _ in range(3))
    x = (2 * x + 3).astype(x.dtype)
    own = (shape[1], *(1,) * (len(shape) - 2))
    weight, bias = normal(*own, dtype=dtype), normal(*own, dtype=dtype)
    mean, variance = normal(shape[1], dtype=dtype), np.abs(normal(shape[1], dtype=dtype))
    variance += np.ones((), variance.dtype)
    how: dict[str, Any] = {"axes": (0, *range(2, len(shape))), "eps": 1e-5}
    statistics = check(backend, norm.moments, x, axes=how["axes"], factor=4)
    assert all(s.dtype == ("float64" if dtype == "float64" else "float32") for s in statistics)
    y = check(backend, norm.normalize, x, weight, bias, **how)
    if last:
        assert y.strides == x.strides
    with gn.kernels("force"):
        same = norm.normalize(on(backend, x), on(backend, weight), on(backend, bias), **how, statistics=statistics)
    np.testing.assert_array_equal(backend.to_numpy(same), backend.to_numpy(y))
    check(backend, norm.normalize_grad, g, x, weight, **how, factor=4)
    own_row = weight.reshape(-1), bias.reshape(-1)
    check(backend, norm.normalize_by, x, mean, variance, *own_row, eps=1e-5)
    for r in (None, residual):
        y = backend.to_numpy(check(backend, norm.normalize_relu, x, weight, bias, r, **how))
        y = np.where(np.abs(y.astype("float64")) < 1e-2, 0, y).astype(y.dtype)  # either side of zero by rounding alone
        if r is not None:
            arrays = g, y, x, weight, bias
            check(backend, norm.normalize_relu_grad, *arrays, **how, statistics=None, added=True, factor=4)
        check(backend, norm.normalize_by_relu, x, mean, variance, *own_row, r, eps=1e-5)


def test_relu_is_found_again(kernel_device: Backend) -> None:
    """Without a residual, the gradient does not read the output: where that was positive is computed from x."""
    x, g = normal(4, 8, 5, 3, last=True), normal(4, 8, 5, 3, last=True)
    weight, bias = normal(8, 1, 1), normal(8, 1, 1)
    how: dict[str, Any] = {"axes": (0, 2, 3), "eps": 1e-5}
    y = norm.normalize_relu(*(a.astype("float64") for a in (x, weight, bias)), None, **how)
    grads = {"statistics": None, "added": False, **how}
    check(kernel_device, norm.normalize_relu_grad, g, y.astype("float32"), x, weight, bias, **grads, factor=4)


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("shape", "groups"), [((3, 12, 5, 4), 3), ((2, 160, 7), 1), ((3, 8, 4), 8), ((5, 6), 2)])
@pytest.mark.parametrize("kept", [True, False], ids=["in shared memory", "through memory"])
def test_groups(
    shape: tuple[int, ...],
    groups: int,
    last: bool,
    kept: bool,
    kernel_device: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not kept:
        monkeypatch.setattr(norm_kernels, "_tiles", lambda *_: None)
    a, b = 2 * normal(*shape, last=last) + np.float32(3), normal(*shape, last=last)
    parameters = normal(shape[1]), normal(shape[1])
    for some in (parameters, (None, None), (None, parameters[1])):
        results = []
        for name, dtype in ((kernel_device.name, "float32"), ("cpu", "float64")):
            with gn.kernels("force" if name != "cpu" else "off"):
                x = gn.tensor(a.astype(dtype), device=name, requires_grad=True)
                ps = [None if p is None else gn.tensor(p.astype(dtype), device=name, requires_grad=True) for p in some]
                y = norm.group_norm(x, groups, *ps, eps=1e-5)
                y.backward(gn.asarray(b.astype(dtype), device=name))
                results.append([t.detach().cpu().numpy() for t in (y, x.grad, *(p.grad for p in ps if p is not None))])
        for found, expected in zip(*results):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


def check_tiles(backend: Backend, shape: tuple[int, ...], groups: int, dtype: str, weights: str = "") -> None:
    """Group norm of x (N, C, *), channels last; instance norm where there are as many groups as channels."""
    x, g = (normal(*shape, dtype=dtype, last=True) for _ in range(2))
    x = (2 * x + 3).astype(x.dtype)
    own: tuple[int, ...] = (shape[1],) if groups == shape[1] else (groups, shape[1] // groups)
    x, g = (a.reshape(shape[0], *own, *shape[2:]) for a in (x, g))
    assert x.strides[len(own)] == x.itemsize  # still channels last
    weight, bias = (normal(*own, *(1,) * (len(shape) - 2), dtype=weights or dtype) for _ in range(2))
    how: dict[str, Any] = {"axes": tuple(range(2, x.ndim)), "eps": 1e-5}
    y = check(backend, norm.normalize, x, weight, bias, **how)
    dx = check(backend, norm.normalize_grad, g, x, weight, **how, factor=4)[0]
    along = [i for i, n in enumerate(x.shape) if n > 1]
    assert all(a.strides[i] == x.strides[i] for a in (y, dx) for i in along)


# Rows of images that end within a block's threads; columns that are no multiple of a vector, or of whole tiles.
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 16, 9, 7), 2),  # groups that are whole sectors
        ((3, 24, 5, 3), 2),  # two of them together are
        ((2, 20, 6, 5), 20),  # instance norm: a group is less than a vector, and the last tile has half the columns
        ((3, 15, 3, 4, 5), 3),
        ((2, 15, 7), 15),
        ((1, 12, 4, 3), 1),  # what is found about weight and bias is their gradient
        ((2, 72, 5), 72),  # more groups in a tile, as they are small
    ],
    ids=str,
)
def test_tiles(shape: tuple[int, ...], groups: int, kernel_device: Backend) -> None:
    check_tiles(kernel_device, shape, groups, "float32")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("groups", [2, 16])
def test_tiles_of_other_types(groups: int, dtype: str, kernel_device: Backend) -> None:
    check_tiles(kernel_device, (3, 16, 5, 3), groups, dtype)


def test_tiles_of_halves_beside_parameters_of_float32_and_of_single_elements(kernel_device: Backend) -> None:
    check_tiles(kernel_device, (2, 16, 5, 3), 2, "float16", "float32")
    check_tiles(kernel_device, (2, 9, 5, 3), 3, "float16")


def test_large_tiles(kernel_device: Backend) -> None:
    """On sm_90a there is room for two blocks, or one with the gradient; on sm_80 for one without; on sm_75 for none."""
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device is of many architectures")
    launched = []
    for architecture in ("sm_90a", "sm_80", "sm_75"):
        log: list[Any] = []
        with emulation(architecture=architecture, log=log):
            check_tiles(kernel_device, (2, 16, 53, 50), 2, "float32")
        launched.append([expression for expression, _grid in log if "tile" in expression])
    forward, back = "tile_normalize<float, float, 4, {}>", "tile_grad<float, float, 4, 512, {}>"
    hopper, ampere = [forward.format(256), back.format("true")], [forward.format(512), back.format("false")]
    assert launched == [hopper, ampere, []]


def test_when_tiles_are_taken() -> None:
    def of(images: int, rows: int, columns: int, group: int, architecture: str = "sm_90a", arrays: int = 2) -> Any:
        return norm_kernels._tiles_within(images, rows, columns, group, 4, 4, arrays, 132, architecture)

    # Groups of 8 floats fill a sector; those of 12 do by twos, and those of one by eights.
    assert [of(32, 784, 48, group).lanes for group in (8, 12, 1)] == [2, 6, 2]
    assert of(32, 784, 256, 8).blocks == 32 * 32
    assert of(64, 4, 256, 8).lanes == 8  # more groups, for images too small to occupy a block
    # 56 x 56 pixels of 8 floats are 98 KB: two, one or none of these fit.
    assert [of(32, 3136, 256, 8, a).arrays for a in ("sm_90a", "sm_80")] == [2, 1]
    assert of(32, 3136, 256, 8, "sm_86") is None
    assert of(32, 12544, 256, 8) is None
    # Few large tiles would leave most of the processors idle; few small ones are done before three launches are.
    assert of(1, 3136, 128, 8) is None and of(1, 3136, 272, 8).blocks == 34
    assert of(1, 784, 32, 8).blocks == 4
    # Large ones have a processor to themselves.
    assert [of(32, rows, 256, 8).threads for rows in (784, 3136)] == [256, 512]


def test_running_statistics(kernel_device: Backend) -> None:
    mean, variance = normal(1, 5, 1), np.abs(normal(1, 5, 1))
    for dtype in ("float32", "float16"):
        running = [normal(5, dtype=dtype), np.abs(normal(5, dtype=dtype))]
        for some in (running, [running[0], None], [None, running[1]]):
            there = [on(kernel_device, r) for r in some]
            with gn.kernels("force"):
                arrays = on(kernel_device, mean), on(kernel_device, variance)
                norm.update_running(*arrays, *there, momentum=0.3, unbias=1.2)
            expected = [None if r is None else r.astype("float64") for r in some]
            norm.update_running(mean, variance, *expected, momentum=0.3, unbias=1.2)
            for found, wanted in zip(there, expected):
                if wanted is not None:
                    tolerance = TOLERANCE[dtype]
                    np.testing.assert_allclose(kernel_device.to_numpy(found), wanted, rtol=tolerance, atol=tolerance)


def test_a_mean_far_from_zero_costs_no_digits(kernel_device: Backend) -> None:
    x = (normal(4, 8, 9, 5, last=True) + np.float32(4096)).astype("float32")
    with gn.kernels("force"):
        _mean, variance = norm.moments(on(kernel_device, x), axes=(0, 2, 3))
        rows = norm.normalize(on(kernel_device, np.ascontiguousarray(x)), axes=(1, 2, 3), eps=0.0)
        long = norm.normalize(on(kernel_device, np.tile(x.reshape(4, -1), 30)), axes=(1,), eps=0.0)
        tiles = norm.normalize(on(kernel_device, x), axes=(2, 3), eps=0.0)
    expected = x.astype("float64").var(axis=(0, 2, 3), keepdims=True)
    np.testing.assert_allclose(kernel_device.to_numpy(variance), expected, rtol=1e-5)
    np.testing.assert_allclose(kernel_device.to_numpy(rows).std(axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(kernel_device.to_numpy(long).std(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(kernel_device.to_numpy(tiles).std(axis=(2, 3)), 1, rtol=1e-5)


def test_what_is_not_finite(kernel_device: Backend) -> None:
    x = normal(3, 40)
    x[0, 3], x[1, 5] = np.nan, np.inf
    with gn.kernels("force"):
        y = kernel_device.to_numpy(norm.normalize(on(kernel_device, x), axes=(1,), eps=1e-5))
        images = on(kernel_device, np.moveaxis(x.reshape(3, 5, 8), -1, 1))
        z = kernel_device.to_numpy(norm.normalize_relu(images, None, None, None, axes=(0, 2), eps=1e-5))
        groups = norm.group_norm(images, 4, on(kernel_device, normal(8)), None, eps=1e-5)
        bad = np.isnan(kernel_device.to_numpy(groups)).all((2,)).reshape(3, 4, 2)
    assert np.isnan(y[:2]).all() and np.isfinite(y[2]).all()
    assert np.argwhere(bad).tolist() == [[0, 1, 0], [0, 1, 1], [1, 2, 0], [1, 2, 1]]
    assert np.isnan(z[:, [3, 5]]).all() and np.isfinite(z[:, [0, 1, 2, 4, 6, 7]]).all()


def test_empty_arrays(kernel_device: Backend) -> None:
    x, weight = on(kernel_device, normal(0, 4)), on(kernel_device, normal(4))
    with gn.kernels("force"):
        assert norm.normalize(x, weight, weight, axes=(1,), eps=1e-5).shape == (0, 4)
        dx, *others = norm.normalize_grad(x, x, weight, axes=(1,), eps=1e-5)
    assert dx.shape == (0, 4) and all(kernel_device.to_numpy(p).tolist() == [0] * 4 for p in others)


def test_bits_do_not_depend_on_the_order_of_blocks(kernel_device: Backend) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device has orders")
    images, residual, g = (on(kernel_device, normal(4, 8, 9, 7, last=True)) for _ in range(3))
    rows, along = (on(kernel_device, normal(70, 40)) for _ in range(2))
    long = on(kernel_device, normal(3, norm_kernels.LONGEST + 4))
    channel, row = (on(kernel_device, normal(*s)) for s in ((8, 1, 1), (40,)))
    results = []
    for options in ({}, {"order": "reverse", "late": True}, *({"order": "random", "seed": seed} for seed in (3, 4))):
        how: dict[str, Any] = {"axes": (0, 2, 3), "eps": 1e-5}
        with emulation(processors=3, **options), gn.kernels("force"):  # type: ignore[arg-type]
            y = norm.normalize_relu(images, channel, channel, residual, **how)
            found = [y, *norm.normalize_relu_grad(g, y, images, channel, channel, **how, statistics=None, added=True)]
            found += norm.normalize_grad(along, rows, row, axes=(1,), eps=1e-5)
            found += norm.normalize_grad(long, long, None, axes=(1,), eps=1e-5)
            found.append(norm.group_norm(images, 2, channel.reshape(-1), channel.reshape(-1), eps=1e-5))
            found += norm.normalize_grad(g, images, channel, axes=(2, 3), eps=1e-5)
            results.append([kernel_device.to_numpy(a).tobytes() for a in found])
    assert all(r == results[0] for r in results[1:])


@pytest.mark.parametrize(
    "name", [n for n in CASES if n.split(":")[0] in ("normalize", "normalize_relu", "rms_normalize")]
)
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)


@pytest.mark.parametrize(
    ("layers", "shape", "launches"),
    [
        ([nn.LayerNorm(40)], (20, 40), (1, 2)),
        ([nn.RMSNorm(40)], (20, 40), (1, 2)),
        ([nn.BatchNorm2d(8)], (4, 8, 5, 6), (4, 3)),
        ([nn.BatchNorm2d(8), nn.ReLU()], (4, 8, 5, 6), (4, 3)),
        ([nn.GroupNorm(2, 8)], (4, 8, 5, 6), (1, 2)),
        ([nn.InstanceNorm2d(8, affine=True)], (4, 8, 5, 6), (1, 2)),
    ],
    ids=str,
)
def test_layers_launch_only_kernels(
    layers: list[nn.Module], shape: tuple[int, ...], launches: tuple[int, int], kernel_device: Backend
) -> None:
    if kernel_device.name != "emulated":
        pytest.skip("only the emulated device keeps a log of launches")
    a = normal(*shape, last=True)
    model = nn.Sequential(*layers).to("emulated")
    x, log, host = gn.tensor(a, device="emulated", requires_grad=True), [], []  # type: ignore[var-annotated]
    with emulation(log=log, host=host), gn.kernels("force"):
        y = model(x)
        forward = [entry for entry in log if "norm" in entry[0] or "channel" in entry[0] or "rows" in entry[0]]
        log.clear()
        y.backward(y.detach())
    assert (len(forward), len(log)) == (launches[0] - ("Batch" in str(layers)), launches[1])
    assert host == []
    wanted = gn.tensor(a, requires_grad=True)
    z = nn.Sequential(*layers).to("cpu")(wanted)
    z.backward(z.detach())
    assert x.grad is not None and wanted.grad is not None
    np.testing.assert_allclose(x.grad.cpu().numpy(), wanted.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_what_no_kernel_takes(kernel_device: Backend) -> None:
    x = on(kernel_device, normal(3, 4, 5))
    with gn.kernels("force"):
        with pytest.raises(DeviceError, match="normalize: none of its kernels applies"):
            norm.normalize(x, axes=(0,), eps=1e-5)
        with pytest.raises(DeviceError, match="normalize: none of its kernels applies"):
            norm.normalize(x, on(kernel_device, normal(5, dtype="float64")), None, axes=(2,), eps=1e-5)
