"""report.md: the findings as text, to paste into an issue or a README; the charts beside it as images."""

from __future__ import annotations

from typing import Any

from vlmtune.report import tables
from vlmtune.report.numbers import plain
from vlmtune.report.table import table
from vlmtune.report.vqa import vqa_markdown

NUM_CONFUSIONS = 10


def to_markdown(view: dict[str, Any]) -> str:
    """A view as Markdown."""
    parts = [f"# {plain(view['title'])}", " ".join(plain(sentence) for sentence in view["summary"])]
    if view["runs"]:
        parts += ["![Accuracy](charts/accuracy.png)", view["tables"]["runs"].markdown()]
    if view["comparison"]:
        parts += ["## Paired tests", view["tables"]["pairs"].markdown()]
    if view["training"]:
        parts += ["## Training", "![Training](charts/training.png)"]
    if view["task"] == "classify":
        parts += _of_labels(view)
    else:
        parts += vqa_markdown(view)
    if view["facts"]:
        rows = [[fact["name"], " / ".join(fact["values"])] for fact in view["facts"]]
        parts += ["## Experiment", table("| ", rows).markdown()]
    if view["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {plain(warning)}" for warning in view["warnings"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_labels(view: dict[str, Any]) -> list[str]:
    parts = []
    if view["baselines"]:
        told = " ".join(plain(sentence) for sentence in view["baselines"]["summary"])
        table = view["tables"]["baselines"].markdown()
        parts += ["## Baselines", told, "![Baselines](charts/baselines.png)", table]
    if view["checkpoint_curve"]:
        told = " ".join(plain(sentence) for sentence in view["checkpoint_curve"]["advice"])
        table = view["tables"]["checkpoints"].markdown()
        parts += ["## Checkpoints", told, "![Checkpoints](charts/checkpoint_curve.png)", table]
    if view["main"]:
        table = view["tables"]["classes"].markdown()
        parts += ["## Classes", "![Confusion](charts/confusion.png)", table]
    if view["confusions"]:
        table = tables.confusions(view["confusions"][:NUM_CONFUSIONS]).markdown()
        parts += ["## Most frequent confusions", table]
    if view["calibration"]:
        for heading, key, table_name in (
            ("Temperature", "temperature", "calibrations"),
            ("Sets of labels", "sets", "label_sets"),
            ("Abstaining", "abstention", "abstentions"),
        ):
            told = " ".join(plain(sentence) for sentence in view["calibration"][key])
            parts += [f"## {heading}", told, view["tables"][table_name].markdown()]
    return parts
