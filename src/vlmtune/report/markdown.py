"""report.md: the findings as text, to paste into an issue or a README; the charts beside it as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmtune.report import wording as w

NUM_CONFUSIONS = 10


def to_markdown(view: dict[str, Any]) -> str:
    """A view as Markdown."""
    parts = [f"# {_cell(view['title'])}", " ".join(_cell(sentence) for sentence in view["summary"])]
    if view["runs"]:
        parts += ["![Accuracy](charts/accuracy.png)", _runs(view)]
    if view["comparison"]:
        parts += ["## Paired tests", _pairs(view["comparison"])]
    if view["training"]:
        parts += ["## Training", "![Training](charts/training.png)"]
    if view["main"]:
        parts += ["## Classes", "![Confusion](charts/confusion.png)", _classes(view["main"])]
    if view["confusions"]:
        parts += ["## Most frequent confusions", _confusions(view["confusions"])]
    if view["facts"]:
        rows = [[fact["name"], " / ".join(fact["values"])] for fact in view["facts"]]
        parts += ["## Experiment", _table(["", ""], rows)]
    if view["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {_cell(warning)}" for warning in view["warnings"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _runs(view: dict[str, Any]) -> str:
    rows = []
    for run in view["runs"]:
        m = run["metrics"]
        name = run["name"] + (f" (limit {run['limit']})" if run["limit"] else "")
        accuracy = [w.percent(m["accuracy"]), w.interval(m["accuracy_interval"])]
        rest = [
            w.number(m["macro_f1"]),
            w.number(m["nll"]),
            w.percent(m["ece"]),
            w.per_picture(m["seconds_per_example"]),
        ]
        rows.append([name, w.count(m["num_examples"]), *accuracy, *rest])
    head = ["run", "pictures", "accuracy", "95% interval", "macro F1", "NLL", "ECE", "time a picture"]
    return _table(head, rows)


def _pairs(comparison: dict[str, Any]) -> str:
    rows = [
        [
            f"{p['first']} → {p['second']}",
            w.points(p["difference"]),
            w.points_interval(p["difference_interval"]),
            f"{p['only_second']} / {p['only_first']}",
            w.p_value(p["p_holm"]),
            "yes" if p["is_significant"] else "no",
        ]
        for p in comparison["pairs"]
    ]
    return _table(["pair", "points", "95% interval", "became right / wrong", "McNemar, Holm", "significant"], rows)


def _classes(figures: dict[str, Any]) -> str:
    rows = [
        [
            e["label"],
            str(e["support"]),
            w.percent(e["recall"]),
            w.interval(e["recall_interval"]),
            w.percent(e["precision"]),
        ]
        for e in figures["per_class"]
    ]
    return _table(["class", "pictures", "recall", "95% interval", "precision"], rows)


def _confusions(confusions: Sequence[dict[str, Any]]) -> str:
    rows = [[c["truth"], c["prediction"], str(c["count"]), w.percent(c["share"])] for c in confusions[:NUM_CONFUSIONS]]
    return _table(["truth", "taken for", "pictures", "share of the class"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: str) -> str:
    """Text that cannot break a table or start a tag."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
