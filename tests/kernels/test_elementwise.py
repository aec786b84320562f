"""Elementwise ops on a device with kernels: every op and type beside NumPy, every layout, numbers, writing in place."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation, prebuild
from gpunet.errors import DeviceError, ShapeError
from gpunet.ops import elementwise as ew
from gpunet.ops.op import Op
from tests.gradcheck import check_gradients
from tests.ops.test_gradients import CASES

rng = np.random.default_rng(0)

UNARY = [o for o in vars(ew).values() if isinstance(o, Op) and o.arity == 1 and not o.view]
BINARY = [o for o in vars(ew).values() if isinstance(o, Op) and o.arity == 2]
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 39.0, -41.0, np.inf, -np.inf, np.nan])


def on(backend: Backend, x: Any) -> Any:
    return backend.from_numpy(np.asarray(x), Device(backend.name))


def values(op: Op, dtype: str, *shape: int) -> np.ndarray:
    """Ordinary numbers and, for floating-point types, all that is special."""
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 7, shape).astype(dtype)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    x = rng.standard_normal(shape) * 2
    edges = EDGES[np.isfinite(EDGES)] if op.name.startswith("gelu") else EDGES  # of infinity the reference makes a NaN
    x.ravel()[: len(edges)] = rng.permutation(edges)
    return x.astype(dtype)


def parameters(op: Op) -> dict[str, Any]:
    return {"approximate": "tanh"} if op.name == "gelu_grad" else dict(op.defaults)


def compare(op: Op, backend: Backend, arrays: list[Any], **params: Any) -> None:
    """Of NumPy arrays and numbers: the kernel's result beside the reference's, which is computed in float64."""
    moved = [on(backend, a) if isinstance(a, np.ndarray) else a for a in arrays]
    with gn.kernels("force"):
        got = backend.to_numpy(op(*moved, **params))
    with gn.kernels("off"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = op(*arrays, **params)
        dtype = expected.dtype
        if dtype.kind == "f" and op.name != "nextafter":
            fine = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arrays]
            expected = op(*fine, **params).astype(dtype)
    assert got.dtype == dtype, (got.dtype, dtype)
    assert got.shape == np.shape(expected)
    if dtype.kind == "f":
        epsilon = np.finfo(dtype).eps
        size = 50 if op.name.startswith("gelu") or op.name.endswith("_grad") else 1  # terms that cancel
        np.testing.assert_allclose(got, expected, rtol=8 * epsilon, atol=2 * size * epsilon, err_msg=op.name)
    else:
        np.testing.assert_array_equal(got, expected, err_msg=op.name)


def applies(op: Op, dtype: str) -> bool:
    """Whether the reference knows this type."""
    x = np.ones(3, dtype)
    try:
        with gn.kernels("off"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            op(*[x] * op.arity, **parameters(op))
    except TypeError:
        return False
    return True


def has_kernel(op: Op, dtype: str) -> bool:
    """What has none: float16's neighbours; powers of integers by arrays; activations of integers."""
    if op.name == "nextafter":
        return dtype != "float16"
    kind = np.dtype(dtype).kind
    if op.name in ("silu", "softplus", "leaky_relu", "elu", "gelu") or op.name.endswith("_grad"):
        return kind == "f"
    return not (op.name == "pow" and kind in "iub") and not (op.name == "remainder" and kind == "b")


def test_every_op_beside_numpy(kernel_device: Backend) -> None:
    some = {"add", "multiply", "maximum", "remainder", "abs", "sign", "exp", "relu", "silu_grad", "less", "isnan"}
    cases = [
        (op, dtype, [values(op, dtype, 37) for _ in range(op.arity)])
        for op in UNARY + BINARY
        for dtype in ["float32", *(("float64", "float16") if op.name in some else ())]
        if applies(op, dtype) and has_kernel(op, dtype)
    ]
    whole = {"add", "floor_divide", "remainder", "sign", "abs", "equal", "logical_not", "round"}
    for op in UNARY + BINARY:
        dtype = "int32" if op.name in whole or op.name.startswith("bitwise") else "bool"
        if (dtype == "int32" or op.name in ("add", "bitwise_or", "maximum")) and has_kernel(op, dtype):
            cases.append((op, dtype, [values(op, dtype, 37) for _ in range(op.arity)]))
    if kernel_device.name == "emulated":
        build([(op, arrays) for op, _, arrays in cases], kernel_device)
    for op, _, arrays in cases:
        compare(op, kernel_device, arrays, **parameters(op))


def build(cases: list[tuple[Op, list[Any]]], backend: Backend) -> None:
    """Compile all that these cases launch, many at a time."""
    wanted: list[Any] = []

    class Asked(Exception):
        pass

    class Recorder:
        processors = 4

        def empty(self, shape: Any, dtype: Any) -> Any:
            return backend.launcher("elementwise").empty(shape, dtype)  # type: ignore[misc]

        def pointer(self, array: Any) -> int:
            return 64

        def launch(self, variant: Any, *_: Any) -> None:
            wanted.append(variant)

    for op, arrays in cases:
        kernel = next(k for k in op.kernels if k.platform == "cuda")
        kernel.launch(Recorder(), *(on(backend, a) for a in arrays), **parameters(op))
    prebuild(wanted)


SHAPES = [
    ((2, 40, 6), (2, 40, 6)),
    ((5, 24), (24,)),
    ((24, 5), (24, 1)),
    ((3, 1, 7), (4, 1)),
    ((), (3,)),
    ((0, 3), (3,)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_layouts_and_broadcasting(shapes: Any, kernel_device: Backend) -> None:
    a, b = (on(kernel_device, rng.standard_normal(s).astype(np.float32)) for s in shapes)
    pairs = [(a, b), (b, a)]
    if a.ndim == 3 and b.ndim == 3:
        last = a.transpose(0, 2, 1).copy().transpose(0, 2, 1)
        pairs += [(last, b), (last, last), (b[:, ::2], last[:, ::-2]), (a.T, b.T), (a[:, 1:, 1:], b[:, :-1, 1:])]
    for x, y in pairs:
        with gn.kernels("force"):
            got = ew.subtract(x, y)
        np.testing.assert_array_equal(
            kernel_device.to_numpy(got), kernel_device.to_numpy(x) - kernel_device.to_numpy(y)
        )


def test_results_lie_as_inputs_do(kernel_device: Backend) -> None:
    x = on(kernel_device, rng.standard_normal((2, 4, 5, 3)).astype(np.float32)).transpose(0, 3, 1, 2)
    bias = on(kernel_device, np.arange(3, dtype=np.float32)).reshape(1, 3, 1, 1)
    with gn.kernels("force"):
        assert ew.relu(x).strides == ew.add(x, bias).strides == ew.where(x > 0, x, 0.0).strides == x.strides
        assert ew.less(x, x).transpose(0, 2, 3, 1).flags.c_contiguous


def test_turned_arrays_are_copied_by_squares(kernel_device: Backend) -> None:
    x = on(kernel_device, rng.standard_normal((130, 140)).astype(np.float32))
    y = on(kernel_device, rng.standard_normal((140, 130)).astype(np.float32)).T
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        got = ew.add(x, y)
    np.testing.assert_array_equal(kernel_device.to_numpy(got), kernel_device.to_numpy(x) + kernel_device.to_numpy(y))
    if kernel_device.name == "emulated":
        assert [name.split("<")[0] for name, _ in log] == ["copy_turned", "elementwise_dense"]


NUMBERS = [
    (2.5, "float32"),
    (2, "float16"),
    (3, "int32"),
    (np.float32(0.1), "float16"),
    (0.1, "float16"),
    (True, "float32"),
]


@pytest.mark.parametrize(("number", "dtype"), NUMBERS, ids=str)
def test_numbers(number: Any, dtype: str, kernel_device: Backend) -> None:
    x = values(ew.add, dtype, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, expected in [(ew.multiply, x * number), (ew.subtract, x - number), (ew.greater, x > number)]:
            with gn.kernels("force"):
                got = kernel_device.to_numpy(op(on(kernel_device, x), number))
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
    with gn.kernels("force"):
        got = kernel_device.to_numpy(ew.subtract(number, on(kernel_device, x)))
    np.testing.assert_array_equal(got, number - x)


def test_numbers_that_a_type_cannot_hold_are_numpys(kernel_device: Backend) -> None:
    x = on(kernel_device, np.arange(5, dtype=np.uint8))
    assert kernel_device.to_numpy(ew.less(x, 300)).all()
    with pytest.raises(OverflowError):
        ew.add(x, 300)
    with gn.kernels("force"), pytest.raises(DeviceError, match="add: none of its kernels applies"):
        ew.add(x, 300)


MIXED = [("float32", "float16"), ("float32", "int64"), ("int8", "uint8"), ("float16", "uint8"), ("bool", "int32")]


@pytest.mark.parametrize(("a", "b"), MIXED, ids=str)
def test_types_are_promoted_as_numpy_does(a: str, b: str, kernel_device: Backend) -> None:
    x, y = rng.integers(0, 5, 50).astype(a), rng.integers(1, 5, 50).astype(b)
    compare(ew.multiply, kernel_device, [x, y])
    compare(ew.divide, kernel_device, [x, y])
    compare(ew.equal, kernel_device, [x, y])


def test_bfloat16(kernel_device: Backend) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")
    x = rng.standard_normal(50).astype(ml_dtypes.bfloat16)
    with gn.kernels("force"):
        a = on(kernel_device, x)
        assert ew.add(a, a).dtype == x.dtype and ew.add(a, 2.0).dtype == x.dtype
        np.testing.assert_array_equal(kernel_device.to_numpy(ew.multiply(a, a)), x * x)
        wide = ew.multiply(a, on(kernel_device, np.full(50, 0.1, np.float32)))
        np.testing.assert_array_equal(kernel_device.to_numpy(wide), x.astype(np.float32) * np.float32(0.1))
        assert kernel_device.to_numpy(ew.less(a, 0)).tolist() == (x < 0).tolist()


@pytest.mark.parametrize("condition", ["mask", "row"])
def test_where_and_clip(condition: str, kernel_device: Backend) -> None:
    x, y = values(ew.add, "float32", 6, 16), values(ew.add, "float32", 6, 16)
    mask = rng.integers(0, 2, (6, 16) if condition == "mask" else 16).astype(bool)
    compare(ew.where, kernel_device, [mask, x, y])
    compare(ew.where, kernel_device, [mask, x, 0.0])
    compare(ew.where, kernel_device, [mask, -1.0, np.arange(16)])
    compare(ew.clip, kernel_device, [x, -1.0, 1.0])
    compare(ew.clip, kernel_device, [x, y, None])
    compare(ew.clip, kernel_device, [np.arange(9), 2, 5])
    compare(ew.hardtanh, kernel_device, [x], min_val=-0.5, max_val=2.0)
    compare(ew.gelu, kernel_device, [x[2:]], approximate="tanh")
    compare(ew.pow, kernel_device, [np.abs(x), 2])
    compare(ew.pow, kernel_device, [np.arange(9), 3])


def test_writing_in_place(kernel_device: Backend) -> None:
    x = rng.standard_normal((6, 16)).astype(np.float32)
    t = gn.asarray(x, device=kernel_device.name, copy=True)
    log: list[Any] = []
    with gn.kernels("force"), emulation(log=log):
        t += 2.0
        t *= gn.asarray(x[0], device=kernel_device.name)
        t[:, ::2] -= t[:, 1::2]
    expected = (x + 2.0) * x[0]
    expected[:, ::2] -= expected[:, 1::2]
    np.testing.assert_array_equal(t.cpu().numpy(), expected)
    whole = gn.asarray([1, 2], device=kernel_device.name)
    with pytest.raises(Exception, match="float"):
        whole += 0.5


def test_shapes_that_do_not_broadcast(kernel_device: Backend) -> None:
    a, b = gn.ones((2, 3), device=kernel_device.name), gn.ones((2, 4), device=kernel_device.name)
    with gn.kernels("force"), pytest.raises(ShapeError, match=r"add"):
        a + b


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_blocks_in_any_order(order: str, kernel_device: Backend) -> None:
    x = on(kernel_device, rng.standard_normal((9, 300)).astype(np.float32))
    with gn.kernels("force"):
        expected = ew.gelu(x), ew.add(x, x[0])
        with emulation(order=order, seed=3):
            got = ew.gelu(x), ew.add(x, x[0])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, expected))


NAMES = {o.name for o in UNARY + BINARY} | {"where", "clip", "hardtanh"}


@pytest.mark.parametrize("name", [n for n in CASES if n.split(":")[0] in NAMES])
def test_gradients(name: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    f, inputs = CASES[name]
    monkeypatch.setattr("gpunet.creation._device", gn.Device(kernel_device.name))
    check_gradients(f, inputs, device=kernel_device.name)
