"""Level that ask: from a table's cells, whatever wrote them, to a question with its annotators' answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.read.columns import (
    ANSWER_NAMES,
    IMAGE_ID_NAMES,
    QUESTION_ID_NAMES,
    find_column,
    usual_column,
)
from vlmtune.data.read.rows import Row, Source
from vlmtune.errors import DataError
from vlmtune.records import ImageSource

NUM_ANNOTATORS = 10
"""VQA's: the official accuracy is made for ten answers, and gives 0 where there is only one."""


@dataclass(frozen=True, slots=True)
class QuestionColumns:
    """Where a table holds what a question has. A table without answers, as of a test set, is allowed."""

    question: str
    answer: str | None
    question_id: str | None
    image_id: str | None
    question_type: str | None
    answer_type: str | None

    @classmethod
    def find(cls, data: DataSection, columns: Sequence[str], where: str) -> QuestionColumns:
        """Recognize the columns by the experiment file, or by their usual names. Raises DataError without questions."""
        has_answers = data.answer_column is not None or usual_column(ANSWER_NAMES, columns) is not None
        return cls(
            question=find_column("question", data.question_column, columns, where),
            answer=find_column("answer", data.answer_column, columns, where) if has_answers else None,
            question_id=usual_column(QUESTION_ID_NAMES, columns),
            image_id=usual_column(IMAGE_ID_NAMES, columns),
            question_type=usual_column(("question_type",), columns),
            answer_type=usual_column(("answer_type",), columns),
        )

    @property
    def names(self) -> list[str]:
        """The columns that are read, the image's aside."""
        return [name for name in (getattr(self, field.name) for field in fields(self)) if name is not None]

    def rows(self, origin: str, cells: Mapping[str, Any], image: ImageSource | None, image_id: str) -> list[Row]:
        """The row's one question: see `row`. Raises ValueError also where there is no image."""
        if image is None:
            raise ValueError("there is no image. Remove the row.")
        return [self.row(origin, cells, image, image_id)]

    def row(self, origin: str, cells: Mapping[str, Any], image: ImageSource, image_id: str) -> Row:
        """One question. Its id is empty where the table numbers no questions.

        Args:
            origin: where a person finds the row.
            cells: by column.
            image: shared by the questions about one image.
            image_id: what `image_id` is where the table has no such column.

        Raises ValueError saying what is wrong with the row.
        """
        question = cells.get(self.question)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f"the question (column '{self.question}') is {_shown(question)}. Write one, or remove the row."
            )
        return Row(
            id=_text(cells, self.question_id) or "",
            image=image,
            answers=() if self.answer is None else read_answers(cells.get(self.answer), self.answer),
            origin=origin,
            question=question.strip(),
            question_type=_text(cells, self.question_type),
            answer_type=_text(cells, self.answer_type),
            image_id=_text(cells, self.image_id) or image_id,
        )

    def check(self, rows: Sequence[Row], source: Source, where: str) -> None:
        """Refuse question ids that stand twice; note what a reader should know about the answers."""
        refuse_repeated_ids(rows, where)
        if rows and self.answer is not None and all(row.answers == row.answers[:1] * NUM_ANNOTATORS for row in rows):
            source.notes.append(
                f"{where}: one answer a question, which counts as given by {NUM_ANNOTATORS} annotators (the official "
                f"accuracy of a single one is 0): an answer is right if it equals it to the letter"
            )


def read_answers(value: Any, column: str) -> tuple[str, ...]:
    """A cell's answers: text, a list of texts, or of records with an `answer`; one alone is repeated ten times.

    None and an empty list are no answers, as in a test set. Raises ValueError for anything else.
    """
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    answers = []
    for number, item in enumerate(values, start=1):
        text = item.get("answer") if isinstance(item, Mapping) else item
        if isinstance(text, bool):
            text = "yes" if text else "no"
        elif isinstance(text, int | float):
            text = str(int(text)) if text == int(text) else str(text)
        if not isinstance(text, str):
            raise ValueError(
                f"answer {number} (column '{column}') is {_shown(item)}. Expected text, a list of texts, or of records "
                "with the key 'answer'."
            )
        answers.append(text)
    if not any(answer.strip() for answer in answers):
        # An empty cell is a question without answers; an annotator's empty answer among others stays what it is.
        return ()
    return tuple(answers * NUM_ANNOTATORS if len(answers) == 1 else answers)


def refuse_repeated_ids(rows: Sequence[Row], where: str) -> None:
    """Raise DataError if a question id stands twice."""
    counts = Counter(row.id for row in rows)
    repeated = [row for row in rows if counts[row.id] > 1]
    if repeated:
        first, second = repeated[0], next(row for row in repeated[1:] if row.id == repeated[0].id)
        raise DataError(
            f"{where}: the question id {first.id} stands twice: {first.origin}, and {second.origin} "
            f"({len(repeated)} such rows). Give every question an id of its own, or remove one."
        )


def _text(cells: Mapping[str, Any], column: str | None) -> str | None:
    """A short cell as text: an id that a file holds as a number, a type."""
    value = None if column is None else cells.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _shown(value: Any) -> str:
    return "empty" if value is None or value == "" else f"{value!r}, a {type(value).__name__}"
