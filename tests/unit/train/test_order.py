"""The learning rate and the order of examples follow from numbers alone."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmtune.train.optimizer import learning_rate_factor
from vlmtune.train.order import Order, epoch_order, grouped_order

pytestmark = pytest.mark.unit


def test_warmup_is_full_and_cosine_ends_near_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.1, "cosine") for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001


def test_linear_and_constant_schedules() -> None:
    assert learning_rate_factor(50, 100, 0.0, "linear") == pytest.approx(0.5)
    assert learning_rate_factor(99, 100, 0.0, "constant") == 1.0


@given(st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_sees_each_example_once(num: int, seed: int) -> None:
    taken = list(Order(num, seed).slots(0, 3 * num))
    for epoch in range(3):
        seen = [place.example for place in taken if place.epoch == epoch]
        assert sorted(seen) == list(range(num))
        assert seen == epoch_order(num, seed, epoch)


@given(st.integers(1, 30), st.integers(0, 60), st.integers(0, 20))
def test_starting_late_continues_the_same_order(num: int, first: int, count: int) -> None:
    order = Order(num, 3)
    assert list(order.slots(first, count)) == list(order.slots(0, first + count))[first:]


def test_another_seed_or_epoch_is_another_order() -> None:
    assert epoch_order(50, 0, 0) != epoch_order(50, 1, 0)
    assert epoch_order(50, 0, 0) != epoch_order(50, 0, 1)


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), st.integers(0, 3), st.integers(0, 3))
def test_questions_about_one_image_stand_together_in_every_epoch(groups: list[str], seed: int, epoch: int) -> None:
    order = grouped_order(groups, seed, epoch)
    assert sorted(order) == list(range(len(groups)))
    seen = [key for key, _ in groupby(groups[place] for place in order)]
    assert len(seen) == len(set(groups))
    assert order == grouped_order(groups, seed, epoch)


def test_every_pass_has_another_order() -> None:
    groups = [str(number // 4) for number in range(80)]
    first, second = grouped_order(groups, 0, 0), grouped_order(groups, 0, 1)
    assert [groups[i] for i in first[::4]] != [groups[i] for i in second[::4]]
    assert any(sorted(first[i : i + 4]) != first[i : i + 4] for i in range(0, 80, 4))
