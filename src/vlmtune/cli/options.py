"""Arguments and options shared by several commands. Not a command itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.errors import UserError

if TYPE_CHECKING:
    from vlmtune.config.schema import Experiment

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="An experiment's YAML file, or a run folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in train.learning_rate=1e-3. Repeatable."),
]
FaithfulOption = Annotated[
    bool, typer.Option("--faithful", help="Of an older repo's file, keep its loss and its LoRA layers, for comparison.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="The closed set, or @FILE with one a line. Default: those the model learned."),
]


def open_experiment(
    config: Path, overrides: Sequence[str] | None = None, *, faithful: bool = False, must_exist: bool = True
) -> Experiment:
    """`load_experiment`; notes on an older repo's file go to stderr."""
    from vlmtune.config.load import load_experiment

    notes: list[str] = []
    experiment = load_experiment(config, overrides or (), faithful=faithful, must_exist=must_exist, note=notes.append)
    if notes:
        from vlmtune.cli.console import stderr_console

        console = stderr_console()
        console.print(f"{config} is a file of an older repo. What became of it:", markup=False, soft_wrap=True)
        for text in notes:
            console.print(f"- {text}", markup=False, soft_wrap=True, highlight=False)
    return experiment


def read_labels(labels: str | None) -> list[str] | None:
    """The value of `--labels`. Raises UserError: no readable file, no label, or a repeated one."""
    if labels is None:
        return None
    if labels.startswith("@"):
        try:
            lines = Path(labels[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--labels {labels}: cannot be read ({error}). Give a text file with one label a line."
            ) from error
    else:
        lines = labels.split(",")
    entries = [line.strip() for line in lines if line.strip()]
    twice = sorted({label for label in entries if entries.count(label) > 1})
    if not entries or twice:
        problem = f"{', '.join(twice)} more than once" if twice else "no label"
        raise UserError(f"--labels {labels}: found {problem}. Name each label once: --labels cat,dog")
    return entries
