"""The `vlmtune` command: loads the module of the named command and no other, and turns errors into messages.

A command's module imports what it needs (torch, datasets…); `vlmtune --help` loads none of them and answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

import typer

from vlmtune import __version__
from vlmtune.errors import UserError


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the help: the command's module, and its line in `vlmtune --help`."""

    name: str
    target: str
    """`module:attribute`; the attribute is a function with typer annotations, or a `typer.Typer` for a noun."""
    help: str

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    def load(self) -> object:
        """The function or the typer app. Imports the command's module."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


COMMANDS: tuple[Command, ...] = (
    Command("demo", "vlmtune.cli.demo:demo", "The whole story on built-in model and images, in minutes."),
    Command("data", "vlmtune.cli.data:app", "An experiment's images and labels: check, show, prepare."),
    Command("preflight", "vlmtune.cli.preflight:preflight", "Everything train checks before its first step."),
    Command("estimate", "vlmtune.cli.estimate:estimate", "Parameters, memory and time, without loading weights."),
    Command("train", "vlmtune.cli.train:train", "Fine-tune a model on your images; writes a run folder."),
    Command("pretrain", "vlmtune.cli.pretrain:pretrain", "Train a connector in two stages."),
    Command("evaluate", "vlmtune.cli.evaluate:evaluate", "Score a whole split; writes an evaluation folder."),
    Command("compare", "vlmtune.cli.compare:compare", "Evaluations side by side, with intervals and paired tests."),
    Command("checkpoints", "vlmtune.cli.checkpoints:checkpoints", "Every checkpoint of a run: accuracy against step."),
    Command("baselines", "vlmtune.cli.baselines:baselines", "Floors, and what the frozen vision features alone give."),
    Command(
        "learning-curve",
        "vlmtune.cli.learning_curve:learning_curve",
        "How accuracy grows with the number of training images.",
    ),
    Command("search", "vlmtune.cli.search:search", "Look for the best rank, learning rate and more; resumable."),
    Command("report", "vlmtune.cli.report:report", "Render a run folder as one HTML page."),
    Command("predict", "vlmtune.cli.predict:predict", "Labels with probabilities, or answers, for your own images."),
    Command("serve", "vlmtune.cli.serve:serve", "An HTTP API, OpenAI-compatible, and a web page."),
    Command("export", "vlmtune.cli.export:export", "Ship a run as PEFT, merged or GGUF, through the export gate."),
    Command("push", "vlmtune.cli.push:push", "Upload an exported folder to a hub repository."),
    Command("config", "vlmtune.cli.config:app", "An experiment's file: show, validate, convert an older one."),
)
"""In the order of the help. An entry without its module is not offered."""


def available() -> list[Command]:
    """The commands that exist in this installation."""
    return [command for command in COMMANDS if find_spec(command.module) is not None]


def build_app(named: str | None) -> typer.Typer:
    """The typer app in which one command is real and the others are lines of the help.

    Args:
        named: the command on the command line; its module is imported. None imports none.
    """
    app = typer.Typer(
        name="vlmtune",
        help="Make a small vision-language model an expert on your own images, and prove it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # main() explains what users can act on; the rest keep a plain traceback
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for command in available():
        loaded = command.load() if command.name == named else _not_loaded
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=command.name, help=command.help)
        else:
            assert callable(loaded)
            # The function's docstring is the long help; this line is for the list.
            app.command(command.name, short_help=command.help, help=None if loaded.__doc__ else command.help)(loaded)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits 0 on success, 1 on a UserError in one message, 2 on wrong usage, 130 when interrupted."""
    # Read by OpenMP when torch is loaded. Its threads otherwise spin while they wait, which on a machine with other
    # work makes a training step fifty times slower (docs/LOG.md) and on an idle one gains nothing measurable.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if arguments is None else arguments)
    named = next((arg for arg in args if not arg.startswith("-")), None)
    try:
        app = build_app(named)
        typer.main.get_command(app)(args, prog_name="vlmtune")
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _interrupted()
        raise
    except OSError as error:
        message = _explain(error)
        if message is None:
            raise
        _fail(message)
    except Exception as error:
        # Native writers (safetensors) wrap the system's error in one of their own.
        if "No space left on device" not in str(error):
            raise
        _fail(f"the disk is full ({error}). {_MAKE_ROOM}")


_INTERRUPTED = 130
_MAKE_ROOM = "Free some space or name another disk (--set output_dir=PATH)."
_STORAGE_ERRORS = {
    errno.ENOSPC: ("the disk is full", _MAKE_ROOM),
    errno.EDQUOT: ("your disk quota is used up", _MAKE_ROOM),
    errno.EACCES: ("permission denied", "Change its permissions or name another place."),
    errno.EPERM: ("operation not permitted", "Change its permissions or name another place."),
    errno.EROFS: ("the file system is read-only", "Name another place (--set output_dir=PATH)."),
}


def _explain(error: OSError) -> str | None:
    """A storage error in words, or None where an OSError is a bug."""
    if error.errno not in _STORAGE_ERRORS:
        return None
    what, advice = _STORAGE_ERRORS[error.errno]
    path = error.filename2 or error.filename
    return f"{path}: {what}. {advice}" if path else f"{what}. {advice}"


def _fail(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _interrupted() -> None:
    print("Interrupted.", file=sys.stderr)
    raise SystemExit(_INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vlmtune {__version__}")
        raise typer.Exit


def _not_loaded() -> None:
    raise AssertionError("a command was run that build_app did not load")


# A docstring here would be the long help of every command that was not loaded.
_not_loaded.__doc__ = None


if __name__ == "__main__":
    main()
