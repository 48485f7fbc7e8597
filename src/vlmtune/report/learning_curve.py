"""A learning curve in words, and as learning_curve.json, .md, .html and charts/.

Called by `vlmtune learning-curve`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtune.report import charts, png
from vlmtune.report import numbers as w
from vlmtune.report.files import palette, style, write_json, write_text
from vlmtune.report.page import to_html
from vlmtune.report.svg import standalone
from vlmtune.report.table import Cell, Table, limited, table, without_empty

PAGE = "learning_curve.html"


def write_learning_curve(folder: Path, curve: dict[str, Any]) -> Path:
    """Write the files of a learning curve; returns the path of the page.

    Args:
        curve: of `evaluate.curves.measure_learning_curve`, with ``name``, ``source``, ``model`` and
            ``num_planned`` added.
    """
    (folder / "charts").mkdir(parents=True, exist_ok=True)
    told = findings(curve)
    chart = charts.learning_curve(curve)
    shown = {
        "points": point_table(curve),
        "steps": step_table(curve),
        "runs": run_table(curve),
    }
    write_json(folder / "learning_curve.json", {**curve, "findings": told})
    write_text(folder / "charts" / "learning_curve.svg", standalone(chart, style("chart.css"), palette()))
    png.learning_curve(folder / "charts" / "learning_curve.png", curve)
    parts = [
        f"# {w.plain(curve['name'])}: accuracy by training images",
        " ".join(w.plain(sentence) for sentence in told),
        "![Accuracy against training images](charts/learning_curve.png)",
        shown["points"].markdown(),
        "## From each number of images to the next",
        shown["steps"].markdown(),
        "## Runs",
        shown["runs"].markdown(),
        f"_{intervals(curve)}_",
    ]
    write_text(folder / "learning_curve.md", "\n\n".join(parts) + "\n")
    write_text(
        folder / PAGE,
        to_html(
            "learning_curve.html.jinja",
            curve=curve,
            findings=told,
            intervals=intervals(curve),
            chart=chart,
            tables=shown,
        ),
    )
    return folder / PAGE


def findings(curve: dict[str, Any]) -> list[str]:
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
    if curve["limit"]:
        sentences.append(f"Only {w.count(curve['limit'])} images were measured, by request (limit).")
    return sentences


def intervals(curve: dict[str, Any]) -> str:
    """What the intervals cover."""
    if len(curve["seeds"]) == 1:
        return "Intervals: 95% over the draw of test images (Wilson)."
    return (
        "Intervals: 95% over seeds (Student's t: training images drawn, their order, LoRA's start) and over the draw "
        "of test images (Wilson), combined. Significance is Bonferroni-adjusted over the steps. Keys that the "
        "experiment leaves out are decided for each number of images."
    )


def point_table(curve: dict[str, Any]) -> Table:
    """Accuracy by the number of training images: one row each."""
    columns = (
        "share of all | #training images | #test images | #seeds | #mean accuracy | ~95% interval "
        "| ~over seeds | ~over test images | #lowest | #highest"
    )
    rows = []
    for point in curve["points"]:
        accuracies = [run["accuracy"] for run in point["runs"]]
        rows.append(
            [
                f"{100 * point['fraction']:g}%",
                w.count(point["num_train"]),
                limited(curve["num_examples"], curve["limit"]),
                w.count(len(accuracies)),
                w.percent(point["accuracy"]),
                w.interval(point["interval"]),
                w.interval(point["seed_interval"]),
                w.interval(point["test_interval"]),
                w.percent(min(accuracies)),
                w.percent(max(accuracies)),
            ]
        )
    return without_empty(table(columns, rows))


def step_table(curve: dict[str, Any]) -> Table:
    """What each step of a learning curve brings."""
    rows = [
        [
            w.count(step["num_first"]) if step["num_first"] else "not trained",
            w.count(step["num_second"]),
            limited(curve["num_examples"], curve["limit"]),
            w.points(step["difference"]),
            w.points_interval(step["interval"]),
            "yes" if step["is_significant"] else "no",
        ]
        for step in curve["steps"]
    ]
    return table("from | #to training images | #test images | #points | ~95% interval | significant", rows)


def run_table(curve: dict[str, Any]) -> Table:
    """Every run of a learning curve."""
    rows = [
        [
            run["folder"],
            Cell(w.count(run["num_train"]), run["num_train"]),
            Cell(w.count(run["seed"]), run["seed"]),
            Cell(limited(curve["num_examples"], curve["limit"]), curve["num_examples"]),
            Cell(w.percent(run["accuracy"]), run["accuracy"]),
            w.interval(run["accuracy_interval"]),
            Cell(w.count(run["steps"]), run["steps"]),
            Cell(w.duration(run["seconds"]), run["seconds"]),
        ]
        for point in curve["points"]
        for run in point["runs"]
    ]
    columns = "run | #training images | #seed | #test images | #accuracy | ~95% interval | #steps | #training time"
    return table(columns, rows)
