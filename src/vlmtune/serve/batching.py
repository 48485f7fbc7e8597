"""The one thread that owns the model: requests that arrive together become one prefix tree.

In: jobs (an image, its tokens, its prompt). Out: label probabilities or tokens, delivered to each job.

    event loop                   decoding threads              model thread
    ----------                   ----------------              ------------
    Service.score, answer
      expect() ------------------------------------------------> one more is coming: a batch may wait for it
      _prepare(make) ----------> open the image, build tokens
                                 submit(job) or withdraw() ----> _waiting
      await                                                      _next_batch: jobs of one prompt and kind
                                                                 _score, or _begin and then _write token by token
                                                                 job.deliver(result) -> Service._outbox
      _empty_outbox <------------------------------------------- _wake(), once a batch
    the future or queue is set

While one tree is computed the next one fills up, so a busy server runs large trees and an idle one never waits. Open
answers are written a token at a time between the trees of classifications, which thus never wait for a long answer.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from typing import Any, Generic, TypeVar

import torch

from vlmtune.inference.batch import Request
from vlmtune.inference.generation import Generation, Sampling, Step
from vlmtune.models.images import ProcessedImage
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.prompts import PromptState, TaskPrompt
from vlmtune.serve.settings import ServeSettings

log = logging.getLogger("vlmtune.serve")

Result = TypeVar("Result")


@dataclass(eq=False, kw_only=True)
class Job(Generic[Result]):
    """One request's work.

    Attributes:
        prompt: the part shared with other jobs.
        ids: its own part of the prompt, image placeholders included.
        images: those of its placeholders.
        deliver, fail: receive the result, or the error. The model's thread calls them; they must not block or raise.
        canceled: set when the client is gone.
    """

    prompt: PromptState
    ids: list[int]
    images: list[ProcessedImage]
    deliver: Callable[[Result], None]
    fail: Callable[[Exception], None]
    canceled: Event = field(default_factory=Event)
    arrived: float = field(default_factory=time.monotonic, init=False)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the whole prompt, images included."""
        return len(self.prompt.prefix) + len(self.ids)

    @property
    def num_tree_tokens(self) -> int:
        """Tokens it adds to a tree."""
        return len(self.ids) + self.prompt.num_label_tokens


class ScoreJob(Job[list[float]]):
    """Asks for the log-probability of every label: L of them, normalized over the labels."""


@dataclass(frozen=True)
class Token:
    """One token of an open answer.

    Attributes:
        id: in the vocabulary.
        is_last: the answer ends here, by a stop token or at its limit.
        num_prompt_tokens: of the prompt that it answers.
        log_prob: before temperature.
        top: the likeliest tokens with their log-probabilities, where requested.
    """

    id: int
    is_last: bool
    num_prompt_tokens: int
    log_prob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, kw_only=True)
class AnswerJob(Job[Token]):
    """Asks for an open answer, delivered token by token.

    Attributes:
        sampling, stop: see `Generation`.
        num_top: likeliest tokens to report with each; None for no log-probabilities at all.
    """

    sampling: Sampling
    stop: tuple[int, ...]
    num_top: int | None


class ModelThread:
    """Runs jobs on the model, batched.

    Args:
        model: used by this thread alone from now on.
        settings: sizes and waits of batches.
        metrics: count every batch.
        wake: called after results were delivered, once for a whole batch.
    """

    def __init__(
        self, model: VisionLanguageModel, settings: ServeSettings, metrics: Metrics, wake: Callable[[], None]
    ) -> None:
        self._model = model.eval()
        self._settings = settings
        self._metrics = metrics
        self._wake = wake
        self._ready = Condition()
        self._waiting: deque[Job[Any]] = deque()
        self._num_coming = 0
        self._is_closing = False
        self._writing: list[tuple[Generation, list[AnswerJob]]] = []
        self._thread = Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def expect(self) -> None:
        """A job is being prepared: a batch that is filling may wait a moment for it."""
        with self._ready:
            self._num_coming += 1

    def submit(self, job: Job[Any]) -> None:
        """Hand in an expected job."""
        with self._ready:
            self._num_coming -= 1
            self._waiting.append(job)
            self._ready.notify()

    def withdraw(self) -> None:
        """Cancel an expected job."""
        with self._ready:
            self._num_coming -= 1
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

    def _next_batch(self) -> list[Job[Any]] | None:
        """Jobs of one kind and prompt, the longest waiting first; [] to keep writing; None when all is done."""
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

    def _take(self, batch: Sequence[Job[Any]] = ()) -> list[Job[Any]]:
        """Move jobs that fit the batch (or the first job that can start) out of the queue."""
        taken, left = list(batch), deque[Job[Any]]()
        num_tokens = sum(job.num_tree_tokens for job in taken)
        can_begin = len(self._writing) < self._settings.max_generations
        for job in self._waiting:
            if job.canceled.is_set():
                continue
            is_fitting = (
                (can_begin or isinstance(job, ScoreJob))
                if not taken
                else (
                    type(job) is type(taken[0])
                    and job.prompt is taken[0].prompt
                    and len(taken) < self._settings.max_batch
                    and num_tokens + job.num_tree_tokens <= self._settings.max_batch_tokens
                )
            )
            if is_fitting:
                taken.append(job)
                num_tokens += job.num_tree_tokens
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _attempt(self, run: Callable[[Sequence[Job[Any]]], None], batch: Sequence[Job[Any]]) -> None:
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

    def _score(self, batch: Sequence[Job[Any]]) -> None:
        prompt = batch[0].prompt
        assert isinstance(prompt, TaskPrompt)
        for job, log_probs in zip(batch, prompt.label_log_probs(self._questions(batch)), strict=True):
            job.deliver(log_probs)

    def _begin(self, batch: Sequence[Job[Any]]) -> None:
        jobs = [job for job in batch if isinstance(job, AnswerJob)]
        generation = Generation(
            self._model,
            jobs[0].prompt.prefix_cache(),
            self._questions(jobs),
            jobs[0].stop,
            [job.sampling for job in jobs],
        )
        self._hand_out(generation.step(), generation, jobs)
        if generation.running:
            self._writing.append((generation, jobs))

    def _write(self, generation: Generation, jobs: list[AnswerJob]) -> None:
        """Generate one more token for every answer of a batch."""
        for number in list(generation.running):
            if jobs[number].canceled.is_set():
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
                job.deliver(Token(token, is_last, job.num_prompt_tokens))
                continue
            log_probs = step.logits[row].log_softmax(-1)
            best = log_probs.topk(job.num_top) if job.num_top else None
            top = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            job.deliver(Token(token, is_last, job.num_prompt_tokens, float(log_probs[token]), top))

    @torch.inference_mode()
    def _questions(self, jobs: Sequence[Job[Any]]) -> list[Request]:
        """The images of all jobs through the tower at once."""
        features = iter(self._model.encode_images([image for job in jobs for image in job.images]))
        return [Request(job.ids, [next(features) for _ in job.images]) for job in jobs]
