"""`vlmtune pretrain CONFIG`: a tiny model from scratch on drawn pictures."""

from __future__ import annotations

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
    from vlmtune.config.pretrain_schema import load_pretraining
    from vlmtune.train.pretrain import pretrain as run

    settings = load_pretraining(config, changes or ())
    total = settings.tower.steps + settings.whole.steps
    with ProgressBar("pretrain", total, unit="steps") as bar:
        is_counting = False

        def show(report: PretrainReport) -> None:
            nonlocal is_counting
            if report.stage == "validation":
                bar.message(f"step {report.step}: {report.note}")
                return
            if report.step and not is_counting:
                is_counting = True
                bar.start_at(report.step - 1)
            bar.update(report.step, f"{report.stage}: {report.note}")

        folder = run(settings, resume=resume, on_report=show)
    print(folder)
