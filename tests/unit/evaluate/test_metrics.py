"""Figures equal scikit-learn's; an unreadable image never leaves the denominator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from tests.synthetic_runs import answered, random_table, table_of
from vlmtune.evaluate.metrics import confidences, filled_levels, measure, reliability_bins, risk_coverage
from vlmtune.evaluate.statistics import wilson_interval
from vlmtune.evaluate.table import ClosedAnswers, PredictionTable
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit

# log_probs are stored in float32, scikit-learn sums in float64.
TOLERANCE = 2e-6
tables = st.builds(
    random_table,
    num=st.integers(8, 80),
    num_labels=st.integers(2, 8),
    skill=st.floats(0, 5),
    seed=st.integers(0, 10_000),
    data_seed=st.integers(0, 10_000),
)


def closed_of(table: PredictionTable) -> ClosedAnswers:
    assert table.closed is not None
    return table.closed


@settings(max_examples=40, deadline=None)
@given(tables)
def test_figures_equal_scikit_learn(table) -> None:
    figures = measure(table)
    closed, labels = closed_of(table), np.arange(len(table.labels))
    truth, guess = closed.truth, closed.prediction
    probs = softmax(closed.log_probs.astype(np.float64), axis=1)
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert figures["macro_f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro", zero_division=0))
    assert figures["weighted_f1"] == pytest.approx(sk.f1_score(truth, guess, average="weighted", zero_division=0))
    recalls = sk.recall_score(truth, guess, labels=np.unique(truth), average=None, zero_division=0)
    assert figures["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert figures["confusion"] == sk.confusion_matrix(truth, guess, labels=labels).tolist()
    assert figures["nll"] == pytest.approx(sk.log_loss(truth, probs, labels=labels), abs=TOLERANCE)
    brier = sk.brier_score_loss(truth, probs if len(labels) > 2 else probs[:, 1], labels=labels, scale_by_half=False)
    assert figures["brier"] == pytest.approx(brier, abs=TOLERANCE)
    if len(labels) > 3:
        top3 = sk.top_k_accuracy_score(truth, closed.log_probs, k=3, labels=labels)
        assert figures["top_k"]["3"] == pytest.approx(top3)
    json.dumps(figures, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(1, 6))
def test_unreadable_images_count_as_errors(table, num_unreadable) -> None:
    closed = closed_of(table)
    truth, guess, log_probs = closed.truth, closed.prediction.copy(), closed.log_probs.copy()
    guess[:num_unreadable] = -1
    log_probs[:num_unreadable] = np.nan
    figures = measure(table_of(truth, guess, table.labels, log_probs=log_probs))
    present = np.union1d(truth, guess[guess >= 0])
    assert figures["num_examples"] == len(table)
    assert figures["num_unreadable"] == sum(figures["unreadable_by_class"]) == num_unreadable
    # As scikit-learn counts an unknown label.
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    expected = sk.f1_score(truth, guess, labels=present, average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(expected)
    assert figures["top_k"]["1"] == pytest.approx(figures["accuracy"])
    json.dumps(figures, allow_nan=False)


def test_an_unreadable_image_is_a_uniform_guess() -> None:
    one = random_table(num=5, num_labels=10).take(np.array([4]))
    figures, alone = measure(random_table(num=5, num_labels=10, num_unreadable=4)), measure(one)
    assert figures["nll"] == pytest.approx((4 * np.log(10) + alone["nll"]) / 5)
    assert figures["brier"] == pytest.approx((4 * 0.9 + alone["brier"]) / 5)
    assert figures["top_k"]["5"] <= 1 / 5


def test_argmax_mode_has_no_figures_of_probabilities() -> None:
    full, argmax = measure(random_table()), measure(random_table(has_probabilities=False))
    assert argmax["accuracy"] == full["accuracy"]
    assert all(argmax[key] is None for key in ("nll", "brier", "ece", "top_k", "reliability", "risk_coverage", "aurc"))


def test_reliability_bins_equal_scikit_learn_quantile_bins() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(1500)
    correct = rng.random(1500) < confidence
    bins = reliability_bins(confidence, correct, 15)
    right, stated = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    assert [b["accuracy"] for b in bins] == pytest.approx(right, abs=0.011)  # the edge may give a bin one image more
    assert [b["confidence"] for b in bins] == pytest.approx(stated, abs=1e-3)
    assert [b["count"] for b in bins] == [100] * 15


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_calibration_and_risk_do_not_depend_on_order(rows, shuffler) -> None:
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    results = []
    for version in (rows, shuffled):
        confidence, correct = np.array([c for c, _ in version]), np.array([r for _, r in version])
        bins = reliability_bins(confidence, correct)
        results.append(
            (sum(b["count"] for b in bins), [b["accuracy"] for b in bins], risk_coverage(confidence, correct))
        )
    (num, bins_a, risk_a), (_, bins_b, risk_b) = results
    assert num == len(rows)
    assert bins_a == pytest.approx(bins_b)
    assert risk_a == pytest.approx(risk_b)


def test_risk_at_full_coverage_is_the_error_rate() -> None:
    table = random_table(num=2000, skill=3.0)
    risks = risk_coverage(confidences(closed_of(table)), table.correct)
    assert risks[-1] == pytest.approx(1 - measure(table)["accuracy"])
    assert risks[200] < risks[-1] / 2


def test_a_class_in_neither_truth_nor_predictions_changes_nothing() -> None:
    closed = closed_of(random_table(num=60, num_labels=3, skill=20))
    wider = measure(table_of(closed.truth, closed.prediction, (*closed.labels, "never")))
    assert wider["macro_f1"] == 1.0
    assert wider["per_class"][3]["recall"] is None


def question(number: int, image: int, answer: str = "yes", kind: str = "yes/no") -> Example:
    answers = (answer,) * 9 + ("unsure",) if answer else ()
    return Example(str(number), ImageSource(data=b""), answers, f"{number}?", "is", kind, str(image))


def test_figures_of_open_answers_are_the_public_evaluators() -> None:
    examples = [question(1, 1), question(2, 1), question(3, 2, "2", "number"), question(4, 3, "2", "number")]
    figures = measure(answered(examples, ["Yes.", "no", "two", None]))
    assert figures["accuracy"] == 0.5 and figures["num_unreadable"] == 1
    assert {entry["name"]: entry["accuracy"] for entry in figures["by_answer_type"]} == {"number": 0.5, "yes/no": 0.5}
    assert [entry["num"] for entry in figures["by_answer_type"]] == [2, 2]
    assert (figures["num_images"], figures["num_measured"]) == (3, 4)
    low, high = figures["accuracy_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert figures["per_class"] is None and figures["nll"] is None, "open answers have no classes"


def test_questions_without_answers_are_not_measured() -> None:
    figures = measure(answered([question(1, 1, ""), question(2, 1)], ["yes", "yes"]))
    assert (figures["num_examples"], figures["num_measured"], figures["accuracy"]) == (2, 1, 1.0)
    assert measure(answered([question(1, 1, "")], ["yes"]))["accuracy"] is None


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_equal_answers_have_an_interval_that_narrows_with_images(answer: str) -> None:
    widths = []
    for num in (12, 120):
        figures = measure(answered([question(i, i // 3) for i in range(num)], [answer] * num))
        low, high = figures["accuracy_interval"]
        assert (low, high) == tuple(map(float, wilson_interval(figures["accuracy"] * num // 3, num // 3)))
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_closed_answers_have_class_and_probability_figures() -> None:
    examples = [question(1, 1, "yes"), question(2, 1, "no"), question(3, 2, "maybe"), question(4, 2, "no")]
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.8, 0.2]], np.float32)
    figures = measure(answered(examples, ["yes", "no", "yes", "yes"], ("yes", "no"), log_probs=np.log(probs)))
    assert figures["accuracy"] == pytest.approx(0.5) and figures["num_outside_labels"] == 1
    assert figures["confusion"] == [[1, 0], [1, 1]], "an answer outside the labels is of no class"
    assert figures["nll"] == pytest.approx(-np.log([0.9, 0.6, 0.2]).mean())
    assert figures["top_k"] == {"1": 0.5}, "but it stays in the denominator"
    assert figures["mean_confidence"] == pytest.approx(probs.max(axis=1).mean())
    json.dumps(figures, allow_nan=False)


def test_yes_has_its_own_precision_and_recall() -> None:
    truth, guess = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 1, 1, 0, -1])
    yes = measure(table_of(truth, guess, ("no", "yes"), "bool"))["yes"]
    assert (yes["precision"], yes["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    assert yes["f1"] == pytest.approx(sk.f1_score(truth == 1, guess == 1))
    assert measure(table_of(truth, guess, ("no", "yes")))["yes"] is None


def test_levels_have_error_and_kappa_with_intervals() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 300)
    guess = np.clip(truth + rng.integers(-1, 2, 300), 0, 4)
    figures = measure(table_of(truth, guess, tuple("12345"), "score"))
    assert figures["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(truth, guess))
    kappa = sk.cohen_kappa_score(truth, guess, weights="quadratic")
    assert figures["quadratic_weighted_kappa"] == pytest.approx(kappa)
    for key in ("mean_absolute_error", "quadratic_weighted_kappa"):
        low, high = figures[f"{key}_interval"]
        assert low < figures[key] < high
    assert measure(table_of(truth, guess, tuple("12345")))["mean_absolute_error"] is None


def test_an_unreadable_image_is_the_level_farthest_from_the_truth() -> None:
    table = table_of(np.array([0, 1, 2, 3, 4]), np.array([-1, -1, -1, -1, 4]), tuple("12345"), "score")
    assert filled_levels(closed_of(table)).tolist() == [4, 4, 4, 0, 4]
    assert measure(table)["mean_absolute_error"] == pytest.approx((4 + 3 + 2 + 3 + 0) / 5)


def test_several_questions_are_measured_each_and_together() -> None:
    one = table_of(np.array([0, 1]), np.array([0, 0]), ("a", "b"))
    other = table_of(np.array([0, 1]), np.array([0, 1]), ("no", "yes"), "bool")
    import pyarrow as pa

    rows = [part.rows.set_column(1, "question_id", pa.array([name] * 2)) for name, part in (("x", one), ("y", other))]
    both = PredictionTable(
        pa.concat_tables(rows), {"x": one.space, "y": other.space}, np.concatenate([one.seconds, other.seconds])
    )
    figures = measure(both)
    assert (figures["accuracy"], figures["num_examples"], figures["num_images"]) == (0.75, 4, 2)
    assert figures["per_class"] is None
    by_question = {entry["question_id"]: entry for entry in figures["by_question"]}
    assert {name: entry["accuracy"] for name, entry in by_question.items()} == {"x": 0.5, "y": 1.0}
    assert by_question["y"]["yes"]["recall"] == 1.0
