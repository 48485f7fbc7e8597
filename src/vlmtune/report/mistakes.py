"""The images a report shows: mistakes with the wrong answers, and some right answers beside them.

In: `Results`. Out: a section with a gallery.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from vlmtune.evaluate.files import Evaluation, thumbnail_rows
from vlmtune.evaluate.metrics import confidences
from vlmtune.evaluate.table import PredictionTable, top_positions
from vlmtune.report import numbers as w
from vlmtune.report.section import Bar, ColumnOf, Exhibit, Gallery, Section, table
from vlmtune.report.sources import Results

NUM_BARS = 3
NUM_FREQUENT = 15
_FILTERS = {
    "truth": "Every true class",
    "guess": "Every prediction",
    "answerType": "Every answer type",
    "questionType": "Every question type",
}


def section(results: Results) -> Section | None:
    """A gallery of the stored images; for open answers also the frequent mistakes."""
    subject = results.subject
    if subject is None or not subject.evaluation.thumbnails:
        return None
    evaluation = subject.evaluation
    exhibits = _exhibits(evaluation)
    labels = evaluation.labels
    choices: dict[str, Sequence[str]] = {"truth": labels or (), "guess": labels or ()}
    choices |= {name: list(dict.fromkeys(e.values[name] for e in exhibits)) for name in ("answerType", "questionType")}
    filters = [(name, label, choices[name]) for name, label in _FILTERS.items()]
    gallery = Gallery(exhibits, filters, "Question or answer" if results.unit == "question" else "File or class")
    figures = [{"id": exhibit.id, "is_right": exhibit.is_right, **exhibit.values} for exhibit in exhibits]
    parts = [] if labels else _frequent_mistakes(exhibits)
    return Section("images", "Mistakes", [_note(results, evaluation)], parts=parts, gallery=gallery, figures=figures)


def _exhibits(evaluation: Evaluation) -> list[Exhibit]:
    """Mistakes first, the most confident ones on top."""
    chosen = evaluation.predictions.take(thumbnail_rows(evaluation.predictions))
    chosen = chosen.take(np.asarray([id_ in evaluation.thumbnails for id_ in chosen.texts("image_id")], dtype=bool))
    columns, bars, sureness = chosen.rows.to_pylist(), _probability_bars(chosen), np.zeros(len(chosen))
    if bars and chosen.closed is not None:
        sureness = confidences(chosen.closed)
    order = np.lexsort([-sureness, chosen.score])
    return [_exhibit(columns[i], evaluation.thumbnails, bars[i] if bars else None) for i in order]


def _exhibit(row: Mapping[str, Any], thumbnails: Mapping[str, bytes], bars: Sequence[Bar] | None) -> Exhibit:
    """One row of a prediction table; without probabilities its bars are the annotators' answers."""
    answers, score, prediction = Counter(row["truth"]).most_common(NUM_BARS), row["score"], row["prediction"]
    num = len(row["truth"])
    if row["question"] is not None:
        title, verdict = row["question"], f"“{prediction}”" if prediction else "no answer"
        verdict += f", worth {w.percent(score, 0)}" if 0 < score < 1 else ""
        bars = bars or [Bar(answer, amount / num, f"{amount} of {num}") for answer, amount in answers]
    else:
        title, verdict = answers[0][0], "recognized" if score >= 0.5 else f"taken for {prediction or 'nothing'}"
    values = {
        "truth": answers[0][0],
        "guess": prediction or "",
        "answerType": row["answer_type"] or "no type",
        "questionType": row["question_type"] or "no type",
    }
    image = f"data:image/jpeg;base64,{base64.b64encode(thumbnails[row['image_id']]).decode('ascii')}"
    return Exhibit(row["id"], image, title, verdict, score >= 0.5, bars or (), values)


def _probability_bars(predictions: PredictionTable) -> list[list[Bar]] | None:
    """The most probable labels of each row; None where there are no probabilities."""
    closed = predictions.closed
    if closed is None or closed.log_probs is None or not len(closed):
        return None
    log_probs, labels = np.nan_to_num(closed.log_probs, nan=-1e9), closed.labels
    rows = []
    for row, positions in enumerate(top_positions(log_probs, NUM_BARS)):
        bars = []
        for position in positions:
            share = float(np.exp(log_probs[row, position]))
            value = w.percent(share, 0 if share >= 0.01 else 1)
            bars.append(Bar(labels[position], share, value, is_truth=bool(position == closed.truth[row])))
        rows.append(bars)
    return rows


def _note(results: Results, evaluation: Evaluation) -> str:
    predictions = evaluation.predictions
    num_wrong = int((predictions.known & predictions.readable & ~predictions.correct).sum())
    stored = predictions.take(thumbnail_rows(predictions))
    num_stored, num_right = int((~stored.correct).sum()), int(stored.correct.sum())
    which = f"All {w.count(num_wrong)}" if num_stored == num_wrong else f"{w.count(num_stored)} of {w.count(num_wrong)}"
    is_binary = results.score_name == "accuracy"
    what = "mistakes" if is_binary else f"answers with a {results.score_name} below 50%"
    order = ", the surest first," if evaluation.figures.get("mean_confidence") is not None else ""
    return f"{which} {what}{order} and {w.counted(num_right, 'right answer')} for comparison."


def _frequent_mistakes(exhibits: Sequence[Exhibit]) -> list[Section]:
    """Pairs of true and given answers, most frequent first, over the stored mistakes."""
    mistakes = [exhibit.values for exhibit in exhibits if not exhibit.is_right]
    counts = Counter((values["truth"], values["guess"], values["questionType"]) for values in mistakes)
    rows = [(*answers, num) for answers, num in counts.most_common(NUM_FREQUENT) if num > 1]
    columns: list[ColumnOf] = [
        (name, itemgetter(index)) for index, name in enumerate(("most said", "answered", "question type"))
    ]
    listed = table(rows, [*columns, ("#times", itemgetter(3), w.count)])
    return [Section("frequent", "Most frequent mistakes among those stored", table=listed)] if rows else []
