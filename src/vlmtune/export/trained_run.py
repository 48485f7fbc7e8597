"""What an export starts from: the trained model of a run, its task, and held-out images to judge the export by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment, TaskSection
from vlmtune.data.sampling import subset
from vlmtune.data.splits import TEST_SEED, Splits
from vlmtune.errors import DataError, RunFolderError
from vlmtune.evaluate.files import FACTS_FILE
from vlmtune.files import read_json
from vlmtune.records import Example, LabelSet
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.open import AdaptedModel, find_checkpoint, find_run, open_adapted
from vlmtune.runs.prepare import image_overrides, load_data


@dataclass
class TrainedRun:
    """A run to be exported.

    Attributes:
        folder: of the run. checkpoint: the folder of the adapter that is exported.
        experiment: with every decision made.
        task: as after training. labels: the closed set, or None for open answers.
        held_out: examples for the gate. split: which split they are from.
        evaluations: the facts of the run's own evaluations (evaluation.json), newest last.
    """

    folder: Path
    checkpoint: Path
    experiment: Experiment
    task: TaskSection
    labels: LabelSet | None
    held_out: list[Example]
    split: str
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    def open(self, *, dtype: str | None = None, keep_adapter: bool = False) -> AdaptedModel:
        """The trained model; ``dtype`` None is the one it was measured in."""
        model = self.experiment.model
        return open_adapted(
            str(self.checkpoint),
            dtype=dtype or model.dtype,
            device=model.device,
            image_overrides=image_overrides(model),
            keep_adapter=keep_adapter,
        )


def open_trained_run(run: Path, num_images: int, overrides: Sequence[str] = ()) -> TrainedRun:
    """Read a run, or one checkpoint of it, and choose the images for the gate.

    Args:
        run: a run folder (stands for its best checkpoint) or a checkpoint's folder.
        num_images: maximum number of held-out images.
        overrides: KEY=VALUE for the run's configuration, such as another location of the data.

    Raises:
        RunFolderError: not a run, or without a checkpoint. DataError: no held-out images.
    """
    folder = find_run(run)
    if folder is None:
        raise RunFolderError(
            f"{run}: not a run folder or a checkpoint of one, so there is nothing trained to export. Give runs/NAME or "
            "runs/NAME/checkpoints/step-NNNNNN."
        )
    checkpoint = find_checkpoint(folder) if run.resolve() == folder.resolve() else run.resolve()
    experiment, splits = load_data(load_experiment(folder, overrides, must_exist=False))
    split, held_out = _held_out(splits)
    return TrainedRun(
        folder=folder,
        checkpoint=checkpoint,
        experiment=experiment,
        task=experiment.task.after_first_epoch(),
        labels=splits.labels,
        # A seeded choice, stratified: the first images of a split would often be of one class.
        held_out=subset(held_out, num_images, TEST_SEED, "export gate"),
        split=split,
        evaluations=_evaluations(folder),
    )


def _held_out(splits: Splits) -> tuple[str, list[Example]]:
    for name, examples in (("test", splits.test), ("validation", splits.validation)):
        if examples:
            return name, examples
    raise DataError("The experiment has no held-out images, by which the export could be judged: no test split.")


def _evaluations(run: Path) -> list[dict[str, Any]]:
    """The facts of the run's evaluations. Raises for an unreadable one: a card leaves none out silently."""
    paths = sorted(RunLayout(run).evaluations.glob(f"*/{FACTS_FILE}"))
    evaluations = [read_json(path, advice="Run `vlmtune evaluate` again.") for path in paths]
    return sorted(evaluations, key=lambda facts: str(facts.get("created", "")))
