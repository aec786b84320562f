"""Runs a matrix-product kernel through a Launcher, and checks all that it writes against float64.

`check_product` is what the tests of every tier call. Whatever a kernel could wrongly read is NaN: the memory around its
operands, C where beta is 0, the workspace. Whatever it could wrongly write is compared bit by bit afterwards. The bound
on the error is the rigorous one for sums in any order, so a right kernel cannot fail it by bad luck: with u the unit
roundoff of the compute type and t that of storage,

    |V - exact| <= (K + 8) u (|alpha| |A| |B| + |beta C| + |bias|)       (Higham, Accuracy and Stability, section 3.1)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunet.backends.kernel import Launcher, Variant

# Unit roundoff of what is stored and of what is multiplied; sums are float32's, or float64's.
UNITS = {
    "float64": (2.0**-53, 0.0, 2.0**-53),
    "float32": (2.0**-24, 0.0, 2.0**-24),
    "tf32": (2.0**-24, 2.0**-11, 2.0**-24),
    "float16": (2.0**-11, 0.0, 2.0**-24),
    "bfloat16": (2.0**-8, 0.0, 2.0**-24),
}
STORAGE = {
    "double": np.dtype(np.float64),
    "float": np.dtype(np.float32),
    "tf32": np.dtype(np.float32),
    "half": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # its bits
}
COMPUTE = {number: np.dtype(np.float64 if number == "double" else np.float32) for number in STORAGE}
ROUNDOFF = {"double": 2.0**-53, "float": 2.0**-24, "tf32": 2.0**-24, "half": 2.0**-11, "bfloat16": 2.0**-8}
INPUT_ROUNDOFF = {"tf32": 2.0**-11}  # of the operands, where a kernel rounds them itself

LAYOUTS = ("K_MAJOR", "MN_MAJOR", "STRIDED")
ACTIVATIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu")
DERIVATIVE = len(ACTIVATIONS)
MATMUL_ARGS = struct.Struct("7P9q10q2d8i")


def rounded(values: Any, number: str) -> np.ndarray:
    """Real numbers as they are stored in type `number`, rounded to nearest even."""
    if number != "bfloat16":
        return np.asarray(values, dtype=STORAGE[number])
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, 0x7FFF, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def exact(array: np.ndarray, number: str) -> np.ndarray:
    """What stored numbers of type `number` are, in float64."""
    if number == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def operand(
    rng: np.random.Generator,
    number: str,
    shape: Sequence[int],
    adjacent: int = -1,
    *,
    offset: int = 0,
    padding: int = 0,
    step: int = 1,
) -> np.ndarray:
    """Random numbers of the standard normal distribution in memory that is NaN wherever they are not.

    Args:
        rng: where they come from.
        number: their type.
        shape: (..., rows, columns).
        adjacent: the axis, -1 or -2, whose elements are neighbours in memory (`step` elements apart).
        offset: elements by which the first is away from an address that is a multiple of 256 bytes.
        padding: elements of unused memory after each row (or column, if rows are adjacent).
        step: distance of neighbours. Turn the result around by slicing for negative strides, and broadcast it for
            strides of zero.
    """
    *batch, rows, columns = shape
    lines, length = (rows, columns) if adjacent == -1 else (columns, rows)
    pitch = length * step + padding
    memory = rounded(np.full(offset + math.prod(batch) * lines * pitch + 64, np.nan), number)
    view = memory[offset : offset + math.prod(batch) * lines * pitch].reshape(*batch, lines, pitch)
    view = view[..., : length * step : step]
    view[...] = rounded(rng.standard_normal(view.shape), number)
    return view if adjacent == -1 else view.swapaxes(-1, -2)


def layout_operands(
    rng: np.random.Generator, number: str, shape: tuple[int, int, int], a_layout: str, b_layout: str, **memory: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A (M, K) and B (K, N) of `shape` (M, N, K) in kernels' layouts, with `operand`'s options for both."""
    m, n, k = shape

    def options(layout: str) -> dict[str, Any]:
        return {"step": 2, **memory} if layout == "STRIDED" else memory

    a = operand(rng, number, (m, k), -2 if a_layout == "MN_MAJOR" else -1, **options(a_layout))
    b = operand(rng, number, (k, n), -2 if b_layout == "K_MAJOR" else -1, **options(b_layout))
    return a, b


@dataclass(frozen=True)
class Epilogue:
    """What is done with the sums, as in kernels/matmul.cuh.

    Attributes:
        alpha, beta: factors of the product and of C's old values.
        bias: "" for none, or along which axis it varies: "row", "column" or "both".
        residual: whether there is one.
        aux: whether V is stored.
        activation: one of ACTIVATIONS.
        derivative: multiply by the activation's derivative at aux instead of applying it.
    """

    alpha: float = 1.0
    beta: float = 0.0
    bias: str = ""
    residual: bool = False
    aux: bool = False
    activation: str = "identity"
    derivative: bool = False


# Every part of the epilogue in few launches; the first is the bare product.
EPILOGUES = (
    Epilogue(),
    Epilogue(alpha=-0.5, beta=2.0),
    Epilogue(bias="column", activation="relu"),
    Epilogue(bias="row", activation="gelu", aux=True),
    Epilogue(bias="both", activation="gelu_tanh", residual=True),
    Epilogue(alpha=2.0, beta=-1.0, bias="column", activation="silu", residual=True, aux=True),
    *(Epilogue(activation=activation, derivative=True) for activation in ACTIVATIONS[1:]),
    Epilogue(bias="row", residual=True, activation="silu", derivative=True),
)


@dataclass(frozen=True)
class Product:
    """A product on the device, as kernels see it: for making a kernel's further parameters, such as TMA maps."""

    m: int
    n: int
    k: int
    batch: tuple[int, int]
    itemsize: int
    a: int  # addresses of the first elements
    b: int
    a_strides: tuple[int, ...]  # in elements: outer batch, inner batch, row, column
    b_strides: tuple[int, ...]
    splits: int
    split_k: int


def check_product(
    launcher: Launcher,
    variant: Variant,
    number: str,
    a: np.ndarray,
    b: np.ndarray,
    *,
    tile: tuple[int, int] = (1, 1),
    grid: tuple[int, int, int] | None = None,
    epilogue: Epilogue = EPILOGUES[0],
    splits: int = 1,
    split_unit: int = 1,
    offset: int = 0,
    padding: int = 0,
    parameters: Callable[[Product], Sequence[bytes]] = lambda _product: (),
    roundoff: float | None = None,
) -> np.ndarray:
    """Launch `variant` on A and B and check C, aux and the workspace; with splits, also run matmul_reduce on these.

    Args:
        launcher: of the device; a new copy of every array is made there.
        variant: the kernel.
        number: type of A, B, C, bias, residual and aux; a key of STORAGE.
        a, b: (M, K) and (K, N), or (outer, inner, M, K) and (outer, inner, K, N) whose batch axes broadcast; of any
            strides.
        tile: rows and columns of C that a block computes, for the usual grid.
        grid: the grid, where it is not the usual one.
        epilogue: what is done with the sums.
        splits: parts that the sum over K is cut into.
        split_unit: what the length of a part is to be a multiple of.
        offset: elements that C, residual and aux are away from an aligned address.
        padding: unused elements after each row of C, residual and aux.
        parameters: makes the kernel's parameters after MatmulArgs.
        roundoff: relative error of each operand that the kernel may make on top; INPUT_ROUNDOFF[number] if None.

    Returns:
        C (outer, inner, M, N), as stored.
    """
    rng = np.random.default_rng(1)
    a, b = (x if x.ndim == 4 else x[None, None] for x in (a, b))
    outer, inner = np.broadcast_shapes(a.shape[:2], b.shape[:2])
    a, b = np.broadcast_to(a, (outer, inner, *a.shape[2:])), np.broadcast_to(b, (outer, inner, *b.shape[2:]))
    (m, k), n, batch = a.shape[2:], b.shape[3], outer * inner
    split_k = -(-k // splits)
    split_k += -split_k % split_unit

    def matrix(values: bool) -> np.ndarray:
        shape = (outer, inner, m, n)
        new = operand(rng, number, shape, offset=offset, padding=padding)
        if not values:
            new[...] = rounded(np.nan, number)
        return new

    c = matrix(epilogue.beta != 0)
    residual = matrix(True) if epilogue.residual else None
    aux = matrix(epilogue.derivative) if epilogue.aux or epilogue.derivative else None
    varies = {"": (1, 1), "row": (m, 1), "column": (1, n), "both": (m, n)}[epilogue.bias]
    bias = np.broadcast_to(operand(rng, number, varies, offset=1), (m, n)) if epilogue.bias else None
    workspace = np.full((splits, batch, m, n) if splits > 1 else (0,), np.nan, COMPUTE[number])

    on_device = {id(x): _Copy(launcher, x) for x in (a, b, c, bias, residual, aux, workspace) if x is not None}

    def pointer(x: np.ndarray | None) -> int:
        return 0 if x is None else on_device[id(x)].pointer

    def strides(x: np.ndarray | None) -> tuple[int, ...]:
        return (0, 0, 0, 0) if x is None else tuple(s // x.itemsize for s in x.strides)

    bias_strides = (0, 0) if bias is None else strides(bias)
    arguments = MATMUL_ARGS.pack(
        *(pointer(x) for x in (a, b, c, bias, residual, aux, workspace if splits > 1 else None)),
        *(*strides(a)[2:], *strides(b)[2:], strides(c)[2], *bias_strides, strides(residual)[2], strides(aux)[2]),
        *(s for x in (a, b, c, residual, aux) for s in strides(x)[:2]),
        *(epilogue.alpha, epilogue.beta, m, n, k, batch, inner, splits, split_k),
        ACTIVATIONS.index(epilogue.activation) + (DERIVATIVE if epilogue.derivative else 0),
    )
    if grid is None:
        grid = (-(-m // tile[0]) * -(-n // tile[1]), min(batch, 65535), splits)
    product = Product(
        m, n, k, (outer, inner), a.itemsize, pointer(a), pointer(b), strides(a), strides(b), splits, split_k
    )
    launcher.launch(variant, grid, arguments, *parameters(product))

    # In float64, from the numbers as they were stored.
    left, right, old = exact(a, number), exact(b, number), exact(c, number)
    unit, storage_unit = ROUNDOFF["double" if number == "double" else "float"], ROUNDOFF[number]
    operand_unit = INPUT_ROUNDOFF.get(number, 0.0) if roundoff is None else roundoff
    sums, magnitude = left @ right, np.abs(left) @ np.abs(right)
    sum_bound = ((k + 8) * unit + 2.1 * operand_unit) * magnitude

    if splits > 1:
        parts = on_device[id(workspace)].fetch()
        total = parts.astype(np.float64).sum(axis=0).reshape(sums.shape)
        _assert_close(total, sums, sum_bound, f"{variant.expression}: sum of the splits' parts")
        launch_reduce(launcher, number, arguments, batch * m * n)

    v, v_bound = epilogue.alpha * sums, abs(epilogue.alpha) * sum_bound
    size = abs(epilogue.alpha) * magnitude
    if epilogue.beta:
        v, size = v + epilogue.beta * old, size + np.abs(epilogue.beta * old)
    if bias is not None:
        v, size = v + exact(bias, number), size + np.abs(exact(bias, number))
    v_bound = v_bound + 8 * unit * size
    slope_at = exact(aux, number) if epilogue.derivative and aux is not None else None
    y = v * slope(epilogue.activation, slope_at) if slope_at is not None else activate(epilogue.activation, v)
    bound = 1.2 * v_bound + 32 * unit * np.abs(v)  # no activation has a slope above 1.13
    if slope_at is not None:
        bound = bound + 1e-10 * np.abs(v)  # of `slope`
    if residual is not None:
        y = y + exact(residual, number)
        bound = bound + unit * np.abs(y)
    for x, value, error, name in ((c, y, bound, "C"), (aux, v, v_bound, "aux")):
        if x is None or (name == "aux" and epilogue.derivative):
            continue
        smallest = {"half": 2.0**-25, "bfloat16": 2.0**-134}.get(number, 0.0)  # half of the least positive number
        error = error + storage_unit * (np.abs(value) + error) + smallest
        got = on_device[id(x)].fetch()
        _assert_close(exact(got, number), value, error, f"{variant.expression}: {name}")
    written = {id(c), id(workspace)} | (set() if epilogue.derivative or aux is None else {id(aux)})
    for x in (a, b, c, bias, residual, aux):
        if x is not None:
            on_device[id(x)].assert_untouched(outside_only=id(x) in written)
    return on_device[id(c)].fetch()


def launch_reduce(launcher: Launcher, number: str, arguments: bytes, elements: int) -> None:
    """Launch matmul_reduce: the second pass of a product whose sum over K was split."""
    variant = Variant("matmul_reduce", f"matmul_reduce<{number}>", threads=256)
    launcher.launch(variant, (min(-(-elements // (256 * 4)), 4 * launcher.processors), 1, 1), arguments)


def activate(activation: str, x: np.ndarray) -> np.ndarray:
    """The activations, by their definitions, in float64."""
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "gelu":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    if activation == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if activation == "silu":
        return x / (1 + np.exp(-x))
    return x


def slope(activation: str, x: np.ndarray) -> np.ndarray:
    """Their derivatives: of relu by its definition, else by central differences of order four."""
    if activation == "relu":
        return (x > 0).astype(np.float64)
    h = 1e-3

    def f(y: np.ndarray) -> np.ndarray:
        return activate(activation, y)

    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


class _Copy:
    """A copy on the device of an array and of all the memory that the array is a view of, at the same alignment."""

    def __init__(self, launcher: Launcher, array: np.ndarray) -> None:
        self.array = array
        memory = array
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        self.memory = memory.reshape(-1)
        slack = 256 // memory.itemsize
        buffer = launcher.empty((self.memory.size + slack,), memory.dtype)
        skip = -launcher.pointer(buffer) % 256 // memory.itemsize
        self.on_device = buffer[skip : skip + self.memory.size]
        self.on_device[...] = self.memory
        self.first = (array.__array_interface__["data"][0] - memory.__array_interface__["data"][0]) // memory.itemsize
        self.pointer = launcher.pointer(buffer) + (skip + self.first) * memory.itemsize

    def _fetch_memory(self) -> np.ndarray:
        return self.on_device.get() if hasattr(self.on_device, "get") else self.on_device.copy()

    def _view(self, memory: np.ndarray) -> np.ndarray:
        strides = tuple(s // self.array.itemsize * memory.itemsize for s in self.array.strides)
        return np.lib.stride_tricks.as_strided(memory[self.first :], self.array.shape, strides)

    def fetch(self) -> np.ndarray:
        return self._view(self._fetch_memory())

    def assert_untouched(self, outside_only: bool) -> None:
        """Nothing was written: not at all, or not outside of the array."""
        watched = np.ones(self.memory.size, bool)
        if outside_only:
            self._view(watched)[...] = False
        bits = np.dtype(f"u{self.memory.itemsize}")
        changed = (self._fetch_memory().view(bits) != self.memory.view(bits)) & watched
        assert not changed.any(), f"wrote {changed.sum()} elements that are not its own, first at {changed.argmax()}"


def _assert_close(got: np.ndarray, expected: np.ndarray, bound: np.ndarray, what: str) -> None:
    wrong = ~(np.abs(got - expected) <= bound)  # also where it is NaN
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} elements are wrong, first {at}: "
            f"{got[at]} instead of {expected[at]}, which may err by {bound[at]:.2g}"
        )
