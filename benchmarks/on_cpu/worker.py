"""A process that computes with one library in one configuration, when it is told to.

It reads requests and writes answers, one JSON object a line; in between it waits on the pipe and uses no processor.
A request has the key "do", which names one of the functions in COMMANDS, and the arguments of that function.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_cpu import memory, op_times
from benchmarks.on_cpu.libraries import Library, Options, environment, open_library
from benchmarks.on_cpu.small_ops import SMALL
from benchmarks.on_cpu.workloads import INPUT, WORKLOADS, Training, save_weights

FIRST_STEPS = 5  # before anything is timed: kernels are compiled, memory is taken, caches filled
FEWEST_STEPS = 3


class Worker:
    """What a worker knows: its library, and what it has set up so far.

    Args:
        options: the library and its configuration.
        folder: where weights are, one file for each workload.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self.library: Library = open_library(options)
        self.folder = folder
        self._calls: dict[str, Callable[[], Any]] = {}

    def environment(self) -> dict[str, Any]:
        np.ones((64, 64)) @ np.ones((64, 64))  # so that BLAS is there
        return environment(self.library)

    def lacks(self, workload: str) -> list[str]:
        return self.library.lacks(WORKLOADS[workload].needs)

    def weights(self, workload: str) -> None:
        save_weights(self.library, workload, self._weights(workload))

    def first_step(self, workload: str, file: str) -> float:
        """The loss of a step; its gradients by name are left in `file`."""
        training = Training(self.library, workload, self._weights(workload), dropout=False)
        loss = training.loss()
        loss.backward()
        gradients = {name: p.grad.numpy() for name, p in training.model.named_parameters()}
        if training.x.grad is not None:
            gradients[INPUT] = training.x.grad.numpy()
        np.savez(file, **gradients)
        return loss.item()

    def losses(self, workload: str, steps: int) -> dict[str, Any]:
        """The losses of `steps` training steps on one batch, and a digest of them and of the weights afterwards."""
        training = Training(self.library, workload, self._weights(workload), dropout=False)
        losses = [training.step().item() for _ in range(steps)] + [training.loss().item()]
        digest = hashlib.sha256(np.array(losses).tobytes())
        for value in training.model.state_dict().values():
            digest.update(np.ascontiguousarray(value.numpy()).tobytes())
        return {"losses": losses, "digest": digest.hexdigest()}

    def time(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run a task (see `_make`) over and over for some time. Durations in seconds, of one call."""
        key = json.dumps(task, sort_keys=True)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._make(**task)
            for _ in range(FIRST_STEPS):
                call()
        call()  # the others had the caches in the meantime
        durations: list[float] = []
        clock = time.perf_counter
        busy, cpu, began = busy_seconds(), time.process_time(), clock()
        while len(durations) < FEWEST_STEPS or clock() - began < seconds:
            start = clock()
            call()
            durations.append(clock() - start)
        wall, cpu = clock() - began, time.process_time() - cpu
        return {
            "median": statistics.median(durations),
            "fastest": min(durations),
            "calls": len(durations),
            "others": None if busy is None else (busy_seconds() - busy - cpu) / wall,
        }

    def forget(self) -> None:
        """Let go of all that `time` has set up."""
        self._calls.clear()

    def memory(self, workload: str) -> dict[str, int] | None:
        return memory.peaks(lambda: Training(self.library, workload, self._weights(workload)).step)

    def profile(self, workload: str, steps: int) -> dict[str, Any]:
        return op_times.profile(lambda: Training(self.library, workload, self._weights(workload)), steps)

    def _weights(self, workload: str) -> Path:
        return self.folder / f"{workload}.npz"

    def _make(self, kind: str, name: str, shape: list[int] | None = None) -> Callable[[], Any]:
        """What is timed: a training step or a forward pass of a workload, for an input of some shape; a small step."""
        if kind == "small":
            return SMALL[name].make(self.library)
        training = Training(self.library, name, self._weights(name), tuple(shape) if shape else None)
        if kind == "train":
            return training.step
        training.model.eval()
        return training.infer


def busy_seconds() -> Any:
    """How long the machine's cores have computed for anyone, added up; None where the system does not tell."""
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except OSError:
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for a disk


COMMANDS = ("environment", "lacks", "weights", "first_step", "losses", "time", "forget", "memory", "profile")


def main() -> None:
    """Serve requests until the pipe is closed. The arguments are the options, as JSON, and the folder of weights."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    try:
        worker = Worker(Options(**json.loads(sys.argv[1])), Path(sys.argv[2]))
        first: dict[str, Any] = {"value": None}
    except Exception:
        first = {"error": traceback.format_exc()}
    print(json.dumps(first), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("do")
        try:
            answer = {"value": getattr(worker, command)(**request)} if command in COMMANDS else {"error": "no command"}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
