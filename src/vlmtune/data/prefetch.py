"""Images read ahead of their use by a few threads, in order; an unreadable one stands as its error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

from vlmtune.errors import UnreadableImageError

Item = TypeVar("Item")
Result = TypeVar("Result")

# What is loaded and not yet taken, about: images of many tiles take 30 MiB each, and 64 of them would be 2 GiB.
_MAX_BYTES = 256 * 2**20


def read_ahead(
    load: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_threads: int = 2,
    ahead: int = 64,
    size_of: Callable[[Result], int] = lambda _: 0,
    max_bytes: int = _MAX_BYTES,
) -> Iterator[tuple[Item, Result | UnreadableImageError]]:
    """Apply ``load`` to every item on other threads, at most ``ahead`` items early.

    Args:
        size_of: bytes of a result; by default only ``ahead`` bounds the memory.
        max_bytes: no item is begun early while results of so many bytes wait to be taken. Each thread may go over
            it by the one result that it is at.

    Yields:
        Each item in order, with its result or with the UnreadableImageError that ``load`` raised. Any other
        exception is raised at its item.
    """
    window = _Window(max_bytes)

    def attempt(number: int, item: Item) -> tuple[Result | UnreadableImageError, int]:
        window.wait_for_room(number)
        try:
            result = load(item)
        except UnreadableImageError as error:
            return error, 0
        size = size_of(result)
        window.hold(size)
        return result, size

    with ThreadPoolExecutor(num_threads, thread_name_prefix="images") as pool:
        waiting: deque[tuple[Item, Future[tuple[Result | UnreadableImageError, int]]]] = deque()

        def take() -> tuple[Item, Result | UnreadableImageError]:
            item, future = waiting.popleft()
            result, size = future.result()
            window.release(size)
            return item, result

        try:
            for number, item in enumerate(items):
                waiting.append((item, pool.submit(attempt, number, item)))
                if len(waiting) >= ahead:
                    yield take()
            while waiting:
                yield take()
        finally:
            for _, future in waiting:
                future.cancel()
            window.open()


class _Window:
    """How many bytes of results wait to be taken, and who has to wait for that."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._next = 0
        self._is_open = False
        self._changed = Condition()

    def wait_for_room(self, number: int) -> None:
        """Wait until item ``number`` may be begun. The one that is to be taken next never waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or number <= self._next or self._num_bytes < self._max_bytes)

    def hold(self, size: int) -> None:
        with self._changed:
            self._num_bytes += size

    def release(self, size: int) -> None:
        """A result was taken: the next one may be read."""
        with self._changed:
            self._num_bytes -= size
            self._next += 1
            self._changed.notify_all()

    def open(self) -> None:
        """No result will be taken any more: let all threads go."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()
