"""The same experiment on growing shares of its training images, with several seeds. Called by `learning-curve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmtune.config.schema import Experiment
from vlmtune.data.splits import fingerprint
from vlmtune.errors import UserError
from vlmtune.evaluate.curves import LearningCurveRun, measure_learning_curve
from vlmtune.evaluate.files import facts_if_of, read_evaluation
from vlmtune.evaluate.run import measured_examples
from vlmtune.report.learning_curve import write_learning_curve
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import load_data
from vlmtune.runs.record import RunResult, read_record
from vlmtune.workflows.evaluate import evaluate
from vlmtune.workflows.progress import SILENT, Observer
from vlmtune.workflows.train import can_resume, train


def measure_curve(
    experiment: Experiment, fractions: Sequence[float], seeds: Sequence[int], observer: Observer = SILENT
) -> tuple[dict[str, Any], Path]:
    """Train and test on each share with each seed, the smallest share first; finished runs are kept.

    Returns:
        The figures, and the page, which is rewritten after every run.
    """
    folder = Path(experiment.output_dir) / f"{experiment.name}-learning-curve"
    resolved, splits = load_data(experiment)
    if not splits.test:
        raise UserError("A learning curve needs test images. Check data.test_split and data.test_fraction.")
    measured = fingerprint(measured_examples(resolved.evaluate, splits))
    base_folder = RunLayout(folder).evaluation("test", "base")
    # One of other images belongs to an earlier curve with other data or another limit.
    if facts_if_of(base_folder, measured) is None:
        evaluate(resolved, splits, checkpoint=None, folder=folder, observer=observer)
    base = read_evaluation(base_folder)
    planned = [(fraction, seed) for fraction in fractions for seed in seeds]
    about = {"name": experiment.name, "source": experiment.data.source, "model": experiment.model.base}
    runs = []
    result: dict[str, Any] = {}
    page = folder
    for number, (fraction, seed) in enumerate(planned, start=1):
        run = experiment.model_copy(deep=True)
        run.name, run.seed, run.output_dir = f"fraction-{fraction:g}-seed-{seed}", seed, str(folder)
        run.data.fraction = fraction
        observer.message(f"run {number} of {len(planned)}: {run.name}", "heading")
        trained = train(run, resume=can_resume(folder / run.name), with_base=False, observer=observer)
        runs.append(_describe(RunLayout(folder / run.name), fraction, seed, trained))
        result = {**measure_learning_curve(runs, base), **about, "num_planned": len(planned)}
        page = write_learning_curve(folder, result)
    return result, page


def _describe(run: RunLayout, fraction: float, seed: int, trained: RunResult) -> LearningCurveRun:
    return LearningCurveRun(
        fraction,
        seed,
        num_train=read_record(run.path).data["splits"]["train"]["used"],
        folder=run.path.name,
        evaluation=read_evaluation(run.evaluation("test", "fine-tuned")),
        steps=trained.steps,
        seconds=trained.seconds,
    )
