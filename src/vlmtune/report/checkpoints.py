"""Every checkpoint of a run: the best point to stop, in words, as a section of the report and as files.

In: the figures of `evaluate.curves`. Called by `vlmtune checkpoints`, and by the report of a run that has them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmtune.evaluate.statistics import SIGNIFICANCE
from vlmtune.report import numbers as w
from vlmtune.report.charts import SUBJECT_COLOR, Canvas, Chart, Key, Plot, round_range
from vlmtune.report.numbers import count, interval, number, percent
from vlmtune.report.pages import write_report
from vlmtune.report.section import ColumnOf, Figures, Report, Section, Table, limited, table
from vlmtune.report.sources import Results


def section(results: Results) -> Section | None:
    """The curve of the run that the report is about, if it was measured."""
    curve = results.run.checkpoint_curve if results.run else {}
    return curve_section(curve) if curve else None


def curve_section(curve: Figures) -> Section:
    """Advice, chart and table of one curve."""
    legend = [Key(SUBJECT_COLOR, "checkpoint, 95% interval")]
    if curve["during_training"]:
        legend.append(Key("s0", "as validated during training"))
    chart = Chart(draw_curve(curve), legend, max_width=820, min_width=560)
    return Section("checkpoints", "Checkpoints", advice(curve), chart=chart, table=curve_table(curve), figures=curve)


def write_checkpoint_curve(folder: Path, curve: dict[str, Any]) -> Path:
    """Write SPLIT.html, .md, .json and the chart of a curve into a folder; returns the path of the page.

    Args:
        curve: of `evaluate.curves.measure_checkpoint_curve`, with ``run`` and ``during_training`` added.
    """
    split = str(curve["split"])
    section = replace(curve_section(curve), id=split, sentences=(), figures=None)
    report = Report(f"Checkpoints of {curve['run']}", "vlmtune checkpoints", advice(curve), [section], figures=curve)
    return write_report(folder / f"{split}.html", report)


def curve_table(curve: Figures) -> Table:
    """Every checkpoint and every average of checkpoints, with its paired test against the best checkpoint."""
    points = [*curve["checkpoints"], *curve["averages"]]
    columns: list[ColumnOf] = [
        ("step", lambda point: count(point["step"]) if "step" in point else point["name"]),
        ("#images", lambda point: limited(curve["limit"])(curve["num_examples"])),
        ("#accuracy", "accuracy", percent),
        ("~95% interval", "accuracy_interval", interval),
        ("#NLL", "nll", number),
        ("#ECE", "ece", percent),
        ("#points from the best", lambda point: "best" if point["is_best"] else w.points(point["difference"])),
        ("~95% interval", "difference_interval", w.points_interval),
        ("#p, Holm", "p_holm", w.p_value),
        ("worse than the best", _verdict),
        ("#time", "seconds", w.duration),
    ]
    return table(points, columns, main=[point["is_best"] for point in points].index(True))


def _verdict(point: Figures) -> str:
    return "–" if point["is_best"] else "significantly" if point["is_worse"] else "not significantly"


def draw_curve(figures: Figures) -> Canvas:
    """Accuracy and loss of every checkpoint against step; what training itself measured is dashed behind it, and so is
    an average of checkpoints, which belongs to no step.
    """
    points, logged, averages = figures["checkpoints"], figures["during_training"], figures["averages"]
    canvas = Canvas(680, 440, "Accuracy and loss of each checkpoint against step")
    steps = (0.0, float(figures["num_steps"]))
    measured = [(p["step"], p["accuracy"], *p["accuracy_interval"]) for p in points]
    shares = [share for _, _, low, high in measured for share in (low, high)]
    shares += [entry["accuracy"] for entry in (*logged, *averages)]
    upper = Plot("", steps, round_range(shares, 0.05), canvas=canvas, band=(14, 236))
    upper.axes("", "accuracy", count, lambda v: percent(v, 0))
    upper.curve([(line["step"], line["accuracy"]) for line in logged], "curve dashed s0")
    for average in averages:
        upper.level(average["accuracy"], f"{average['name']}: {percent(average['accuracy'])}")
    upper.curve([(step, accuracy) for step, accuracy, *_ in measured], f"curve {SUBJECT_COLOR}")
    for step, accuracy, low, high in measured:
        upper.whisker(step, low, high, f"error strong {SUBJECT_COLOR}")
        title = f"step {step:g}: {percent(accuracy)} ({interval([low, high])})"
        upper.dot(step, accuracy, 3.6, f"dot {SUBJECT_COLOR}", title)
    losses = [(p["step"], p["nll"]) for p in points if p["nll"] is not None]
    background = [(line["step"], line["loss"]) for line in logged if line.get("loss") is not None]
    top = max((y for _, y in [*losses, *background] if math.isfinite(y)), default=1.0)
    lower = Plot("", steps, (0, top * 1.08), canvas=canvas, band=(266, 396))
    lower.axes("optimizer step", "loss (NLL)", count, lambda v: f"{v:g}")
    lower.curve([p for p in background if math.isfinite(p[1])], "curve dashed s0")
    lower.curve(losses, f"curve {SUBJECT_COLOR}")
    for step, loss in losses:
        lower.dot(step, loss, 3.2, f"dot {SUBJECT_COLOR}", f"step {step:g}: {number(loss)}")
    for step, word, css in ((figures["best_step"], "best", "s2"), (figures["stop_step"], "sufficed", "s3")):
        if word == "best" or step != figures["best_step"]:
            accuracy = next(p["accuracy"] for p in points if p["step"] == step)
            upper.dot(step, accuracy, 8, f"ring {css}", f"{word}: step {step:g}")
            for top, bottom in ((upper.y(accuracy) + 9, 241), (260, lower.bottom)):  # the labels are in the gap
                canvas.line(upper.x(step), top, upper.x(step), bottom, "ideal")
            anchor = "end" if step > steps[1] * 0.9 else "middle"
            canvas.text(upper.x(step), 254, f"{word}, step {step:g}", "tick", anchor)
    return canvas


def advice(curve: Figures) -> list[str]:
    """Advice on where to stop, with what is significant."""
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
    sentences += [_average_sentence(average, best) for average in curve["averages"]]
    if len(points) > 1:
        sentences.append(
            "The best of several measurements is partly the luckiest one; not significant means that these images "
            "do not tell, not that there is no difference."
        )
    if curve["split"] == "test":
        sentences.append("A checkpoint chosen here must not be reported with its accuracy here: choose on validation.")
    return sentences + w.limit_sentences(curve["limit"])


def _average_sentence(average: Figures, best: Figures) -> str:
    change, span = average["difference"], w.points_interval(average["difference_interval"])
    verdict = "not significantly different from"
    if average["p_holm"] < SIGNIFICANCE:
        verdict = "significantly better than" if change > 0 else "significantly worse than"
    return (
        f"The averaged checkpoint, {average['name']}, is right on {w.percent(average['accuracy'])}: {verdict} step "
        f"{w.count(best['step'])} ({w.points(change)} points, 95% interval {span}; {w.p_value(average['p_holm'])} "
        "Holm-adjusted)."
    )


def _saved(point: Figures, curve: Figures) -> str:
    return w.percent(1 - point["step"] / curve["num_steps"], 0)


def _cost(point: Figures) -> str:
    lost = -point["difference"]
    low, high = point["difference_interval"]
    span = f"95% interval {w.points_interval([-high, -low])}; {w.p_value(point['p_holm'])} Holm-adjusted"
    if lost <= 0:
        return f"no accuracy ({span})"
    return f"{100 * lost:.1f} points ({span}): not significant"
