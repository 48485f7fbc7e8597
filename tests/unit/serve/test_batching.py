"""The model's thread: batches by prompt, neighbors of a failing request, waiting, and an orderly end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from vlmtune.serve.batching import ModelThread, ScoreJob
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.prompts import TaskPrompt
from vlmtune.serve.settings import ServeSettings

pytestmark = pytest.mark.unit


class _Model:
    """Encodes nothing; fails for tokens it does not like."""

    def eval(self) -> _Model:
        return self

    def encode_images(self, images: list[Any]) -> list[Any]:
        return []


class _Prompt(TaskPrompt):
    """Two labels; notes the sizes of its batches, and can be held up."""

    def __init__(self) -> None:
        self.prefix = []
        self.num_label_tokens = 2
        self.batches: list[int] = []
        self.gate = threading.Event()

    def label_log_probs(self, questions: Sequence[Any]) -> list[list[float]]:
        self.gate.wait(10)
        if any(question.ids == [13] for question in questions):
            raise RuntimeError("unlucky")
        self.batches.append(len(questions))
        return [[-1.0, -1.0] for _ in questions]


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

    def job(self, prompt: _Prompt, token: int = 1) -> ScoreJob:
        return ScoreJob(prompt=prompt, ids=[token], images=[], deliver=self.answers.append, fail=self.errors.append)

    def ask(self, prompt: _Prompt, token: int = 1) -> ScoreJob:
        job = self.job(prompt, token)
        self.thread.expect()
        self.thread.submit(job)
        return job


def test_waiting_jobs_of_one_prompt_become_one_batch() -> None:
    run, prompt = _Run(max_batch=4), _Prompt()
    for _ in range(9):
        run.ask(prompt)
    prompt.gate.set()
    run.thread.close()
    assert len(run.answers) == 9
    assert sum(prompt.batches) == 9 and max(prompt.batches) == 4
    assert len(prompt.batches) <= 4


def test_tokens_bound_a_batch_too() -> None:
    run, prompt = _Run(max_batch=64, max_batch_tokens=7), _Prompt()  # a job has three tokens
    for _ in range(6):
        run.ask(prompt)
    prompt.gate.set()
    run.thread.close()
    assert max(prompt.batches) == 2


def test_prompts_are_not_mixed_in_a_batch() -> None:
    run, first, second = _Run(), _Prompt(), _Prompt()
    for prompt in (first, second, first, second, first):
        run.ask(prompt)
    first.gate.set()
    second.gate.set()
    run.thread.close()
    assert sum(first.batches) == 3 and sum(second.batches) == 2


def test_a_failing_request_does_not_fail_its_neighbors() -> None:
    run, prompt = _Run(), _Prompt()
    for token in (1, 13, 1, 1):
        run.ask(prompt, token)
    prompt.gate.set()
    run.thread.close()
    assert len(run.answers) == 3
    assert [str(error) for error in run.errors] == ["unlucky"]


def test_a_canceled_request_is_not_computed() -> None:
    run, busy, prompt = _Run(), _Prompt(), _Prompt()
    prompt.gate.set()
    run.ask(busy)
    jobs = [run.ask(prompt) for _ in range(3)]
    jobs[1].canceled.set()
    busy.gate.set()
    run.thread.close()
    assert sum(prompt.batches) == 2


def test_closing_waits_for_jobs_being_prepared() -> None:
    run, prompt = _Run(), _Prompt()
    prompt.gate.set()
    run.thread.expect()
    closing = threading.Thread(target=run.thread.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    run.thread.submit(run.job(prompt))
    closing.join(10)
    assert len(run.answers) == 1


def test_closing_does_not_wait_for_a_withdrawn_job() -> None:
    run = _Run()
    run.thread.expect()
    run.thread.withdraw()
    run.thread.close()
    assert run.answers == run.errors == []
