"""The curves of a run's training: loss and validation against step. In: `Results`. Out: a section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from vlmtune.report import numbers as w
from vlmtune.report.charts import SUBJECT_COLOR, Canvas, Chart, Key, Plot, Point, round_range, smoothed, thinned
from vlmtune.report.numbers import count, percent
from vlmtune.report.section import ColumnOf, Figures, Fold, Section, Table, table
from vlmtune.report.sources import Results

NUM_LOSS_ROWS = 20
MOST_DOTS = 60


@dataclass(frozen=True, slots=True)
class Curves:
    """What one run logged: points of (step, loss) and (step, validation score)."""

    name: str
    color: str
    loss: Sequence[Point]
    validation: Sequence[Point]


def section(results: Results) -> Section | None:
    """Loss and validation of every run, in the color of the evaluation with its name where there is one."""
    runs = [run for run in results.runs if run.train or run.validation]
    if not runs:
        return None
    colors = {entry.name: entry.color for entry in results.entries}
    usual = results.subject.color if results.subject else SUBJECT_COLOR
    lines = {run.name: [line for line in run.validation if line.get("accuracy") is not None] for run in runs}
    curves = [
        Curves(
            run.name,
            colors.get(run.name, usual),
            [(line["step"], line["loss"]) for line in run.train if line.get("loss") is not None],
            [(line["step"], line["accuracy"]) for line in lines[run.name]],
        )
        for run in runs
    ]
    legend = [Key(curve.color, curve.name) for curve in curves] if len(curves) > 1 else []
    parts = []
    if any(curve.loss for curve in curves):
        points = [(curve.name, *point) for curve in curves for point in thinned(curve.loss, NUM_LOSS_ROWS)]
        columns: list[ColumnOf] = [
            ("run", itemgetter(0)),
            ("#about step", itemgetter(1), count),
            ("#loss", itemgetter(2), w.number),
        ]
        numbers = Fold("Numbers", table(points, columns))
        parts.append(Section("loss", "Training loss", chart=Chart(draw_loss(curves), legend), folds=[numbers]))
    if any(curve.validation for curve in curves):
        title = f"Validation {results.score_name}"
        chart = Chart(draw_validation(curves), legend)
        parts.append(Section("validation", title, chart=chart, folds=[Fold("Numbers", _validation_table(lines))]))
    lead = (
        f"Loss on the answers (faint: each logged step), and {results.score_name} on the held-out validation "
        f"{results.unit}s; the ring marks the best, which is kept."
    )
    return Section("training", "Training", [lead], parts=parts, is_grid=True, figures={"validation": lines})


def _validation_table(lines: Mapping[str, Sequence[Figures]]) -> Table:
    columns: list[ColumnOf] = [
        ("run", "run"),
        ("#step", "step", count),
        ("#accuracy", "accuracy", percent),
        ("#loss", lambda line: line.get("loss"), w.number),
    ]
    return table([{"run": name, **line} for name, entries in lines.items() for line in entries], columns)


def draw_loss(curves: Sequence[Curves]) -> Canvas:
    """Training loss against step; faint raw, strong smoothed."""
    drawn = [(curve.color, thinned(curve.loss)) for curve in curves if curve.loss]
    everything = [point for _, points in drawn for point in points if math.isfinite(point[1])]
    top = max(y for _, y in everything)
    plot = Plot("Training loss against step", (0, max(x for x, _ in everything)), (0, top * 1.05))
    plot.axes("optimizer step", "loss", count, lambda v: f"{v:g}")
    for color, points in drawn:
        finite = [point for point in points if math.isfinite(point[1])]
        plot.curve(finite, f"curve raw {color}")
        plot.curve(smoothed(finite), f"curve {color}")
    return plot.canvas


def draw_validation(curves: Sequence[Curves]) -> Canvas:
    """Validation accuracy against step, the best point ringed."""
    drawn = [(curve.color, curve.validation) for curve in curves if curve.validation]
    everything = [point for _, points in drawn for point in points]
    span = round_range([y for _, y in everything], 0.1)
    plot = Plot("Validation accuracy against step", (0, max(x for x, _ in everything)), span)
    plot.axes("optimizer step", "validation accuracy", count, lambda v: percent(v, 0))
    for color, points in drawn:
        plot.curve(points, f"curve {color}")
        for step, accuracy in points if len(points) <= MOST_DOTS else []:
            plot.dot(step, accuracy, 2.6, f"dot {color}", f"step {step:g}: {percent(accuracy)}")
        step, accuracy = max(points, key=lambda point: point[1])
        plot.dot(step, accuracy, 6, f"ring {color}", f"best, step {step:g}: {percent(accuracy)}")
    return plot.canvas
