"""Three renderers over one list: what a section holds is on the page, in Markdown and in JSON, and stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.synthetic_runs import table_of, write_evaluation
from vlmtune.report.charts import Chart, Key, Score, draw_bars
from vlmtune.report.pages import plain, to_html, to_markdown, write_report
from vlmtune.report.render import render_comparison
from vlmtune.report.section import Fold, Report, Section, table

pytestmark = pytest.mark.unit


def report(**more: object) -> Report:
    chart = Chart(draw_bars([Score("a", 0.5, [0.4, 0.6])], "Bars of a"), [Key("s2", "the key")])
    listed = table([{"name": "row", "value": 0.25}], [("what", "name"), ("#much", "value", str)])
    part = Section("part", "Part", ["Sentence of the part."], table=listed)
    section = Section("new", "New", ["A sentence."], chart, folds=[Fold("Hidden", text="inside")], parts=[part], **more)  # type: ignore[arg-type]
    return Report("Title", "eyebrow", ["Summary."], [section])


def test_new_section_is_in_all_three_renderings(tmp_path: Path) -> None:
    page = write_report(tmp_path / "r.html", report(figures={"value": 0.25}))
    html, markdown = page.read_text(), page.with_suffix(".md").read_text()
    for text in (html, markdown):
        assert all(
            part in text for part in ("Title", "Summary.", "A sentence.", "Sentence of the part.", "0.25", "much")
        )
    assert '<section id="new">' in html and '<a href="#new">New</a>' in html and "the key" in html and "inside" in html
    assert "![New](charts/new.svg)" in markdown and "inside" not in markdown
    found = json.loads(page.with_suffix(".json").read_text())["sections"]["new"]
    assert found["figures"] == {"value": 0.25} and list(found["parts"]) == ["part"]
    assert (tmp_path / "charts" / "new.svg").exists()


def test_page_asks_for_nothing_outside(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page and "url(" not in page
    assert "default-src 'none'" in page


def test_every_chart_is_named_for_screen_readers() -> None:
    html = to_html(report())
    assert re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', html) == ["Bars of a"]


def test_labels_that_look_like_markup_stay_text(tmp_path: Path) -> None:
    evil = ("<script>alert(1)</script>", '"><img src=x>', "a & b | $x$ {{ 7*7 }}")
    truth, guess = np.arange(60) % 3, np.arange(60) % 2
    write_evaluation(tmp_path / "e", "x</title><b>", table_of(truth, guess, evil, seconds=np.full(60, 0.1)))
    page = render_comparison([tmp_path / "e"], tmp_path / "out", "T <i>")
    text = page.read_text()
    assert "<script>alert" not in text and "<img src=x>" not in text and "<b>" not in text and "T <i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script>" not in page.with_suffix(".md").read_text()
    for chart in (tmp_path / "out" / "charts").iterdir():
        ElementTree.fromstring(chart.read_text())


def test_names_read_as_themselves_in_markdown() -> None:
    assert plain("[a](http://b) | *c* `d` e_f\\ <g>\n1") == r"\[a\](http://b) \| \*c\* \`d\` e_f\\ &lt;g> 1"


def test_long_table_is_cut_in_markdown_and_says_so() -> None:
    listed = table([{"n": str(i)} for i in range(12)], [("row", "n")], num_in_markdown=10)
    markdown = to_markdown(Report("T", "", [], [Section("s", "S", table=listed)]))
    assert "| 9 |" in markdown and "| 10 |" not in markdown and "2 more on the page." in markdown
