"""Intervals and paired tests for comparing models on the same images. Arrays in, numbers out; no torch.

Called by `metrics`, `compare` and the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
SIGNIFICANCE = 0.05


def wilson_interval(successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Score interval of a proportion (Wilson 1927), elementwise; (nan, nan) where there were no trials.

    Unlike the normal approximation it stays inside [0, 1] and holds its coverage at 0 %, 100 % and small counts.
    """
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(trials, float))
    z2 = float(stats.norm.isf((1 - confidence) / 2)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        p = k / n
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
        low = np.where(k == 0, 0.0, center - half)  # exact ends: rounding would leave 1e-17
        high = np.where(k == n, 1.0, center + half)
    empty = n == 0
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def mcnemar(only_first: int, only_second: int, method: Literal["mid-p", "exact"] = "mid-p") -> float:
    """Two-sided p-value that two models are right equally often, from the images where exactly one is right.

    Mid-p (Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91) keeps the level without the conservatism
    of the exact binomial test.
    """
    total = only_first + only_second
    if total == 0:
        return 1.0
    fewer = min(only_first, only_second)
    exact = min(1.0, 2 * float(stats.binom.cdf(fewer, total, 0.5)))
    if method == "exact":
        return exact
    if only_first == only_second:
        return 1.0 - float(stats.binom.pmf(fewer, total, 0.5)) / 2
    return 2 * float(stats.binom.cdf(fewer, total, 0.5)) - float(stats.binom.pmf(fewer, total, 0.5))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values (1979), in the order given: reject where they are below the level."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def paired_difference_interval(
    only_first: float, only_second: float, num_pairs: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of accuracy(second) - accuracy(first) on the same images (Bonett and Price 2012, eq. 6).

    A Wald interval after adding one to each discordant count: sound even where no image changed.
    """
    z = float(stats.norm.isf((1 - confidence) / 2))
    total = num_pairs + 2
    gained, lost = (only_second + 1) / total, (only_first + 1) / total
    half = z * np.sqrt((gained + lost - (gained - lost) ** 2) / total)
    return max(-1.0, float(gained - lost - half)), min(1.0, float(gained - lost + half))


def paired_test(right_first: NDArray[np.bool_], right_second: NDArray[np.bool_]) -> dict[str, Any]:
    """Two models on the same images: difference in accuracy (second minus first), interval, counts, McNemar.

    Args:
        right_first, right_second: bool[N], N at least 1.
    """
    only_first, only_second = int((right_first & ~right_second).sum()), int((right_second & ~right_first).sum())
    low, high = paired_difference_interval(only_first, only_second, len(right_first))
    return {
        "difference": (only_second - only_first) / len(right_first),
        "difference_interval": [low, high],
        "both_right": int((right_first & right_second).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "both_wrong": int((~right_first & ~right_second).sum()),
        "p_value": mcnemar(only_first, only_second),
        "p_exact": mcnemar(only_first, only_second, "exact"),
    }


def adjust(tests: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm`` and ``is_significant`` to results of `paired_test`, adjusted over all of them."""
    for test, p_holm in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"], test["is_significant"] = float(p_holm), bool(p_holm < SIGNIFICANCE)


def bootstrap_means(
    values: Floats, num_resamples: int = 1000, seed: int = 0, chunk: int = 2_000_000
) -> NDArray[np.float64]:
    """Means of resampled rows; every column sees the same resamples, so columns may be subtracted.

    Args:
        values: float64[N, R], one row an image, one column a run.

    Returns:
        float64[num_resamples, R].
    """
    rng = np.random.default_rng(seed)
    num = len(values)
    means = np.empty((num_resamples, values.shape[1]))
    step = max(1, chunk // max(num, 1))
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        rows = rng.integers(0, num, size=(size, num)) + num * np.arange(size)[:, None]
        # How often each row was drawn: one matrix product then serves every column.
        times = np.bincount(rows.ravel(), minlength=size * num).reshape(size, num)
        means[start : start + size] = times.astype(np.float64) @ values / num
    return means


def clustered_bootstrap(
    values: Floats, clusters: NDArray[np.int64], num_resamples: int = 1000, seed: int = 0, chunk: int = 2_000_000
) -> Floats:
    """Means of columns over resampled clusters: rows of one cluster (questions about one image) come together.

    Args:
        values: float64[N, R]; NaN where a row does not count in a column (a question of another type).
        clusters: int64[N], from 0 to C - 1, each of them present.

    Returns:
        float64[num_resamples, R]; every column sees the same resamples, so columns may be subtracted. NaN where a
        resample holds no row that counts.
    """
    num = int(clusters.max()) + 1
    counted = ~np.isnan(values)
    sums, sizes = np.zeros((num, values.shape[1])), np.zeros((num, values.shape[1]))
    np.add.at(sums, clusters, np.where(counted, values, 0.0))
    np.add.at(sizes, clusters, counted.astype(np.float64))
    rng = np.random.default_rng(seed)
    result = np.empty((num_resamples, values.shape[1]))
    step = max(1, chunk // num)
    for start in range(0, num_resamples, step):
        stop = min(start + step, num_resamples)
        times = rng.multinomial(num, np.full(num, 1 / num), size=stop - start).astype(np.float64)
        with np.errstate(invalid="ignore"):
            result[start:stop] = (times @ sums) / (times @ sizes)
    return result


def sign_flip_test(differences: Floats, num_draws: int = 9_999, seed: int = 0, chunk: int = 2_000_000) -> float:
    """Two-sided p-value that cluster sums of paired differences are symmetric about zero, by random changes of sign.

    Args:
        differences: float64[C], the sum over one image's questions of second minus first.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(seed)
    # Sums in another order differ in their last bits: what is as far out must count as such.
    least = abs(float(moved.sum())) * (1 - 1e-9) - 1e-12
    num_beyond, step = 0, max(1, chunk // len(moved))
    for start in range(0, num_draws, step):
        signs = rng.integers(0, 2, size=(min(step, num_draws - start), len(moved)), dtype=np.int8) * 2 - 1
        num_beyond += int((np.abs(signs @ moved) >= least).sum())
    return (1 + num_beyond) / (1 + num_draws)


def bootstrap_counts(
    truth: NDArray[np.int64],
    predictions: NDArray[np.int64],
    num_labels: int,
    statistics: Mapping[str, Callable[[Floats, Floats, Floats], Floats]],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Resample images and recompute statistics of each run's class counts, all runs on the same resamples.

    Images with equal truth and equal predictions in every run are interchangeable, so resampling N images is one
    multinomial draw over the distinct combinations: exact, and far fewer numbers than N.

    Args:
        truth: int64[N]. predictions: int64[N, R], -1 for an unreadable image.
        statistics: name -> (hits, support, predicted), each float64[K, L] for K resamples -> float64[K].

    Returns:
        name -> float64[num_resamples, R].
    """
    combined = np.column_stack([truth, predictions])
    cells, counts = np.unique(combined, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    result = {name: np.empty((num_resamples, predictions.shape[1])) for name in statistics}
    step = max(1, 4_000_000 // len(cells))
    for start in range(0, num_resamples, step):
        stop = min(start + step, num_resamples)
        weights = rng.multinomial(len(truth), counts / len(truth), size=stop - start).astype(np.float64)
        support = _sum_by(weights, cells[:, 0], num_labels)
        for run in range(predictions.shape[1]):
            guess = cells[:, run + 1]
            hits = _sum_by(weights, np.where(guess == cells[:, 0], guess, -1), num_labels)
            predicted = _sum_by(weights, guess, num_labels)
            for name, statistic in statistics.items():
                result[name][start:stop, run] = statistic(hits, support, predicted)
    return result


def macro_f1_from_counts(hits: Floats, support: Floats, predicted: Floats) -> Floats:
    """float64[K] mean F1 over the classes that occur in truth or prediction, from float64[K, L] counts."""
    present = support + predicted > 0
    scores: Floats = _f1(hits, support, predicted).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return scores


def weighted_f1_from_counts(hits: Floats, support: Floats, predicted: Floats) -> Floats:
    """float64[K] mean F1 weighted by how often a class occurs in the truth, from float64[K, L] counts."""
    scores: Floats = (_f1(hits, support, predicted) * support).sum(axis=-1) / support.sum(axis=-1)
    return scores


def balanced_accuracy_from_counts(hits: Floats, support: Floats, predicted: Floats) -> Floats:
    """float64[K] mean recall over the classes that occur in the truth, from float64[K, L] counts."""
    present = support > 0
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=present)
    scores: Floats = recall.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return scores


def percentile_interval(samples: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The middle part of bootstrap samples."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def _f1(hits: Floats, support: Floats, predicted: Floats) -> Floats:
    total = support + predicted
    f1: Floats = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return f1


def _sum_by(weights: Floats, groups: NDArray[Any], num_segments: int) -> Floats:
    """Sum columns of float64[K, C] by group (-1: left out), giving float64[K, num_segments]."""
    from scipy.sparse import csr_array

    kept = np.flatnonzero(groups >= 0)
    member = csr_array((np.ones(len(kept)), (kept, groups[kept])), shape=(len(groups), num_segments))
    summed: Floats = np.asarray(weights @ member)
    return summed
