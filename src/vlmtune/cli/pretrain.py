"""`vlmtune pretrain CONFIG`: a connector in two stages on any base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_json
from vlmtune.cli.options import JsonOption, SetOption


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
    from vlmtune.config.load import load_stages
    from vlmtune.workflows.train import train_stages

    results = train_stages(load_stages(config, set_ or ()), resume=resume, observer=ConsoleObserver())
    if json_:
        print_json(results)
    else:
        for stage, result in results.items():
            print(f"{stage}: {result.run}")
