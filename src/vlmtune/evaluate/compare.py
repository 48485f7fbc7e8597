"""Evaluations of the same images and questions, side by side: paired tests, paired bootstrap, what changed.

Called by `vlmtune compare`, the curves and the report. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.errors import DataError
from vlmtune.evaluate.bootstrap import (
    balanced_accuracy,
    bootstrap_counts,
    bootstrap_means,
    macro_f1,
    percentile_interval,
    weighted_f1,
)
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.metrics import (
    NUM_RESAMPLES,
    ORDERED_STATISTICS,
    brier_scores,
    filled_levels,
    filled_log_probs,
    negative_log_likelihoods,
)
from vlmtune.evaluate.statistics import SIGNIFICANCE, adjust, difference_intervals, holm, paired_comparison
from vlmtune.evaluate.table import ClosedAnswers, PredictionTable, renumbered

NUM_SHOWN = 5
_CLASS_STATISTICS = {"macro_f1": macro_f1, "weighted_f1": weighted_f1, "balanced_accuracy": balanced_accuracy}
_ROW_STATISTICS = {"nll": negative_log_likelihoods, "brier": brier_scores}
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def compare(evaluations: Sequence[Evaluation], num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Compare two or more evaluations of the same images and questions; JSON-ready.

    - ``num_examples`` (rows whose truth is known), ``num_images``, ``num_labels`` (None for open answers),
      ``num_resamples``; ``runs``: see `describe`;
    - ``pairs``: every pair in the order given (differences are second minus first) with the figures of
      `statistics.paired_comparison`, p-values Holm-adjusted over all pairs (``p_holm``, ``is_significant``);
      ``flipped_to_right`` and ``flipped_to_wrong`` ids; ``by_answer_type`` and ``by_question_type``: ``name``, ``num``,
      ``difference``, ``difference_interval``; and of closed answers ``classes_gained``, ``classes_lost`` and
      ``bootstrap``: metric -> ``difference`` and ``interval`` over images, the same ones for every run.

    Raises DataError for fewer than two evaluations, repeated names, or different images, questions, truths or labels,
    and says which differ.
    """
    tables = align(evaluations)
    indices = list(combinations(range(len(tables)), 2))
    pairs = [
        {
            "first": evaluations[i].name,
            "second": evaluations[j].name,
            **_pair(tables[i], tables[j], num_resamples, seed),
        }
        for i, j in indices
    ]
    adjust(pairs)
    for metric, samples in _bootstrap(tables, num_resamples, seed).items():
        for pair, (i, j) in zip(pairs, indices, strict=True):
            change = samples[:, j] - samples[:, i]
            first, second = evaluations[i].figures[metric], evaluations[j].figures[metric]
            if first is None or second is None:
                continue  # undefined: a weighted kappa where all levels are equal
            interval = list(percentile_interval(change[~np.isnan(change)]))
            pair["bootstrap"][metric] = {"difference": second - first, "interval": interval}
    labels = tables[0].labels
    return {
        "num_examples": len(tables[0]),
        "num_images": tables[0].num_images,
        "num_labels": None if labels is None else len(labels),
        "runs": [describe(evaluation) for evaluation in evaluations],
        "pairs": pairs,
        "num_resamples": num_resamples,
        "confidence": 0.95,
    }


def list_flips(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Every row where the two of a pair score differently: ``pair``, ``id``, ``question``, ``truth`` (all accepted
    answers), the answers of ``first`` and ``second`` (None: unreadable) and the ``change`` in score. Pairs and errors
    are those of `compare`.
    """
    tables, flips = align(evaluations), []
    columns = {name: tables[0].texts(name) for name in ("id", "question", "truth")}
    answers = [table.texts("prediction") for table in tables]
    for i, j in combinations(range(len(tables)), 2):
        change = tables[j].score - tables[i].score
        flips += [
            {
                "pair": f"{evaluations[i].name} → {evaluations[j].name}",
                **{name: values[row] for name, values in columns.items()},
                "first": answers[i][row],
                "second": answers[j][row],
                "change": float(change[row]),
            }
            for row in np.flatnonzero(change)
        ]
    return flips


def align(evaluations: Sequence[Evaluation]) -> list[PredictionTable]:
    """The tables with the first one's order of rows and of labels, without rows whose truth is not known.

    Raises DataError as `compare` does.
    """
    if len(evaluations) < 2:
        raise DataError(f"A comparison needs two or more evaluations, found {len(evaluations)}.")
    names = [e.name for e in evaluations]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"Two evaluations have the same name: {', '.join(repeated)}. Names must differ to tell them apart."
        )
    first = evaluations[0]
    known = first.predictions.known
    if not known.any():
        raise DataError(f"'{first.name}': the answers to its questions are not known, so nothing can be compared.")
    tables = [first.predictions]
    for other in evaluations[1:]:
        _refuse_other_labels(first, other)
        table = other.predictions.take(_matching_rows(first, other))
        _refuse_other_truths(first, other, table)
        labels = first.labels
        tables.append(table if labels is None or table.labels is None else table.with_labels(labels))
    return tables if known.all() else [table.take(known) for table in tables]


def same_examples(first: Evaluation, second: Evaluation) -> bool:
    """Whether two evaluations may be compared row by row."""
    if not first.predictions.known.any():
        return False
    try:
        _refuse_other_labels(first, second)
        _refuse_other_truths(first, second, second.predictions.take(_matching_rows(first, second)))
    except DataError:
        return False
    return True


def describe(evaluation: Evaluation) -> dict[str, Any]:
    """One evaluation as a row of a table: its figures, its cost, and its limits."""
    facts = evaluation.facts
    data = facts.get("data") or {}
    long = ("per_class", "confusion", "unreadable_by_class", "reliability", "risk_coverage")
    return {
        "name": evaluation.name,
        **{key: value for key, value in evaluation.figures.items() if key not in long},
        "seconds": facts.get("seconds"),
        "num_tokens": facts.get("num_tokens"),
        "num_tokens_unshared": facts.get("num_tokens_unshared"),
        "limit": data.get("limit"),
        "split": data.get("split"),
        "mode": facts.get("mode"),
    }


def _pair(a: PredictionTable, b: PredictionTable, num_resamples: int, seed: int) -> dict[str, Any]:
    change, flipped = b.score - a.score, np.flatnonzero(a.correct != b.correct)
    return {
        **paired_comparison(a.score, b.score, a.clusters, num_resamples, seed),
        "bootstrap": {},
        **_class_changes(a, b, seed),
        **{
            f"by_{name}": _type_changes(a, name, change, num_resamples, seed)
            for name in ("answer_type", "question_type")
        },
        "flipped_to_right": [a.ids[row] for row in flipped if b.correct[row]],
        "flipped_to_wrong": [a.ids[row] for row in flipped if a.correct[row]],
    }


def _type_changes(
    table: PredictionTable, name: str, change: Floats, num_resamples: int, seed: int
) -> list[dict[str, Any]]:
    groups = table.groups(name)
    if set(groups) <= {""}:
        return []
    columns = np.column_stack([np.where(rows, change, np.nan) for rows in groups.values()])
    intervals = difference_intervals(columns, table.clusters, num_resamples, seed)
    return [
        {
            "name": type_name,
            "num": int(rows.sum()),
            "difference": float(change[rows].mean()),
            "difference_interval": list(interval),
        }
        for (type_name, rows), interval in zip(groups.items(), intervals, strict=True)
    ]


def _class_changes(a: PredictionTable, b: PredictionTable, seed: int) -> dict[str, Any]:
    """Classes whose mean score changed, the largest change first, each with its test, Holm-adjusted over classes."""
    if a.closed is None or b.closed is None:
        return {"classes_gained": [], "classes_lost": []}
    truth, labels = a.closed.truth, a.closed.labels
    order = np.argsort(truth, kind="stable")
    ends = np.searchsorted(truth[order], np.arange(-1, len(labels)), side="right")
    changes: list[dict[str, Any]] = []
    p_values = []
    for label, (start, end) in enumerate(pairwise(ends)):
        rows = order[start:end]
        if not len(rows):
            continue
        clusters = None if a.clusters is None else renumbered(a.clusters[rows])
        first, second = a.score[rows], b.score[rows]
        # Their intervals are not shown, so few resamples suffice.
        p_values.append(paired_comparison(first, second, clusters, num_resamples=1, seed=seed)["p_value"])
        changes.append(
            {
                "label": labels[label],
                "support": len(rows),
                "recall_first": float(first.mean()),
                "recall_second": float(second.mean()),
                "difference": float((second - first).mean()),
            }
        )
    for change, p_holm in zip(changes, holm(p_values), strict=True):
        change |= {"p_holm": float(p_holm), "is_significant": bool(p_holm < SIGNIFICANCE)}
    better = sorted((c for c in changes if c["difference"] > 0), key=lambda c: -c["difference"])
    worse = sorted((c for c in changes if c["difference"] < 0), key=lambda c: c["difference"])
    return {"classes_gained": better, "classes_lost": worse}


def _bootstrap(tables: Sequence[PredictionTable], num_resamples: int, seed: int) -> dict[str, Floats]:
    """float64[num_resamples, R] per metric of closed answers that all runs have."""
    closed = [table.closed for table in tables if table.closed is not None]
    if len(closed) < len(tables):
        return {}
    inside = closed[0].truth >= 0
    clusters = tables[0].clusters
    if not inside.all():
        closed = [answers.take(inside) for answers in closed]
        clusters = None if clusters is None else renumbered(clusters[inside])
    if not inside.any():
        return {}

    def counted(predictions: Sequence[Ints], statistics: Any) -> dict[str, Floats]:
        columns = np.column_stack(predictions)
        return bootstrap_counts(
            closed[0].truth, columns, len(closed[0].labels), statistics, clusters, num_resamples, seed
        )

    samples = counted([answers.prediction for answers in closed], _CLASS_STATISTICS)
    if tables[0].space.type == "score":
        samples |= counted([filled_levels(answers) for answers in closed], ORDERED_STATISTICS)
    if all(answers.log_probs is not None for answers in closed):
        columns = np.column_stack([column for answers in closed for column in _row_statistics(answers)])
        means = bootstrap_means(columns, clusters, num_resamples, seed)
        samples |= {key: means[:, number :: len(_ROW_STATISTICS)] for number, key in enumerate(_ROW_STATISTICS)}
    return samples


def _row_statistics(answers: ClosedAnswers) -> list[Floats]:
    log_probs = filled_log_probs(answers)
    return [statistic(log_probs, answers.truth) for statistic in _ROW_STATISTICS.values()]


def _refuse_other_labels(first: Evaluation, other: Evaluation) -> None:
    if first.labels is None or other.labels is None:
        return
    a, b = set(first.labels), set(other.labels)
    if a != b:
        parts = _both_sides(first.name, sorted(a - b), other.name, sorted(b - a))
        raise DataError(
            f"'{first.name}' and '{other.name}' have different label sets: {parts}. They cannot be compared."
        )


def _refuse_other_truths(first: Evaluation, other: Evaluation, aligned: PredictionTable) -> None:
    """Raise DataError where truths differ; ``aligned``: the rows of ``other`` in the order of ``first``."""
    names = ("question", "truth")
    before, after = (list(zip(*map(table.texts, names), strict=True)) for table in (first.predictions, aligned))
    changed = [id_ for id_, a, b in zip(aligned.ids, before, after, strict=True) if a != b]
    if changed:
        raise DataError(
            f"'{first.name}' and '{other.name}' have different questions or true answers for {len(changed)} examples: "
            f"{_listed(changed)}. Evaluate both on the same data."
        )


def _matching_rows(first: Evaluation, other: Evaluation) -> Ints:
    """Rows of ``other`` in the order of ``first``. Raises DataError for an example that only one of them has."""
    keys, other_keys = _keys(first.predictions), _keys(other.predictions)
    row_of = {key: row for row, key in enumerate(other_keys)}
    known = set(keys)
    missing = [key[1] for key in keys if key not in row_of]
    extra = [key[1] for key in other_keys if key not in known]
    if missing or extra:
        parts = _both_sides(first.name, missing, other.name, extra)
        raise DataError(
            f"'{first.name}' ({_described(first)}) and '{other.name}' ({_described(other)}) were measured on different "
            f"examples: {parts}. Evaluate both on the same split with the same limit."
        )
    return np.asarray([row_of[key] for key in keys], dtype=np.int64)


def _keys(table: PredictionTable) -> list[tuple[str, str]]:
    """What identifies a row: its question and its example."""
    return list(zip(table.texts("question_id"), table.ids, strict=True))


def _both_sides(first: str, only_first: Sequence[str], second: str, only_second: Sequence[str]) -> str:
    sides = ((first, only_first), (second, only_second))
    return "; ".join(f"{len(only)} only in '{name}' ({_listed(only)})" for name, only in sides if only)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (", …" if len(names) > NUM_SHOWN else "")


def _described(evaluation: Evaluation) -> str:
    data = evaluation.facts.get("data") or {}
    limit = f", limit {data['limit']}" if data.get("limit") else ""
    return f"{data.get('source', '?')}, {data.get('split', '?')}, {len(evaluation.predictions)} rows{limit}"
