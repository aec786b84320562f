"""benchmarks/cpu.py: all of its stages in small, with and without PyTorch, and the parts that measure."""

from __future__ import annotations

import importlib.util
import json
import mmap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from benchmarks import cpu
from benchmarks.on_cpu import costs, equality, memory, op_times, timing, workers
from benchmarks.on_cpu.libraries import Options, open_library
from benchmarks.on_cpu.workers import GPUNET, NUMPY, OURS, Budget, WorkerError, torch_configurations, working

QUICK = ["--rounds", "1", "--seconds", "0.01"]
with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of all stages, in small and without PyTorch."""
    folder = tmp_path_factory.mktemp("cpu")
    argv = ["--torch", "off", "--workloads", "a,d", "--threads", "2", *QUICK, "--json", str(folder / "cpu.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "BATCHES", (1, 2))
        patch.setattr(equality, "STEPS", 3)
        patch.setattr(costs, "PROFILED_STEPS", 2)
        assert cpu.main([*argv, "--plot", str(folder / "cpu.png")]) == 0
    assert (folder / "cpu-scaling.png").stat().st_size > 0
    return json.loads((folder / "cpu.json").read_text())


def test_all_stages_run_without_torch(alone: dict[str, Any]) -> None:
    assert list(alone["stages"]) == list(cpu.STAGES)
    environment = alone["environment"]
    assert environment["numpy"] == np.__version__ and environment["gpunet"] == gn.__version__
    assert "torch" not in environment
    same, steps = alone["stages"]["same"], alone["stages"]["steps"]
    assert [(row["workload"], row["configuration"], row["same"]) for row in same] == [
        ("a", NUMPY, True),
        ("d", NUMPY, True),
    ]
    assert [(row["workload"], row["kind"]) for row in steps] == [
        ("a", "train"), ("d", "train"), ("a", "infer"), ("d", "infer"),
    ]  # fmt: skip
    for row in steps:
        assert set(row["configurations"]) == {GPUNET, NUMPY}
        assert row["best_torch"] is None and "ratio" not in row
        assert 0 < row["configurations"][GPUNET]["fastest"] <= row["configurations"][GPUNET]["median"]


def test_what_the_stages_find(alone: dict[str, Any]) -> None:
    stages = alone["stages"]
    assert {row["op"] for row in stages["overhead"]} >= {"multiply", "adam"}
    assert all(0 < row["configurations"][GPUNET]["slowdown"] < 100 for row in stages["busy"])
    assert [(row["size"], row["batch"]) for row in stages["scaling"]] == [(1, 1), (2, 2)]
    assert all(row["bit_equal"] and len(row["gpunet"]) == 4 for row in stages["loss"])
    (profile,) = stages["profile"]
    timed = sum(row["seconds"] for row in profile["rows"])
    assert 0 < timed <= sum(profile["phases"].values())
    found = {(row["phase"], row["op"]) for row in profile["rows"]}
    assert {("backward", "conv_weight_grad"), ("optimizer", "sgd")} <= found
    assert found & {("forward", "conv"), ("forward", "conv_relu_pool")}  # the latter where there are kernels
    for row in stages["memory"]:
        # the gradients of its 390,000 parameters, at the least
        assert row["configurations"][GPUNET]["peak"] > 4 * 390_000


@with_torch
def test_torch_stands_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cpu.json"
    argv = ["--workloads", "a", "--threads", "1", "--stages", "steps,loss", "--json", str(file)]
    assert cpu.main([*argv, *QUICK, "--plot", str(tmp_path / "cpu.png")]) == 0
    found = json.loads(file.read_text())
    assert [row["reference"] for row in found["stages"]["same"]] == ["torch", "torch"]
    training, inference = found["stages"]["steps"]
    tuned = "torch fused, tuned"
    assert set(training["configurations"]) == {GPUNET, NUMPY, "torch", "torch foreach", "torch fused", tuned}
    assert set(inference["configurations"]) == {GPUNET, NUMPY, "torch", tuned}
    assert training["ratio_tuned"] <= training["ratio"] and training["best_torch"] != tuned
    best = training["configurations"][training["best_torch"]]["median"]
    assert training["ratio"] == best / training["configurations"][GPUNET]["median"]
    assert found["stages"]["loss"][0]["met"]
    assert (tmp_path / "cpu.png").stat().st_size > 0
    capsys.readouterr()
    assert cpu.main(["--medians", str(file), str(file)]) == 0
    printed = capsys.readouterr().out
    assert "(a) training step, 1 thread" in printed and f"{training['ratio']:.2f}" in printed


def test_nothing_is_timed_where_results_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(equality, "worst_difference", lambda *_: (2.0, "0.weight"))
    monkeypatch.setattr(timing, "take_turns", lambda *_: pytest.fail("it was timed"))
    assert cpu.main(["--torch", "off", "--workloads", "a", "--threads", "1", "--stages", "steps"]) == 1
    assert "DIFFERS, most in 0.weight" in capsys.readouterr().out


def test_gradients_that_differ_are_found() -> None:
    gradients = {"weight": np.ones(4), "input": np.ones(4)}
    assert equality.worst_difference(gradients, gradients)[0] == 0
    worst, where = equality.worst_difference(gradients, {"weight": np.full(4, 1.002), "input": np.full(4, 1.002)})
    assert where == "weight" and worst == pytest.approx(2)
    assert equality.worst_difference(gradients, {**gradients, "input": np.full(4, np.nan)}) == (float("inf"), "input")
    assert equality.worst_difference(gradients, {"input": np.ones(4)}) == (float("inf"), "weight")


def test_a_process_sees_its_own_threads_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    gpunet, plain = (workers.environment_of(configuration, 2) for configuration in OURS)
    assert "OPENBLAS_CORETYPE" not in gpunet and gpunet["OMP_NUM_THREADS"] == gpunet["OPENBLAS_NUM_THREADS"] == "2"
    assert plain["GPUNET_CPU_KERNELS"] == "0" != gpunet.get("GPUNET_CPU_KERNELS")


def test_torch_is_used_in_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: object())
    names = [c.name for c in torch_configurations(compiled=True)]
    plain = ["torch", "torch foreach", "torch fused", "torch compile", "torch fused, tuned"]
    assert names == plain + [name.replace("torch", "torch channels_last") for name in plain]
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    assert torch_configurations(compiled=False) == []


def test_workers_tell_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"gpunet: its process ended"), working(OURS[:1], 1, tmp_path) as (worker,):
        with pytest.raises(WorkerError, match="FileNotFoundError"):
            worker.ask("time", task={"kind": "train", "name": "a"}, seconds=0.01)  # there are no weights
        assert worker.ask("environment")["threads"] == 1  # it goes on
        worker.kill()
        worker.ask("environment")


def test_what_gpunet_lacks_is_told() -> None:
    library = open_library(Options("gpunet", gn.get_num_threads()))
    assert library.lacks(["nn.Linear", "nn.Nonsense", "nn.functional.nonsense.more"]) == [
        "nn.Nonsense",
        "nn.functional.nonsense.more",
    ]


def test_rounds_end_when_time_is_up() -> None:
    now = time.monotonic()
    assert len(list(Budget(9, 0.1, now - 1, 1.0).each_round())) == Budget.FEWEST
    assert len(list(Budget(9, 0.1, now + 1000, 1.0).each_round())) == 9
    assert len(list(Budget(2, 0.1, now - 1, 1.0).each_round())) == 2


def test_peaks_of_memory() -> None:
    size = 64 << 20

    def make() -> Any:
        def step() -> None:
            with mmap.mmap(-1, size) as block:
                block.write(b"\1" * size)

        return step

    found = memory.peaks(make)
    if found is None:
        pytest.skip("this system does not tell a process's largest size")
    # the block itself, and the bytes that are written to it, but for pages that were there already
    assert 1.9 * size < found["peak"] < 2.5 * size
    assert found["own"] == pytest.approx(found["later"], rel=0.1)


def test_a_stopwatch_counts_nested_calls_once() -> None:
    stopwatch = op_times.Stopwatch()
    inner = stopwatch.timed("inner", lambda: time.sleep(0.05))
    outer = stopwatch.timed("outer", lambda: (inner(), lambda: time.sleep(0.02)))
    _, later = outer()
    assert stopwatch.seconds["forward", "inner"] >= 0.05 > stopwatch.seconds["forward", "outer"]
    later()
    assert 0.02 <= stopwatch.seconds["forward", "outer"] < 0.05
    assert stopwatch.calls["forward", "inner"] == 1


def test_ops_are_as_before_once_they_were_watched() -> None:
    stopwatch = op_times.Stopwatch()
    x = gn.tensor(np.ones((2, 3), np.float32), requires_grad=True)
    derivative, implement = gn.multiply.derivative, type(gn.multiply)._implement
    with op_times.watching(stopwatch):
        (x * x).sum().backward()
    assert stopwatch.calls["forward", "multiply"] >= 1 and stopwatch.calls["forward", "multiply's derivative"] >= 1
    calls = dict(stopwatch.calls)
    (x * x).sum().backward()
    assert stopwatch.calls == calls
    assert gn.multiply.derivative is derivative and type(gn.multiply)._implement is implement


def test_profiles_tell_phases_apart() -> None:
    w = gn.tensor(np.ones((2, 3), np.float32), requires_grad=True)
    optimizer = gn.optim.SGD([w], lr=0.1)
    training = SimpleNamespace(x=w, loss=lambda: (w * w).sum(), optimizer=optimizer)
    training.step = lambda: (training.loss().backward(), optimizer.step())
    found = op_times.profile(lambda: training, 3)
    assert set(found["phases"]) == {"forward", "backward", "optimizer"}
    phases = {(row["phase"], row["op"]): row["calls"] for row in found["rows"]}
    assert phases["forward", "multiply"] == 1 and phases["optimizer", "sgd"] == 1
    assert phases["backward", "multiply's derivative"] >= 1
