"""`vlmtune compare`: evaluations of the same images, with intervals and paired tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmtune.cli.console import print_figures, print_json, print_table, stderr_console
from vlmtune.cli.options import JsonOption

NUM_CLASSES_SHOWN = 5


def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(metavar="EVAL...", help="Evaluation folders, or runs (their newest test), baseline first."),
    ],
    output: Annotated[Path | None, typer.Option(help="Also write a report with charts into this folder.")] = None,
    title: Annotated[str, typer.Option(help="The report's title.")] = "Comparison",
    flips: Annotated[bool, typer.Option("--flips", help="List every image on which two of them differ.")] = False,
    json_: JsonOption = False,
) -> None:
    """Compare any number of evaluations of the same images, or of the same questions.

    Differences carry a 95 % interval and a mid-p McNemar test, Holm-adjusted over all pairs; other metrics a paired
    bootstrap. Classes gained and lost are named, cost stands beside accuracy. Answers to questions are compared by
    their official accuracy, with intervals and tests over images. Evaluations of different examples are refused.
    """
    from vlmtune.errors import DataError
    from vlmtune.evaluate.vqa_predictions import is_vqa
    from vlmtune.report.render import render_comparison
    from vlmtune.report.sources import evaluation_folder

    folders = [evaluation_folder(path) for path in evaluations]
    asks = [is_vqa(folder) for folder in folders]
    if any(asks) and not all(asks):
        label, question = folders[asks.index(False)], folders[asks.index(True)]
        raise DataError(f"{label} is an evaluation of labels and {question} one of questions: they cannot be compared.")
    result = _compare_vqa(folders, flips) if any(asks) else _compare_labels(folders, flips)
    page = None
    if output is not None:
        runs = [path for path, folder in zip(evaluations, folders, strict=True) if path != folder]
        page = render_comparison(folders, output, title, runs=runs)
    if json_:
        print_json({**result, "report": page})
        return
    (_print_vqa if any(asks) else _print_labels)(result)
    if page is not None:
        print(f"report: {page}")
    limited = [f"{run['name']} ({run['limit']})" for run in result["runs"] if run["limit"]]
    if limited:
        stderr_console().print(f"Limited by request, not the whole split: {', '.join(limited)}.", markup=False)


def _compare_labels(folders: list[Path], with_flips: bool) -> dict[str, Any]:
    from vlmtune.evaluate.compare import compare, list_flips
    from vlmtune.evaluate.files import read_evaluation, with_distinct_names

    read = with_distinct_names([read_evaluation(folder) for folder in folders])
    return compare(read) | ({"flips": list_flips(read)} if with_flips else {})


def _compare_vqa(folders: list[Path], with_flips: bool) -> dict[str, Any]:
    from vlmtune.evaluate.files import with_distinct_names
    from vlmtune.evaluate.vqa_compare import compare_vqa, list_changes
    from vlmtune.evaluate.vqa_predictions import read_vqa_evaluation

    read = with_distinct_names([read_vqa_evaluation(folder) for folder in folders])
    return compare_vqa(read) | ({"flips": list_changes(read)} if with_flips else {})


def _print_labels(result: dict[str, Any]) -> None:
    from vlmtune.report import tables

    for shown in (tables.runs(result["runs"]), tables.pairs(result)):
        print_figures(shown.head(), shown.texts())
    _print_other_metrics(result["pairs"])
    for pair in result["pairs"]:
        for word in ("gained", "lost"):
            classes = pair[f"classes_{word}"]
            if classes:
                print(f"{pair['first']} → {pair['second']} {word} most: {_changes(classes)}")
    print("Points by class; * marks a class that changed significantly by itself.")
    if "flips" in result:
        columns = ("from → to", "image", "truth", "from", "to", "became")
        keys = ("pair", "id", "truth", "first", "second", "became")
        print_table(columns, [[flip[key] or "unreadable" for key in keys] for flip in result["flips"]])


def _print_vqa(result: dict[str, Any]) -> None:
    from vlmtune.report import numbers as w
    from vlmtune.report import vqa_tables

    for shown in (vqa_tables.runs(result["runs"]), vqa_tables.pairs(result)):
        print_figures(shown.head(), shown.texts())
    if "flips" in result:
        keys = ("pair", "id", "question", "first", "second")
        rows = [[*(flip[key] or "–" for key in keys), w.points(flip["change"])] for flip in result["flips"]]
        print_table(["from → to", "id", "question", "from", "to", "points"], rows)


def _print_other_metrics(pairs: list[dict[str, Any]]) -> None:
    """Differences of every other metric with their bootstrap intervals; * where the interval leaves zero out."""
    from vlmtune.report import numbers as w

    def change(found: dict[str, Any]) -> str:
        low, high = found["interval"]
        star = "*" if low > 0 or high < 0 else ""
        return f"{w.signed(found['difference'])}{star} ({w.signed(low)} to {w.signed(high)})"

    metrics = list(pairs[0]["bootstrap"])
    rows = [[f"{p['first']} → {p['second']}", *(change(p["bootstrap"][metric]) for metric in metrics)] for p in pairs]
    names = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "nll": "NLL", "brier": "Brier"}
    heads = [names.get(metric, metric.replace("_", " ")) for metric in metrics]
    print_figures(["from → to (95% by bootstrap; * without 0)", *heads], rows)


def _changes(classes: list[dict[str, Any]]) -> str:
    """The largest changes by class, in points; a star where the change is significant by itself."""
    from vlmtune.report import numbers as w

    told = [f"{c['label']} {w.points(c['difference'])}{'*' * c['is_significant']}" for c in classes[:NUM_CLASSES_SHOWN]]
    return ", ".join(told) + (" …" if len(classes) > NUM_CLASSES_SHOWN else "")
