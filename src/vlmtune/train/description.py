"""What is known of a run besides its experiment, taken from its trainer."""

from __future__ import annotations

from vlmtune.runs.environment import environment, now
from vlmtune.runs.record import RunRecord
from vlmtune.train.loop import Trainer


def describe_run(trainer: Trainer, started: str) -> RunRecord:
    """The record before, during and after training; ``started`` is the time of the run's first session."""
    labels = trainer.splits.labels
    return RunRecord(
        name=trainer.experiment.name,
        seed=trainer.experiment.seed,
        base=trainer.experiment.model.base,
        environment=environment(),
        data=dict(trainer.splits.description),
        labels=list(labels.stored) if labels else None,
        trainable_parameters=trainer.plan.num_trainable,
        total_parameters=trainer.plan.num_total,
        learned=trainer.plan.summary(),
        num_steps=trainer.num_steps,
        started=started,
        finished=now() if trainer.is_finished else None,
        progress=trainer.progress,
        unreadable=trainer.reader.unreadable,
        feature_cache=trainer.cache_note,
    )
