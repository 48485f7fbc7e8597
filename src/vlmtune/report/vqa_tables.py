"""Every table of evaluations of questions, once: the page, report.md and the command line print the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmtune.report import charts
from vlmtune.report import numbers as w
from vlmtune.report.table import Cell, Table, limited, table, without_empty


def runs(evaluations: Sequence[dict[str, Any]]) -> Table:
    """Evaluations of questions side by side, as `evaluate.compare.describe` gives them."""
    types = list(dict.fromkeys(type_name(entry) for run in evaluations for entry in run["by_answer_type"]))
    if len(types) > 4:
        types = []
    rows = []
    for run in evaluations:
        by_type = {type_name(entry): entry["accuracy"] for entry in run["by_answer_type"]}
        rows.append(
            [
                run["name"],
                limited(run["num_measured"], run["limit"]),
                w.count(run["num_images"]),
                w.percent(run["accuracy"], 2),
                w.interval(run["accuracy_interval"]),
                *(w.percent(by_type.get(name)) for name in types),
                w.count(run["num_unreadable"]),
                w.per_image(run["seconds_per_example"]),
                w.duration(run["seconds"]),
            ]
        )
    columns = (
        "run | #questions | #images | #VQA accuracy | ~95%, over images | "
        + "".join(f"#{name.replace('|', '/')} | " for name in types)
        + "#unreadable | #time a question | #time in all"
    )
    return without_empty(table(columns, rows, main=len(rows) - 1))


def pairs(comparison: dict[str, Any]) -> Table:
    """Paired tests over images, as `evaluate.compare.compare` gives them."""
    limits = {run["name"]: run["limit"] for run in comparison["runs"]}
    rows = [
        [
            f"{pair['first']} → {pair['second']}",
            limited(comparison["num_examples"], limits[pair["first"]] or limits[pair["second"]]),
            w.points(pair["difference"]),
            w.points_interval(pair["difference_interval"]),
            w.count(pair["num_better"]),
            w.count(pair["num_worse"]),
            w.p_value(pair["p_holm"]),
            "yes" if pair["is_significant"] else "no",
        ]
        for pair in comparison["pairs"]
    ]
    columns = (
        "from → to | #questions | #points | ~95%, over images | #better | #worse | #sign changes, Holm | significant"
    )
    return table(columns, rows)


def types(kind: str, entries: Sequence[dict[str, Any]], limit: int | None, pair: dict[str, Any] | None = None) -> Table:
    """Accuracy by type; with a pair of `compare`, what each answer type gained."""
    gained = {type_name(entry): entry for entry in pair["by_answer_type"]} if pair else {}
    rows: list[list[str | Cell]] = []
    for entry in entries:
        change = gained.get(type_name(entry), {})
        rows.append(
            [
                type_name(entry),
                Cell(limited(entry["num"], limit), entry["num"]),
                Cell(w.percent(entry["accuracy"], 2), entry["accuracy"]),
                w.interval(entry["accuracy_interval"]),
                Cell(charts.class_bar(entry["accuracy"], entry["accuracy_interval"])),
                Cell(w.points(change.get("difference")), change.get("difference")),
                w.points_interval(change.get("difference_interval")),
            ]
        )
    columns = f"{kind} | #questions | #VQA accuracy | ~95%, over images | ^ | #points gained | ~95%, over images "
    return without_empty(table(columns, rows))


def type_name(entry: dict[str, Any]) -> str:
    """A type's name; data without types have one that is empty."""
    return entry["name"] or "no type"
