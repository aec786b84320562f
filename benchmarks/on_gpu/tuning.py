"""Stage tune: measures every way to compute a ladder of products, and makes gemm.json of it.

gpunet chooses by a model of the time that each of its kernels takes (`predict` in gpunet/ops/gemm.py). Here the model's
numbers are fitted: each tile's rate is the one at which the model explains the measured time, the median over the
products that are large enough for the rate to matter. Where the fitted model would still choose a kernel that takes
over 3 % longer than the best one, the best one's name is written down; and "library", where cuBLAS is that much quicker
than all of gpunet's.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.on_gpu import dispatch, products
from benchmarks.on_gpu.hardware import copy_bytes
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.products import GRADIENT, LINEAR, OTHER, ROWS, Contender, Operands, Product
from benchmarks.on_gpu.supervise import Column, Run
from gpunet.backends import nvrtc
from gpunet.backends.occupancy import occupancy
from gpunet.errors import KernelError
from gpunet.io.atomic import replacing
from gpunet.ops import gemm

WORTH = 1.03  # a way must be that much quicker for its name to be written down
_NEAR = 1.5  # ways that take longer than that many times the best one's are measured once only
_FIT = 20.0  # seconds that are kept for the fit
_RAMPS = (0, 1, 2, 3, 4, 6, 8, 12, 16)

# (M, N, K, batch), the most telling first: what is not measured in time is left to the model.
_TINY = (8, 8, 8, 1)
_SQUARES = tuple((size, size, size, 1) for size in (4096, 1024, 2048, 512, 8192, 256, 128))
_LAYERS = tuple(
    (m, n, k, 1)
    for m, n, k in (
        *((64, 128, 784), (64, 784, 128), (128, 784, 64)),
        *((8192, 128, 784), (64, 4096, 4096), (8, 4096, 4096)),
    )
)
_EDGES = ((1, 4096, 4096, 1), (4096, 4096, 64, 1), (256, 256, 16384, 1), (128, 128, 64, 64), (512, 512, 512, 16))
LADDER = (_TINY, *_SQUARES, *_LAYERS, *_EDGES)
_DRY_LADDER = (_TINY, (96, 64, 40, 1))
_COMPUTES = ("float32", "bfloat16", "float16", "tf32", "float64")


class Sample(NamedTuple):
    """A measured time."""

    problem: gemm.Problem
    choice: gemm.Choice
    seconds: float


def tune(run: Run) -> None:
    """Measure the ladder, fit the model, and write the table."""
    run.table(
        Column("product", "product", 40),
        Column("model", "the model's choice", 22),
        Column("model_us", "us", 9, ".1f"),
        Column("best", "the best", 22),
        Column("best_us", "us", 9, ".1f"),
        Column("tflops", "TFLOP/s", 8, ".1f"),
    )
    for product in ladder(run):
        if run.rows and run.seconds_left < (0 if run.dry else _FIT):
            break
        if not run.has(product=product.name):
            _measure(run, product)
    _write(run)


def ladder(run: Run) -> Iterator[Product]:
    """The products that are measured, in the order of their worth."""
    computes = [c for c in _COMPUTES if c != "bfloat16" or run.machine.bfloat16 is not None]
    if run.dry:
        yield from (Product("float32", m, n, k, LINEAR, batch) for m, n, k, batch in _DRY_LADDER)
        return
    for layouts in (LINEAR, ROWS, GRADIENT, OTHER):
        for compute in computes:
            for m, n, k, batch in LADDER:
                yield Product(compute, m, n, k, layouts, batch)


def _ways(
    machine: Machine, product: Product, sets: list[Operands]
) -> tuple[gemm.Problem, dict[str, gemm.Choice], list[Contender]]:
    problem = dispatch.problem_of(machine.launcher, sets[0].a, sets[0].b)
    choices = dispatch.choices_of(problem, machine.launcher)
    contenders = [products.with_choice(machine, problem, choice, sets) for choice in choices.values()]
    return problem, choices, [*contenders, products.with_library(machine, sets)]


def _measure(run: Run, product: Product) -> None:
    """Time all ways to compute a product, of those that do compute it."""
    machine = run.machine
    sets = products.operands(machine, product)
    with machine.precision(product.compute):
        problem, choices, contenders = _ways(machine, product, sets)
        sound: list[Contender] = []
        for contender in contenders:
            tile = "" if contender.name == dispatch.LIBRARY else dispatch.tile(product.compute, contender.name)
            if not run.begin(f"{product.name}: {contender.name}", tile):
                continue
            wrong = products.usable(machine, product, [contender], sets[0])
            if not wrong:
                sound.append(contender)
            elif tile:
                run.fails(f"{product.name}: {contender.name}", wrong[contender.name], tile)
        if not run.begin(f"{product.name}: timing") or not sound:
            return
        length: dict[str, Any] = {"rounds": 2, "seconds": 0.0} if run.dry else {"rounds": 5, "seconds": 0.003}
        times = machine.time({c.name: c.calls for c in sound}, near=_NEAR, **length)
    own = [name for name in choices if name in times]
    best = min(times, key=lambda name: times[name].median)
    model = own[0] if own else None
    run.row(
        product=product.name,
        bucket=gemm.bucket(problem),
        model=model,
        model_us=times[model].median * 1e6 if model else None,
        best=best,
        best_us=times[best].median * 1e6,
        tflops=product.flops / times[best].median / 1e12,
        us={name: round(timing.median * 1e6, 3) for name, timing in times.items()},
    )


# --- the fit ----------------------------------------------------------------------------------------------------------


def _samples(run: Run) -> list[tuple[Product, gemm.Problem, dict[str, gemm.Choice], dict[str, float]]]:
    """What was measured: for each product its ways, and the seconds of each."""
    measured = {row["product"]: row["us"] for row in run.rows}
    found = []
    for product in ladder(run):
        if product.name in measured:
            first = products.operands(run.machine, product)[0]
            with run.machine.precision(product.compute):
                problem = dispatch.problem_of(run.machine.launcher, first.a, first.b)
                choices = dispatch.choices_of(problem, run.machine.launcher)
            found.append((product, problem, choices, {name: us / 1e6 for name, us in measured[product.name].items()}))
    return found


def fit(samples: list[Sample], prior: dict[str, Any], processors: int, resident: dict[str, int]) -> dict[str, Any]:
    """The model's numbers for an architecture.

    Args:
        samples: measured times of gpunet's own kernels.
        prior: the numbers so far, with the bandwidth and the launch time as measured. Its tiles that were not measured
            keep their rates' proportion to those that were.
        processors: of the device.
        resident: how many blocks of a tile a multiprocessor holds; keys are a compute type and a tile.
    """
    best: tuple[float, dict[str, Any]] = (math.inf, prior)
    for ramp in _RAMPS:
        table = {**prior, "ramp": ramp, "rates": _rates(samples, {**prior, "ramp": ramp}, processors, resident)}
        errors = [abs(math.log(gemm.predict(s.problem, s.choice, processors, table) / s.seconds)) for s in samples]
        if errors and statistics.fmean(errors) < best[0]:
            best = (statistics.fmean(errors), table)
    return best[1]


def _rates(
    samples: list[Sample], table: dict[str, Any], processors: int, resident: dict[str, int]
) -> dict[str, dict[str, list[float]]]:
    rates: dict[str, dict[str, list[float]]] = {}
    for compute, tiles in table["rates"].items():
        held = {tile: resident.get(f"{compute} {tile}", old[1]) for tile, old in tiles.items()}
        measured: dict[str, float] = {}
        for tile in tiles:
            of_tile = [s for s in samples if s.problem.compute == compute and s.choice.tile == tile]
            large = [s for s in of_tile if s.seconds > 5 * table["launch"] and s.choice.splits == 1] or of_tile
            found = (implied_rate(s, table, held[tile], processors) for s in large)
            implied = [rate for rate in found if rate is not None]
            if implied:
                measured[tile] = statistics.median(implied)
        scale = statistics.median([rate / tiles[tile][0] for tile, rate in measured.items()]) if measured else 1.0
        rates[compute] = {
            tile: [float(f"{measured.get(tile, scale * old[0]):.4g}"), held[tile]] for tile, old in tiles.items()
        }
    return rates


def implied_rate(sample: Sample, table: dict[str, Any], resident: int, processors: int) -> float | None:
    """The rate at which the model gives the measured time; None where the rate is not what limits it."""
    compute, tile = sample.problem.compute, sample.choice.tile

    def seconds(rate: float) -> float:
        rates = {**table, "rates": {compute: {tile: [rate, resident]}}}
        return gemm.predict(sample.problem, sample.choice, processors, rates)

    low, high = 1e6, 1e18
    if not seconds(high) < sample.seconds < seconds(low):
        return None
    for _ in range(60):  # halves the interval of the logarithm: the model's time falls as the rate grows
        middle = math.sqrt(low * high)
        low, high = (middle, high) if seconds(middle) > sample.seconds else (low, middle)
    return math.sqrt(low * high)


def resident_blocks(machine: Machine, choices: list[tuple[str, gemm.Choice]]) -> dict[str, int]:
    """How many blocks of each tile a multiprocessor holds, by what the compiler says of its kernels: the fewest."""
    architecture = machine.launcher.architecture
    found: dict[str, int] = {}
    for compute, choice in choices:
        key, variant = f"{compute} {choice.tile}", choice.variant
        try:
            made = nvrtc.compiled(variant, architecture)
        except KernelError:  # no NVRTC: the emulated device
            return {}
        fits = occupancy(architecture, variant.threads, made.registers, made.shared + variant.shared)
        blocks = max(1, min(fits.blocks, choice.persistent or fits.blocks))
        found[key] = min(found.get(key, blocks), blocks)
    return found


def _bandwidth(machine: Machine, size: int) -> float:
    """Bytes per second of a copy on the device, read and written."""
    source, target = machine.normal("float32", size // 4), machine.poisoned("float32", size // 4)
    timing = machine.time({"copy": [lambda: copy_bytes(machine, target, source)]}, rounds=5, seconds=0.005)["copy"]
    return 2 * size / timing.median


def _write(run: Run) -> None:
    machine = run.machine
    architecture, processors = machine.launcher.architecture, machine.launcher.processors
    run.begin("fit", seconds=120)
    measured = _samples(run)
    samples = [
        Sample(problem, choices[name], seconds)
        for _, problem, choices, times in measured
        for name, seconds in times.items()
        if name in choices
    ]
    resident = resident_blocks(machine, [(s.problem.compute, s.choice) for s in samples])
    bandwidth = _bandwidth(machine, 1 << 28 if machine.is_real else 1 << 16)
    launch = min((s.seconds for s in samples), default=gemm.rates_of(architecture)["launch"])
    prior = {**gemm.rates_of(architecture), "bandwidth": float(f"{bandwidth:.4g}"), "launch": float(f"{launch:.3g}")}
    prior["rates"] = _with_all_tiles(prior["rates"], samples)
    table = fit(samples, {**prior, "best": {}}, processors, resident)
    before, after = [], []
    for _, problem, choices, times in measured:
        own = [name for name in choices if name in times]
        if own:
            predicted = {name: gemm.predict(problem, choices[name], processors, table) for name in own}
            first, quickest = min(own, key=predicted.__getitem__), min(own, key=times.__getitem__)
            before.append(times[own[0]] / times[quickest])
            after.append(times[first] / times[quickest])
            if WORTH * times.get(dispatch.LIBRARY, math.inf) < times[quickest]:
                table["best"].setdefault(gemm.bucket(problem), dispatch.LIBRARY)
            elif after[-1] > WORTH:
                table["best"].setdefault(gemm.bucket(problem), quickest)
    whole = dispatch.load()
    table = {"source": f"measured on {_device_name(machine)}, {datetime.date.today()}", **table}
    whole["source"] = "predicted from data sheets, but for the architectures that have a source of their own"
    whole["architectures"][architecture] = table
    target = Path(run.options.table)
    with replacing(target) as file:
        file.write(to_json(whole).encode())
    if after:
        losses = [f"{statistics.fmean(ratios) - 1:.1%}" for ratios in (before, after)]
        print(
            f"the model's choices take {losses[0]} longer than gpunet's best ones before the fit, {losses[1]} after, "
            f"and {len(table['best'])} names are written down"
        )
    print(f"wrote {target}")
    run.facts(table=table, table_file=str(target), loss_before=before, loss_after=after)


def _device_name(machine: Machine) -> str:
    if not machine.is_real:
        return "the emulated device, so its times mean nothing"
    return machine.properties()["name"].decode()


def _with_all_tiles(rates: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """The rates so far, with a place for measured tiles that they do not know yet."""
    whole = {compute: dict(tiles) for compute, tiles in rates.items()}
    for s in samples:
        whole.setdefault(s.problem.compute, {}).setdefault(s.choice.tile, [1e12, 1])
    return whole


def to_json(table: dict[str, Any]) -> str:
    """A table as gemm.json is laid out: a line for each tile and for each best choice."""

    def lines(value: Any, indent: str) -> str:
        if isinstance(value, list):
            return f"[{', '.join(format(number, '.4g') for number in value)}]"
        if not isinstance(value, dict) or not value:
            return json.dumps(value)
        inner = indent + "  "
        parts = [f"{inner}{json.dumps(key)}: {lines(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"

    return lines(table, "") + "\n"
