"""Every checkpoint of a run on the same images: accuracy and loss against step, and which step would have sufficed.

In: the evaluations that `vlmtune checkpoints` made. Out: a JSON-ready dictionary, read again by the report. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmtune.evaluate.compare import align, figures_of
from vlmtune.evaluate.files import Evaluation
from vlmtune.evaluate.statistics import adjust, paired_test


def measure_checkpoint_curve(
    evaluations: Sequence[tuple[int, Evaluation]], num_steps: int, averages: Sequence[Evaluation] = ()
) -> dict[str, Any]:
    """Compare every checkpoint with the best one, image by image.

    Args:
        evaluations: (step, evaluation) of the same images, by step.
        num_steps: of the whole run, by which savings are counted.
        averages: of averaged checkpoints, which belong to no step.

    Returns:
        ``checkpoints``, each with its figures and its paired test against the best (mid-p McNemar, Holm-adjusted over
        the others); ``averages``, the same with a ``name`` for a step; ``best_step``: highest accuracy, of equals the
        lowest loss, then the earlier; ``stop_step``: the earliest that is not significantly worse than the best.

    Raises DataError for evaluations of different images.
    """
    steps = [step for step, _ in evaluations]
    every = [*(e for _, e in evaluations), *averages]
    tables = align(every) if len(every) > 1 else [every[0].predictions]
    correct = [table.correct for table in tables]
    points = [{"step": step, **_figures(evaluation)} for step, evaluation in evaluations]
    averaged = [{"name": evaluation.name, **_figures(evaluation)} for evaluation in averages]

    def standing(index: int) -> tuple[float, float, int]:
        loss = points[index]["nll"]
        return float(points[index]["accuracy"]), -(loss if loss is not None else 0.0), -steps[index]

    best = max(range(len(points)), key=standing)
    tests = {index: paired_test(correct[best], right) for index, right in enumerate(correct) if index != best}
    adjust(list(tests.values()))
    for index, point in enumerate([*points, *averaged]):
        test = tests.get(index)
        point["is_best"] = test is None
        point |= {key: test and test[key] for key in ("difference", "difference_interval", "p_value", "p_holm")}
        point["is_worse"] = test is not None and test["is_significant"] and test["difference"] < 0
    num = len(tables[0])
    data = evaluations[0][1].facts.get("data") or {}
    return {
        "split": data.get("split"),
        "limit": data.get("limit"),
        "num_examples": num,
        "num_steps": max([num_steps, *steps]),
        "checkpoints": points,
        "averages": averaged,
        "best_step": steps[best],
        "stop_step": next(point["step"] for point in points if not point["is_worse"]),
    }


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    figures = figures_of(evaluation)
    keys = ("accuracy", "accuracy_interval", "num_correct", "nll", "ece")
    return {**{key: figures[key] for key in keys}, "seconds": evaluation.facts.get("seconds")}
