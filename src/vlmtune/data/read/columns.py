"""Which column holds the images, the labels, the questions: asked for by name, or recognized by type or name."""

from __future__ import annotations

from collections.abc import Sequence

from vlmtune.errors import DataError, unknown_name

IMAGE_NAMES = (
    "image", "img", "picture", "photo", "image_path", "img_path", "file_name", "filename", "image_file", "path",
    "file", "filepath", "file_path", "images",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "answer")
SPLIT_NAMES = ("split",)
QUESTION_NAMES = ("question", "query", "questions")
ANSWER_NAMES = ("answers", "answer", "multiple_choice_answer", "label")
QUESTION_ID_NAMES = ("question_id", "questionid", "qid")
IMAGE_ID_NAMES = ("image_id", "imageid", "img_id")
_USUAL = {"image": IMAGE_NAMES, "label": LABEL_NAMES, "question": QUESTION_NAMES, "answer": ANSWER_NAMES}


def find_column(role: str, asked: str | None, columns: Sequence[str], where: str, typed: Sequence[str] = ()) -> str:
    """The column that plays a role in one table.

    Args:
        role: "image", "label", "question" or "answer"; the key to set is `data.{role}_column`.
        asked: the name in the experiment file, or None to recognize the column.
        columns: all column names.
        where: the file or data set, for messages.
        typed: columns whose type says that they play the role (Image, ClassLabel).

    Raises DataError, listing the columns, if the column is missing or the choice is not clear.
    """
    if asked is not None:
        if asked in columns:
            return asked
        raise DataError(
            f"{where}: {unknown_name('column', asked, columns)} Set data.{role}_column to one of these columns."
        )
    usual = _USUAL[role]
    by_name = _by_name(columns)
    # The type decides before the name; among several of the right type the most usual name does.
    for candidates in (typed, columns):
        for name in usual:
            if name in by_name and by_name[name] in candidates:
                return by_name[name]
        if candidates is typed and len(typed) == 1:
            return typed[0]
    found = (
        f"several columns could hold the {role} ({', '.join(typed)})"
        if typed
        else f"no column for the {role} was recognized (looked for {', '.join(usual)})"
    )
    raise DataError(
        f"{where}: {found}. Columns: {', '.join(columns) or '(none)'}. Set data.{role}_column to one of them."
    )


def usual_column(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first column with one of some usual names, for what a table need not have."""
    by_name = _by_name(columns)
    return next((by_name[name] for name in names if name in by_name), None)


def _by_name(columns: Sequence[str]) -> dict[str, str]:
    return {name.strip().casefold(): name for name in reversed(columns)}
