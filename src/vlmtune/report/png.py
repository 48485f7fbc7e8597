"""The same charts as PNG, for slides and for report.md. matplotlib without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlmtune.report.charts import heatmap_classes
from vlmtune.report.svg import smoothed, thinned
from vlmtune.report.wording import percent

# The light theme of style.css.
_COLOURS = {"s0": "#a3abb5", "s1": "#7aa5d8", "s2": "#2563a8", "s3": "#c07a2c", "s4": "#4c9a7a", "s5": "#8e6bb0"}
_INK, _GRID = "#3c4450", "#e6e8eb"
_DPI = 150


def write_charts(folder: Path, view: dict[str, Any]) -> list[Path]:
    """Write the charts that have data; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if view["runs"]:
        written.append(_accuracy(folder / "accuracy.png", view))
        written.append(_confusion(folder / "confusion.png", view["main"]))
        if view["main"]["reliability"]:
            written.append(_reliability(folder / "reliability.png", view))
    if view["training"]:
        written.append(_training(folder / "training.png", view["training"]))
    return written


def _figure(width: float, height: float, columns: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, columns))
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(_GRID)
        axis.tick_params(colors=_INK, labelsize=8.5, length=0)
        axis.grid(True, color=_GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def _accuracy(path: Path, view: dict[str, Any]) -> Path:
    runs = view["runs"]
    figure, (axis,) = _figure(6.4, 0.55 * len(runs) + 0.9)
    for row, run in enumerate(runs):
        accuracy = run["metrics"]["accuracy"] or 0.0
        low, high = run["metrics"]["accuracy_interval"] or (accuracy, accuracy)
        axis.barh(row, accuracy, 0.55, color=_COLOURS[run["series"]])
        axis.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], color=_INK, capsize=3, linewidth=1.2)
        axis.text(min(high + 0.012, 1.02), row, percent(accuracy), va="center", fontsize=9, color=_INK)
    if view["chance"]:
        axis.axvline(view["chance"], color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set(xlim=(0, 1.12), yticks=range(len(runs)), yticklabels=[_plain(run["name"]) for run in runs])
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel("accuracy, 95% interval; dashed: chance", fontsize=9, color=_INK)
    return _save(figure, path)


def _training(path: Path, training: list[dict[str, Any]]) -> Path:
    figure, (left, right) = _figure(9, 3.2, 2)
    for run in training:
        tint = _COLOURS[run["series"]]
        if run["loss"]:
            points = thinned(run["loss"])
            left.plot(*zip(*points, strict=True), color=tint, linewidth=0.7, alpha=0.35)
            left.plot(*zip(*smoothed(points), strict=True), color=tint, linewidth=1.6, label=_plain(run["name"]))
        if run["validation"]:
            right.plot(*zip(*run["validation"], strict=True), color=tint, linewidth=1.6, marker="o", markersize=3)
    left.set_xlabel("optimizer step", fontsize=9, color=_INK)
    left.set_ylabel("training loss", fontsize=9, color=_INK)
    left.set_ylim(bottom=0)
    right.set_xlabel("optimizer step", fontsize=9, color=_INK)
    right.set_ylabel("validation accuracy", fontsize=9, color=_INK)
    right.set_ylim(top=1.0)
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    if len(training) > 1:
        left.legend(frameon=False, fontsize=8.5)
    return _save(figure, path)


def _confusion(path: Path, figures: dict[str, Any]) -> Path:
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(figures["confusion"], dtype=np.int64)
    rows = heatmap_classes(counts)
    labels = [_plain(figures["per_class"][row]["label"]) for row in rows]
    counts = counts[np.ix_(rows, rows)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(11.0, max(4.4, 0.32 * len(rows) + 1.6))
    figure, (axis,) = _figure(side, side)
    blues = LinearSegmentedColormap.from_list("right", ["white", _COLOURS["s2"]])
    axis.imshow(np.sqrt(share), cmap=blues, vmin=0, vmax=1)
    size = 8.5 if len(rows) <= 30 else max(3.5, 300 / len(rows))
    axis.set_xticks(range(len(rows)), labels, rotation=90, fontsize=size)
    axis.set_yticks(range(len(rows)), labels, fontsize=size)
    axis.grid(False)
    if len(rows) <= 24:
        for row, column in np.argwhere(counts):
            tint = "white" if share[row, column] > 0.3 else _INK
            axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=7.5, color=tint)
    axis.set_xlabel("predicted", fontsize=9, color=_INK)
    axis.set_ylabel("truth", fontsize=9, color=_INK)
    return _save(figure, path)


def _reliability(path: Path, view: dict[str, Any]) -> Path:
    figure, (axis,) = _figure(4.2, 4.0)
    axis.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
    for run in view["runs"]:
        bins = run["metrics"]["reliability"]
        if bins and (run is view["runs"][0] or run is view["runs"][-1]):
            x = [b["confidence"] for b in bins]
            y = [b["accuracy"] for b in bins]
            axis.plot(
                x,
                y,
                color=_COLOURS[run["series"]],
                marker="o",
                markersize=3.5,
                linewidth=1.2,
                label=_plain(run["name"]),
            )
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.set_xlabel("stated probability", fontsize=9, color=_INK)
    axis.set_ylabel("share right", fontsize=9, color=_INK)
    axis.legend(frameon=False, fontsize=8.5)
    return _save(figure, path)


def _plain(name: str) -> str:
    """A dollar sign would start mathematics."""
    return name.replace("$", r"\$")


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path
