"""Charts: round ticks, light curves, and files that need no style sheet."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from vlmtune.report import charts
from vlmtune.report.charts import Chart, Key, Score, draw_bars, palette

pytestmark = pytest.mark.unit


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0.6, 1) == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    assert charts.ticks(3, 3) == [3]


def test_long_curve_is_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thin = charts.thinned(points, 100)
    assert len(thin) == 100
    assert all(y == pytest.approx(0.5, abs=0.02) for _, y in thin)


def test_chart_file_has_plain_colors_and_its_legend() -> None:
    canvas = draw_bars([Score("<a>", 0.5, [0.4, 0.6])], "Bars")
    text = Chart(canvas, [Key("s0", "floor & base")]).standalone()
    ElementTree.fromstring(text)
    assert "var(" not in text and palette()["s2"] in text and "floor &amp; base" in text
    assert 'xmlns="http://www.w3.org/2000/svg"' in text
    assert "floor" not in Chart(canvas).svg()


def test_last_run_has_the_strongest_color() -> None:
    assert charts.color_names([True, False, False]) == ["s0", "s1", charts.SUBJECT_COLOR]
    assert charts.color_names([]) == []
