"""Figures equal scikit-learn's; an unreadable image never leaves the denominator."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from tests.synthetic_runs import random_table
from vlmtune.evaluate.metrics import confidences, measure, reliability_bins, risk_coverage

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


@settings(max_examples=40, deadline=None)
@given(tables)
def test_figures_equal_scikit_learn(table) -> None:
    figures = measure(table)
    truth, guess, labels = table.truth, table.prediction, np.arange(len(table.labels))
    probs = softmax(table.log_probs.astype(np.float64), axis=1)
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
        top3 = sk.top_k_accuracy_score(truth, table.log_probs, k=3, labels=labels)
        assert figures["top_k"]["3"] == pytest.approx(top3)
    json.dumps(figures, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(1, 6))
def test_unreadable_images_count_as_errors_as_scikit_learn_counts_an_unknown_label(table, num_unreadable) -> None:
    guess = table.prediction.copy()
    guess[:num_unreadable] = -1
    log_probs = table.log_probs.copy()
    log_probs[:num_unreadable] = np.nan
    broken = table.take(np.arange(len(table)))
    broken.prediction[:], broken.log_probs[:] = guess, log_probs
    figures = measure(broken)
    present = np.union1d(table.truth, guess[guess >= 0])
    assert figures["num_examples"] == len(table)
    assert figures["num_unreadable"] == sum(figures["unreadable_by_class"]) == num_unreadable
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(table.truth, guess))
    wanted = sk.f1_score(table.truth, guess, labels=present, average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(wanted)
    assert figures["top_k"]["1"] == pytest.approx(figures["accuracy"])
    json.dumps(figures, allow_nan=False)


def test_an_unreadable_image_is_a_uniform_guess_in_likelihood_and_brier() -> None:
    table = random_table(num=4, num_labels=10, num_unreadable=4)
    figures = measure(table)
    assert figures["nll"] == pytest.approx(np.log(10))
    assert figures["brier"] == pytest.approx(0.9)
    assert figures["top_k"] == {"1": 0.0, "3": 0.0, "5": 0.0}


def test_figures_without_probabilities_are_none_in_argmax_mode() -> None:
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
def test_calibration_and_risk_do_not_depend_on_the_order_of_images(rows, shuffler) -> None:
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


def test_risk_at_full_coverage_is_the_error_rate_and_falls_for_a_model_that_knows_what_it_knows() -> None:
    table = random_table(num=2000, skill=3.0)
    risks = risk_coverage(confidences(table), table.correct)
    assert risks[-1] == pytest.approx(1 - measure(table)["accuracy"])
    assert risks[200] < risks[-1] / 2


def test_a_class_without_images_or_predictions_does_not_lower_macro_f1() -> None:
    table = random_table(num=60, num_labels=3, skill=20)
    wider = replace(table, labels=(*table.labels, "never"), log_probs=None)
    assert measure(wider)["macro_f1"] == pytest.approx(measure(table)["macro_f1"]) == 1.0
    assert measure(wider)["per_class"][3]["recall"] is None
