"""A whole split through the closed-set scorer, into an evaluation folder. Called by `evaluate`, `demo` and `sweep`.

Nothing leaves the denominator: an unreadable picture is a wrong answer and is listed with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.evaluate.files import thumbnail, thumbnail_rows, write_evaluation
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.predictions import PredictionTable
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.records import Example, Prediction
from vlmtune.train.run_folder import environment, now


@dataclass(frozen=True)
class Measured:
    """An evaluation as it was written: its folder and its figures."""

    folder: Path
    facts: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return float(self.facts["metrics"]["accuracy"])


def evaluate(
    predictor: Predictor,
    examples: Sequence[Example],
    folder: Path,
    *,
    name: str,
    mode: Literal["full", "argmax"] = "full",
    facts: dict[str, Any] | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Measured:
    """Score every example and write the evaluation.

    Args:
        predictor: with a label set.
        examples: the split, all of it.
        folder: replaced if it holds an older evaluation.
        name: shown in tables and charts.
        mode: see `Predictor.classify`.
        facts: more entries for evaluation.json: model, base, checkpoint, data.
        on_picture: called after each.

    Raises:
        DataError: nothing to evaluate. RunFolderError: the folder cannot be written.
    """
    if not examples:
        raise DataError("There is nothing to evaluate: the split is empty. Check data.source and evaluate.split.")
    assert predictor.labels is not None
    started = time.perf_counter()
    records = []
    queries = (Query(example.image, example.question) for example in examples)
    for example, result in zip(examples, predictor.classify(queries, mode), strict=True):
        scores, error = (None, result.reason) if isinstance(result, UnreadableImageError) else (result, None)
        records.append(
            Prediction(
                id=example.id,
                truth=example.answers,
                prediction=scores.prediction if scores else None,
                log_probs=scores.log_probs if scores else None,
                error=error,
                image=str(example.image.path) if example.image.path else None,
                question=example.question,
            )
        )
        on_picture()
    seconds = time.perf_counter() - started
    table = PredictionTable.from_records(records, predictor.labels.stored)
    table.seconds[:] = seconds / len(records)  # batches run together: a picture's own time is not defined
    thumbnails = {examples[row].id: thumbnail(examples[row].image.open()) for row in thumbnail_rows(table)}
    all_facts = {
        "name": name,
        "task": "classify",
        "mode": mode,
        "data": {"num_examples": len(examples)},
        "seconds": seconds,
        "created": now(),
        **environment(),
        **(facts or {}),
        "metrics": measure(table),
    }
    write_evaluation(folder, all_facts, table, thumbnails)
    return Measured(folder, all_facts)
