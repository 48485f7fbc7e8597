"""`vlmtune checkpoints`: every checkpoint of a run on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_figures, print_json
from vlmtune.cli.options import JsonOption


def checkpoints(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images, stratified by label.")] = None,
    json_: JsonOption = False,
) -> None:
    """Evaluate every checkpoint of a run: accuracy and loss against step, the best, and where to have stopped. An
    averaged checkpoint (train.average_last) stands beside them.

    Writes RUN/checkpoint_curve/SPLIT.html, .md, .json and a chart, and a section into RUN/report.html. One that was
    evaluated before is not evaluated again. Which checkpoints a run keeps is train.keep_checkpoints.
    """
    from vlmtune.report.checkpoints import advice, curve_table
    from vlmtune.workflows.evaluate import measure_checkpoints

    figures, page = measure_checkpoints(run, split, limit, ConsoleObserver())
    if json_:
        print_json({**figures, "advice": advice(figures), "page": page})
        return
    table = curve_table(figures)
    print_figures(table.head(), table.texts())
    print("\n".join(advice(figures)))
    print(f"page: {page}")
