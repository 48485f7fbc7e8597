"""From a checked request to its result: images decoded by a few threads, then the model's thread, then back.

The routes (asyncio) call it; everything that takes time happens on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vlmtune.data.remote import RemoteError, fetch_image
from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.inference.generation import Sampling
from vlmtune.inference.open import read_task
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.serve.batching import AnswerJob, Job, ModelThread, ScoreJob, Token
from vlmtune.serve.conversation import ConversationTask
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.images import check_image, is_web_address, read_data_uri
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.prompts import ServedTask, Task, TaskShelf
from vlmtune.serve.settings import ServeSettings

_FETCH_THREADS = 4


class Service:
    """A model being asked by many at once.

    Args:
        opened: the model; used by nobody else from now on.
        source: MODEL as the command line named it, for its task and labels.
        labels: instead of those that ``source`` brings along.
        name: what clients call the model.
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
        self.tasks = TaskShelf(
            opened,
            section,
            stored if labels is None else labels,
            base=getattr(opened, "base", None) or source,
            size=self.settings.kept_tasks,
        )
        self.conversation = ConversationTask(opened)
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
        """Answer what was accepted, then stop the threads."""
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

    async def score(
        self, image: bytes, find_task: Callable[[], ServedTask], question: str | None, param: str = "image"
    ) -> tuple[ServedTask, list[float], int]:
        """The log-probability of every label of a task.

        Args:
            image: encoded.
            find_task: finds or makes the task; runs on a decoding thread.

        Returns:
            The task, one number a label, and the length of the prompt in tokens.
        """
        assert self._loop is not None
        result: asyncio.Future[list[float]] = self._loop.create_future()

        def make() -> Job:
            task = find_task()
            processed = self._process(image, param)
            ids = self._fitting(task.prefix, task.tokens(processed, question))
            return ScoreJob(task, ids, [processed], self._post(_set_result, result), self._post(_set_error, result))

        job = self._prepare(make, self._post(_set_error, result))
        try:
            log_probs = await result
        finally:
            job.cancel()
        made = job.made
        assert made is not None and isinstance(made.task, ServedTask)
        return made.task, log_probs, len(made.task.prefix) + len(made.ids)

    async def answer(
        self,
        images: Sequence[bytes],
        write_prompt: Callable[[list[ProcessedImage]], tuple[Task, list[int]]],
        sampling: Sampling,
        num_top: int | None,
    ) -> AsyncIterator[int | Token]:
        """An open answer: first the length of the prompt in tokens, then its tokens as they are chosen.

        Args:
            images: encoded.
            write_prompt: the task and the prompt's own tokens for prepared images; runs on a decoding thread.
            num_top: likeliest tokens to report with each; None for no log-probabilities.
        """
        events: asyncio.Queue[int | Token | Exception] = asyncio.Queue()
        post = self._post(lambda queue, event: queue.put_nowait(event), events)

        def make() -> Job:
            processed = [self._process(image, f"image {number + 1}") for number, image in enumerate(images)]
            task, ids = write_prompt(processed)
            self._fitting(task.prefix, ids)
            post(len(task.prefix) + len(ids))
            stop = (self.opened.tokenizer.end_id,)
            return AnswerJob(task, ids, processed, sampling, stop, num_top, post, post)

        job = self._prepare(make, post)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise refusal_for(event)
                yield event
                if isinstance(event, Token) and event.is_last:
                    return
        finally:
            job.cancel()

    def _prepare(self, make: Callable[[], Job], fail: Callable[[Exception], None]) -> _Preparation:
        """Make a job on a decoding thread and hand it to the model's."""
        preparation = _Preparation()

        def run() -> None:
            job = None
            try:
                if not preparation.is_canceled:
                    job = preparation.made = make()
                    job.is_canceled = preparation.is_canceled
            except Exception as error:
                fail(error)
                self._wake()
            finally:
                self._model.submit(job)

        self._model.expect()
        try:
            self._decoders.submit(run)
        except RuntimeError as error:  # the pool is shut down
            self._model.submit(None)
            raise RefusedError(503, "stopping", "The server is stopping.", retry_after_s=5) from error
        return preparation

    def _process(self, image: bytes, param: str) -> ProcessedImage:
        source = check_image(image, self.settings.max_pixels, param)
        try:
            return self.opened.processor.process(source.open())
        except UnreadableImageError as error:
            raise RefusedError(
                400, "invalid_image", f"{param}: the image is damaged ({error.reason}).", param=param
            ) from error

    def _fitting(self, prefix: list[int], ids: list[int]) -> list[int]:
        if len(prefix) + len(ids) > self.settings.max_prompt_tokens:
            raise RefusedError(
                400,
                "context_length_exceeded",
                f"The prompt has {len(prefix) + len(ids)} tokens, images included; this server takes up to "
                f"{self.settings.max_prompt_tokens}.",
            )
        return ids

    def _post(self, handle: Callable[[Any, Any], None], target: Any) -> Callable[[Any], None]:
        """A callback for other threads: ``handle(target, value)`` runs on the event loop at the next wake."""
        return lambda value: self._outbox.append((lambda later: handle(target, later), value))

    def _wake(self) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._empty_outbox)

    def _empty_outbox(self) -> None:
        while self._outbox:
            handle, value = self._outbox.popleft()
            handle(value)


class _Preparation:
    """A job that may not be made yet, to be canceled at any time."""

    def __init__(self) -> None:
        self.made: Job | None = None
        self.is_canceled = False

    def cancel(self) -> None:
        self.is_canceled = True
        if self.made is not None:
            self.made.is_canceled = True


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_error(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(refusal_for(error))


def refusal_for(error: Exception) -> Exception:
    """What went wrong on another thread, as an answer: a person's mistake is 400, the rest stays what it is."""
    if isinstance(error, UserError):
        return RefusedError(400, "invalid_request", str(error))
    return error
