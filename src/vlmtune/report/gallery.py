"""The images a report shows: mistakes with what the model took them for, and what could not be read."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.metrics import confidences
from vlmtune.evaluate.predictions import top_positions

NUM_UNREADABLE_SHOWN = 200


def cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A card a stored thumbnail: mistakes first, the surest of them on top."""
    table = evaluation.predictions
    rows = np.flatnonzero([example in evaluation.thumbnails for example in table.ids])
    if not len(rows):
        return []
    chosen = table.take(rows)
    labels = table.labels
    sure = confidences(chosen) if chosen.log_probs is not None else np.zeros(len(rows))
    top = top_positions(np.nan_to_num(chosen.log_probs, nan=-1e9), 3) if chosen.log_probs is not None else None
    shown = []
    for row in np.lexsort([-sure, chosen.correct]):
        probabilities = []
        if top is not None and chosen.log_probs is not None:
            probabilities = [
                {
                    "label": labels[i],
                    "share": float(np.exp(chosen.log_probs[row, i])),
                    "is_truth": bool(i == chosen.truth[row]),
                }
                for i in top[row]
            ]
        data = base64.b64encode(evaluation.thumbnails[chosen.ids[row]]).decode("ascii")
        guess = chosen.prediction[row]
        shown.append(
            {
                "id": str(chosen.ids[row]),
                "image": f"data:image/jpeg;base64,{data}",
                "truth": labels[chosen.truth[row]],
                "prediction": labels[guess] if guess >= 0 else None,
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
    shown = sum(example in stored for example in table.ids[~table.correct & table.readable])
    right = len(stored) - shown
    if not stored:
        return f"{wrong} mistakes; this evaluation stored no images."
    if shown == wrong:
        return f"All {wrong} mistakes, the surest first, and {right} right answers for comparison."
    return f"{shown} of {wrong} mistakes (the surest), and {right} right answers for comparison."


def unreadable(evaluation: Evaluation) -> list[dict[str, str]]:
    table = evaluation.predictions
    rows = np.flatnonzero(~table.readable)[:NUM_UNREADABLE_SHOWN]
    return [{"id": str(table.ids[row]), "error": str(table.errors[row] or "unreadable")} for row in rows]
