"""A table is made of rows and of what each column says of them."""

from __future__ import annotations

import pytest

from vlmtune.report import numbers as w
from vlmtune.report.section import limited, table

pytestmark = pytest.mark.unit

ROWS = [{"name": "a", "share": 0.5, "note": ""}, {"name": "b", "share": None, "note": ""}]


def test_column_writes_texts_and_keeps_sorting_values() -> None:
    found = table(ROWS, [("run", "name"), ("#accuracy", "share", w.percent)])
    assert (found.head(), found.texts()) == (["run", "accuracy"], [["a", "50.0%"], ["b", "–"]])
    assert [row[1].value for row in found.rows] == [0.5, None]
    assert [column.kind for column in found.columns] == ["text", "number"]


def test_column_without_content_is_left_out() -> None:
    assert table(ROWS, [("run", "name"), ("note", "note")]).head() == ["run"]
    assert table([], [("run", "name"), ("note", "note")]).head() == ["run", "note"]


def test_drawings_are_for_the_page_only() -> None:
    found = table(ROWS, [("run", "name"), ("^", lambda row: "<svg/>")])
    assert (found.head(), found.texts()) == (["run"], [["a"], ["b"]])


def test_limit_is_said_beside_the_count() -> None:
    assert [limited(None)(1200), limited(50)(50)] == ["1,200", "50 (limit)"]
