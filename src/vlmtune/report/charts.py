"""The report's charts as SVG. Plain numbers in, markup out; tables of the same numbers are the template's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vlmtune.report.numbers import count, interval, number, percent, shortened
from vlmtune.report.svg import Canvas, Plot, Point, smoothed, thinned

MOST_CLASSES = 120
SUBJECT_COLOR = "s2"
_ROW = 46


def colors(baselines: Sequence[bool]) -> list[str]:
    """A CSS class a run: gray for a baseline, the strongest color for the last run, which the page is about."""
    others = cycle(("s1", "s3", "s4", "s5"))
    given = ["s0" if is_baseline else next(others) for is_baseline in baselines]
    return [*given[:-1], SUBJECT_COLOR] if given else []


def bars(entries: Sequence[dict[str, Any]], description: str, chance: float | None = None) -> Markup:
    """A bar of accuracy an entry, with its interval. entries: {"name", "accuracy", "accuracy_interval", "series"}."""
    width, left, right = 460.0, 2.0, 452.0
    height = _ROW * len(entries) + 30
    canvas = Canvas(width, height, description)

    def x(share: float) -> float:
        return left + share * (right - left)

    bottom = _ROW * len(entries) + 8
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(x(share), bottom - 4, x(share), bottom, "axis")
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        canvas.text(x(share), bottom + 17, percent(share, 0), "tick", anchor)
    for row, entry in enumerate(entries):
        top = _ROW * row + 8
        accuracy, span = entry["accuracy"] or 0.0, entry["accuracy_interval"]
        canvas.text(left, top + 12, shortened(entry["name"], 40), "label")
        canvas.text(right, top + 12, percent(entry["accuracy"]), "value", "end")
        canvas.rect(left, top + 18, right - left, 16, "track", radius=3)
        title = f"{entry['name']}: {percent(accuracy)} ({interval(span)})"
        canvas.rect(left, top + 18, max(1.0, x(accuracy) - left), 16, f"bar {entry['series']}", radius=3, title=title)
        if span:
            low, high = (x(v) for v in span)
            for css in ("whisker-halo", "whisker"):
                canvas.line(low, top + 26, high, top + 26, css)
                canvas.line(low, top + 21.5, low, top + 30.5, css)
                canvas.line(high, top + 21.5, high, top + 30.5, css)
        if chance:
            canvas.line(x(chance), top + 15, x(chance), top + 37, "chance")
    return canvas.render()


def loss_curves(series: Sequence[dict[str, Any]]) -> Markup:
    """Training loss against step. series: {"name", "series", "loss": [(step, loss)…]}; faint raw, strong smoothed."""
    drawn = [(s["series"], thinned(s["loss"])) for s in series if s["loss"]]
    everything = [p for _, points in drawn for p in points if math.isfinite(p[1])]
    top = max(y for _, y in everything)
    plot = Plot("Training loss against step", (0, max(x for x, _ in everything)), (0, top * 1.05))
    plot.axes("optimizer step", "loss", count, lambda v: f"{v:g}")
    for css, points in drawn:
        finite = [p for p in points if math.isfinite(p[1])]
        plot.curve(finite, f"curve raw {css}")
        plot.curve(smoothed(finite), f"curve {css}")
    return plot.canvas.render()


def validation_curves(series: Sequence[dict[str, Any]]) -> Markup:
    """Validation accuracy against step, the best point ringed. series: {"series", "validation": [(step, acc)…]}."""
    drawn: list[tuple[str, list[Point]]] = [(s["series"], list(s["validation"])) for s in series if s["validation"]]
    everything = [p for _, points in drawn for p in points]
    span = _round_range([y for _, y in everything], 0.1)
    plot = Plot("Validation accuracy against step", (0, max(x for x, _ in everything)), span)
    plot.axes("optimizer step", "validation accuracy", count, lambda v: percent(v, 0))
    for css, points in drawn:
        plot.curve(points, f"curve {css}")
        for step, accuracy in points if len(points) <= 60 else []:
            plot.canvas.dot(plot.x(step), plot.y(accuracy), 2.6, f"dot {css}", f"step {step:g}: {percent(accuracy)}")
        step, accuracy = max(points, key=lambda p: p[1])
        plot.canvas.dot(plot.x(step), plot.y(accuracy), 6, f"ring {css}", f"best, step {step:g}: {percent(accuracy)}")
    return plot.canvas.render()


def checkpoint_curve(figures: dict[str, Any]) -> Markup:
    """Accuracy and loss of every checkpoint against step; what training itself measured is dashed behind it, and so is
    an average of checkpoints, which belongs to no step.
    """
    points, logged, averages = figures["checkpoints"], figures["during_training"], figures.get("averages", [])
    canvas = Canvas(680, 440, "Accuracy and loss of each checkpoint against step")
    steps = (0.0, float(figures["num_steps"]))
    told = [(p["step"], p["accuracy"], *p["accuracy_interval"]) for p in points]
    seen = [share for _, _, low, high in told for share in (low, high)]
    seen += [entry["accuracy"] for entry in (*logged, *averages)]
    upper = Plot("", steps, _round_range(seen, 0.05), canvas=canvas, band=(14, 236))
    upper.axes("", "accuracy", count, lambda v: percent(v, 0))
    upper.curve([(line["step"], line["accuracy"]) for line in logged], "curve dashed s0")
    for average in averages:
        upper.level(average["accuracy"], f"{average['name']}: {percent(average['accuracy'])}")
    upper.curve([(step, accuracy) for step, accuracy, *_ in told], f"curve {SUBJECT_COLOR}")
    for step, accuracy, low, high in told:
        upper.whisker(step, low, high, f"error strong {SUBJECT_COLOR}")
        title = f"step {step:g}: {percent(accuracy)} ({interval([low, high])})"
        canvas.dot(upper.x(step), upper.y(accuracy), 3.6, f"dot {SUBJECT_COLOR}", title)
    losses = [(p["step"], p["nll"]) for p in points if p["nll"] is not None]
    background = [(line["step"], line["loss"]) for line in logged if line.get("loss") is not None]
    top = max((y for _, y in [*losses, *background] if math.isfinite(y)), default=1.0)
    lower = Plot("", steps, (0, top * 1.08), canvas=canvas, band=(266, 396))
    lower.axes("optimizer step", "loss (NLL)", count, lambda v: f"{v:g}")
    lower.curve([p for p in background if math.isfinite(p[1])], "curve dashed s0")
    lower.curve(losses, f"curve {SUBJECT_COLOR}")
    for step, loss in losses:
        canvas.dot(lower.x(step), lower.y(loss), 3.2, f"dot {SUBJECT_COLOR}", f"step {step:g}: {number(loss)}")
    for step, word, css in ((figures["best_step"], "best", "s2"), (figures["stop_step"], "sufficed", "s3")):
        if word == "best" or step != figures["best_step"]:
            accuracy = next(p["accuracy"] for p in points if p["step"] == step)
            canvas.dot(upper.x(step), upper.y(accuracy), 8, f"ring {css}", f"{word}: step {step:g}")
            for top, bottom in ((upper.y(accuracy) + 9, 241), (260, lower.bottom)):  # the words stand in the gap
                canvas.line(upper.x(step), top, upper.x(step), bottom, "ideal")
            anchor = "end" if step > steps[1] * 0.9 else "middle"
            canvas.text(upper.x(step), 254, f"{word}, step {step:g}", "tick", anchor)
    return canvas.render()


def learning_curve(figures: dict[str, Any]) -> Markup:
    """Test accuracy against the number of training images (logarithmic), a dot a seed, bars of the whole interval."""
    points = figures["points"]
    nums = [math.log10(p["num_train"]) for p in points]
    margin = 0.08 * (max(nums) - min(nums)) or 0.5
    base = figures["base"]
    seen = [end for p in points for end in p["interval"]] + ([base["accuracy"]] if base else [])
    x_range = (min(nums) - margin, max(nums) + margin)
    plot = Plot("Accuracy against training images", x_range, _round_range(seen, 0.1), 680, 380)
    plot.axes("training images (logarithmic)", "test accuracy", lambda v: count(10**v), lambda v: percent(v, 0), nums)
    if base:
        plot.level(base["accuracy"], f"without training: {percent(base['accuracy'])}")
    plot.curve([(x, p["accuracy"]) for x, p in zip(nums, points, strict=True)], f"curve {SUBJECT_COLOR}")
    for x, point in zip(nums, points, strict=True):
        plot.whisker(x, point["interval"][0], point["interval"][1], f"error strong {SUBJECT_COLOR}")
        for end in point["interval"]:
            y = plot.y(end)
            plot.canvas.line(plot.x(x) - 5, y, plot.x(x) + 5, y, f"error strong {SUBJECT_COLOR}")
        for run in point["runs"]:
            title = f"seed {run['seed']}: {percent(run['accuracy'])}"
            plot.canvas.dot(plot.x(x) + 13, plot.y(run["accuracy"]), 3, "dot s3", title)
        title = f"{count(point['num_train'])} images: {percent(point['accuracy'])} ({interval(point['interval'])})"
        plot.canvas.dot(plot.x(x), plot.y(point["accuracy"]), 4.4, f"dot {SUBJECT_COLOR}", title)
    return plot.canvas.render()


def reliability(series: Sequence[dict[str, Any]]) -> Markup:
    """Accuracy against confidence in bins of equally many images. series: {"series", "bins"}."""
    plot = Plot("Accuracy against stated confidence", (0, 1), (0, 1), height=330)
    plot.axes("stated probability", "share right", lambda v: percent(v, 0), lambda v: percent(v, 0))
    plot.curve([(0, 0), (1, 1)], "ideal")
    for entry in series:
        plot.curve([(b["confidence"], b["accuracy"]) for b in entry["bins"]], f"curve thin {entry['series']}")
        for b in entry["bins"]:
            if b["accuracy_interval"]:
                low, high = b["accuracy_interval"]
                plot.whisker(b["confidence"], low, high, f"error {entry['series']}")
            title = f"{b['count']} images: stated {percent(b['confidence'])}, right {percent(b['accuracy'])}"
            plot.canvas.dot(plot.x(b["confidence"]), plot.y(b["accuracy"]), 3.6, f"dot {entry['series']}", title)
    return plot.canvas.render()


def risk_coverage(series: Sequence[dict[str, Any]]) -> Markup:
    """Share wrong among the most confident answers. series: {"series", "coverage", "risk"}."""
    highest = max(max(entry["risk"]) for entry in series)
    plot = Plot("Share wrong against share answered", (0, 1), (0, max(0.02, highest * 1.08)), height=330)
    digits = 0 if highest > 0.05 else 1
    plot.axes("share answered, surest first", "share wrong", lambda v: percent(v, 0), lambda v: percent(v, digits))
    for entry in series:
        plot.curve(list(zip(entry["coverage"], entry["risk"], strict=True)), f"curve {entry['series']}")
    return plot.canvas.render()


def heatmap_classes(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which classes a heat map shows: all of them, or the most confused where there are too many to read."""
    if len(confusion) <= MOST_CLASSES:
        return np.arange(len(confusion))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return np.sort(np.argsort(-wrong, kind="stable")[:100])


def confusion_heatmap(confusion: NDArray[np.int64], labels: Sequence[str]) -> Markup:
    """Level are truth, columns predictions; shade is the share of the row. Right and wrong have different hues."""
    num = len(labels)
    longest = max(len(label) for label in labels)
    size = max(7.0, min(12.0, 700 / num)) if num > 24 else 12.0
    cell = max(8.4, min(44.0, 430 / num)) if num <= 24 else max(8.4, 760 / num)
    margin = min(longest, 18) * size * 0.58 + 12
    side = cell * num
    canvas = Canvas(margin + side + 8, margin + side + 26, "Confusion matrix: truth in rows, predictions in columns")
    canvas.rect(margin, margin, side, side, "ground")
    totals = np.maximum(confusion.sum(axis=1), 1)
    for row, column in np.argwhere(confusion):
        amount = int(confusion[row, column])
        share = amount / totals[row]
        kind = "right" if row == column else "wrong"
        opacity = 0.08 + 0.92 * share if kind == "right" else 0.16 + 0.84 * math.sqrt(share)
        title = f"{labels[row]} called {labels[column]}: {amount} of {totals[row]} ({percent(share)})"
        x, y = margin + column * cell, margin + row * cell
        gap = 1.0 if cell > 14 else 0.4
        data = f'data-t="{row}" data-p="{column}"'
        canvas.rect(x + gap / 2, y + gap / 2, cell - gap, cell - gap, f"cell {kind}", opacity, cell / 12, title, data)
        if num <= 24:
            strong = " strong" if opacity > 0.55 else ""
            canvas.text(
                x + cell / 2, y + cell / 2 + 4, str(amount), f"amount{strong}", "middle", size=min(12, cell * 0.45)
            )
    for index, label in enumerate(labels):
        middle = margin + (index + 0.5) * cell
        canvas.text(margin - 5, middle + size * 0.36, shortened(label, 18), "tick", "end", size=size)
        if longest * size * 0.6 < cell:
            canvas.text(middle, margin - 6, label, "tick", "middle", size=size)
        else:
            canvas.text(middle + size * 0.36, margin - 5, shortened(label, 18), "tick", turn=-90, size=size)
    canvas.text(margin + side / 2, margin + side + 20, "predicted →  (truth in rows)", "name", "middle")
    return canvas.render()


def class_bar(recall: float | None, span: Sequence[float] | None) -> Markup:
    """A table cell's bar with its interval."""
    if recall is None or span is None:
        return Markup("")
    canvas = Canvas(100, 12, f"recall {number(recall, 2)}, interval {number(span[0], 2)} to {number(span[1], 2)}")
    canvas.rect(0, 3, 100, 6, "track", radius=2)
    canvas.rect(0, 3, 100 * recall, 6, f"bar {SUBJECT_COLOR}", radius=2)
    canvas.line(100 * span[0], 6, 100 * span[1], 6, "whisker")
    return canvas.render()


def _round_range(shares: Sequence[float], step: float) -> tuple[float, float]:
    """A range of shares from one multiple of ``step`` to another that leaves a little room, inside 0 to 1."""
    low, high = (min(shares) - 0.01) / step, (max(shares) + 0.01) / step
    return max(0.0, math.floor(low) * step), min(1.0, math.ceil(high) * step)
