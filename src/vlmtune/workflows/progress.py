"""What a workflow reports to its observer: how much is done, messages, and the findings of the preflight.

The command line draws bars and prints lines from it (`cli.console`), a notebook its own, the Python API nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

Level = Literal["info", "heading", "warning"]


class Progress(Protocol):
    """How much of one part is done."""

    def start_at(self, done: float) -> None:
        """Continue an interrupted part: ``done`` was finished earlier and does not count toward the rate."""

    def advance(self, num: float = 1) -> None:
        """Count ``num`` more as done."""

    def update(self, done: float, note: str | None = None) -> None:
        """Set the total done so far, with a note such as "loss 0.31"."""

    def message(self, text: str) -> None:
        """Show a line that stays."""


class Observer(Protocol):
    """Receives everything that a workflow reports."""

    def progress(self, description: str, total: float, unit: str) -> AbstractContextManager[Progress]:
        """Progress of one part, counted in ``unit``, for the duration of the block."""

    def message(self, text: str, level: Level = "info") -> None:
        """Report a sentence about what is happening."""

    def finding(self, level: Literal["ok", "warning", "error"], name: str, message: str) -> None:
        """Report one preflight check and its outcome."""


class _NoProgress:
    def start_at(self, done: float) -> None: ...

    def advance(self, num: float = 1) -> None: ...

    def update(self, done: float, note: str | None = None) -> None: ...

    def message(self, text: str) -> None: ...


class Silent:
    """An observer that drops everything."""

    def progress(self, description: str, total: float, unit: str) -> AbstractContextManager[Progress]:
        return nullcontext(_NoProgress())

    def message(self, text: str, level: Level = "info") -> None: ...

    def finding(self, level: Literal["ok", "warning", "error"], name: str, message: str) -> None: ...


SILENT = Silent()
