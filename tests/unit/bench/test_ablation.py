"""The ablation's arms add up, and its table says what its runs say."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vlmtune.config.checks import find_contradictions

pytestmark = pytest.mark.unit

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module("ablation")
    finally:
        sys.path.remove(str(BENCH))


def options(**changes: object) -> argparse.Namespace:
    values = {"cifar": Path("x"), "device": "cpu", "images": 9, "test_images": None, "epochs": 1.0}
    return argparse.Namespace(**(values | {"rate": 2e-3, "older_rate": 5e-5} | changes))


def test_every_arm_keeps_the_changes_of_the_arms_before_it(ablation: ModuleType) -> None:
    experiments = [ablation.experiment_of(arm, options()) for arm in range(len(ablation.ARMS))]
    assert all(not list(find_contradictions(experiment)) for experiment in experiments)
    assert [experiment.train.loss for experiment in experiments] == ["all"] + ["answer"] * 5
    assert [experiment.train.learning_rate for experiment in experiments] == [5e-5] + [2e-3] * 5
    assert [bool(experiment.train.augment) for experiment in experiments] == [False] * 3 + [True] * 3
    assert [experiment.train.cutmix > 0 for experiment in experiments] == [False] * 4 + [True] * 2
    assert experiments[-1].task.list_labels == "drop-after-first-epoch"


def run(ablation: ModuleType, arm: int, seed: int, right: str) -> dict[str, object]:
    return {"arm": ablation.ARMS[arm].name, "seed": seed, "right": right, "train_s": 10.0, "parameters": 5}


def test_gains_are_paired_by_image_and_seed(ablation: ModuleType) -> None:
    runs = [
        run(ablation, 0, 0, "1100"),
        run(ablation, 0, 1, "1000"),
        run(ablation, 1, 0, "1110"),  # seed 1 of the second arm is still to come: its first arm counts for no gain
    ]
    first, second = ablation.summarize(runs)
    assert (first["accuracy"], first["by_seed"]) == (0.375, [0.5, 0.25])
    assert "gain" not in first
    assert (second["gain"], second["gain_by_seed"]) == (0.25, [0.25])
    assert first["interval"][0] <= 0.375 <= first["interval"][1]
    assert "answer-only loss" in ablation.summary_table([first, second])
