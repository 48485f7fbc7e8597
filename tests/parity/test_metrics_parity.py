"""Calibration and label sets equal netcal's and MAPIE's on random predictions; the area under risk-coverage its
definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from vlmtune.evaluate import calibration
from vlmtune.evaluate.metrics import calibration_error, reliability_bins, risk_coverage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mapie.classification import SplitConformalClassifier
    from netcal.metrics import ECE
    from netcal.scaling import TemperatureScaling
    from sklearn.base import BaseEstimator, ClassifierMixin

pytestmark = pytest.mark.parity


def predictions(num: int, num_labels: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float64[N, L] log-probabilities, overconfident by ``sharpness``, and truths drawn without it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(num, num_labels))
    truth = np.array([rng.choice(num_labels, p=row) for row in softmax(logits, axis=1)])
    return log_softmax(sharpness * logits, axis=1), truth


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_labels", [2, 7])
def test_equal_mass_calibration_error_equals_netcal(num_labels: int, seed: int) -> None:
    log_probs, truth = predictions(1500, num_labels, 1.8, seed)
    probs = np.exp(log_probs)
    ours = calibration_error(reliability_bins(probs.max(1), probs.argmax(1) == truth, 15))
    # The same fifteen bins of 100 images; at their edges netcal's quantiles may move one image.
    peer = ECE(bins=15, equal_intervals=False).measure(probs if num_labels > 2 else probs[:, 1], truth)
    if num_labels == 2:  # netcal measures the probability of label 1, so ours is asked the same
        ours = calibration_error(reliability_bins(probs[:, 1], truth == 1, 15))
    assert ours == pytest.approx(peer, abs=1.5 / 1500)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_temperature_equals_netcal(sharpness: float, seed: int) -> None:
    log_probs, truth = predictions(800, 6, sharpness, seed)
    peer = TemperatureScaling()
    peer.fit(np.exp(log_probs), truth)
    ours = calibration.fit_temperature(log_probs, truth)
    assert ours == pytest.approx(1 / float(peer.temperature[0]), rel=2e-3)
    scaled = np.exp(calibration.apply_temperature(log_probs, ours))
    assert scaled == pytest.approx(peer.transform(np.exp(log_probs)), abs=2e-3)


class Stored(ClassifierMixin, BaseEstimator):
    """What MAPIE asks of a classifier, over probabilities that stand in place of features."""

    def __init__(self, num_labels: int = 2) -> None:
        self.num_labels = num_labels
        self.classes_ = np.arange(num_labels)
        self.n_features_in_ = num_labels

    def fit(self, X: np.ndarray, y: np.ndarray) -> Stored:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X).argmax(1)


class NoDraws(np.random.RandomState):
    """MAPIE subtracts a random share of the true label's probability; ours are the deterministic sets."""

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> np.ndarray:
        return np.zeros(size)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["lac", "aps"])
def test_label_sets_equal_mapie(method: calibration.Method, seed: int, coverage: float) -> None:
    log_probs, truth = predictions(1000, 6, 1.5, seed)
    fitted, rest = log_probs[:500], log_probs[500:]
    peer = SplitConformalClassifier(
        Stored(6), confidence_level=coverage, conformity_score=method, random_state=NoDraws(0)
    )
    more = {"conformity_score_params": {"include_last_label": False}} if method == "aps" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.conformalize(np.exp(fitted), truth[:500])
        _, wanted = peer.predict_set(np.exp(rest), **more)
    threshold = calibration.conformal_threshold(fitted, truth[:500], coverage, method)
    most_probable = np.eye(6, dtype=bool)[rest.argmax(1)]  # MAPIE's sets may be empty, ours never are
    assert (calibration.label_sets(rest, threshold, method) == (wanted[:, :, 0] | most_probable)).all()


@pytest.mark.parametrize("seed", range(3))
def test_risk_coverage_is_the_error_of_the_most_confident(seed: int) -> None:
    log_probs, truth = predictions(200, 5, 1.5, seed)
    confidence, correct = np.exp(log_probs.max(1)), log_probs.argmax(1) == truth
    curve = risk_coverage(confidence, correct)
    for share in (1, 17, 120, 200):
        most_confident = np.argsort(-confidence)[:share]
        assert curve[share - 1] == pytest.approx(1 - correct[most_confident].mean())
