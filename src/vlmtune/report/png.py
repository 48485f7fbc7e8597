"""The same charts as PNG, for slides and for report.md. matplotlib without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlmtune.report.charts import SUBJECT_COLOR, heatmap_classes
from vlmtune.report.files import palette
from vlmtune.report.numbers import count, percent, shortened
from vlmtune.report.svg import smoothed, thinned

_COLORS = palette()
_INK, _GRID = _COLORS["soft"], _COLORS["line"]
_DPI = 150


def write_charts(folder: Path, view: dict[str, Any]) -> list[Path]:
    """Write the charts that have data; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if view["headline"]:
        written.append(_bars(folder / "accuracy.png", view["runs"], view.get("chance")))
    if view["training"]:
        written.append(_training(folder / "training.png", view["training"]))
    if view["task"] != "classify":
        return written
    if view["main"]:
        written.append(_confusion(folder / "confusion.png", view["main"]))
        if view["main"]["reliability"]:
            written.append(_reliability(folder / "reliability.png", view))
    if view["baselines"]:
        written.append(_bars(folder / "baselines.png", view["baselines"]["rows"], view["chance"]))
    if view["checkpoint_curve"]:
        written.append(checkpoint_curve(folder / "checkpoint_curve.png", view["checkpoint_curve"]))
    return written


def checkpoint_curve(path: Path, figures: dict[str, Any]) -> Path:
    """Accuracy and loss of every checkpoint, as `charts.checkpoint_curve` draws them."""
    points, logged = figures["checkpoints"], figures["during_training"]
    figure, axes = _figure(7.2, 4.8, rows=2)
    tint, steps = _COLORS[SUBJECT_COLOR], [point["step"] for point in points]
    for axis, key, name in zip(axes, ("accuracy", "nll"), ("accuracy", "loss (NLL)"), strict=True):
        behind = [(line["step"], line["loss" if key == "nll" else key]) for line in logged]
        if behind:
            axis.plot(*zip(*behind, strict=True), color=_COLORS["s0"], linewidth=1, linestyle=(0, (2, 2)))
        axis.plot(steps, [point[key] for point in points], color=tint, linewidth=1.8, marker="o", markersize=4)
        axis.axvline(figures["best_step"], color=tint, linewidth=0.8, linestyle=(0, (3, 3)))
        if figures["stop_step"] != figures["best_step"]:
            axis.axvline(figures["stop_step"], color=_COLORS["s3"], linewidth=0.8, linestyle=(0, (3, 3)))
        axis.set_xlim(0, 1.02 * figures["num_steps"])
        axis.set_ylabel(name, fontsize=9, color=_INK)
    for average in figures.get("averages", []):
        axes[0].axhline(average["accuracy"], color=_INK, linewidth=0.8, linestyle=(0, (3, 3)), label=average["name"])
        axes[0].legend(frameon=False, fontsize=8.5)
    best = next(point for point in points if point["is_best"])
    axes[0].errorbar(steps, [p["accuracy"] for p in points], yerr=_errors(points), fmt="none", ecolor=tint, capsize=3)
    axes[0].plot(best["step"], best["accuracy"], "o", markersize=11, fillstyle="none", color=tint)
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    told = f"best: step {best['step']}"
    if figures["stop_step"] != figures["best_step"]:
        told += f"; not significantly worse from step {figures['stop_step']} on (brown)"
    axes[1].set_xlabel(f"optimizer step · {told}", fontsize=9, color=_INK)
    axes[1].set_ylim(bottom=0)
    return _save(figure, path)


def learning_curve(path: Path, figures: dict[str, Any]) -> Path:
    """Accuracy against training images, as `charts.learning_curve` draws it."""
    points = figures["points"]
    figure, (axis,) = _figure(7.2, 4.0)
    nums, means = [p["num_train"] for p in points], [p["accuracy"] for p in points]
    if figures["base"]:
        axis.axhline(figures["base"]["accuracy"], color=_INK, linewidth=0.8, linestyle=(0, (3, 3)), label="untrained")
    for index, point in enumerate(points):
        accuracies = [run["accuracy"] for run in point["runs"]]
        label = "one seed" if not index else None
        axis.plot([point["num_train"]] * len(accuracies), accuracies, ".", color=_COLORS["s3"], alpha=0.6, label=label)
    axis.errorbar(
        nums,
        means,
        yerr=_errors(points, "interval"),
        color=_COLORS[SUBJECT_COLOR],
        linewidth=1.8,
        marker="o",
        markersize=5,
        capsize=4,
        label="mean, 95% interval",
    )
    axis.set_xscale("log")
    axis.set_xticks(nums, [count(num) for num in nums])
    axis.minorticks_off()
    axis.set_ylim(top=min(1.0, axis.get_ylim()[1]))
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axis.set_xlabel("training images (logarithmic)", fontsize=9, color=_INK)
    axis.set_ylabel("test accuracy", fontsize=9, color=_INK)
    axis.legend(frameon=False, fontsize=8.5)
    return _save(figure, path)


def search_history(path: Path, search: dict[str, Any]) -> Path:
    """Validation accuracy of every trial in the order they ran, and the best so far."""
    trials = sorted((t for t in search["trials"] if t["accuracy"] is not None), key=lambda trial: trial["number"])
    figure, (axis,) = _figure(7.2, 4.0)
    tint = _COLORS[SUBJECT_COLOR]
    kinds = (("finished", "trained to the end", {"color": tint}), ("pruned", "pruned", {"mec": tint, "mfc": "white"}))
    for outcome, name, style in kinds:
        points = [(trial["number"], trial["accuracy"]) for trial in trials if trial["outcome"] == outcome]
        if points:
            axis.plot(*zip(*points, strict=True), "o", markersize=6, label=name, zorder=3, **style)
    finished = [trial for trial in trials if trial["outcome"] == "finished"]
    if finished:
        numbers = [trial["number"] for trial in finished]
        best = np.maximum.accumulate([trial["accuracy"] for trial in finished])
        last = max(trial["number"] for trial in search["trials"])
        axis.step(
            [*numbers, last], [*best, best[-1]], where="post", color=_COLORS["s3"], linewidth=1.4, label="best so far"
        )
        ring = next(trial for trial in finished if trial["number"] == search["best"])
        axis.plot(ring["number"], ring["accuracy"], "o", markersize=12, fillstyle="none", color=tint)
    axis.xaxis.get_major_locator().set_params(integer=True)
    low, high = axis.get_ylim()
    digits = 1 if high - low < 0.05 else 0
    axis.yaxis.set_major_formatter(lambda value, _: percent(value, digits))
    axis.set_xlabel("trial", fontsize=9, color=_INK)
    axis.set_ylabel(f"validation accuracy ({count(search['num_validation'])} images)", fontsize=9, color=_INK)
    axis.legend(frameon=False, fontsize=8.5, loc="best")
    return _save(figure, path)


def search_importance(path: Path, importance: dict[str, float]) -> Path:
    """The share that each key explains, the largest on top."""
    ranked = sorted(importance.items(), key=lambda item: item[1], reverse=True)
    figure, (axis,) = _figure(6.4, 0.42 * len(ranked) + 0.9)
    axis.barh(range(len(ranked)), [share for _, share in ranked], 0.6, color=_COLORS[SUBJECT_COLOR])
    for row, (_, share) in enumerate(ranked):
        axis.text(share + 0.012, row, percent(share, 0), va="center", fontsize=9, color=_INK)
    axis.set(xlim=(0, 1.12), yticks=range(len(ranked)), yticklabels=[_plain(key) for key, _ in ranked])
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel("share of the variance of validation accuracy", fontsize=9, color=_INK)
    return _save(figure, path)


def _errors(points: list[dict[str, Any]], key: str = "accuracy_interval") -> list[list[float]]:
    """Distances from the accuracy down and up to the interval's ends, as matplotlib wants them."""
    pairs = [(p["accuracy"] - p[key][0], p[key][1] - p["accuracy"]) for p in points]
    return [[max(0.0, end) for end in ends] for ends in zip(*pairs, strict=True)]


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(rows, columns))
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(_GRID)
        axis.tick_params(colors=_INK, labelsize=8.5, length=0)
        axis.grid(True, color=_GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def _bars(path: Path, entries: list[dict[str, Any]], chance: float | None) -> Path:
    figure, (axis,) = _figure(6.4, 0.5 * len(entries) + 0.9)
    for row, entry in enumerate(entries):
        accuracy = entry["accuracy"] or 0.0
        low, high = entry["accuracy_interval"] or (accuracy, accuracy)
        axis.barh(row, accuracy, 0.55, color=_COLORS[entry["series"]])
        axis.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], color=_INK, capsize=3, linewidth=1.2)
        axis.text(min(high + 0.012, 1.02), row, percent(accuracy), va="center", fontsize=9, color=_INK)
    if chance:
        axis.axvline(chance, color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set(xlim=(0, 1.12), yticks=range(len(entries)), yticklabels=[_plain(entry["name"]) for entry in entries])
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel("accuracy, 95% interval" + ("; dashed: chance" if chance else ""), fontsize=9, color=_INK)
    return _save(figure, path)


def _training(path: Path, training: list[dict[str, Any]]) -> Path:
    figure, (left, right) = _figure(9, 3.2, 2)
    for run in training:
        tint = _COLORS[run["series"]]
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
    blues = LinearSegmentedColormap.from_list("right", ["white", _COLORS["s2"]])
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
                color=_COLORS[run["series"]],
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
    """As much as there is room for; a dollar sign would start mathematics."""
    return shortened(name, 32).replace("$", r"\$")


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path
