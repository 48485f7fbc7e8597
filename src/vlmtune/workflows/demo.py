"""All steps on built-in model and data: base, fine-tuning on 10 % and on 100 %, baselines, comparison, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from vlmtune.config.schema import Experiment
from vlmtune.report.render import render_comparison
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import load_data
from vlmtune.workflows.evaluate import evaluate, measure_baselines
from vlmtune.workflows.progress import SILENT, Observer
from vlmtune.workflows.train import train

_RUNS = {"tuned_10": 0.1, "tuned_100": 1.0}


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        accuracies: on the test split, by model: baseline, tuned_10, tuned_100.
        num_test: test images.
        seconds: of everything.
    """

    accuracies: dict[str, float]
    num_test: int
    report: Path
    seconds: float


def run_demo(output: Path, seed: int, observer: Observer = SILENT) -> DemoResult:
    """Measure the base, train twice, measure again and compare; an earlier demo's folder is never overwritten."""
    started = time.perf_counter()
    folder = _free(output)
    experiments = {name: _experiment(name, fraction, seed, folder) for name, fraction in _RUNS.items()}
    resolved, splits = load_data(experiments["tuned_100"])
    observer.message(f"1/3 baseline: builtin:tiny on {len(splits.test)} held-out digits", "heading")
    base = evaluate(resolved, splits, checkpoint=None, folder=folder, name="baseline", observer=observer)
    accuracies = {"baseline": base.accuracy}
    for number, (name, experiment) in enumerate(experiments.items(), start=2):
        observer.message(f"{number}/3 {name}: LoRA on {100 * _RUNS[name]:.0f} % of the training images", "heading")
        result = train(experiment, with_base=False, observer=observer)
        assert result.test_accuracy is not None
        accuracies[name] = result.test_accuracy
    observer.message("baselines: without images, and with frozen vision features", "heading")
    runs = [folder / name for name in _RUNS]
    measure_baselines(resolved, splits, runs[-1], base=base.folder, observer=observer)
    folders = [base.folder, *(RunLayout(run).evaluation("test", "fine-tuned") for run in runs)]
    report = render_comparison(folders, RunLayout(folder).report, "A small model learns to read digits", runs=runs)
    return DemoResult(accuracies, len(splits.test), report, round(time.perf_counter() - started, 1))


def _experiment(name: str, fraction: float, seed: int, folder: Path) -> Experiment:
    experiment = Experiment(name=name, seed=seed, output_dir=str(folder))
    experiment.data.fraction = fraction
    experiment.train.augment = ["shift-rotate"]  # a digit stays a digit; worth three points at 10 % of the images
    return experiment


def _free(output: Path) -> Path:
    """The folder itself, or the first of FOLDER-2, FOLDER-3… that is not taken."""
    candidate, number = output, 2
    while candidate.exists() and any(candidate.iterdir()):
        candidate, number = output.with_name(f"{output.name}-{number}"), number + 1
    return candidate
