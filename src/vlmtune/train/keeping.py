"""A run's checkpoints as it goes: resuming, writing, which stay, which is the best, what is averaged.

Called by the loop; the files themselves are `checkpoints`' matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from vlmtune.adapters.peft_files import load_adapter
from vlmtune.adapters.plan import AdapterPlan
from vlmtune.config.schema import Experiment
from vlmtune.runs.checkpoints import average_checkpoints, load_checkpoint, mark_best, prune, save_checkpoint
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.record import Progress
from vlmtune.train.optimizer import ScheduledOptimizer


class CheckpointKeeper:
    """Keeps the checkpoints of one run.

    Args:
        run: the run's folder.
        experiment: says how many stay.
        model, plan, optimizer: what a checkpoint holds.
    """

    def __init__(
        self, run: Path, experiment: Experiment, model: nn.Module, plan: AdapterPlan, optimizer: ScheduledOptimizer
    ) -> None:
        self.run, self.experiment = run, experiment
        self.model, self.plan, self.optimizer = model, plan, optimizer

    def resume(self) -> Progress:
        """Restore the newest checkpoint. A run that was cut off before its first one begins again: it lost nothing."""
        found = RunLayout(self.run).list_checkpoints()
        if not found:
            return Progress()
        return load_checkpoint(found[-1], self.model, self.plan, self.optimizer.adamw, self.optimizer.names)

    def save(self, progress: Progress, *, is_validated: bool | None) -> None:
        """Write a checkpoint of the current step, link it if it is the best, and remove what need not stay.

        Args:
            progress: with the step's accuracy as the last of its history, if it was validated.
            is_validated: whether it was; None for a run that never validates, whose last step counts as best.
        """
        train = self.experiment.train
        is_best = is_validated is None or (is_validated and progress.best_steps(1) == [progress.step])
        if is_best and is_validated:
            progress.best_step, progress.best_accuracy = progress.history[-1]
        checkpoint = save_checkpoint(
            self.run,
            progress,
            self.model,
            self.plan,
            self.optimizer.adamw,
            self.optimizer.names,
            self.experiment.model.base,
        )
        if is_best:
            mark_best(self.run, checkpoint)
        prune(self.run, max(train.keep_checkpoints, train.average_last), progress.best_steps(train.keep_best))

    def average(self) -> Path | None:
        """Write the mean of the last checkpoints; None if the experiment asks for none, or there is only one."""
        num = self.experiment.train.average_last
        last = RunLayout(self.run).list_checkpoints()[-num:]
        return average_checkpoints(self.run, last) if num > 1 and len(last) > 1 else None

    @contextmanager
    def loaded(self, checkpoint: Path) -> Iterator[None]:
        """The model with a checkpoint's weights; afterwards it has those of the newest again."""
        load_adapter(checkpoint, self.model, self.plan)
        yield
        load_adapter(RunLayout(self.run).list_checkpoints()[-1], self.model, self.plan)
