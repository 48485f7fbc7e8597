"""All figures of one evaluation: predictions in, one JSON-ready dictionary out. No torch.

Called by `evaluate` when predictions are complete. An unreadable image stays in every denominator: as a wrong answer,
for probabilities as a uniform guess over the labels, and on a scale as the level farthest from the
truth. Rows about one image are not independent: intervals come from a bootstrap over images where there are several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.evaluate.bootstrap import (
    Counts,
    balanced_accuracy,
    bootstrap_counts,
    f1_scores,
    macro_f1,
    mean_absolute_error,
    percentile_interval,
    quadratic_weighted_kappa,
    weighted_f1,
)
from vlmtune.evaluate.statistics import is_binary, mean_intervals, pair_or_none, wilson_interval
from vlmtune.evaluate.table import ClosedAnswers, PredictionTable, renumbered

TOP_K = (1, 3, 5)
NUM_BINS = 15
NUM_CURVE_POINTS = 200
NUM_RESAMPLES = 1_000
ORDERED_STATISTICS = {
    "mean_absolute_error": mean_absolute_error,
    "quadratic_weighted_kappa": quadratic_weighted_kappa,
}
_OF_CLASSES = ("macro_f1", "weighted_f1", "balanced_accuracy", "per_class", "confusion", "unreadable_by_class")
_OF_PROBABILITIES = ("top_k", "nll", "brier", "ece", "reliability", "risk_coverage", "aurc", "mean_confidence")
_OF_TYPES = ("num_outside_labels", "yes", *ORDERED_STATISTICS, *(f"{name}_interval" for name in ORDERED_STATISTICS))
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def measure(table: PredictionTable, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Every figure of one evaluation, as plain numbers and lists.

    - ``num_examples`` (rows), ``num_images``, ``num_measured`` (rows whose truth is known), ``num_unreadable``,
      ``num_correct`` (None where a score is between 0 and 1), ``seconds_per_example``, ``num_resamples``;
    - ``accuracy``, the mean score, with ``accuracy_interval`` (95 %, see `statistics.mean_intervals`); both None where
      no truth is known;
    - ``by_question_type`` and ``by_answer_type``: lists of ``name``, ``num``, ``accuracy``, ``accuracy_interval``, the
      most frequent first; empty where rows have no type;
    - ``by_question``: of several questions, the figures of each with its ``question_id``.

    Of a closed question, else None:

    - ``num_outside_labels``: rows none of whose accepted answers is among the labels. They count as wrong, and not in
      the figures of classes, ``nll`` and ``brier``;
    - ``macro_f1``, ``weighted_f1``, ``balanced_accuracy``, ``per_class``; ``confusion[i][j]`` counts rows of class i
      called j, and ``unreadable_by_class`` the unreadable ones of each class;
    - ``nll``, ``brier``, ``ece``, ``top_k``, ``reliability``, ``risk_coverage``, ``aurc``, ``mean_confidence``: None
      in arg-max mode, which has no probabilities;
    - ``yes`` (of a bool): ``precision``, ``recall``, their intervals, and ``f1``;
    - ``mean_absolute_error`` in levels and ``quadratic_weighted_kappa`` (of a score), each with its interval.
    """
    known, closed = table.known, table.closed
    groups = {("", ""): known} | {
        (column, name): rows
        for column in ("question_type", "answer_type")
        for name, rows in _types(table, column).items()
    }
    columns = np.column_stack([np.where(rows, table.score, np.nan) for rows in groups.values()])
    intervals = mean_intervals(columns, table.clusters, num_resamples, seed) if known.any() else [None]
    whole, *by_type = [
        {"accuracy": float(table.score[rows].mean()) if rows.any() else None, "accuracy_interval": interval}
        for rows, interval in zip(groups.values(), intervals, strict=True)
    ]
    result: dict[str, Any] = {
        "num_examples": len(table),
        "num_images": table.num_images,
        "num_measured": int(known.sum()),
        "num_correct": int(table.score[known].sum()) if is_binary(table.score[known]) else None,
        "num_unreadable": int((~table.readable).sum()),
        **whole,
        "by_question_type": [],
        "by_answer_type": [],
        "by_question": [],
        "num_resamples": None if table.clusters is None else num_resamples,
        "seconds_per_example": _mean_or_none(table.seconds),
        **dict.fromkeys((*_OF_TYPES, *_OF_CLASSES, *_OF_PROBABILITIES)),
    }
    for (column, name), figures in zip(list(groups)[1:], by_type, strict=True):
        result[f"by_{column}"].append({"name": name, "num": int(groups[column, name].sum()), **figures})
    if len(table.spaces) > 1:
        parts = {question: table.of_question(question) for question in table.spaces}
        result["by_question"] = [
            {"question_id": id_, **measure(part, num_resamples, seed)} for id_, part in parts.items()
        ]
    if closed is not None and known.any():
        closed = closed if known.all() else closed.take(known)
        result |= _class_figures(closed)
        if closed.log_probs is not None:
            result |= _probability_figures(closed)
        if table.space.type == "bool":
            keys = ("precision", "precision_interval", "recall", "recall_interval", "f1")
            result["yes"] = {key: result["per_class"][-1][key] for key in keys}
        elif table.space.type == "score":
            clusters = None if table.clusters is None else table.clusters[known]
            result |= _ordered_figures(closed, clusters, num_resamples, seed)
    return result


def _types(table: PredictionTable, column: str) -> dict[str, NDArray[np.bool_]]:
    groups = table.groups(column)
    return {} if set(groups) <= {""} else groups


def filled_log_probs(answers: ClosedAnswers) -> Floats:
    """float64[N, L] log-probabilities with a uniform row for each unreadable image. Raises ValueError without any."""
    if answers.log_probs is None:
        raise ValueError("these predictions have no probabilities (arg-max mode)")
    log_probs = answers.log_probs.astype(np.float64)
    log_probs[~answers.readable] = -np.log(log_probs.shape[1])
    return log_probs


def confidences(answers: ClosedAnswers) -> Floats:
    """float64[N]: the probability of the predicted label; 1 / L for an unreadable image."""
    assert answers.log_probs is not None
    rows = np.arange(len(answers))
    chosen = answers.log_probs[rows, np.maximum(answers.prediction, 0)].astype(np.float64)
    return np.where(answers.readable, np.exp(chosen), 1 / answers.log_probs.shape[1])


def truth_ranks(log_probs: Floats, truth: Ints) -> Ints:
    """int64[N]: how many labels rank before the true one; among equal probabilities the earlier label ranks first."""
    target = np.take_along_axis(log_probs, truth[:, None], axis=1)
    earlier = np.arange(log_probs.shape[1])[None] < truth[:, None]
    ahead: Ints = ((log_probs > target) | ((log_probs == target) & earlier)).sum(axis=1)
    return ahead


def negative_log_likelihoods(log_probs: Floats, truth: Ints) -> Floats:
    """float64[N], in nats."""
    return -np.take_along_axis(log_probs, truth[:, None], axis=1)[:, 0]


def brier_scores(log_probs: Floats, truth: Ints) -> Floats:
    """float64[N] squared distance to the one-hot truth, between 0 and 2 (Brier 1950, all classes)."""
    probs = np.exp(log_probs)
    target = np.take_along_axis(probs, truth[:, None], axis=1)[:, 0]
    scores: Floats = np.einsum("nl,nl->n", probs, probs) - 2 * target + 1
    return scores


def filled_levels(answers: ClosedAnswers) -> Ints:
    """int64[N] predicted levels of a scale, with the level farthest from the truth for each unreadable image."""
    last = len(answers.labels) - 1
    farthest = np.where(answers.truth * 2 > last, 0, last)
    return np.where(answers.readable, answers.prediction, farthest)


def reliability_bins(confidence: Floats, score: NDArray[Any], num_bins: int = NUM_BINS) -> list[dict[str, Any]]:
    """Bins of (nearly) equally many rows by confidence, lowest first (Nixon et al. 2019, arXiv 1904.01685).

    Equal confidences are never split over two bins, so the order of the rows cannot matter; there may be fewer bins.

    Args:
        confidence: float64[N]. score: bool[N] or float64[N], in [0, 1].
    """
    order = np.argsort(confidence, kind="stable")
    sorted_confidence, sorted_score = confidence[order], score[order]
    even = np.linspace(0, len(order), num_bins + 1).round().astype(np.int64)[1:]
    even = even[even > 0]
    ends = np.unique(np.searchsorted(sorted_confidence, sorted_confidence[even - 1], side="right"))
    bins = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        hits = float(sorted_score[start:end].sum())
        bins.append(
            {
                "count": int(end - start),
                "confidence": float(sorted_confidence[start:end].mean()),
                "accuracy": hits / int(end - start),
                "accuracy_interval": pair_or_none(*wilson_interval(hits, int(end - start))),
            }
        )
    return bins


def calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """Expected calibration error: the gap between confidence and accuracy, averaged over rows."""
    total = sum(entry["count"] for entry in bins)
    return float(sum(entry["count"] * abs(entry["confidence"] - entry["accuracy"]) for entry in bins) / total)


def risk_coverage(confidence: Floats, score: NDArray[Any]) -> Floats:
    """float64[N]: 1 - mean score of the k most confident answers, k = 1..N (Geifman and El-Yaniv 2017).

    Within equal confidences the errors are spread evenly, which is the expectation over their order.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    wrong = np.cumsum(1.0 - score[order])
    ends = np.append(np.flatnonzero(np.diff(sorted_confidence)), len(order) - 1)
    taken = np.arange(1, len(order) + 1)
    spread = np.interp(taken, np.append(0, ends + 1), np.append(0, wrong[ends]))
    curve: Floats = spread / taken
    return curve


def _probability_figures(answers: ClosedAnswers) -> dict[str, Any]:
    log_probs, inside = filled_log_probs(answers), answers.truth >= 0
    ranks = np.where(
        answers.readable & inside, truth_ranks(log_probs, np.maximum(answers.truth, 0)), len(answers.labels)
    )
    confidence = confidences(answers)
    bins = reliability_bins(confidence, answers.score)
    risks = risk_coverage(confidence, answers.score)
    points = np.unique(np.linspace(0, len(risks) - 1, min(NUM_CURVE_POINTS, len(risks))).round().astype(np.int64))
    scored, truth = (log_probs, answers.truth) if inside.all() else (log_probs[inside], answers.truth[inside])
    return {
        "top_k": {str(k): float((ranks < k).mean()) for k in TOP_K if k == 1 or k < log_probs.shape[1]},
        "nll": float(negative_log_likelihoods(scored, truth).mean()) if len(truth) else None,
        "brier": float(brier_scores(scored, truth).mean()) if len(truth) else None,
        "ece": calibration_error(bins),
        "mean_confidence": float(confidence.mean()),
        "reliability": bins,
        "risk_coverage": {
            "coverage": ((points + 1) / len(risks)).round(6).tolist(),
            "risk": risks[points].round(6).tolist(),
        },
        "aurc": float(risks.mean()),
    }


def _class_figures(answers: ClosedAnswers) -> dict[str, Any]:
    names, inside = answers.labels, answers.truth >= 0
    truth, guess = answers.truth[inside], answers.prediction[inside]
    confusion = _confusion(truth, guess, len(names))
    counts = Counts.of(truth, guess, len(names))
    (f1,), (hits,), (support,), (predicted,) = f1_scores(counts), counts.hits, counts.support, counts.predicted
    with np.errstate(invalid="ignore"):
        recall, precision = hits / support, hits / predicted
    recall_low, recall_high = wilson_interval(hits, support)
    precision_low, precision_high = wilson_interval(hits, predicted)
    per_class = [
        {
            "label": name,
            "support": int(support[i]),
            "predicted": int(predicted[i]),
            "correct": int(hits[i]),
            "precision": float(precision[i]) if predicted[i] else None,
            "precision_interval": pair_or_none(precision_low[i], precision_high[i]),
            "recall": float(recall[i]) if support[i] else None,
            "recall_interval": pair_or_none(recall_low[i], recall_high[i]),
            # A label in neither truth nor prediction says nothing about the model.
            "f1": float(f1[i]) if support[i] + predicted[i] else None,
        }
        for i, name in enumerate(names)
    ]
    means = {"macro_f1": macro_f1, "weighted_f1": weighted_f1, "balanced_accuracy": balanced_accuracy}
    return {
        **{key: float(statistic(counts)[0]) if len(truth) else None for key, statistic in means.items()},
        "num_outside_labels": int((~inside).sum()),
        "per_class": per_class,
        "confusion": confusion[:, :-1].tolist(),
        "unreadable_by_class": confusion[:, -1].tolist(),
    }


def _ordered_figures(answers: ClosedAnswers, clusters: Ints | None, num_resamples: int, seed: int) -> dict[str, Any]:
    inside = answers.truth >= 0
    answers = answers.take(inside)
    if not len(answers):
        return {}
    num_levels, levels = len(answers.labels), filled_levels(answers)
    groups = None if clusters is None else renumbered(clusters[inside])
    whole = Counts.of(answers.truth, levels, num_levels)
    samples = bootstrap_counts(
        answers.truth, levels[:, None], num_levels, ORDERED_STATISTICS, groups, num_resamples, seed
    )
    figures: dict[str, Any] = {}
    for key, statistic in ORDERED_STATISTICS.items():
        drawn = samples[key][~np.isnan(samples[key])]
        figures[key] = _number_or_none(statistic(whole)[0])
        figures[f"{key}_interval"] = list(percentile_interval(drawn)) if len(drawn) else None
    return figures


def _confusion(truth: Ints, guess: Ints, num_labels: int) -> Ints:
    """int64[L, L + 1]: truth by prediction; the last column holds unreadable images."""
    columns = np.where(guess < 0, num_labels, guess)
    flat = np.bincount(truth * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return flat.reshape(num_labels, num_labels + 1).astype(np.int64)


def _number_or_none(value: Any) -> float | None:
    """None instead of NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def _mean_or_none(values: NDArray[np.float32]) -> float | None:
    """The mean; None unless it was measured for every row."""
    return float(values.mean()) if len(values) and not np.isnan(values).any() else None
