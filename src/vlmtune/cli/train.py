"""`vlmtune train`: an experiment file into a run folder."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_json
from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment


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
    from vlmtune.workflows.train import train as run

    experiment = open_experiment(config, set_, faithful=faithful)
    result = run(experiment, resume=resume, observer=ConsoleObserver())
    if json_:
        print_json(result)
        return
    stopped = f", stopped after {result.steps} steps for lack of improvement" if result.is_stopped else ""
    print(f"{result.run}: best validation accuracy {_percent(result.best_accuracy)}{stopped}")
    if result.average_accuracy is not None:
        print(f"average of the last checkpoints {_percent(result.average_accuracy)}")
    if result.test_accuracy is not None:
        print(f"test accuracy {_percent(result.test_accuracy)}, base {_percent(result.base_accuracy)}")
    print(f"report: {result.report}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
