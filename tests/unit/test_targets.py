"""What an example teaches: exact label smoothing, class weights as torch has them, mixtures of two."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmtune.records import Example, ImageSource, LabelSet
from vlmtune.train.schedule import Order, balanced_order
from vlmtune.train.targets import EXACT_LABELS, NUM_DRAWN, LabelTargets, balanced_weights, mix

pytestmark = pytest.mark.unit


def label_set(num: int) -> LabelSet:
    stored = tuple(f"s{number}" for number in range(num))
    return LabelSet(stored, tuple((f"shown {label}", f"other {label}") for label in stored))


def example(label: str) -> Example:
    return Example(label, ImageSource(data=b"", name=label), (label,))


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
    targets = LabelTargets(labels, smoothing, dict(zip(labels.stored, weights.tolist(), strict=True)))
    answers = targets.of(example(f"s{truth}"), 0, np.random.default_rng(seed))
    expected = torch.nn.functional.cross_entropy(
        logits[None], torch.tensor([truth]), weight=weights, label_smoothing=smoothing, reduction="sum"
    )
    assert loss_of(answers, logits.log_softmax(0), labels) == pytest.approx(float(expected), rel=1e-9)


def test_smoothing_of_a_large_label_set_has_the_exact_loss_in_expectation() -> None:
    num, smoothing = 40, 0.3
    labels = label_set(num)
    log_probs = torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(0)
    targets = LabelTargets(labels, smoothing)
    draws = [targets.of(example("s7"), 0, np.random.default_rng(seed)) for seed in range(4000)]
    assert all(len(answers) == 1 + NUM_DRAWN for answers in draws)
    assert all(sum(answers.values()) == pytest.approx(1) for answers in draws)
    losses = np.array([loss_of(answers, log_probs, labels) for answers in draws])
    exact = -(1 - smoothing) * float(log_probs[7]) - smoothing / num * float(log_probs.sum())
    assert losses.std() > 0
    assert abs(losses.mean() - exact) < 4 * losses.std() / np.sqrt(len(losses))


def test_without_smoothing_there_is_one_branch_of_the_first_form() -> None:
    assert LabelTargets(label_set(3)).of(example("s1"), 0, np.random.default_rng(0)) == {"shown s1": 1.0}


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    names = ["a"] * 7 + ["b"] * 2 + ["c"]
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=np.array(names))
    assert list(balanced_weights([example(name) for name in names]).values()) == pytest.approx(list(expected))


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
    place = next(balanced.places(0, 1))
    draw = np.random.default_rng(0)
    rare = [sum(strata[order.partner(place, draw)] == "rare" for _ in range(500)) for order in (balanced, natural)]
    assert rare[0] > 200 > 20 > rare[1]
