"""Trials of a search, each in a process of its own: started, listened to, ended. What a trial does is the caller's.

A child tells its parent of steps and validations and learns whether to go on. It ends when the parent dies, however
that happened, so that no trial of a killed search keeps the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from vlmtune.errors import UserError

Kind = Literal["step", "validated", "finished", "failed", "killed"]


@dataclass(frozen=True)
class Event:
    """What happened in a trial: ``value`` is a share of its steps, an accuracy, a result, or an error's message."""

    number: int
    kind: Kind
    value: Any = None


class Link:
    """The child's side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def step(self, share: float) -> None:
        """Tell how much of the trial is done."""
        self._connection.send(("step", share))

    def validated(self, accuracy: float) -> bool:
        """Tell of a validation; whether the trial should end."""
        self._connection.send(("validated", accuracy))
        return bool(self._connection.recv())


Target = Callable[[Link, Mapping[str, Any]], Mapping[str, Any]]
"""A module's function: (link, what to do) -> the trial's result, plain values all."""


@dataclass
class _Child:
    process: BaseProcess
    connection: Connection


class TrialProcesses:
    """The trials that run at a time. Use as a context manager: leaving it ends them.

    Args:
        target: what a trial does; its module is imported in the child before anything heavy.
        logs: folder for what trials print, `trial-000.log` each.
    """

    def __init__(self, target: Target, logs: Path) -> None:
        self._target, self._logs = target, logs
        self._context = multiprocessing.get_context("spawn")
        self._children: dict[int, _Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> TrialProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.process.kill()
        for child in self._children.values():
            child.process.join()
        self._children.clear()

    def __len__(self) -> int:
        return len(self._children)

    def start(self, number: int, task: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Begin a trial, with changes to its environment (threads, device)."""
        own, theirs = self._context.Pipe()
        arguments = (theirs, self._target, task, environment, self.log(number))
        process = self._context.Process(target=_run, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._children[number] = _Child(process, own)

    def log(self, number: int) -> Path:
        """What a trial printed."""
        return self._logs / f"trial-{number:03d}.log"

    def answer(self, number: int, *, is_over: bool) -> None:
        """The verdict that a `validated` event waits for."""
        try:
            self._children[number].connection.send(is_over)
        except OSError:  # it died meanwhile, which `wait` will tell
            return

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened since; after ``timeout_s`` at the latest, perhaps nothing."""
        by_connection = {child.connection: number for number, child in self._children.items()}
        events = []
        for ready in wait(list(by_connection), timeout_s):
            assert isinstance(ready, Connection)
            number = by_connection[ready]
            try:
                kind, value = ready.recv()
            except (EOFError, OSError):
                kind, value = "killed", None
            events.append(Event(number, kind, value))
            if kind in ("finished", "failed", "killed"):
                ready.close()
                self._children.pop(number).process.join()
        return events


def _run(
    connection: Connection, target: Target, task: Mapping[str, Any], environment: Mapping[str, str], log: Path
) -> None:
    """A child's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    with log.open("a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            connection.send(("finished", dict(target(Link(connection), task))))
        except UserError as error:
            connection.send(("failed", str(error)))
        except BrokenPipeError:
            sys.exit(1)
        except Exception as error:
            traceback.print_exc()
            connection.send(("failed", f"{type(error).__name__}: {error} (traceback in {log})"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
