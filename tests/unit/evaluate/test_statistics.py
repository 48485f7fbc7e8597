"""Intervals and tests equal statsmodels'; bootstrap resamples images and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, mean_absolute_error
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tests.synthetic_runs import random_table
from vlmtune.evaluate import bootstrap, statistics
from vlmtune.evaluate.bootstrap import Counts, bootstrap_means, percentile_interval
from vlmtune.evaluate.statistics import paired_comparison, sign_flip_test, wilson_interval

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
def test_mcnemar_equals_statsmodels(b: int, c: int) -> None:
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


def test_paired_difference_interval_keeps_its_coverage() -> None:
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


def closed(**settings: object) -> tuple[np.ndarray, np.ndarray]:
    answers = random_table(**settings).closed  # type: ignore[arg-type]
    assert answers is not None
    return answers.truth, answers.prediction


def test_count_statistics_equal_scikit_learn() -> None:
    truth, guess = closed(num=300, num_labels=7, skill=1.5)
    counts = Counts.of(truth, guess, 7)
    assert bootstrap.macro_f1(counts)[0] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert bootstrap.weighted_f1(counts)[0] == pytest.approx(f1_score(truth, guess, average="weighted"))
    assert bootstrap.balanced_accuracy(counts)[0] == pytest.approx(balanced_accuracy_score(truth, guess))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(5, 80), st.integers(0, 10_000))
def test_statistics_of_levels_equal_scikit_learn(num_levels: int, num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, num_levels, (2, num))
    counts = Counts.of(truth, guess, num_levels)
    assert bootstrap.mean_absolute_error(counts)[0] == pytest.approx(mean_absolute_error(truth, guess))
    expected = cohen_kappa_score(truth, guess, weights="quadratic", labels=np.arange(num_levels))
    assert bootstrap.quadratic_weighted_kappa(counts)[0] == pytest.approx(expected, nan_ok=True)


def test_bootstrap_of_counts_has_the_spread_of_resampling_rows() -> None:
    truth, guess = closed(num=200, num_labels=5, skill=1.5)
    fast = bootstrap.bootstrap_counts(truth, guess[:, None], 5, {"f1": bootstrap.macro_f1}, num_resamples=3000)["f1"]
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(500):
        rows = rng.integers(0, 200, 200)
        plain.append(f1_score(truth[rows], guess[rows], average="macro"))
    assert fast.mean() == pytest.approx(np.mean(plain), abs=0.006)
    assert fast.std() == pytest.approx(np.std(plain), rel=0.12)


def test_bootstrap_of_counts_draws_whole_images() -> None:
    truth, guess = closed(num=200, num_labels=5, skill=1.5)
    draw = {"f1": bootstrap.macro_f1}
    alone = bootstrap.bootstrap_counts(truth, guess[:, None], 5, draw, num_resamples=2000)["f1"]
    copies = np.repeat(np.arange(200), 4)
    copied = bootstrap.bootstrap_counts(truth[copies], guess[copies, None], 5, draw, copies, num_resamples=2000)["f1"]
    assert copied.std() == pytest.approx(alone.std(), rel=0.1), "copies of a row tell nothing new"


def test_bootstrap_gives_equal_runs_equal_samples() -> None:
    truth, guess = closed(num=100, num_unreadable=5)
    twice = np.column_stack([guess, guess])
    samples = bootstrap.bootstrap_counts(truth, twice, 10, {"f1": bootstrap.macro_f1}, num_resamples=50)["f1"]
    assert (samples[:, 0] == samples[:, 1]).all()
    means = bootstrap_means(np.column_stack([np.arange(100.0)] * 2), num_resamples=50)
    assert (means[:, 0] == means[:, 1]).all()
    assert means[:, 0].std() > 1


def test_copies_of_questions_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.7).astype(float)
    alone = percentile_interval(bootstrap_means(right[:, None], num_resamples=4_000)[:, 0])
    low, high = wilson_interval(int(right.sum()), 400)
    assert abs(alone[0] - float(low)) < 0.01 and abs(alone[1] - float(high)) < 0.01
    copied = bootstrap_means(np.repeat(right, 5)[:, None], np.repeat(np.arange(400), 5), 4_000)
    assert percentile_interval(copied[:, 0]) == pytest.approx(alone, abs=1e-9)


def test_a_resample_counts_only_the_rows_of_a_column() -> None:
    values = np.array([[1.0, np.nan], [0.0, 0.0], [1.0, 1.0]])
    samples = bootstrap_means(values, np.array([0, 0, 1]), 200)
    assert set(np.round(samples[:, 0], 6)) == {0.5, round(2 / 3, 6), 1.0}
    assert set(samples[:, 1]) == {0.0, 0.5, 1.0}


def test_sign_flips_see_a_real_difference_and_no_other() -> None:
    rng = np.random.default_rng(1)
    assert sign_flip_test(np.zeros(50)) == 1.0
    assert sign_flip_test(rng.normal(0.5, 1, 200)) < 0.001
    values = [sign_flip_test(rng.normal(0, 1, 40), num_draws=199, seed=i) for i in range(200)]
    assert abs(np.mean([p <= 0.05 for p in values]) - 0.05) < 0.05, "the level is kept"
    # Few images: all 2^5 changes of sign are drawn often, two of them as far out.
    assert sign_flip_test(np.ones(5)) == pytest.approx(2 / 2**5, abs=0.01)


def test_the_paired_test_follows_the_scores() -> None:
    first, second = np.array([0.0, 1, 0, 1] * 20), np.array([1.0, 1, 0, 1] * 20)
    alone = paired_comparison(first, second)
    assert (alone["test"], alone["only_second"], alone["p_value"]) == ("mcnemar", 20, statistics.mcnemar(0, 20))
    soft = paired_comparison(first, second - 0.1 * (second == 1))
    by_image = paired_comparison(first, second, np.repeat(np.arange(20), 4))
    assert soft["test"] == by_image["test"] == "sign-flip" and soft["p_exact"] is None
    assert by_image["difference"] == alone["difference"] == 0.25
    assert soft["difference"] == pytest.approx(0.25 - 0.075) and (soft["num_better"], soft["num_worse"]) == (20, 40)
