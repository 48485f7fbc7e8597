"""Baselines beside the model a report is about: rows, paired tests, and what they mean in words.

In: `baselines.json` and the evaluation folders it names. Called by the report and by `vlmtune baselines`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtune.evaluate.compare import align, same_examples
from vlmtune.evaluate.files import Evaluation, is_evaluation, read_evaluation
from vlmtune.evaluate.statistics import adjust, paired_comparison
from vlmtune.report import numbers as w
from vlmtune.report.charts import SUBJECT_COLOR

_SERIES = {"floor": "s0", "reference": "s1", "ceiling": "s4"}


def against(baselines: dict[str, Any], run: Path, subject: Evaluation | None) -> dict[str, Any]:
    """The rows, lowest first, each with its paired test against the subject (Holm-adjusted over the rows).

    Args:
        baselines: what `baselines.json` holds.
        run: the folder it lies in.
        subject: the evaluation of the model in question; rows measured on other images have no test.
    """
    rows: list[dict[str, Any]] = []
    tested: list[dict[str, Any]] = []
    for found in baselines["rows"]:
        row = {**found, "series": _SERIES[found["kind"]], "pair": None}
        rows.append(row)
        folder = run / found["folder"]
        if subject is None or not is_evaluation(folder):
            continue
        other = read_evaluation(folder)
        other.facts["name"] = f"{found['name']} ({found['key']})"  # never the subject's
        if same_examples(other, subject):
            table, right = align([other, subject])
            row["pair"] = paired_comparison(table.score, right.score, table.clusters)
            tested.append(row["pair"])
    adjust(tested)
    if subject is not None and tested:
        figures = subject.figures
        keys = ("accuracy", "accuracy_interval", "num_correct", "num_unreadable", "nll")
        told = {"key": "subject", "name": subject.name, "kind": "subject", "series": SUBJECT_COLOR, "pair": None}
        told |= {key: figures[key] for key in keys}
        rows.append({**told, "seconds": subject.facts.get("seconds"), "setting": ""})
    rows.sort(key=lambda row: float(row["accuracy"]))
    shown = {**baselines, "rows": rows}
    return {**shown, "summary": findings(shown)}


def findings(baselines: dict[str, Any]) -> list[str]:
    """What baselines say of the model, in sentences."""
    rows = {row["key"]: row for row in baselines["rows"]}
    subject = rows.get("subject")
    sentences = []
    majority = rows.get("majority")
    if majority:
        sentences.append(f"Always giving the most frequent label is right on {w.percent(majority['accuracy'])}.")
    blind = rows.get("prompt-only-tuned") or rows.get("prompt-only")
    if blind and subject and blind["pair"]:
        looks = blind["pair"]["is_significant"] and blind["pair"]["difference"] > 0
        verdict = "it looks at them" if looks else "it cannot be shown to look at them"
        sentences.append(
            f"With every image replaced by gray, {blind['name'].split(',')[0].lower()} is right on "
            f"{w.percent(blind['accuracy'])} instead of {w.percent(subject['accuracy'])}: {verdict}."
        )
    for key, name in (("linear-probe", "A linear probe"), ("neighbors", "k-NN")):
        row = rows.get(key)
        if not row:
            continue
        reached = f"{name} on the frozen vision features is right on {w.percent(row['accuracy'])}"
        if not (subject and row["pair"]):
            sentences.append(f"{reached}.")
            continue
        pair = row["pair"]
        span = f"{w.points(pair['difference'])} points, 95% interval {w.points_interval(pair['difference_interval'])}"
        if not pair["is_significant"]:
            verdict = "does not differ significantly"
        elif pair["difference"] > 0:
            verdict = "is significantly better"
        else:
            verdict = "is significantly worse: the vision tower sees what the answers do not yet use"
        sentences.append(f"{reached}; {subject['name']} {verdict} ({span}; {w.p_value(pair['p_holm'])}).")
    if baselines["limit"]:
        sentences.append(f"Only {w.count(baselines['limit'])} images were measured, by request (limit).")
    return sentences
