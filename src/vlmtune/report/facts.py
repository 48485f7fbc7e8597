"""The experiment in a table: what was trained on what, with what, for how long; what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmtune.evaluate.files import Evaluation
from vlmtune.report import numbers as w
from vlmtune.report.sources import RunRecord


def experiment_facts(runs: Sequence[RunRecord], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Level of the experiment table: a name and a value a run."""
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
    add("Training time", [w.duration(_seconds(run)) for run in runs])
    add("Seed", [str(run.facts.get("seed", "–")) for run in runs])
    add("Versions", [_versions((run.facts.get("environment") or {}).get("versions")) for run in runs])
    if evaluations:
        data = evaluations[-1].facts.get("data") or {}
        add("Measured on", [f"{data.get('source', '?')}, split {data.get('split', '?')}"])
        labels = evaluations[-1].facts.get("labels") or []
        add("Labels", [w.count(len(labels)) if labels else "none: answers are generated"])
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
    """How many images of each split were used, and of how many where that differs."""
    splits = (data or {}).get("splits") or {}
    told = []
    for name, split in splits.items():
        used, found = split.get("used"), split.get("found")
        of_all = f" of {w.count(found)}" if found is not None and found != used else ""
        told.append(f"{w.count(used)}{of_all} {name}")
    return ", ".join(told) or "–"


def _parameters(facts: dict[str, Any]) -> str:
    trainable, total = _number(facts.get("trainable_parameters")), _number(facts.get("total_parameters"))
    if trainable is None:
        return "–"
    return w.count(trainable) + (f" ({w.percent(trainable / total, 2)} of all)" if total else "")


def _versions(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "–"
