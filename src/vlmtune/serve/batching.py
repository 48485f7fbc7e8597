"""The one thread that owns the model: requests that arrive together become one prefix tree.

In: jobs (an image, its tokens, its task) from any thread. Out: label probabilities or tokens, handed to each job.
While one tree is computed the next one fills up, so a busy server runs large trees and an idle one never waits. Open
answers are written a token at a time between the trees of classifications, which so do not wait for a long answer.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread

import torch

from vlmtune.inference.batch import Request
from vlmtune.inference.generation import Generation, Sampling, Step
from vlmtune.models.images import ProcessedImage
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.prompts import Task
from vlmtune.serve.settings import ServeSettings

log = logging.getLogger("vlmtune.serve")


@dataclass(eq=False)
class Job(ABC):
    """One request's work. The model's thread calls its methods; they must not block or raise.

    Attributes:
        task: what it shares with others.
        ids: its own part of the prompt, image placeholders included.
        images: as many as there are placeholders for.
        is_canceled: nobody waits for it any more.
    """

    task: Task
    ids: list[int]
    images: list[ProcessedImage]
    is_canceled: bool = field(default=False, init=False)
    arrived: float = field(default_factory=time.monotonic, init=False)

    @property
    def num_rows(self) -> int:
        """Decoder rows it takes in a tree."""
        return len(self.ids) + self.task.num_label_rows

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """The model could not answer."""


@dataclass(eq=False)
class ScoreJob(Job):
    """Wants the log-probability of every label: ``deliver`` gets L of them, normalized over the labels."""

    deliver: Callable[[list[float]], None]
    refuse: Callable[[Exception], None]

    def fail(self, error: Exception) -> None:
        self.refuse(error)


@dataclass(frozen=True)
class Token:
    """One token of an open answer.

    Attributes:
        id: in the vocabulary.
        is_last: the answer ends here, by a stop token or at its limit.
        log_prob: before temperature.
        top: the likeliest tokens with their log-probabilities, where asked for.
    """

    id: int
    is_last: bool
    log_prob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class AnswerJob(Job):
    """Wants an open answer: ``deliver`` gets every token as it is chosen.

    Attributes:
        num_top: likeliest tokens to report with each; None for no log-probabilities at all.
    """

    sampling: Sampling
    stop: tuple[int, ...]
    num_top: int | None
    deliver: Callable[[Token], None]
    refuse: Callable[[Exception], None]

    def fail(self, error: Exception) -> None:
        self.refuse(error)


class ModelThread:
    """Runs jobs on the model, batched.

    Args:
        model: used by this thread alone from now on.
        settings: sizes and waits of batches.
        metrics: told of every batch.
        wake: called when results were handed over, once for a whole batch.
    """

    def __init__(
        self, model: VisionLanguageModel, settings: ServeSettings, metrics: Metrics, wake: Callable[[], None]
    ) -> None:
        self._model = model.eval()
        self._settings = settings
        self._metrics = metrics
        self._wake = wake
        self._ready = Condition()
        self._waiting: deque[Job] = deque()
        self._num_coming = 0
        self._is_closing = False
        self._writing: list[tuple[Generation, list[AnswerJob]]] = []
        self._thread = Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def expect(self) -> None:
        """A job is being prepared: a batch that has begun to fill may wait a moment for it."""
        with self._ready:
            self._num_coming += 1

    def submit(self, job: Job | None) -> None:
        """Hand in an expected job, or None for one that will not come."""
        with self._ready:
            self._num_coming -= 1
            if job is not None:
                self._waiting.append(job)
            self._ready.notify()

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        with self._ready:
            self._is_closing = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            if batch and isinstance(batch[0], ScoreJob):
                self._attempt(self._score, batch)
            elif batch:
                self._attempt(self._begin, batch)
            self._wake()
            for writing in list(self._writing):
                self._write(*writing)
                self._wake()

    def _next_batch(self) -> list[Job] | None:
        """Jobs of one kind and task, the longest waiting first; [] to go on writing; None when all is done."""
        with self._ready:
            while not self._waiting and not self._writing:
                if self._is_closing and not self._num_coming:
                    return None
                self._ready.wait()
            batch = self._take()
            if batch and not self._writing:
                deadline = time.monotonic() + self._settings.max_wait_s
                while self._num_coming and len(batch) < self._settings.max_batch:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._ready.wait(left)
                    batch = self._take(batch)
            self._metrics.waiting.set(len(self._waiting))
            return batch

    def _take(self, batch: Sequence[Job] = ()) -> list[Job]:
        """Move jobs that go with the batch (or with the first one that can start) out of the queue."""
        taken, left = list(batch), deque[Job]()
        rows = sum(job.num_rows for job in taken)
        can_begin = len(self._writing) < self._settings.max_generations
        for job in self._waiting:
            if job.is_canceled:
                continue
            is_fitting = (
                (can_begin or isinstance(job, ScoreJob))
                if not taken
                else (
                    type(job) is type(taken[0])
                    and job.task is taken[0].task
                    and len(taken) < self._settings.max_batch
                    and rows + job.num_rows <= self._settings.max_batch_rows
                )
            )
            if is_fitting:
                taken.append(job)
                rows += job.num_rows
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _attempt(self, run: Callable[[Sequence[Job]], None], batch: Sequence[Job]) -> None:
        """Run a batch; if it fails, run its jobs one by one, so that one request cannot fail its neighbors."""
        started = time.monotonic()
        try:
            run(batch)
        except Exception as error:
            if len(batch) == 1:
                log.exception("a request failed in the model")
                batch[0].fail(error)
                return
            for job in batch:
                self._attempt(run, [job])
            return
        self._metrics.batch_done(len(batch), time.monotonic() - started)
        for job in batch:
            self._metrics.queue_seconds.observe(started - job.arrived)

    def _score(self, batch: Sequence[Job]) -> None:
        scorer = batch[0].task.scorer
        assert scorer is not None
        log_probs = scorer.log_probs(self._questions(batch)).tolist()
        for row, job in enumerate(batch):
            assert isinstance(job, ScoreJob)
            job.deliver(log_probs[row])

    def _begin(self, batch: Sequence[Job]) -> None:
        jobs = [job for job in batch if isinstance(job, AnswerJob)]
        generation = Generation(
            self._model,
            jobs[0].task.prefix_cache(),
            self._questions(jobs),
            jobs[0].stop,
            [job.sampling for job in jobs],
        )
        self._hand_out(generation.step(), generation, jobs)
        if generation.running:
            self._writing.append((generation, jobs))

    def _write(self, generation: Generation, jobs: list[AnswerJob]) -> None:
        """One more token of every answer of a batch."""
        for number in list(generation.running):
            if jobs[number].is_canceled:
                generation.drop(number)
        try:
            if generation.running:
                self._hand_out(generation.step(), generation, jobs)
        except Exception as error:
            log.exception("an answer failed in the model")
            for number in generation.running:
                jobs[number].fail(error)
            generation.running = []
        if not generation.running:
            self._writing.remove((generation, jobs))

    def _hand_out(self, step: Step, generation: Generation, jobs: Sequence[AnswerJob]) -> None:
        self._metrics.tokens.inc(len(step.tokens))
        running = set(generation.running)
        for row, (number, token) in enumerate(zip(step.requests, step.tokens, strict=True)):
            job, is_last = jobs[number], number not in running
            if job.num_top is None:
                job.deliver(Token(token, is_last))
                continue
            log_probs = step.logits[row].log_softmax(-1)
            best = log_probs.topk(job.num_top) if job.num_top else None
            top = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            job.deliver(Token(token, is_last, float(log_probs[token]), top))

    @torch.inference_mode()
    def _questions(self, jobs: Sequence[Job]) -> list[Request]:
        """The images of all jobs through the tower at once."""
        features = iter(self._model.encode_images([image for job in jobs for image in job.images]))
        return [Request(job.ids, [next(features) for _ in job.images]) for job in jobs]
