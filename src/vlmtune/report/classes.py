"""Where a model is right and what it confuses: by class, by level, by type of question.

In: `Results`. Out: two sections; that of classes has a map whose cells choose images of the gallery.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmtune.report import numbers as w
from vlmtune.report.accuracy import type_name
from vlmtune.report.charts import Canvas, Chart, Score, draw_bars, small_bar
from vlmtune.report.numbers import percent, shortened
from vlmtune.report.section import ColumnOf, Figures, Section, Table, limited, table
from vlmtune.report.sources import Results

MOST_CLASSES = 120
FEW_CLASSES = 24
NUM_CONFUSIONS = 300
NUM_CONFUSIONS_IN_MARKDOWN = 10


def section(results: Results) -> Section | None:
    """Every class, the confusion matrix, and the most frequent confusions."""
    subject = results.subject
    if subject is None or not subject.figures["confusion"]:
        return None
    limit = " (limit)" if subject.limit else ""
    per_class = subject.figures["per_class"]
    counts = np.asarray(subject.figures["confusion"], dtype=np.int64)
    indices = heatmap_classes(counts)
    labels = [per_class[index]["label"] for index in indices]
    of_all = f": the {len(labels)} most confused of {len(per_class)} classes" if len(labels) < len(per_class) else ""
    heatmap = Chart(
        draw_confusion(counts[np.ix_(indices, indices)], labels),
        caption="Blue: right. Orange: wrong. Shade: share of the row.",
        max_width=200 + 44 * len(labels) if len(labels) <= FEW_CLASSES else 2000,
        min_width=440 if len(labels) <= FEW_CLASSES else 860,
    )
    parts = [
        Section("per-class", f"By class{limit}", table=_class_table(per_class)),
        Section("confusion", f"Confusion matrix{limit}{of_all}", chart=heatmap),
    ]
    confusions = _confusions(subject.figures)
    if confusions:
        confusion_table = _confusion_table(confusions)
        parts.append(Section("confusions", f"Most frequent confusions ({len(confusions)})", table=confusion_table))
    lead = (
        f"Where {subject.name} is right and what it takes for what. Click a heading to sort, a cell of the map to see "
        "its images."
    )
    return Section("classes", "Classes", [lead], parts=parts, figures={"confusions": confusions})


def types_section(results: Results) -> Section | None:
    """The score by type of answer and by type of question."""
    subject = results.subject
    answers = subject.figures["by_answer_type"] if subject else None
    if subject is None or not answers:
        return None
    pair = results.main_pair or {}
    scores = [Score(type_name(e), e["accuracy"], e["accuracy_interval"], subject.color) for e in answers]
    by_answer = Section(
        "answer-types",
        "By answer type",
        chart=Chart(draw_bars(scores, f"{w.capitalized(results.score_name)} by answer type with its 95% interval")),
        table=_type_table("answer type", answers, subject.limit, pair.get("by_answer_type", ())),
    )
    parts = [by_answer]
    questions = subject.figures["by_question_type"]
    if questions:
        question_table = _type_table("question type", questions, subject.limit)
        parts.append(Section("question-types", "By question type", table=question_table))
    lead = f"Where {subject.name} answers well and where it does not. Click a heading to sort."
    return Section("types", "By type", [lead], parts=parts)


def _class_table(per_class: Sequence[Figures]) -> Table:
    columns: list[ColumnOf] = [
        ("class", "label"),
        ("#images", "support", w.count),
        ("#recall", "recall", percent),
        ("~95% interval", "recall_interval", w.interval),
        ("^", lambda entry: small_bar(entry["recall"], entry["recall_interval"])),
        ("#precision", "precision", percent),
        ("~95% interval", "precision_interval", w.interval),
        ("#F1", "f1", w.number),
    ]
    return table(per_class, columns, is_sortable=True)


def _type_table(kind: str, entries: Sequence[Figures], limit: int | None, changes: Sequence[Figures] = ()) -> Table:
    gained = {change["name"]: change for change in changes}
    columns: list[ColumnOf] = [
        (kind, type_name),
        ("#questions", "num", limited(limit)),
        ("#accuracy", "accuracy", lambda share: percent(share, 2)),
        ("~95%, over images", "accuracy_interval", w.interval),
        ("^", lambda entry: small_bar(entry["accuracy"], entry["accuracy_interval"])),
        ("#points gained", lambda entry: gained.get(entry["name"], {}).get("difference"), w.points),
        (
            "~95%, over images",
            lambda entry: gained.get(entry["name"], {}).get("difference_interval"),
            w.points_interval,
        ),
    ]
    return table(entries, columns, is_sortable=True)


def _confusions(figures: Figures) -> list[Figures]:
    """Confused classes, most frequent first."""
    counts = np.asarray(figures["confusion"], dtype=np.int64)
    per_class = figures["per_class"]
    np.fill_diagonal(counts, 0)
    cells = np.argwhere(counts)
    amounts = counts[cells[:, 0], cells[:, 1]]
    return [
        {
            "truth": per_class[truth]["label"],
            "prediction": per_class[guess]["label"],
            "count": int(counts[truth, guess]),
            "share": int(counts[truth, guess]) / per_class[truth]["support"],
        }
        for truth, guess in cells[np.argsort(-amounts, kind="stable")[:NUM_CONFUSIONS]]
    ]


def _confusion_table(confusions: Sequence[Figures]) -> Table:
    columns: list[ColumnOf] = [
        ("truth", "truth"),
        ("taken for", "prediction"),
        ("#images", "count", w.count),
        ("#share of the class", "share", percent),
    ]
    return table(confusions, columns, is_sortable=True, num_in_markdown=NUM_CONFUSIONS_IN_MARKDOWN)


def heatmap_classes(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which classes a heat map shows: all of them, or the most confused ones if there are too many."""
    if len(confusion) <= MOST_CLASSES:
        return np.arange(len(confusion))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return np.sort(np.argsort(-wrong, kind="stable")[:100])


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str]) -> Canvas:
    """Rows are truth, columns predictions; shade is the share of the row. Right and wrong have different hues."""
    num = len(labels)
    has_amounts = num <= FEW_CLASSES
    size = 12.0 if has_amounts else max(7.0, min(12.0, 700 / num))
    cell = max(8.4, min(44.0, 430 / num) if has_amounts else 760 / num)
    margin = min(max(len(label) for label in labels), 18) * size * 0.58 + 12
    side = cell * num
    canvas = Canvas(margin + side + 8, margin + side + 26, "Confusion matrix: truth in rows, predictions in columns")
    canvas.rect(margin, margin, side, side, "ground")
    totals = np.maximum(confusion.sum(axis=1), 1)
    for row, column in np.argwhere(confusion):
        amount = int(confusion[row, column])
        share = amount / totals[row]
        kind = "right" if row == column else "wrong"
        opacity = 0.08 + 0.92 * share if kind == "right" else 0.16 + 0.84 * math.sqrt(share)
        title = f"{labels[row]} called {labels[column]}: {amount} of {totals[row]} ({percent(share)})"
        x, y = margin + column * cell, margin + row * cell
        gap = 1.0 if cell > 14 else 0.4
        data = {"truth": labels[row], "guess": labels[column]}
        canvas.rect(x + gap / 2, y + gap / 2, cell - gap, cell - gap, f"cell {kind}", opacity, cell / 12, title, data)
        if has_amounts:
            css = "amount strong" if opacity > 0.55 else "amount"
            canvas.text(x + cell / 2, y + cell / 2 + 4, str(amount), css, "middle", size=min(12, cell * 0.45))
    is_short = max(len(label) for label in labels) * size * 0.6 < cell
    for index, label in enumerate(labels):
        middle = margin + (index + 0.5) * cell
        canvas.text(margin - 5, middle + size * 0.36, shortened(label, 18), "tick", "end", size=size)
        if is_short:
            canvas.text(middle, margin - 6, label, "tick", "middle", size=size)
        else:
            canvas.text(middle + size * 0.36, margin - 5, shortened(label, 18), "tick", turn=-90, size=size)
    canvas.text(margin + side / 2, margin + side + 20, "predicted →  (truth in rows)", "name", "middle")
    return canvas
