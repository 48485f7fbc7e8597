"""A prediction table knows the labels, the images and the questions of its rows, and refuses what does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.synthetic_runs import answered, random_table, table_of
from vlmtune.errors import DataError
from vlmtune.evaluate.table import AnswerSpace, PredictionTable, top_positions
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit


def question(number: int, image: int, *answers: str) -> Example:
    return Example(str(number), ImageSource(data=b""), answers, f"{number}?", image_id=str(image))


def test_the_truth_is_what_most_annotators_said_among_the_labels() -> None:
    given = (("red", "blue", "blue"), ("blue", "red"), ("grey", "grey", "red"), ("grey",), (" dark  red ", "grey"), ())
    examples = [question(number, number, *answers) for number, answers in enumerate(given)]
    table = answered(examples, ["red"] * 6, ("red", "blue", "dark red"))
    assert table.closed is not None and table.closed.truth.tolist() == [1, 1, 0, -1, 2, -1]
    assert table.known.tolist() == [True] * 5 + [False]


def test_unreadable_scores_zero_and_unknown_truth_none() -> None:
    table = answered([question(1, 1, *["yes"] * 10), question(2, 2)], [None, "yes"])
    assert table.score[0] == 0 and np.isnan(table.score[1])
    assert table.readable.tolist() == [False, True] and table.correct.tolist() == [False, False]


def test_rows_about_one_image_are_a_cluster() -> None:
    table = answered([question(n, n // 2, "yes") for n in range(4)], ["yes"] * 4)
    assert table.clusters is not None and table.clusters.tolist() == [0, 0, 1, 1] and table.num_images == 2
    assert table.take(np.array([0, 2])).clusters is None, "every row is then an image of its own"
    assert random_table(num=5).clusters is None


def test_labels_in_another_order_change_positions_alone() -> None:
    table = random_table(num=30, num_unreadable=2)
    turned = table.with_labels(table.labels[::-1])
    before, after = table.closed, turned.closed
    assert after.labels == before.labels[::-1]
    assert (after.truth == 9 - before.truth).all()
    np.testing.assert_array_equal(after.log_probs, before.log_probs[:, ::-1])
    assert turned.texts("prediction") == table.texts("prediction")


def test_a_prediction_outside_the_labels_is_refused() -> None:
    table = random_table(num=5)
    with pytest.raises(DataError, match=r"prediction '.*' of 'test/00000\d' is not among the 2 labels: zero, one"):
        _ = replace(table, spaces={"question": AnswerSpace("choice", ("zero", "one"))}).closed


def test_probabilities_that_do_not_fit_the_labels_are_refused() -> None:
    table = random_table(num=5)
    wider = replace(table, spaces={"question": AnswerSpace("choice", (*table.labels, "ten"))})
    with pytest.raises(DataError, match="row 1: log_probs do not have 11 values"):
        _ = wider.closed
    log_probs = table.rows["log_probs"].to_pylist()
    columns = {name: table.texts(name) for name in ("id", "truth", "prediction", "score")}
    some = PredictionTable.from_columns(table.spaces, **columns, log_probs=[None, *log_probs[1:]])
    with pytest.raises(DataError, match="some readable images have probabilities and others have none"):
        _ = some.closed


def test_groups_are_of_measured_rows_the_most_frequent_first() -> None:
    types = ["b", "a", "a", None, "b", "a"]
    examples = [replace(question(n, n, "yes"), answer_type=each) for n, each in enumerate(types)]
    examples.append(replace(question(9, 9), answer_type="c"))
    groups = answered(examples, ["yes"] * 7).groups("answer_type")
    rows = {name: np.flatnonzero(group).tolist() for name, group in groups.items()}
    assert rows == {"a": [1, 2, 5], "b": [0, 4], "": [3]}
    assert list(groups) == ["a", "b", ""]


def test_an_open_answer_has_no_labels() -> None:
    table = answered([question(1, 1, "yes")], ["yes"])
    assert table.labels is None and table.closed is None


def test_top_positions_break_ties_by_label_order() -> None:
    log_probs = np.log(np.array([[0.2, 0.4, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]], dtype=np.float32))
    assert top_positions(log_probs, 2).tolist()[0][0] == 1
    assert top_positions(log_probs, 9).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]


def test_a_table_of_positions_scores_what_is_equal() -> None:
    assert table_of(np.array([0, 1]), np.array([0, -1]), ("a", "b")).score.tolist() == [1.0, 0.0]
