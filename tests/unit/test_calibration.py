"""Temperature, label sets and abstention do on test what they promise, and never look at it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from tests.synthetic_runs import facts, random_table
from vlmtune.errors import DataError
from vlmtune.evaluate import calibration
from vlmtune.evaluate.files import write_evaluation as write_folder
from vlmtune.evaluate.predictions import PredictionTable

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
def test_temperature_undoes_what_was_done_to_a_calibrated_model(sharpened: float) -> None:
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


def test_abstention_threshold_is_the_lowest_that_reaches_the_precision() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.7, 0.6])
    correct = np.array([True, True, True, False, True])
    assert calibration.abstention_threshold(confidence, correct, 1.0, with_margin=False) == 0.8
    assert calibration.abstention_threshold(confidence, correct, 0.75, with_margin=False) == 0.6
    assert calibration.abstention_threshold(confidence, correct, 0.95) is None  # five images prove nothing
    assert calibration.abstention_threshold(confidence, ~correct, 1.0, with_margin=False) is None


def test_calibrate_lowers_the_likelihood_loss_on_test_and_reaches_coverage_and_precision() -> None:
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


def test_a_runs_calibration_is_that_of_its_latest_fine_tuned_evaluation(tmp_path: Path) -> None:
    assert calibration.read_calibration(tmp_path) is None
    validation, test = tables(300)
    for name, checkpoint, created, coverage in (
        ("base", None, "2026-11-23", 0.5),
        ("test-old", "step-000001", "2026-11-21", 0.6),
        ("test-new", "step-000002", "2026-11-22", 0.999),
    ):
        figures = calibration.calibrate(validation, test, coverage=coverage)
        scoring = {"form": "sum", "calibration": "none"}
        more = {"checkpoint": checkpoint, "created": created, "calibration": figures, "scoring": scoring}
        write_folder(tmp_path / "evaluation" / name, facts(name, test) | more, test)
    write_folder(tmp_path / "evaluation" / "later", facts("x", test) | {"checkpoint": "y", "created": "2027"}, test)
    adjusted = more | {"checkpoint": "z", "created": "2027", "scoring": {"form": "mean", "calibration": "prior"}}
    write_folder(tmp_path / "evaluation" / "adjusted", facts("x", test) | adjusted, test)
    found = calibration.read_calibration(tmp_path)
    assert found is not None and found.wanted_coverage == 0.999
    assert found.conformal["lac"] == np.inf  # 300 images cannot vouch for 99.9 %
    assert found.temperature == figures["temperature"]


def test_calibrate_refuses_the_same_images_and_missing_probabilities() -> None:
    validation, test = tables(50)
    with pytest.raises(DataError, match="50 images are in both"):
        calibration.calibrate(validation, validation)
    argmax = random_table(num=50, has_probabilities=False)
    with pytest.raises(DataError, match=r"evaluate\.mode: full"):
        calibration.calibrate(argmax, test)
