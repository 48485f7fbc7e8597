"""What a report says, as one dictionary: the template, report.md and report.json all read from it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmtune.evaluate.compare import compare
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.metrics import confidences, measure
from vlmtune.evaluate.predictions import top_positions
from vlmtune.report import charts, wording
from vlmtune.report.sources import RunRecord, is_baseline
from vlmtune.report.svg import thinned

NUM_CONFUSIONS = 300
NUM_UNREADABLE_SHOWN = 200


def build(
    title: str, evaluations: Sequence[Evaluation], runs: Sequence[RunRecord], left_out: Sequence[str]
) -> dict[str, Any]:
    """Everything the page shows. Evaluations stand in the order shown; the last is the subject of the page.

    Raises DataError when the evaluations are not of the same pictures.
    """
    colours = charts.colours([is_baseline(evaluation) for evaluation in evaluations])
    shown = [_run_view(series, evaluation) for series, evaluation in zip(colours, evaluations, strict=True)]
    comparison = compare(evaluations) if len(evaluations) > 1 else None
    main = shown[-1]["metrics"] if shown else None
    subject = evaluations[-1] if evaluations else None
    return {
        "title": title,
        "runs": shown,
        "comparison": comparison,
        "main": main,
        "main_run": shown[-1] if shown else None,
        "headline": _headline(shown, comparison),
        "summary": wording.summary(shown, comparison, main) if main else [],
        "training": [_training_view(run, shown) for run in runs if run.train or run.validation],
        "confusions": _confusions(main) if main else [],
        "gallery": _gallery(subject) if subject else [],
        "gallery_note": _gallery_note(subject) if subject else "",
        "unreadable": _unreadable(subject) if subject else [],
        "facts": _facts(runs, evaluations),
        "warnings": list(dict.fromkeys(w for run in runs for w in run.warnings)),
        "config": runs[-1].config if runs else "",
        "left_out": list(left_out),
        "chance": 1 / len(subject.labels) if subject else None,
    }


def drawings(view: dict[str, Any]) -> dict[str, Any]:
    """The SVG charts of a view, by name; a chart without data is None."""
    names = (
        "loss",
        "validation",
        "accuracy",
        "confusion",
        "confusion_labels",
        "reliability",
        "reliability_runs",
        "risk",
    )
    drawn: dict[str, Any] = dict.fromkeys(names)
    training = view["training"]
    if any(run["loss"] for run in training):
        drawn["loss"] = charts.loss_curves(training)
    if any(run["validation"] for run in training):
        drawn["validation"] = charts.validation_curves(training)
    if not view["runs"]:
        return drawn
    drawn["accuracy"] = charts.accuracy_bars(view["runs"], view["chance"])
    counts = np.asarray(view["main"]["confusion"], dtype=np.int64)
    rows = charts.heatmap_classes(counts)
    labels = [view["main"]["per_class"][row]["label"] for row in rows]
    drawn["confusion"] = charts.confusion_heatmap(counts[np.ix_(rows, rows)], labels)
    drawn["confusion_labels"] = labels
    with_probabilities = [run for run in view["runs"] if run["metrics"]["reliability"]]
    if with_probabilities:
        told = [with_probabilities[0], with_probabilities[-1]] if len(with_probabilities) > 1 else with_probabilities
        drawn["reliability"] = charts.reliability(
            [{"series": r["series"], "bins": r["metrics"]["reliability"]} for r in told]
        )
        drawn["reliability_runs"] = told
        curves = [{"series": r["series"], **r["metrics"]["risk_coverage"]} for r in with_probabilities]
        drawn["risk"] = charts.risk_coverage(curves)
    return drawn


def _run_view(series: str, evaluation: Evaluation) -> dict[str, Any]:
    facts = evaluation.facts
    data = facts.get("data") or {}
    # Figures stored by an older version may lack keys that the page needs: measured again, they are the same.
    figures = facts.get("metrics") or {}
    if "reliability" not in figures or "unreadable_by_class" not in figures:
        figures = measure(evaluation.predictions)
    return {
        "name": evaluation.name,
        "series": series,
        "is_baseline": is_baseline(evaluation),
        "metrics": figures,
        "limit": data.get("limit"),
        "split": data.get("split"),
        "seconds": facts.get("seconds"),
        "mode": facts.get("mode"),
    }


def _headline(shown: Sequence[dict[str, Any]], comparison: dict[str, Any] | None) -> dict[str, Any] | None:
    if not shown:
        return None
    figures = shown[-1]["metrics"]
    headline = {
        "accuracy": wording.percent(figures["accuracy"]),
        "interval": wording.interval(figures["accuracy_interval"]),
        "change": None,
    }
    if comparison:
        pair = next(
            p for p in comparison["pairs"] if p["first"] == shown[0]["name"] and p["second"] == shown[-1]["name"]
        )
        headline["change"] = wording.points(pair["difference"])
        headline["against"] = shown[0]["name"]
        headline["verdict"] = "significant" if pair["is_significant"] else "not significant"
        headline["p"] = wording.p_value(pair["p_holm"])
    return headline


def _training_view(run: RunRecord, shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Curves of one run, in the colour of the evaluation with its name where there is one."""
    by_name = {entry["name"]: entry["series"] for entry in shown}
    fallback = shown[-1]["series"] if shown else charts.SUBJECT_COLOUR
    loss = [(line["step"], line["loss"]) for line in run.train if line.get("loss") is not None]
    validation = [line for line in run.validation if line.get("accuracy") is not None]
    return {
        "name": run.name,
        "series": by_name.get(run.name, fallback),
        "loss": loss,
        "loss_rows": thinned(loss, 20),
        "validation": [(line["step"], line["accuracy"]) for line in validation],
        "validation_rows": validation,
        "best": max(validation, key=lambda line: line["accuracy"]) if validation else None,
    }


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


def _gallery(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A card a stored thumbnail: mistakes first, the surest of them on top."""
    table = evaluation.predictions
    rows = np.flatnonzero([example in evaluation.thumbnails for example in table.ids])
    if not len(rows):
        return []
    chosen = table.take(rows)
    labels = table.labels
    sure = confidences(chosen) if chosen.log_probs is not None else np.zeros(len(rows))
    top = top_positions(np.nan_to_num(chosen.log_probs, nan=-1e9), 3) if chosen.log_probs is not None else None
    cards = []
    for row in np.lexsort([-sure, chosen.correct]):
        probabilities = []
        if top is not None and chosen.log_probs is not None:
            probabilities = [
                {
                    "label": labels[i],
                    "share": float(np.exp(chosen.log_probs[row, i])),
                    "is_truth": bool(i == chosen.truth[row]),
                }
                for i in top[row]
            ]
        data = base64.b64encode(evaluation.thumbnails[chosen.ids[row]]).decode("ascii")
        guess = chosen.prediction[row]
        cards.append(
            {
                "id": str(chosen.ids[row]),
                "image": f"data:image/jpeg;base64,{data}",
                "truth": labels[chosen.truth[row]],
                "prediction": labels[guess] if guess >= 0 else None,
                "is_right": bool(chosen.correct[row]),
                "confidence": float(sure[row]) if top is not None else None,
                "top": probabilities,
            }
        )
    return cards


def _gallery_note(evaluation: Evaluation) -> str:
    table = evaluation.predictions
    wrong = int((~table.correct & table.readable).sum())
    stored = set(evaluation.thumbnails)
    shown = sum(example in stored for example in table.ids[~table.correct & table.readable])
    right = len(stored) - shown
    if not stored:
        return f"{wrong} mistakes; this evaluation stored no pictures."
    if shown == wrong:
        return f"All {wrong} mistakes, and {right} right answers for comparison."
    return f"{shown} of {wrong} mistakes (the surest ones), and {right} right answers for comparison."


def _unreadable(evaluation: Evaluation) -> list[dict[str, str]]:
    table = evaluation.predictions
    rows = np.flatnonzero(~table.readable)[:NUM_UNREADABLE_SHOWN]
    return [{"id": str(table.ids[row]), "reason": str(table.errors[row] or "unreadable")} for row in rows]


def _facts(runs: Sequence[RunRecord], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Rows of the experiment table: a name and a value a run."""
    facts: list[dict[str, Any]] = []

    def add(name: str, values: Sequence[str]) -> None:
        if any(value not in ("", "–") for value in values):
            unique = list(dict.fromkeys(values))
            facts.append({"name": name, "values": unique if len(unique) == 1 else list(values)})

    add("Run", [run.name for run in runs])
    add("Base model", [str(run.facts.get("base") or "–") for run in runs])
    if not runs and evaluations:
        add("Base model", [str(evaluations[-1].facts.get("base") or "–")])
    add("Trained on", [_counts(run.facts.get("data")) for run in runs])
    add("Trainable parameters", [_parameters(run.facts) for run in runs])
    add("Training time", [wording.duration(_seconds(run)) for run in runs])
    add("Seed", [str(run.facts.get("seed", "–")) for run in runs])
    add("Versions", [_versions((run.facts.get("environment") or {}).get("versions")) for run in runs])
    if evaluations:
        data = evaluations[-1].facts.get("data") or {}
        add("Measured on", [f"{data.get('source', '?')}, split {data.get('split', '?')}"])
        add("Labels", [str(len(evaluations[-1].labels))])
        add("Measured at", [str(evaluations[-1].facts.get("created") or "–")[:16].replace("T", " ")])
    return facts


def _seconds(run: RunRecord) -> float | None:
    progress = run.facts.get("progress") or {}
    # run.json is written before the first step and after the last: an unfinished run's time is in its metrics.
    told = [_number(progress.get("seconds")), _number(run.train[-1].get("seconds")) if run.train else None]
    return max((seconds for seconds in told if seconds), default=None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _counts(data: Any) -> str:
    """How many pictures of each split were used, and of how many where that differs."""
    splits = (data or {}).get("splits") or {}
    told = []
    for name, split in splits.items():
        used, found = split.get("used"), split.get("found")
        of_all = f" of {wording.count(found)}" if found is not None and found != used else ""
        told.append(f"{wording.count(used)}{of_all} {name}")
    return ", ".join(told) or "–"


def _parameters(facts: dict[str, Any]) -> str:
    trainable, total = _number(facts.get("trainable_parameters")), _number(facts.get("total_parameters"))
    if trainable is None:
        return "–"
    return wording.count(trainable) + (f" ({wording.percent(trainable / total, 2)} of all)" if total else "")


def _versions(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "–"
