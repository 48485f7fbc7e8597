"""VQA evaluations of the same questions, side by side: paired differences with intervals and tests over images.

Called by `vlmtune compare` and the report. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.errors import DataError
from vlmtune.evaluate.statistics import (
    adjust,
    clustered_bootstrap,
    paired_difference_interval,
    percentile_interval,
    sign_flip_test,
)
from vlmtune.evaluate.vqa_metrics import NUM_RESAMPLES, measure_vqa
from vlmtune.evaluate.vqa_predictions import VqaEvaluation, VqaTable


def compare_vqa(
    evaluations: Sequence[VqaEvaluation], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Compare two or more evaluations of the same questions; JSON-ready.

    - ``num_examples`` (questions measured), ``num_images``, ``num_resamples``;
    - ``runs``: each with ``name`` and the figures of `vqa_metrics.measure_vqa`;
    - ``pairs``: every pair in the order given, ``difference`` in accuracy (second minus first) with
      ``difference_interval`` (95 %, bootstrap over images), ``p_value`` (random sign changes of whole images),
      ``p_holm`` and ``is_significant`` over all pairs, ``num_better`` and ``num_worse`` questions, and
      ``by_answer_type``: ``name``, ``num``, ``difference``, ``difference_interval``.

    Raises DataError for fewer than two evaluations, repeated names, other questions, or questions without answers.
    """
    tables = align_vqa(evaluations)
    known = ~np.isnan(tables[0].accuracy)
    accuracy = np.column_stack([table.accuracy for table in tables])
    types = np.asarray([value or "" for value in tables[0].texts("answer_type")])
    groups = {"": known, **{str(name): known & (types == name) for name in np.unique(types[known])}}
    clusters = tables[0].clusters
    pairs = []
    for i, j in combinations(range(len(tables)), 2):
        change = accuracy[:, j] - accuracy[:, i]
        columns = np.column_stack([np.where(rows, change, np.nan) for rows in groups.values()])
        samples = clustered_bootstrap(columns, clusters, num_resamples, seed)
        entries = [
            {
                "name": name,
                "num": int(rows.sum()),
                "difference": float(change[rows].mean()),
                "difference_interval": _interval(drawn, len(np.unique(clusters[rows]))),
            }
            for (name, rows), drawn in zip(groups.items(), samples.T, strict=True)
        ]
        whole, *by_type = entries
        by_image = np.bincount(clusters[known], weights=change[known]).astype(np.float64)
        pairs.append(
            {
                "first": evaluations[i].name,
                "second": evaluations[j].name,
                "difference": whole["difference"],
                "difference_interval": whole["difference_interval"],
                "p_value": sign_flip_test(by_image, seed=seed),
                "num_better": int((change[known] > 0).sum()),
                "num_worse": int((change[known] < 0).sum()),
                "by_answer_type": by_type,
            }
        )
    adjust(pairs)
    return {
        "num_examples": int(known.sum()),
        "num_images": len(np.unique(clusters[known])),
        "runs": [describe_vqa(evaluation) for evaluation in evaluations],
        "pairs": pairs,
        "num_resamples": num_resamples,
        "confidence": 0.95,
    }


def _interval(samples: NDArray[np.float64], num_images: int) -> list[float]:
    low, high = percentile_interval(samples[~np.isnan(samples)])
    if high - low < 1e-12:
        # No question changed, or all alike: resampling says nothing of the next. Each image then counts as a pair.
        lost, gained = max(0.0, -low) * num_images, max(0.0, low) * num_images
        low, high = paired_difference_interval(lost, gained, num_images)
    return [low, high]


def list_changes(evaluations: Sequence[VqaEvaluation]) -> list[dict[str, Any]]:
    """Every question that one of a pair answers better: ``pair``, ``id``, ``question``, what the ``first`` and
    ``second`` said (None: unreadable) and the ``change`` in accuracy. Pairs as in `compare_vqa`; raises as it does.
    """
    tables, changes = align_vqa(evaluations), []
    answers = [table.texts("prediction") for table in tables]
    questions = tables[0].texts("question")
    for i, j in combinations(range(len(tables)), 2):
        change = np.nan_to_num(tables[j].accuracy - tables[i].accuracy)
        changes += [
            {
                "pair": f"{evaluations[i].name} → {evaluations[j].name}",
                "id": tables[0].ids[row],
                "question": questions[row],
                "first": answers[i][row],
                "second": answers[j][row],
                "change": float(change[row]),
            }
            for row in np.flatnonzero(change)
        ]
    return changes


def align_vqa(evaluations: Sequence[VqaEvaluation]) -> list[VqaTable]:
    """The tables in the first one's order of questions. Raises DataError as `compare_vqa` does."""
    if len(evaluations) < 2:
        raise DataError(f"A comparison needs two or more evaluations, found {len(evaluations)}.")
    names = [evaluation.name for evaluation in evaluations]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"Two evaluations have the same name: {', '.join(repeated)}. Names must differ.")
    first = evaluations[0]
    tables = [first.table]
    for other in evaluations[1:]:
        rows = _matching_rows(first, other)
        tables.append(VqaTable(other.table.columns.take(rows), other.table.seconds[rows]))
    if np.isnan(first.table.accuracy).all():
        raise DataError(f"'{first.name}': the answers to its questions are not known, so nothing can be compared.")
    return tables


def same_questions(first: VqaEvaluation, second: VqaEvaluation) -> bool:
    """Whether two evaluations may be compared question by question."""
    return _asked(first.table) == _asked(second.table)


def _matching_rows(first: VqaEvaluation, other: VqaEvaluation) -> NDArray[np.int64]:
    asked, also = _asked(first.table), _asked(other.table)
    if asked.keys() != also.keys():
        only, more = sorted(asked.keys() - also.keys()), sorted(also.keys() - asked.keys())
        example = (only or more)[0]
        raise DataError(
            f"'{first.name}' and '{other.name}' are about other questions: {len(only)} are in the first alone and "
            f"{len(more)} in the second alone, such as {example}. Evaluate both on the same split and limit."
        )
    changed = [id_ for id_ in asked if asked[id_] != also[id_]]
    if changed:
        raise DataError(
            f"'{first.name}' and '{other.name}' hold other words or answers for {len(changed)} questions, such as "
            f"{changed[0]}. Evaluate both on the same data."
        )
    place = {id_: row for row, id_ in enumerate(other.table.ids)}
    return np.asarray([place[id_] for id_ in first.table.ids], dtype=np.int64)


def _asked(table: VqaTable) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Question id -> its words and its annotators' answers."""
    told = zip(table.texts("question"), map(tuple, table.texts("answers")), strict=True)
    return dict(zip(table.ids, told, strict=True))


def describe_vqa(evaluation: VqaEvaluation) -> dict[str, Any]:
    """One evaluation as a row of a table of evaluations: its figures, its cost, and what limited it."""
    facts = evaluation.facts
    return {
        "name": evaluation.name,
        **(facts.get("metrics") or measure_vqa(evaluation.table)),
        "seconds": facts.get("seconds"),
        "limit": (facts.get("data") or {}).get("limit"),
        "split": (facts.get("data") or {}).get("split"),
        "mode": facts.get("mode"),
    }
