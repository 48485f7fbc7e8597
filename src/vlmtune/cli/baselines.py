"""`vlmtune baselines`: what needs no image, and what the frozen vision features alone would give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.cli.console import ProgressBar, print_figures, print_json
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption, open_experiment
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from vlmtune.config.schema import Experiment
    from vlmtune.data.splits import Splits


def baselines(config: ConfigArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Measure baselines on the test split: majority class, images replaced by gray, the base model
    zero-shot, and k-NN and a linear probe on the frozen vision features (settings chosen on validation).

    Writes baselines.json and an evaluation folder each into the run's folder; a trained run's report shows them.
    """
    from vlmtune.report import tables
    from vlmtune.report.baselines import against
    from vlmtune.report.render import render
    from vlmtune.report.sources import is_baseline, read_evaluations
    from vlmtune.runs.prepare import load_data, run_path

    experiment, splits = load_data(open_experiment(config, set_))
    run = config if config.is_dir() else run_path(experiment)
    result = measure_baselines(experiment, splits, run)
    if (run / "config.yaml").exists():
        render(run)
    if json_:
        print_json({"folder": str(run), **result})
        return
    tuned = [evaluation for evaluation in read_evaluations(run)[0] if not is_baseline(evaluation)]
    shown = against(result, run, tuned[-1] if tuned else None)
    rows = tables.baselines(shown)
    print_figures(rows.head(), rows.texts())
    print("\n".join(shown["summary"]))
    print(f"written to {run}: baselines.json, baselines/")


def measure_baselines(experiment: Experiment, splits: Splits, run: Path, base: Path | None = None) -> dict[str, Any]:
    """Measure the baselines of an experiment whose left-out keys are decided; write them into its folder.

    Args:
        base: the base model's evaluation, if it lies elsewhere.
    """
    from vlmtune.cli.evaluate import run_evaluation
    from vlmtune.data.splits import fingerprint
    from vlmtune.evaluate.baselines import FILE, Baselines
    from vlmtune.evaluate.checkpoint import measured_examples
    from vlmtune.evaluate.files import facts_if_of
    from vlmtune.inference.predictor import Predictor
    from vlmtune.report.files import write_json
    from vlmtune.runs.prepare import open_base, open_checkpoint

    if experiment.task.asks_from_data or not experiment.task.is_closed:
        raise UserError("Baselines are for classification, not for questions (task.type: choice).")
    opened = open_base(experiment.model)
    examples = measured_examples(experiment.evaluate, splits)
    folder = base or run / "evaluation" / f"{experiment.evaluate.split}-base"
    facts = facts_if_of(folder, fingerprint(examples))
    if facts is None:
        measured = run_evaluation(experiment, splits, checkpoint=None, folder=run, opened=opened)
        facts, folder = measured.facts, measured.folder
    found = Baselines(run, splits, examples, facts["data"])
    found.add_majority()
    if (run / "best").exists():
        tuned = open_checkpoint(experiment.model, run / "best")
        task = experiment.task.after_first_epoch()
        found.add_prompt_only(Predictor(tuned, task, splits.labels), "prompt-only-tuned", "Fine-tuned, gray images")
    found.add_prompt_only(Predictor(opened, experiment.task, splits.labels), "prompt-only", "Base, gray images")
    found.add_evaluation("base", "Base, zero-shot", facts, folder)
    total = len(splits.train) + len(splits.validation) + len(examples)
    with ProgressBar("vision features", total, unit="images") as bar:
        found.add_probes(opened, bar.advance)
    result = found.result()
    write_json(run / FILE, result)
    return result
