"""Measuring what a run learned: one checkpoint, the baselines, every checkpoint.

In: an experiment whose left-out keys are decided, and its data. Out: figures; evaluation folders are written into the
run's folder. Called by `vlmtune evaluate`, `baselines` and `checkpoints`, by training and by whatever compares runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtune.adapters.layer import merged
from vlmtune.adapters.peft_files import WEIGHTS_FILE, load_adapter
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits, fingerprint
from vlmtune.errors import DataError, RunFolderError, UserError
from vlmtune.evaluate.baselines import Baselines
from vlmtune.evaluate.curves import measure_checkpoint_curve
from vlmtune.evaluate.files import FACTS_FILE, facts_if_of, read_evaluation
from vlmtune.evaluate.run import EvaluationResult, evaluate_checkpoint, measured_examples
from vlmtune.files import write_json
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example
from vlmtune.report.checkpoints import write_checkpoint_curve
from vlmtune.report.render import render
from vlmtune.report.sources import read_run
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.open import open_adapted
from vlmtune.runs.prepare import image_overrides, load_data, open_base, open_checkpoint
from vlmtune.runs.record import read_record
from vlmtune.workflows.progress import SILENT, Observer


def evaluate(
    experiment: Experiment,
    splits: Splits,
    *,
    checkpoint: Path | None,
    folder: Path,
    name: str | None = None,
    opened: OpenedModel | None = None,
    observer: Observer = SILENT,
) -> EvaluationResult:
    """`evaluate_checkpoint`, reporting to an observer."""
    return evaluate_checkpoint(
        experiment,
        splits,
        checkpoint=checkpoint,
        folder=folder,
        name=name,
        opened=opened,
        watch=lambda description, total: observer.progress(description, total, "images"),
        say=observer.message,
    )


def choose_checkpoint(option: str | None, from_file: str | None, run: Path, observer: Observer = SILENT) -> Path | None:
    """The checkpoint from the command line or the file, else the best of its run; None for the base.

    Raises UserError for one that does not exist.
    """
    key, chosen = ("--checkpoint", option) if option is not None else ("evaluate.checkpoint:", from_file)
    if chosen == "base":
        return None
    if chosen is not None:
        if not Path(chosen).exists():
            raise UserError(f"{key} {chosen}: not found. Give a checkpoint or run folder, or 'base'.")
        return Path(chosen)
    best = RunLayout(run).best
    if best.exists():
        return best
    observer.message(f"{run}: no trained checkpoint there, so the base model is evaluated.")
    return None


def measure_baselines(
    experiment: Experiment, splits: Splits, run: Path, base: Path | None = None, observer: Observer = SILENT
) -> dict[str, Any]:
    """Measure the baselines of an experiment; write them into its folder.

    Args:
        base: the base model's evaluation, if it is in another folder.
    """
    layout = RunLayout(run)
    opened = open_base(experiment.model)
    examples = measured_examples(experiment.evaluate, splits)
    folder = base or layout.evaluation(experiment.evaluate.split, "base")
    facts = facts_if_of(folder, fingerprint(examples))
    if facts is None:
        measured = evaluate(experiment, splits, checkpoint=None, folder=run, opened=opened, observer=observer)
        facts, folder = measured.facts, measured.folder
    baselines = Baselines(run, experiment.task, splits, examples, facts["data"])
    baselines.add_majority()
    if layout.best.exists():
        tuned = open_checkpoint(experiment.model, layout.best)
        task = experiment.task.after_first_epoch()
        baselines.add_prompt_only(Predictor(tuned, task, splits.labels), "prompt-only-tuned", "Fine-tuned, gray images")
    baselines.add_prompt_only(Predictor(opened, experiment.task, splits.labels), "prompt-only", "Base, gray images")
    baselines.add_evaluation("base", "Base, zero-shot", facts, folder)
    total = len(splits.train) + len(splits.validation) + len(examples)
    with observer.progress("vision features", total, "images") as progress:
        baselines.add_probes(opened, progress.advance)
    result = baselines.result()
    write_json(layout.baselines, result)
    return result


def measure_checkpoints(
    run: Path, split: str, limit: int | None = None, observer: Observer = SILENT
) -> tuple[dict[str, Any], Path]:
    """Evaluate every checkpoint of a run on a split; the figures and their Markdown file.

    Existing evaluations are not repeated. The chart goes into the run's report too.

    Raises:
        RunFolderError: no run, or one without a checkpoint. DataError: no images in the split.
    """
    layout = RunLayout(run)
    if split == "test":
        observer.message(
            "Warning: a checkpoint chosen on the test split makes its test accuracy too high. Choose on validation.",
            "warning",
        )
    if not layout.is_run:
        raise RunFolderError(
            f"{run} is not a run folder: it has no {layout.config.name}. Give one that `vlmtune train` wrote."
        )
    changes = [
        f"evaluate.split={split}",
        "evaluate.mode=full",
        "evaluate.calibrate=false",
        *([f"evaluate.limit={limit}"] if limit else []),
    ]
    experiment, splits = load_data(load_experiment(run, changes))
    figures = _measure_each(layout, experiment, splits, observer)
    record = read_run(run)
    figures["run"] = record.name
    figures["during_training"] = [
        {key: line.get(key) for key in ("step", "accuracy", "loss")}
        for line in record.validation
        if split == "validation" and line.get("accuracy") is not None
    ]
    page = write_checkpoint_curve(layout.checkpoint_curve, figures)
    render(run)
    return figures, page


def _measure_each(run: RunLayout, experiment: Experiment, splits: Splits, observer: Observer) -> dict[str, Any]:
    """Evaluate the remaining checkpoints with one opened model, swapping its adapter; returns the figures of all."""
    checkpoints = run.list_checkpoints()
    if not checkpoints:
        raise RunFolderError(f"{run.path}: this run has no checkpoint yet. Train it first (vlmtune train).")
    section, model = experiment.evaluate, experiment.model
    examples = measured_examples(experiment.evaluate, splits)
    if not examples:
        raise DataError(f"The {section.split} split has no images. Name another: --split test.")
    averages = run.list_averages()
    every = [*checkpoints, *averages]
    curve = RunLayout(run.checkpoint_curve)
    folders = {path: curve.evaluation(section.split, path.name) for path in every}
    pending = [path for path in every if not _is_done(folders[path], path, examples)]
    if len(pending) < len(every):
        observer.message(f"{len(every) - len(pending)} of {len(every)} checkpoints are evaluated already.")
    opened = None
    for path in pending:
        if opened is None:
            opened = open_adapted(
                str(path), dtype=model.dtype, device=model.device, image_overrides=image_overrides(model),
                keep_adapter=True,
            )  # fmt: skip
        load_adapter(path, opened.model, opened.plan)
        with merged(opened.model):
            evaluate(
                experiment, splits, checkpoint=path, folder=curve.path, name=path.name, opened=opened,
                observer=observer,
            )  # fmt: skip
    steps = [(int(path.name.rpartition("-")[2]), read_evaluation(folders[path])) for path in checkpoints]
    averaged = [read_evaluation(folders[path]) for path in averages]
    return measure_checkpoint_curve(steps, read_record(run.path).num_steps, averaged)


def _is_done(folder: Path, checkpoint: Path, examples: list[Example]) -> bool:
    """Whether this checkpoint, in its current state, was measured on these images."""
    if facts_if_of(folder, fingerprint(examples)) is None:
        return False
    return (folder / FACTS_FILE).stat().st_mtime_ns >= (checkpoint / WEIGHTS_FILE).stat().st_mtime_ns
