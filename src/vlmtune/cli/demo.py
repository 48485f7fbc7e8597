"""`vlmtune demo`: baseline, fine-tuning on 10 % and on 100 %, comparison and report, on what the package holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import print_json, print_table, stderr_console
from vlmtune.cli.options import JsonOption
from vlmtune.config.schema import Experiment

_RUNS = {"tuned_10": 0.1, "tuned_100": 1.0}


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of splits, order and LoRA's start.")] = 0,
    json_: JsonOption = False,
) -> None:
    """The whole story in minutes, on a CPU and without a network.

    The built-in model, which has never seen a handwritten digit, reads scikit-learn's digits; then it is fine-tuned
    with LoRA on 10 % and on 100 % of the training images, and all three are measured on the same held-out test.
    """
    from vlmtune.cli.baselines import measure_baselines
    from vlmtune.cli.evaluate import run_evaluation
    from vlmtune.cli.train import run_training
    from vlmtune.report.render import render_comparison
    from vlmtune.runs.prepare import load_data

    console = stderr_console()
    started = time.perf_counter()
    folder = _free(output)
    experiments = {name: _experiment(name, fraction, seed, folder) for name, fraction in _RUNS.items()}
    resolved, splits = load_data(experiments["tuned_100"])
    console.print(f"1/3 baseline: builtin:tiny on {len(splits.test)} held-out digits", style="bold")
    evaluations = [run_evaluation(resolved, splits, checkpoint=None, folder=folder, name="baseline")]
    accuracies = {"baseline": evaluations[0].accuracy}
    for number, (name, experiment) in enumerate(experiments.items(), start=2):
        console.print(f"{number}/3 {name}: LoRA on {100 * _RUNS[name]:.0f} % of the training images", style="bold")
        result = run_training(experiment, with_base=False)
        accuracies[name] = result["test_accuracy"]
    console.print("baselines: without images, and with frozen vision features", style="bold")
    measure_baselines(resolved, splits, folder / "tuned_100", base=evaluations[0].folder)
    folders = [evaluations[0].folder, *(folder / name / "evaluation" / "test-fine-tuned" for name in _RUNS)]
    report = render_comparison(
        folders, folder / "report.html", "A small model learns to read digits", runs=[folder / name for name in _RUNS]
    )
    seconds = time.perf_counter() - started
    if json_:
        print_json({**accuracies, "report": str(report), "seconds": round(seconds, 1)})
        return
    rows = [
        [name.replace("_", " ") + (" %" if "_" in name else ""), f"{100 * a:.1f} %"] for name, a in accuracies.items()
    ]
    print_table(["model", f"accuracy on {len(splits.test)} held-out digits"], rows)
    print(f"{seconds / 60:.1f} minutes. Report: {report}")


def _experiment(name: str, fraction: float, seed: int, folder: Path) -> Experiment:
    experiment = Experiment(name=name, seed=seed, output_dir=str(folder))
    experiment.data.fraction = fraction
    experiment.train.augment = ["shift-rotate"]  # a digit stays a digit; 10 % of the images gain three points by it
    return experiment


def _free(output: Path) -> Path:
    """The folder itself, or the first of FOLDER-2, FOLDER-3… that is not taken: no earlier demo is written over."""
    candidate, number = output, 2
    while candidate.exists() and any(candidate.iterdir()):
        candidate, number = output.with_name(f"{output.name}-{number}"), number + 1
    return candidate
