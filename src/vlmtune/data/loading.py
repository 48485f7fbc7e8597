"""Pictures read ahead of their use by a few threads, in order, with the unreadable ones kept as errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vlmtune.errors import UnreadableImageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    load: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int = 2, ahead: int = 64
) -> Iterator[tuple[Item, Result | UnreadableImageError]]:
    """Apply ``load`` to every item on other threads, at most ``ahead`` items early.

    Yields:
        Each item in order, with its result or with the UnreadableImageError that ``load`` raised. Any other
        exception is raised at its item.
    """

    def attempt(item: Item) -> Result | UnreadableImageError:
        try:
            return load(item)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(num_threads, thread_name_prefix="pictures") as pool:
        waiting: deque[tuple[Item, Future[Result | UnreadableImageError]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(attempt, item)))
                if len(waiting) >= ahead:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
