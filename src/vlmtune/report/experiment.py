"""The experiment in a table: model, data, settings, duration, and what was measured.

In: `Results`. Out: the last section of a report, and hints on what else to measure.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from vlmtune.report import numbers as w
from vlmtune.report.section import Figures, Fold, Section, table
from vlmtune.report.sources import Entry, Results, RunFiles
from vlmtune.runs.record import RunRecord

NUM_UNREADABLE_SHOWN = 200
_RUN_FACTS: dict[str, Callable[[RunFiles], str]] = {
    "Run": lambda run: run.name,
    "Base model": lambda run: run.record.base,
    "Trained on": lambda run: _counts(run.record.data),
    "Trainable parameters": lambda run: _parameters(run.record),
    "Training time": lambda run: w.duration(_seconds(run)),
    "Seed": lambda run: str(run.record.seed),
    "Versions": lambda run: _versions(run.record.environment.get("versions") or {}),
}


def section(results: Results) -> Section:
    """Facts of the runs and of what was measured, unreadable images, the configuration."""
    facts = {name: [fact(run) for run in results.runs] for name, fact in _RUN_FACTS.items()}
    subject = results.subject
    unreadable: list[Figures] = []
    if subject is not None:
        facts |= _measured_facts(subject, is_alone=not results.runs)
        unreadable = (subject.evaluation.facts.get("unreadable") or [])[:NUM_UNREADABLE_SHOWN]
    rows = [(name, " / ".join(dict.fromkeys(values))) for name, values in facts.items() if set(values) - {"–", ""}]
    folds = []
    if subject is not None and unreadable:
        listed = table(unreadable, [("id", "id"), ("reason", "error")])
        folds.append(Fold(f"Unreadable images ({subject.row['num_unreadable']})", listed))
    config = results.run.config if results.run else ""
    if config:
        folds.append(Fold("Configuration", text=config))
    figures = {"facts": facts, "unreadable": unreadable, "config": config}
    return Section(
        "experiment",
        "Experiment",
        table=table(rows, [("", itemgetter(0)), ("", itemgetter(1))]),
        folds=folds,
        figures=figures,
    )


def hints(results: Results) -> list[tuple[str, str]]:
    """What this page could also show, and the command that measures it."""
    run, subject = results.run, results.subject
    if run is None or subject is None or results.unit != "image":
        return []
    suggestions = []
    if not run.baselines:
        suggestions.append(("Not measured yet: baselines.", f"vlmtune baselines {run.layout.path}"))
    if not run.checkpoint_curve:
        suggestions.append(("Not measured yet: every checkpoint.", f"vlmtune checkpoints {run.layout.path}"))
    if not any(entry.evaluation.facts.get("calibration") for entry in results.entries):
        suggestions.append(("Not calibrated yet.", f"vlmtune evaluate {run.layout.path} --calibrate"))
    return suggestions


def _measured_facts(subject: Entry, is_alone: bool) -> dict[str, list[str]]:
    facts = subject.evaluation.facts
    data, labels = facts.get("data") or {}, facts.get("labels") or []
    return {
        **({"Base model": [str(facts.get("base") or "–")]} if is_alone else {}),
        "Measured on": [f"{data.get('source', '?')}, split {data.get('split', '?')}"],
        "Labels": [w.count(len(labels)) if labels else "none: answers are generated"],
        "Measured at": [str(facts.get("created") or "–")[:16].replace("T", " ")],
    }


def _seconds(run: RunFiles) -> float | None:
    # run.json is written before the first step and after the last: an unfinished run's time is in its metrics.
    logged = run.train[-1].get("seconds") if run.train else None
    return max(run.record.progress.seconds, logged or 0.0) or None


def _counts(data: Figures) -> str:
    """How many images of each split were used, and the total if it differs."""
    counts = []
    for name, split in (data.get("splits") or {}).items():
        used, available = split.get("used"), split.get("found")
        of_all = f" of {w.count(available)}" if available is not None and available != used else ""
        counts.append(f"{w.count(used)}{of_all} {name}")
    return ", ".join(counts) or "–"


def _parameters(record: RunRecord) -> str:
    trainable, total = record.trainable_parameters, record.total_parameters
    return f"{w.count(trainable)} ({w.percent(trainable / total, 2)} of all)" if total else "–"


def _versions(versions: Figures) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items()) or "–"
