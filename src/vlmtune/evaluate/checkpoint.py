"""From an experiment and a checkpoint to an evaluation folder: the guarded way that every command takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmtune.config.load import load_experiment
from vlmtune.config.schema import EvaluateSection, Experiment
from vlmtune.data.duplicates import group_identical_files
from vlmtune.data.sampling import subset
from vlmtune.data.splits import TEST_SEED, Splits, fingerprint, load_splits
from vlmtune.errors import DataError, UserError
from vlmtune.evaluate.block_cache import Watch, unwatched
from vlmtune.evaluate.files import is_evaluation, read_facts
from vlmtune.evaluate.run import Measured, evaluate
from vlmtune.evaluate.vqa_run import evaluate_vqa
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.open import find_run
from vlmtune.runs.prepare import open_checkpoint
from vlmtune.runs.record import read_record


def evaluate_checkpoint(
    experiment: Experiment,
    splits: Splits,
    *,
    checkpoint: Path | None,
    folder: Path,
    name: str | None = None,
    opened: OpenedModel | None = None,
    watch: Watch = unwatched,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Evaluate a checkpoint, or the base for None, into ``folder``/evaluation/SPLIT-NAME.

    Args:
        experiment: as loaded, every left-out key decided.
        splits: its data.
        name: default: base, fine-tuned, or the checkpoint's.
        opened: the model with that checkpoint in it, where the caller has it open already.
        watch, say: see `run.evaluate`.

    Raises:
        UserError: see `run.evaluate`; or the model has learned from images that it would be measured on.
    """
    section = experiment.evaluate
    examples = measured_examples(section, splits)
    if checkpoint is not None and section.split != "train":
        refuse_trained_images(checkpoint, splits, examples, say)
    opened = opened or open_checkpoint(experiment.model, checkpoint)
    task = experiment.task if checkpoint is None else experiment.task.after_first_epoch()
    name = name or ("base" if checkpoint is None else _checkpoint_name(checkpoint))
    found = splits.description.get("splits", {}).get(section.split, {}).get("found", len(examples))
    facts = {
        "model": str(checkpoint or experiment.model.base),
        "base": experiment.model.base,
        "checkpoint": None if checkpoint is None else checkpoint.resolve().name,
        "data": {
            "source": experiment.data.source,
            "split": section.split,
            "num_examples": len(examples),
            "limit": len(examples) if len(examples) < found else None,
            "fingerprint": fingerprint(examples),
            "left_out": splits.description.get("left_out"),
        },
    }
    predictor = Predictor(opened, task, splits.labels, section.batch_size)
    target = RunLayout(folder).evaluation(section.split, name)
    if is_evaluation(target) and (before := int(read_facts(target)["data"].get("num_examples", 0))) > len(examples):
        say(f"This replaces {target}, which was measured on {before} examples, by one of {len(examples)}.")
    if task.asks_from_data or not task.is_closed:
        return evaluate_vqa(predictor, examples, target, name=name, section=section, facts=facts, watch=watch, say=say)
    return evaluate(
        predictor, examples, target, name=name, section=section, splits=splits, facts=facts, watch=watch, say=say
    )


def measured_examples(section: EvaluateSection, splits: Splits) -> list[Example]:
    """What `evaluate.split` and `evaluate.limit` choose; stratified, for the first ones would be of one class."""
    examples = splits.split(section.split)
    return examples if section.limit is None else subset(examples, section.limit, TEST_SEED)


def refuse_trained_images(
    checkpoint: Path, splits: Splits, examples: Sequence[Example], say: Callable[[str], None]
) -> None:
    """Refuse examples that a run learned from, as another seed, fraction or source than the run's may bring about.

    The run's own splits are read again and its files compared byte for byte. Where that cannot be done, and where the
    run chose its checkpoint by some of the examples, ``say`` is told.

    Raises UserError with the count.
    """
    run = find_run(checkpoint)
    if run is None:
        return
    described = splits.description.get("splits", {})
    recorded = _recorded_fingerprints(run)
    if recorded and all(recorded[role] == described.get(role, {}).get("fingerprint") for role in recorded):
        return  # the splits that the run was trained with: they are disjoint
    trained = load_experiment(run, must_exist=False)
    try:
        own = load_splits(trained.data, trained.task, trained.seed)
    except DataError as error:
        say(f"Warning: nothing says whether {run} was trained on some of these images: its data are gone ({error})")
        return
    num_trained = _num_shared(own.train, examples)
    if num_trained:
        raise UserError(
            f"{run} was trained on {num_trained} of the {len(examples)} images it would be measured on: data.source, "
            f"data.test_fraction or seed differ from its config.yaml. Evaluate it as it was trained (vlmtune evaluate "
            f"{run}), or name images it has not seen."
        )
    num_validation = _num_shared(own.validation, examples)
    if num_validation:
        say(
            f"Warning: {num_validation} of the {len(examples)} images chose the best checkpoint of {run} (its "
            "validation split), so its accuracy on them is somewhat too high."
        )


def _recorded_fingerprints(run: Path) -> dict[str, str]:
    """Of the training and validation images; empty if run.json does not say."""
    try:
        roles = read_record(run).data["splits"]
        return {role: roles[role]["fingerprint"] for role in ("train", "validation")}
    except (UserError, KeyError, TypeError):
        return {}


def _num_shared(learned: Sequence[Example], examples: Sequence[Example]) -> int:
    """How many of the examples are, byte for byte, images that were learned from."""
    first = group_identical_files([example.image for example in (*learned, *examples)])
    return sum(place < len(learned) for place in first[len(learned) :])


def _checkpoint_name(checkpoint: Path) -> str:
    return "fine-tuned" if checkpoint.name == "best" else checkpoint.name
