"""Level to learn from that are no quiz: conversations about an image (LLaVA's layout and chat messages), and captions.

A conversation becomes one question a turn, with all turns before it as its history: each answer is then learned exactly
as it would be given. A caption becomes the answer to one fixed question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.read.columns import IMAGE_ID_NAMES, QUESTION_NAMES, find_column, usual_column
from vlmtune.data.read.rows import LeftOut, Row, Source
from vlmtune.data.read.vqa_rows import NUM_ANNOTATORS, QuestionColumns, read_answers, refuse_repeated_ids
from vlmtune.records import ImageSource, Turn

CONVERSATION_NAMES = ("conversations", "conversation", "messages")
CAPTION_NAMES = ("caption", "captions", "sentences", "sentence", "text", "blip_caption")
_ID_NAMES = ("id", "conversation_id", *IMAGE_ID_NAMES)

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_IMAGE_MARK = re.compile(r"\s*<image>\s*")


def choose_columns(
    data: DataSection, columns: Sequence[str], where: str
) -> QuestionColumns | ConversationColumns | CaptionColumns:
    """What the rows of a table without labels are: conversations, questions with answers, or captions.

    The experiment file decides by naming a column, else the usual names do. Raises DataError if nothing fits.
    """
    conversation = data.conversation_column or usual_column(CONVERSATION_NAMES, columns)
    if conversation is not None and data.question_column is None and data.caption_column is None:
        return ConversationColumns(
            find_column("conversation", conversation, columns, where), usual_column(_ID_NAMES, columns), data.turns
        )
    caption = data.caption_column or usual_column(CAPTION_NAMES, columns)
    has_questions = data.question_column is not None or usual_column(QUESTION_NAMES, columns) is not None
    if caption is not None and (data.caption_column is not None or not has_questions):
        return CaptionColumns(
            find_column("caption", caption, columns, where), usual_column(_ID_NAMES, columns), data.caption_question
        )
    return QuestionColumns.find(data, columns, where)


@dataclass(slots=True)
class CaptionColumns:
    """An image with one caption or several."""

    caption: str
    caption_id: str | None
    question: str

    @property
    def names(self) -> list[str]:
        """The columns that are read, the image's aside."""
        return [name for name in (self.caption, self.caption_id) if name is not None]

    def rows(self, origin: str, cells: Mapping[str, Any], image: ImageSource | None, image_id: str) -> list[Row]:
        """One row. Raises ValueError saying what is wrong with it."""
        if image is None:
            raise ValueError("there is no image. Remove the row.")
        captions = read_answers(cells.get(self.caption), self.caption)
        if not captions:
            raise ValueError(f"the caption (column '{self.caption}') is empty. Write one, or remove the row.")
        captions = tuple(" ".join(caption.split()) for caption in captions)
        return [Row("", image, captions, origin, question=self.question, image_id=image_id, answer_type="caption")]

    def check(self, rows: Sequence[Row], source: Source, where: str) -> None:
        """Say what the captions answer."""
        source.notes.append(f"{where}: {len(rows)} captions, as answers to {self.question!r} (data.caption_question)")


@dataclass(slots=True)
class ConversationColumns:
    """An image with a list of turns, `{"from": "human", "value": …}` or `{"role": "user", "content": …}`.

    Attributes:
        turns: ``all`` learns every answer, ``first`` the first one only (for families that take one question).
        left_out: reason -> how many, of everything that no row holds.
    """

    conversation: str
    conversation_id: str | None
    turns: str
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def names(self) -> list[str]:
        """The columns that are read, the image's aside."""
        return [name for name in (self.conversation, self.conversation_id) if name is not None]

    def rows(self, origin: str, cells: Mapping[str, Any], image: ImageSource | None, image_id: str) -> list[Row]:
        """One row for each turn with an answer. Raises ValueError saying what is wrong with the conversation."""
        messages = _messages(cells.get(self.conversation), self.conversation)
        marks = sum(text.count("<image>") for _, text in messages)
        if image is None:
            self.left_out["conversations without an image"] += 1
            return []
        if marks > 1:
            self.left_out["conversations about several images"] += 1
            return []
        if messages and messages[0][0] == "system":
            self.left_out["system turns (task.system_prompt stands there)"] += 1
            messages = messages[1:]
        history: list[Turn] = []
        rows = []
        name = str(cells.get(self.conversation_id) or "") if self.conversation_id else ""
        for place in range(0, len(messages), 2):
            pair = messages[place : place + 2]
            if [speaker for speaker, _ in pair] != ["user", "assistant"][: len(pair)]:
                raise ValueError(
                    f"turn {place + 1} (column '{self.conversation}') is not where it should be: expected human and "
                    f"assistant in turns, found {', '.join(speaker for speaker, _ in messages[:6])}."
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
            rows.append(
                Row(
                    id=f"{name}#{place // 2 + 1}" if name else "",
                    image=image,
                    # One answer, as by ten annotators: the official accuracy of a single one would be 0.
                    answers=(answer,) * NUM_ANNOTATORS,
                    origin=f"{origin}, turn {place + 1}",
                    question=question,
                    image_id=image_id,
                    history=tuple(history),
                    answer_type="turn",
                )
            )
            history.append((question, answer))
        return rows

    def check(self, rows: Sequence[Row], source: Source, where: str) -> None:
        """Refuse conversations of one name; report what was left out."""
        if self.conversation_id is not None:
            refuse_repeated_ids(rows, where)
        for reason, count in self.left_out.items():
            source.left_out.append(LeftOut(f"{reason} ({where})", count))
        self.left_out.clear()


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
