"""A whole split through the predictor, into an evaluation folder: the one guarded path for every command.

Nothing leaves the denominator: an unreadable image is a wrong answer and is listed with its reason. A killed
evaluation is resumed from its finished blocks and writes the same predictions.parquet, byte for byte. Questions are
asked image by image, so that each image is encoded once; results are in the split's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.config.schema import EvaluateSection, Experiment
from vlmtune.data.sampling import subset
from vlmtune.data.splits import TEST_SEED, Splits, fingerprint
from vlmtune.errors import DataError, UserError
from vlmtune.evaluate.answers import Asker, ScoreRuleChoice, block_size, cache_key, task_facts
from vlmtune.evaluate.block_cache import BlockCache, Watch, unwatched
from vlmtune.evaluate.calibration import calibrate
from vlmtune.evaluate.files import is_evaluation, read_facts, thumbnail, thumbnail_rows, write_evaluation
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.scoring import ScoreRule, score_rules
from vlmtune.evaluate.trained_images import refuse_trained_images
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example
from vlmtune.runs.environment import environment, now
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import open_checkpoint
from vlmtune.tasks.question import Question, Task


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation as it was written: its folder and its figures."""

    folder: Path
    facts: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Mean score; NaN where no true answer is known."""
        accuracy = self.facts["metrics"]["accuracy"]
        return float("nan") if accuracy is None else float(accuracy)


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
) -> EvaluationResult:
    """Evaluate a checkpoint, or the base for None, into ``folder``/evaluation/SPLIT-NAME.

    Args:
        experiment: as loaded, every left-out key decided.
        splits: its data.
        name: default: base, fine-tuned, or the checkpoint's.
        opened: the model with that checkpoint, if the caller has it open already.
        watch, say: see `evaluate`.

    Raises:
        UserError: see `evaluate`; or the model was trained on images of this split.
    """
    section = experiment.evaluate
    examples = measured_examples(section, splits)
    if checkpoint is not None and section.split != "train":
        refuse_trained_images(checkpoint, splits, examples, say)
    opened = opened or open_checkpoint(experiment.model, checkpoint)
    task = experiment.task if checkpoint is None else experiment.task.after_first_epoch()
    if name is None:
        name = "base" if checkpoint is None else "fine-tuned" if checkpoint.name == "best" else checkpoint.name
    total = splits.description.get("splits", {}).get(section.split, {}).get("found", len(examples))
    facts = {
        "model": str(checkpoint or experiment.model.base),
        "base": experiment.model.base,
        "checkpoint": None if checkpoint is None else checkpoint.resolve().name,
        "data": {
            "source": experiment.data.source,
            "split": section.split,
            "num_examples": len(examples),
            "limit": len(examples) if len(examples) < total else None,
            "fingerprint": fingerprint(examples),
            "left_out": splits.description.get("left_out"),
        },
    }
    (question,) = Task.of(task, splits.labels).questions
    target = RunLayout(folder).evaluation(section.split, name)
    if is_evaluation(target) and (before := int(read_facts(target)["data"].get("num_examples", 0))) > len(examples):
        say(f"This replaces {target}, which was measured on {before} examples, by one of {len(examples)}.")
    return evaluate(
        question, opened, examples, target, name=name, section=section, splits=splits, facts=facts, watch=watch, say=say
    )


def measured_examples(section: EvaluateSection, splits: Splits) -> list[Example]:
    """The examples of `evaluate.split` and `evaluate.limit`; stratified, as the first ones may be of one class."""
    examples = splits.split(section.split)
    return examples if section.limit is None else subset(examples, section.limit, TEST_SEED)


def evaluate(
    question: Question,
    opened: OpenedModel,
    examples: Sequence[Example],
    folder: Path,
    *,
    name: str,
    section: EvaluateSection | None = None,
    splits: Splits | None = None,
    facts: dict[str, Any] | None = None,
    watch: Watch = unwatched,
    say: Callable[[str], None] = lambda text: None,
) -> EvaluationResult:
    """Ask a question about every example and write the evaluation.

    Args:
        question: closed, and its labels are scored, or open, and answers are generated greedily.
        examples: the whole split; examples without known answers are answered but not measured.
        folder: replaced if it holds an older evaluation; an unfinished one is resumed.
        name: shown in tables and charts.
        section: mode, scoring and calibration; default: every label's probability, nothing chosen or fitted.
        splits: source of validation and training images for scoring and calibration.
        facts: more entries for evaluation.json: model, base, checkpoint, data.
        watch: shows progress; see `BlockCache.run`. say: called with messages for the user.

    Raises:
        DataError: nothing to evaluate, or no images to choose or fit on. UserError: a key of ``section`` that does not
            apply to open answers. RunFolderError: the folder cannot be written.
    """
    if not examples:
        raise DataError("There is nothing to evaluate: the split is empty. Check data.source and evaluate.split.")
    section, splits = section or EvaluateSection(), splits or Splits([], [], [], question.labels)
    _require_keys(section, splits, question)
    keep_freed_memory()
    facts = {"data": {"num_examples": len(examples), "fingerprint": fingerprint(examples)}, **(facts or {})}
    predictor = question.predictor(opened, section.batch_size)
    key = cache_key(predictor, {"data": facts["data"]["fingerprint"], "mode": section.mode})
    cache = BlockCache(folder, key, say=say, block_size=block_size(predictor.batch_size))
    asker = Asker(question, predictor, section.mode, cache, watch)
    answers = asker.ask(section.split, examples, name)
    choice = ScoreRuleChoice(asker, section, splits, examples) if question.labels is not None else None
    table = choice.table(answers) if choice else asker.table(answers)
    thumbnails: dict[str, bytes] = {}
    for row in thumbnail_rows(table):
        image_id = examples[row].image_id or examples[row].id
        if image_id not in thumbnails:
            thumbnails[image_id] = thumbnail(examples[row].image.open())
    all_facts = {
        "name": name,
        "task": task_facts(question),
        "labels": list(question.labels.stored) if question.labels else None,
        "mode": section.mode if choice else "generate",
        **asker.cost(answers),
        "created": now(),
        **environment(),
        **facts,
        "scoring": choice.facts if choice else None,
        "metrics": measure(table),
        "unreadable": [
            {"id": example.id, "error": error}
            for example, error in zip(examples, answers.errors, strict=True)
            if error is not None
        ],
    }
    if section.calibrate and choice:
        validation = choice.table(choice.validation())
        all_facts["calibration"] = calibrate(validation, table, section.wanted_coverage, section.wanted_precision)
    write_evaluation(folder, all_facts, table, thumbnails)
    cache.discard()
    return EvaluationResult(folder, all_facts)


def _require_keys(section: EvaluateSection, splits: Splits, question: Question) -> None:
    """Check settings before any image is scored. Raises UserError and DataError."""
    rules = score_rules(section.scoring)
    if question.labels is None:
        set_keys = {
            "evaluate.calibrate": section.calibrate,
            "evaluate.scoring": rules != [ScoreRule()],
            "evaluate.mode: argmax": section.mode == "argmax",
        }
        if wrong := [key for key, is_set in set_keys.items() if is_set]:
            raise UserError(
                f"{', '.join(wrong)}: needs the probability of every label, and the answers of this task are open. "
                "Remove it, or name the answers to choose from (task.type: choice, task.labels)."
            )
    if (section.calibrate or len(rules) > 1) and not splits.validation:
        raise DataError(
            "evaluate.scoring: auto and evaluate.calibrate need validation images, found none. Name some "
            "(data.validation_split), or omit both."
        )
