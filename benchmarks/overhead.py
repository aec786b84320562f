"""What recording an op costs, beside PyTorch in the same run.

    python benchmarks/overhead.py [--json FILE]

Times a chain of 1,000 additions of an (8, 8) float32 array, forward and backward, and other small steps, each the
median of interleaved rounds on one thread. PyTorch's column is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

import gpunet as gn
from gpunet import nn

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

CHAIN = 1000


def chain(x, ones) -> None:
    x.grad = None
    y = x
    for _ in range(CHAIN):
        y = y + x
    y.backward(ones)


def products(x, ones) -> None:
    x.grad = None
    y = x
    for _ in range(CHAIN):
        y = y * x
    y.backward(ones)


def forward(x) -> None:
    for _ in range(CHAIN):
        x + x


def network(module, x, target, cross_entropy) -> None:
    cross_entropy(module(x), target).backward()


def cases() -> list[tuple[str, int, Callable[[], None], Callable[[], None] | None]]:
    """(what, how many ops one call runs, gpunet's call, torch's call)."""
    a = np.ones((8, 8), np.float32)
    x, ones, plain = gn.tensor(a, requires_grad=True), gn.ones((8, 8)), gn.tensor(a)
    mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    target = gn.asarray(np.arange(8))
    ours = [
        ("x + y, forward and backward", CHAIN, lambda: chain(x, ones)),
        ("x * y, forward and backward", CHAIN, lambda: products(x, ones)),
        ("x + y, not recorded", CHAIN, lambda: forward(plain)),
        ("x + y, recorded", CHAIN, lambda: forward(x)),
        (
            "MLP 8-8-8, batch 8, forward and backward",
            1,
            lambda: network(mlp, plain, target, nn.functional.cross_entropy),
        ),
    ]
    if torch is None:
        return [(*case, None) for case in ours]
    tx, tones, tplain = torch.ones(8, 8, requires_grad=True), torch.ones(8, 8), torch.ones(8, 8)
    tmlp = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    ttarget = torch.arange(8)
    theirs = [
        lambda: chain(tx, tones),
        lambda: products(tx, tones),
        lambda: forward(tplain),
        lambda: forward(tx),
        lambda: network(tmlp, tplain, ttarget, torch.nn.functional.cross_entropy),
    ]
    return [(*case, other) for case, other in zip(ours, theirs)]


def time_of(call: Callable[[], None], ops: int) -> float:
    """Microseconds for each op; a call of one op is repeated until the clock is fine enough."""
    repeats = max(1, 200 // ops)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / (ops * repeats) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(1)
    print(f"gpunet {gn.__version__}, NumPy {np.__version__}, Python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}" if torch else "torch not installed")
    print(f"{'us per op (median; fastest)':44s} {'gpunet':>16s} {'torch':>16s} {'torch/gpunet':>13s}")
    rows = {}
    gc.collect()
    gc.freeze()  # else collections, which recording sets off, go through all that imports left behind, torch above all
    for name, ops, ours, theirs in cases():
        samples: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):  # interleaved, so that a busy moment of the machine hits both
            samples[0].append(time_of(ours, ops))
            if theirs:
                samples[1].append(time_of(theirs, ops))
        medians = [statistics.median(s) for s in samples if s]
        cells = [f"{statistics.median(s):8.2f} {min(s):7.2f}" if s else "" for s in samples]
        ratio = f"{medians[1] / medians[0]:.2f}" if theirs else ""
        print(f"{name:44s} {cells[0]:>16s} {cells[1]:>16s} {ratio:>13s}")
        rows[name] = dict(zip(("gpunet", "torch"), medians))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"unit": "us per op", "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
