"""Images read ahead by threads."""

from __future__ import annotations

import threading
import time

import pytest

from vlmtune.data.prefetch import read_ahead
from vlmtune.errors import UnreadableImageError

pytestmark = pytest.mark.unit


def test_results_come_in_order_though_later_ones_finish_first() -> None:
    def load(item: int) -> int:
        time.sleep(0.01 if item % 2 else 0)
        return item * item

    assert list(read_ahead(load, range(20), num_threads=4, ahead=6)) == [(i, i * i) for i in range(20)]


def test_an_unreadable_image_is_yielded_in_its_place() -> None:
    def load(item: int) -> int:
        if item == 1:
            raise UnreadableImageError("b.png", "cut off")
        return item

    results = [result for _, result in read_ahead(load, range(3))]
    assert results[0] == 0
    assert isinstance(results[1], UnreadableImageError)
    assert results[2] == 2


def test_a_fault_of_the_program_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda item: 1 // item, [1, 0]))


def test_no_more_than_the_window_is_loaded_early() -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return item

    results = read_ahead(load, range(1000), num_threads=2, ahead=8)
    for _ in range(3):
        next(results)
    assert len(loaded) <= 3 + 8


def test_results_that_wait_are_bounded_in_bytes_too() -> None:
    held: list[int] = []
    most = 0

    def load(item: int) -> int:
        nonlocal most
        held.append(item)
        most = max(most, len(held))
        return item

    for item, _ in read_ahead(load, range(50), num_threads=2, ahead=32, size_of=lambda _: 100, max_bytes=400):
        time.sleep(0.002)  # loading is faster than using
        held.remove(item)
    assert 3 <= most <= 4 + 2 + 1  # the bound, one more for each thread, and the one in use


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_results_larger_than_the_bound_pass_one_after_the_other(num_threads: int) -> None:
    found = read_ahead(
        lambda item: item, range(300), num_threads=num_threads, ahead=8, size_of=lambda _: 10, max_bytes=1
    )
    assert [item for item, _ in found] == list(range(300))


def test_who_stops_taking_leaves_no_thread_waiting_for_room() -> None:
    before = threading.active_count()
    found = read_ahead(lambda item: item, range(100), num_threads=3, ahead=16, size_of=lambda _: 10, max_bytes=1)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
