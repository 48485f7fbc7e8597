"""What a report says, as one dictionary: the template, report.md and report.json all read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmtune.evaluate.compare import compare, describe
from vlmtune.evaluate.files import Evaluation
from vlmtune.report import calibration, charts, gallery, tables
from vlmtune.report import numbers as wording
from vlmtune.report.baselines import against
from vlmtune.report.checkpoint_curve import advice
from vlmtune.report.facts import experiment_facts
from vlmtune.report.sources import RunRecord, is_baseline
from vlmtune.report.table import Table
from vlmtune.report.training import training_drawings, training_view

NUM_CONFUSIONS = 300


def build(
    title: str, evaluations: Sequence[Evaluation], runs: Sequence[RunRecord], left_out: Sequence[str]
) -> dict[str, Any]:
    """Everything the page shows. Evaluations stand in the order shown; the last is the subject of the page.

    Raises DataError when the evaluations are not of the same images.
    """
    colors = charts.colors([is_baseline(evaluation) for evaluation in evaluations])
    shown = [_run_view(series, evaluation) for series, evaluation in zip(colors, evaluations, strict=True)]
    comparison = compare(evaluations) if len(evaluations) > 1 else None
    main = shown[-1]["metrics"] if shown else None
    subject = evaluations[-1] if evaluations else None
    own = runs[-1] if runs else None
    view = {
        "task": "classify",
        "title": title,
        "runs": shown,
        "comparison": comparison,
        "main": main,
        "main_run": shown[-1] if shown else None,
        "headline": wording.headline(shown, comparison),
        "summary": wording.summary(shown, comparison, main) if main else [],
        "baselines": against(own.baselines, own.folder, subject) if own and own.baselines else None,
        "checkpoint_curve": {**own.checkpoint_curve, "advice": advice(own.checkpoint_curve)}
        if own and own.checkpoint_curve
        else None,
        "calibration": next((calibration.findings(run) for run in reversed(shown) if run["calibration"]), None),
        "hints": _hints(own, shown),
        "training": [training_view(run, shown) for run in runs if run.train or run.validation],
        "confusions": _confusions(main) if main else [],
        "gallery": gallery.cards(subject) if subject else [],
        "gallery_note": gallery.note(subject) if subject else "",
        "unreadable": gallery.unreadable(subject) if subject else [],
        "facts": experiment_facts(runs, evaluations),
        "warnings": list(dict.fromkeys(w for run in runs for w in run.warnings)),
        "config": own.config if own else "",
        "left_out": list(left_out),
        "chance": 1 / len(subject.labels) if subject and subject.labels else None,
    }
    return {**view, "tables": _tables(view)}


def _tables(view: dict[str, Any]) -> dict[str, Table | None]:
    """The tables of a view by name; None for one with nothing to show."""
    shown, training = view["runs"], view["training"]
    with_curves = [run for run in shown if run["metrics"]["risk_coverage"]]
    calibrated = [run for run in shown if run["calibration"]]
    return {
        "runs": tables.runs(shown) if shown else None,
        "pairs": tables.pairs(view["comparison"]) if view["comparison"] else None,
        "baselines": tables.baselines(view["baselines"]) if view["baselines"] else None,
        "loss": tables.loss(training) if training else None,
        "validation": tables.validation(training) if training else None,
        "checkpoints": tables.checkpoints(view["checkpoint_curve"]) if view["checkpoint_curve"] else None,
        "classes": tables.classes(view["main"]["per_class"]) if view["main"] else None,
        "confusions": tables.confusions(view["confusions"]) if view["confusions"] else None,
        "reliability": tables.reliability(reliability_entries(with_curves)) if with_curves else None,
        "risk": tables.risk_coverage(with_curves) if with_curves else None,
        "calibrations": tables.calibrations(calibrated) if calibrated else None,
        "label_sets": tables.label_sets(calibrated) if calibrated else None,
        "unreadable": tables.unreadable(view["unreadable"]) if view["unreadable"] else None,
        "abstentions": tables.abstentions(calibrated) if calibrated else None,
    }


def reliability_entries(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first and the last of several, more would be a tangle; and the last with its temperature if it has one."""
    ends = list(shown) if len(shown) < 2 else [shown[0], shown[-1]]
    entries = [{key: run[key] for key in ("name", "series", "limit")} for run in ends]
    entries = [{**entry, "bins": run["metrics"]["reliability"]} for entry, run in zip(entries, ends, strict=True)]
    fitted = shown[-1]["calibration"]
    if fitted:
        name = f"{shown[-1]['name']}, temperature {wording.number(fitted['temperature'], 2)}"
        entries.append({**entries[-1], "name": name, "series": "s3", "bins": fitted["reliability"]})
    return entries


def drawings(view: dict[str, Any]) -> dict[str, Any]:
    """The SVG charts of a view, by name; a chart without data is None."""
    names = (
        "accuracy",
        "baselines",
        "checkpoint_curve",
        "confusion",
        "confusion_labels",
        "reliability",
        "reliability_runs",
    )
    drawn: dict[str, Any] = {**dict.fromkeys((*names, "risk")), **training_drawings(view["training"])}
    if view["checkpoint_curve"]:
        drawn["checkpoint_curve"] = charts.checkpoint_curve(view["checkpoint_curve"])
    if view["baselines"]:
        name = "Accuracy of baselines and the model"
        drawn["baselines"] = charts.bars(view["baselines"]["rows"], name, view["chance"])
    if not view["runs"]:
        return drawn
    drawn["accuracy"] = charts.bars(view["runs"], "Accuracy of each run with its 95% interval", view["chance"])
    counts = np.asarray(view["main"]["confusion"], dtype=np.int64)
    rows = charts.heatmap_classes(counts)
    labels = [view["main"]["per_class"][row]["label"] for row in rows]
    drawn["confusion"] = charts.confusion_heatmap(counts[np.ix_(rows, rows)], labels)
    drawn["confusion_labels"] = labels
    with_curves = [run for run in view["runs"] if run["metrics"]["reliability"]]
    if with_curves:
        told = reliability_entries(with_curves)
        drawn["reliability"] = charts.reliability(told)
        drawn["reliability_runs"] = told
        curves = [{"series": r["series"], **r["metrics"]["risk_coverage"]} for r in with_curves]
        drawn["risk"] = charts.risk_coverage(curves)
    return drawn


def _run_view(series: str, evaluation: Evaluation) -> dict[str, Any]:
    figures = evaluation.figures
    return {
        **describe(evaluation),
        "series": series,
        "is_baseline": is_baseline(evaluation),
        "metrics": figures,
        "calibration": evaluation.facts.get("calibration"),
    }


def _hints(run: RunRecord | None, shown: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What this page could also show, and the command that measures it."""
    if run is None or not shown:
        return []
    hints = []
    if not run.baselines:
        hints.append(("Not measured yet: baselines.", f"vlmtune baselines {run.folder}"))
    if not run.checkpoint_curve:
        hints.append(("Not measured yet: every checkpoint.", f"vlmtune checkpoints {run.folder}"))
    if not any(run["calibration"] for run in shown):
        hints.append(("Not calibrated yet.", f"vlmtune evaluate {run.folder} --calibrate"))
    return hints


def _confusions(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What is taken for what, most frequent first."""
    counts = np.asarray(figures["confusion"], dtype=np.int64)
    support = [entry["support"] for entry in figures["per_class"]]
    np.fill_diagonal(counts, 0)
    cells = np.argwhere(counts)
    amounts = counts[cells[:, 0], cells[:, 1]]
    names = [entry["label"] for entry in figures["per_class"]]
    return [
        {
            "truth": names[cells[i, 0]],
            "prediction": names[cells[i, 1]],
            "count": int(amounts[i]),
            "share": int(amounts[i]) / support[cells[i, 0]],
        }
        for i in np.argsort(-amounts, kind="stable")[:NUM_CONFUSIONS]
    ]
