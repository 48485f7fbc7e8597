"""The gallery: mistakes first, the surest on top, whatever was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.synthetic_runs import random_table, write_evaluation, write_questions
from vlmtune.evaluate.files import read_evaluation
from vlmtune.report.mistakes import section
from vlmtune.report.section import Gallery
from vlmtune.report.sources import gather

pytestmark = pytest.mark.unit


def gallery_of(folder: Path) -> Gallery:
    found = section(gather("t", [read_evaluation(folder)], []))
    assert found is not None and found.gallery is not None
    return found.gallery


def test_mistakes_come_first_and_the_surest_on_top(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", "e", random_table(num=80, skill=2.0))
    exhibits = gallery_of(tmp_path / "e").exhibits
    is_right = [exhibit.is_right for exhibit in exhibits]
    assert is_right == sorted(is_right) and {True, False} == set(is_right)
    sureness = [exhibit.bars[0].share for exhibit in exhibits if not exhibit.is_right]
    assert sureness == sorted(sureness, reverse=True)
    wrong = exhibits[0]
    assert wrong.verdict == f"taken for {wrong.values['guess']}" and wrong.title == wrong.values["truth"]


def test_questions_show_what_annotators_said(tmp_path: Path) -> None:
    write_questions(tmp_path / "q", "q", skill=0.3)
    gallery = gallery_of(tmp_path / "q")
    exhibit = next(e for e in gallery.exhibits if not e.is_right and len(e.bars) > 1)
    assert exhibit.title.endswith("?") and [bar.value for bar in exhibit.bars] == ["8 of 10", "2 of 10"]
    choices = {name: values for name, _, values in gallery.filters}
    assert set(choices["answerType"]) == {"number", "yes/no", "other"} and not choices["truth"]


def test_evaluation_without_images_has_no_gallery(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", "e", random_table(num=20), with_thumbnails=False)
    assert section(gather("t", [read_evaluation(tmp_path / "e")], [])) is None
