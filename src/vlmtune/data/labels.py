"""The closed set of answers: the labels, their order, and their surface forms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vlmtune.config.schema import TaskSection
from vlmtune.data.read.source import some
from vlmtune.errors import DataError, unknown_name
from vlmtune.records import Example, LabelSet, clean_label


def build_label_set(
    task: TaskSection, examples: Sequence[Example], class_names: Sequence[str] | None, where: str
) -> tuple[LabelSet, str]:
    """The label set of a closed task, and its source.

    The task's own labels (`TaskSection.fixed_labels`) decide, in their order; else the source's ClassLabel names, in
    theirs; else, where the data hold numbers and `task.label_names` names them, its keys; else the labels found in the
    data, sorted. With ClassLabel names, a number in `task.labels`, `task.levels` or `task.label_names` means the class
    of that index.

    Where examples have questions of their own, answers outside the set are ignored.

    Raises DataError: a row whose label is not in the set (with file and row), a name for an unknown label,
    two labels that share a surface form, fewer than two labels, levels that are neither numbers nor put in
    order.
    """
    key = "task.levels" if task.is_ordered else "task.labels"
    names = {clean_label(label): _as_tuple(name) for label, name in (task.label_names or {}).items()}
    given = None if task.fixed_labels is None else [clean_label(label) for label in task.fixed_labels]
    class_names = None if task.is_bool or class_names is None else [clean_label(name) for name in class_names]
    if class_names is not None:
        if twice := _twice(class_names):
            raise DataError(f"{where}: ClassLabel has the name '{twice[0]}' twice. Every class needs its own name.")
        names = _indices_to_names(names, class_names, "task.label_names")
        if given is not None:
            given = list(_indices_to_names(dict.fromkeys(given, ()), class_names, key))

    in_data = {clean_label(answer) for example in examples for answer in example.answers if answer.strip()}
    are_numbers = bool(in_data) and all(map(_is_number, in_data))
    if given is not None:
        stored, origin = given, "the task's type" if task.is_bool else key
    elif class_names is not None:
        stored, origin = class_names, "the source's class names"
    elif are_numbers and names:
        stored, origin = list(names), "task.label_names"
    elif task.is_ordered and not are_numbers:
        raise DataError(
            f"{where}: the levels of a score are not numbers ({some(sorted(in_data))}), so nothing says which is "
            "higher. List them from low to high in task.levels."
        )
    else:
        stored, origin = sorted(in_data, key=float) if are_numbers else sorted(in_data), "the data"
    if task.is_ordered and origin == "task.label_names":
        stored = sorted(stored, key=float)

    known = set(stored)
    if not task.asks_from_data:
        _refuse_strays(examples, stored, "no or yes" if task.is_bool else origin)
    for label in names:
        if label not in known:
            raise DataError(
                f"task.label_names names a label that is not there. {unknown_name('label', label, stored)} "
                f"If images of it may come later, list all labels in {key}."
            )
    if len(stored) < 2:
        raise DataError(
            f"{where}: there {'is only one label (' + stored[0] + ')' if stored else 'are no labels'}. "
            f"A classifier needs at least two. Check data.label_column and the folders."
        )
    return LabelSet.build(stored, names), origin


_TRUE, _FALSE = frozenset(("1", "true", "yes", "y", "t")), frozenset(("0", "false", "no", "n", "f"))


def normalize_bool(text: str) -> str:
    """ "no" or "yes" for the usual ways to write them (0/1, true/false, y/n, any case); other text is unchanged."""
    word = text.strip().casefold()
    return "yes" if word in _TRUE else "no" if word in _FALSE else text


def _refuse_strays(examples: Sequence[Example], stored: Sequence[str], set_name: str) -> None:
    """Raise DataError for rows whose label is not in the set."""
    known = set(stored)
    strays = [example for example in examples if example.answers[0] not in known]
    if strays:
        labels = sorted({example.answers[0] for example in strays})
        more = f" ({len(strays)} rows in all, with {len(labels)} such labels)" if len(strays) > 1 else ""
        raise DataError(
            f"{strays[0].origin}: a label is not in {set_name}{more}. "
            f"{unknown_name('label', strays[0].answers[0], stored)} Correct the data, or add the label to {set_name}."
        )


def _as_tuple(name: str | Sequence[str]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else tuple(name)


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?", label) is not None


def _indices_to_names(
    values: dict[str, tuple[str, ...]], class_names: Sequence[str], key: str
) -> dict[str, tuple[str, ...]]:
    """Replace class indices by class names, unless the values already are names."""
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


def _twice(values: Sequence[str]) -> list[str]:
    return sorted(value for value, count in Counter(values).items() if count > 1)
