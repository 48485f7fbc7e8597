"""Probabilities one can act on: temperature, conformal label sets, abstention. Fitted on validation, measured on test.

All functions take log-probabilities normalised over the labels, float64[N, L]; `metrics.filled_log_probs` makes them
from a prediction table. No torch.
"""

from __future__ import annotations

from typing import Any, Literal

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
from vlmtune.evaluate.predictions import PredictionTable
from vlmtune.evaluate.statistics import wilson_interval

Floats = NDArray[np.float64]
Method = Literal["lac", "aps"]


def fit_temperature(log_probs: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature T of least negative log-likelihood of softmax(log p / T) (Guo et al. 2017, arXiv 1706.04599).

    One number cannot change which label wins. Bounded to [0.05, 20]. Raises DataError without examples.
    """
    if not len(truth):
        raise DataError("Temperature scaling needs validation pictures, found none. Raise data.validation_fraction.")

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(log_probs, float(np.exp(log_temperature)))
        return float(negative_log_likelihoods(scaled, truth).mean())

    # Convex in 1/T, hence unimodal in log T: a bounded scalar search is enough.
    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def apply_temperature(log_probs: Floats, temperature: float) -> Floats:
    """float64[N, L], normalised again."""
    scaled: Floats = log_softmax(log_probs / temperature, axis=1)
    return scaled


def conformal_threshold(log_probs: Floats, truth: NDArray[np.int64], coverage: float, method: Method = "lac") -> float:
    """The score up to which labels enter a set, so that sets hold the truth with probability ``coverage``.

    The finite-sample quantile of split conformal prediction (Angelopoulos and Bates 2021, arXiv 2107.07511): valid if
    calibration and later pictures are exchangeable. Infinite when there are too few pictures for this coverage.
    """
    scores = np.sort(np.take_along_axis(nonconformity(log_probs, method), truth[:, None], axis=1)[:, 0])
    # The tiny allowance keeps (n + 1) × 0.9 = 90.00000000000001 from asking for one picture more.
    rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return float("inf") if rank > len(scores) else float(scores[max(rank, 1) - 1])


def nonconformity(log_probs: Floats, method: Method) -> Floats:
    """float64[N, L], low for labels that fit.

    ``lac``: 1 - p (Sadinle et al. 2019), smallest sets on average. ``aps``: probability mass down to and including the
    label (Romano et al. 2020, arXiv 2006.02544, without randomisation, hence slightly too large), steadier per picture.
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
    """bool[N, L]: the labels in each picture's set. Never empty: the most probable label always belongs."""
    # Equal scores differ in the last bits after another route of computation.
    sets = nonconformity(log_probs, method) <= threshold + 1e-12
    sets[np.arange(len(sets)), log_probs.argmax(axis=1)] = True
    return sets


def measure_sets(sets: NDArray[np.bool_], truth: NDArray[np.int64]) -> dict[str, Any]:
    """Share of sets that hold the truth (with Wilson interval), mean size, share with one label."""
    held = sets[np.arange(len(sets)), truth]
    sizes = sets.sum(axis=1)
    low, high = wilson_interval(int(held.sum()), len(held))
    return {
        "coverage": float(held.mean()),
        "coverage_interval": [float(low), float(high)],
        "mean_size": float(sizes.mean()),
        "single_share": float((sizes == 1).mean()),
    }


def abstention_threshold(
    confidence: Floats, correct: NDArray[np.bool_], precision: float, with_margin: bool = True
) -> float | None:
    """The lowest confidence from which answers reach the wanted precision; None if no threshold does.

    With ``with_margin`` the lower end of the Wilson interval has to reach it, not the point estimate.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(correct[order])
    answered = np.arange(1, len(ranked) + 1)
    reached = wilson_interval(hits, answered)[0] if with_margin else hits / answered
    last_of_equal = np.append(ranked[1:] < ranked[:-1], True) if len(ranked) else np.zeros(0, bool)
    good = np.flatnonzero((reached >= precision) & last_of_equal)
    return float(ranked[good[-1]]) if len(good) else None


def calibrate(
    validation: PredictionTable, test: PredictionTable, coverage: float = 0.9, precision: float = 0.95
) -> dict[str, Any]:
    """Fit temperature, label sets and abstention on validation; report what they do on test. JSON-ready.

    Raises DataError when either has no probabilities, the labels differ, or a picture is in both.
    """
    if validation.log_probs is None or test.log_probs is None:
        raise DataError("Calibration needs every label's probability. Evaluate with evaluate.mode: full.")
    if validation.labels != test.labels:
        raise DataError("Calibration needs the same labels in the same order in both evaluations.")
    shared = set(validation.ids) & set(test.ids)
    if shared:
        raise DataError(f"{len(shared)} pictures are in both evaluations ({min(shared)} …): fit on held-out ones only.")
    fitted, raw = filled_log_probs(validation), filled_log_probs(test)
    temperature = fit_temperature(fitted, validation.truth)
    fitted, scaled = apply_temperature(fitted, temperature), apply_temperature(raw, temperature)
    result: dict[str, Any] = {
        "temperature": temperature,
        "num_validation": len(validation),
        "before": _quality(raw, test),
        "after": _quality(scaled, test),
        "wanted_coverage": coverage,
        "sets": {},
    }
    methods: tuple[Method, Method] = ("lac", "aps")
    for method in methods:
        threshold = conformal_threshold(fitted, validation.truth, coverage, method)
        figures = measure_sets(label_sets(scaled, threshold, method), test.truth)
        result["sets"][method] = {"threshold": None if np.isinf(threshold) else threshold, **figures}
    threshold_found = abstention_threshold(np.exp(fitted.max(axis=1)), validation.correct, precision)
    result["abstention"] = _abstention(threshold_found, scaled, test, precision)
    return result


def _quality(log_probs: Floats, table: PredictionTable) -> dict[str, float]:
    bins = reliability_bins(np.exp(log_probs.max(axis=1)), table.correct)
    nll = float(negative_log_likelihoods(log_probs, table.truth).mean())
    return {"nll": nll, "ece": calibration_error(bins)}


def _abstention(threshold: float | None, log_probs: Floats, table: PredictionTable, precision: float) -> dict[str, Any]:
    answered = np.zeros(len(table), bool) if threshold is None else np.exp(log_probs.max(axis=1)) >= threshold
    num = int(answered.sum())
    return {
        "wanted_precision": precision,
        "threshold": threshold,
        "answered_share": num / len(table),
        "precision": float(table.correct[answered].mean()) if num else None,
    }
