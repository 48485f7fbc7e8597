"""What every reader returns: a `Source` with named splits of examples, each with its origin for messages.

A new layout is one more function that returns a `Source`; `data.splits` turns it into an experiment's data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vlmtune.errors import DataError
from vlmtune.records import Example

MAX_PROBLEMS = 5
"""Bad rows named one by one; the others are counted."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Items of the source that no split uses, and why. ``examples`` are the first few names."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(slots=True)
class Source:
    """An opened source. Splits are read on demand, so an unused one costs nothing and cannot fail.

    ``class_names`` is set when the source itself declares its classes and their order (ClassLabel).
    """

    name: str
    kind: str
    splits: dict[str, Callable[[], list[Example]]]
    class_names: tuple[str, ...] | None = None
    revision: str | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list for a message, and the number of others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_problems(problems: list[str], where: str) -> None:
    """Raise DataError with the first problems of a table's rows and the number of the others, if there are any."""
    if problems:
        more = len(problems) - MAX_PROBLEMS
        tail = f"\n… and {more} more rows of {where} that cannot be used." if more > 0 else ""
        raise DataError("\n".join(problems[:MAX_PROBLEMS]) + tail)


def refuse_repeated_ids(examples: Sequence[Example], where: str) -> None:
    """Raise DataError if two examples have the same id."""
    counts = Counter(example.id for example in examples)
    repeated = [example for example in examples if counts[example.id] > 1]
    if repeated:
        first, second = repeated[0], next(other for other in repeated[1:] if other.id == repeated[0].id)
        raise DataError(
            f"{where}: the question id {first.id} appears twice: {first.origin}, and {second.origin} "
            f"({len(repeated)} such rows). Give every question an id of its own, or remove one."
        )
