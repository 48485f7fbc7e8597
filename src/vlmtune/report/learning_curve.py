"""A learning curve in words, and as learning_curve.html, .md, .json and charts/. Called by `vlmtune learning-curve`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from vlmtune.report import numbers as w
from vlmtune.report.charts import SUBJECT_COLOR, Canvas, Chart, Key, Plot, round_range
from vlmtune.report.numbers import count, interval, percent
from vlmtune.report.pages import write_report
from vlmtune.report.section import ColumnOf, Figures, Headline, Report, Section, Table, limited, table

PAGE = "learning_curve.html"


def write_learning_curve(folder: Path, curve: Figures) -> Path:
    """Write the files of a learning curve; returns the path of the page.

    Args:
        curve: of `evaluate.curves.measure_learning_curve`, with ``name``, ``source``, ``model`` and
            ``num_planned`` added.
    """
    legend = [Key(SUBJECT_COLOR, "mean, 95% interval"), Key("s3", "one seed")]
    chart = Chart(draw_learning_curve(curve), legend, max_width=820, min_width=560)
    sections = [
        Section("curve", "Curve", [_intervals(curve)], chart=chart, table=point_table(curve)),
        Section("steps", "Steps", ["From each number of images to the next."], table=step_table(curve)),
        Section("runs", "Runs", ["Each is an ordinary run folder with its own report."], table=run_table(curve)),
    ]
    report = Report(
        title=str(curve["name"]),
        eyebrow="vlmtune learning-curve: accuracy by training images",
        summary=findings(curve),
        sections=sections,
        headlines=_headlines(curve),
        footer=f"{curve['source']}, split {curve['split']}.",
        figures=curve,
    )
    return write_report(folder / PAGE, report)


def _headlines(curve: Figures) -> list[Headline]:
    last = curve["points"][-1]
    caption = f"with {w.count(last['num_train'])} training images, 95% interval {w.interval(last['interval'])}"
    headlines = [Headline(w.percent(last["accuracy"]), caption)]
    if len(curve["points"]) > 1:
        step = curve["steps"][-1]
        caption = f"points from {w.count(step['num_first'])} to {w.count(step['num_second'])} images"
        verdict = "significant" if step["is_significant"] else "not significant"
        headlines.append(Headline(w.points(step["difference"]), caption, verdict))
    return headlines


def findings(curve: Figures) -> list[str]:
    """The curve in sentences: what each step brings, and whether that is significant."""
    points = curve["points"]
    last = points[-1]
    sentences = [
        f"Trained on {w.count(last['num_train'])} images, {curve['model']} is right on {w.percent(last['accuracy'])} "
        f"of {w.count(curve['num_examples'])} {curve['split']} images (95% interval {w.interval(last['interval'])}; "
        f"mean of {w.counted(len(last['runs']), 'seed')})."
    ]
    for step in curve["steps"]:
        start = "no training" if not step["num_first"] else w.count(step["num_first"])
        verdict = "significant" if step["is_significant"] else "not significant"
        sentences.append(
            f"From {start} to {w.count(step['num_second'])} images: {w.points(step['difference'])} points "
            f"(95% interval {w.points_interval(step['interval'])}), {verdict}."
        )
    if len(curve["seeds"]) == 1:
        sentences.append(
            "With one seed the intervals do not cover another draw of training images: use --seeds 3 or more."
        )
    finished = sum(len(point["runs"]) for point in points)
    if finished < curve["num_planned"]:
        sentences.append(f"{finished} of {curve['num_planned']} runs are finished: run the command again to go on.")
    return sentences + w.limit_sentences(curve["limit"])


def _intervals(curve: Figures) -> str:
    """What the intervals cover."""
    if len(curve["seeds"]) == 1:
        return "Intervals: 95% over the draw of test images (Wilson)."
    return (
        "Intervals: 95% over seeds (Student's t: training images drawn, their order, LoRA's start) and over the draw "
        "of test images (Wilson), combined. Significance is Bonferroni-adjusted over the steps. Keys that the "
        "experiment leaves out are decided for each number of images."
    )


def point_table(curve: Figures) -> Table:
    """Accuracy by the number of training images: one row each."""

    def extreme(choose: Callable[[Iterable[float]], float]) -> Callable[[Figures], float]:
        return lambda point: choose(run["accuracy"] for run in point["runs"])

    columns: list[ColumnOf] = [
        ("share of all", lambda point: f"{100 * point['fraction']:g}%"),
        ("#training images", "num_train", count),
        ("#test images", lambda point: limited(curve["limit"])(curve["num_examples"])),
        ("#seeds", lambda point: count(len(point["runs"]))),
        ("#mean accuracy", "accuracy", percent),
        ("~95% interval", "interval", interval),
        ("~over seeds", "seed_interval", interval),
        ("~over test images", "test_interval", interval),
        ("#lowest", extreme(min), percent),
        ("#highest", extreme(max), percent),
    ]
    return table(curve["points"], columns)


def step_table(curve: Figures) -> Table:
    """What each step of a learning curve brings."""
    columns: list[ColumnOf] = [
        ("from", lambda step: count(step["num_first"]) if step["num_first"] else "not trained"),
        ("#to training images", "num_second", count),
        ("#test images", lambda step: limited(curve["limit"])(curve["num_examples"])),
        ("#points", "difference", w.points),
        ("~95% interval", "interval", w.points_interval),
        ("significant", "is_significant", w.yes_no),
    ]
    return table(curve["steps"], columns)


def run_table(curve: Figures) -> Table:
    """Every run of a learning curve."""
    columns: list[ColumnOf] = [
        ("run", "folder"),
        ("#training images", "num_train", count),
        ("#seed", "seed", count),
        ("#test images", lambda run: curve["num_examples"], limited(curve["limit"])),
        ("#accuracy", "accuracy", percent),
        ("~95% interval", "accuracy_interval", interval),
        ("#steps", "steps", count),
        ("#training time", "seconds", w.duration),
    ]
    return table([run for point in curve["points"] for run in point["runs"]], columns, is_sortable=True)


def draw_learning_curve(figures: Figures) -> Canvas:
    """Test accuracy against the number of training images (logarithmic), a dot per seed, bars for the interval."""
    points = figures["points"]
    nums = [math.log10(p["num_train"]) for p in points]
    margin = 0.08 * (max(nums) - min(nums)) or 0.5
    base = figures["base"]
    seen = [end for p in points for end in p["interval"]] + ([base["accuracy"]] if base else [])
    x_range = (min(nums) - margin, max(nums) + margin)
    plot = Plot("Accuracy against training images", x_range, round_range(seen, 0.1), 680, 380)
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
        plot.dot(x, point["accuracy"], 4.4, f"dot {SUBJECT_COLOR}", title)
    return plot.canvas
