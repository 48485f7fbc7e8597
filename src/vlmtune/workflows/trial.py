"""What the process of one trial of a search does.

Nothing heavy is imported before the trial begins: the number of threads and the device are set in its environment,
which torch reads when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmtune.runs.record import RunResult
    from vlmtune.train.loop import Report, Trainer
    from vlmtune.workflows.trial_processes import Link


def train_trial(link: Link, task: Mapping[str, Any]) -> dict[str, Any]:
    """An ordinary training without a test; returns its accuracy, whether it was pruned, and details."""

    from vlmtune.config.schema import Experiment
    from vlmtune.workflows.train import train

    experiment = Experiment.model_validate(task["experiment"])
    num_reported, is_pruned = 0, False

    def on_step(trainer: Trainer, report: Report) -> None:
        nonlocal num_reported, is_pruned
        link.step(report.step / report.num_steps)
        for _, accuracy in trainer.progress.history[num_reported:]:
            num_reported += 1
            if link.validated(accuracy) and not trainer.is_finished:
                trainer.progress.is_stopped = is_pruned = True

    result = train(experiment, with_test=False, on_step=on_step)
    details = {"steps": result.steps, "seconds": result.seconds, "loss": _loss(result)}
    return {"accuracy": result.best_accuracy, "is_pruned": is_pruned, "details": details}


def _loss(result: RunResult) -> float | None:
    """Validation loss at the best step."""
    from vlmtune.report.sources import read_run

    lines = [line for line in read_run(Path(result.run)).validation if line["step"] == result.best_step]
    return lines[-1].get("loss") if lines else None
