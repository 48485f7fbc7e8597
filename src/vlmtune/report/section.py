"""What a report is made of: sections with sentences, a chart and a table. Renderers know these types and nothing else.

In: texts and numbers, from every module that explains something. Out: a `Report`. Called by those modules and by
`pages`, which renders it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmtune.report import numbers as w
from vlmtune.report.charts import Chart

Figures = Mapping[str, Any]
"""Measured numbers by name, as in the JSON files of `evaluate`."""


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Column:
    """A column: numbers align right, spans (intervals) are muted, drawings are for the page only."""

    name: str
    kind: Literal["text", "number", "span", "drawing"] = "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and the value a page sorts by (None sorts last)."""

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns.

    Attributes:
        main: the row that the page is about.
        is_sortable: whether a page sorts it by a click on a heading.
        num_in_markdown: how many rows Markdown shows.
    """

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    main: int | None = None
    is_sortable: bool = False
    num_in_markdown: int = 100

    def head(self) -> list[str]:
        """The names of the columns that are text."""
        return [column.name for column in self.columns if column.kind != "drawing"]

    def texts(self) -> list[list[str]]:
        """The rows, without drawings."""
        indices = [index for index, column in enumerate(self.columns) if column.kind != "drawing"]
        return [[row[index].text for index in indices] for row in self.rows]


ColumnOf = tuple[str, str | Callable[[Any], Any]] | tuple[str, str | Callable[[Any], Any], Callable[[Any], str]]
"""A heading, a key of the row or a function of it, and how its value is written."""


def table(
    rows: Sequence[Any],
    columns: Sequence[ColumnOf],
    main: int | None = None,
    is_sortable: bool = False,
    num_in_markdown: int = 100,
) -> Table:
    """Build a table with a row for each item, from functions that give each column's value.

    A heading begins with # over numbers, with ~ over intervals and with ^ over drawings. Columns without any value
    are left out.
    """
    kinds: dict[str, Literal["number", "span", "drawing"]] = {"#": "number", "~": "span", "^": "drawing"}
    heads = [Column(name[1:], kinds[name[0]]) if name[:1] in kinds else Column(name) for name, *_ in columns]
    cells = [[_cell(row, *content) for _, *content in columns] for row in rows]
    indices = [i for i in range(len(heads)) if not cells or any(row[i].text not in ("", "–") for row in cells)]
    return Table(
        tuple(heads[index] for index in indices),
        [[row[index] for index in indices] for row in cells],
        main,
        is_sortable,
        num_in_markdown,
    )


def _cell(row: Any, source: str | Callable[[Any], Any], form: Callable[[Any], str] = lambda value: value) -> Cell:
    value = row[source] if isinstance(source, str) else source(row)
    return Cell(form(value), value if isinstance(value, int | float) else None)


def limited(limit: int | None) -> Callable[[int | None], str]:
    """A function that writes how many examples were measured, and whether that is fewer than the split has."""
    return lambda num: w.count(num) + (" (limit)" if limit else "")


# ── images ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Bar:
    """A line under an image: an answer, drawn as long as its share."""

    text: str
    share: float
    value: str
    is_truth: bool = False


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image of a gallery and what was answered.

    Attributes:
        image: a data URI.
        values: what filters compare: the name of a filter -> this image's value.
    """

    id: str
    image: str
    title: str
    verdict: str
    is_right: bool
    bars: Sequence[Bar]
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images to look through; ``filters`` are (name, label for "all of them", values to choose from)."""

    exhibits: Sequence[Exhibit]
    filters: Sequence[tuple[str, str, Sequence[str]]]
    placeholder: str


# ── sections ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Fold:
    """Content that a page shows after a click, and Markdown omits: the numbers behind a chart, a long text."""

    title: str
    table: Table | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One subject of a report, or a part of one.

    Attributes:
        id: its name in links, in JSON and as the chart's file.
        parts: what belongs to it, each with a title of its own; side by side if there is room and ``is_grid``.
        figures: its content in JSON.
    """

    id: str
    title: str
    sentences: Sequence[str] = ()
    chart: Chart | None = None
    table: Table | None = None
    folds: Sequence[Fold] = ()
    parts: Sequence[Section] = ()
    is_grid: bool = False
    gallery: Gallery | None = None
    figures: object = None


@dataclass(frozen=True, slots=True)
class Headline:
    """A number in large type, what it is, and for a difference the verdict on it."""

    number: str
    caption: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A page: an opening, and sections.

    Attributes:
        hints: what else could be measured, and the command for it.
        footer: the files beside the page.
    """

    title: str
    eyebrow: str
    summary: Sequence[str]
    sections: Sequence[Section]
    headlines: Sequence[Headline] = ()
    warnings: Sequence[str] = ()
    hints: Sequence[tuple[str, str]] = ()
    footer: str = ""
    figures: Figures = field(default_factory=dict)
