"""Tables on the terminal, and charts as PNG files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GPUNET_COLOUR, NUMPY_COLOUR, TORCH_COLOUR, GREY = "#1f6fb4", "#8fb8dc", "#d95f02", "#666666"


class Table:
    """Rows that are printed as they come, under titles of a given width. Numbers go to the right, words to the left."""

    def __init__(self, *columns: tuple[str, int]) -> None:
        self._columns = columns

    def head(self) -> None:
        print("  ".join(title.ljust(width) for title, width in self._columns).rstrip())

    def row(self, *cells: Any) -> None:
        print("  ".join(_cell(cell, width) for cell, (_, width) in zip(cells, self._columns)).rstrip(), flush=True)


def _cell(cell: Any, width: int) -> str:
    if cell is None:
        return " " * width
    if isinstance(cell, float):
        return f"{cell:.2f}".rjust(width)
    text = str(cell)
    return text.rjust(width) if text[:1].isdigit() or isinstance(cell, int) else text.ljust(width)


def counted(n: int, what: str) -> str:
    """A number of things: 1 thread, 2 threads."""
    return f"{n} {what}{'s' * (n != 1)}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def ratio_of(row: dict[str, Any]) -> tuple[Any, Any]:
    """A row's ratio and the bar beside it, marked where it is not reached."""
    bar, ratio = row["bar"], row.get("ratio")
    if bar is None or ratio is None:
        return ratio, None
    return ratio, f"{bar:.2f}{' ' if ratio >= bar else '!'}"


def print_medians(files: Sequence[Path]) -> None:
    """A table of the ratios of several runs: their median, the smallest and the largest, and the bar."""
    table = Table(("", 56), ("runs", 4), ("median", 6), ("least", 6), ("most", 6), ("bar", 6))
    print("Best torch / gpunet.")
    table.head()
    found: dict[str, list[float]] = {}
    bars: dict[str, float | None] = {}
    for file in files:
        for name, ratio, bar in _ratios(json.loads(file.read_text(encoding="utf-8"))["stages"]):
            found.setdefault(name, []).append(ratio)
            bars[name] = bar
    for name, ratios in found.items():
        row = {"ratio": statistics.median(ratios), "bar": bars[name]}
        median, bar = ratio_of(row)
        table.row(name, len(ratios), median, min(ratios), max(ratios), bar)


def _ratios(stages: dict[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """What each ratio of a run is of, the ratio, and its bar."""
    for row in stages.get("steps", []):
        if "ratio" in row:
            what = "training step" if row["kind"] == "train" else "inference of one sample"
            what = f"({row['workload']}) {what}, {counted(row['threads'], 'thread')}"
            yield what, row["ratio"], row["bar"]
            if "ratio_tuned" in row:
                yield f"{what}, PyTorch tuned", row["ratio_tuned"], None
    for row in stages.get("overhead", []):
        if "ratio" in row:
            yield f"overhead: {row['op']}", row["ratio"], row["bar"]
    for row in stages.get("busy", []):
        if row["best_torch"]:
            ours, theirs = (row["configurations"][name]["slowdown"] for name in ("gpunet", row["best_torch"]))
            yield f"({row['workload']}) slowdown beside a busy core, torch's / gpunet's", theirs / ours, 1.0
    for row in stages.get("memory", []):
        if "ratio_peak" in row:
            yield f"({row['workload']}) peak memory, {counted(row['threads'], 'thread')}", row["ratio_peak"], 1.0


def bar_chart(report: dict[str, Any], file: Path) -> None:
    """How many times as fast as PyTorch each workload runs, with a line at each bar, a panel per number of threads.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = [row for row in report["stages"].get("steps", []) if "ratio" in row]
    threads = sorted({row["threads"] for row in rows})
    figure = _figure(7.0 * max(len(threads), 1), 4.2)
    for i, n in enumerate(threads):
        axes = figure.add_subplot(1, len(threads), i + 1)
        chosen = [row for row in rows if row["threads"] == n]
        for x, row in enumerate(chosen):
            axes.bar(x - 0.2, row["ratio"], 0.4, color=GPUNET_COLOUR, label="gpunet" if not x else None)
            axes.bar(x + 0.2, row["ratio_numpy"], 0.4, color=NUMPY_COLOUR, label="NumPy alone" if not x else None)
            axes.text(x - 0.2, row["ratio"], f"{row['ratio']:.2f}", ha="center", va="bottom", fontsize=8)
            if "ratio_tuned" in row:
                label = "gpunet, PyTorch tuned" if not x else None
                axes.plot(x - 0.2, row["ratio_tuned"], "D", ms=5, mfc="white", mec=GPUNET_COLOUR, label=label)
            if row["bar"] is not None:
                label = "aimed at" if not x else None
                axes.hlines(row["bar"], x - 0.42, x + 0.42, color=TORCH_COLOUR, lw=1.5, label=label)
        names = [row["workload"] + ("" if row["kind"] == "train" else "\n(one)") for row in chosen]
        axes.set_xticks(range(len(chosen)), names)
        axes.axhline(1.0, color=GREY, lw=0.8)
        axes.set_xlabel("training steps; (one): inference of one sample")
        axes.set_ylabel("times as fast as the best of PyTorch")
        axes.set_title(counted(n, "thread"))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file, _conditions(report))


def scaling_chart(report: dict[str, Any], file: Path) -> None:
    """Time per sample of d over the batch size, and per token of f over the length, beside PyTorch's.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = report["stages"]["scaling"]
    panels = list(dict.fromkeys((row["workload"], row["threads"]) for row in rows))
    columns = min(len(panels), 2)
    figure = _figure(6.0 * columns, 4.0 * -(-len(panels) // columns))
    for i, (key, threads) in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, i + 1)
        chosen = [row for row in rows if (row["workload"], row["threads"]) == (key, threads)]
        sizes = [row["size"] for row in chosen]
        curves = {"gpunet": [row["configurations"]["gpunet"]["per_unit"] * 1e6 for row in chosen]}
        if chosen[0]["best_torch"]:
            curves["torch, best of its configurations"] = [
                row["configurations"][row["best_torch"]]["per_unit"] * 1e6 for row in chosen
            ]
        for (label, values), colour in zip(curves.items(), (GPUNET_COLOUR, TORCH_COLOUR)):
            axes.plot(sizes, values, marker="o", ms=4, color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8 * min(map(min, curves.values())), top=1.25 * max(map(max, curves.values())))
        axes.set_xlabel("batch size" if key == "d" else "length T; 1024 tokens a batch, at most 16 sequences")
        axes.set_ylabel("µs a sample" if key == "d" else "µs a token")
        axes.set_title(f"({key}), {counted(threads, 'thread')}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file, _conditions(report))


def _conditions(report: dict[str, Any]) -> str:
    found = report["environment"]
    versions = ", ".join(f"{name} {found[name]}" for name in ("gpunet", "torch") if name in found)
    return f"{versions}, NumPy {found['numpy']}; {found['cpu']}"


def _figure(width: float, height: float) -> Any:
    """A figure in inches that draws with Agg, whatever backend pyplot has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, file: Path, title: str) -> None:
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120, format="png")
