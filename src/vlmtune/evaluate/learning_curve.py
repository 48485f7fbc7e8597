"""How accuracy grows with the number of training images: runs of several fractions and seeds, as one curve.

In: one evaluation a run, all of the same test images. Out: a JSON-ready dictionary. No torch.

A point's interval covers two kinds of chance: another seed (which images are drawn for training, their order, LoRA's
start), by Student's t over the seeds; and other test images, by Wilson's interval of the mean accuracy, which all
seeds share. The two are combined by their squared distances from the mean (MOVER, Zou and Donner 2008, Stat Med
27:1693). With one seed only the second is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vlmtune.evaluate.compare import align
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.statistics import SIGNIFICANCE, wilson_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LearningCurveRun:
    """One run of a learning curve: what it was trained on, what it cost, how it was measured."""

    fraction: float
    seed: int
    num_train: int
    folder: str
    evaluation: Evaluation
    steps: int | None = None
    seconds: float | None = None


def measure_learning_curve(runs: Sequence[LearningCurveRun], base: Evaluation | None = None) -> dict[str, Any]:
    """The curve: a point a fraction, and the step from each point to the next.

    Args:
        runs: every finished run.
        base: the untrained model on the same images; the first step then starts from it.

    Returns:
        ``points``: mean accuracy, ``interval`` (both kinds of chance), ``seed_interval`` (None for one seed),
        ``test_interval``, and the ``runs``. ``steps``: difference of the means with its interval and whether it is
        significant, Bonferroni-adjusted over the steps.

    Raises DataError for evaluations of different images.
    """
    named = [Evaluation({**run.evaluation.facts, "name": run.folder}, run.evaluation.predictions) for run in runs]
    every = [*named, *([base] if base else [])]
    tables = align(every) if len(every) > 1 else [every[0].predictions]
    correct = np.stack([table.correct for table in tables]).astype(np.float64)
    fractions = sorted({run.fraction for run in runs})
    members = [[i for i, run in enumerate(runs) if run.fraction == fraction] for fraction in fractions]
    groups = ([correct[len(runs) :]] if base else []) + [correct[rows] for rows in members]
    points = [_point([runs[i] for i in rows], correct[rows]) for rows in members]
    starts = [*([0] if base else []), *(point["num_train"] for point in points)]
    data = runs[0].evaluation.facts.get("data") or {}
    return {
        "split": data.get("split"),
        "limit": data.get("limit"),
        "num_examples": correct.shape[1],
        "seeds": sorted({run.seed for run in runs}),
        "base": _figures(correct[-1]) if base else None,
        "points": points,
        "steps": [
            {"num_first": starts[i], "num_second": starts[i + 1], **_step(groups[i], groups[i + 1], len(groups) - 1)}
            for i in range(len(groups) - 1)
        ],
    }


def _figures(correct: Floats) -> dict[str, Any]:
    low, high = wilson_interval(correct.sum(), correct.size)
    return {"accuracy": float(correct.mean()), "accuracy_interval": [float(low), float(high)]}


def _point(runs: Sequence[LearningCurveRun], correct: Floats) -> dict[str, Any]:
    """One fraction. correct: float64[seeds, N]."""
    accuracies = correct.mean(axis=1)
    mean, (num_seeds, num) = float(accuracies.mean()), correct.shape
    low, high = (float(end) for end in wilson_interval(mean * num, num))
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
                **_figures(own),
                "steps": run.steps,
                "seconds": run.seconds,
                "folder": run.folder,
            }
            for run, own in zip(runs, correct, strict=True)
        ],
    }


def _step(first: Floats, second: Floats, num_steps: int) -> dict[str, Any]:
    """From one number of images to the next. first, second: float64[seeds, N] of the same test images."""
    low, high = _difference_interval(first, second, 0.95)
    wide_low, wide_high = _difference_interval(first, second, 1 - SIGNIFICANCE / num_steps)
    return {
        "difference": float(second.mean() - first.mean()),
        "interval": [low, high],
        "is_significant": bool(wide_low > 0 or wide_high < 0),
    }


def _difference_interval(first: Floats, second: Floats, confidence: float) -> tuple[float, float]:
    """Over test images (paired) and, where there are several, over seeds (Welch's t).

    As Bonett and Price do for one seed (`statistics.paired_difference_interval`), an image gained and one lost are
    added: where no image changed, the few that were looked at still do not show that none would.
    """
    changes = np.append(second.mean(axis=0) - first.mean(axis=0), [1.0, -1.0])
    difference = float(changes.mean())
    over_images = stats.norm.isf((1 - confidence) / 2) * changes.std() / np.sqrt(len(changes))
    several = [group.mean(axis=1) for group in (first, second) if len(group) > 1]
    parts = [(accuracies.var(ddof=1) / len(accuracies), len(accuracies) - 1) for accuracies in several]
    variance = sum(part for part, _ in parts)
    over_seeds = 0.0
    if variance > 0:
        degrees = variance**2 / sum(part**2 / free for part, free in parts)
        over_seeds = stats.t.isf((1 - confidence) / 2, degrees) * np.sqrt(variance)
    reach = float(np.hypot(over_images, over_seeds))
    return max(-1.0, difference - reach), min(1.0, difference + reach)
