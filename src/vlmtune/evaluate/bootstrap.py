"""Resampling images: means of columns, and statistics of class counts such as F1 and weighted kappa. No torch.

Arrays in, arrays of one value a resample out. Called by `statistics`, `metrics` and `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def bootstrap_means(
    values: Floats,
    clusters: Ints | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    chunk: int = 2_000_000,
) -> Floats:
    """Means of columns over resampled rows, or over resampled clusters: the rows of one image are drawn together.

    Args:
        values: float64[N, R]; NaN where a row does not count in a column (a question of another type).
        clusters: int64[N] from 0 to C - 1, each of them present; None where each row is a different image.

    Returns:
        float64[num_resamples, R]; every column sees the same resamples, so columns may be subtracted. NaN where a
        resample holds no row that counts.
    """
    counted = ~np.isnan(values)
    sums, sizes = np.where(counted, values, 0.0), counted.astype(np.float64)
    if clusters is not None:
        num_clusters = int(clusters.max()) + 1
        sums, sizes = _sum_rows(sums, clusters, num_clusters), _sum_rows(sizes, clusters, num_clusters)
    means = np.empty((num_resamples, values.shape[1]))
    for drawn, times in _times_drawn(len(sums), num_resamples, seed, chunk):
        with np.errstate(invalid="ignore"):
            means[drawn] = (times @ sums) / (times @ sizes)
    return means


@dataclass(frozen=True, slots=True)
class Counts:
    """Class counts of K resamples of the same rows; of rows alone where K is 1.

    Attributes:
        hits, support, predicted: float64[K, L]: rows of each class: correct, true, predicted.
        distance, squared_distance: float64[K]: sums over rows of the distance between prediction and truth, in labels.
    """

    hits: Floats
    support: Floats
    predicted: Floats
    distance: Floats
    squared_distance: Floats

    @classmethod
    def of(cls, truth: Ints, prediction: Ints, num_labels: int, weights: Floats | None = None) -> Counts:
        """Count int64[N] truths and predictions (-1: unreadable), each row as often as float64[K, N] weights say."""
        weights = np.ones((1, len(truth))) if weights is None else weights
        apart = np.abs(truth - prediction).astype(np.float64)
        return cls(
            _sum_by(weights, np.where(prediction == truth, prediction, -1), num_labels),
            _sum_by(weights, truth, num_labels),
            _sum_by(weights, prediction, num_labels),
            weights @ apart,
            weights @ apart**2,
        )


def bootstrap_counts(
    truth: Ints,
    predictions: Ints,
    num_labels: int,
    statistics: Mapping[str, Callable[[Counts], Floats]],
    clusters: Ints | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Resample images and recompute statistics of each run's class counts, all runs on the same resamples.

    Rows with equal truth and equal predictions in every run are interchangeable, so resampling N images is one
    multinomial draw over the distinct combinations: exact, and far fewer numbers than N.

    Args:
        truth: int64[N]. predictions: int64[N, R], -1 for an unreadable image.
        statistics: name -> counts of K resamples -> float64[K].
        clusters: int64[N], the image of each row from 0 on; None where every row is an image of its own.

    Returns:
        name -> float64[num_resamples, R].
    """
    combined = np.column_stack([truth, predictions])
    cells, cell_of, counts = np.unique(combined, axis=0, return_inverse=True, return_counts=True)
    result = {name: np.empty((num_resamples, predictions.shape[1])) for name in statistics}
    for drawn, weights in _cell_weights(cell_of.ravel(), counts, clusters, num_resamples, seed):
        for run in range(predictions.shape[1]):
            counted = Counts.of(cells[:, 0], cells[:, run + 1], num_labels, weights)
            for name, statistic in statistics.items():
                result[name][drawn, run] = statistic(counted)
    return result


def macro_f1(counts: Counts) -> Floats:
    """float64[K] mean F1 over the classes that occur in truth or prediction."""
    present = counts.support + counts.predicted > 0
    scores: Floats = f1_scores(counts).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return scores


def weighted_f1(counts: Counts) -> Floats:
    """float64[K] mean F1 weighted by how often a class occurs in the truth."""
    scores: Floats = (f1_scores(counts) * counts.support).sum(axis=-1) / counts.support.sum(axis=-1)
    return scores


def balanced_accuracy(counts: Counts) -> Floats:
    """float64[K] mean recall over the classes that occur in the truth."""
    present = counts.support > 0
    recall = np.divide(counts.hits, counts.support, out=np.zeros_like(counts.hits), where=present)
    scores: Floats = recall.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return scores


def mean_absolute_error(counts: Counts) -> Floats:
    """float64[K] mean distance between predicted and true level, in levels."""
    errors: Floats = counts.distance / counts.support.sum(axis=-1)
    return errors


def quadratic_weighted_kappa(counts: Counts) -> Floats:
    """float64[K] Cohen's kappa with squared distances as weights (Cohen 1968, Psychol Bull 70:213).

    1 is full agreement, 0 that of independent levels with the same frequencies. NaN where truth and prediction
    are all the same level: chance agreement is full too.
    """
    levels = np.arange(counts.support.shape[-1], dtype=np.float64)
    apart = (levels[:, None] - levels[None]) ** 2
    by_chance = ((counts.support @ apart) * counts.predicted).sum(axis=-1) / counts.support.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Floats = np.where(by_chance > 0, 1 - counts.squared_distance / by_chance, np.nan)
    return kappa


def f1_scores(counts: Counts) -> Floats:
    """float64[K, L]: F1 per class, 0 for a class in neither truth nor prediction."""
    total = counts.support + counts.predicted
    f1: Floats = np.divide(2 * counts.hits, total, out=np.zeros_like(counts.hits), where=total > 0)
    return f1


def percentile_interval(samples: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The central interval of bootstrap samples."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def _times_drawn(num: int, num_resamples: int, seed: int, chunk: int) -> Iterator[tuple[slice, Floats]]:
    """How often each of ``num`` units is in each resample: float64[k, num] for a slice of the resamples at a time.

    One matrix product with it then serves every column.
    """
    rng = np.random.default_rng(seed)
    step = max(1, chunk // max(num, 1))
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        units = rng.integers(0, num, size=(size, num)) + num * np.arange(size)[:, None]
        times = np.bincount(units.ravel(), minlength=size * num).reshape(size, num)
        yield slice(start, start + size), times.astype(np.float64)


def _sum_rows(values: Floats, groups: Ints, num_groups: int) -> Floats:
    """Sum float64[N, R] by group, giving float64[num_groups, R]."""
    return np.stack([np.bincount(groups, column, num_groups) for column in values.T], axis=1)


def _cell_weights(
    cell_of: Ints, counts: Ints, clusters: Ints | None, num_resamples: int, seed: int, chunk: int = 4_000_000
) -> Iterator[tuple[slice, Floats]]:
    """How many rows of each cell are in each resample: float64[k, cells] for a slice of the resamples at a time."""
    if clusters is not None:
        from scipy.sparse import csr_array

        members = csr_array((np.ones(len(cell_of)), (clusters, cell_of)), shape=(clusters.max() + 1, len(counts)))
        for drawn, times in _times_drawn(members.shape[0], num_resamples, seed, chunk):
            yield drawn, np.asarray(times @ members)
        return
    rng = np.random.default_rng(seed)
    step = max(1, chunk // len(counts))
    for start in range(0, num_resamples, step):
        stop = min(start + step, num_resamples)
        drawn_counts = rng.multinomial(len(cell_of), counts / len(cell_of), size=stop - start)
        yield slice(start, stop), drawn_counts.astype(np.float64)


def _sum_by(weights: Floats, groups: Ints, num_groups: int) -> Floats:
    """Sum columns of float64[K, C] by group (-1: left out), giving float64[K, num_groups]."""
    from scipy.sparse import csr_array

    counted = np.flatnonzero(groups >= 0)
    member = csr_array((np.ones(len(counted)), (counted, groups[counted])), shape=(len(groups), num_groups))
    summed: Floats = np.asarray(weights @ member)
    return summed
