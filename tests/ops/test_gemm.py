"""What products ask of kernels: checked with a launcher that does what MatmulArgs says, in NumPy."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from struct import Struct
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends.kernel import Launcher, Variant
from gpunet.ops import gemm

ARGS = Struct("7P9q10q2d8i")
FIELDS = [
    "a",
    "b",
    "c",
    "bias",
    "residual",
    "aux",
    "workspace",
    "a_row",
    "a_col",
    "b_row",
    "b_col",
    "c_row",
    "bias_row",
    "bias_col",
    "residual_row",
    "aux_row",
    "a_outer",
    "a_inner",
    "b_outer",
    "b_inner",
    "c_outer",
    "c_inner",
    "residual_outer",
    "residual_inner",
    "aux_outer",
    "aux_inner",
    "alpha",
    "beta",
    "m",
    "n",
    "k",
    "batch",
    "batch_inner",
    "splits",
    "split_k",
    "activation",
]
DTYPES = {"double": np.float64, "float": np.float32, "half": np.float16, "tf32": np.float32}


class NumpyLauncher(Launcher):
    """Follows the pointers and strides of a launch as a kernel would, one element after another."""

    architecture = "sm_90a"
    processors = 4

    def __init__(self) -> None:
        self.log: list[str] = []
        self.grid = (0, 0, 0)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        out = np.empty(shape, dtype)
        out.view(np.uint8).reshape(-1)[...] = 0xFF
        return out

    def pointer(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def tensor_map(self, pointer: int, itemsize: int, *geometry: Any) -> bytes:
        assert pointer % 16 == 0 and all(s % 16 == 0 and s > 0 for s in geometry[1])
        return b"map"

    def launch(self, variant: Variant, grid: tuple[int, int, int], *parameters: bytes) -> None:
        self.log.append(variant.expression)
        self.grid = grid
        args = dict(zip(FIELDS, ARGS.unpack(parameters[0])))
        dtype = np.dtype(next(t for name, t in DTYPES.items() if f"<{name}" in variant.expression))
        compute = np.dtype("f8" if dtype == "f8" else "f4")
        m, n, k, splits, step = (args[name] for name in ("m", "n", "k", "splits", "split_k"))
        outer, inner = args["batch"] // args["batch_inner"], args["batch_inner"]

        def view(name: str, rows: int, cols: int, row: int, col: int) -> np.ndarray:
            strides = tuple(
                s * dtype.itemsize for s in (args.get(f"{name}_outer", 0), args.get(f"{name}_inner", 0), row, col)
            )
            return _at(args[name], dtype, (outer, inner, rows, cols), strides)

        a = view("a", m, k, args["a_row"], args["a_col"])
        b = view("b", k, n, args["b_row"], args["b_col"])
        workspace = (splits, outer, inner, m, n)
        if variant.file == "matmul_reduce":
            v = _at(args["workspace"], compute, workspace).sum(axis=0)
        elif splits > 1:
            assert splits == 1 or (splits - 1) * step < k, "a part of the sum is empty"
            for s in range(splits):
                part = slice(s * step, (s + 1) * step)
                _at(args["workspace"], compute, workspace)[s] = a[..., part] @ b[..., part, :]
            return
        else:
            v = (a.astype(compute) @ b.astype(compute)) if k else np.zeros(workspace[1:], compute)
        c = view("c", m, n, args["c_row"], 1)
        v = args["alpha"] * v
        if args["beta"]:
            v += args["beta"] * c
        if args["bias"]:
            v += view("bias", m, n, args["bias_row"], args["bias_col"])
        if args["activation"] == gemm.DERIVATIVE + gemm.ACTIVATIONS["relu"]:
            v *= view("aux", m, n, args["aux_row"], 1) > 0
        elif args["activation"] == gemm.ACTIVATIONS["relu"]:
            if args["aux"]:
                view("aux", m, n, args["aux_row"], 1)[...] = v
            v = np.maximum(v, 0)
        if args["residual"]:
            v += view("residual", m, n, args["residual_row"], 1)
        c[...] = v


def _at(address: int, dtype: np.dtype, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    if strides is None:
        strides = np.empty(shape, np.bool_).strides
        strides = tuple(s * dtype.itemsize for s in strides)
    low = sum(min(0, (length - 1) * s) for length, s in zip(shape, strides))
    high = sum(max(0, (length - 1) * s) for length, s in zip(shape, strides)) + dtype.itemsize
    memory = np.frombuffer((ctypes.c_char * (high - low)).from_address(address + low), np.uint8)
    return np.ndarray(shape, dtype, memory, -low, strides)


rng = np.random.default_rng(0)


def matrices(kind: str, *shape: int, dtype: Any = np.float64) -> np.ndarray:
    """Random numbers in memory laid out in one of many ways."""
    *batch, rows, cols = shape
    if kind == "rows":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "columns":
        return rng.standard_normal((*batch, cols, rows)).astype(dtype).swapaxes(-1, -2)
    if kind == "padded":
        return rng.standard_normal((*batch, rows, cols + 3)).astype(dtype)[..., 1 : cols + 1]
    if kind == "strided":
        return rng.standard_normal((*batch, 2 * rows, 3 * cols)).astype(dtype)[..., ::2, ::3]
    if kind == "reversed":
        return rng.standard_normal(shape).astype(dtype)[..., ::-1, ::-1]
    if kind == "batch last":
        return np.moveaxis(rng.standard_normal((rows, cols, *batch)).astype(dtype), (0, 1), (-2, -1))
    assert kind == "broadcast"
    return np.broadcast_to(rng.standard_normal((*batch, 1, cols)).astype(dtype), shape)


KINDS = ("rows", "columns", "padded", "strided", "reversed", "batch last", "broadcast")
BATCHES = [
    ((), ()), ((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), ()), ((2, 1), (1, 3)), ((1,), (3,)),
    ((2, 3, 2), (3, 1)), ((2, 1, 2, 2), (3, 1, 2)), ((0,), ()), ((2, 0), (1,)),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_every_layout_is_addressed_right(kind: str, batches: tuple[Any, Any], dtype: Any) -> None:
    launcher = NumpyLauncher()
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-2, "atol": 2e-2}
    for m, n, k in [
        (5, 4, 3),
        (1, 7, 3),
        (6, 1, 5),
        (1, 1, 9),
        (16, 24, 8),
        (4, 5, 1),
        (2, 3, 0),
        (0, 3, 2),
        (8, 0, 8),
    ]:
        for other in KINDS if m == 5 else (kind, "rows"):
            a, b = matrices(kind, *batches[0], m, k, dtype=dtype), matrices(other, *batches[1], k, n, dtype=dtype)
            y = gemm.multiply(launcher, a, b)
            np.testing.assert_allclose(y, np.matmul(a, b), **tolerance)
            assert y.dtype == dtype and y.flags.c_contiguous


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every product that can be split is."""
    monkeypatch.setattr(gemm, "predict", lambda problem, choice, *_: -choice.splits)
    monkeypatch.setattr(gemm, "_plans", {})
    yield


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_split_sums_leave_no_part_empty(split: None, batch: tuple[int, ...]) -> None:
    launcher = NumpyLauncher()
    launcher.processors = 64
    for k in (200, 333, 1024, 1500):
        a, b = matrices("rows", *batch, 3, k), matrices("columns", k, 2)
        bias = rng.standard_normal(2)
        np.testing.assert_allclose(gemm.multiply(launcher, a, b, bias=bias), a @ b + bias, rtol=1e-10, atol=1e-10)
    assert any("reduce" in name for name in launcher.log)


@pytest.mark.parametrize("shape", [(5, 4, 3), (1, 4, 3), (5, 1, 3), (5, 4, 0)], ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2, 3)], ids=str)
def test_epilogues(shape: tuple[int, int, int], batch: tuple[int, ...]) -> None:
    launcher = NumpyLauncher()
    m, n, k = shape
    a, b = matrices("rows", *batch, m, k), matrices("columns", k, n)
    bias, residual, aux, out = (rng.standard_normal(s) for s in ((n,), (*batch, m, n), (*batch, m, n), (*batch, m, n)))
    product = a @ b

    got = gemm.multiply(launcher, a, b, bias=bias, residual=residual, aux=aux, activation="relu", alpha=2.0)
    np.testing.assert_allclose(aux, 2 * product + bias)
    np.testing.assert_allclose(got, np.maximum(2 * product + bias, 0) + residual)

    got = gemm.multiply(launcher, a, b, aux=aux, activation="relu", derivative=True)
    np.testing.assert_allclose(got, product * (aux > 0))

    expected = product - 0.5 * out
    assert gemm.multiply(launcher, a, b, beta=-0.5, out=out) is out
    np.testing.assert_allclose(out, expected)


def test_what_kernels_cannot_do_is_declined() -> None:
    launcher = NumpyLauncher()
    assert gemm.multiply(launcher, np.ones((2, 2), int), np.ones((2, 2), int)) is NotImplemented
    assert gemm.multiply(launcher, np.ones((2, 2), np.float32), np.ones((2, 2))) is NotImplemented
    records = np.ones((3, 3), [("x", "f8"), ("y", "i2")])["x"]  # strides of 10 bytes
    assert gemm.multiply(launcher, records, np.ones((3, 3))) is NotImplemented
    long = np.broadcast_to(np.ones((1, 1)), (2**31, 1))
    assert gemm.multiply(launcher, long.T, long) is NotImplemented
    launcher.architecture = "sm_61"  # before Volta
    assert gemm.multiply(launcher, np.ones((3, 3)), np.ones((3, 3))) is NotImplemented


def test_float32_precision_chooses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gn.get_float32_precision() == "highest"
    a, b = np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)
    launcher = NumpyLauncher()
    gemm.multiply(launcher, a, b)
    gn.set_float32_precision("high")
    try:
        gemm.multiply(launcher, a, b)
    finally:
        gn.set_float32_precision("highest")
    assert "<float" in launcher.log[0] and "<tf32" in launcher.log[1]
    with pytest.raises(ValueError, match='set_float32_precision: expected "highest" or "high", got .fast.'):
        gn.set_float32_precision("fast")


def test_what_the_table_names_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_plans", {})
    a, b = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    entry = "float32 K_MAJOR MN_MAJOR 64x64x64"
    launcher = NumpyLauncher()

    best = gemm.rates_of(launcher.architecture)["best"]
    monkeypatch.setitem(best, entry, "simt 128x128 / 1")
    gemm.multiply(launcher, a, b)
    assert launcher.log == ["matmul_simt<float, 128, 128, 8, 64, 32, K_MAJOR, MN_MAJOR, 4>"]

    gemm._plans.clear()
    monkeypatch.setitem(best, entry, "library")
    assert gemm.multiply(launcher, a, b) is NotImplemented
    assert gemm.multiply(launcher, a, b, bias=a[0]) is not NotImplemented  # the library would take another launch
    with gn.kernels("force"):
        np.testing.assert_allclose(gemm.multiply(launcher, a, b), a @ b, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(launcher, "capturing", lambda: True)
    assert gemm.multiply(launcher, a, b) is not NotImplemented


@pytest.mark.parametrize(
    "architecture", ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"]
)
@pytest.mark.parametrize("compute", ["float64", "float32", "tf32", "float16"])
def test_every_architecture_has_rates_for_its_kernels(architecture: str, compute: str) -> None:
    dtype = compute.replace("tf32", "float32")
    for m, n, k in [(1, 64, 64), (64, 1, 64), (64, 64, 64), (8192, 8192, 8192), (64, 64, 2**20), (2**20, 64, 64)]:
        problem = gemm.Problem(dtype, compute, m, n, k, (), gemm.Operand(k, 1, 16), gemm.Operand(n, 1, 16))
        found = gemm.choices(problem, architecture, 100)
        assert found and all(choice.variant.runs_on(architecture) for choice in found)


def test_a_row_times_a_matrix_is_a_vector_product_with_as_many_blocks_as_it_needs() -> None:
    launcher = NumpyLauncher()
    row, column, matrix = (rng.standard_normal(s) for s in ((1, 4096), (4096, 1), (4096, 256)))
    gemm.multiply(launcher, row, np.asfortranarray(matrix))
    assert launcher.log[0] == "matmul_vector<double, K_MAJOR, 2>" and launcher.grid[0] == 256 / 8
    launcher.log.clear()
    gemm.multiply(launcher, row, matrix)
    assert launcher.log[0] == "matmul_vector<double, MN_MAJOR, 2>" and launcher.grid[0] <= 256 / 64
    launcher.log.clear()
    gemm.multiply(launcher, matrix.T, column)
    assert launcher.log[0] == "matmul_vector<double, MN_MAJOR, 2>"
