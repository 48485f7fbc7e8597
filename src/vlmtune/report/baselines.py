"""Baselines beside the model a report is about: rows, paired tests, and what they mean.

In: `baselines.json` and the evaluation folders it names. Out: a section; rows for `vlmtune baselines` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtune.evaluate.compare import align, same_examples
from vlmtune.evaluate.files import Evaluation, is_evaluation, read_evaluation
from vlmtune.evaluate.statistics import adjust, paired_comparison
from vlmtune.report import numbers as w
from vlmtune.report.accuracy import chance_of
from vlmtune.report.charts import SUBJECT_COLOR, Chart, Key, Score, draw_bars
from vlmtune.report.section import ColumnOf, Figures, Section, Table, limited, table
from vlmtune.report.sources import Results

_COLORS = {"floor": "s0", "reference": "s1", "ceiling": "s4", "subject": SUBJECT_COLOR}
_LEGEND = {
    "s0": "floor: needs no image",
    "s1": "untrained",
    "s4": "ceiling: frozen vision features",
    SUBJECT_COLOR: "this model",
}


def section(results: Results) -> Section | None:
    """Floors, references and ceilings of the run that the report is about, if they were measured."""
    run, subject = results.run, results.subject
    if run is None or not run.baselines:
        return None
    measured = against(run.baselines, run.layout.path, subject.evaluation if subject else None)
    scores = [
        Score(row["name"], row["accuracy"], row["accuracy_interval"], _COLORS[row["kind"]]) for row in measured["rows"]
    ]
    canvas = draw_bars(scores, "Accuracy of baselines and the model", chance_of(subject) if subject else None)
    return Section(
        "baselines",
        "Baselines",
        measured["summary"],
        chart=Chart(canvas, [Key(color, name) for color, name in _LEGEND.items()]),
        table=baselines_table(measured),
        figures=measured,
    )


def against(baselines: Figures, run: Path, subject: Evaluation | None) -> dict[str, Any]:
    """The rows, lowest first, each with its paired test against the subject (Holm-adjusted over the rows).

    Args:
        baselines: what `baselines.json` holds.
        run: the folder that holds it.
        subject: the evaluation of the model in question; rows measured on other images have no test.
    """
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for baseline in baselines["rows"]:
        row = {**baseline, "pair": None}
        rows.append(row)
        folder = run / baseline["folder"]
        if subject is None or not is_evaluation(folder):
            continue
        other = read_evaluation(folder)
        other.facts["name"] = f"{baseline['name']} ({baseline['key']})"  # never the subject's
        if same_examples(other, subject):
            first, second = align([other, subject])
            row["pair"] = paired_comparison(first.score, second.score, first.clusters)
            pairs.append(row["pair"])
    adjust(pairs)
    if subject is not None and pairs:
        keys = ("accuracy", "accuracy_interval", "num_correct", "num_unreadable", "nll")
        row = {"key": "subject", "name": subject.name, "kind": "subject", "pair": None, "setting": ""}
        rows.append({**row, **{key: subject.figures[key] for key in keys}, "seconds": subject.facts.get("seconds")})
    rows.sort(key=lambda row: float(row["accuracy"]))
    measured = {**baselines, "rows": rows}
    return {**measured, "summary": findings(measured)}


def findings(baselines: Figures) -> list[str]:
    """What the baselines say about the model, in sentences."""
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
    sentences += [f"{entry['name']}: not measured, {entry['reason']}." for entry in baselines["left_out"]]
    return sentences + w.limit_sentences(baselines["limit"])


def baselines_table(measured: Figures) -> Table:
    """Baselines beside the model in question, as `against` gives them."""
    columns: list[ColumnOf] = [
        ("what", "name"),
        ("#images", lambda row: limited(measured["limit"])(measured["num_examples"])),
        ("#accuracy", "accuracy", w.percent),
        ("~95% interval", "accuracy_interval", w.interval),
        ("#points of the model above it", lambda row: row["pair"] and row["pair"]["difference"], w.points),
        ("~95% interval", lambda row: row["pair"] and row["pair"]["difference_interval"], w.points_interval),
        ("#p, Holm", lambda row: row["pair"] and row["pair"]["p_holm"], w.p_value),
        ("#time", "seconds", w.duration),
        ("setting", "setting"),
    ]
    kinds = [row["kind"] for row in measured["rows"]]
    return table(measured["rows"], columns, kinds.index("subject") if "subject" in kinds else None)
