"""A predictor from what the user names: a run, a checkpoint, a model folder, a hub id, or `builtin:tiny`."""

from __future__ import annotations

from collections.abc import Sequence

from vlmtune.config.schema import TaskSection
from vlmtune.errors import UserError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import OpenedModel
from vlmtune.records import LabelSet
from vlmtune.runs.open import open_adapted, read_task


def open_predictor(
    model: str, *, labels: Sequence[str] | None = None, is_question: bool = False, batch_size: int | None = None
) -> Predictor:
    """Open a model together with its task.

    Args:
        model: see `runs.open.open_adapted`.
        labels: a label set; default: the one the run was trained with.
        is_question: the images will be asked questions, so no label set is needed. Of a run that learned questions
            with a closed list of answers, that list is the label set.

    Raises:
        UserError: no source of labels.
    """
    task, stored = read_task(model)
    if is_question and not task.asks_from_data:
        task, stored = TaskSection(type="text"), None
    if labels is None:
        labels = stored
    if labels is None and task.is_closed:
        raise UserError(f"{model}: no run folder, so nothing says which labels there are. Name them: --labels a,b,c")
    opened: OpenedModel = open_adapted(model)
    return Predictor(opened, task, None if labels is None else LabelSet.build(labels, task.label_names), batch_size)
