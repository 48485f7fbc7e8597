"""The confusion matrix: which classes it shows and what its cells choose."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic_runs import table_of
from tests.unit.report.conftest import ResultsOf
from vlmtune.report.classes import draw_confusion, heatmap_classes, section

pytestmark = pytest.mark.unit


def test_many_classes_are_cut_to_the_most_confused() -> None:
    counts = np.eye(300, dtype=np.int64) * 10
    counts[250, 17] = 5
    rows = heatmap_classes(counts)
    assert len(rows) == 100
    assert {17, 250} <= set(rows)


def test_cells_name_their_classes_as_text() -> None:
    svg = draw_confusion(np.array([[1, 2], [0, 3]]), ["<a>", 'b"c']).render()
    assert 'data-truth="&lt;a&gt;" data-guess="b&quot;c"' in svg


def test_levels_stay_in_their_order(results_of: ResultsOf) -> None:
    truth, guess = np.array([0, 1, 2, 2, 1]), np.array([0, 2, 2, 1, 1])
    levels = ("terrible", "fair", "excellent")
    found = section(results_of(table_of(truth, guess, levels, "score", seconds=np.full(5, 0.1))))
    assert found is not None and found.parts[0].table is not None
    assert [row[0] for row in found.parts[0].table.texts()] == list(levels)


def test_very_long_class_names_leave_room(results_of: ResultsOf) -> None:
    truth = np.arange(9) % 3
    found = section(results_of(table_of(truth, truth[::-1], ("x" * 180, "y" * 300, "z"), seconds=np.full(9, 0.1))))
    assert found is not None and found.parts[1].chart is not None
    assert found.parts[1].chart.canvas.width < 700
