"""A search in words and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from vlmtune.report.search import findings, trial_table, write_search

pytestmark = pytest.mark.unit


def trial(number: int, accuracy: float | None, outcome: str = "finished", **more: Any) -> dict[str, Any]:
    point = {"adapter.rank": 4 * (number + 1), "train.learning_rate": 0.002}
    blank = {"loss": 0.3, "steps": 10, "seconds": 4.0, "error": None, "repeat_of": None, "history": []}
    return {"number": number, "outcome": outcome, "point": point, "accuracy": accuracy, **blank, **more}


def figures(*trials: dict[str, Any], **more: Any) -> dict[str, Any]:
    finished = [entry for entry in trials if entry["outcome"] == "finished"]
    return {
        "name": "digits",
        "keys": ["adapter.rank", "train.learning_rate"],
        "trials": list(trials),
        "best": finished[0]["number"] if finished else None,
        "baseline": 0,
        "num_validation": 60,
        "num_planned": len(trials),
        "importance": {"adapter.rank": 0.7, "train.learning_rate": 0.3},
        "against": {"runner_up": 0, "difference": 0.05, "interval": [-0.02, 0.12], "p_value": 0.2},
        **more,
    }


def test_search_files_hold_table_charts_and_honest_words(tmp_path: Path) -> None:
    search = figures(
        trial(2, 0.95), trial(0, 0.9), trial(1, 0.4, "pruned"), trial(3, None, "failed", error="The loss is not finite")
    )
    page = write_search(tmp_path, search)
    assert "What mattered" in page.read_text()
    text = page.with_suffix(".md").read_text()
    assert "trial 2, is right on 95.0% of 60 validation images (95% interval 86.3 to 98.3%): rank 12" in text
    assert "The experiment as it was has 90.0% (+5.0 points)." in text
    assert (
        "Against trial 0, the runner-up, it differs by +5.0 points" in text
        and "not significant" in text
        and "no trial saw" in text
    )
    assert "validation_fraction" in text  # 60 images are few
    assert "failed: The loss is not finite" in text
    assert "With 2 finished trials these shares are rough" in text
    for name in ("trials", "importance"):
        ElementTree.fromstring((tmp_path / "charts" / f"{name}.svg").read_text())
    rows = trial_table(search).texts()
    assert [row[:2] for row in rows] == [["1", "2"], ["2", "0"], ["–", "1"], ["–", "3"]]


def test_a_search_without_a_finished_trial_says_so(tmp_path: Path) -> None:
    search = figures(trial(0, None, "failed", error="no"), importance={}, against=None, num_planned=4)
    text = findings(search)
    assert "No trial was trained to the end" in text[-1]
    write_search(tmp_path, search)
    assert not (tmp_path / "charts").exists()


def test_findings_name_an_unbeaten_start_and_open_trials() -> None:
    text = " ".join(findings(figures(trial(0, 0.95), trial(1, 0.9), num_planned=5)))
    assert "That is the experiment as it was: nothing tried was better." in text
    assert "3 trials of 5 left: run the command again" in text
