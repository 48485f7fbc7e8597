"""`vlmtune checkpoints`: every checkpoint of a run on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import print_figures, print_json, stderr_console
from vlmtune.cli.options import JsonOption
from vlmtune.config.load import load_experiment
from vlmtune.errors import DataError, RunFolderError, UserError

if TYPE_CHECKING:
    from vlmtune.config.schema import Experiment
    from vlmtune.data.splits import Splits
    from vlmtune.records import Example


def checkpoints(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images, stratified by label.")] = None,
    json_: JsonOption = False,
) -> None:
    """Evaluate every checkpoint of a run: accuracy and loss against step, the best, and where to have stopped. An
    averaged checkpoint (train.average_last) stands beside them.

    Writes RUN/checkpoint_curve/SPLIT.json, .md, .svg and .png, and the chart into RUN/report.html. One that was
    evaluated before is not evaluated again. Which checkpoints a run keeps is train.keep_checkpoints.
    """
    from vlmtune.report import tables
    from vlmtune.report.checkpoint_curve import FOLDER, advice, write_checkpoint_curve
    from vlmtune.report.render import render
    from vlmtune.report.sources import read_run
    from vlmtune.runs.prepare import load_data

    console = stderr_console()
    if split == "test":
        console.print(
            "Warning: a checkpoint chosen on the test split makes its test accuracy too high. Choose on validation.",
            style="yellow",
        )
    if not (run / "config.yaml").exists():
        raise RunFolderError(f"{run} is not a run folder: it has no config.yaml. Give one that `vlmtune train` wrote.")
    changes = [f"evaluate.split={split}", "evaluate.mode=full", *([f"evaluate.limit={limit}"] if limit else [])]
    experiment, splits = load_data(load_experiment(run, changes))
    if experiment.task.asks_from_data or not experiment.task.is_closed:
        raise UserError(
            f"{run} answers questions; checkpoint_curve compares label accuracy, so it is for classification."
        )
    figures = _measure(run, experiment, splits)
    record = read_run(run)
    figures["run"] = record.name
    figures["during_training"] = [
        {key: line.get(key) for key in ("step", "accuracy", "loss")}
        for line in record.validation
        if split == "validation" and line.get("accuracy") is not None
    ]
    path = write_checkpoint_curve(run / FOLDER, figures)
    render(run)
    if json_:
        print_json({**figures, "advice": advice(figures), "chart": path.with_suffix(".png")})
        return
    shown = tables.checkpoints(figures)
    print_figures(shown.head(), shown.texts())
    print("\n".join(advice(figures)))
    print(f"chart: {path.with_suffix('.png')}")


def _measure(run: Path, experiment: Experiment, splits: Splits) -> dict[str, Any]:
    """Evaluate what is not evaluated yet, with one opened model whose adapter is exchanged; figures of all."""
    from vlmtune.adapters.merging import merged
    from vlmtune.adapters.peft_files import load_adapter
    from vlmtune.cli.evaluate import run_evaluation
    from vlmtune.evaluate.checkpoint import measured_examples
    from vlmtune.evaluate.checkpoint_curve import measure_checkpoint_curve
    from vlmtune.evaluate.files import read_evaluation
    from vlmtune.report.checkpoint_curve import FOLDER
    from vlmtune.report.files import read_json
    from vlmtune.runs.layout import RunLayout
    from vlmtune.runs.open import open_adapted
    from vlmtune.runs.prepare import image_overrides

    checkpoints = RunLayout(run).list_checkpoints()
    if not checkpoints:
        raise RunFolderError(f"{run}: this run has no checkpoint yet. Train it first (vlmtune train).")
    section, model = experiment.evaluate, experiment.model
    examples = measured_examples(experiment.evaluate, splits)
    if not examples:
        raise DataError(f"The {section.split} split has no images. Name another: --split test.")
    averages = RunLayout(run).list_averages()
    every = [*checkpoints, *averages]
    folders = {path: run / FOLDER / "evaluation" / f"{section.split}-{path.name}" for path in every}
    pending = [path for path in every if not _is_done(folders[path], path, examples)]
    done = len(every) - len(pending)
    if done:
        stderr_console().print(f"{done} of {len(every)} checkpoints are evaluated already.")
    opened = None
    for path in pending:
        if opened is None:
            opened = open_adapted(
                str(path), dtype=model.dtype, device=model.device, image_overrides=image_overrides(model),
                keep_adapter=True,
            )  # fmt: skip
        load_adapter(path, opened.model)
        with merged(opened.model):
            run_evaluation(experiment, splits, checkpoint=path, folder=run / FOLDER, name=path.name, opened=opened)
    steps = [(int(path.name.rpartition("-")[2]), read_evaluation(folders[path])) for path in checkpoints]
    averaged = [read_evaluation(folders[path]) for path in averages]
    return measure_checkpoint_curve(steps, int(read_json(run / "run.json").get("num_steps") or 0), averaged)


def _is_done(folder: Path, checkpoint: Path, examples: list[Example]) -> bool:
    """Whether this checkpoint, as it is now, was measured on these images."""
    from vlmtune.adapters.peft_files import WEIGHTS_FILE
    from vlmtune.data.splits import fingerprint
    from vlmtune.evaluate.files import FACTS_FILE, facts_if_of

    if facts_if_of(folder, fingerprint(examples)) is None:
        return False
    return (folder / FACTS_FILE).stat().st_mtime_ns >= (checkpoint / WEIGHTS_FILE).stat().st_mtime_ns
