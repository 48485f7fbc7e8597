"""All figures of one evaluation: predictions in, one JSON-ready dictionary out. No torch.

Called by `evaluate` when predictions are complete, and by the report for folders without stored figures. An
unreadable image stays in every denominator: as a wrong answer, and, where a probability is asked for, as a uniform
guess over the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.evaluate.predictions import PredictionTable
from vlmtune.evaluate.statistics import wilson_interval

TOP_K = (1, 3, 5)
NUM_BINS = 15
NUM_CURVE_POINTS = 200
_COUNTS = ("num_examples", "num_correct", "num_unreadable", "confusion", "unreadable_by_class", "per_class")
_SHARES = ("accuracy", "accuracy_interval", "macro_f1", "weighted_f1", "balanced_accuracy", "seconds_per_example")
_OF_PROBABILITIES = ("top_k", "nll", "brier", "ece", "reliability", "risk_coverage", "aurc", "mean_confidence")
FIGURES = frozenset((*_COUNTS, *_SHARES, *_OF_PROBABILITIES))
"""The keys of what `measure` gives."""
Floats = NDArray[np.float64]


def measure(predictions: PredictionTable, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Every figure of one evaluation, as plain numbers and lists.

    Probability-based entries (``nll``, ``brier``, ``ece``, ``top_k``, ``reliability``, ``risk_coverage``, ``aurc``)
    are None in arg-max mode, which has no probabilities. ``confusion[i][j]`` counts images of class i called j; the
    unreadable ones of each class are in ``unreadable_by_class``.
    """
    names = tuple(labels) if labels is not None else predictions.labels
    truth, guess = predictions.truth, predictions.prediction
    counts = _confusion(truth, guess, len(names))
    correct = predictions.correct
    num, num_correct = len(predictions), int(correct.sum())
    result: dict[str, Any] = {
        "num_examples": num,
        "num_correct": num_correct,
        "num_unreadable": int((~predictions.readable).sum()),
        "accuracy": num_correct / num if num else None,
        "accuracy_interval": _interval(num_correct, num),
        **_class_figures(truth, guess, counts, names),
        "confusion": counts[:, :-1].tolist(),
        "unreadable_by_class": counts[:, -1].tolist(),
        "seconds_per_example": _mean_or_none(predictions.seconds),
    }
    result.update(dict.fromkeys(_OF_PROBABILITIES))
    if predictions.log_probs is not None and num:
        result.update(_probability_figures(predictions, correct))
    return result


def filled_log_probs(predictions: PredictionTable) -> Floats:
    """float64[N, L] log-probabilities with a uniform row for each unreadable image. Raises ValueError without any."""
    if predictions.log_probs is None:
        raise ValueError("these predictions have no probabilities (arg-max mode)")
    log_probs = predictions.log_probs.astype(np.float64)
    log_probs[~predictions.readable] = -np.log(log_probs.shape[1])
    return log_probs


def confidences(predictions: PredictionTable) -> Floats:
    """float64[N]: the probability of the predicted label; 1 / L for an unreadable image."""
    assert predictions.log_probs is not None
    rows = np.arange(len(predictions))
    chosen = predictions.log_probs[rows, np.maximum(predictions.prediction, 0)].astype(np.float64)
    return np.where(predictions.readable, np.exp(chosen), 1 / predictions.log_probs.shape[1])


def truth_ranks(log_probs: Floats, truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[N]: how many labels stand before the true one; of equal probabilities the earlier label stands first."""
    target = np.take_along_axis(log_probs, truth[:, None], axis=1)
    earlier = np.arange(log_probs.shape[1])[None] < truth[:, None]
    ahead: NDArray[np.int64] = ((log_probs > target) | ((log_probs == target) & earlier)).sum(axis=1)
    return ahead


def negative_log_likelihoods(log_probs: Floats, truth: NDArray[np.int64]) -> Floats:
    """float64[N], in nats."""
    return -np.take_along_axis(log_probs, truth[:, None], axis=1)[:, 0]


def brier_scores(log_probs: Floats, truth: NDArray[np.int64]) -> Floats:
    """float64[N] squared distance to the one-hot truth, between 0 and 2 (Brier 1950, all classes)."""
    probs = np.exp(log_probs)
    target = np.take_along_axis(probs, truth[:, None], axis=1)[:, 0]
    scores: Floats = np.einsum("nl,nl->n", probs, probs) - 2 * target + 1
    return scores


def reliability_bins(confidence: Floats, correct: NDArray[np.bool_], num_bins: int = NUM_BINS) -> list[dict[str, Any]]:
    """Bins of (nearly) equally many images by confidence, lowest first (Nixon et al. 2019, arXiv 1904.01685).

    Equal confidences are never split over two bins, so the order of the rows cannot matter; there may be fewer bins.
    """
    order = np.argsort(confidence, kind="stable")
    sorted_confidence, sorted_correct = confidence[order], correct[order]
    wanted = np.linspace(0, len(order), num_bins + 1).round().astype(np.int64)[1:]
    wanted = wanted[wanted > 0]
    ends = np.unique(np.searchsorted(sorted_confidence, sorted_confidence[wanted - 1], side="right"))
    bins = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        hits = int(sorted_correct[start:end].sum())
        bins.append(
            {
                "count": int(end - start),
                "confidence": float(sorted_confidence[start:end].mean()),
                "accuracy": hits / int(end - start),
                "accuracy_interval": _interval(hits, int(end - start)),
            }
        )
    return bins


def calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """Expected calibration error: the gap between confidence and accuracy, averaged over images."""
    total = sum(entry["count"] for entry in bins)
    return float(sum(entry["count"] * abs(entry["confidence"] - entry["accuracy"]) for entry in bins) / total)


def risk_coverage(confidence: Floats, correct: NDArray[np.bool_]) -> Floats:
    """float64[N]: share of wrong answers among the k most confident, k = 1..N (Geifman and El-Yaniv 2017).

    Within equal confidences the wrong ones are spread evenly, which is the expectation over their order.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    wrong = np.cumsum(~correct[order])
    ends = np.append(np.flatnonzero(np.diff(sorted_confidence)), len(order) - 1)
    taken = np.arange(1, len(order) + 1)
    spread = np.interp(taken, np.append(0, ends + 1), np.append(0, wrong[ends]))
    curve: Floats = spread / taken
    return curve


def _probability_figures(predictions: PredictionTable, correct: NDArray[np.bool_]) -> dict[str, Any]:
    log_probs, truth = filled_log_probs(predictions), predictions.truth
    ranks = np.where(predictions.readable, truth_ranks(log_probs, truth), log_probs.shape[1])
    confidence = confidences(predictions)
    bins = reliability_bins(confidence, correct)
    risks = risk_coverage(confidence, correct)
    points = np.unique(np.linspace(0, len(risks) - 1, min(NUM_CURVE_POINTS, len(risks))).round().astype(np.int64))
    return {
        "top_k": {str(k): float((ranks < k).mean()) for k in TOP_K if k == 1 or k < log_probs.shape[1]},
        "nll": float(negative_log_likelihoods(log_probs, truth).mean()),
        "brier": float(brier_scores(log_probs, truth).mean()),
        "ece": calibration_error(bins),
        "mean_confidence": float(confidence.mean()),
        "reliability": bins,
        "risk_coverage": {
            "coverage": ((points + 1) / len(risks)).round(6).tolist(),
            "risk": risks[points].round(6).tolist(),
        },
        "aurc": float(risks.mean()),
    }


def _class_figures(
    truth: NDArray[np.int64], guess: NDArray[np.int64], counts: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    from sklearn.metrics import precision_recall_fscore_support

    num_labels = len(names)
    empty = np.zeros(num_labels)
    precision, recall, f1 = empty, empty, empty
    if len(truth):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, guess, labels=np.arange(num_labels), zero_division=0.0
        )
    support, predicted = counts.sum(axis=1), counts[:, :num_labels].sum(axis=0)
    hits = np.diag(counts[:, :num_labels])
    recall_low, recall_high = wilson_interval(hits, support)
    precision_low, precision_high = wilson_interval(hits, predicted)
    present = (support + predicted) > 0  # a label seen in neither says nothing about the model
    per_class = [
        {
            "label": name,
            "support": int(support[i]),
            "predicted": int(predicted[i]),
            "correct": int(hits[i]),
            "precision": float(precision[i]) if predicted[i] else None,
            "precision_interval": _pair(precision_low[i], precision_high[i]),
            "recall": float(recall[i]) if support[i] else None,
            "recall_interval": _pair(recall_low[i], recall_high[i]),
            "f1": float(f1[i]) if present[i] else None,
        }
        for i, name in enumerate(names)
    ]
    return {
        "macro_f1": float(f1[present].mean()) if present.any() else None,
        "weighted_f1": float(np.average(f1, weights=support)) if support.sum() else None,
        "balanced_accuracy": float(recall[support > 0].mean()) if support.sum() else None,
        "per_class": per_class,
    }


def _confusion(truth: NDArray[np.int64], guess: NDArray[np.int64], num_labels: int) -> NDArray[np.int64]:
    """int64[L, L + 1]: truth by prediction; the last column holds unreadable images."""
    columns = np.where(guess < 0, num_labels, guess)
    flat = np.bincount(truth * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return flat.reshape(num_labels, num_labels + 1).astype(np.int64)


def _interval(successes: int, trials: int) -> list[float] | None:
    low, high = wilson_interval(successes, trials)
    return _pair(low, high)


def _pair(low: Any, high: Any) -> list[float] | None:
    """JSON has no NaN: an interval from no trials is null."""
    return None if np.isnan(low) else [float(low), float(high)]


def _mean_or_none(values: NDArray[np.float32]) -> float | None:
    """JSON has no NaN: what was not measured for every image is null."""
    return float(values.mean()) if len(values) and not np.isnan(values).any() else None
