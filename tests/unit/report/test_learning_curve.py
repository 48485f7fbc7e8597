"""A learning curve in words and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic_runs import in_memory, random_table
from vlmtune.evaluate.curves import LearningCurveRun, measure_learning_curve
from vlmtune.report.learning_curve import findings, write_learning_curve

pytestmark = pytest.mark.unit


def curve_of(by_fraction: dict[float, list[float]], **more: object) -> dict[str, Any]:
    runs = []
    for fraction, skills in by_fraction.items():
        for seed, skill in enumerate(skills):
            evaluation = in_memory("fine-tuned", random_table(skill=skill))
            run = f"fraction-{fraction:g}-seed-{seed}"
            runs.append(LearningCurveRun(fraction, seed, round(1000 * fraction), run, evaluation, 9, 1.0))
    base = in_memory("base", random_table(skill=0.5, seed=99))
    about = {"name": "<cars>", "source": "cars", "model": "tiny", "num_planned": 9}
    return {**measure_learning_curve(runs, base), **about, **more}


def test_one_seed_is_said_to_cover_one_draw() -> None:
    text = " ".join(findings(curve_of({0.1: [2.0], 1.0: [4.0]})))
    assert "do not cover another draw of training images" in text
    assert "From no training to 100 images" in text


def test_curve_is_written_whole(tmp_path: Path) -> None:
    page = write_learning_curve(tmp_path, curve_of({0.1: [2.0, 2.2], 1.0: [4.0, 4.2]}))
    assert json.loads((tmp_path / "learning_curve.json").read_text())["points"][1]["num_train"] == 1000
    text = page.read_text()
    assert "&lt;cars&gt;" in text and "<cars>" not in text
    assert "4 of 9 runs are finished" in text
    assert "| 10% | 100 |" in (tmp_path / "learning_curve.md").read_text()
    assert [path.name for path in (tmp_path / "charts").iterdir()] == ["curve.svg"]
