"""The one column mapper: the meaning of a table's columns.

In: an experiment's `data` section, and a table's column names. Out: a `RowMapping`, which turns rows into examples.
A column is the one that the experiment names, or is recognized by its type or its usual name. Called per table by
the readers of text tables and of Arrow tables, which only differ in where cells and images come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmtune.config.schema import DataSection
from vlmtune.data.read.rows import Captions, Conversations, Labels, Questions, RowMapping
from vlmtune.errors import DataError, unknown_name

USUAL_NAMES = {
    "image": (
        "image", "img", "picture", "photo", "image_path", "img_path", "file_name", "filename", "image_file", "path",
        "file", "filepath", "file_path", "images",
    ),
    "label": ("label", "labels", "class", "class_name", "category", "target", "answer"),
    "question": ("question", "query", "questions"),
    "answer": ("answers", "answer", "multiple_choice_answer", "label"),
    "caption": ("caption", "captions", "sentences", "sentence", "text", "blip_caption"),
    "conversation": ("conversations", "conversation", "messages"),
    "split": ("split",),
    "question_id": ("question_id", "questionid", "qid"),
    "image_id": ("image_id", "imageid", "img_id"),
    "id": ("id", "conversation_id", "image_id", "imageid", "img_id"),
    "question_type": ("question_type",),
    "answer_type": ("answer_type",),
}  # fmt: skip
"""Role -> usual column names, the most usual first."""


def find_column(role: str, name: str | None, columns: Sequence[str], where: str, typed: Sequence[str] = ()) -> str:
    """The column that plays a role in one table.

    Args:
        role: "image", "label", "question"…; the key to set is `data.{role}_column`.
        name: as the experiment names it, or None to recognize the column.
        columns: all column names.
        where: the file or data set, for messages.
        typed: columns whose type fits the role (Image, ClassLabel).

    Raises DataError, listing the columns, if the column is missing or the choice is not clear.
    """
    if name is not None:
        if name in columns:
            return name
        raise DataError(
            f"{where}: {unknown_name('column', name, columns)} Set data.{role}_column to one of these columns."
        )
    # The type decides before the name; among several of the right type the most usual name does.
    recognized = usual_column(role, typed) or (typed[0] if len(typed) == 1 else usual_column(role, columns))
    if recognized is not None:
        return recognized
    problem = (
        f"several columns could hold the {role} ({', '.join(typed)})"
        if typed
        else f"no column for the {role} was recognized (looked for {', '.join(USUAL_NAMES[role])})"
    )
    raise DataError(
        f"{where}: {problem}. Columns: {', '.join(columns) or '(none)'}. Set data.{role}_column to one of them."
    )


def usual_column(role: str, columns: Sequence[str]) -> str | None:
    """The first column with one of a role's usual names, for what a table need not have."""
    by_name = {name.strip().casefold(): name for name in reversed(columns)}
    return next((by_name[name] for name in USUAL_NAMES[role] if name in by_name), None)


@dataclass(frozen=True, slots=True)
class ColumnMapper:
    """Chooses a table's columns for one experiment.

    Attributes:
        data: the experiment's section, which may name columns.
        has_questions: whether examples have their own questions instead of labels.
    """

    data: DataSection
    has_questions: bool

    def image_column(self, columns: Sequence[str], where: str, typed: Sequence[str] = ()) -> str:
        """The column of the images; see `find_column`."""
        return find_column("image", self.data.image_column, columns, where, typed)

    def choose(
        self, columns: Sequence[str], where: str, class_names: Mapping[str, tuple[str, ...]] | None = None
    ) -> RowMapping:
        """The mapping of a table's rows: labels, conversations, questions with answers, or captions.

        The experiment decides by naming a column, else the usual names do.

        Args:
            columns: all except the image's.
            where: the file or data set, for messages.
            class_names: of columns whose type is ClassLabel.

        Raises DataError if nothing fits.
        """
        data = self.data
        class_names = class_names or {}
        if not self.has_questions:
            label = find_column("label", data.label_column, columns, where, list(class_names))
            return Labels({"label": label}, class_names=class_names.get(label))
        names = {
            "conversation": data.conversation_column,
            "caption": data.caption_column,
            "question": data.question_column,
        }
        usual = {role: name or usual_column(role, columns) for role, name in names.items()}
        if usual["conversation"] and names["question"] is None and names["caption"] is None:
            chosen = {"conversation": find_column("conversation", usual["conversation"], columns, where)}
            return Conversations(chosen | _optional(columns, "id"), turns=data.turns)
        if usual["caption"] and (names["caption"] is not None or usual["question"] is None):
            chosen = {"caption": find_column("caption", usual["caption"], columns, where)}
            return Captions(chosen | _optional(columns, "id"), question=data.caption_question)
        chosen = {"question": find_column("question", data.question_column, columns, where)}
        if data.answer_column is not None or usual_column("answer", columns) is not None:
            chosen["answer"] = find_column("answer", data.answer_column, columns, where)
        return Questions(chosen | _optional(columns, "question_id", "image_id", "question_type", "answer_type"))


def _optional(columns: Sequence[str], *roles: str) -> dict[str, str]:
    recognized = {role: usual_column(role, columns) for role in roles}
    return {role: name for role, name in recognized.items() if name is not None}
