"""The closed set of answers: which labels there are, in which order, and the words the model is shown for each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vlmtune.config.schema import TaskSection
from vlmtune.data.read.rows import Row, clean_label
from vlmtune.errors import DataError, unknown_name
from vlmtune.records import LabelSet


def build_label_set(
    task: TaskSection, rows: Sequence[Row], class_names: Sequence[str] | None, where: str
) -> tuple[LabelSet, str]:
    """The label set of a classification task, and where it comes from.

    `task.labels` decides, in its order; else the source's ClassLabel names, in theirs; else, where the data hold
    numbers and `task.label_names` names them, its keys; else the labels found in the data, sorted.
    With ClassLabel names, a number in `task.labels` or `task.label_names` means the class of that index.

    Raises DataError: a row whose label is not in the set (with file and row), a name for a label that is not
    there, two labels shown alike, fewer than two labels.
    """
    names = _shown_names(task)
    given = None if task.labels is None else [clean_label(label) for label in task.labels]
    if given is not None and (twice := _twice(given)):
        raise DataError(f"task.labels holds '{twice[0]}' twice. List every label once.")
    if class_names is not None:
        twice = _twice(class_names)
        if twice:
            raise DataError(f"{where}: ClassLabel has the name '{twice[0]}' twice. Every class needs its own name.")
        names = _indices_to_names(names, class_names, "task.label_names")
        if given is not None:
            given = list(_indices_to_names(dict.fromkeys(given, ()), class_names, "task.labels"))

    found = {row.answers[0]: row for row in reversed(rows)}  # label -> its first row
    are_numbers = bool(found) and all(re.fullmatch(r"-?\d+", label) for label in found)
    if given is not None:
        stored, origin, set_name = given, "task.labels", "task.labels"
    elif class_names is not None:
        stored, origin, set_name = list(class_names), "the source's class names", "the source's class names"
    elif are_numbers and names:
        stored, origin, set_name = list(names), "task.label_names", "task.label_names"
    else:
        stored = sorted(found, key=int) if are_numbers else sorted(found)
        origin, set_name = "the data", "the data"

    known = set(stored)
    strays = [row for row in rows if row.answers[0] not in known]
    if strays:
        labels = sorted({row.answers[0] for row in strays})
        more = f" ({len(strays)} rows in all, with {len(labels)} such labels)" if len(strays) > 1 else ""
        raise DataError(
            f"{strays[0].origin}: a label is not in {set_name}{more}. "
            f"{unknown_name('label', strays[0].answers[0], stored)} Correct the data, or add the label to {set_name}."
        )
    for label in names:
        if label not in known:
            raise DataError(
                f"task.label_names names a label that is not there. {unknown_name('label', label, stored)} "
                f"If images of it may come later, list all labels in task.labels."
            )
    if len(stored) < 2:
        raise DataError(
            f"{where}: there {'is only one label (' + stored[0] + ')' if stored else 'are no labels'}. "
            f"A classifier needs at least two. Check data.label_column and the folders."
        )
    shown = tuple(names.get(label) or (label,) for label in stored)
    _check_told_apart(stored, shown)
    return LabelSet(tuple(stored), shown), origin


def build_answer_list(task: TaskSection) -> LabelSet | None:
    """The closed list of answers of a question task, from `task.labels`; None where answers are open.

    White space inside an answer counts as one space, as in the targets that are learned. Raises DataError for an answer
    that stands twice or is shown as another one is.
    """
    if task.labels is None:
        return None
    stored = tuple(" ".join(clean_label(label).split()) for label in task.labels)
    if twice := _twice(stored):
        raise DataError(f"task.labels holds '{twice[0]}' twice. List every answer once.")
    names = _shown_names(task)
    shown = tuple(names.get(answer) or (answer,) for answer in stored)
    _check_told_apart(stored, shown)
    return LabelSet(stored, shown)


def _shown_names(task: TaskSection) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for label, forms in (task.label_names or {}).items():
        texts = tuple(clean_label(form) for form in ([forms] if isinstance(forms, str) else forms))
        if not texts or not all(texts):
            raise DataError(f"task.label_names: the name of '{label}' is empty. Write the words the model is shown.")
        names[clean_label(label)] = texts
    return names


def _indices_to_names(
    values: dict[str, tuple[str, ...]], class_names: Sequence[str], key: str
) -> dict[str, tuple[str, ...]]:
    """Replace class indices by class names, unless the names are themselves what is written."""
    if not values or any(value in class_names for value in values):
        return values
    if not all(value.isdecimal() for value in values):
        return values
    beyond = [value for value in values if int(value) >= len(class_names)]
    if beyond:
        raise DataError(
            f"{key}: '{beyond[0]}' is no class index; the source has {len(class_names)} classes, "
            f"0 ({class_names[0]}) to {len(class_names) - 1} ({class_names[-1]})."
        )
    return {class_names[int(value)]: forms for value, forms in values.items()}


def _check_told_apart(stored: Sequence[str], shown: Sequence[tuple[str, ...]]) -> None:
    owner: dict[str, str] = {}
    for label, forms in zip(stored, shown, strict=True):
        for form in forms:
            if owner.setdefault(form, label) != label:
                raise DataError(
                    f"The labels '{owner[form]}' and '{label}' are both shown as '{form}', so no answer could tell "
                    f"them apart. Give them different names in task.label_names, or merge them in the data."
                )


def _twice(values: Sequence[str]) -> list[str]:
    return sorted(value for value, count in Counter(values).items() if count > 1)
