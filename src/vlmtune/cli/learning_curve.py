"""`vlmtune learning-curve`: the same experiment on growing shares of the training images, with several seeds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import print_figures, print_json, stderr_console
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption, open_experiment
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from vlmtune.config.schema import Experiment
    from vlmtune.evaluate.learning_curve import LearningCurveRun


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
    again keeps finished runs and goes on with one that was stopped.
    """
    from vlmtune.report.learning_curve import findings, point_table, step_table

    experiment = open_experiment(config, [*(set_ or ()), "evaluate.split=test"])
    shares = _shares(fractions, more_fractions or [])
    result, page = run_learning_curve(experiment, shares, [experiment.seed + offset for offset in range(seeds)])
    if json_:
        print_json({**result, "findings": findings(result), "page": page})
        return
    for shown in (point_table(result), step_table(result)):
        print_figures(shown.head(), shown.texts())
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


def run_learning_curve(
    experiment: Experiment, fractions: Sequence[float], seeds: Sequence[int]
) -> tuple[dict[str, Any], Path]:
    """Run what is not finished, smallest share first; the figures and the page, written anew after every run."""
    from vlmtune.cli.evaluate import run_evaluation
    from vlmtune.cli.train import run_training
    from vlmtune.data.splits import fingerprint
    from vlmtune.evaluate.checkpoint import measured_examples
    from vlmtune.evaluate.files import facts_if_of, read_evaluation
    from vlmtune.evaluate.learning_curve import measure_learning_curve
    from vlmtune.report.learning_curve import write_learning_curve
    from vlmtune.runs.prepare import load_data

    console = stderr_console()
    folder = Path(experiment.output_dir) / f"{experiment.name}-learning-curve"
    resolved, splits = load_data(experiment)
    if experiment.task.asks_from_data or not experiment.task.is_closed:
        raise UserError("A learning curve compares label accuracy, so it is for classification (task.type: choice).")
    if not splits.test:
        raise UserError("A learning curve needs test images. Check data.test_split and data.test_fraction.")
    measured = fingerprint(measured_examples(resolved.evaluate, splits))
    # One of other images is of an earlier learning_curve with other data or another limit.
    if facts_if_of(folder / "evaluation" / "test-base", measured) is None:
        run_evaluation(resolved, splits, checkpoint=None, folder=folder)
    base = read_evaluation(folder / "evaluation" / "test-base")
    planned = [(fraction, seed) for fraction in fractions for seed in seeds]
    runs = []
    result: dict[str, Any] = {}
    page = folder
    for number, (fraction, seed) in enumerate(planned, start=1):
        own = experiment.model_copy(deep=True)
        own.name, own.seed, own.output_dir = f"fraction-{fraction:g}-seed-{seed}", seed, str(folder)
        own.data.fraction = fraction
        console.print(f"run {number} of {len(planned)}: {own.name}", style="bold", markup=False)
        trained = run_training(own, resume=can_resume(folder / own.name), with_base=False)
        runs.append(_learning_curve_run(folder / own.name, fraction, seed, trained))
        about = {"name": experiment.name, "source": experiment.data.source, "model": experiment.model.base}
        result = {**measure_learning_curve(runs, base), **about, "num_planned": len(planned)}
        page = write_learning_curve(folder, result)
    return result, page


def can_resume(run: Path) -> bool:
    """Whether a run was begun and has a checkpoint to resume from; one without is removed and begins again."""
    from vlmtune.runs.layout import RunLayout

    if (run / "config.yaml").exists() and not RunLayout(run).list_checkpoints():
        shutil.rmtree(run)
    return (run / "config.yaml").exists()


def _learning_curve_run(run: Path, fraction: float, seed: int, trained: dict[str, Any]) -> LearningCurveRun:
    from vlmtune.evaluate.files import read_evaluation
    from vlmtune.evaluate.learning_curve import LearningCurveRun
    from vlmtune.report.files import read_json

    return LearningCurveRun(
        fraction,
        seed,
        num_train=read_json(run / "run.json")["data"]["splits"]["train"]["used"],
        folder=run.name,
        evaluation=read_evaluation(run / "evaluation" / "test-fine-tuned"),
        steps=trained["steps"],
        seconds=trained["seconds"],
    )
