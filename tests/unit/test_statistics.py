"""Intervals and tests equal statsmodels'; bootstrap resamples images and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, f1_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tests.synthetic_runs import random_table
from vlmtune.evaluate import statistics

pytestmark = pytest.mark.unit


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_interval_equals_statsmodels(trials: int, share: float, confidence: float) -> None:
    successes = round(trials * share)
    low, high = statistics.wilson_interval(successes, trials, confidence)
    assert (low, high) == pytest.approx(proportion_confint(successes, trials, 1 - confidence, "wilson"), abs=1e-12)


def test_wilson_interval_of_nothing_is_not_a_number() -> None:
    low, high = statistics.wilson_interval([0, 5], [0, 5])
    assert np.isnan(low[0]) and np.isnan(high[0])
    assert high[1] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_exact_mcnemar_equals_statsmodels_and_mid_p_halves_the_observed_table(b: int, c: int) -> None:
    exact = statistics.mcnemar(b, c, "exact")
    wanted = statsmodels_mcnemar([[10, b], [c, 10]], exact=True).pvalue if b + c else 1.0
    assert exact == pytest.approx(wanted)
    # By definition: the probability of more extreme tables, plus half that of equally extreme ones.
    table = binom.pmf(np.arange(b + c + 1), b + c, 0.5)
    distance = np.abs(2 * np.arange(b + c + 1) - (b + c))
    wanted = table[distance > abs(b - c)].sum() + table[distance == abs(b - c)].sum() / 2 if b + c else 1.0
    assert statistics.mcnemar(b, c) == pytest.approx(wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_paired_difference_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    cells = [0.6, 0.06, 0.14, 0.2]  # both right, only first, only second, both wrong
    draws = rng.multinomial(150, cells, size=2000)
    spans = [statistics.paired_difference_interval(int(b), int(c), 150) for _, b, c, _ in draws]
    covered = np.mean([low <= 0.08 <= high for low, high in spans])
    assert 0.935 < covered < 0.975


def test_paired_difference_interval_has_width_where_nothing_changed() -> None:
    low, high = statistics.paired_difference_interval(0, 0, 50)
    assert low < 0 < high
    assert high == pytest.approx(-low)


def test_count_statistics_equal_scikit_learn() -> None:
    table = random_table(num=300, num_labels=7, skill=1.5)
    eye = np.eye(7)
    truth, guess = eye[table.truth], eye[table.prediction]
    counts = [(truth * guess).sum(0)[None], truth.sum(0)[None], guess.sum(0)[None]]
    assert statistics.macro_f1_from_counts(*counts)[0] == pytest.approx(
        f1_score(table.truth, table.prediction, average="macro")
    )
    assert statistics.weighted_f1_from_counts(*counts)[0] == pytest.approx(
        f1_score(table.truth, table.prediction, average="weighted")
    )
    assert statistics.balanced_accuracy_from_counts(*counts)[0] == pytest.approx(
        balanced_accuracy_score(table.truth, table.prediction)
    )


def test_bootstrap_of_counts_has_the_spread_of_resampling_rows() -> None:
    table = random_table(num=200, num_labels=5, skill=1.5)
    fast = statistics.bootstrap_counts(
        table.truth, table.prediction[:, None], 5, {"f1": statistics.macro_f1_from_counts}, num_resamples=3000
    )["f1"][:, 0]
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(500):
        rows = rng.integers(0, 200, 200)
        plain.append(f1_score(table.truth[rows], table.prediction[rows], average="macro"))
    assert fast.mean() == pytest.approx(np.mean(plain), abs=0.006)
    assert fast.std() == pytest.approx(np.std(plain), rel=0.12)


def test_bootstrap_gives_two_equal_runs_equal_samples() -> None:
    table = random_table(num=100, num_unreadable=5)
    twice = np.column_stack([table.prediction, table.prediction])
    samples = statistics.bootstrap_counts(table.truth, twice, 10, {"f1": statistics.macro_f1_from_counts}, 50)["f1"]
    assert (samples[:, 0] == samples[:, 1]).all()
    means = statistics.bootstrap_means(np.column_stack([np.arange(100.0)] * 2), 50)
    assert (means[:, 0] == means[:, 1]).all()
    assert means[:, 0].std() > 1
