"""The rows of a table as examples: labels, questions with answers, captions or conversations.

In: `TableRow`s, whose cells a reader took from a file. Out: `Example`s. `columns.ColumnMapper` chooses the mapping.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlmtune.data.read.source import LeftOut, Source, refuse_problems, refuse_repeated_ids
from vlmtune.records import Example, ImageSource, Turn, clean_label

NUM_ANNOTATORS = 10
"""VQA's: the official accuracy is designed for ten answers, and gives 0 if there is only one."""

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_IMAGE_MARK = re.compile(r"\s*<image>\s*")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of any table.

    Attributes:
        id: the example's, where the table numbers no questions.
        origin: where the row is: "labels.csv, line 12".
        cells: by column.
        image: shared by the questions about one image; None in a row without one.
        image_id: equal for the rows about one image.
        has_image: false where the image's file is known to be missing.
        problem: why the row cannot be used, if the reader knows of a reason.
    """

    id: str
    origin: str
    cells: Mapping[str, Any]
    image: ImageSource | None
    image_id: str = ""
    has_image: bool = True
    problem: str = ""


@dataclass(slots=True)
class RowMapping:
    """How a table's rows become examples. One subclass for each kind of table.

    Attributes:
        columns: role -> column, except the image's; only roles with a column.
        left_out: reason -> number of items left out.
    """

    columns: dict[str, str]
    left_out: Counter[str] = field(default_factory=Counter)

    has_questions = True
    """Whether examples have questions of their own, so that several may be about one image."""
    may_lack_image = False
    """Whether a row without an image is left out and counted instead of refused."""

    def cell(self, row: TableRow, role: str) -> Any:
        """A row's cell; None where the table has no such column."""
        return row.cells.get(self.columns[role]) if role in self.columns else None

    def examples(self, row: TableRow, image: ImageSource) -> list[Example]:
        """The row's examples; an empty id means the row's. Raises ValueError for an invalid row."""
        raise NotImplementedError

    def check(self, examples: Sequence[Example], source: Source, where: str) -> None:
        """Check a table as a whole: raise for errors, add notes for the user."""

    def map_rows(self, rows: Iterable[TableRow], source: Source, where: str, counts: Counter[str]) -> list[Example]:
        """All rows of one table as examples.

        Args:
            rows: see `TableRow`.
            source: receives notes and items left out.
            where: the table, for messages.
            counts: id -> how often it was given; updated. One counter serves all tables whose ids must differ.

        Raises DataError naming the rows that cannot be used, up to `source.MAX_PROBLEMS` of them.
        """
        examples: list[Example] = []
        problems: list[str] = []
        for row in rows:
            try:
                for example in self._examples(row):
                    id_ = example.id
                    if not id_:
                        counts[row.id] += 1
                        id_ = row.id if counts[row.id] == 1 else f"{row.id}#{counts[row.id]}"
                    image_id = row.image_id if self.has_questions else None
                    examples.append(replace(example, id=id_, image_id=image_id, has_image=row.has_image))
            except ValueError as problem:
                problems.append(f"{row.origin}: {problem}")
        refuse_problems(problems, where)
        self.check(examples, source, where)
        for reason, count in self.left_out.items():
            source.left_out.append(LeftOut(f"{reason} ({where})", count))
        self.left_out.clear()
        return examples

    def _examples(self, row: TableRow) -> list[Example]:
        if row.problem:
            raise ValueError(row.problem)
        if row.image is not None:
            return self.examples(row, row.image)
        if not self.may_lack_image:
            raise ValueError("there is no image. Remove the row.")
        self.left_out["conversations without an image"] += 1
        return []


@dataclass(slots=True)
class Labels(RowMapping):
    """An image with its label.

    Attributes:
        class_names: of a ClassLabel, whose cells are numbers.
    """

    class_names: tuple[str, ...] | None = None
    has_questions = False

    def examples(self, row: TableRow, image: ImageSource) -> list[Example]:
        label = read_label(self.cell(row, "label"), self.columns["label"], self.class_names)
        return [Example("", image, (label,), origin=row.origin)]


@dataclass(slots=True)
class Questions(RowMapping):
    """A question with its annotators' answers. A table without answers, as of a test set, is allowed."""

    def examples(self, row: TableRow, image: ImageSource) -> list[Example]:
        question = self.cell(row, "question")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f"the question (column '{self.columns['question']}') is {_described(question)}. Write one, or remove "
                "the row."
            )
        answers = read_answers(self.cell(row, "answer"), self.columns["answer"]) if "answer" in self.columns else ()
        return [
            Example(
                id=short_text(self.cell(row, "question_id")) or "",
                image=image,
                answers=answers,
                question=question.strip(),
                question_type=short_text(self.cell(row, "question_type")),
                answer_type=short_text(self.cell(row, "answer_type")),
                origin=row.origin,
            )
        ]

    def check(self, examples: Sequence[Example], source: Source, where: str) -> None:
        refuse_repeated_ids(examples, where)
        if "answer" in self.columns and examples and all(e.answers == e.answers[:1] * NUM_ANNOTATORS for e in examples):
            source.notes.append(
                f"{where}: one answer a question, which counts as given by {NUM_ANNOTATORS} annotators (the official "
                f"accuracy of a single one is 0): an answer is right if it equals it to the letter"
            )


@dataclass(slots=True)
class Captions(RowMapping):
    """An image with one caption or several, as answers to one question."""

    question: str = ""

    def examples(self, row: TableRow, image: ImageSource) -> list[Example]:
        column = self.columns["caption"]
        captions = read_answers(self.cell(row, "caption"), column)
        if not captions:
            raise ValueError(f"the caption (column '{column}') is empty. Write one, or remove the row.")
        captions = tuple(" ".join(caption.split()) for caption in captions)
        return [Example("", image, captions, self.question, answer_type="caption", origin=row.origin)]

    def check(self, examples: Sequence[Example], source: Source, where: str) -> None:
        source.notes.append(
            f"{where}: {len(examples)} captions, as answers to {self.question!r} (data.caption_question)"
        )


@dataclass(slots=True)
class Conversations(RowMapping):
    """An image with a list of turns, `{"from": "human", "value": …}` or `{"role": "user", "content": …}`.

    One question per turn, with all earlier turns as its history: each answer is learned exactly as it would be given.

    Attributes:
        turns: ``all`` learns every answer, ``first`` the first one only (for families that take one question).
    """

    turns: str = "all"
    # Instruction data also contain conversations without an image.
    may_lack_image = True

    def examples(self, row: TableRow, image: ImageSource) -> list[Example]:
        column = self.columns["conversation"]
        messages = _messages(self.cell(row, "conversation"), column)
        if sum(text.count("<image>") for _, text in messages) > 1:
            self.left_out["conversations about several images"] += 1
            return []
        if messages and messages[0][0] == "system":
            self.left_out["system turns (task.system_prompt stands there)"] += 1
            messages = messages[1:]
        history: list[Turn] = []
        examples = []
        name = str(self.cell(row, "id") or "")
        for first in range(0, len(messages), 2):
            pair = messages[first : first + 2]
            if [speaker for speaker, _ in pair] != ["user", "assistant"][: len(pair)]:
                raise ValueError(
                    f"turn {first + 1} (column '{column}') is not where it should be: expected human and assistant "
                    f"in turns, found {', '.join(speaker for speaker, _ in messages[:6])}."
                )
            if len(pair) < 2:
                self.left_out["last questions without an answer"] += 1
                continue
            question, answer = _IMAGE_MARK.sub(" ", pair[0][1]).strip(), pair[1][1].strip()
            if not question or not answer:
                self.left_out["turns with an empty question or answer, and those after them"] += 1
                break
            if history and self.turns == "first":
                self.left_out["turns after the first (data.turns: first)"] += 1
                continue
            examples.append(
                Example(
                    id=f"{name}#{first // 2 + 1}" if name else "",
                    image=image,
                    # One answer, repeated as if by ten annotators: the official accuracy of a single one would be 0.
                    answers=(answer,) * NUM_ANNOTATORS,
                    question=question,
                    answer_type="turn",
                    history=tuple(history),
                    origin=f"{row.origin}, turn {first + 1}",
                )
            )
            history.append((question, answer))
        return examples

    def check(self, examples: Sequence[Example], source: Source, where: str) -> None:
        if "id" in self.columns:
            refuse_repeated_ids(examples, where)


def read_label(value: Any, column: str, class_names: Sequence[str] | None = None) -> str:
    """A cell as a stored label. Text stays text: `yes`, `no`, `0` and `1` are labels like any other.

    Args:
        value: text, a truth value, or a whole number, also as a float.
        column: its name, for messages.
        class_names: where numbers are indices of classes.

    Raises ValueError saying what is wrong with it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"  # as JSON writes it
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        raise ValueError(f"the label (column '{column}') is empty. Write a label, or remove the row.")
    if isinstance(value, str):
        return clean_label(value)
    if not isinstance(value, int | float) or not float(value).is_integer():
        kind = type(value).__name__
        raise ValueError(
            f"the label is {value!r}, a {kind} (column '{column}'). Expected text or a whole number: set "
            "data.label_column, or correct the row."
        )
    number = int(value)
    if class_names is None:
        return str(number)
    if number == -1:
        raise ValueError(
            f"the label is -1, which means unlabeled (column '{column}'). Correct the row, or choose other splits "
            "with data.train_split, data.validation_split and data.test_split."
        )
    if not 0 <= number < len(class_names):
        raise ValueError(
            f"the label is {number}, and ClassLabel has names for 0 to {len(class_names) - 1} only (column "
            f"'{column}'). Correct the row."
        )
    return class_names[number]


def read_answers(value: Any, column: str) -> tuple[str, ...]:
    """A cell's answers: text, a list of texts, or of records with an `answer`; a single one is repeated ten times.

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
            text = str(int(text)) if float(text).is_integer() else str(text)
        if not isinstance(text, str):
            raise ValueError(
                f"answer {number} (column '{column}') is {_described(item)}. Expected text, a list of texts, or of "
                "records with the key 'answer'."
            )
        answers.append(text)
    if not any(answer.strip() for answer in answers):
        # An empty cell is a question without answers; an annotator's empty answer among others is kept.
        return ()
    return tuple(answers * NUM_ANNOTATORS if len(answers) == 1 else answers)


def short_text(value: Any) -> str | None:
    """A short cell as text: an id that a file holds as a number, a type. None for an empty one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _messages(value: Any, column: str) -> list[tuple[str, str]]:
    """(speaker, text) of every turn."""
    if isinstance(value, Mapping):  # a Sequence feature: a record of lists
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"the conversation (column '{column}') is {value!r:.60}, expected a list of turns.")
    messages = []
    for number, turn in enumerate(value, start=1):
        speaker = turn.get("from", turn.get("role")) if isinstance(turn, Mapping) else None
        if speaker not in _SPEAKERS:
            raise ValueError(
                f"turn {number} (column '{column}') is {turn!r:.80}. Expected {{'from': 'human' or 'gpt', 'value': "
                "text} or {'role': 'user' or 'assistant', 'content': text}."
            )
        text = turn.get("value", turn.get("content"))
        if isinstance(text, list):  # a message's parts
            text = "".join("<image>" if part.get("type") == "image" else str(part.get("text") or "") for part in text)
        if not isinstance(text, str):
            raise ValueError(f"turn {number} (column '{column}') has no text.")
        messages.append((_SPEAKERS[speaker], text))
    return messages


def _described(value: Any) -> str:
    return "empty" if value is None or value == "" else f"{value!r}, a {type(value).__name__}"
