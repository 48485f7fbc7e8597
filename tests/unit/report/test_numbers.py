"""Numbers are written as people read them."""

from __future__ import annotations

import pytest

from vlmtune.report import numbers as w

pytestmark = pytest.mark.unit


def test_numbers_are_written_as_people_read_them() -> None:
    assert w.percent(0.98765) == "98.8%"
    assert w.points(-0.0123) == "−1.2"
    assert w.points(-0.0001) == "0.0"
    assert [w.duration(s) for s in (3.21, 95, 3700)] == ["3.2 s", "1 min 35 s", "1 h 1 min"]
    assert [w.p_value(p) for p in (1e-9, 0.0123, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]


def test_nouns_follow_their_count() -> None:
    assert [w.counted(1, "image"), w.counted(2, "class"), w.article("image"), w.article("question")] == [
        "1 image", "2 classes", "an image", "a question",
    ]  # fmt: skip
