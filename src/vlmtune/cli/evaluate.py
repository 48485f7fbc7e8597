"""`vlmtune evaluate`: the closed-set accuracy of a model on a whole split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.console import ProgressBar, print_json, print_table, stderr_console
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from vlmtune.data.splits import Splits
    from vlmtune.evaluate.run import Measured
    from vlmtune.models.registry import OpenedModel
    from vlmtune.records import Example


def evaluate(
    config: ConfigArgument,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="A checkpoint or run folder, or 'base'. Default: the best checkpoint of the config's run."),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Score every picture of a split and write an evaluation folder into the run's folder."""
    from vlmtune.train.prepare import load_data, run_path

    experiment = load_experiment(config, set_ or ())
    resolved, splits = load_data(experiment)
    run = run_path(resolved)
    chosen = _choose(checkpoint, run)
    measured = run_evaluation(resolved, splits, checkpoint=chosen, folder=run)
    metrics = measured.facts["metrics"]
    if json_:
        print_json({"folder": str(measured.folder), **measured.facts})
        return
    low, high = metrics["accuracy_interval"]
    rows = [
        ["accuracy", f"{100 * metrics['accuracy']:.1f} %  ({100 * low:.1f} to {100 * high:.1f})"],
        ["right", f"{metrics['num_correct']} of {metrics['num_examples']}"],
        ["macro F1", f"{metrics['macro_f1']:.3f}"],
        ["unreadable (counted as wrong)", metrics["num_unreadable"]],
        ["seconds", f"{measured.facts['seconds']:.1f}"],
    ]
    if measured.facts["data"]["limit"]:
        rows.append(["limited to", f"{measured.facts['data']['limit']} pictures"])
    print_table(["", measured.facts["name"]], rows)
    print(f"written to {measured.folder}")


def _choose(checkpoint: str | None, run: Path) -> Path | None:
    if checkpoint == "base":
        return None
    if checkpoint is not None:
        if not Path(checkpoint).exists():
            raise UserError(f"--checkpoint {checkpoint}: not found. Give a checkpoint or run folder, or 'base'.")
        return Path(checkpoint)
    if (run / "best").exists():
        return run / "best"
    stderr_console().print(f"{run}: no trained checkpoint there, so the base model is evaluated.", markup=False)
    return None


def measured_examples(experiment: Experiment, splits: Splits) -> list[Example]:
    """What `evaluate.split` and `evaluate.limit` choose."""
    from vlmtune.data.splits import TEST_SEED, subset

    section = experiment.evaluate
    examples = splits.split(section.split)
    # Stratified: the first ones would be of one class.
    return examples if section.limit is None else subset(examples, section.limit, TEST_SEED)


def run_evaluation(
    experiment: Experiment,
    splits: Splits,
    *,
    checkpoint: Path | None,
    folder: Path,
    name: str | None = None,
    opened: OpenedModel | None = None,
) -> Measured:
    """Evaluate a checkpoint (or the base, for None) into `folder`/evaluation/NAME.

    Args:
        opened: the model with that checkpoint in it, where the caller has it open already.
    """
    from vlmtune.data.splits import fingerprint
    from vlmtune.evaluate.run import evaluate as run
    from vlmtune.inference.predictor import Predictor
    from vlmtune.train.prepare import open_checkpoint

    section = experiment.evaluate
    examples = measured_examples(experiment, splits)
    opened = opened or open_checkpoint(experiment.model, checkpoint)
    task = experiment.task if checkpoint is None else experiment.task.after_first_epoch()
    predictor = Predictor(opened, task, splits.labels, section.batch_size)
    name = name or ("base" if checkpoint is None else _checkpoint_name(checkpoint))
    facts = {
        "model": str(checkpoint or experiment.model.base),
        "base": experiment.model.base,
        "checkpoint": None if checkpoint is None else checkpoint.resolve().name,
        "data": {
            "source": experiment.data.source,
            "split": section.split,
            "num_examples": len(examples),
            "limit": section.limit or (experiment.data.limit_test if section.split == "test" else None),
            "fingerprint": fingerprint(examples),
            "left_out": splits.description.get("left_out"),
        },
    }
    with ProgressBar(f"evaluate {name}", len(examples), unit="pictures") as bar:
        return run(
            predictor,
            examples,
            folder / "evaluation" / f"{section.split}-{name}",
            name=name,
            mode=section.mode,
            facts=facts,
            on_picture=bar.advance,
        )


def _checkpoint_name(checkpoint: Path) -> str:
    return "fine-tuned" if checkpoint.name == "best" else checkpoint.name
