"""Baselines beside the model: who is tested against it, and what that says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.synthetic_runs import in_memory, random_table, write_evaluation
from vlmtune.report.baselines import against

pytestmark = pytest.mark.unit


def baselines_of(root: Path, **skills: float) -> dict[str, Any]:
    rows = []
    for seed, (key, skill) in enumerate(skills.items(), start=5):
        key = key.replace("_", "-")
        evaluation = write_evaluation(
            root / key, key, random_table(num=300, skill=skill, seed=seed), with_thumbnails=False
        )
        figures = evaluation.figures
        measured = {
            name: figures[name] for name in ("accuracy", "accuracy_interval", "num_correct", "num_unreadable", "nll")
        }
        kind = "ceiling" if key == "linear-probe" else "floor"
        rows.append({"key": key, "name": key, "kind": kind, **measured, "seconds": 1.0, "setting": "", "folder": key})
    return {"split": "test", "limit": None, "num_examples": 300, "rows": rows, "left_out": []}


def test_baselines_are_tested_against_the_model(tmp_path: Path) -> None:
    subject = in_memory("tuned", random_table(num=300, skill=3.0, seed=1))
    baselines = baselines_of(tmp_path, majority=-9.0, prompt_only_tuned=-9.0, linear_probe=6.0)
    measured = against(baselines, tmp_path, subject)
    accuracies = [row["accuracy"] for row in measured["rows"]]
    assert accuracies == sorted(accuracies) and len(accuracies) == 4
    text = " ".join(measured["summary"])
    assert "it looks at them" in text
    assert "tuned is significantly worse: the vision tower sees what the answers do not yet use" in text
    blind = against(baselines_of(tmp_path / "b", prompt_only_tuned=2.6), tmp_path / "b", subject)
    (pair,) = (row["pair"] for row in blind["rows"] if row["pair"])
    assert pair["difference"] > 0 and not pair["is_significant"]
    assert "cannot be shown to look" in " ".join(blind["summary"])


def test_baseline_of_other_images_gets_no_test(tmp_path: Path) -> None:
    subject = in_memory("tuned", random_table(num=300, skill=3.0, seed=1, data_seed=7))
    measured = against(baselines_of(tmp_path, linear_probe=4.0), tmp_path, subject)
    assert [row["pair"] for row in measured["rows"]] == [None]


def test_what_was_not_measured_is_said_with_its_reason(tmp_path: Path) -> None:
    left_out = [{"key": "linear-probe", "name": "Linear probe", "reason": "answers are open, not among labels"}]
    measured = against({**baselines_of(tmp_path, majority=1.0), "left_out": left_out}, tmp_path, None)
    assert "Linear probe: not measured, answers are open, not among labels." in measured["summary"]
