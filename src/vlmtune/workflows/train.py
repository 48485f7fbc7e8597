"""Training from an experiment to a finished run folder, report included.

In: an experiment as loaded. Out: the run's result; everything else is in its folder. Called by `vlmtune train`, the
demo, searches, learning curves, staged pretraining and `vlmtune.train`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.files import write_json
from vlmtune.report.render import render
from vlmtune.runs.environment import now
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import load_data, open_base
from vlmtune.runs.record import RunResult, read_record_if_exists
from vlmtune.train.loop import StepEvent, Trainer, run_record
from vlmtune.train.preflight import Preflight, preflight
from vlmtune.train.tracking import Tracking, check_installed
from vlmtune.workflows.evaluate import evaluate
from vlmtune.workflows.progress import SILENT, Observer

OnStep = Callable[[Trainer, StepEvent], None]
"""Called after every optimizer step; it may set the trainer's `progress.is_stopped`."""


def train(
    experiment: Experiment,
    *,
    resume: bool = False,
    with_base: bool = True,
    with_test: bool = True,
    on_step: OnStep | None = None,
    observer: Observer = SILENT,
) -> RunResult:
    """Preflight, training, evaluation of the best checkpoint and of the base, report.

    Args:
        experiment: as loaded; keys that were left out are decided here.
        resume: continue the run in its folder.
        with_base: also evaluate the base model, for the comparison in the report.
        with_test: evaluate on the test split; a trial of a search does not look at it.

    Raises:
        UserError: data, model or run folder cannot be used, a finding of the preflight forbids the run, or the loss is
            not finite.
    """
    check_installed(experiment.tracking)
    resolved, splits = load_data(experiment)
    folder = RunFolder.claim(resolved, resume=resume, data=splits.description)
    if (finished := folder.result()) is not None:
        observer.message(f"{folder.path}: this run is finished; nothing is left to train.")
        return finished
    opened = open_base(resolved.model)
    trainer = Trainer(resolved, opened, splits)
    findings = run_preflight(trainer, observer)
    findings.raise_errors()
    folder.begin(resolved)
    write_json(folder.preflight, findings.to_dict())
    started = read_record_if_exists(folder.path).started or now()
    run_record(trainer, started).write(folder)
    with Tracking(folder, resolved, lambda text: observer.message(text, "warning")) as tracking:
        _learn(trainer, folder, observer, resume=resume, on_step=on_step)
        record = run_record(trainer, started)
        record.write(folder)
        result = _result(trainer, folder)
        del trainer, opened
        if with_test and any(example.answers for example in splits.test):
            result.test_accuracy = evaluate(
                resolved, splits, checkpoint=folder.best, folder=folder.path, observer=observer
            ).accuracy
            if with_base:
                result.base_accuracy = evaluate(
                    resolved, splits, checkpoint=None, folder=folder.path, observer=observer
                ).accuracy
        result.report = str(render(folder.path))
        record.result = result
        record.write(folder)
        tracking.finish(asdict(result))
    return result


def train_stages(
    stages: Mapping[str, Experiment], *, resume: bool = False, observer: Observer = SILENT
) -> dict[str, RunResult]:
    """Train the stages one after the other; finished ones are left as they are when resuming.

    Returns stage -> result. Raises RunFolderError if a run already exists, before anything is trained.
    """
    folders = {stage: Path(experiment.output_dir) / str(experiment.name) for stage, experiment in stages.items()}
    for stage, folder in folders.items():
        if not resume and folder.exists() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder}: the run of stage '{stage}' exists. Continue both with --resume, or choose another name "
                "(--set name=NAME)."
            )
    results = {}
    for number, (stage, experiment) in enumerate(stages.items(), start=1):
        observer.message(f"stage {number} of {len(stages)}: {stage}")
        # The first must exist when resuming; a later one may not have been reached.
        is_resumed = resume and (number == 1 or RunLayout(folders[stage]).is_run)
        # The last stage is compared with the base.
        results[stage] = train(experiment, resume=is_resumed, with_base=number == len(stages), observer=observer)
    return results


def check(experiment: Experiment, observer: Observer = SILENT) -> Preflight:
    """The preflight of an experiment, without training. Raises UserError where data or model cannot be used."""
    resolved, splits = load_data(experiment)
    return run_preflight(Trainer(resolved, open_base(resolved.model), splits), observer)


def run_preflight(trainer: Trainer, observer: Observer) -> Preflight:
    """Every check before the first step, each reported."""
    findings = preflight(trainer)
    for finding in findings.findings:
        observer.finding(finding.level, finding.name, finding.message)
    return findings


def can_resume(run: Path) -> bool:
    """Whether a run was begun and has a checkpoint to resume from; one without is removed and starts over."""
    layout = RunLayout(run)
    if layout.is_run and not layout.list_checkpoints():
        shutil.rmtree(run)
    return layout.is_run


def _learn(trainer: Trainer, folder: RunFolder, observer: Observer, *, resume: bool, on_step: OnStep | None) -> None:
    """Run all remaining steps."""
    with observer.progress(f"train {trainer.experiment.name}", trainer.num_steps, "steps") as progress:

        def advance(event: StepEvent) -> None:
            accuracy = "" if event.accuracy is None else f", validation {100 * event.accuracy:.1f} %"
            progress.update(event.step, f"{event.samples_per_s:.0f} images/s, loss {event.loss:.3f}{accuracy}")
            if on_step is not None:
                on_step(trainer, event)

        trainer.run(folder, resume=resume, on_step=advance)


def _result(trainer: Trainer, folder: RunFolder) -> RunResult:
    """The result of training; the test split is not measured yet."""
    progress = trainer.progress
    return RunResult(
        run=str(folder.path),
        steps=progress.step,
        seconds=round(progress.seconds, 1),
        is_stopped=progress.is_stopped,
        best_accuracy=max(progress.best_accuracy, progress.average_accuracy or 0.0) if progress.history else None,
        best_step=progress.best_step,
        average_accuracy=progress.average_accuracy,
        unreadable=len(trainer.reader.unreadable),
    )
