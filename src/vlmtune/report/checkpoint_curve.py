"""A checkpoint curve in words, as a chart and as files.

Called by `vlmtune checkpoints`, and by the report of a run that has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtune.evaluate.statistics import SIGNIFICANCE
from vlmtune.report import charts, png, tables
from vlmtune.report import numbers as w
from vlmtune.report.files import palette, read_json, style, write_json, write_text
from vlmtune.report.svg import standalone

FOLDER = "checkpoint_curve"


def write_checkpoint_curve(folder: Path, curve: dict[str, Any]) -> Path:
    """Write SPLIT.json, .md, .svg and .png of a checkpoint curve into a folder; returns the path of the JSON file.

    Args:
        curve: of `evaluate.curves.measure_checkpoint_curve`, with ``run`` and ``during_training`` added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / str(curve["split"])
    write_json(stem.with_suffix(".json"), {**curve, "advice": advice(curve)})
    write_text(stem.with_suffix(".svg"), standalone(charts.checkpoint_curve(curve), style("chart.css"), palette()))
    png.checkpoint_curve(stem.with_suffix(".png"), curve)
    parts = [
        f"# Checkpoints of {curve['run']}",
        " ".join(advice(curve)),
        f"![Accuracy and loss by step]({stem.name}.png)",
        tables.checkpoints(curve).markdown(),
    ]
    write_text(stem.with_suffix(".md"), "\n\n".join(parts) + "\n")
    return stem.with_suffix(".json")


def read_checkpoint_curve(run: Path) -> dict[str, Any]:
    """A run's checkpoint curve, on validation where there is one; empty where there is none.

    Raises RunFolderError for a damaged file.
    """
    for split in ("validation", "test", "train"):
        found = read_json(run / FOLDER / f"{split}.json")
        if found:
            return found
    return {}


def advice(curve: dict[str, Any]) -> list[str]:
    """Where to stop, in sentences that say what is significant."""
    points = {point["step"]: point for point in curve["checkpoints"]}
    best, stop = points[curve["best_step"]], points[curve["stop_step"]]
    last = curve["checkpoints"][-1]
    sentences = [
        f"Of {w.counted(len(points), 'checkpoint')}, step {w.count(best['step'])} is the best on "
        f"{w.count(curve['num_examples'])} {curve['split']} images: {w.percent(best['accuracy'])} "
        f"(95% interval {w.interval(best['accuracy_interval'])})."
    ]
    if len(points) == 1:
        sentences.append("One checkpoint makes no curve: train with a larger train.keep_checkpoints to keep more.")
    elif stop is not best:
        sentences.append(
            f"Stopping at step {w.count(stop['step'])} would have saved {_saved(stop, curve)} of the steps and cost "
            f"{_cost(stop)}."
        )
        near = next(
            point for point in curve["checkpoints"] if point["difference"] is None or point["difference"] >= -0.01
        )
        if stop["step"] < near["step"] < best["step"]:
            sentences.append(f"From step {w.count(near['step'])} on it was within a point of the best.")
    elif best is not curve["checkpoints"][0]:
        sentences.append("Every earlier checkpoint is significantly worse: stopping earlier would have cost accuracy.")
    if last is not best and stop["step"] <= best["step"]:
        verdict = "significantly worse" if last["is_worse"] else "not significantly worse"
        sentences.append(
            f"The last checkpoint, step {w.count(last['step'])}, is {verdict} than the best: the last "
            f"{_saved(best, curve)} of the steps brought nothing."
        )
    sentences += [_average_sentence(average, best) for average in curve.get("averages", [])]
    if len(points) > 1:
        sentences.append(
            "The best of several measurements is partly the luckiest one; not significant means that these images "
            "do not tell, not that there is no difference."
        )
    if curve["split"] == "test":
        sentences.append("A checkpoint chosen here must not be reported with its accuracy here: choose on validation.")
    if curve["limit"]:
        sentences.append(f"Only {w.count(curve['limit'])} images were measured, by request (limit).")
    return sentences


def _average_sentence(average: dict[str, Any], best: dict[str, Any]) -> str:
    change, span = average["difference"], w.points_interval(average["difference_interval"])
    verdict = "not significantly different from"
    if average["p_holm"] < SIGNIFICANCE:
        verdict = "significantly better than" if change > 0 else "significantly worse than"
    return (
        f"The averaged checkpoint, {average['name']}, is right on {w.percent(average['accuracy'])}: {verdict} step "
        f"{w.count(best['step'])} ({w.points(change)} points, 95% interval {span}; {w.p_value(average['p_holm'])} "
        "Holm-adjusted)."
    )


def _saved(point: dict[str, Any], curve: dict[str, Any]) -> str:
    return w.percent(1 - point["step"] / curve["num_steps"], 0)


def _cost(point: dict[str, Any]) -> str:
    lost = -point["difference"]
    low, high = point["difference_interval"]
    span = f"95% interval {w.points_interval([-high, -low])}; {w.p_value(point['p_holm'])} Holm-adjusted"
    if lost <= 0:
        return f"no accuracy ({span})"
    return f"{100 * lost:.1f} points ({span}): not significant"
