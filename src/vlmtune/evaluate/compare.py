"""Evaluations of the same images, side by side: paired tests, paired bootstrap, classes and images that flipped.

Called by `vlmtune compare` and the report. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.errors import DataError
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.metrics import FIGURES, brier_scores, filled_log_probs, measure, negative_log_likelihoods
from vlmtune.evaluate.predictions import PredictionTable
from vlmtune.evaluate.statistics import (
    SIGNIFICANCE,
    adjust,
    balanced_accuracy_from_counts,
    bootstrap_counts,
    bootstrap_means,
    holm,
    macro_f1_from_counts,
    mcnemar,
    paired_test,
    percentile_interval,
    weighted_f1_from_counts,
)

NUM_SHOWN = 5
_COUNT_STATISTICS = {
    "macro_f1": macro_f1_from_counts,
    "weighted_f1": weighted_f1_from_counts,
    "balanced_accuracy": balanced_accuracy_from_counts,
}


def compare(evaluations: Sequence[Evaluation], num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Compare two or more evaluations of the same images; JSON-ready.

    ``pairs`` holds every pair in the order given (differences are second minus first), with mid-p and exact McNemar
    p-values, Holm-adjusted over all pairs. ``bootstrap`` intervals resample images, the same for every run.

    Raises DataError for fewer than two evaluations, repeated names, or different images, truths or labels, and says
    which differ.
    """
    tables = align(evaluations)
    figures = [figures_of(e) for e in evaluations]
    correct = np.column_stack([table.correct for table in tables])
    pairs = [
        _pair(evaluations[i].name, evaluations[j].name, tables[i], tables[j], correct[:, i], correct[:, j])
        for i, j in combinations(range(len(tables)), 2)
    ]
    adjust(pairs)
    for metric, samples in _bootstrap(tables, num_resamples, seed).items():
        for pair, (i, j) in zip(pairs, combinations(range(len(tables)), 2), strict=True):
            low, high = percentile_interval(samples[:, j] - samples[:, i])
            difference = figures[j][metric] - figures[i][metric]
            pair["bootstrap"][metric] = {"difference": difference, "interval": [low, high]}
    return {
        "num_examples": len(tables[0]),
        "num_labels": len(tables[0].labels),
        "runs": [describe(e, f) for e, f in zip(evaluations, figures, strict=True)],
        "pairs": pairs,
        "num_resamples": num_resamples,
        "confidence": 0.95,
    }


def list_flips(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Every image on which one of a pair is right and the other wrong: ``pair``, ``id``, ``truth``, what the
    ``first`` and ``second`` said (None: unreadable) and what it ``became``. Pairs as in `compare`; raises as it does.
    """
    tables, flips = align(evaluations), []
    for i, j in combinations(range(len(tables)), 2):
        a, b = tables[i], tables[j]
        names = np.asarray([*a.labels, None], dtype=object)  # position -1 reads as None
        flips += [
            {
                "pair": f"{evaluations[i].name} → {evaluations[j].name}",
                "id": str(a.ids[row]),
                "truth": names[a.truth[row]],
                "first": names[a.prediction[row]],
                "second": names[b.prediction[row]],
                "became": "right" if b.correct[row] else "wrong",
            }
            for row in np.flatnonzero(a.correct != b.correct)
        ]
    return flips


def align(evaluations: Sequence[Evaluation]) -> list[PredictionTable]:
    """The tables with the first one's order of images and of labels. Raises DataError as `compare` does."""
    if len(evaluations) < 2:
        raise DataError(f"A comparison needs two or more evaluations, found {len(evaluations)}.")
    names = [e.name for e in evaluations]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"Two evaluations have the same name: {', '.join(repeated)}. Names must differ to tell them apart."
        )
    first = evaluations[0]
    tables = [first.predictions]
    for other in evaluations[1:]:
        _refuse_other_labels(first, other)
        rows = _matching_rows(first, other)
        tables.append(_relabel(other.predictions.take(rows), first.labels))
        changed = np.flatnonzero(tables[-1].truth != first.predictions.truth)
        if len(changed):
            raise DataError(
                f"'{first.name}' and '{other.name}' give different true labels to {len(changed)} images: "
                f"{_listed(first.predictions.ids[changed])}. Evaluate both on the same data."
            )
    return tables


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """What `measure` gives of an evaluation: as stored, or measured again where another version stored less."""
    stored: dict[str, Any] = evaluation.facts.get("metrics") or {}
    return stored if stored.keys() >= FIGURES else measure(evaluation.predictions)


def same_examples(first: Evaluation, second: Evaluation) -> bool:
    """Whether two evaluations may be compared image by image."""
    a, b = first.predictions, second.predictions
    if len(a) != len(b) or set(a.labels) != set(b.labels):
        return False
    truth_a = dict(zip(a.ids, (a.labels[t] for t in a.truth), strict=True))
    return truth_a == dict(zip(b.ids, (b.labels[t] for t in b.truth), strict=True))


def describe(evaluation: Evaluation, figures: dict[str, Any]) -> dict[str, Any]:
    """One evaluation as a row of a table of evaluations: its main figures, its cost, and what limited it."""
    keys = ("num_examples", "num_correct", "num_unreadable", "accuracy", "accuracy_interval", "macro_f1", "top_k")
    more = ("weighted_f1", "balanced_accuracy", "nll", "brier", "ece", "seconds_per_example")
    facts = evaluation.facts
    data = facts.get("data") or {}
    return {
        "name": evaluation.name,
        **{key: figures.get(key) for key in (*keys, *more)},
        "seconds": facts.get("seconds"),
        "num_tokens": facts.get("num_tokens"),
        "num_tokens_unshared": facts.get("num_tokens_unshared"),
        "limit": data.get("limit"),
        "split": data.get("split"),
        "mode": facts.get("mode"),
    }


def _pair(
    first: str,
    second: str,
    a: PredictionTable,
    b: PredictionTable,
    right_a: NDArray[np.bool_],
    right_b: NDArray[np.bool_],
) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        **paired_test(right_a, right_b),
        "bootstrap": {},
        **_class_changes(a, right_a, right_b),
        "flipped_to_right": [str(i) for i in a.ids[right_b & ~right_a]],
        "flipped_to_wrong": [str(i) for i in a.ids[right_a & ~right_b]],
    }


def _class_changes(a: PredictionTable, right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> dict[str, Any]:
    """Classes whose recall changed, the largest change first, each with its own test, Holm-adjusted over classes."""
    num_labels = len(a.labels)
    gained = np.bincount(a.truth[right_b & ~right_a], minlength=num_labels)
    lost = np.bincount(a.truth[right_a & ~right_b], minlength=num_labels)
    support = np.bincount(a.truth, minlength=num_labels)
    hits = np.bincount(a.truth[right_a], minlength=num_labels)
    tested = np.flatnonzero(support)
    adjusted = np.ones(num_labels)
    adjusted[tested] = holm([mcnemar(int(lost[i]), int(gained[i])) for i in tested])
    changes = [
        {
            "label": a.labels[i],
            "support": int(support[i]),
            "recall_first": hits[i] / support[i],
            "recall_second": (hits[i] + gained[i] - lost[i]) / support[i],
            "difference": (int(gained[i]) - int(lost[i])) / int(support[i]),
            "p_holm": float(adjusted[i]),
            "is_significant": bool(adjusted[i] < SIGNIFICANCE),
        }
        for i in tested
    ]
    better = sorted((c for c in changes if c["difference"] > 0), key=lambda c: -c["difference"])
    worse = sorted((c for c in changes if c["difference"] < 0), key=lambda c: c["difference"])
    return {"classes_gained": better, "classes_lost": worse}


def _bootstrap(tables: Sequence[PredictionTable], num_resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """float64[num_resamples, R] of each metric that every run has."""
    guesses = np.column_stack([table.prediction for table in tables])
    num_labels = len(tables[0].labels)
    samples = bootstrap_counts(tables[0].truth, guesses, num_labels, _COUNT_STATISTICS, num_resamples, seed)
    if all(table.log_probs is not None for table in tables):
        nll, brier = [], []
        for table in tables:
            log_probs = filled_log_probs(table)
            nll.append(negative_log_likelihoods(log_probs, table.truth))
            brier.append(brier_scores(log_probs, table.truth))
        means = bootstrap_means(np.column_stack(nll + brier), num_resamples, seed)
        samples["nll"], samples["brier"] = means[:, : len(tables)], means[:, len(tables) :]
    return samples


def _refuse_other_labels(first: Evaluation, other: Evaluation) -> None:
    a, b = set(first.labels), set(other.labels)
    if a != b:
        parts = _both_sides(first.name, sorted(a - b), other.name, sorted(b - a))
        raise DataError(
            f"'{first.name}' and '{other.name}' have different label sets: {parts}. They cannot be compared."
        )


def _matching_rows(first: Evaluation, other: Evaluation) -> NDArray[np.int64]:
    """Level of ``other`` in the order of ``first``. Raises DataError where an image is in one of them only."""
    row_of = {example: row for row, example in enumerate(other.predictions.ids)}
    known = set(first.predictions.ids)
    missing = [i for i in first.predictions.ids if i not in row_of]
    extra = [i for i in other.predictions.ids if i not in known]
    if missing or extra:
        parts = _both_sides(first.name, missing, other.name, extra)
        raise DataError(
            f"'{first.name}' ({_described(first)}) and '{other.name}' ({_described(other)}) were measured on different "
            f"images: {parts}. Evaluate both on the same split with the same limit."
        )
    return np.asarray([row_of[i] for i in first.predictions.ids], dtype=np.int64)


def _relabel(table: PredictionTable, labels: tuple[str, ...]) -> PredictionTable:
    """The same table with its labels in another order."""
    if table.labels == labels:
        return table
    old_of_new = np.asarray([table.labels.index(label) for label in labels])
    new_of_old = np.append(np.argsort(old_of_new), -1)  # the last entry serves position -1: unreadable
    return replace(
        table,
        labels=labels,
        truth=new_of_old[table.truth],
        prediction=new_of_old[table.prediction],
        log_probs=None if table.log_probs is None else table.log_probs[:, old_of_new],
    )


def _both_sides(first: str, only_first: Sequence[str], second: str, only_second: Sequence[str]) -> str:
    sides = ((first, only_first), (second, only_second))
    return "; ".join(f"{len(only)} only in '{name}' ({_listed(only)})" for name, only in sides if len(only))


def _listed(names: Sequence[Any] | NDArray[np.object_]) -> str:
    return ", ".join(str(name) for name in names[:NUM_SHOWN]) + (", …" if len(names) > NUM_SHOWN else "")


def _described(evaluation: Evaluation) -> str:
    data = evaluation.facts.get("data") or {}
    limit = f", limit {data['limit']}" if data.get("limit") else ""
    return f"{data.get('source', '?')}, {data.get('split', '?')}, {len(evaluation.predictions)} images{limit}"
