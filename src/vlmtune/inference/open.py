"""A predictor from what a person names: a run, a checkpoint, a model folder, a hub id, or `builtin:tiny`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlmtune.adapters.open import find_run, open_adapted
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import TaskSection
from vlmtune.errors import UserError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import OpenedModel
from vlmtune.records import LabelSet


def open_predictor(
    model: str, *, labels: Sequence[str] | None = None, is_question: bool = False, batch_size: int | None = None
) -> Predictor:
    """Open a model together with its task.

    Args:
        model: see `adapters.open.open_adapted`.
        labels: a label set; default: the one the run was trained with.
        is_question: the pictures will be asked questions, so no label set is needed.

    Raises:
        UserError: nothing says which labels there are.
    """
    run = find_run(Path(model))
    task = TaskSection(kind="vqa" if is_question else "classify")
    if run is not None and not is_question:
        task = load_experiment(run / "config.yaml", must_exist=False).task.after_first_epoch()
        if labels is None:
            labels = json.loads((run / "run.json").read_text(encoding="utf-8"))["labels"]
    if labels is None and not is_question:
        raise UserError(f"{model}: no run folder, so nothing says which labels there are. Name them: --labels a,b,c")
    opened: OpenedModel = open_adapted(model)
    return Predictor(opened, task, None if labels is None else label_set(labels, task), batch_size)


def label_set(stored: Sequence[str], task: TaskSection) -> LabelSet:
    """Stored labels with the names the task shows for them."""
    names = task.label_names or {}
    shown = [names.get(label, label) for label in stored]
    return LabelSet(tuple(stored), tuple((name,) if isinstance(name, str) else tuple(name) for name in shown))
