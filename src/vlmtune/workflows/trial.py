"""The process of one trial of a search: an ordinary training without a test, which reports to the search's journal.

Nothing heavy is imported before the trial begins: the number of threads and the device are set in its environment,
which torch reads when it is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmtune.runs.record import RunResult
    from vlmtune.train.loop import StepEvent, Trainer
    from vlmtune.workflows.trials import TrialHandle


@dataclass(frozen=True)
class TrialTask:
    """What a trial's process is started with.

    Attributes:
        search: the folder of the search. number: of the trial. pruner: its name in the experiment file.
        experiment: the trial's experiment as plain values.
        environment: changes to the process's environment.
        log: receives what the trial prints.
    """

    search: Path
    number: int
    pruner: str
    experiment: Mapping[str, Any]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def run_trial(task: TrialTask) -> None:
    """Train, and leave the outcome in the journal. A process that dies without one was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the search, which ends its trials
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(task.environment)
    with task.log.open("a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        from vlmtune.errors import UserError
        from vlmtune.workflows.trials import TrialHandle

        handle = TrialHandle.open(task.search, task.number, task.pruner)
        try:
            train_trial(handle, task.experiment)
        except UserError as error:
            handle.fail(str(error))
        except Exception as error:
            traceback.print_exc()
            handle.fail(f"{type(error).__name__}: {error} (traceback in {task.log})")


def train_trial(handle: TrialHandle, values: Mapping[str, Any]) -> None:
    """Train the experiment with these values, and end early if the search prunes it."""
    from vlmtune.config.schema import Experiment
    from vlmtune.workflows.train import train

    num_reported, is_pruned = 0, False

    def on_step(trainer: Trainer, event: StepEvent) -> None:
        nonlocal num_reported, is_pruned
        if event.step == 1:
            handle.expect(-(-event.num_steps // (trainer.experiment.train.eval_every or 1)))
        for _, accuracy in trainer.progress.history[num_reported:]:
            num_reported += 1
            if handle.report(accuracy) and not trainer.is_finished:
                trainer.progress.is_stopped = is_pruned = True

    result = train(Experiment.model_validate(values), with_test=False, on_step=on_step)
    details = {"steps": result.steps, "seconds": result.seconds, "loss": _loss(result)}
    assert result.best_accuracy is not None
    handle.finish(result.best_accuracy, details, is_pruned=is_pruned)


def _loss(result: RunResult) -> float | None:
    """Validation loss at the best step."""
    from vlmtune.report.sources import read_run

    lines = [line for line in read_run(Path(result.run)).validation if line["step"] == result.best_step]
    return lines[-1].get("loss") if lines else None


def _end_with_parent() -> None:
    """End this process when the search's ends, however that happens."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
