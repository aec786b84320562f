"""Stage matmul: gpunet's products beside cuBLAS's and PyTorch's, in the same run."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.on_gpu import dispatch, products
from benchmarks.on_gpu.hardware import nvidia_smi, run_length
from benchmarks.on_gpu.products import GRADIENT, LINEAR, ROWS, Product
from benchmarks.on_gpu.supervise import Column, Run

_SQUARES = (4096, 8192, 1024, 2048, 256)
_SKINNY = (  # a perceptron's first layer forward, its input's and its weight's gradient; a large layer of few rows
    (64, 128, 784, LINEAR),
    (64, 784, 128, ROWS),
    (128, 784, 64, GRADIENT),
    (8, 4096, 4096, LINEAR),
)
_WITH_EPILOGUE = ((4096, 4096, 4096), (8192, 8192, 8192), (1024, 1024, 1024), (64, 128, 784), (8, 4096, 4096))
_ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
_COMPUTES = ("float32", "bfloat16", "tf32", "float16")
_RIVALS = ("cublas", "torch", "torch_lt")


def matmul(run: Run) -> None:
    """TFLOP/s of all, and gpunet's share of the best other one's; beside it the bar, where there is one."""
    machine = run.machine
    if run.broken:
        dispatch.leave_out(run.broken)
        print(f"left out: {', '.join(run.broken)}")
    run.table(
        Column("product", "TFLOP/s (interleaved, median)", 44),
        Column("gpunet", "gpunet", 7, ".1f"),
        *(Column(name, name, 8, ".1f") for name in _RIVALS),
        Column("ratio", "ratio", 6, ".3f"),
        Column("bar", "bar", 5, ".2f"),
        Column("verdict", "", 5),
        Column("spread", "spread", 6, ".1%"),
        Column("kernel", "kernel", 24),
    )
    for product in compared(run):
        if run.is_over:
            break
        if not run.has(product=product.name) and run.begin(product.name):
            _compare(run, product)
    run.facts(afterwards=nvidia_smi(), not_measured="" if machine.bfloat16 else "bfloat16: ml_dtypes is not installed")
    judged = [row for row in run.rows if row["verdict"]]
    print(f"{sum(row['verdict'] == 'met' for row in judged)} of {len(judged)} bars met")


def compared(run: Run) -> Iterator[Product]:
    """The products, those with a bar first."""
    if run.dry:
        yield Product("float32", 72, 40, 24)
        yield Product("float32", 24, 40, 72, LINEAR, activation="gelu_tanh")
        return
    computes = [c for c in _COMPUTES if c != "bfloat16" or run.machine.bfloat16 is not None]
    for size in _SQUARES:
        yield from (Product(compute, size, size, size, layouts) for compute in computes for layouts in (ROWS, LINEAR))
    for activation in _ACTIVATIONS:
        for m, n, k in _WITH_EPILOGUE:
            yield from (Product(compute, m, n, k, LINEAR, activation=activation) for compute in computes)
    for m, n, k, layouts in _SKINNY:
        yield from (Product(compute, m, n, k, layouts) for compute in computes)
    for size in _SQUARES[:3]:
        yield from (Product(compute, size, size, size, GRADIENT) for compute in computes)


def bar(product: Product) -> float | None:
    """The share of the best other library's rate that gpunet is to reach: all of it with bias and activation, which
    it does in the same launch; 95 % of it for large products in float32."""
    if product.activation is not None:
        return 1.0
    if product.compute == "float32" and min(product.m, product.n, product.k) >= 4096:
        return 0.95
    return None


def _compare(run: Run, product: Product) -> None:
    machine = run.machine
    sets = products.operands(machine, product)
    with machine.precision(product.compute):
        contenders = [
            products.with_gpunet(machine, product, sets),
            products.with_cupy(machine, product, sets),
            *products.with_torch(machine, product, sets),
        ]
        wrong = products.usable(machine, product, contenders, sets[0])
        times = machine.time({c.name: c.calls for c in contenders if c.name not in wrong}, **run_length(run))
    if "gpunet" in wrong:
        run.fails(product.name, wrong["gpunet"])
    rates = {name: product.flops / timing.median / 1e12 for name, timing in times.items()}
    best = max((rates[name] for name in _RIVALS if name in rates), default=None)
    ratio = rates["gpunet"] / best if best and "gpunet" in rates else None
    wanted = bar(product)
    verdict = "" if ratio is None or wanted is None or run.dry else "met" if ratio >= wanted else "below"
    run.row(
        product=product.name,
        **rates,
        ratio=ratio,
        bar=wanted,
        verdict=verdict,
        spread=max((timing.spread for timing in times.values()), default=None),
        kernel=contenders[0].about,
        us={name: round(timing.median * 1e6, 3) for name, timing in times.items()},
        spreads={name: round(timing.spread, 4) for name, timing in times.items()},
        sets=len(sets),
        rounds=run_length(run)["rounds"],
        failed=wrong,
    )
