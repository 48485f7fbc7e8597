"""`vlmtune pretrain CONFIG`: a connector in two stages on any base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import print_json, stderr_console
from vlmtune.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from collections.abc import Sequence


def pretrain(
    config: Annotated[Path, typer.Argument(help="A two-stage file, such as configs/connector_stages.yaml.")],
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    json_: JsonOption = False,
) -> None:
    """Train a connector, first alone on captions (`align`) and then with LoRA on instructions (`instruct`).

    Each stage is a run folder of its own, runs/NAME-align and runs/NAME, checked, measured and reported on as by
    `train`.
    """
    results = run_stages(config, set_ or (), resume=resume)
    if json_:
        print_json(results)
    else:
        for stage, result in results.items():
            print(f"{stage}: {result['run']}")


def run_stages(config: Path, changes: Sequence[str], *, resume: bool = False) -> dict[str, Any]:
    """Train the stages of a file one after the other; finished ones are left as they are when resuming.

    Returns stage -> what `train --json` prints. Raises RunFolderError for a run in the way, before anything is trained.
    """
    from vlmtune.cli.train import run_training
    from vlmtune.config.load import load_stages
    from vlmtune.errors import RunFolderError

    stages = load_stages(config, changes)
    folders = {stage: Path(experiment.output_dir) / str(experiment.name) for stage, experiment in stages.items()}
    for stage, folder in folders.items():
        if not resume and folder.exists() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder}: the run of stage '{stage}' exists. Continue both with --resume, or choose another name "
                "(--set name=NAME)."
            )
    results = {}
    for number, (stage, experiment) in enumerate(stages.items(), start=1):
        stderr_console().print(f"stage {number} of {len(stages)}: {stage}", markup=False)
        # The first has to be there when resuming; a later one may not have been reached.
        is_resumed = resume and (number == 1 or (folders[stage] / "config.yaml").exists())
        # The base is what the last stage is compared with.
        results[stage] = run_training(experiment, resume=is_resumed, with_base=number == len(stages))
    return results
