"""`vlmtune pretrain CONFIG`: a connector in two stages on any base, or a tiny model from scratch on drawn images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import ProgressBar, print_json, stderr_console
from vlmtune.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlmtune.train.pretrain import PretrainReport


def pretrain(
    config: Annotated[
        Path, typer.Argument(help="A pretraining file, such as configs/connector_stages.yaml or configs/tiny.yaml.")
    ],
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    json_: JsonOption = False,
) -> None:
    """Train a connector, first alone on captions and then with LoRA on instructions; or a tiny model from scratch.

    A file with `align` and `instruct` is the first: each stage is a run folder of its own, runs/NAME-align and
    runs/NAME, checked, measured and reported on as by `train`. Any other is the second, and writes runs/NAME/model.
    """
    from vlmtune.config.load import is_staged

    if is_staged(config):
        results = run_stages(config, set_ or (), resume=resume)
        if json_:
            print_json(results)
        else:
            for stage, result in results.items():
                print(f"{stage}: {result['run']}")
        return
    folder = _from_scratch(config, set_ or (), resume=resume)
    if json_:
        print_json({"model": str(folder)})
    else:
        print(folder)


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


def _from_scratch(config: Path, changes: Sequence[str], *, resume: bool) -> Path:
    from vlmtune.config.load import load_section
    from vlmtune.config.pretrain_schema import Pretraining
    from vlmtune.train.pretrain import pretrain as run

    settings = load_section(config, Pretraining, changes)
    total = settings.tower.steps + settings.whole.steps
    drawing = ProgressBar("draw", settings.images.num, unit="images")
    learning = ProgressBar("pretrain", total, unit="steps")
    with ExitStack() as open_bars:
        current: ProgressBar | None = None

        def show(report: PretrainReport) -> None:
            nonlocal current
            if report.stage == "validation":
                learning.message(f"step {report.step}: {report.note}")
                return
            wanted = drawing if report.stage == "drawing" else learning
            if current is not wanted:
                open_bars.close()
                current = open_bars.enter_context(wanted)
                if wanted is learning:
                    # A resumed run, or the first step: what came before does not count toward the rate.
                    wanted.start_at(report.step)
            wanted.update(report.step, f"{report.stage}: {report.note}" if report.note else None)

        return run(settings, resume=resume, on_report=show)
