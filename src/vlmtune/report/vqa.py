"""What a report on questions says: official accuracy with intervals over images, by type, mistakes with questions.

In: evaluations of the same questions. Out: a view as `view.build` gives for labels, and its charts.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmtune.evaluate.compare import compare, describe
from vlmtune.evaluate.files import Evaluation, thumbnail_rows
from vlmtune.evaluate.metrics import confidences
from vlmtune.report import charts, tables, vqa_tables
from vlmtune.report import numbers as w
from vlmtune.report.facts import experiment_facts
from vlmtune.report.sources import RunRecord, is_baseline
from vlmtune.report.table import Table, table
from vlmtune.report.training import training_drawings, training_view

NUM_UNREADABLE_SHOWN = 200
NUM_MISTAKES_LISTED = 15
_FEW_QUESTIONS = 20


def build_vqa(
    title: str, evaluations: Sequence[Evaluation], runs: Sequence[RunRecord], left_out: Sequence[str]
) -> dict[str, Any]:
    """Everything the page shows. Evaluations stand in the order shown; the last is the subject of the page.

    Raises DataError when the evaluations are not of the same questions.
    """
    colors = charts.colors([is_baseline(evaluation) for evaluation in evaluations])
    shown = [{"series": series, **describe(evaluation)} for series, evaluation in zip(colors, evaluations, strict=True)]
    subject, main = evaluations[-1], shown[-1]
    is_known = main["accuracy"] is not None
    comparison = compare(evaluations) if len(evaluations) > 1 and is_known else None
    view = {
        "task": "vqa",
        "title": title,
        "runs": shown,
        "main_run": main,
        "comparison": comparison,
        "headline": w.headline(shown, comparison) if is_known else None,
        "summary": _summary(main, comparison),
        "training": [training_view(run, shown) for run in runs if run.train or run.validation],
        "gallery": _cards(subject),
        "gallery_note": _gallery_note(subject),
        "unreadable": (subject.facts.get("unreadable") or [])[:NUM_UNREADABLE_SHOWN],
        "facts": experiment_facts(runs, evaluations),
        "warnings": list(dict.fromkeys(warning for run in runs for warning in run.warnings)),
        "config": runs[-1].config if runs else "",
        "left_out": list(left_out),
        "hints": [],
    }
    return {**view, "tables": _tables(view)}


def vqa_drawings(view: dict[str, Any]) -> dict[str, Any]:
    """The SVG charts of a view of `build_vqa`."""
    main = view["main_run"]
    types = [
        {**entry, "series": main["series"], "name": vqa_tables.type_name(entry)} for entry in main["by_answer_type"]
    ]
    return {
        **training_drawings(view["training"]),
        "accuracy": charts.bars(view["runs"], "VQA accuracy of each run with its 95% interval"),
        "types": charts.bars(types, "VQA accuracy by answer type with its 95% interval") if types else None,
    }


def vqa_markdown(view: dict[str, Any]) -> list[str]:
    """The parts of report.md that only questions have."""
    shown = view["tables"]
    headings = {
        "answer_types": "## By answer type",
        "question_types": "## By question type",
        "mistakes": "## Most frequent mistakes among those stored",
    }
    return [part for key, heading in headings.items() if shown[key] for part in (heading, shown[key].markdown())]


def _tables(view: dict[str, Any]) -> dict[str, Table | None]:
    main, comparison, training = view["main_run"], view["comparison"], view["training"]
    pair = comparison and w.pair_against_first(comparison["pairs"], view["runs"])
    answers, questions = main["by_answer_type"], main["by_question_type"]
    return {
        "runs": vqa_tables.runs(view["runs"]),
        "pairs": vqa_tables.pairs(comparison) if comparison else None,
        "answer_types": vqa_tables.types("answer type", answers, main["limit"], pair) if answers else None,
        "question_types": vqa_tables.types("question type", questions, main["limit"]) if questions else None,
        "mistakes": _mistakes(view["gallery"]),
        "loss": tables.loss(training) if training else None,
        "validation": tables.validation(training) if training else None,
        "unreadable": tables.unreadable(view["unreadable"]) if view["unreadable"] else None,
    }


def _mistakes(gallery: Sequence[dict[str, Any]]) -> Table | None:
    """What is answered instead of what, most frequent first, over the stored mistakes."""
    counts = Counter((c["truth"], c["prediction"], c["question_type"]) for c in gallery if not c["is_right"])
    rows = [[*said, w.count(num)] for said, num in counts.most_common(NUM_MISTAKES_LISTED) if num > 1]
    return table("most said | answered | question type | #times", rows) if rows else None


def _summary(main: dict[str, Any], comparison: dict[str, Any] | None) -> list[str]:
    about = f"{w.counted(main['num_images'], 'image')}"
    if main["accuracy"] is None:
        return [
            f"{main['name']} answered {w.counted(main['num_examples'], 'question')} about {about}. The true answers "
            "are not known here, so nothing is measured; submission.json in the evaluation folder is what the official "
            "server takes."
        ]
    sentences = [
        f"On {w.count(main['num_measured'])} {main['split'] or ''} questions about {about}, {main['name']} has an "
        f"official VQA accuracy of {w.percent(main['accuracy'], 2)} "
        f"(95% interval {w.interval(main['accuracy_interval'])}, over images)."
    ]
    if comparison:
        sentences += [_pair_sentence(pair) for pair in comparison["pairs"] if pair["second"] == main["name"]]
    told = [entry for entry in main["by_question_type"] or main["by_answer_type"] if entry["num"] >= _FEW_QUESTIONS]
    if len(told) > 1:
        weakest = sorted(told, key=lambda entry: float(entry["accuracy"]))[: w.NUM_WEAK]
        names = [f"“{vqa_tables.type_name(e)}” ({w.percent(e['accuracy'])} of {w.count(e['num'])})" for e in weakest]
        sentences.append(f"It is weakest on {w.listed(names)}.")
    if main["num_unreadable"]:
        sentences.append(f"{w.counted(main['num_unreadable'], 'question')} had no readable image and count as wrong.")
    if main["limit"]:
        sentences.append(f"Only {w.count(main['limit'])} questions were asked, by request (limit), not the split.")
    return sentences


def _pair_sentence(pair: dict[str, Any]) -> str:
    span = f"95% interval {w.points_interval(pair['difference_interval'])}; {w.p_value(pair['p_holm'])}"
    flipped = f"{w.counted(pair['num_better'], 'answer')} better, {w.count(pair['num_worse'])} worse"
    change = w.points(pair["difference"])
    if not pair["is_significant"]:
        return (
            f"Against {pair['first']}, {pair['second']} differs by {change} points ({span}): not significant, so these "
            f"questions do not tell which is better ({flipped})."
        )
    word = "better" if pair["difference"] > 0 else "worse"
    return f"Against {pair['first']}, {pair['second']} is significantly {word}: {change} points ({span}); {flipped}."


def _cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A card a question whose image is stored: wrong answers first, in the order of the split."""
    table = evaluation.predictions
    names = ["id", "image_id", "question", "question_type", "answer_type", "truth", "prediction"]
    columns = table.rows.select(names).to_pylist()
    closed = table.closed
    sure = confidences(closed) if closed is not None and closed.log_probs is not None else None
    rows = thumbnail_rows(table)
    cards = []
    for row in rows[np.argsort(table.score[rows], kind="stable")]:
        told = columns[row] | {"confidence": None if sure is None else float(sure[row])}
        image = evaluation.thumbnails.get(told["image_id"])
        if image is None:
            continue
        given = Counter(told["truth"]).most_common(3)
        cards.append(
            {
                **told,
                "image": f"data:image/jpeg;base64,{base64.b64encode(image).decode('ascii')}",
                "prediction": told["prediction"] or "",
                "question_type": vqa_tables.type_name({"name": told["question_type"]}),
                "answer_type": vqa_tables.type_name({"name": told["answer_type"]}),
                "truth": given[0][0],
                "answers": [{"answer": answer, "num": num} for answer, num in given],
                "num_answers": len(told["truth"]),
                "accuracy": float(table.score[row]),
                "is_right": bool(table.score[row] >= 0.5),
            }
        )
    return cards


def _gallery_note(evaluation: Evaluation) -> str:
    table = evaluation.predictions
    wrong = int((table.score[table.readable] < 0.5).sum())
    rows = thumbnail_rows(table)
    shown = int((table.score[rows] < 0.5).sum())
    which = f"All {w.count(wrong)}" if shown == wrong else f"{w.count(shown)} of {w.count(wrong)}"
    return f"{which} answers with a VQA accuracy below 50%, and {w.counted(len(rows) - shown, 'right one')}."
