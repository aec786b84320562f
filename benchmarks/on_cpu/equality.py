"""Stages same and loss: whether both sides compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_cpu.report import Table
from benchmarks.on_cpu.session import Session
from benchmarks.on_cpu.workers import GPUNET, Worker
from benchmarks.on_cpu.workloads import INPUT, WORKLOADS

LOSS_TOLERANCE = 1e-5  # of the first loss, relative
GRADIENT_TOLERANCE = 1e-3  # of each parameter's gradient, norm of the difference over norm
# Of the input's, likewise: where relu is given almost 0, rounding decides whether a gradient passes.
INPUT_TOLERANCE = 1e-2
STEPS = 100
LOSS_BAR = 1e-4  # of the loss after 100 steps, absolute


def same(session: Session) -> Iterator[dict[str, Any]]:
    """Whether all configurations compute the same loss and gradients from the same weights."""
    table = Table(
        ("", 1), ("", 51), ("loss", 9), ("configuration", 27), ("loss differs", 12), ("gradients", 9), ("", 9)
    )
    print(f"loss differs: relative; {LOSS_TOLERANCE:g} is allowed. gradients: the worst difference, norm over norm, as")
    print(f"a share of what is allowed: {GRADIENT_TOLERANCE:g} for parameters, {INPUT_TOLERANCE:g} for the input.")
    table.head()
    with session.working(session.configurations(training=False), 1) as workers:
        reference = next((w for w in workers if w.configuration.is_torch), workers[0])
        for key in list(session.workloads):
            workload = WORKLOADS[key]
            lacking = workers[0].ask("lacks", workload=key)
            if lacking:
                table.row(key, workload.title, "", f"not available: gpunet has no {', '.join(lacking)}")
                session.workloads.remove(key)
                continue
            reference.ask("weights", workload=key)
            loss, gradients = _first_step(reference, key, session.folder)
            for worker in workers:
                if worker is reference or (worker.configuration.for_images and not workload.convolves):
                    continue
                other, others = _first_step(worker, key, session.folder)
                difference = abs(other - loss) / abs(loss)
                worst, where = worst_difference(gradients, others)
                equal = difference <= LOSS_TOLERANCE and worst <= 1
                verdict = "" if equal else f"DIFFERS, most in {where}"
                table.row(
                    key, workload.title, f"{loss:.6f}", worker.name, f"{difference:.1e}", f"{worst:.0e}", verdict
                )  # fmt: skip
                yield {
                    "workload": key, "configuration": worker.name, "reference": reference.name, "loss": loss,
                    "loss_difference": difference, "gradient_difference": worst, "worst_gradient": where, "same": equal,
                }  # fmt: skip


def _first_step(worker: Worker, key: str, folder: Path) -> tuple[float, dict[str, np.ndarray]]:
    file = folder / "gradients.npz"
    loss = worker.ask("first_step", workload=key, file=str(file))
    with np.load(file) as gradients:
        return loss, dict(gradients)


def worst_difference(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative difference between gradients of the same name, in units of its tolerance, and that name."""
    if expected.keys() != found.keys():
        return float("inf"), ", ".join(sorted(expected.keys() ^ found.keys()))
    differences = {}
    for name, value in expected.items():
        tolerance = INPUT_TOLERANCE if name == INPUT else GRADIENT_TOLERANCE
        difference = float(np.linalg.norm(found[name] - value) / max(float(np.linalg.norm(value)), 1e-30)) / tolerance
        differences[name] = float("inf") if np.isnan(difference) else difference
    worst = max(differences, key=lambda name: differences[name])
    return differences[worst], worst


def loss(session: Session) -> Iterator[dict[str, Any]]:
    """The loss after 100 steps on one batch, gpunet's twice and PyTorch's: how far apart, whether equal to the bit."""
    table = Table(
        ("", 1), ("", 51), ("threads", 7), ("gpunet", 10), ("torch", 10), ("difference", 10), ("bar", 7),
        ("two runs of gpunet", 18),
    )  # fmt: skip
    table.head()
    ours = [c for c in session.configurations() if c.name == GPUNET]
    for threads in session.threads:
        with session.working([*ours, *ours, *session.torch[:1]], threads) as workers:
            for key in session.workloads:
                first, second, *theirs = [worker.ask("losses", workload=key, steps=STEPS) for worker in workers]
                row: dict[str, Any] = {"workload": key, "threads": threads, "steps": STEPS, "gpunet": first["losses"]}
                row["bit_equal"] = first["digest"] == second["digest"]
                cells = [f"{first['losses'][-1]:.6f}", "", ""]
                if theirs:
                    row["torch"] = theirs[0]["losses"]
                    row["difference"] = abs(row["gpunet"][-1] - row["torch"][-1])
                    row["met"] = row["difference"] <= LOSS_BAR
                    cells[1:] = [f"{row['torch'][-1]:.6f}", f"{row['difference']:.1e}{'' if row['met'] else '!'}"]
                equal = "equal to the bit" if row["bit_equal"] else "NOT EQUAL"
                table.row(key, WORKLOADS[key].title, threads, *cells, f"{LOSS_BAR:g}", equal)
                yield row
