"""Probabilities one can act on: temperature, conformal label sets, abstention. Fitted on validation, measured on test.

All functions take log-probabilities normalized over the labels, float64[N, L]; `metrics.filled_log_probs` makes them
from the closed answers of a prediction table. A truth of -1 is not among the labels: no set can contain it, and the
temperature is fitted without it. No torch.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from vlmtune.errors import DataError
from vlmtune.evaluate.metrics import (
    calibration_error,
    filled_log_probs,
    negative_log_likelihoods,
    reliability_bins,
)
from vlmtune.evaluate.statistics import wilson_interval
from vlmtune.evaluate.table import ClosedAnswers, PredictionTable

Floats = NDArray[np.float64]
Method = Literal["lac", "aps"]
METHODS: tuple[Method, ...] = get_args(Method)


def fit_temperature(log_probs: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature T of least negative log-likelihood of softmax(log p / T) (Guo et al. 2017, arXiv 1706.04599).

    One number cannot change which label wins. Bounded to [0.05, 20]. Raises DataError without examples.
    """
    log_probs, truth = log_probs[truth >= 0], truth[truth >= 0]
    if not len(truth):
        raise DataError("Temperature scaling needs validation images, found none. Raise data.validation_fraction.")

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(log_probs, float(np.exp(log_temperature)))
        return float(negative_log_likelihoods(scaled, truth).mean())

    # Convex in 1/T, hence unimodal in log T: a bounded scalar search is enough.
    solution = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(solution.x))


def apply_temperature(log_probs: Floats, temperature: float) -> Floats:
    """float64[N, L], normalized again."""
    scaled: Floats = log_softmax(log_probs / temperature, axis=1)
    return scaled


def conformal_threshold(log_probs: Floats, truth: NDArray[np.int64], coverage: float, method: Method = "lac") -> float:
    """The score up to which labels enter a set, so that sets hold the truth with probability ``coverage``.

    The finite-sample quantile of split conformal prediction (Angelopoulos and Bates 2021, arXiv 2107.07511): valid if
    calibration and later images are exchangeable. Infinite when there are too few images for this coverage.
    """
    scores = np.take_along_axis(nonconformity(log_probs, method), np.maximum(truth, 0)[:, None], axis=1)[:, 0]
    scores = np.sort(np.where(truth >= 0, scores, np.inf))
    # The tolerance keeps (n + 1) × 0.9 = 90.00000000000001 from requiring one more image.
    rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return float("inf") if rank > len(scores) else float(scores[max(rank, 1) - 1])


def nonconformity(log_probs: Floats, method: Method) -> Floats:
    """float64[N, L], low for labels that fit.

    ``lac``: 1 - p (Sadinle et al. 2019), smallest sets on average. ``aps``: probability mass down to and including the
    label (Romano et al. 2020, arXiv 2006.02544, without randomization, hence slightly too large), steadier per image.
    """
    probs = np.exp(log_probs)
    if method == "lac":
        return 1.0 - probs
    order = np.argsort(-probs, axis=1, kind="stable")
    mass = np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1)
    scores = np.empty_like(probs)
    np.put_along_axis(scores, order, mass, axis=1)
    return scores


def label_sets(log_probs: Floats, threshold: float, method: Method = "lac") -> NDArray[np.bool_]:
    """bool[N, L]: the labels in each image's set. Never empty: the most probable label always belongs."""
    # Equal scores may differ in their last bits when computed another way.
    sets = nonconformity(log_probs, method) <= threshold + 1e-12
    sets[np.arange(len(sets)), log_probs.argmax(axis=1)] = True
    return sets


def measure_sets(sets: NDArray[np.bool_], truth: NDArray[np.int64]) -> dict[str, Any]:
    """Share of sets that contain the truth (with Wilson interval), mean size, share with one label."""
    held = sets[np.arange(len(sets)), truth] & (truth >= 0)
    sizes = sets.sum(axis=1)
    low, high = wilson_interval(int(held.sum()), len(held))
    return {
        "coverage": float(held.mean()),
        "coverage_interval": [float(low), float(high)],
        "mean_size": float(sizes.mean()),
        "single_share": float((sizes == 1).mean()),
    }


def abstention_threshold(
    confidence: Floats, score: NDArray[Any], precision: float, with_margin: bool = True
) -> float | None:
    """The lowest confidence from which answers reach a mean score of ``precision``; None if no threshold does.

    With ``with_margin`` the lower end of the Wilson interval must reach it, not just the point estimate.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(score[order])
    answered = np.arange(1, len(ranked) + 1)
    reached = wilson_interval(hits, answered)[0] if with_margin else hits / answered
    last_of_equal = np.append(ranked[1:] < ranked[:-1], True) if len(ranked) else np.zeros(0, bool)
    good = np.flatnonzero((reached >= precision) & last_of_equal)
    return float(ranked[good[-1]]) if len(good) else None


def calibrate(
    validation: PredictionTable, test: PredictionTable, coverage: float = 0.9, precision: float = 0.95
) -> dict[str, Any]:
    """Fit temperature, label sets and abstention on validation; report what they do on test. JSON-ready.

    - ``temperature``, ``num_validation``; ``nll_before``, ``nll_after``, ``ece_before``, ``ece_after``, ``reliability``
      (bins of `metrics.reliability_bins`, after scaling): measured on test.
    - ``conformal``: ``wanted_coverage``, and under ``lac`` and ``aps`` the ``threshold`` (null: too few images for
      this coverage, so sets hold every label) and the figures of `measure_sets`.
    - ``abstention``: ``wanted_precision``, ``threshold`` (of the scaled probability; null: none reaches it),
      ``num_answered``, ``answered_share``, ``precision`` and ``precision_interval`` of what is answered.

    Raises DataError when either has no probabilities, the labels differ, or an image is in both.
    """
    shared = set(validation.ids) & set(test.ids)
    if shared:
        raise DataError(f"{len(shared)} images are in both evaluations ({min(shared)} …): fit on held-out ones only.")
    fit_on, measured = _measured(validation), _measured(test)
    if fit_on.labels != measured.labels:
        raise DataError("Calibration needs the same labels in the same order in both evaluations.")
    fitted, raw = filled_log_probs(fit_on), filled_log_probs(measured)
    temperature = fit_temperature(fitted, fit_on.truth)
    fitted, scaled = apply_temperature(fitted, temperature), apply_temperature(raw, temperature)
    bins_before, bins_after = (reliability_bins(top_probabilities(p), measured.score) for p in (raw, scaled))
    nll_before, nll_after = (_mean_nll(p, measured.truth) for p in (raw, scaled))
    conformal: dict[str, Any] = {"wanted_coverage": coverage}
    for method in METHODS:
        limit = conformal_threshold(fitted, fit_on.truth, coverage, method)
        figures = measure_sets(label_sets(scaled, limit, method), measured.truth)
        conformal[method] = {"threshold": None if np.isinf(limit) else limit, **figures}
    threshold = abstention_threshold(top_probabilities(fitted), fit_on.score, precision)
    return {
        "temperature": temperature,
        "num_validation": len(fit_on),
        "nll_before": nll_before,
        "nll_after": nll_after,
        "ece_before": calibration_error(bins_before),
        "ece_after": calibration_error(bins_after),
        "reliability": bins_after,
        "conformal": conformal,
        "abstention": {"wanted_precision": precision, "threshold": threshold, **_answered(threshold, scaled, measured)},
    }


def top_probabilities(log_probs: Floats) -> Floats:
    """float64[N]: the probability of the most probable label."""
    top: Floats = np.exp(log_probs.max(axis=1))
    return top


def _measured(table: PredictionTable) -> ClosedAnswers:
    """The rows whose truth is known, with probabilities. Raises DataError where there are none."""
    closed = table.closed
    if closed is None or closed.log_probs is None:
        raise DataError("Calibration needs every label's probability. Evaluate with evaluate.mode: full.")
    return closed if table.known.all() else closed.take(table.known)


def _mean_nll(log_probs: Floats, truth: NDArray[np.int64]) -> float | None:
    inside = truth >= 0
    return float(negative_log_likelihoods(log_probs[inside], truth[inside]).mean()) if inside.any() else None


def _answered(threshold: float | None, log_probs: Floats, answers: ClosedAnswers) -> dict[str, Any]:
    answered = np.zeros(len(answers), bool) if threshold is None else top_probabilities(log_probs) >= threshold
    num, total = int(answered.sum()), float(answers.score[answered].sum())
    low, high = wilson_interval(total, num)
    return {
        "num_answered": num,
        "answered_share": num / len(answers),
        "precision": total / num if num else None,
        "precision_interval": [float(low), float(high)] if num else None,
    }
