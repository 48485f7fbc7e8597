"""Temperature, label sets and abstention do on test what they promise, and never look at it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import log_softmax

from tests.synthetic_runs import answered, random_table
from vlmtune.errors import DataError
from vlmtune.evaluate import calibration
from vlmtune.evaluate.table import PredictionTable
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit


def true_model(num: int, seed: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and truths drawn from them, the former then sharpened by 1 / temperature."""
    rng = np.random.default_rng(seed)
    log_probs = log_softmax(2 * rng.normal(size=(num, 8)), axis=1)
    truth = np.array([rng.choice(8, p=np.exp(row)) for row in log_probs])
    return log_softmax(log_probs / temperature, axis=1), truth


def tables(num: int = 800) -> tuple[PredictionTable, PredictionTable]:
    both = random_table(num=2 * num, skill=3.0, num_unreadable=2)
    return both.take(np.arange(num)), both.take(np.arange(num, 2 * num))


@pytest.mark.parametrize("sharpened", [0.4, 1.0, 2.5])
def test_temperature_undoes_sharpening(sharpened: float) -> None:
    log_probs, truth = true_model(4000, 0, sharpened)
    assert calibration.fit_temperature(log_probs, truth) == pytest.approx(1 / sharpened, rel=0.06)


def test_temperature_keeps_the_winner_and_normalizes() -> None:
    log_probs, _ = true_model(100, 1)
    scaled = calibration.apply_temperature(log_probs, 3.7)
    assert (scaled.argmax(1) == log_probs.argmax(1)).all()
    assert np.exp(scaled).sum(1) == pytest.approx(np.ones(100))


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_conformal_sets_cover_fresh_images_as_promised(method, coverage: float) -> None:
    log_probs, truth = true_model(6000, 2, temperature=0.5)  # overconfident: the guarantee does not need calibration
    threshold = calibration.conformal_threshold(log_probs[:3000], truth[:3000], coverage, method)
    figures = calibration.measure_sets(calibration.label_sets(log_probs[3000:], threshold, method), truth[3000:])
    # The most probable label always belongs, which makes APS (high scores for sure images) somewhat too wide.
    excess = {"lac": 0.025, "aps": 0.1}[method]
    assert coverage - 0.02 < figures["coverage"] < coverage + excess
    assert 1 <= figures["mean_size"] < 8


def test_conformal_threshold_takes_the_finite_sample_rank() -> None:
    log_probs = np.log(np.column_stack([np.linspace(0.9, 0.1, 9), np.linspace(0.1, 0.9, 9)]))
    truth = np.zeros(9, dtype=np.int64)
    assert calibration.conformal_threshold(log_probs, truth, 0.9) == pytest.approx(0.9)  # ceil(10 × 0.9) = 9th of 9
    assert calibration.conformal_threshold(log_probs, truth, 0.95) == np.inf


def test_a_label_set_is_never_empty() -> None:
    log_probs, _ = true_model(50, 3)
    assert (calibration.label_sets(log_probs, 0.0).sum(axis=1) == 1).all()


def test_the_abstention_threshold_is_the_lowest_that_suffices() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.7, 0.6])
    correct = np.array([True, True, True, False, True])
    assert calibration.abstention_threshold(confidence, correct, 1.0, with_margin=False) == 0.8
    assert calibration.abstention_threshold(confidence, correct, 0.75, with_margin=False) == 0.6
    assert calibration.abstention_threshold(confidence, correct, 0.95) is None  # five images prove nothing
    assert calibration.abstention_threshold(confidence, ~correct, 1.0, with_margin=False) is None


def test_calibrate_reaches_coverage_and_precision_on_test() -> None:
    result = calibration.calibrate(*tables(), coverage=0.9, precision=0.97)
    assert result["nll_after"] < result["nll_before"] + 1e-3
    assert result["ece_after"] == pytest.approx(calibration.calibration_error(result["reliability"]))
    assert result["conformal"]["lac"]["coverage"] == pytest.approx(0.9, abs=0.04)
    assert result["abstention"]["precision"] > 0.95
    assert 0 < result["abstention"]["answered_share"] < 1
    json.dumps(result, allow_nan=False)


def test_a_precision_that_is_not_reached_answers_nothing() -> None:
    found = calibration.calibrate(*tables(60), precision=0.9999)["abstention"]
    assert found["threshold"] is None and found["num_answered"] == 0 and found["precision"] is None


def test_calibrate_needs_other_images_and_probabilities() -> None:
    validation, test = tables(50)
    with pytest.raises(DataError, match="50 images are in both"):
        calibration.calibrate(validation, validation)
    argmax = random_table(num=50, has_probabilities=False)
    with pytest.raises(DataError, match=r"evaluate\.mode: full"):
        calibration.calibrate(argmax, test)


def test_answers_outside_the_labels_are_never_covered() -> None:
    log_probs, truth = true_model(2000, 4)
    truth[:1000:20] = -1  # 5 % of the first half
    threshold = calibration.conformal_threshold(log_probs[:1000], truth[:1000], 0.9)
    assert threshold > calibration.conformal_threshold(log_probs[50:1000], np.abs(truth[50:1000]), 0.9)
    assert calibration.conformal_threshold(log_probs[:1000], truth[:1000], 0.97) == np.inf
    everything = np.ones((2000, 8), bool)
    assert calibration.measure_sets(everything, truth)["coverage"] == pytest.approx(0.975)
    assert calibration.fit_temperature(log_probs[:1000], truth[:1000]) == pytest.approx(1, abs=0.15)


def test_a_closed_list_of_answers_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    log_probs = log_softmax(3 * rng.normal(size=(900, 3)), axis=1).astype(np.float32)
    labels = ("red", "blue", "green")
    drawn = [str(rng.choice(labels, p=np.exp(row / 2) / np.exp(row / 2).sum())) for row in log_probs]
    examples = [
        Example(str(i), ImageSource(data=b""), (answer,) * 8 + ("grey",) * 2, "Which?", image_id=str(i // 3))
        for i, answer in enumerate(drawn)
    ]
    answers = [labels[row.argmax()] for row in log_probs]
    table = answered(examples, answers, labels, log_probs=log_probs)
    result = calibration.calibrate(table.take(np.arange(450)), table.take(np.arange(450, 900)))
    assert result["temperature"] == pytest.approx(2, rel=0.25) and result["nll_after"] < result["nll_before"]
    assert result["ece_after"] < result["ece_before"]
    assert result["conformal"]["lac"]["coverage"] == pytest.approx(0.9, abs=0.06)
    open_table = answered(examples, answers)
    with pytest.raises(DataError, match="every label's probability"):
        calibration.calibrate(open_table.take(np.arange(450)), open_table.take(np.arange(450, 900)))
