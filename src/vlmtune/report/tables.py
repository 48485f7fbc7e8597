"""Every table of evaluations of labels, once: the page, report.md and the command line print the same rows.

In: figures as `evaluate` gives them. Out: a `Table` of texts, with the values to sort by where a page sorts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmtune.report import charts
from vlmtune.report import numbers as w
from vlmtune.report.table import Cell, Table, limited, table, without_empty


def runs(evaluations: Sequence[dict[str, Any]]) -> Table:
    """Evaluations side by side, as `evaluate.compare.describe` gives them; the last is the subject."""
    columns = (
        "run | #images | #right | #accuracy | ~95% interval | #macro F1 | #balanced | #top 3 | #NLL | #ECE "
        "| #time an image | #time in all | #tokens an image"
    )
    rows = [
        [
            run["name"],
            limited(run["num_examples"], run["limit"]),
            w.count(run["num_correct"]),
            w.percent(run["accuracy"]),
            w.interval(run["accuracy_interval"]),
            w.number(run["macro_f1"]),
            w.percent(run["balanced_accuracy"]),
            w.percent((run["top_k"] or {}).get("3")),
            w.number(run["nll"]),
            w.percent(run["ece"]),
            w.per_image(run["seconds_per_example"]),
            w.duration(run["seconds"]),
            w.count(run["num_tokens"]),
        ]
        for run in evaluations
    ]
    return without_empty(table(columns, rows, main=len(rows) - 1))


def pairs(comparison: dict[str, Any]) -> Table:
    """Paired tests, as `evaluate.compare.compare` gives them."""
    limits = {run["name"]: run["limit"] for run in comparison["runs"]}
    columns = (
        "from → to | #images | #points | ~95% interval | #became right | #became wrong | #McNemar mid-p, Holm "
        "| significant | #macro F1"
    )
    rows = [
        [
            f"{pair['first']} → {pair['second']}",
            limited(comparison["num_examples"], limits[pair["first"]] or limits[pair["second"]]),
            w.points(pair["difference"]),
            w.points_interval(pair["difference_interval"]),
            w.count(pair["only_second"]),
            w.count(pair["only_first"]),
            w.p_value(pair["p_holm"]),
            "yes" if pair["is_significant"] else "no",
            w.signed(pair["bootstrap"]["macro_f1"]["difference"]),
        ]
        for pair in comparison["pairs"]
    ]
    return table(columns, rows)


def classes(per_class: Sequence[dict[str, Any]]) -> Table:
    """Recall, precision and F1 by class, with intervals."""
    columns = "class | #images | #recall | ~95% interval | ^ | #precision | ~95% interval | #F1"
    rows = [
        [
            entry["label"],
            Cell(w.count(entry["support"]), entry["support"]),
            Cell(w.percent(entry["recall"]), entry["recall"]),
            w.interval(entry["recall_interval"]),
            Cell(charts.class_bar(entry["recall"], entry["recall_interval"])),
            Cell(w.percent(entry["precision"]), entry["precision"]),
            w.interval(entry["precision_interval"]),
            Cell(w.number(entry["f1"]), entry["f1"]),
        ]
        for entry in per_class
    ]
    return table(columns, rows)


def confusions(entries: Sequence[dict[str, Any]]) -> Table:
    """What is taken for what, most frequent first."""
    rows = [
        [
            entry["truth"],
            entry["prediction"],
            Cell(w.count(entry["count"]), entry["count"]),
            Cell(w.percent(entry["share"]), entry["share"]),
        ]
        for entry in entries
    ]
    return table("truth | taken for | #images | #share of the class", rows)


def loss(training: Sequence[dict[str, Any]]) -> Table:
    """The loss curve, thinned."""
    rows = [[run["name"], w.count(step), w.number(value)] for run in training for step, value in run["loss_rows"]]
    return table("run | #about step | #loss", rows)


def validation(training: Sequence[dict[str, Any]]) -> Table:
    """The validations inside training."""
    rows = [
        [run["name"], w.count(line["step"]), w.percent(line["accuracy"]), w.number(line.get("loss"))]
        for run in training
        for line in run["validation_rows"]
    ]
    return table("run | #step | #accuracy | #loss", rows)


def reliability(entries: Sequence[dict[str, Any]]) -> Table:
    """Stated confidence against the share right, by bin."""
    rows = [
        [
            entry["name"],
            limited(b["count"], entry["limit"]),
            w.percent(b["confidence"]),
            w.percent(b["accuracy"]),
            w.interval(b["accuracy_interval"]),
        ]
        for entry in entries
        for b in entry["bins"]
    ]
    return table("run | #images | #stated | #right | ~95% interval", rows)


def risk_coverage(evaluations: Sequence[dict[str, Any]], num_rows: int = 20) -> Table:
    """What is wrong among the surest answers, at about twenty shares."""
    rows = []
    for run in evaluations:
        figures = run["metrics"]["risk_coverage"]
        curve = list(zip(figures["coverage"], figures["risk"], strict=True))
        kept = curve[::-1][:: max(1, len(curve) // num_rows)][::-1]  # counted from the end: all answered is among them
        rows += [[run["name"], w.percent(coverage), w.percent(risk)] for coverage, risk in kept]
    return table("run | #answered | #wrong among them", rows)


def checkpoints(checkpoint_curve: dict[str, Any]) -> Table:
    """Every checkpoint, and every average of some, with its paired test against the best checkpoint."""
    columns = (
        "step | #images | #accuracy | ~95% interval | #NLL | #ECE | #points from the best | ~95% interval "
        "| #McNemar mid-p, Holm | worse than the best | #time"
    )
    averages = checkpoint_curve.get("averages", [])
    rows = [
        [
            w.count(point["step"]) if "step" in point else point["name"],
            limited(checkpoint_curve["num_examples"], checkpoint_curve["limit"]),
            w.percent(point["accuracy"]),
            w.interval(point["accuracy_interval"]),
            w.number(point["nll"]),
            w.percent(point["ece"]),
            "best" if point["is_best"] else w.points(point["difference"]),
            w.points_interval(point["difference_interval"]),
            w.p_value(point["p_holm"]),
            "–" if point["is_best"] else "significantly" if point["is_worse"] else "not significantly",
            w.duration(point["seconds"]),
        ]
        for point in [*checkpoint_curve["checkpoints"], *averages]
    ]
    return table(columns, rows, main=[point["is_best"] for point in checkpoint_curve["checkpoints"]].index(True))


def unreadable(entries: Sequence[dict[str, str]]) -> Table:
    """What could not be read, and why."""
    return table("id | reason", [[entry["id"], entry["error"]] for entry in entries])


def baselines(shown: dict[str, Any]) -> Table:
    """Baselines beside the model in question, as `report.baselines.against` gives them."""
    columns = (
        "what | #images | #accuracy | ~95% interval | #points of the model above it | ~95% interval "
        "| #McNemar mid-p, Holm | #time | setting"
    )
    rows = [
        [
            row["name"],
            limited(shown["num_examples"], shown["limit"]),
            w.percent(row["accuracy"]),
            w.interval(row["accuracy_interval"]),
            w.points(row["pair"] and row["pair"]["difference"]),
            w.points_interval(row["pair"] and row["pair"]["difference_interval"]),
            w.p_value(row["pair"] and row["pair"]["p_holm"]),
            w.duration(row["seconds"]),
            row["setting"],
        ]
        for row in shown["rows"]
    ]
    kinds = [row["kind"] for row in shown["rows"]]
    return without_empty(table(columns, rows, kinds.index("subject") if "subject" in kinds else None))


def calibrations(evaluations: Sequence[dict[str, Any]]) -> Table:
    """Temperature scaling: what one number, fitted on validation, does to the probabilities on test."""
    rows = []
    for run in evaluations:
        figures = run["calibration"]
        rows.append(
            [
                run["name"],
                limited(run["num_examples"], run["limit"]),
                w.count(figures["num_validation"]),
                w.number(figures["temperature"]),
                w.number(figures["nll_before"]),
                w.number(figures["nll_after"]),
                w.percent(figures["ece_before"]),
                w.percent(figures["ece_after"]),
            ]
        )
    columns = "run | #images | #fitted on | #temperature | #NLL before | #after | #ECE before | #after"
    return table(columns, rows)


def label_sets(evaluations: Sequence[dict[str, Any]]) -> Table:
    """Conformal sets: how often they hold the truth, and how many labels that takes."""
    columns = (
        "run | method | #images | #wanted | #holds the truth | ~95% interval | #labels in a set | #sets of one label"
    )
    rows = []
    for run in evaluations:
        conformal = run["calibration"]["conformal"]
        for method in ("lac", "aps"):
            figures = conformal[method]
            rows.append(
                [
                    run["name"],
                    method.upper() + ("" if figures["threshold"] is not None else " (too few validation images)"),
                    limited(run["num_examples"], run["limit"]),
                    w.percent(conformal["wanted_coverage"], 0),
                    w.percent(figures["coverage"]),
                    w.interval(figures["coverage_interval"]),
                    w.number(figures["mean_size"], 2),
                    w.percent(figures["single_share"]),
                ]
            )
    return table(columns, rows)


def abstentions(evaluations: Sequence[dict[str, Any]]) -> Table:
    """Answering only from a threshold on: how much is answered, and how much of that is right."""
    rows = []
    for run in evaluations:
        figures = run["calibration"]["abstention"]
        threshold = figures["threshold"]
        rows.append(
            [
                run["name"],
                limited(run["num_examples"], run["limit"]),
                w.percent(figures["wanted_precision"], 0),
                "none reaches it" if threshold is None else w.percent(threshold),
                w.percent(figures["answered_share"]),
                w.percent(figures["precision"]),
                w.interval(figures["precision_interval"]),
            ]
        )
    columns = "run | #images | #wanted right | #answer from | #answered | #right among them | ~95% interval"
    return table(columns, rows)
