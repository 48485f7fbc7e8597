"""A run's curves as a page shows them, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmtune.report import charts
from vlmtune.report.sources import RunRecord
from vlmtune.report.svg import thinned


def training_view(run: RunRecord, shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Curves of one run, in the color of the evaluation with its name where there is one."""
    by_name = {entry["name"]: entry["series"] for entry in shown}
    fallback = shown[-1]["series"] if shown else charts.SUBJECT_COLOR
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


def training_drawings(training: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The charts of `training_view`s; None for one without data."""
    return {
        "loss": charts.loss_curves(training) if any(run["loss"] for run in training) else None,
        "validation": charts.validation_curves(training) if any(run["validation"] for run in training) else None,
    }
