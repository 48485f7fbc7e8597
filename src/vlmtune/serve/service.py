"""From a checked request to its result: images decoded by a few threads, then the model's thread, then back.

The routes (asyncio) call it; everything that takes time happens on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any, NamedTuple

from vlmtune.data.remote import RemoteError, fetch_image
from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.inference.generation import Sampling
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.runs.open import read_task
from vlmtune.serve.batching import AnswerJob, Job, ModelThread, ScoreJob, Token
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.images import check_image, is_web_address, read_data_uri
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.prompts import PromptCache, PromptState, TaskPrompt
from vlmtune.serve.settings import ServeSettings

_FETCH_THREADS = 4


class Scores(NamedTuple):
    """A closed set's result: the log-probability of each label, and the length of the prompt in tokens."""

    labels: tuple[str, ...]
    log_probs: list[float]
    num_prompt_tokens: int


class Service:
    """A model that serves concurrent requests.

    Args:
        opened: the model; used only by the service from now on.
        source: MODEL as the command line named it, for its task and labels.
        labels: replace those of ``source``.
        name: the model's name for clients.
        settings: limits.
    """

    def __init__(
        self,
        opened: OpenedModel,
        source: str,
        *,
        labels: Sequence[str] | None = None,
        name: str | None = None,
        settings: ServeSettings | None = None,
    ) -> None:
        section, stored = read_task(source)
        self.opened = opened
        self.settings = settings or ServeSettings()
        self.name = name or source.rstrip("/").rpartition("/")[2]
        self.metrics = Metrics()
        self.prompts = PromptCache(
            opened,
            section,
            stored if labels is None else labels,
            base=getattr(opened, "base", None) or source,
            size=self.settings.max_cached_prompts,
        )
        self._decoders = ThreadPoolExecutor(self.settings.decode_threads, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")
        self._model = ModelThread(opened.model, self.settings, self.metrics, self._wake)
        self._outbox: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_stopping = False

    async def start(self) -> None:
        """Begin to take requests, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._model.start()

    async def stop(self) -> None:
        """Answer accepted requests, then stop the threads."""
        self.is_stopping = True
        await asyncio.to_thread(self._decoders.shutdown)
        await asyncio.to_thread(self._model.close)
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    async def read_image(self, text: str, param: str) -> bytes:
        """The bytes of a data URI or, where allowed, of a web address."""
        if not is_web_address(text):
            return read_data_uri(text, param)
        if not self.settings.allow_urls:
            raise RefusedError(
                400,
                "urls_not_allowed",
                f"{param}: this server fetches no web addresses. Send the image as a data URI, or start the server "
                "with --allow-urls.",
                param=param,
            )
        assert self._loop is not None
        limits = {"max_bytes": self.settings.max_body_bytes, "timeout_s": 10.0}
        try:
            return await self._loop.run_in_executor(self._fetchers, lambda: fetch_image(text, **limits))  # type: ignore[arg-type]
        except RemoteError as error:
            raise RefusedError(400, "not_fetched", str(error), param=param) from error

    async def score(self, image: bytes, find_prompt: Callable[[], TaskPrompt], question: str | None) -> Scores:
        """The log-probability of every label of a prompt.

        Args:
            image: encoded.
            find_prompt: finds or builds the prompt; runs on a decoding thread.
        """
        assert self._loop is not None
        result: asyncio.Future[Scores] = self._loop.create_future()
        done, fail = self._later(partial(_set_result, result)), self._later(partial(_set_error, result))
        canceled = Event()

        def make() -> ScoreJob:
            prompt = find_prompt()
            assert prompt.labels is not None
            labels = prompt.labels
            processed = self._process(image, "image")
            ids = self._fitting(prompt, prompt.tokens(processed, question))
            num_tokens = len(prompt.prefix) + len(ids)
            return ScoreJob(
                prompt=prompt,
                ids=ids,
                images=[processed],
                deliver=lambda log_probs: done(Scores(labels, log_probs, num_tokens)),
                fail=fail,
                canceled=canceled,
            )

        self._prepare(make, fail, canceled)
        try:
            return await result
        finally:
            canceled.set()

    async def answer(
        self,
        images: Sequence[bytes],
        write_prompt: Callable[[list[ProcessedImage]], tuple[PromptState, list[int]]],
        sampling: Sampling,
        num_top: int | None,
    ) -> AsyncIterator[Token]:
        """An open answer: its tokens as they are chosen.

        Args:
            images: encoded.
            write_prompt: the prompt and its own tokens for prepared images; runs on a decoding thread.
            num_top: likeliest tokens to report with each; None for no log-probabilities.
        """
        events: asyncio.Queue[Token | Exception] = asyncio.Queue()
        post = self._later(events.put_nowait)
        canceled = Event()

        def make() -> AnswerJob:
            processed = [self._process(image, f"image {number}") for number, image in enumerate(images, 1)]
            prompt, ids = write_prompt(processed)
            return AnswerJob(
                prompt=prompt,
                ids=self._fitting(prompt, ids),
                images=processed,
                deliver=post,
                fail=post,
                canceled=canceled,
                sampling=sampling,
                stop=(self.opened.tokenizer.end_id,),
                num_top=num_top,
            )

        self._prepare(make, post, canceled)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise refusal_for(event)
                yield event
                if event.is_last:
                    return
        finally:
            canceled.set()

    def _prepare(self, make: Callable[[], Job[Any]], fail: Callable[[Exception], None], canceled: Event) -> None:
        """Make a job on a decoding thread and hand it to the model's."""

        def run() -> None:
            if canceled.is_set():
                self._model.withdraw()
                return
            try:
                job = make()
            except Exception as error:
                fail(error)
                self._wake()
                self._model.withdraw()
            else:
                self._model.submit(job)

        self._model.expect()
        try:
            self._decoders.submit(run)
        except RuntimeError as error:  # the pool is shut down
            self._model.withdraw()
            raise RefusedError(503, "stopping", "The server is stopping.", retry_after_s=5) from error

    def _process(self, image: bytes, param: str) -> ProcessedImage:
        source = check_image(image, self.settings.max_pixels, param)
        try:
            return self.opened.processor.process(source.open())
        except UnreadableImageError as error:
            raise RefusedError(
                400, "invalid_image", f"{param}: the image is damaged ({error.reason}).", param=param
            ) from error

    def _fitting(self, prompt: PromptState, ids: list[int]) -> list[int]:
        total = len(prompt.prefix) + len(ids)
        if total > self.settings.max_prompt_tokens:
            raise RefusedError(
                400,
                "context_length_exceeded",
                f"The prompt has {total} tokens, images included; this server takes up to "
                f"{self.settings.max_prompt_tokens}.",
            )
        return ids

    def _later(self, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """A callback for other threads: ``handle(value)`` runs on the event loop at the next wake."""
        return lambda value: self._outbox.append((handle, value))

    def _wake(self) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: no one is waiting
            self._loop.call_soon_threadsafe(self._empty_outbox)

    def _empty_outbox(self) -> None:
        while self._outbox:
            handle, value = self._outbox.popleft()
            handle(value)


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_error(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(refusal_for(error))


def refusal_for(error: Exception) -> Exception:
    """The refusal for an error from another thread: 400 for what the user can fix; other errors are unchanged."""
    return RefusedError(400, "invalid_request", str(error)) if isinstance(error, UserError) else error
