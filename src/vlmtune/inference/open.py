"""A predictor from what a person names: a run, a checkpoint, a model folder, a hub id, or `builtin:tiny`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmtune.config.load import load_experiment
from vlmtune.config.schema import TaskSection
from vlmtune.errors import UserError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import OpenedModel
from vlmtune.models.source import locate
from vlmtune.records import LabelSet
from vlmtune.runs.manifest import read_manifest
from vlmtune.runs.open import find_run, open_adapted
from vlmtune.runs.record import read_record


def open_predictor(
    model: str, *, labels: Sequence[str] | None = None, is_question: bool = False, batch_size: int | None = None
) -> Predictor:
    """Open a model together with its task.

    Args:
        model: see `adapters.open.open_adapted`.
        labels: a label set; default: the one the run was trained with.
        is_question: the images will be asked questions, so no label set is needed. Of a run that learned questions
            with a closed list of answers, that list is the label set.

    Raises:
        UserError: nothing says which labels there are.
    """
    task, stored = read_task(model)
    if is_question and not task.asks_from_data:
        task, stored = TaskSection(type="text"), None
    if labels is None:
        labels = stored
    if labels is None and task.is_closed:
        raise UserError(f"{model}: no run folder, so nothing says which labels there are. Name them: --labels a,b,c")
    opened: OpenedModel = open_adapted(model)
    return Predictor(opened, task, None if labels is None else label_set(labels, task), batch_size)


def read_task(model: str) -> tuple[TaskSection, tuple[str, ...] | None]:
    """What MODEL was trained to be asked, and its labels: (a plain classification, None) where nothing says so."""
    run = find_run(Path(model))
    if run is None:
        manifest = read_manifest(locate(model))  # an exported folder, here or on the hub
        return (TaskSection(), None) if manifest is None else (manifest.task, manifest.labels)
    task = load_experiment(run, must_exist=False).task.after_first_epoch()
    stored = read_record(run).labels
    return task, None if stored is None else tuple(stored)


def label_set(stored: Sequence[str], task: TaskSection) -> LabelSet:
    """Stored labels with the names the task shows for them. Raises DataError as `LabelSet.build` does."""
    return LabelSet.build(stored, task.label_names)
