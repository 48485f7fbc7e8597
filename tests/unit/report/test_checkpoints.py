"""A checkpoint curve in words and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.synthetic_runs import in_memory, random_table, write_run
from vlmtune.evaluate.curves import measure_checkpoint_curve
from vlmtune.report.checkpoints import advice, curve_table, draw_curve, write_checkpoint_curve
from vlmtune.report.render import render
from vlmtune.report.sources import read_run
from vlmtune.runs.layout import RunLayout

pytestmark = pytest.mark.unit


def curve_of(*skills: float, average: float | None = None, **more: object) -> dict[str, Any]:
    steps = [
        (100 * number, in_memory(f"step-{number}", random_table(num=400, skill=skill, seed=number)))
        for number, skill in enumerate(skills, start=1)
    ]
    averages = [in_memory("average-of-3", random_table(num=400, skill=average, seed=9))] if average else []
    return {**measure_checkpoint_curve(steps, 400, averages), "run": "r", "during_training": [], **more}


def test_advice_names_the_earliest_checkpoint_that_suffices() -> None:
    text = " ".join(advice(curve_of(1.0, 3.9, 4.0, 4.05)))
    assert "Stopping at step 200 would have saved 50% of the steps" in text
    assert "not significant" in text
    assert "Every earlier checkpoint is significantly worse" in " ".join(advice(curve_of(1.0, 2.0, 5.0)))


def test_average_is_in_words_table_and_chart() -> None:
    curve = curve_of(1.0, 2.0, 3.0, average=6.0)
    text = " ".join(advice(curve))
    assert "average-of-3, is right on" in text and "significantly better than step 300" in text
    assert curve_table(curve).texts()[-1][0] == "average-of-3"
    assert "average-of-3" in draw_curve(curve).render()


def test_advice_warns_of_test_splits_limits_and_few_checkpoints() -> None:
    text = " ".join(advice(curve_of(2.0, split="test", limit=50)))
    assert "choose on validation" in text and "Only 50 images" in text and "keep_checkpoints" in text


def test_written_curve_is_read_again_and_in_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "run", num_steps=20)
    logged = [{"step": 50, "accuracy": 0.4, "loss": 1.5}, {"step": 100, "accuracy": 0.5, "loss": float("nan")}]
    curve = curve_of(1.0, 3.0, split="validation", during_training=logged)
    folder = RunLayout(run).checkpoint_curve
    page = write_checkpoint_curve(folder, curve)
    assert {path.name for path in folder.iterdir()} == {"charts", page.name, "validation.json", "validation.md"}
    assert read_run(run).checkpoint_curve["best_step"] == curve["best_step"]
    assert "| step |" in page.with_suffix(".md").read_text()
    ElementTree.fromstring((folder / "charts" / "validation.svg").read_text())
    assert advice(curve)[0] in render(run).read_text()
