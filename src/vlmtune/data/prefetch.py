"""Images read ahead of their use by a few threads, in order; an unreadable one yields its error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

from vlmtune.errors import UnreadableImageError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Approximate limit on results not yet taken: images of many tiles take 30 MiB each, and 64 of them would be 2 GiB.
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
        max_bytes: no item is started early while this many bytes of results wait. Each thread may exceed
            it by its current result.

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
    """The bytes of results waiting to be taken; threads wait for room in it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._next = 0
        self._is_open = False
        self._changed = Condition()

    def wait_for_room(self, number: int) -> None:
        """Wait until item ``number`` may start. The next one to be taken never waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or number <= self._next or self._num_bytes < self._max_bytes)

    def hold(self, size: int) -> None:
        with self._changed:
            self._num_bytes += size

    def release(self, size: int) -> None:
        """Make room: a result was taken."""
        with self._changed:
            self._num_bytes -= size
            self._next += 1
            self._changed.notify_all()

    def open(self) -> None:
        """Release all threads: no more results will be taken."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()
