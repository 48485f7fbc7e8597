"""All figures of one VQA evaluation: answers in, one JSON-ready dictionary out. No torch.

Questions about one image are not independent: intervals come from a bootstrap over images, not over questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.evaluate.statistics import clustered_bootstrap, percentile_interval, wilson_interval
from vlmtune.evaluate.vqa_predictions import VqaTable

NUM_RESAMPLES = 1_000


def measure_vqa(table: VqaTable, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The official accuracy of a split, whole and by type, as plain numbers.

    - ``num_examples`` (questions), ``num_images``, ``num_measured`` (questions whose answers are known),
      ``num_unreadable``;
    - ``accuracy`` (0 to 1) with ``accuracy_interval`` (95 %, over images; null with one image); both null where no
      answer is known;
    - ``by_answer_type`` and ``by_question_type``: lists of ``name``, ``num``, ``accuracy``, ``accuracy_interval``, the
      most frequent first; questions without a type stand under "";
    - ``official``: ``overall``, ``perAnswerType``, ``perQuestionType`` in per cent with two digits, as the public
      evaluator prints them;
    - ``num_resamples``, ``seconds_per_example``.
    """
    accuracy = table.accuracy
    known = ~np.isnan(accuracy)
    result: dict[str, Any] = {
        "num_examples": len(table),
        "num_images": int(table.clusters.max()) + 1 if len(table) else 0,
        "num_measured": int(known.sum()),
        "num_unreadable": int((~table.readable).sum()),
        "accuracy": None,
        "accuracy_interval": None,
        "by_answer_type": [],
        "by_question_type": [],
        "official": None,
        "num_resamples": num_resamples,
        "seconds_per_example": float(table.seconds.mean()) if len(table) else None,
    }
    if not known.any():
        return result
    groups: dict[tuple[str, str], NDArray[np.bool_]] = {("accuracy", ""): known}
    for kind in ("answer_type", "question_type"):
        types = np.asarray([value or "" for value in table.texts(kind)], dtype=object)
        names, counts = np.unique(types[known].astype(str), return_counts=True)
        for name in names[np.argsort(-counts, kind="stable")]:
            groups[f"by_{kind}", str(name)] = known & (types == name)
    columns = np.column_stack([np.where(rows, accuracy, np.nan) for rows in groups.values()])
    samples = clustered_bootstrap(columns, table.clusters, num_resamples, seed)
    for (key, name), rows, drawn in zip(groups, groups.values(), samples.T, strict=True):
        figures = {
            "accuracy": float(accuracy[rows].mean()),
            "accuracy_interval": _interval(drawn, len(np.unique(table.clusters[rows]))),
        }
        if key == "accuracy":
            result |= figures
        else:
            result[key].append({"name": name, "num": int(rows.sum()), **figures})
    result["official"] = {
        "overall": round(100 * result["accuracy"], 2),
        "perAnswerType": {entry["name"]: round(100 * entry["accuracy"], 2) for entry in result["by_answer_type"]},
        "perQuestionType": {entry["name"]: round(100 * entry["accuracy"], 2) for entry in result["by_question_type"]},
    }
    return result


def _interval(samples: NDArray[np.float64], num_images: int) -> list[float] | None:
    """A bootstrap over one image would be a point."""
    if num_images < 2:
        return None
    low, high = percentile_interval(samples[~np.isnan(samples)])
    if high - low < 1e-12:
        # All answers alike: resampling them says nothing of the next one. Each image then counts as one trial.
        low, high = (float(end) for end in wilson_interval(low * num_images, num_images))
    return [low, high]
