"""Accuracy against step, and against the number of training images, whatever the task.

In: evaluations of the same examples, of a run's checkpoints or of runs of several fractions and seeds. Out: JSON-ready
dictionaries, which the report reads again. No torch.

A learning curve's interval covers two kinds of chance: another seed (which images are drawn for training, their order,
LoRA's start), by Student's t over the seeds; and other test images, by the interval of the mean score
(`statistics.mean_intervals`), which all seeds share. The two are combined by their squared distances from the mean
(MOVER, Zou and Donner 2008, Stat Med 27:1693). With one seed only the second is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vlmtune.evaluate.compare import align
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.statistics import SIGNIFICANCE, adjust, mean_intervals, paired_comparison
from vlmtune.evaluate.table import PredictionTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def measure_checkpoint_curve(
    evaluations: Sequence[tuple[int, Evaluation]], num_steps: int, averages: Sequence[Evaluation] = ()
) -> dict[str, Any]:
    """Compare every checkpoint with the best one, row by row.

    Args:
        evaluations: (step, evaluation) of the same examples, by step.
        num_steps: of the whole run, by which savings are counted.
        averages: of averaged checkpoints, which belong to no step.

    Returns:
        ``checkpoints``, each with its figures and its paired test against the best (`paired_comparison`,
        Holm-adjusted over the others); ``averages``, the same with a ``name`` for a step; ``best_step``: highest
        accuracy, then lowest loss, then the earliest; ``stop_step``: the earliest that is not significantly
        worse than the best.

    Raises DataError for evaluations of different examples.
    """
    steps = [step for step, _ in evaluations]
    tables = _aligned([*(evaluation for _, evaluation in evaluations), *averages])
    points = [{"step": step, **_figures(evaluation)} for step, evaluation in evaluations]
    averaged = [{"name": evaluation.name, **_figures(evaluation)} for evaluation in averages]

    def standing(index: int) -> tuple[float, float, int]:
        loss = points[index]["nll"]
        return float(points[index]["accuracy"]), -(loss if loss is not None else 0.0), -steps[index]

    best = max(range(len(points)), key=standing)
    clusters, best_score = tables[0].clusters, tables[best].score
    tests = {
        index: paired_comparison(best_score, table.score, clusters)
        for index, table in enumerate(tables)
        if index != best
    }
    adjust(list(tests.values()))
    for index, point in enumerate([*points, *averaged]):
        test = tests.get(index)
        point["is_best"] = test is None
        point |= {key: test and test[key] for key in ("difference", "difference_interval", "p_value", "p_holm")}
        point["is_worse"] = test is not None and test["is_significant"] and test["difference"] < 0
    data = evaluations[0][1].facts.get("data") or {}
    return {
        "split": data.get("split"),
        "limit": data.get("limit"),
        "num_examples": len(tables[0]),
        "num_steps": max([num_steps, *steps]),
        "checkpoints": points,
        "averages": averaged,
        "best_step": steps[best],
        "stop_step": next(point["step"] for point in points if not point["is_worse"]),
    }


def _aligned(evaluations: Sequence[Evaluation]) -> list[PredictionTable]:
    """The tables in one order, with the rows whose truth is known."""
    if len(evaluations) > 1:
        return align(evaluations)
    table = evaluations[0].predictions
    return [table.take(table.known)]


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    keys = ("accuracy", "accuracy_interval", "num_correct", "nll", "ece")
    return {**{key: evaluation.figures[key] for key in keys}, "seconds": evaluation.facts.get("seconds")}


@dataclass(frozen=True, slots=True)
class LearningCurveRun:
    """One run of a learning curve: its training images, cost and evaluation."""

    fraction: float
    seed: int
    num_train: int
    folder: str
    evaluation: Evaluation
    steps: int | None = None
    seconds: float | None = None


def measure_learning_curve(runs: Sequence[LearningCurveRun], base: Evaluation | None = None) -> dict[str, Any]:
    """The curve: one point per fraction, and the step from each point to the next.

    Args:
        runs: every finished run.
        base: the untrained model on the same examples; the first step then starts from it.

    Returns:
        ``points``: mean accuracy, ``interval`` (both kinds of chance), ``seed_interval`` (None for one seed),
        ``test_interval``, and the ``runs``. ``steps``: difference of the means with its interval and whether it is
        significant, Bonferroni-adjusted over the steps.

    Raises DataError for evaluations of different examples.
    """
    named = [replace(run.evaluation, facts={**run.evaluation.facts, "name": run.folder}) for run in runs]
    tables = _aligned([*named, *([base] if base else [])])
    scores, clusters = np.stack([table.score for table in tables]), tables[0].clusters
    fractions = sorted({run.fraction for run in runs})
    members = [[i for i, run in enumerate(runs) if run.fraction == fraction] for fraction in fractions]
    groups = ([scores[len(runs) :]] if base else []) + [scores[rows] for rows in members]
    points = [_point([runs[i] for i in rows], scores[rows], clusters) for rows in members]
    starts = [*([0] if base else []), *(point["num_train"] for point in points)]
    data = runs[0].evaluation.facts.get("data") or {}
    return {
        "split": data.get("split"),
        "limit": data.get("limit"),
        "num_examples": scores.shape[1],
        "seeds": sorted({run.seed for run in runs}),
        "base": _accuracy(scores[-1], clusters) if base else None,
        "points": points,
        "steps": [
            {
                "num_first": starts[i],
                "num_second": starts[i + 1],
                **_step(groups[i], groups[i + 1], clusters, len(groups) - 1),
            }
            for i in range(len(groups) - 1)
        ],
    }


def _accuracy(scores: Floats, clusters: Ints | None) -> dict[str, Any]:
    return {"accuracy": float(scores.mean()), "accuracy_interval": mean_intervals(scores[:, None], clusters)[0]}


def _point(runs: Sequence[LearningCurveRun], scores: Floats, clusters: Ints | None) -> dict[str, Any]:
    """One fraction. scores: float64[seeds, N]."""
    accuracies = scores.mean(axis=1)
    mean, num_seeds = float(accuracies.mean()), len(scores)
    low, high = mean_intervals(scores.mean(axis=0)[:, None], clusters)[0] or (0.0, 1.0)
    reach = 0.0
    if num_seeds > 1:
        reach = float(stats.t.ppf(0.975, num_seeds - 1) * accuracies.std(ddof=1) / np.sqrt(num_seeds))
    return {
        "fraction": runs[0].fraction,
        "num_train": round(float(np.mean([run.num_train for run in runs]))),
        "accuracy": mean,
        "interval": [max(0.0, mean - np.hypot(mean - low, reach)), min(1.0, mean + np.hypot(high - mean, reach))],
        "test_interval": [low, high],
        "seed_interval": [max(0.0, mean - reach), min(1.0, mean + reach)] if num_seeds > 1 else None,
        "runs": [
            {
                "seed": run.seed,
                "num_train": run.num_train,
                **_accuracy(score, clusters),
                "steps": run.steps,
                "seconds": run.seconds,
                "folder": run.folder,
            }
            for run, score in zip(runs, scores, strict=True)
        ],
    }


def _step(first: Floats, second: Floats, clusters: Ints | None, num_steps: int) -> dict[str, Any]:
    """From one number of images to the next. first, second: float64[seeds, N] of the same test examples."""
    low, high = _difference_interval(first, second, clusters, 0.95)
    wide_low, wide_high = _difference_interval(first, second, clusters, 1 - SIGNIFICANCE / num_steps)
    return {
        "difference": float(second.mean() - first.mean()),
        "interval": [low, high],
        "is_significant": bool(wide_low > 0 or wide_high < 0),
    }


def _difference_interval(
    first: Floats, second: Floats, clusters: Ints | None, confidence: float
) -> tuple[float, float]:
    """Interval over test images (paired, grouped by image) and, with several seeds, over seeds (Welch's t).

    As Bonett and Price do for one seed (`statistics.paired_difference_interval`), an image gained and one lost are
    added: where no image changed, a finite sample still does not show that none would.
    """
    changes = second.mean(axis=0) - first.mean(axis=0)
    clusters = np.arange(len(changes)) if clusters is None else clusters
    sums, sizes = (
        np.append(np.bincount(clusters, weights), more) for weights, more in ((changes, [1, -1]), (None, [1, 1]))
    )
    difference = float(sums.sum() / sizes.sum())
    spread = np.sqrt(((sums - difference * sizes) ** 2).sum()) / sizes.sum()
    over_images = stats.norm.isf((1 - confidence) / 2) * spread
    several = [group.mean(axis=1) for group in (first, second) if len(group) > 1]
    parts = [(accuracies.var(ddof=1) / len(accuracies), len(accuracies) - 1) for accuracies in several]
    variance = sum(part for part, _ in parts)
    over_seeds = 0.0
    if variance > 0:
        degrees = variance**2 / sum(part**2 / free for part, free in parts)
        over_seeds = stats.t.isf((1 - confidence) / 2, degrees) * np.sqrt(variance)
    reach = float(np.hypot(over_images, over_seeds))
    return max(-1.0, difference - reach), min(1.0, difference + reach)
