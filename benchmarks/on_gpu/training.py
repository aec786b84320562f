"""Stage examples: a perceptron trained by gpunet, and the same by PyTorch."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import accuracy
from benchmarks.on_gpu import dispatch
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.supervise import Column, Run
from gpunet import data


def examples(run: Run) -> None:
    """784-128-10 with Adam in batches of 128: seconds for each epoch, the first left out, and the test accuracy."""
    run.table(
        Column("what", "", 34),
        Column("seconds", "s per epoch", 11, ".3f"),
        Column("accuracy", "accuracy", 8, ".4f"),
    )
    if run.broken:
        dispatch.leave_out(run.broken)
    machine = run.machine
    name, (train_data, test_data) = _data(run.dry)
    epochs = 1 if run.dry else 5
    for model in ("mlp",) if run.dry else ("mlp", "cnn"):
        if run.begin(f"{model} gpunet", seconds=120):
            args = SimpleNamespace(device=str(machine.device), epochs=1)
            if not run.dry:  # kernels are compiled, memory is taken
                accuracy.with_gpunet(model, 0, train_data, test_data, args)
            args.epochs = epochs
            _, share, seconds = accuracy.with_gpunet(model, 0, train_data, test_data, args)
            run.row(what=f"{name} {model}, gpunet", seconds=seconds, accuracy=share)
        if run.is_over:
            break
        if machine.torch is not None and run.begin(f"{model} torch", seconds=120):
            seconds, share = _with_torch(machine, model, train_data, test_data, epochs)
            run.row(what=f"{name} {model}, torch", seconds=seconds, accuracy=share)
        if run.is_over:
            break


def _data(dry: bool) -> tuple[str, tuple[Any, Any]]:
    """Fashion-MNIST where the machine has it, else the digits that come with gpunet."""
    name = "digits" if dry else "fashion-mnist"
    try:
        return name, (data.named(name, train=True), data.named(name, train=False))
    except OSError:
        return "digits", (data.named("digits", train=True), data.named("digits", train=False))


def _with_torch(machine: Machine, name: str, train_data: Any, test_data: Any, epochs: int) -> tuple[float, float]:
    """Seconds per epoch after the first one, and the test accuracy. All data lie on the device beforehand."""
    torch = machine.torch
    torch.manual_seed(0)
    place = "cuda" if machine.is_real else "cpu"
    model = accuracy.MODELS[name](torch.nn, train_data[0][0].shape, len(train_data.classes)).to(place)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y, x_test, y_test = (
        torch.from_numpy(array).to(place)
        for dataset in (train_data, test_data)
        for array in dataset.get_batch(np.arange(len(dataset)))
    )

    def epoch() -> None:
        for indices in torch.randperm(len(x), device=place).split(accuracy.BATCH):
            loss = torch.nn.functional.cross_entropy(model(x[indices]), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    epoch()
    machine.synchronize()
    start = time.perf_counter()
    for _ in range(epochs):
        epoch()
    machine.synchronize()
    seconds = (time.perf_counter() - start) / epochs
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x_test.split(500), y_test.split(500)))
    return seconds, right / len(x_test)
