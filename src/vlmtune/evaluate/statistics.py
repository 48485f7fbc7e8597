"""Intervals and paired tests for comparing models on the same images. Arrays in, numbers out; no torch.

Called by `metrics`, `compare`, the curves and the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vlmtune.evaluate.bootstrap import bootstrap_means, percentile_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = list[float] | None
SIGNIFICANCE = 0.05


def wilson_interval(successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Score interval of a proportion (Wilson 1927), elementwise; (nan, nan) where there were no trials.

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage at 0 %, 100 % and small counts.
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


def paired_comparison(
    first: Floats, second: Floats, clusters: Ints | None = None, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Two models on the same rows: difference of mean scores (second minus first), interval, counts and test.

    Where every row is an image of its own and scores are 0 or 1, the test is McNemar's (mid-p, and exact as
    ``p_exact``) and the interval Bonett and Price's. Otherwise signs flip and resampling draws by whole images.

    Args:
        first, second: float64[N] scores in [0, 1], N at least 1, none of them NaN.
        clusters: int64[N], the image of each row from 0 on; None where every row is an image of its own.

    Returns:
        ``num_better`` and ``num_worse`` rows; ``both_right``, ``only_first``, ``only_second``, ``both_wrong`` (a score
        of one half or more is right); ``test`` ("mcnemar" or "sign-flip"), ``p_value``, ``p_exact`` (else None).
    """
    change, right_first, right_second = second - first, first >= 0.5, second >= 0.5
    only_first, only_second = int((right_first & ~right_second).sum()), int((right_second & ~right_first).sum())
    is_mcnemar = clusters is None and is_binary(first) and is_binary(second)
    if is_mcnemar:
        low, high = paired_difference_interval(only_first, only_second, len(first))
        p_value = mcnemar(only_first, only_second)
    else:
        low, high = difference_intervals(change[:, None], clusters, num_resamples, seed)[0]
        by_image = change if clusters is None else np.bincount(clusters, change).astype(np.float64)
        p_value = sign_flip_test(by_image, seed=seed)
    return {
        "difference": float(change.mean()),
        "difference_interval": [low, high],
        "num_better": int((change > 0).sum()),
        "num_worse": int((change < 0).sum()),
        "both_right": int((right_first & right_second).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "both_wrong": int((~right_first & ~right_second).sum()),
        "test": "mcnemar" if is_mcnemar else "sign-flip",
        "p_value": p_value,
        "p_exact": mcnemar(only_first, only_second, "exact") if is_mcnemar else None,
    }


def difference_intervals(
    changes: Floats, clusters: Ints | None, num_resamples: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """The 95 % interval of each column's mean by bootstrap over images; float64[N, R], NaN where a row does not count.

    Where no row changed, or all did alike, resampling underestimates uncertainty: each image then counts as a pair.
    """
    intervals = []
    for column, samples in enumerate(bootstrap_means(changes, clusters, num_resamples, seed).T):
        counted = ~np.isnan(changes[:, column])
        low, high = percentile_interval(samples[~np.isnan(samples)])
        if high - low < 1e-12:
            num_images = int(counted.sum()) if clusters is None else len(np.unique(clusters[counted]))
            lost, gained = max(0.0, -low) * num_images, max(0.0, low) * num_images
            low, high = paired_difference_interval(lost, gained, num_images)
        intervals.append((low, high))
    return intervals


def is_binary(scores: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def adjust(tests: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm`` and ``is_significant`` to results of `paired_comparison`, adjusted over all of them."""
    for test, p_holm in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"], test["is_significant"] = float(p_holm), bool(p_holm < SIGNIFICANCE)


def sign_flip_test(differences: Floats, num_draws: int = 9_999, seed: int = 0, chunk: int = 2_000_000) -> float:
    """Two-sided p-value that cluster sums of paired differences are symmetric about zero, by random changes of sign.

    Args:
        differences: float64[C], the sum over one image's questions of second minus first.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(seed)
    # Sums in another order differ in their last bits: equally extreme ones must count as such.
    least = abs(float(moved.sum())) * (1 - 1e-9) - 1e-12
    num_beyond, step = 0, max(1, chunk // len(moved))
    for start in range(0, num_draws, step):
        signs = rng.integers(0, 2, size=(min(step, num_draws - start), len(moved)), dtype=np.int8) * 2 - 1
        num_beyond += int((np.abs(signs @ moved) >= least).sum())
    return (1 + num_beyond) / (1 + num_draws)


def mean_intervals(values: Floats, clusters: Ints | None, num_resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """The 95 % interval of each column's mean, where values are scores in [0, 1].

    Wilson's where every row is an image of its own (exact for scores of 0 and 1, conservative for those between);
    a bootstrap over images where there are several rows about one.

    Args:
        values: float64[N, R]; NaN where a row does not count in a column.
        clusters: int64[N], the image of each row from 0 on, or None.

    Returns:
        [low, high] a column; None where nothing counts, or where all that counts is about one image of several rows.
    """
    counted = ~np.isnan(values)
    sums, sizes = np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0)
    if clusters is None:
        return [pair_or_none(low, high) for low, high in zip(*wilson_interval(sums, sizes), strict=True)]
    intervals: list[Interval] = []
    for column, samples in enumerate(bootstrap_means(values, clusters, num_resamples, seed).T):
        num_images = len(np.unique(clusters[counted[:, column]]))
        if num_images < 2:
            intervals.append(None)  # a bootstrap over one image would be a point
            continue
        low, high = percentile_interval(samples[~np.isnan(samples)])
        if high - low < 1e-12:
            # With identical rows, resampling shows no uncertainty. Each image then counts as one trial.
            low, high = (float(end) for end in wilson_interval(low * num_images, num_images))
        intervals.append([low, high])
    return intervals


def pair_or_none(low: Any, high: Any) -> Interval:
    """[low, high] as plain numbers; JSON has no NaN, so an interval from no trials is None."""
    return None if np.isnan(low) else [float(low), float(high)]
