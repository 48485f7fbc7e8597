"""Comparisons pair images by id, refuse what cannot be paired, and say which images and classes changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from tests.synthetic_runs import in_memory, random_table
from vlmtune.errors import DataError
from vlmtune.evaluate.compare import compare, list_flips, same_examples
from vlmtune.evaluate.files import Evaluation, with_distinct_names

pytestmark = pytest.mark.unit


@pytest.fixture
def weak() -> Evaluation:
    return in_memory("weak", random_table(skill=2.0, seed=1))


@pytest.fixture
def strong() -> Evaluation:
    return in_memory("strong", random_table(skill=5.0, seed=2))


def test_a_clear_improvement_is_significant_and_counts_the_flips(weak: Evaluation, strong: Evaluation) -> None:
    result = compare([weak, strong], num_resamples=200)
    (pair,) = result["pairs"]
    right_before, right_after = weak.predictions.correct, strong.predictions.correct
    assert pair["difference"] == pytest.approx(right_after.mean() - right_before.mean())
    assert pair["flipped_to_right"] == list(weak.predictions.ids[right_after & ~right_before])
    cells = [[pair["both_right"], pair["only_first"]], [pair["only_second"], pair["both_wrong"]]]
    assert pair["p_exact"] == pytest.approx(mcnemar(cells, exact=True).pvalue)
    assert sum(map(sum, cells)) == 200
    assert pair["is_significant"]
    assert pair["difference_interval"][0] > 0
    assert pair["bootstrap"]["nll"]["interval"][1] < 0
    assert pair["bootstrap"]["macro_f1"]["interval"][0] > 0


def test_two_models_of_equal_skill_do_not_differ_significantly() -> None:
    a, b = (in_memory(name, random_table(skill=2.0, seed=seed)) for name, seed in (("a", 3), ("b", 4)))
    (pair,) = compare([a, b], num_resamples=100)["pairs"]
    assert not pair["is_significant"]
    assert pair["difference_interval"][0] < 0 < pair["difference_interval"][1]


def test_images_and_labels_in_another_order_change_nothing(weak: Evaluation, strong: Evaluation) -> None:
    table = strong.predictions
    order = np.random.default_rng(0).permutation(len(table))
    new_order = np.arange(9, -1, -1)
    shuffled = table.take(order)
    turned = type(table)(
        labels=tuple(table.labels[i] for i in new_order),
        ids=shuffled.ids,
        images=shuffled.images,
        truth=9 - shuffled.truth,
        prediction=9 - shuffled.prediction,
        log_probs=shuffled.log_probs[:, new_order],
        seconds=shuffled.seconds,
        errors=shuffled.errors,
    )
    straight = compare([weak, strong], num_resamples=50)["pairs"]
    other = compare([weak, Evaluation(strong.facts, turned)], num_resamples=50)["pairs"]
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
            lambda t: replace(t, labels=(*t.labels[:9], "ten")),
            ["1 only in 'weak' (nine)", "'other' (ten)", "label sets"],
        ),
        (lambda t: random_table(skill=5.0, data_seed=1), ["different true labels", "test/0000"]),
    ],
)
def test_evaluations_of_different_examples_are_refused_with_names(weak: Evaluation, change, words: list[str]) -> None:
    second = in_memory("other", change(weak.predictions))
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


def test_argmax_evaluations_compare_without_probability_figures() -> None:
    a, b = (in_memory(n, random_table(seed=s, has_probabilities=False)) for n, s in (("a", 1), ("b", 2)))
    assert set(compare([a, b], num_resamples=20)["pairs"][0]["bootstrap"]) == {
        "macro_f1",
        "weighted_f1",
        "balanced_accuracy",
    }


def test_flips_name_truth_and_both_answers(weak: Evaluation, strong: Evaluation) -> None:
    strong.predictions.prediction[0] = -1
    weak.predictions.prediction[0] = weak.predictions.truth[0]
    flips = list_flips([weak, strong])
    (pair,) = compare([weak, strong], num_resamples=20)["pairs"]
    by_end = {end: [flip["id"] for flip in flips if flip["became"] == end] for end in ("right", "wrong")}
    assert by_end == {"right": pair["flipped_to_right"], "wrong": pair["flipped_to_wrong"]}
    assert flips[0]["id"] == weak.predictions.ids[0]
    assert flips[0]["truth"] == flips[0]["first"] and flips[0]["second"] is None
    assert all(flip["truth"] == flip["second" if flip["became"] == "right" else "first"] for flip in flips)
