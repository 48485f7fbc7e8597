"""What commands print: progress without a terminal, and JSON."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vlmtune.cli.console import ProgressBar, print_figures, print_json, print_table

pytestmark = pytest.mark.unit


class Clock:
    """A clock that the test winds."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(output: io.StringIO) -> None:
    clock = Clock()
    with ProgressBar("train", 100, console=Console(file=output), clock=clock) as bar:
        for second in range(1, 41):
            clock.seconds = second
            bar.advance(2, note=f"loss {second}")
    lines = output.getvalue().splitlines()
    assert lines[:3] == [
        "train: 20/100, 2.0 samples/s, 0:40 left, loss 10",
        "train: 40/100, 2.0 samples/s, 0:30 left, loss 20",
        "train: 60/100, 2.0 samples/s, 0:20 left, loss 30",
    ]
    assert lines[-1] == "train: 80/100, 2.0 samples/s, 0:10 left, loss 40"


def test_resumed_work_does_not_count_toward_the_rate(output: io.StringIO) -> None:
    clock = Clock()
    with ProgressBar("train", 1_000, unit="steps", console=Console(file=output), clock=clock) as bar:
        bar.start_at(900)
        clock.seconds = 10
        bar.update(910)
        assert bar.rate() == 1.0
    assert output.getvalue().splitlines()[0] == "train: 910/1,000, 1.0 steps/s, 1:30 left"


def test_a_terminal_gets_a_bar_with_rate_and_note() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    clock = Clock()
    with ProgressBar("train", 10, console=console, clock=clock) as bar:
        clock.seconds = 2.0
        bar.advance(4, note="loss 0.5")
        bar.message("[kept] as written")
    assert "4/10" in output.getvalue() and "2.0 samples/s" in output.getvalue() and "loss 0.5" in output.getvalue()
    assert "[kept] as written" in output.getvalue()


def test_json_holds_only_what_json_knows(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Result:
        path: Path
        scores: object

    print_json({"a": Result(Path("x/y"), np.float32(0.5)), "b": [float("nan"), np.arange(2)], 3: ("é", None)})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": {"path": "x/y", "scores": 0.5}, "b": [None, [0, 1]], "3": ["é", None]}
    assert "é" in printed


def test_a_table_shows_markup_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["label", "n"], [["[red]", 3], [None, 10]])
    printed = capsys.readouterr().out
    assert "[red]" in printed and "None" not in printed


@pytest.mark.parametrize(("width", "first"), [(60, "┏"), (36, "┏"), (16, "zero-shot")])
def test_figures_keep_their_numbers_whole_at_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, first: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_figures(["run", "accuracy", "95% interval", "note"], [["zero-shot", "54.0%", "50.1 to 57.9%", "–"]])
    printed = capsys.readouterr().out
    assert printed.startswith(first)
    assert "54.0%" in printed and "50.1 to 57.9%" in printed
