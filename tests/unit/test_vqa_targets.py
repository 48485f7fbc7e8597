"""Targets of VQA training: all annotators are followed once a round, the same after a resume."""

from __future__ import annotations

from collections import Counter

import pytest

from vlmtune.data.vqa_targets import choose_target, usable_answers
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit

TEN = tuple(f"answer {i}" for i in range(10))


def question(*answers: str, id_: str = "1") -> Example:
    return Example(id_, ImageSource(data=b""), answers, "what?")


def test_ten_epochs_follow_every_annotator_once_and_the_next_ten_in_another_order() -> None:
    drawn = [choose_target(question(*TEN), "sample", 0, epoch) for epoch in range(20)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(TEN)
    assert drawn[:10] != drawn[10:]


def test_the_draw_depends_on_seed_and_question() -> None:
    first = [choose_target(question(*TEN), "sample", 0, epoch) for epoch in range(10)]
    assert first == [choose_target(question(*TEN), "sample", 0, epoch) for epoch in range(10)]
    assert first != [choose_target(question(*TEN), "sample", 1, epoch) for epoch in range(10)]
    assert first != [choose_target(question(*TEN, id_="2"), "sample", 0, epoch) for epoch in range(10)]


def test_in_one_epoch_over_many_questions_answers_come_as_often_as_they_were_given() -> None:
    counts = Counter(
        choose_target(question(*["yes"] * 7, *["no"] * 3, id_=str(i)), "sample", 0, epoch=3) for i in range(2000)
    )
    assert abs(counts["yes"] / 2000 - 0.7) < 0.04


def test_majority_takes_the_most_frequent_answer_and_the_first_of_equals() -> None:
    assert choose_target(question("a", "b", "b"), "majority", 0, 0) == "b"
    assert choose_target(question("b", "a", "a", "b"), "majority", 0, 5) == "b"


def test_targets_of_a_closed_list_are_in_it() -> None:
    closed = frozenset({"yes", "dark blue"})
    example = question("blue", "dark  blue\n", "navy", "yes")
    assert {choose_target(example, "sample", 0, epoch, closed) for epoch in range(4)} == closed
    with pytest.raises(DataError, match=r"none of its 1 answers is in task\.labels"):
        choose_target(question("blue"), "sample", 0, 0, closed)


def test_empty_answers_are_never_learned() -> None:
    assert usable_answers([" ", "", "red\n"]) == ["red"]
    with pytest.raises(DataError, match="none of its 2 answers is with any text"):
        choose_target(question("", " "), "majority", 0, 0)
