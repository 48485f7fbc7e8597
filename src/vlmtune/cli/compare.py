"""`vlmtune compare`: evaluations of the same pictures, with intervals and paired tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmtune.cli.console import print_json, print_table, stderr_console
from vlmtune.cli.options import JsonOption

NUM_CLASSES_SHOWN = 5


def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(metavar="EVAL...", help="Evaluation folders, or runs (their newest test), baseline first."),
    ],
    output: Annotated[Path | None, typer.Option(help="Also write a report with charts into this folder.")] = None,
    title: Annotated[str, typer.Option(help="The report's title.")] = "Comparison",
    json_: JsonOption = False,
) -> None:
    """Compare any number of evaluations of the same pictures.

    Differences carry a 95 % interval and a mid-p McNemar test, Holm-adjusted over all pairs; classes gained and lost
    and the pictures that flipped are listed by --json. Evaluations of different pictures are refused.
    """
    from vlmtune.evaluate.compare import compare as compare_evaluations
    from vlmtune.evaluate.files import read_evaluation, with_distinct_names
    from vlmtune.report.render import render_comparison
    from vlmtune.report.sources import evaluation_folder

    folders = [evaluation_folder(path) for path in evaluations]
    result = compare_evaluations(with_distinct_names([read_evaluation(folder) for folder in folders]))
    page = None
    if output is not None:
        runs = [path for path, folder in zip(evaluations, folders, strict=True) if path != folder]
        page = render_comparison(folders, output, title, runs=runs)
    if json_:
        print_json({**result, "report": page})
        return
    _print_runs(result)
    _print_pairs(result)
    if page is not None:
        print(f"report: {page}")
    limited = [f"{run['name']} ({run['limit']})" for run in result["runs"] if run["limit"]]
    if limited:
        stderr_console().print(f"Limited by request, not the whole split: {', '.join(limited)}.", markup=False)


def _print_runs(result: dict[str, Any]) -> None:
    from vlmtune.report import wording as w

    rows = [
        [
            run["name"],
            w.count(run["num_examples"]) + (" (limit)" if run["limit"] else ""),
            w.percent(run["accuracy"]),
            w.interval(run["accuracy_interval"]),
            w.number(run["macro_f1"]),
            w.number(run["nll"]),
            w.percent(run["ece"]),
            w.duration(run["seconds"]),
        ]
        for run in result["runs"]
    ]
    print_table(["run", "pictures", "accuracy", "95% interval", "macro F1", "NLL", "ECE", "time"], rows)


def _print_pairs(result: dict[str, Any]) -> None:
    from vlmtune.report import wording as w

    rows = [
        [
            f"{pair['first']} → {pair['second']}",
            w.points(pair["difference"]),
            w.points_interval(pair["difference_interval"]),
            f"+{pair['only_second']} −{pair['only_first']}",
            w.p_value(pair["p_holm"]),
            "yes" if pair["is_significant"] else "no",
        ]
        for pair in result["pairs"]
    ]
    print_table(["pair", "points", "95% interval", "flipped", "McNemar, Holm", "significant"], rows)
    for pair in result["pairs"]:
        for word in ("gained", "lost"):
            classes = pair[f"classes_{word}"]
            if classes:
                print(f"{pair['first']} → {pair['second']} {word} most: {_changes(classes)}")
    print("Points by class; * marks a class that changed significantly by itself.")


def _changes(classes: list[dict[str, Any]]) -> str:
    """The largest changes by class, in points; a star where the change is significant by itself."""
    from vlmtune.report import wording as w

    told = [f"{c['label']} {w.points(c['difference'])}{'*' * c['is_significant']}" for c in classes[:NUM_CLASSES_SHOWN]]
    return ", ".join(told) + (" …" if len(classes) > NUM_CLASSES_SHOWN else "")
