"""benchmarks/gpu.py: all of its stages on the emulated device, and what it does with kernels that crash or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from benchmarks.on_gpu import dispatch, products, supervise, tuning
from benchmarks.on_gpu.machine import EventClock, Machine
from benchmarks.on_gpu.products import LINEAR, Contender, Product
from gpunet.errors import DeviceError
from gpunet.ops import gemm

ROOT = Path(__file__).parents[2]
STAGES = [
    "environment", "compile", "ceilings", "overhead", "correctness", "sanitizer", "tune", "matmul", "convolution",
    "layers", "examples",
]  # fmt: skip


@pytest.fixture(scope="module")
def machine() -> Machine:
    try:
        return Machine("emulated", use_torch=False)
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def own_table() -> Iterator[None]:
    """Gives the table back that dispatch used before a test."""
    table, choices = gemm._table, gemm.choices
    yield
    gemm._table, gemm.choices = table, choices
    gemm.rates_of.cache_clear()
    gemm._plans.clear()


@pytest.fixture(scope="module")
def dry_run(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The JSON of a dry run of all stages, and what it printed."""
    file = tmp_path_factory.mktemp("dry") / "gpu.json"
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--dry-run",
        "--torch",
        "off",
        "--minutes",
        "0.1",
        "--json",
        str(file),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text()), done.stdout


def test_a_dry_run_goes_through_all_stages(dry_run: tuple[dict[str, Any], str]) -> None:
    report, printed = dry_run
    assert list(report["stages"]) == STAGES
    for name, stage in report["stages"].items():
        assert stage["rows"] and not stage["problems"] and stage["dry_run"], name
    assert "TIMES MEAN NOTHING" in printed and "TIMES MEAN NOTHING" in report["conditions"]["device"]
    assert report["conditions"]["numpy"] == np.__version__
    assert not report["broken"]


def test_what_a_dry_run_finds(dry_run: tuple[dict[str, Any], str]) -> None:
    stages = dry_run[0]["stages"]
    product = stages["correctness"]["rows"][0]
    assert product["checked"] == 2 and 0 < product["worst"] < 1e-5 and product["result"] == "ok"
    assert stages["correctness"]["rows"][-1]["checked"] >= 8, "tests passed on the device"
    assert "checked 1 kernels, 0 wrong" in stages["sanitizer"]["rows"][0]["result"]
    first = stages["matmul"]["rows"][0]
    assert first["gpunet"] > 0 and first["cublas"] > 0 and first["ratio"] and not first["failed"]
    assert first["verdict"] == "", "times of the emulated device are held against no bar"
    assert 0 < stages["examples"]["rows"][0]["accuracy"] < 1


def test_every_layer_is_checked_and_measured(machine: Machine, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--dry-run", "--torch", "off", "--stages", "convolution,layers"]
    done = subprocess.run([*command, "--json", str(tmp_path / "gpu.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    rows = [*stages["convolution"]["rows"], *stages["layers"]["rows"]]
    for row in rows:
        assert row["us"] > 0 and row["rate"] > 0 and row["error"] < 1e-5 and row["verdict"] == "", row
    assert {row["which"] for row in rows} == {"forward", "backward", "input gradient", "weight gradient", "step"}
    assert stages["convolution"]["complete"] and stages["layers"]["complete"]


def test_a_dry_run_leaves_the_table_alone_and_makes_one_that_dispatch_loads(
    dry_run: tuple[dict[str, Any], str], machine: Machine, own_table: None
) -> None:
    tune = dry_run[0]["stages"]["tune"]
    assert Path(tune["table_file"]) != dispatch.TABLE
    table = dispatch.load(Path(tune["table_file"]))
    assert list(table["architectures"])[:-1] == [a for a in dispatch.load()["architectures"] if a != "sm_90a"]
    mine = table["architectures"][machine.launcher.architecture]
    assert "emulated" in mine["source"] and mine == tune["table"]
    dispatch.use(table)
    x, y = (np.random.default_rng(i).standard_normal((40, 40), np.float32) for i in range(2))
    got = gn.asarray(x, device="emulated") @ gn.asarray(y, device="emulated")
    np.testing.assert_allclose(got.numpy(), x @ y, atol=1e-4)


def test_the_written_table_is_laid_out_as_the_one_that_is_kept() -> None:
    assert tuning.to_json(dispatch.load()) == dispatch.TABLE.read_text()


def test_unknown_stages_are_refused() -> None:
    done = subprocess.run([sys.executable, "benchmarks/gpu.py", "--stages", "tune,fly"], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b"no stage 'fly'; there are: environment, compile" in done.stderr


def test_times_of_a_dry_run_are_not_written_to_the_table() -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--dry-run", "--write"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b"mean nothing" in done.stderr


class FakeGpu:
    """A stream on which time passes as a test says: what CuPy offers to EventClock.

    Attributes:
        host: seconds that queueing a call takes.
        work: seconds that the GPU takes for one.
    """

    def __init__(self, host: float, work: float) -> None:
        self.host, self.work, self.now, self.free = host, work, 0.0, 0.0
        self.holds: list[float] = []
        gpu = self

        class Event:
            at = 0.0

            def record(self) -> None:
                self.at = max(gpu.now, gpu.free)

            @property
            def done(self) -> bool:
                return self.at <= gpu.now

            def synchronize(self) -> None:
                gpu.now = self.at

        self.cuda = SimpleNamespace(Event=Event, get_elapsed_time=lambda a, b: (b.at - a.at) * 1e3)

    def RawKernel(self, source: str, name: str) -> Any:
        def hold(grid: Any, block: Any, arguments: Any) -> None:
            self.holds.append(int(arguments[0]) / 1e9)
            self.free = max(self.now, self.free) + self.holds[-1]

        return hold

    def call(self) -> None:
        self.now += self.host
        self.free = max(self.now, self.free) + self.work


@pytest.mark.parametrize("host", [1e-6, 1e-4, 1e-3])
def test_the_clock_measures_the_gpu_and_not_the_host(host: float) -> None:
    gpu = FakeGpu(host, 5e-6)
    assert EventClock(gpu).seconds(gpu.call, 50) == pytest.approx(5e-6)
    assert (len(gpu.holds) > 1) == (host > 5e-5), "held longer, until all was queued before any of it ran"


# --- the fit ----------------------------------------------------------------------------------------------------------


def problem_of(m: int, n: int, k: int) -> gemm.Problem:
    return gemm.Problem("float32", "float32", m, n, k, (), gemm.Operand(k, 1, 16), gemm.Operand(1, k, 16))


def test_the_fit_finds_the_numbers_that_times_were_made_with() -> None:
    processors = 132
    prior = {**gemm.rates_of("sm_80"), "best": {}}
    truth = {
        **prior,
        "ramp": 8,
        "rates": {
            compute: {tile: [rate * (1 + i) / 3, resident] for i, (tile, (rate, resident)) in enumerate(tiles.items())}
            for compute, tiles in prior["rates"].items()
        },
    }
    sizes = [(4096, 4096, 4096), (2048, 2048, 2048), (1024, 1024, 8192), (1536, 512, 4096), (4096, 4096, 64)]
    samples = [
        tuning.Sample(problem, choice, gemm.predict(problem, choice, processors, truth))
        for problem in (problem_of(*size) for size in sizes)
        for choice in gemm.choices(problem, "sm_80", processors)
    ]
    fitted = tuning.fit(samples, prior, processors, {})
    assert fitted["ramp"] == 8
    for tile in {sample.choice.tile for sample in samples} - {"vector"}:
        assert fitted["rates"]["float32"][tile] == pytest.approx(truth["rates"]["float32"][tile], rel=1e-3), tile
    assert fitted["rates"]["float16"] == prior["rates"]["float16"], "nothing was measured of it"


def test_tiles_that_were_not_measured_keep_their_proportion() -> None:
    prior = {**gemm.rates_of("sm_80"), "best": {}}
    problem = problem_of(4096, 4096, 4096)
    choice = next(c for c in gemm.choices(problem, "sm_80", 100) if c.tile == "simt 128x128")
    sample = tuning.Sample(problem, choice, 4 * gemm.predict(problem, choice, 100, prior))
    rates = tuning.fit([sample], prior, 100, {})["rates"]["float32"]
    share = rates["simt 128x128"][0] / prior["rates"]["float32"]["simt 128x128"][0]
    assert share == pytest.approx(0.25, rel=0.1)
    assert rates["simt 64x64"][0] == pytest.approx(share * prior["rates"]["float32"]["simt 64x64"][0], rel=1e-3)


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh"])
def test_all_contenders_compute_the_same(machine: Machine, activation: str | None) -> None:
    product = Product("float32", 20, 12, 16, LINEAR, activation=activation)
    sets = products.operands(machine, product)
    contenders = [products.with_gpunet(machine, product, sets), products.with_cupy(machine, product, sets)]
    assert products.usable(machine, product, contenders, sets[0]) == {}


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh"])
def test_pytorch_computes_the_same(activation: str | None) -> None:
    pytest.importorskip("torch")
    try:
        machine = Machine("emulated")
    except DeviceError as error:
        pytest.skip(str(error))
    product = Product("float32", 20, 12, 16, LINEAR, activation=activation)
    sets = products.operands(machine, product)
    contenders = products.with_torch(machine, product, sets)
    assert [c.name for c in contenders] == ["torch"] + ["torch_lt"] * (activation == "relu")
    assert products.usable(machine, product, contenders, sets[0]) == {}


def test_wrong_and_unwritten_results_are_seen(machine: Machine) -> None:
    product = Product("float32", 5, 6, 7)
    s = products.operands(machine, product)[0]

    def off_by_a_bit() -> Any:
        s.c[...] = s.a @ s.b
        s.c[4, 5] *= 1.01
        return s.c

    def all_but_one() -> Any:
        s.c.reshape(-1)[:-1] = (s.a @ s.b).reshape(-1)[:-1]
        return s.c

    def fails() -> Any:
        raise RuntimeError("not today\nat all")

    found = [
        Contender("off", [off_by_a_bit]),
        Contender("unwritten", [all_but_one]),
        Contender("fails", [fails]),
        Contender("right", [lambda: s.a @ s.b]),
    ]
    wrong = products.usable(machine, product, found, s)
    assert list(wrong) == ["off", "unwritten", "fails"]
    assert wrong["unwritten"] == "relative error inf" and wrong["fails"] == "not today"


def test_broken_kernels_are_left_out(machine: Machine, own_table: None) -> None:
    problem = problem_of(64, 64, 64)
    best = next(iter(dispatch.choices_of(problem, machine.launcher)))
    dispatch.leave_out([dispatch.tile("float32", best)])
    left = dispatch.choices_of(problem, machine.launcher)
    assert left and not any(name.split(" / ")[0] == best.split(" / ")[0] for name in left)


# --- stages that die --------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from benchmarks.on_gpu.supervise import Run

run = Run(SimpleNamespace(dry_run=True, torch="off"), float(sys.argv[-1]), Path(sys.argv[1]))
for name, tile in [("good", "a"), ("crash", "b"), ("same tile", "b"), ("hang", "c"), ("last", "d")]:
    if run.has(name=name) or not run.begin(name, tile, seconds=0.5):
        continue
    if name == "crash":
        os.abort()
    if name == "hang":
        time.sleep(60)
    run.row(name=name)
run.end(True)
"""


def test_a_stage_goes_on_behind_what_killed_it(tmp_path: Path) -> None:
    record = tmp_path / "record"
    script = tmp_path / "child.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{CHILD}")
    found = supervise.supervise([sys.executable, str(script), str(record)], 60, record)
    assert [row["name"] for row in found["rows"]] == ["good", "last"]
    assert found["complete"]
    assert found["broken"].keys() == {"b", "c"}
    assert found["problems"][0].startswith("crash: its process ended with")
    assert found["problems"][1].startswith("hang: nothing came for")


def test_a_stage_that_cannot_start_is_not_tried_for_ever(tmp_path: Path) -> None:
    record = tmp_path / "record"
    found = supervise.supervise([sys.executable, "-c", "raise SystemExit(3)"], 60, record)
    assert found["problems"] == ["at its start: its process ended with 3"] and not found["complete"]


def test_a_line_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text('{"row": {"x": 1}}\n{"row": {"x"')
    assert supervise.Run(SimpleNamespace(), 1.0, record).rows == [{"x": 1}]
