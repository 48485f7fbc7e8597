"""Pictures read ahead by threads."""

from __future__ import annotations

import time

import pytest

from vlmtune.data.loading import read_ahead
from vlmtune.errors import UnreadableImageError

pytestmark = pytest.mark.unit


def test_results_come_in_order_though_later_ones_finish_first() -> None:
    def load(item: int) -> int:
        time.sleep(0.01 if item % 2 else 0)
        return item * item

    assert list(read_ahead(load, range(20), num_threads=4, ahead=6)) == [(i, i * i) for i in range(20)]


def test_an_unreadable_picture_is_yielded_in_its_place() -> None:
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
