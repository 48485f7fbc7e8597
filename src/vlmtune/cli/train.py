"""`vlmtune train`: an experiment file into a run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import ProgressBar, print_json, stderr_console
from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment
from vlmtune.config.schema import Experiment

if TYPE_CHECKING:
    from rich.console import Console

    from vlmtune.runs.folder import RunFolder
    from vlmtune.train.loop import Report, Trainer


def train(
    config: ConfigArgument,
    set_: SetOption = None,
    faithful: FaithfulOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
    json_: JsonOption = False,
) -> None:
    """Fine-tune a model on your images.

    Checks everything first (see `preflight`), then trains with validation by label accuracy, evaluates the best
    checkpoint on the test split, and renders the report. The run folder holds all of it.
    """
    experiment = open_experiment(config, set_, faithful=faithful)
    result = run_training(experiment, resume=resume)
    if json_:
        print_json(result)
    else:
        stopped = f", stopped after {result['steps']} steps for want of a gain" if result["is_stopped"] else ""
        print(f"{result['run']}: best validation accuracy {_percent(result['best_accuracy'])}{stopped}")
        if result["average_accuracy"] is not None:
            print(f"average of the last checkpoints {_percent(result['average_accuracy'])}")
        if result["test_accuracy"] is not None:
            print(f"test accuracy {_percent(result['test_accuracy'])}, base {_percent(result['base_accuracy'])}")
        print(f"report: {result['report']}")


def run_training(
    experiment: Experiment,
    *,
    resume: bool = False,
    with_base: bool = True,
    with_test: bool = True,
    on_step: Callable[[Trainer, Report], None] | None = None,
) -> dict[str, Any]:
    """Preflight, training, evaluation of the best checkpoint and of the base, report. Returns what `--json` prints.

    Args:
        experiment: as loaded; left-out keys are decided here.
        resume: continue the run in its folder.
        with_base: also evaluate the base model, for the comparison in the report.
        with_test: evaluate on the test split; a trial of a search does not look at it.
        on_step: called after every optimizer step; it may set the trainer's `progress.is_stopped`.
    """
    from vlmtune.cli.evaluate import run_evaluation
    from vlmtune.cli.preflight import print_findings
    from vlmtune.files import write_json
    from vlmtune.report.render import render
    from vlmtune.runs.environment import now
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.prepare import load_data, open_base
    from vlmtune.runs.record import RunResult, read_record_if_exists
    from vlmtune.train.description import describe_run
    from vlmtune.train.loop import Trainer
    from vlmtune.train.preflight import preflight
    from vlmtune.train.tracking import Tracking, check_installed

    console = stderr_console()
    check_installed(experiment.tracking)
    resolved, splits = load_data(experiment)
    folder = RunFolder.claim(resolved, resume=resume, data=splits.description)
    if (finished := folder.result()) is not None:
        console.print(f"{folder.path}: this run is finished; nothing is left to train.", markup=False)
        return asdict(finished)
    opened = open_base(resolved.model)
    trainer = Trainer(resolved, opened, splits)
    checks = preflight(trainer)
    print_findings(checks, console)
    checks.raise_errors()
    folder.begin(resolved)
    write_json(folder.preflight, checks.to_dict())
    started = read_record_if_exists(folder.path).started or now()
    describe_run(trainer, started).write(folder)
    with Tracking(
        folder, resolved, lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True)
    ) as tracking:
        _learn(trainer, folder, console, resume=resume, on_step=on_step)
        record = describe_run(trainer, started)
        record.write(folder)
        result = _result(trainer, folder)
        del trainer, opened
        if with_test and any(example.answers for example in splits.test):
            tuned = run_evaluation(resolved, splits, checkpoint=folder.best, folder=folder.path)
            result["test_accuracy"] = tuned.accuracy
            if with_base:
                result["base_accuracy"] = run_evaluation(resolved, splits, checkpoint=None, folder=folder.path).accuracy
        result["report"] = str(render(folder.path))
        record.result = RunResult(**result)
        record.write(folder)
        tracking.finish(result)
    return result


def _learn(
    trainer: Trainer,
    folder: RunFolder,
    console: Console,
    *,
    resume: bool,
    on_step: Callable[[Trainer, Report], None] | None,
) -> None:
    """All steps, with a progress bar."""
    with ProgressBar(f"train {trainer.experiment.name}", trainer.num_steps, unit="steps", console=console) as bar:

        def watch(report: Report) -> None:
            accuracy = "" if report.accuracy is None else f", validation {_percent(report.accuracy)}"
            bar.update(report.step, f"{report.samples_per_s:.0f} images/s, loss {report.loss:.3f}{accuracy}")
            if on_step is not None:
                on_step(trainer, report)

        trainer.watch = watch
        trainer.run(folder, resume=resume)


def _result(trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """What training came to; the test is still to be measured."""
    progress = trainer.progress
    return {
        "run": str(folder.path),
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "is_stopped": progress.is_stopped,
        "best_accuracy": max(progress.best_accuracy, progress.average_accuracy or 0.0) if progress.history else None,
        "best_step": progress.best_step,
        "average_accuracy": progress.average_accuracy,
        "test_accuracy": None,
        "base_accuracy": None,
        "unreadable": len(trainer.reader.unreadable),
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
