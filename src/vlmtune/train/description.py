"""`run.json`: everything a reader of the run folder needs that is not in the experiment file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlmtune.runs.folder import environment, now
from vlmtune.train.loop import Trainer


def describe_run(trainer: Trainer, started: str) -> dict[str, Any]:
    """Plain JSON data, before, during and after training; ``started`` is the time of the run's first session."""
    labels = trainer.splits.labels
    return {
        "name": trainer.experiment.name,
        "seed": trainer.experiment.seed,
        "base": trainer.experiment.model.base,
        "environment": environment(),
        "data": trainer.splits.description,
        "labels": list(labels.stored) if labels else None,
        "trainable_parameters": trainer.plan.num_trainable,
        "total_parameters": trainer.plan.num_total,
        "learned": trainer.plan.summary(),
        "num_steps": trainer.num_steps,
        "started": started,
        "finished": now() if trainer.is_finished else None,
        "progress": asdict(trainer.progress),
        "unreadable": trainer.reader.unreadable,
        "feature_cache": trainer.cache_note,
    }
