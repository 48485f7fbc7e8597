"""`vlmtune learning-curve`: the same experiment on growing shares of the training images, with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_figures, print_json
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption, open_experiment
from vlmtune.errors import UserError


def learning_curve(
    config: ConfigArgument,
    more_fractions: Annotated[list[float] | None, typer.Argument(metavar="FRACTION", hidden=True)] = None,
    fractions: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION...",
            help="Shares of the training images, several after one another: --fractions 0.01 0.1 1.0",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs for each share; they begin at the experiment's seed.")] = 3,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure how accuracy grows with the number of training images.

    Trains and tests CONFIG on each share (data.fraction) with each seed. Every run is an ordinary run folder in
    OUTPUT_DIR/NAME-learning-curve; its curve is learning_curve.json, .md and .html there. The same command
    again keeps finished runs and resumes one that was stopped.
    """
    from vlmtune.report.learning_curve import findings, point_table, step_table
    from vlmtune.workflows.learning_curve import measure_curve

    experiment = open_experiment(config, [*(set_ or ()), "evaluate.split=test"])
    shares = _shares(fractions, more_fractions or [])
    result, page = measure_curve(
        experiment, shares, [experiment.seed + offset for offset in range(seeds)], ConsoleObserver()
    )
    if json_:
        print_json({**result, "findings": findings(result), "page": page})
        return
    for table in (point_table(result), step_table(result)):
        print_figures(table.head(), table.texts())
    print("\n".join(findings(result)))
    print(f"page: {page}")


def _shares(first: float | None, more: Sequence[float]) -> list[float]:
    if first is None:
        if more:
            raise UserError(f"found {', '.join(f'{value:g}' for value in more)} without --fractions before it.")
        return [0.01, 0.1, 1.0]
    shares = sorted({first, *more})
    wrong = [f"{value:g}" for value in shares if not 0 < value <= 1]
    if wrong:
        raise UserError(f"--fractions: found {', '.join(wrong)}; expected shares above 0 and at most 1, as 0.1.")
    return shares
