"""Curves over checkpoints and over training images: which is best, what suffices, what the intervals cover."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tests.synthetic_runs import answered, in_memory, random_table, table_of
from vlmtune.evaluate.curves import LearningCurveRun, measure_checkpoint_curve, measure_learning_curve
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.statistics import paired_difference_interval, wilson_interval
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit


def checkpoints(*skills: float, num: int = 400) -> list[tuple[int, Evaluation]]:
    return [
        (100 * (i + 1), in_memory(f"step-{i}", random_table(num=num, skill=skill, seed=i + 1)))
        for i, skill in enumerate(skills)
    ]


def checkpoint_curve_of(*skills: float, **more: object) -> dict:
    return {**measure_checkpoint_curve(checkpoints(*skills), 400), "run": "r", "during_training": [], **more}


def test_the_best_checkpoint_has_the_highest_accuracy() -> None:
    found = checkpoint_curve_of(1.0, 4.0, 2.0)
    accuracies = [point["accuracy"] for point in found["checkpoints"]]
    assert found["best_step"] == 200 == 100 * (1 + int(np.argmax(accuracies)))
    best = found["checkpoints"][1]
    assert best["is_best"] and best["p_holm"] is None and not best["is_worse"]
    assert found["checkpoints"][0]["is_worse"] and found["checkpoints"][0]["difference"] < 0


def test_of_equal_checkpoints_the_lower_loss_wins() -> None:
    table = random_table(num=100, skill=3.0)
    closed = table.closed
    assert closed is not None and closed.log_probs is not None
    blunt = closed.log_probs / 2
    blunt -= np.log(np.exp(blunt).sum(axis=1, keepdims=True))
    worse = table_of(closed.truth, closed.prediction, closed.labels, log_probs=blunt.astype(np.float32))
    names = ((100, worse), (200, table), (300, table))
    assert measure_checkpoint_curve([(s, in_memory(str(s), t)) for s, t in names], 300)["best_step"] == 200


def test_earliest_checkpoint_not_worse_is_where_to_stop() -> None:
    assert checkpoint_curve_of(1.0, 3.9, 4.0, 4.05)["stop_step"] == 200


def test_an_average_of_checkpoints_is_tested_against_the_best() -> None:
    average = in_memory("average-of-3", random_table(num=400, skill=6.0, seed=9))
    found = measure_checkpoint_curve(checkpoints(1.0, 2.0, 3.0), 400, [average])
    (average_of_3,) = found["averages"]
    assert (found["best_step"], average_of_3["name"], average_of_3["is_best"]) == (300, "average-of-3", False)
    assert average_of_3["difference"] == pytest.approx(average_of_3["accuracy"] - found["checkpoints"][2]["accuracy"])


def learning_curve_runs(by_fraction: dict[float, list[float]], num: int = 300) -> list[LearningCurveRun]:
    runs = []
    for fraction, skills in by_fraction.items():
        for seed, skill in enumerate(skills):
            table = random_table(num=num, skill=skill, seed=round(1000 * fraction) + seed)
            folder = f"fraction-{fraction:g}-seed-{seed}"
            runs.append(
                LearningCurveRun(
                    fraction, seed, round(1000 * fraction), folder, in_memory("fine-tuned", table), 10, 1.0
                )
            )
    return runs


def test_a_points_interval_combines_seeds_and_test_images() -> None:
    runs = learning_curve_runs({0.1: [2.0, 2.3, 2.6]})
    (point,) = measure_learning_curve(runs)["points"]
    accuracies = np.array([run.evaluation.predictions.correct.mean() for run in runs])
    mean = accuracies.mean()
    reach = stats.sem(accuracies) * stats.t.ppf(0.975, 2)
    low, high = map(float, wilson_interval(mean * 300, 300))
    assert point["accuracy"] == pytest.approx(mean)
    assert point["seed_interval"] == pytest.approx([mean - reach, mean + reach])
    assert point["test_interval"] == pytest.approx([low, high])
    wanted = [mean - np.hypot(mean - low, reach), mean + np.hypot(high - mean, reach)]
    assert point["interval"] == pytest.approx(wanted)


def test_one_seed_has_the_interval_of_its_images() -> None:
    found = measure_learning_curve(learning_curve_runs({0.1: [2.0], 1.0: [4.0]}))
    for point in found["points"]:
        assert point["seed_interval"] is None
        assert point["interval"] == pytest.approx(point["test_interval"])


def test_a_step_is_significant_only_when_more_images_help() -> None:
    steps = measure_learning_curve(
        learning_curve_runs({0.01: [1.0, 1.1, 0.9], 0.1: [4.0, 4.1, 3.9], 1.0: [4.0, 4.2, 3.8]})
    )["steps"]
    assert [step["is_significant"] for step in steps] == [True, False]
    assert steps[0]["interval"][0] > 0 > steps[1]["interval"][0]


def test_one_seed_gives_the_paired_interval_of_images() -> None:
    runs = learning_curve_runs({0.1: [1.0], 1.0: [2.0]})
    first, second = (run.evaluation.predictions.correct for run in runs)
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    expected = paired_difference_interval(lost, gained, len(first))
    assert measure_learning_curve(runs)["steps"][0]["interval"] == pytest.approx(expected)


def test_a_step_without_changes_is_not_known_exactly() -> None:
    (run,) = learning_curve_runs({1.0: [2.0]})
    runs = [dataclasses.replace(run, fraction=fraction, seed=seed) for fraction in (0.1, 1.0) for seed in range(3)]
    runs = [dataclasses.replace(each, folder=f"run-{number}") for number, each in enumerate(runs)]
    (step,) = measure_learning_curve(runs)["steps"]
    low, high = step["interval"]
    assert step["difference"] == 0 and low < -0.001 and high > 0.001 and not step["is_significant"]


def test_intervals_of_the_mean_hold_their_coverage() -> None:
    """Simulated: seeds differ in true accuracy, all share the test images. At least the stated 95 % hold it."""
    rng = np.random.default_rng(0)
    true = np.clip(np.clip(0.8 + 0.15 * rng.normal(size=500_000), 0, 1) + 0.04 * rng.normal(size=500_000), 0, 1).mean()
    num, held, trials = 200, 0, 120
    for _ in range(trials):
        ease = np.clip(0.8 + 0.15 * rng.normal(size=num), 0, 1)
        runs = []
        for seed in range(3):
            shift = 0.04 * rng.normal()
            right = rng.random(num) < np.clip(ease + shift, 0, 1)
            truth = rng.integers(0, 2, num) if not runs else runs[0].evaluation.predictions.closed.truth
            table = table_of(truth, np.where(right, truth, 1 - truth), ("a", "b"))
            runs.append(LearningCurveRun(1.0, seed, 10, f"s{seed}", in_memory("x", table)))
        low, high = measure_learning_curve(runs)["points"][0]["interval"]
        held += low <= true <= high
    assert held / trials >= 0.93


def test_a_learning_curve_starts_from_the_untrained_model() -> None:
    base = in_memory("base", random_table(num=300, skill=0.5, seed=99))
    found = measure_learning_curve(learning_curve_runs({0.1: [2.0, 2.2], 1.0: [4.0, 4.2]}), base)
    assert [(step["num_first"], step["num_second"]) for step in found["steps"]] == [(0, 100), (100, 1000)]


def question_runs(*shares: float, num: int = 90) -> list[Evaluation]:
    """Open answers to three questions about each image, that share of which are right, image by image."""
    examples = [
        Example(str(n), ImageSource(data=b""), ("yes",) * 10, f"{n}?", image_id=str(n // 3)) for n in range(num)
    ]
    return [
        in_memory(f"run-{share}", answered(examples, ["yes" if n // 3 < share * num / 3 else "no" for n in range(num)]))
        for share in shares
    ]


def test_checkpoints_of_open_answers_are_compared_by_image() -> None:
    runs = question_runs(0.1, 0.6, 0.7)
    curve = measure_checkpoint_curve([(100 * (i + 1), run) for i, run in enumerate(runs)], 300)
    assert curve["best_step"] == 300 and curve["checkpoints"][0]["is_worse"]
    low, high = curve["checkpoints"][1]["difference_interval"]
    assert low < -0.1 < high <= 0, "3 of 30 images changed, with all their questions"
    assert curve["checkpoints"][1]["nll"] is None


def test_question_intervals_are_wider_than_image_intervals() -> None:
    runs = [
        LearningCurveRun(fraction, 0, round(100 * fraction), f"f{fraction}", run)
        for fraction, run in zip((0.5, 1.0), question_runs(0.5, 0.7), strict=True)
    ]
    by_image = measure_learning_curve(runs)
    ungrouped = [
        dataclasses.replace(
            run,
            evaluation=dataclasses.replace(
                run.evaluation,
                predictions=dataclasses.replace(
                    run.evaluation.predictions,
                    rows=run.evaluation.predictions.rows.set_column(
                        3, "image_id", run.evaluation.predictions.rows["id"]
                    ),
                ),
            ),
        )
        for run in runs
    ]
    alone = measure_learning_curve(ungrouped)
    for where in ("steps", "points"):
        wide, narrow = (np.ptp(curve[where][0]["interval"]) for curve in (by_image, alone))
        assert wide > 1.5 * narrow
    assert by_image["steps"][0]["difference"] == pytest.approx(0.2)
