"""`vlmtune config`: an experiment's file as vlmtune reads it, and all its errors."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment
from vlmtune.config import defaults
from vlmtune.config.load import InvalidExperimentError, dump, is_staged, load_experiment, load_stages
from vlmtune.errors import ConfigError

app = typer.Typer(no_args_is_help=True)


@app.command()
def show(
    config: ConfigArgument,
    set_: SetOption = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Leave undecided what the file leaves out; reads no data.")
    ] = False,
    faithful: FaithfulOption = False,
    json_: JsonOption = False,
) -> None:
    """Print the experiment as it would run: overrides laid over, every left-out key decided.

    The data is counted for that, as the number of training images decides the number of epochs.
    """
    experiment = open_experiment(config, set_, faithful=faithful)
    if not as_written:
        from vlmtune.data.splits import load_splits

        splits = load_splits(experiment.data, experiment.task, experiment.seed)
        experiment = defaults.apply(
            experiment, num_train=len(splits.train), num_labels=len(splits.labels) if splits.labels else 0
        )
    if json_:
        from vlmtune.cli.console import print_json

        print_json(experiment)
    else:
        print(dump(experiment), end="")


@app.command()
def validate(
    config: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Experiments' YAML files.")],
    set_: SetOption = None,
    skip_paths: Annotated[
        bool, typer.Option("--skip-paths", help="Do not ask that local data and models are there.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check files without running anything: all errors at once, each with line and key. Exit 1 if there is one."""
    results = []
    errors: list[ConfigError] = []
    for path in config:
        try:
            load = load_stages if is_staged(path) else load_experiment
            load(path, set_ or (), must_exist=not skip_paths)
            problems: list[dict[str, str]] = []
        except InvalidExperimentError as error:
            errors.append(error)
            problems = [
                {"place": problem.place, "key": problem.key, "message": problem.message} for problem in error.problems
            ]
        except ConfigError as error:
            errors.append(error)
            problems = [{"place": str(path), "key": "", "message": str(error)}]
        results.append({"file": str(path), "valid": not problems, "problems": problems})
        if not problems and not json_:
            print(f"{path}: valid")
    if json_:
        from vlmtune.cli.console import print_json

        print_json(results)
        if errors:
            raise typer.Exit(1)
    elif errors:
        raise ConfigError("\n".join(str(error) for error in errors))


@app.command()
def convert(
    config: Annotated[Path, typer.Argument(metavar="OLD", help="A fine-tuning or evaluation file of an older repo.")],
    output: Annotated[Path | None, typer.Option(help="The file to write. Default: standard output.")] = None,
    set_: SetOption = None,
    faithful: FaithfulOption = False,
) -> None:
    """Write an older repo's file as one of vlmtune's, with what became of its keys as comments."""
    notes: list[str] = []
    experiment = load_experiment(config, set_ or (), must_exist=False, faithful=faithful, note=notes.append)
    if not notes:
        raise ConfigError(f"{config}: is one of vlmtune's own files, so there is nothing to convert.")
    head = [
        f"From {config.name} of an older repo{', faithfully' if faithful else ''}.",
        *(f"- {note}" for note in notes),
    ]
    comments = [wrapped for line in head for wrapped in textwrap.wrap(line, 108, subsequent_indent="  ")]
    text = "".join(f"# {line}\n" for line in comments) + dump(experiment, brief=True)
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise ConfigError(f"{output}: exists already. Name another --output.")
    output.write_text(text, encoding="utf-8")
    print(output)
