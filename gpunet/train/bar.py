"""A progress bar for any loop: what ProgressBar shows in `fit`, for loops written by hand."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_INTERVAL = 0.1  # seconds between redraws


class Bar:
    """One line on stderr that fills up: batches done, time left, samples per second, and named values.

    Where stderr is not a terminal there is nothing to redraw, so `finish` prints one plain line instead.

    Args:
        label: what stands before the bar.
        total: the number of batches, where it is known.
        display: False shows nothing; True a bar; None a bar on a terminal and a plain line elsewhere.
        done: batches done before, in a resumed epoch.
    """

    def __init__(self, label: str = "", total: int | None = None, display: bool | None = None, done: int = 0) -> None:
        self.label = label
        self._samples = 0
        self._start = self._last = self._drawn = time.perf_counter()
        self._lines = display is None and not sys.stderr.isatty()
        self._tqdm: Any = None
        if display or (display is None and not self._lines):
            from tqdm import tqdm

            class Line(tqdm):
                monitor_interval = 0  # no thread of tqdm's own: threads and forked loader workers do not go together

            columns, rows = (
                shutil.get_terminal_size()
            )  # 80, 24 where the terminal does not say; tqdm would draw nothing
            self._tqdm = Line(
                desc=label,
                total=total,
                initial=done,
                file=sys.stderr,
                ncols=columns,
                nrows=rows,
                mininterval=_INTERVAL,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
                if total
                else "{desc} {n_fmt} [{elapsed}{postfix}]",
            )

    def advance(self, samples: int, values: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Count one batch of `samples`. `values()` is called, and the values shown, only when the line is redrawn."""
        self._samples += samples
        self._last = time.perf_counter()
        if self._tqdm is None:
            return
        if self._last - self._drawn >= _INTERVAL:
            self._drawn = self._last
            self._tqdm.set_postfix_str(self._describe(values()), refresh=False)
        self._tqdm.update()

    def finish(self, values: Mapping[str, Any] | None = None) -> None:
        """Show the final values and leave the line."""
        text = self._describe(values or {})
        if self._tqdm is not None:
            self._tqdm.ncols = (
                None  # whole, even where it is longer than the terminal is wide: nothing is drawn over it
            )
            self._tqdm.set_postfix_str(text, refresh=False)
            self._tqdm.close()
            self._tqdm = None
        elif self._lines:
            seconds = time.perf_counter() - self._start
            parts = ", ".join(filter(None, [text, f"{seconds:.1f} s"]))
            print(f"{self.label}: {parts}" if self.label else parts, file=sys.stderr, flush=True)
            self._lines = False

    def close(self) -> None:
        """Leave the line as it is, such as after an error."""
        if self._tqdm is not None:
            self._tqdm.close()

    def _describe(self, values: Mapping[str, Any]) -> str:
        numbers = {name: number(value) for name, value in values.items()}
        parts = [f"{name}={value:.4g}" for name, value in numbers.items() if value is not None]
        if self._samples:
            parts.append(f"{self._samples / max(self._last - self._start, 1e-9):,.0f} samples/s")
        return ", ".join(parts)


class Progress:
    """A loop over batches with a progress bar.

        batches = train.progress(loader, "epoch 1/5")
        for x, y in batches:
            ...
            batches.show(loss=loss)

    Args:
        data: the batches; anything that can be iterated over. Its len, where it has one, gives the time left.
        label: what stands before the bar.
        display: as for Bar.
    """

    def __init__(self, data: Iterable[Any], label: str = "", display: bool | None = None) -> None:
        self._data = data
        self._label = label
        self._display = display
        self._values: Mapping[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        self._values = {}
        bar = Bar(self._label, length(self._data), self._display)
        try:
            for batch in self._data:
                yield batch
                bar.advance(batch_length(batch), lambda: self._values)
            bar.finish(self._values)
        finally:
            bar.close()

    def show(self, **values: Any) -> None:
        """Show these numbers (or 0-d Tensors) beside the bar from now on; they are read only when it is redrawn."""
        self._values = {**self._values, **values}


def progress(data: Iterable[Any], label: str = "", display: bool | None = None) -> Progress:
    """Iterate over batches with a progress bar; see Progress."""
    return Progress(data, label, display)


def length(data: Any) -> int | None:
    """The number of batches of `data`, or None where it does not say."""
    try:
        return len(data)
    except TypeError:
        return None


def batch_length(batch: Any) -> int:
    """The number of samples in a batch: the length of its first array."""
    while isinstance(batch, tuple | list | dict):
        if not batch:
            return 0
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return length(batch) or 0


def number(value: Any) -> float | None:
    """`value` as a Python number where it is one, or an array of one element; else None."""
    if getattr(value, "size", 1) != 1 or isinstance(value, str):
        return None
    return value.item() if hasattr(value, "item") else value
