"""The model's thread: batches by task, neighbors of a failing request, waiting, and an orderly end."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from vlmtune.serve.batching import ModelThread, ScoreJob
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.settings import ServeSettings

pytestmark = pytest.mark.unit


class _Model:
    """Encodes nothing; fails for tokens it does not like."""

    def eval(self) -> _Model:
        return self

    def encode_images(self, images: list[Any]) -> list[Any]:
        return []


@dataclass(eq=False)
class _Task:
    """Two labels; notes the sizes of its batches, and can be held up."""

    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    prefix: list[int] = field(default_factory=list)
    num_label_rows: int = 2

    @property
    def scorer(self) -> _Task:
        return self

    def prefix_cache(self) -> None:
        return None

    def log_probs(self, questions: list[Any]) -> np.ndarray:
        self.gate.wait(10)
        if any(question.ids == [13] for question in questions):
            raise RuntimeError("unlucky")
        self.batches.append(len(questions))
        return np.zeros((len(questions), 2))


class _Run:
    """A model's thread and what it answered."""

    def __init__(self, **settings: Any) -> None:
        self.answers: list[list[float]] = []
        self.errors: list[Exception] = []
        self.thread = ModelThread(
            _Model(),  # type: ignore[arg-type]
            ServeSettings(**settings),
            Metrics(),
            lambda: None,
        )
        self.thread.start()

    def ask(self, task: _Task, token: int = 1) -> ScoreJob:
        job = ScoreJob(task, [token], [], self.answers.append, self.errors.append)  # type: ignore[arg-type]
        self.thread.expect()
        self.thread.submit(job)
        return job


def test_what_waits_for_one_task_becomes_one_batch_within_its_limits() -> None:
    run, task = _Run(max_batch=4), _Task()
    for _ in range(9):
        run.ask(task)
    task.gate.set()
    run.thread.close()
    assert len(run.answers) == 9
    assert sum(task.batches) == 9 and max(task.batches) == 4
    assert len(task.batches) <= 4


def test_rows_bound_a_batch_too() -> None:
    run, task = _Run(max_batch=64, max_batch_rows=7), _Task()  # a job has three rows
    for _ in range(6):
        run.ask(task)
    task.gate.set()
    run.thread.close()
    assert max(task.batches) == 2


def test_tasks_are_not_mixed_and_the_longest_waiting_goes_first() -> None:
    run, first, second = _Run(), _Task(), _Task()
    for task in (first, second, first, second, first):
        run.ask(task)
    first.gate.set()
    second.gate.set()
    run.thread.close()
    assert sum(first.batches) == 3 and sum(second.batches) == 2


def test_a_failing_request_does_not_fail_its_neighbors() -> None:
    run, task = _Run(), _Task()
    for token in (1, 13, 1, 1):
        run.ask(task, token)
    task.gate.set()
    run.thread.close()
    assert len(run.answers) == 3
    assert [str(error) for error in run.errors] == ["unlucky"]


def test_a_canceled_request_is_not_computed() -> None:
    run, busy, task = _Run(), _Task(), _Task()
    task.gate.set()
    run.ask(busy)
    jobs = [run.ask(task) for _ in range(3)]
    jobs[1].is_canceled = True
    busy.gate.set()
    run.thread.close()
    assert sum(task.batches) == 2


def test_closing_waits_for_what_is_still_being_prepared() -> None:
    run, task = _Run(), _Task()
    task.gate.set()
    run.thread.expect()
    closing = threading.Thread(target=run.thread.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    run.thread.submit(ScoreJob(task, [1], [], run.answers.append, run.errors.append))  # type: ignore[arg-type]
    closing.join(10)
    assert len(run.answers) == 1
