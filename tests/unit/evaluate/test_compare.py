"""Comparisons pair images by id, refuse what cannot be paired, and say which images and classes changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from tests.synthetic_runs import answered, in_memory, random_table, table_of
from vlmtune.errors import DataError
from vlmtune.evaluate.compare import compare, list_flips, same_examples
from vlmtune.evaluate.files import Evaluation, with_distinct_names
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.table import AnswerSpace
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit


@pytest.fixture
def weak() -> Evaluation:
    return in_memory("weak", random_table(skill=2.0, seed=1))


@pytest.fixture
def strong() -> Evaluation:
    return in_memory("strong", random_table(skill=5.0, seed=2))


def test_a_clear_improvement_is_significant(weak: Evaluation, strong: Evaluation) -> None:
    result = compare([weak, strong], num_resamples=200)
    (pair,) = result["pairs"]
    right_before, right_after = weak.predictions.correct, strong.predictions.correct
    assert pair["difference"] == pytest.approx(right_after.mean() - right_before.mean())
    assert pair["flipped_to_right"] == weak.predictions.take(right_after & ~right_before).ids
    cells = [[pair["both_right"], pair["only_first"]], [pair["only_second"], pair["both_wrong"]]]
    assert pair["p_exact"] == pytest.approx(mcnemar(cells, exact=True).pvalue)
    assert sum(map(sum, cells)) == 200
    assert pair["is_significant"]
    assert pair["difference_interval"][0] > 0
    assert pair["bootstrap"]["nll"]["interval"][1] < 0
    assert pair["bootstrap"]["macro_f1"]["interval"][0] > 0


def test_models_of_equal_skill_do_not_differ_significantly() -> None:
    a, b = (in_memory(name, random_table(skill=2.0, seed=seed)) for name, seed in (("a", 3), ("b", 4)))
    (pair,) = compare([a, b], num_resamples=100)["pairs"]
    assert not pair["is_significant"]
    assert pair["difference_interval"][0] < 0 < pair["difference_interval"][1]


def test_images_and_labels_in_another_order_change_nothing(weak: Evaluation, strong: Evaluation) -> None:
    table = strong.predictions
    turned = table.take(np.random.default_rng(0).permutation(len(table))).with_labels(table.labels[::-1])
    straight = compare([weak, strong], num_resamples=50)["pairs"]
    other = compare([weak, replace(strong, predictions=turned)], num_resamples=50)["pairs"]
    assert straight == other


def test_holm_adjusts_over_all_pairs(weak: Evaluation, strong: Evaluation) -> None:
    third = in_memory("third", random_table(skill=2.3, seed=5))
    pairs = compare([weak, third, strong], num_resamples=50)["pairs"]
    assert [(p["first"], p["second"]) for p in pairs] == [("weak", "third"), ("weak", "strong"), ("third", "strong")]
    assert all(p["p_holm"] >= p["p_value"] for p in pairs)
    assert max(p["p_holm"] / p["p_value"] for p in pairs) == pytest.approx(3)


def test_classes_gained_and_lost_add_up_to_the_difference(weak: Evaluation, strong: Evaluation) -> None:
    (pair,) = compare([weak, strong], num_resamples=50)["pairs"]
    changes = [*pair["classes_gained"], *pair["classes_lost"]]
    assert sum(c["difference"] * c["support"] for c in changes) == pytest.approx(pair["difference"] * 200)
    assert all(c["difference"] < 0 for c in pair["classes_lost"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.take(np.arange(190)), ["10 only in 'weak'", "test/000190", "same split"]),
        (
            lambda t: replace(t, spaces={"question": AnswerSpace("choice", (*t.labels[:9], "ten"))}),
            ["1 only in 'weak' (nine)", "'other' (ten)", "label sets"],
        ),
        (lambda t: random_table(skill=5.0, data_seed=1), ["true answers", "test/0000"]),
    ],
)
def test_evaluations_of_different_examples_are_refused(weak: Evaluation, change, words: list[str]) -> None:
    second = Evaluation({**weak.facts, "name": "other"}, change(weak.predictions))
    with pytest.raises(DataError) as caught:
        compare([weak, second])
    assert all(word in str(caught.value) for word in words), caught.value
    assert not same_examples(weak, second)


def test_one_evaluation_or_equal_names_are_refused(weak: Evaluation) -> None:
    with pytest.raises(DataError, match="two or more"):
        compare([weak])
    with pytest.raises(DataError, match="same name: weak"):
        compare([weak, weak])


def test_equal_names_become_the_names_of_the_runs(tmp_path) -> None:
    table = random_table(num=5)
    places = [tmp_path / run / "evaluation" / "test-fine-tuned" for run in ("one", "two")]
    same = [Evaluation({"name": "fine-tuned"}, table, {}, place) for place in places]
    assert [e.name for e in with_distinct_names(same)] == ["one", "two"]
    elsewhere = [replace(e, folder=tmp_path / f"{n}" / "run" / "evaluation" / "x") for n, e in enumerate(same)]
    assert [e.name for e in with_distinct_names(elsewhere)] == ["0", "1"]
    deeper = [elsewhere[0], replace(same[1], folder=tmp_path / "0" / "0" / "run" / "evaluation" / "x")]
    assert len({e.name for e in with_distinct_names(deeper)}) == 2
    in_one_run = [Evaluation({"name": "x"}, table, {}, tmp_path / "run" / "evaluation" / n) for n in ("a", "b")]
    assert [e.name for e in with_distinct_names(in_one_run)] == ["run/a", "run/b"]


def test_argmax_evaluations_compare_without_probabilities() -> None:
    a, b = (in_memory(n, random_table(seed=s, has_probabilities=False)) for n, s in (("a", 1), ("b", 2)))
    assert set(compare([a, b], num_resamples=20)["pairs"][0]["bootstrap"]) == {
        "macro_f1",
        "weighted_f1",
        "balanced_accuracy",
    }


def test_flips_name_truth_and_both_answers(weak: Evaluation, strong: Evaluation) -> None:
    unread, wrong = (np.array(each.predictions.closed.prediction) for each in (strong, weak))  # type: ignore[union-attr]
    truth = weak.predictions.closed.truth  # type: ignore[union-attr]
    unread[0], wrong[0] = -1, truth[0]
    pair_of = [
        in_memory(name, table_of(truth, guess, weak.predictions.labels))  # type: ignore[arg-type]
        for name, guess in (("weak", wrong), ("strong", unread))
    ]
    flips = list_flips(pair_of)
    (pair,) = compare(pair_of, num_resamples=20)["pairs"]
    by_change = {change: [flip["id"] for flip in flips if flip["change"] == change] for change in (1.0, -1.0)}
    assert by_change == {1.0: pair["flipped_to_right"], -1.0: pair["flipped_to_wrong"]}
    assert flips[0]["id"] == weak.predictions.ids[0]
    assert flips[0]["truth"] == [flips[0]["first"]] and flips[0]["second"] is None
    assert all(flip["truth"] == [flip["second" if flip["change"] > 0 else "first"]] for flip in flips)


# --- questions from the data


def question(number: int, image: int, answer: str = "yes", kind: str = "yes/no") -> Example:
    return Example(
        str(number), ImageSource(data=b""), (answer,) * 9 + ("unsure",), f"{number}?", "is", kind, str(image)
    )


def many(num: int = 120) -> list[Example]:
    return [question(i, i // 3, "yes", ("yes/no", "other")[i % 2]) for i in range(num)]


def evaluation(
    name: str, examples: list[Example], answers: list[Any], labels: tuple[str, ...] | None = None
) -> Evaluation:
    return in_memory(name, answered(examples, answers, labels))


@pytest.mark.parametrize("labels", [None, ("yes", "no")])
def test_questions_are_paired_whatever_their_order(labels: tuple[str, ...] | None) -> None:
    examples = many()
    answers = ["yes" if i % 4 else "no" for i in range(len(examples))]
    first = evaluation("base", examples, answers, labels)
    second = evaluation("tuned", examples[::-1], ["yes"] * len(examples), labels)
    (pair,) = compare([first, second], num_resamples=500)["pairs"]
    assert pair["difference"] == pytest.approx(0.25) and pair["is_significant"] and pair["test"] == "sign-flip"
    assert (pair["num_better"], pair["num_worse"]) == (30, 0)
    low, high = pair["difference_interval"]
    assert 0 < low < 0.25 < high
    assert {entry["name"]: entry["difference"] for entry in pair["by_answer_type"]} == {
        "yes/no": pytest.approx(0.5), "other": pytest.approx(0.0),
    }  # fmt: skip
    assert [change["label"] for change in pair["classes_gained"]] == (["yes"] if labels else [])


def test_unchanged_answers_have_an_interval_that_narrows_with_images() -> None:
    widths = []
    for num in (12, 120):
        pair = compare([evaluation(name, many(num), ["yes"] * num) for name in "ab"])["pairs"][0]
        low, high = pair["difference_interval"]
        assert low < 0 < high and pair["p_value"] == 1.0
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_evaluations_of_other_questions_are_refused() -> None:
    examples = many()
    first = evaluation("base", examples, ["yes"] * 120)
    with pytest.raises(DataError, match=r"different examples: 1 only in 'base' \(119\)"):
        compare([first, evaluation("tuned", examples[:-1], ["yes"] * 119)])
    changed = [replace(examples[0], answers=("no",) * 10), *examples[1:]]
    with pytest.raises(DataError, match="different questions or true answers for 1 examples: 0"):
        compare([first, evaluation("tuned", changed, ["yes"] * 120)])


def test_open_and_closed_answers_to_the_same_questions_compare() -> None:
    open_answers = evaluation("open", many(), ["yes", "no"] * 60)
    closed = evaluation("closed", many(), ["yes"] * 120, ("yes", "no"))
    (pair,) = compare([open_answers, closed], num_resamples=100)["pairs"]
    assert pair["difference"] == pytest.approx(0.5) and pair["bootstrap"] == {}


def test_questions_whose_answers_are_not_known_are_left_out() -> None:
    examples = [*many(), replace(question(200, 200), answers=())]
    runs = [evaluation(name, examples, [answer] * 121) for name, answer in (("a", "no"), ("b", "yes"))]
    result = compare(runs, num_resamples=50)
    assert result["num_examples"] == 120 and result["pairs"][0]["num_better"] == 120
    unknown = [evaluation(name, examples[-1:], ["yes"]) for name in "ab"]
    with pytest.raises(DataError, match="not known"):
        compare(unknown)
    assert not same_examples(*unknown)


def test_levels_are_compared_by_error_and_kappa() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 200)
    near, far = np.clip(truth + rng.integers(0, 2, 200), 0, 4), rng.integers(0, 5, 200)
    runs = [
        in_memory(name, table_of(truth, guess, tuple("12345"), "score"))
        for name, guess in (("far", far), ("near", near))
    ]
    bootstrap = compare(runs, num_resamples=200)["pairs"][0]["bootstrap"]
    assert bootstrap["mean_absolute_error"]["interval"][1] < 0 < bootstrap["quadratic_weighted_kappa"]["interval"][0]
    change = measure(runs[1].predictions)["mean_absolute_error"] - measure(runs[0].predictions)["mean_absolute_error"]
    assert bootstrap["mean_absolute_error"]["difference"] == pytest.approx(change)
