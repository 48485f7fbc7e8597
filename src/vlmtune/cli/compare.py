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
    """Compare any number of evaluations of the same images and questions.

    Differences carry a 95 % interval and a mid-p McNemar test, Holm-adjusted over all pairs; other metrics a paired
    bootstrap. Where there are several questions about an image, or scores between 0 and 1, intervals and tests are over
    images. Classes gained and lost are named, cost is shown beside accuracy. Evaluations of different examples are
    refused.
    """
    from vlmtune.evaluate.compare import compare, list_flips
    from vlmtune.evaluate.files import read_evaluation, with_distinct_names
    from vlmtune.report.render import render_comparison
    from vlmtune.report.sources import evaluation_folder

    folders = [evaluation_folder(path) for path in evaluations]
    read = with_distinct_names([read_evaluation(folder) for folder in folders])
    result = compare(read) | ({"flips": list_flips(read)} if flips else {})
    page = None
    if output is not None:
        runs = [path for path, folder in zip(evaluations, folders, strict=True) if path != folder]
        page = render_comparison(folders, output, title, runs=runs)
    if json_:
        print_json({**result, "report": page})
        return
    _print(result)
    if page is not None:
        print(f"report: {page}")
    limited = [f"{run['name']} ({run['limit']})" for run in result["runs"] if run["limit"]]
    if limited:
        stderr_console().print(f"Limited by request, not the whole split: {', '.join(limited)}.", markup=False)


def _print(result: dict[str, Any]) -> None:
    from vlmtune.report import numbers as w
    from vlmtune.report.accuracy import pairs_table, runs_table

    for each in (runs_table(result["runs"]), pairs_table(result)):
        print_figures(each.head(), each.texts())
    if any(pair["bootstrap"] for pair in result["pairs"]):
        _print_other_metrics(result["pairs"])
    changed = [
        f"{pair['first']} → {pair['second']} {word} most: {_changes(pair[f'classes_{word}'])}"
        for pair in result["pairs"]
        for word in ("gained", "lost")
        if pair[f"classes_{word}"]
    ]
    if changed:
        print("\n".join([*changed, "Points by class; * marks a class that changed significantly by itself."]))
    if "flips" in result:
        rows = []
        for flip in result["flips"]:
            truth = max(set(flip["truth"]), key=flip["truth"].count)
            answers = [flip[key] or "unreadable" for key in ("first", "second")]
            rows.append([flip["pair"], flip["id"], flip["question"] or "", truth, *answers, w.points(flip["change"])])
        columns = ["from → to", "id", "question", "truth", "from", "to", "points"]
        if not any(row[2] for row in rows):
            columns.pop(2)
            rows = [row[:2] + row[3:] for row in rows]
        print_table(columns, rows)


def _print_other_metrics(pairs: list[dict[str, Any]]) -> None:
    """Differences of every other metric with their bootstrap intervals; * where the interval excludes zero."""
    from vlmtune.report import numbers as w

    def change(figures: dict[str, Any] | None) -> str:
        if figures is None:
            return "–"
        low, high = figures["interval"]
        star = "*" if low > 0 or high < 0 else ""
        return f"{w.signed(figures['difference'])}{star} ({w.signed(low)} to {w.signed(high)})"

    metrics = list(dict.fromkeys(metric for pair in pairs for metric in pair["bootstrap"]))
    rows = [
        [f"{p['first']} → {p['second']}", *(change(p["bootstrap"].get(metric)) for metric in metrics)] for p in pairs
    ]
    names = {
        "macro_f1": "macro F1",
        "weighted_f1": "weighted F1",
        "nll": "NLL",
        "brier": "Brier",
        "mean_absolute_error": "MAE",
        "quadratic_weighted_kappa": "weighted kappa",
    }
    heads = [names.get(metric, metric.replace("_", " ")) for metric in metrics]
    print_figures(["from → to (95% by bootstrap; * excludes 0)", *heads], rows)


def _changes(classes: list[dict[str, Any]]) -> str:
    """The largest changes by class, in points; a star where the change is significant by itself."""
    from vlmtune.report import numbers as w

    changes = [
        f"{c['label']} {w.points(c['difference'])}{'*' * c['is_significant']}" for c in classes[:NUM_CLASSES_SHOWN]
    ]
    return ", ".join(changes) + (" …" if len(classes) > NUM_CLASSES_SHOWN else "")
