"""`vlmtune pretrain CONFIG`: a tiny model from scratch on drawn pictures."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.console import ProgressBar

if TYPE_CHECKING:
    from vlmtune.train.pretrain import PretrainReport


def pretrain(
    config: Annotated[Path, typer.Argument(help="A pretraining file, such as configs/tiny.yaml.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
) -> None:
    """Train a tiny model from scratch on pictures that the program draws; writes runs/NAME/model."""
    from vlmtune.config.load import load_section
    from vlmtune.config.pretrain_schema import Pretraining
    from vlmtune.train.pretrain import pretrain as run

    settings = load_section(config, Pretraining, changes or ())
    total = settings.tower.steps + settings.whole.steps
    drawing = ProgressBar("draw", settings.pictures.num, unit="pictures")
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
                    # A resumed run, or the first step: what came before does not count towards the rate.
                    wanted.start_at(report.step)
            wanted.update(report.step, f"{report.stage}: {report.note}" if report.note else None)

        folder = run(settings, resume=resume, on_report=show)
    print(folder)
