"""What every reader hands over, whatever the source: named splits of rows, each row with its place for messages.

A new kind of source is one more function that returns a `Source`; `splits.py` makes examples and label sets of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vlmtune.errors import DataError
from vlmtune.records import ImageSource, Turn

MOST_PROBLEMS = 5
"""Bad rows named one by one; the others are counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image as its source holds it. ``origin`` says where a person finds it: "labels.csv, line 12"."""

    id: str
    image: ImageSource
    answers: tuple[str, ...]
    origin: str
    question: str | None = None
    question_type: str | None = None
    answer_type: str | None = None
    image_id: str | None = None
    has_image: bool = True
    """False where the source knows that there is no such file: then the row is not learned from."""
    history: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something the source holds that no split uses, and why. ``examples`` are the first few names."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(slots=True)
class Source:
    """An opened source. A split is read when it is asked for, so a split nobody uses costs nothing and cannot fail.

    ``class_names`` is set when the source itself declares its classes and their order (ClassLabel).
    """

    name: str
    kind: str
    splits: dict[str, Callable[[], list[Row]]]
    class_names: tuple[str, ...] | None = None
    revision: str | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def some(names: list[str], most: int = 5) -> str:
    """The first names of a list for a message, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_problems(problems: list[str], where: str) -> None:
    """Raise DataError with the first problems of a table's rows and the number of the others, if there are any."""
    if problems:
        more = len(problems) - MOST_PROBLEMS
        tail = f"\n… and {more} more rows of {where} that cannot be used." if more > 0 else ""
        raise DataError("\n".join(problems[:MOST_PROBLEMS]) + tail)
