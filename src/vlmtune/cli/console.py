"""What commands print: results to stdout (tables, JSON), progress and notes to stderr.

Called by every command; lower packages get a callback, never a console.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vlmtune.workflows.progress import Level

LINE_EVERY_S = 10.0
"""Seconds between lines of progress if there is no terminal to redraw."""


def stderr_console() -> Console:
    """The console for progress, notes and warnings."""
    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """The console for results. Without a terminal a table is as wide as its content, not cut at 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


class ConsoleObserver:
    """What a workflow reports, on stderr: bars, sentences, a line for each finding of the preflight."""

    def __init__(self) -> None:
        self._console = stderr_console()

    def progress(self, description: str, total: float, unit: str) -> ProgressBar:
        return ProgressBar(description, total, unit=unit, console=self._console)

    def message(self, text: str, level: Level = "info") -> None:
        style = {"info": None, "heading": "bold", "warning": "yellow"}[level]
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def finding(self, level: Literal["ok", "warning", "error"], name: str, message: str) -> None:
        print_finding(self._console, level, name, message)


def print_finding(console: Console, level: Literal["ok", "warning", "error"], name: str, message: str) -> None:
    """One line, marked by its outcome."""
    mark, color = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}[level]
    console.print(Text.assemble((f"{mark} ", color), (f"{name}: ", "bold"), message))


def print_json(value: Any) -> None:
    """Print one JSON value to stdout: dataclasses and pydantic models as objects, paths as text, NaN as null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table to stdout; columns of numbers are aligned to the right."""
    cells = [list(row) for row in rows]
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        is_number = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    stdout_console().print(table)


def print_figures(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of texts; if the terminal is too narrow, transposed, or row by row under its first cell."""
    cells, width = [list(row) for row in rows], stdout_console().width
    turned = [list(line) for line in zip(columns, *cells, strict=True)]
    if _table_width([list(columns), *cells]) <= width:
        print_table(columns, cells)
    elif _table_width(turned) <= width:
        print_table(turned[0], turned[1:])
    else:
        for row in cells:
            body = [f"{name}: {text}" for name, text in zip(columns[1:], row[1:], strict=True) if text not in ("", "–")]
            stdout_console().print("\n".join([row[0], *(f"  {line}" for line in body)]), markup=False, soft_wrap=True)


def _table_width(lines: Sequence[Sequence[str]]) -> int:
    return sum(3 + max(map(cell_len, column)) for column in zip(*lines, strict=True)) + 1


class ProgressBar:
    """Progress with samples a second and time left: a bar in a terminal, otherwise a line every ten seconds.

    Use as a context manager; `advance` or `update` as work is done, `note` for text beside the figures.
    """

    def __init__(
        self,
        description: str,
        total: float | None,
        *,
        unit: str = "samples",
        console: Console | None = None,
        line_every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._console = console or stderr_console()
        self._line_every_s, self._clock = line_every_s, clock
        self._done = self._first = 0.0
        self._note = ""
        self._started = self._last_line = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        self._started = self._last_line = self._clock()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(self._unit, self.rate),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(self._description, total=self._total, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print_line()

    def start_at(self, done: float) -> None:
        """Continue a resumed job: `done` was finished before and does not count toward the rate."""
        self._done = self._first = done
        self.update(done)

    def advance(self, num: float = 1, note: str | None = None) -> None:
        """Count `num` more as done."""
        self.update(self._done + num, note)

    def update(self, done: float, note: str | None = None) -> None:
        """Set the total done so far, and a note to show beside it, such as "loss 0.31"."""
        self._done = done
        if note is not None:
            self._note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self._note)
        elif self._clock() - self._last_line >= self._line_every_s:
            self._print_line()

    def message(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def rate(self) -> float:
        """Units per second since the start of this session; 0 before the first."""
        elapsed = self._clock() - self._started
        return (self._done - self._first) / elapsed if elapsed > 0 else 0.0

    def _print_line(self) -> None:
        self._last_line = self._clock()
        rate = self.rate()
        parts = [f"{_count(self._done)}/{_count(self._total)}" if self._total is not None else _count(self._done)]
        parts.append(_rate(rate, self._unit))
        if self._total is not None and self._total > self._done and rate > 0:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        else:
            parts.append(f"{_duration(self._clock() - self._started)}")
        if self._note:
            parts.append(self._note)
        self._console.print(f"{self._description}: {', '.join(parts)}", markup=False, highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Units per second over the whole session, from which the remaining time is estimated."""

    def __init__(self, unit: str, rate: Callable[[], float]) -> None:
        super().__init__()
        self._unit, self._rate = unit, rate

    def render(self, task: Task) -> Text:
        return Text(_rate(self._rate(), self._unit))


def _rate(rate: float, unit: str) -> str:
    """A rate per second, or per minute where it would round to zero."""
    return f"{60 * rate:.1f} {unit}/min" if 0 < rate < 0.1 else f"{rate:.1f} {unit}/s"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _plain(value: Any) -> Any:
    """A value in JSON's types."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [_plain(item) for item in items]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
