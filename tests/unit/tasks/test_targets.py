"""What an example teaches: annotators in turn, exact label smoothing, class weights as torch has them, mixtures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmtune.config.schema import TaskSection, TrainSection
from vlmtune.errors import DataError, UserError
from vlmtune.records import Example, ImageSource, LabelSet
from vlmtune.tasks.question import Question, Task
from vlmtune.tasks.targets import EXACT_LABELS, NUM_DRAWN, Targets, balanced_weights, choose_answer, mix
from vlmtune.train.order import Order, balanced_order

pytestmark = pytest.mark.unit

TEN = tuple(f"answer {i}" for i in range(10))


def label_set(num: int) -> LabelSet:
    stored = tuple(f"s{number}" for number in range(num))
    return LabelSet(stored, tuple((f"shown {label}", f"other {label}") for label in stored))


def example(label: str) -> Example:
    return Example(label, ImageSource(data=b"", name=label), (label,))


def targets_of(labels: LabelSet, smoothing: float = 0.0, weights: dict[str, float] | None = None) -> Targets:
    targets = Targets(Task.of(TaskSection(), labels), TrainSection(label_smoothing=smoothing), 0, [])
    targets.class_weights = {"": weights or {}}
    return targets


def loss_of(answers: dict[str, float], log_probs: torch.Tensor, labels: LabelSet) -> float:
    """What the tree's loss would be, were each label's sequence this likely."""
    place = {forms[0]: index for index, forms in enumerate(labels.shown)}
    return -sum(weight * float(log_probs[place[text]]) for text, weight in answers.items())


@given(num=st.integers(2, EXACT_LABELS), smoothing=st.floats(0, 0.9), seed=st.integers(0, 99), weighted=st.booleans())
def test_smoothing_of_a_small_label_set_is_torchs_cross_entropy(
    num: int, smoothing: float, seed: int, weighted: bool
) -> None:
    labels = label_set(num)
    logits = torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.arange(1, num + 1, dtype=torch.float64) / num if weighted else torch.ones(num, dtype=torch.float64)
    truth = seed % num
    targets = targets_of(labels, smoothing, dict(zip(labels.stored, weights.tolist(), strict=True)))
    answers = targets.of(example(f"s{truth}"), 0, np.random.default_rng(seed))
    expected = torch.nn.functional.cross_entropy(
        logits[None], torch.tensor([truth]), weight=weights, label_smoothing=smoothing, reduction="sum"
    )
    assert loss_of(answers, logits.log_softmax(0), labels) == pytest.approx(float(expected), rel=1e-9)


def test_sampled_smoothing_is_exact_in_expectation() -> None:
    num, smoothing = 40, 0.3
    labels = label_set(num)
    log_probs = torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(0)
    targets = targets_of(labels, smoothing)
    draws = [targets.of(example("s7"), 0, np.random.default_rng(seed)) for seed in range(4000)]
    assert all(len(answers) == 1 + NUM_DRAWN for answers in draws)
    assert all(sum(answers.values()) == pytest.approx(1) for answers in draws)
    losses = np.array([loss_of(answers, log_probs, labels) for answers in draws])
    exact = -(1 - smoothing) * float(log_probs[7]) - smoothing / num * float(log_probs.sum())
    assert losses.std() > 0
    assert abs(losses.mean() - exact) < 4 * losses.std() / np.sqrt(len(losses))


def asked(*answers: str, id_: str = "1") -> Example:
    return Example(id_, ImageSource(data=b""), answers, "what?")


def opened() -> Question:
    return Task.of(TaskSection(type="text"), None).questions[0]


def test_each_round_of_epochs_follows_every_annotator_once() -> None:
    drawn = [choose_answer(opened(), asked(*TEN), "sample", 0, epoch) for epoch in range(20)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(TEN)
    assert drawn[:10] != drawn[10:]


def test_the_drawn_answer_depends_on_seed_and_question() -> None:
    first = [choose_answer(opened(), asked(*TEN), "sample", 0, epoch) for epoch in range(10)]
    assert first == [choose_answer(opened(), asked(*TEN), "sample", 0, epoch) for epoch in range(10)]
    assert first != [choose_answer(opened(), asked(*TEN), "sample", 1, epoch) for epoch in range(10)]
    assert first != [choose_answer(opened(), asked(*TEN, id_="2"), "sample", 0, epoch) for epoch in range(10)]


def test_answers_are_drawn_as_often_as_given() -> None:
    examples = [asked(*["yes"] * 7, *["no"] * 3, id_=str(i)) for i in range(2000)]
    counts = Counter(choose_answer(opened(), example, "sample", 0, epoch=3) for example in examples)
    assert abs(counts["yes"] / 2000 - 0.7) < 0.04


def test_majority_takes_the_first_of_equal_answers() -> None:
    assert choose_answer(opened(), asked("a", "b", "b"), "majority", 0, 0) == "b"
    assert choose_answer(opened(), asked("b", "a", "a", "b"), "majority", 0, 5) == "b"


def test_targets_of_a_closed_set_are_in_it() -> None:
    (closed,) = Task.of(TaskSection(question_from="data"), LabelSet.build(["yes", "dark blue"])).questions
    example = asked("blue", "dark  blue\n", "navy", "yes")
    assert {choose_answer(closed, example, "sample", 0, epoch) for epoch in range(4)} == {"yes", "dark blue"}
    with pytest.raises(DataError, match=r"none of its 1 answers is in the label set"):
        choose_answer(closed, asked("blue"), "sample", 0, 0)


def test_empty_answers_are_never_learned() -> None:
    assert choose_answer(opened(), asked(" ", "", "red\n"), "sample", 0, 0) == "red"
    with pytest.raises(DataError, match="none of its 2 answers is with any text"):
        choose_answer(opened(), asked("", " "), "majority", 0, 0)


def test_without_smoothing_there_is_one_branch_of_the_first_form() -> None:
    assert targets_of(label_set(3)).of(example("s1"), 0, np.random.default_rng(0)) == {"shown s1": 1.0}


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    names = ["a"] * 7 + ["b"] * 2 + ["c"]
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=np.array(names))
    task = Task.of(TaskSection(), LabelSet.build("abc"))
    weights = balanced_weights(task, [example(name) for name in names], "sample")[""]
    assert list(weights.values()) == pytest.approx(list(expected))


def test_annotators_share_an_example_in_class_weights() -> None:
    task = Task.of(TaskSection(question_from="data"), LabelSet.build(["no", "yes"]))
    examples = [asked("yes", "yes", "no", "maybe"), asked("no")]
    assert balanced_weights(task, examples, "sample") == {"": pytest.approx({"yes": 1.5, "no": 0.75})}
    assert balanced_weights(task, examples, "majority") == {"": pytest.approx({"yes": 1.0, "no": 1.0})}


def test_closed_questions_of_the_data_are_smoothed() -> None:
    task = Task.of(TaskSection(question_from="data"), LabelSet.build(["no", "yes"]))
    targets = Targets(task, TrainSection(label_smoothing=0.2, class_weights="balanced"), 0, [asked("no"), asked("yes")])
    assert targets.of(asked("yes"), 0, np.random.default_rng(0)) == pytest.approx({"yes": 0.9, "no": 0.1})


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}, {"sampling": "balanced"}, {"mixup": 1.0}]
)
def test_open_answers_refuse_closed_options_by_key(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"train\.{next(iter(options))}: needs a closed set"):
        Targets(Task.of(TaskSection(type="text"), None), TrainSection(**options), 0, [])


def test_a_mixture_keeps_the_sum_and_joins_equal_answers() -> None:
    assert mix({"cat": 1.0}, {"dog": 1.0}, 0.25) == {"cat": 0.25, "dog": 0.75}
    assert mix({"cat": 1.0}, {"cat": 1.0}, 0.25) == {"cat": 1.0}
    assert mix({"cat": 1.0}, {"dog": 1.0}, 1.0) == {"cat": 1.0}  # a branch without weight would be run for nothing


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 3))
def test_balanced_sampling_shows_every_label_equally_often(strata: list[str], seed: int, epoch: int) -> None:
    order = balanced_order(strata, seed, epoch)
    assert len(order) == len(strata)
    shown = Counter(strata[place] for place in order)
    assert set(shown) <= set(strata)
    assert max(shown.values()) - min(shown.get(label, 0) for label in strata) <= 1
    for label in set(strata):  # within a label, too, no example comes twice more often than another
        times = Counter(place for place in order if strata[place] == label)
        own = [times[place] for place, stratum in enumerate(strata) if stratum == label]
        assert max(own) - min(own) <= 1


def test_partners_are_drawn_as_the_pass_shows_examples() -> None:
    strata = ["rare"] + ["common"] * 99
    balanced, natural = Order(100, 0, strata), Order(100, 0)
    slot = next(balanced.slots(0, 1))
    draw = np.random.default_rng(0)
    rare = [sum(strata[order.partner(slot, draw)] == "rare" for _ in range(500)) for order in (balanced, natural)]
    assert rare[0] > 200 > 20 > rare[1]


def test_mixed_images_are_asked_the_same_question() -> None:
    alike = ["what color?"] * 3 + ["how many?"] * 2
    order = Order(5, 0, alike=alike)
    draw = np.random.default_rng(0)
    for slot in order.slots(0, 20):
        assert alike[order.partner(slot, draw)] == alike[slot.example]
