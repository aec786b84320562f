"""Matrix products to measure, and those who compute them: gpunet, CuPy's cuBLAS, PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.on_gpu import dispatch
from benchmarks.on_gpu.machine import Machine
from gpunet.errors import KernelError
from gpunet.ops import gemm
from tests.kernels.gemm_cases import activate

Layouts = tuple[str, str]
LINEAR: Layouts = ("K_MAJOR", "K_MAJOR")  # x @ weight.T, a layer forward
ROWS: Layouts = ("K_MAJOR", "MN_MAJOR")  # two C-contiguous matrices; g @ weight, a layer's input gradient
GRADIENT: Layouts = ("MN_MAJOR", "MN_MAJOR")  # g.T @ x, a layer's weight gradient
OTHER: Layouts = ("MN_MAJOR", "K_MAJOR")

# The largest sensible ||got - exact|| / ||exact||, of any library.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}

_MOST_SETS = 256
_SAMPLE = 32  # rows and columns that are compared with float64


@dataclass(frozen=True)
class Product:
    """C = activation(A B + bias), with A (M, K) and B (K, N).

    Attributes:
        compute: "float64", "float32", "tf32", "float16" or "bfloat16".
        m, n, k: the sizes.
        layouts: along which axis the elements of A and of B are adjacent.
        batch: how many such products.
        activation: None for the bare product; else a bias is added, and it is "relu", "gelu" or "gelu_tanh".
    """

    compute: str
    m: int
    n: int
    k: int
    layouts: Layouts = ROWS
    batch: int = 1
    activation: str | None = None

    @property
    def dtype(self) -> str:
        return "float32" if self.compute == "tf32" else self.compute

    @property
    def size(self) -> str:
        return f"{self.batch} x " * (self.batch > 1) + f"{self.m}x{self.n}x{self.k}"

    @property
    def layout(self) -> str:
        """BLAS's letters: n for C-contiguous, t for transposed; s for neither."""
        letters = ({"K_MAJOR": "n", "MN_MAJOR": "t"}, {"K_MAJOR": "t", "MN_MAJOR": "n"})
        return "".join(letter.get(layout, "s") for letter, layout in zip(letters, self.layouts))

    @property
    def name(self) -> str:
        epilogue = f" bias+{self.activation}" if self.activation else ""
        return f"{self.compute} {self.layout} {self.size}{epilogue}"

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k * self.batch


class Operands(NamedTuple):
    """Arrays for one product: A and B with the product's layouts, C, whose bits are all set, and the bias."""

    a: Any
    b: Any
    c: Any
    bias: Any


def operands(machine: Machine, product: Product) -> list[Operands]:
    """Sets of operands, so many that they do not fit the L2 cache together (but no more than 256)."""
    itemsize = machine.dtype(product.dtype).itemsize
    lead = (product.batch,) if product.batch > 1 else ()
    size_a, size_b, size_c = (
        product.batch * rows * columns
        for rows, columns in ((product.m, product.k), (product.k, product.n), (product.m, product.n))
    )
    size_a, size_b = (2 * s if layout == "STRIDED" else s for s, layout in zip((size_a, size_b), product.layouts))
    step_a, step_b, step_c = (-(-size // 256) * 256 for size in (size_a, size_b, size_c))
    count = math.ceil(2 * machine.cache_bytes / ((step_a + step_b + step_c) * itemsize))
    count = min(count, _MOST_SETS if machine.is_real else 2)
    numbers = machine.normal(product.dtype, count * (step_a + step_b))
    results = machine.poisoned(product.dtype, count * step_c)
    bias = machine.normal(product.dtype, -(-product.n // 256) * 256)[: product.n]

    def matrices(memory: Any, start: int, rows: int, columns: int, adjacent: str) -> Any:
        lines, length = (columns, rows) if adjacent == "columns" else (rows, columns)
        step = 2 if adjacent == "none" else 1
        shape = (*lead, lines, length * step)
        array = memory[start : start + math.prod(shape)].reshape(shape)[..., ::step]
        return array.swapaxes(-1, -2) if adjacent == "columns" else array

    lines_of = {"STRIDED": ("none", "none"), "K_MAJOR": ("rows", "columns"), "MN_MAJOR": ("columns", "rows")}

    sets = []
    for i in range(count):
        start = i * (step_a + step_b)
        a = matrices(numbers, start, product.m, product.k, lines_of[product.layouts[0]][0])
        b = matrices(numbers, start + step_a, product.k, product.n, lines_of[product.layouts[1]][1])
        sets.append(Operands(a, b, matrices(results, i * step_c, product.m, product.n, "rows"), bias))
    return sets


@dataclass(frozen=True)
class Contender:
    """One way to compute a product.

    Attributes:
        name: of a column.
        calls: one for each set of operands, which returns C.
        about: which kernel it is.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    about: str = ""


def with_choice(machine: Machine, problem: gemm.Problem, choice: gemm.Choice, sets: list[Operands]) -> Contender:
    """The bare product by one of gpunet's kernels."""
    launcher = machine.launcher
    plan = gemm.plan_of(sets[0].c.shape, problem, choice, gemm.Epilogue(), launcher.processors)

    def call(s: Operands, addresses: tuple[int, int]) -> Any:
        gemm.run(launcher, plan, addresses, s.c, None, None, None)
        return s.c

    calls = [partial(call, s, (launcher.pointer(s.a), launcher.pointer(s.b))) for s in sets]
    return Contender(dispatch.name(choice), calls, choice.variant.expression)


def with_library(machine: Machine, sets: list[Operands]) -> Contender:
    """The bare product by the array library: what gpunet falls back to."""
    return Contender(dispatch.LIBRARY, [partial(machine.xp.matmul, s.a, s.b) for s in sets])


def with_gpunet(machine: Machine, product: Product, sets: list[Operands]) -> Contender:
    """The product as gpunet's ops compute it: by the kernel that gemm.json and the model choose."""
    launcher = machine.launcher
    first, activation = sets[0], product.activation
    bias = None if activation is None else first.bias
    if gemm.multiply(launcher, first.a, first.b, bias=bias, activation=activation, out=first.c) is NotImplemented:
        library = _library_and_elementwise(machine, product)
        return Contender("gpunet", [partial(library, s) for s in sets], dispatch.LIBRARY)
    chosen = next(iter(dispatch.choices_of(dispatch.problem_of(launcher, first.a, first.b), launcher)))
    calls = [partial(gemm.multiply, launcher, s.a, s.b, bias=bias, activation=activation, out=s.c) for s in sets]
    return Contender("gpunet", calls, chosen)


def with_cupy(machine: Machine, product: Product, sets: list[Operands]) -> Contender:
    """cuBLAS through CuPy, and for the rest one elementwise kernel. (NumPy's, where the device is not a GPU.)"""
    function = _library_and_elementwise(machine, product)
    return Contender("cublas", [partial(function, s) for s in sets])


_ELEMENTWISE = {
    "relu": "v < 0 ? 0.0f : v",
    "gelu": "0.5f * v * (1.0f + erff(v * 0.70710678f))",
    "gelu_tanh": "0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)))",
}


def _library_and_elementwise(machine: Machine, product: Product) -> Callable[[Operands], Any]:
    xp, activation = machine.xp, product.activation
    if activation is None:
        return lambda s: xp.matmul(s.a, s.b)
    if not machine.is_real:
        return lambda s: activate(activation, xp.matmul(s.a, s.b) + s.bias)
    finish = xp.ElementwiseKernel(
        "T x, T bias",
        "T y",
        f"float v = (float)x + (float)bias; y = T({_ELEMENTWISE[activation]})",
        f"bias_{activation}",
    )

    def call(s: Operands) -> Any:
        x = xp.matmul(s.a, s.b)
        return finish(x, s.bias, x)

    return call


def with_torch(machine: Machine, product: Product, sets: list[Operands]) -> list[Contender]:
    """PyTorch, eager; and, where it has one, its product with the rest fused into cuBLASLt's epilogue."""
    torch = machine.torch
    if torch is None:
        return []
    tensors = [Operands(*map(machine.as_torch, s)) for s in sets]
    if product.activation is None:
        return [Contender("torch", [partial(torch.matmul, t.a, t.b, out=t.c) for t in tensors])]
    functional = torch.nn.functional
    activation: Callable[[Any], Any] = {
        "relu": torch.relu,
        "gelu": functional.gelu,
        "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    }[product.activation]

    def eager(t: Operands) -> Any:
        return activation(functional.linear(t.a, t.b.mT, t.bias))

    found = [Contender("torch", [partial(eager, t) for t in tensors])]
    exact = product.activation == "relu" or (product.activation == "gelu_tanh" and machine.is_real)  # cuBLASLt's GELU
    if exact and product.batch == 1 and hasattr(torch, "_addmm_activation"):
        fused = partial(torch._addmm_activation, use_gelu=product.activation == "gelu_tanh")
        found.append(Contender("torch_lt", [partial(fused, t.bias, t.a, t.b) for t in tensors]))
    return found


def error_of(machine: Machine, product: Product, s: Operands, call: Callable[[], Any]) -> float:
    """||got - exact|| / ||exact|| over a sample of rows and columns of the first and the last product; infinity where
    an element of C was not written."""
    s.c.reshape(-1).view("uint8")[...] = 0xFF
    got = call()
    machine.synchronize()
    if got is s.c and _is_poisoned_anywhere(s.c):
        return math.inf
    rng = np.random.default_rng(product.m + product.n)
    rows, columns = (
        np.unique([0, length - 1, *rng.integers(0, length, _SAMPLE)]).tolist() for length in (product.m, product.n)
    )
    inner = list(range(product.k))
    worst = 0.0
    for z in sorted({0, product.batch - 1}):
        a, b, c = (x if product.batch == 1 else x[z] for x in (s.a, s.b, got))
        exact = machine.sample(a, rows, inner) @ machine.sample(b, inner, columns)
        if product.activation is not None:
            exact = activate(product.activation, exact + machine.sample(s.bias[None], [0], columns))
        difference = machine.sample(c, rows, columns) - exact
        worst = max(worst, float(np.linalg.norm(difference) / np.linalg.norm(exact)))
    return worst if math.isfinite(worst) else math.inf


def _is_poisoned_anywhere(c: Any) -> bool:
    bits = c.view(f"uint{8 * c.dtype.itemsize}")
    return bool((bits == np.iinfo(bits.dtype).max).any())


def judge(machine: Machine, product: Product, contender: Contender, s: Operands) -> float | str:
    """A contender's relative error; or what it raised.

    Raises:
        Exception: CuPy's, where the device is lost to this process.
    """
    try:
        return error_of(machine, product, s, contender.calls[0])
    except (KernelError, RuntimeError, TypeError, ValueError) as failure:
        machine.synchronize()
        return str(failure).strip().split("\n")[0]


def usable(machine: Machine, product: Product, contenders: Sequence[Contender], s: Operands) -> dict[str, str]:
    """Those of the contenders that do not compute the product, each with the reason."""
    wrong = {}
    for contender in contenders:
        error = judge(machine, product, contender, s)
        if isinstance(error, str) or not error < TOLERANCE[product.compute]:
            wrong[contender.name] = error if isinstance(error, str) else f"relative error {error:.2g}"
    return wrong
