"""A table of texts that a page, a Markdown file and a terminal can all show; `tables.py` builds most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmtune.report import numbers as w


@dataclass(frozen=True, slots=True)
class Column:
    """A column: numbers stand to the right, spans (intervals) are quiet, drawings are for the page only."""

    name: str
    kind: Literal["text", "number", "span", "drawing"] = "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and the value a page sorts it by (None: it has none and stays at the end)."""

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Level of cells under columns; ``main`` is the row that the page is about."""

    columns: tuple[Column, ...]
    rows: list[list[Cell]]
    main: int | None = None

    def head(self) -> list[str]:
        """The names of the columns that are text."""
        return [column.name for column in self.columns if column.kind != "drawing"]

    def texts(self) -> list[list[str]]:
        """The rows, without drawings."""
        kept = [index for index, column in enumerate(self.columns) if column.kind != "drawing"]
        return [[row[index].text for index in kept] for row in self.rows]

    def markdown(self) -> str:
        """As a Markdown table."""
        head = self.head()
        lines = [head, ["---"] * len(head), *self.texts()]
        return "\n".join("| " + " | ".join(w.plain(text) for text in line) + " |" for line in lines)


def table(columns: str, rows: Sequence[Sequence[str | Cell]], main: int | None = None) -> Table:
    """A table from a line of column names: "run | #images | ~interval | ^bar" (# number, ~ span, ^ drawing)."""
    kinds: dict[str, Literal["number", "span", "drawing"]] = {"#": "number", "~": "span", "^": "drawing"}
    parsed = []
    for part in columns.split("|"):
        name = part.strip()
        parsed.append(Column(name[1:], kinds[name[0]]) if name[:1] in kinds else Column(name))
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return Table(tuple(parsed), cells, main)


def without_empty(full: Table) -> Table:
    """The table without columns in which no row has anything to say."""
    kept = [
        index
        for index in range(len(full.columns))
        if not full.rows or any(row[index].text not in ("", "–") for row in full.rows)
    ]
    return Table(
        tuple(full.columns[index] for index in kept), [[row[index] for index in kept] for row in full.rows], full.main
    )


def limited(num: int | None, limit: int | None) -> str:
    """How many images, and whether that is fewer than the split has."""
    return w.count(num) + (" (limit)" if limit else "")
