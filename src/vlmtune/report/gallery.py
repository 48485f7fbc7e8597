"""The images a report shows: mistakes with what the model took them for, and what could not be read."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.metrics import confidences
from vlmtune.evaluate.table import top_positions

NUM_UNREADABLE_SHOWN = 200


def cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A card a stored thumbnail: mistakes first, the surest of them on top."""
    table = evaluation.predictions
    rows = np.flatnonzero([image in evaluation.thumbnails for image in table.texts("image_id")])
    if not len(rows):
        return []
    chosen = table.take(rows)
    closed, labels = chosen.closed, chosen.labels
    assert closed is not None and labels is not None
    log_probs = closed.log_probs
    sure = confidences(closed) if log_probs is not None else np.zeros(len(rows))
    top = top_positions(np.nan_to_num(log_probs, nan=-1e9), 3) if log_probs is not None else None
    images, truths, answers = (chosen.texts(name) for name in ("image_id", "truth", "prediction"))
    shown = []
    for row in np.lexsort([-sure, chosen.correct]):
        probabilities = []
        if top is not None and log_probs is not None:
            probabilities = [
                {
                    "label": labels[i],
                    "share": float(np.exp(log_probs[row, i])),
                    "is_truth": bool(i == closed.truth[row]),
                }
                for i in top[row]
            ]
        data = base64.b64encode(evaluation.thumbnails[images[row]]).decode("ascii")
        shown.append(
            {
                "id": chosen.ids[row],
                "image": f"data:image/jpeg;base64,{data}",
                "truth": truths[row][0],
                "prediction": answers[row],
                "is_right": bool(chosen.correct[row]),
                "confidence": float(sure[row]) if top is not None else None,
                "top": probabilities,
            }
        )
    return shown


def note(evaluation: Evaluation) -> str:
    table = evaluation.predictions
    wrong = int((~table.correct & table.readable).sum())
    stored = set(evaluation.thumbnails)
    shown = sum(image in stored for image in table.take(~table.correct & table.readable).texts("image_id"))
    right = len(stored) - shown
    if not stored:
        return f"{wrong} mistakes; this evaluation stored no images."
    if shown == wrong:
        return f"All {wrong} mistakes, the surest first, and {right} right answers for comparison."
    return f"{shown} of {wrong} mistakes (the surest), and {right} right answers for comparison."


def unreadable(evaluation: Evaluation) -> list[dict[str, str]]:
    table = evaluation.predictions
    rows = np.flatnonzero(~table.readable)[:NUM_UNREADABLE_SHOWN]
    errors = table.texts("error")
    return [{"id": table.ids[row], "error": errors[row] or "unreadable"} for row in rows]
