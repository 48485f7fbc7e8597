"""A predictor behind the block cache, and how the scores of labels become probabilities. Called by `evaluate`.

In: examples. Out: what the predictor answered, in the order of the examples, and the table of predictions under the
score rule that was requested or that validation chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmtune.config.schema import EvaluateSection
from vlmtune.data.sampling import image_order, stratified_order
from vlmtune.data.splits import TEST_SEED, Splits
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.evaluate.block_cache import BLOCK_SIZE, BlockCache, Watch
from vlmtune.evaluate.scoring import (
    References,
    ScoreRule,
    choose,
    content_free_images,
    label_log_probs,
    question_key,
    score_rules,
)
from vlmtune.evaluate.table import AnswerSpace, PredictionTable, matrix_from_arrow
from vlmtune.inference.posterior import SurfaceForms
from vlmtune.inference.predictor import Mode, Predictor
from vlmtune.models.fingerprint import features_key
from vlmtune.records import Example
from vlmtune.runs.environment import environment
from vlmtune.tasks.question import Question

NUM_PRIOR_IMAGES = 256
"""Number of training examples used to estimate the prior of batch calibration."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RECORD = pa.schema(
    [
        ("prediction", pa.string()),
        ("form_scores", pa.list_(pa.float64())),
        ("num_prompt_tokens", pa.int64()),
        ("num_rows", pa.int64()),
        ("error", pa.string()),
    ]
)


def cache_key(predictor: Predictor, more: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a `BlockCache`: weights, preprocessing, prompts, versions; all but the examples."""
    opened, labels = predictor.opened, predictor.labels
    versions = environment()["versions"]
    every_tensor = ("",)  # as the beginning of its name
    return {
        "model": features_key(opened, every_tensor, str(next(opened.model.parameters()).dtype)),
        "device": opened.model.device.type,
        "task": predictor.task.model_dump(mode="json"),
        "labels": None if labels is None else [labels.stored, labels.shown],
        "batch_size": predictor.batch_size,
        "version of vlmtune or torch": [versions["vlmtune"], versions["torch"]],
        **more,
    }


def block_size(batch_size: int | None) -> int:
    """Examples per block: whole batches, so that no block ends with a partial one."""
    return BLOCK_SIZE if batch_size is None else -(-BLOCK_SIZE // batch_size) * batch_size


def task_facts(question: Question) -> dict[str, Any]:
    """The entry ``task`` of evaluation.json."""
    return {"type": question.type, "question_from": "data" if question.section.asks_from_data else "prompt"}


def predictions_of(
    question: Question, examples: Sequence[Example], predictions: Sequence[str | None], **columns: Any
) -> PredictionTable:
    """The table of predictions for a question; ``columns`` see `PredictionTable.of_examples`."""
    labels = question.labels
    space = AnswerSpace(question.type, None if labels is None else labels.stored)
    return PredictionTable.of_examples(examples, predictions, {question.id: space}, question.score, **columns)


@dataclass(frozen=True)
class Answers:
    """What the predictor gave for a list of examples, in their order.

    Attributes:
        predictions: the answer, or the winner by the plain sum; None for an unreadable image.
        form_scores: float64[N, F], NaN for an unreadable image; None in arg-max mode and for open answers.
        num_tokens: int64[N] decoder positions run for each example alone.
        num_blocks: calls of the predictor, each of which ran the shared prefix once.
    """

    examples: Sequence[Example]
    predictions: list[str | None]
    form_scores: Floats | None
    errors: list[str | None]
    num_prompt_tokens: Ints
    num_tokens: Ints
    seconds: NDArray[np.float32]
    num_blocks: int


class Asker:
    """Asks a model a question through the block cache."""

    def __init__(self, question: Question, predictor: Predictor, mode: Mode, cache: BlockCache, watch: Watch) -> None:
        self.question, self.predictor, self.mode, self.cache, self.watch = question, predictor, mode, cache, watch

    def ask(self, part: str, examples: Sequence[Example], name: str) -> Answers:
        """Answers to these examples, stored in the block cache as ``part``."""
        order = image_order(examples)
        blocks = self.cache.run(part, [examples[i] for i in order], self._work, _RECORD, self.watch, f"evaluate {name}")
        table = blocks.take(np.argsort(order))
        form_scores = None
        if table["form_scores"].null_count < len(table):
            form_scores = matrix_from_arrow(table["form_scores"], len(self.predictor.trie.forms))
        return Answers(
            examples=examples,
            predictions=table["prediction"].to_pylist(),
            form_scores=form_scores,
            errors=table["error"].to_pylist(),
            num_prompt_tokens=table["num_prompt_tokens"].to_numpy(),
            num_tokens=table["num_rows"].to_numpy(),
            seconds=table["seconds"].to_numpy(),
            num_blocks=-(-len(examples) // self.cache.block_size),
        )

    def table(
        self, answers: Answers, predictions: Sequence[str | None] | None = None, **columns: Any
    ) -> PredictionTable:
        """The table of these answers, or of other predictions for the same examples."""
        return predictions_of(
            self.question,
            answers.examples,
            answers.predictions if predictions is None else predictions,
            seconds=answers.seconds,
            error=answers.errors,
            num_tokens=None if self.question.labels is None else answers.num_tokens,
            **columns,
        )

    def cost(self, answers: Answers) -> dict[str, float | None]:
        """``seconds`` for all examples; ``num_tokens`` and ``num_tokens_unshared`` as means per example."""
        seconds = float(answers.seconds.sum())
        if self.question.labels is None:
            return {"seconds": seconds, "num_tokens": None, "num_tokens_unshared": None}
        num, prompts = len(answers.examples), answers.num_prompt_tokens[answers.num_prompt_tokens > 0]
        shared = len(self.predictor.prefix) * answers.num_blocks / num
        forms = SurfaceForms.of(self.predictor.trie.forms)
        return {
            "seconds": seconds,
            "num_tokens": float(answers.num_tokens.mean()) + shared,
            "num_tokens_unshared": float(forms.num_tokens_unshared(prompts).mean()) if len(prompts) else None,
        }

    def _work(self, block: Sequence[Example]) -> Iterator[dict[str, Any]]:
        for outcome in self.question.ask(self.predictor, block, self.mode):
            scores = outcome.scores
            yield {
                "prediction": outcome.prediction,
                "form_scores": scores and scores.form_scores,
                "num_prompt_tokens": scores.num_prompt_tokens if scores else 0,
                "num_rows": scores.num_rows if scores else 0,
                "error": outcome.error,
            }


class ScoreRuleChoice:
    """How surface-form scores become probabilities: the requested rule, or the one that validation chose.

    Attributes:
        facts: the entry ``scoring`` of evaluation.json.
    """

    def __init__(self, asker: Asker, section: EvaluateSection, splits: Splits, examples: Sequence[Example]) -> None:
        assert asker.question.labels is not None
        self.asker, self.splits, self.labels = asker, splits, asker.question.labels
        self.forms = SurfaceForms.of(asker.predictor.trie.forms)
        self._validation: Answers | None = None
        rules = score_rules(section.scoring)
        priors = {rule.prior for rule in rules}
        looks_at_validation = len(rules) > 1 or section.calibrate
        needs = [*examples, *(splits.validation if looks_at_validation else [])]
        self._questions: dict[Any, int] = {}
        self._content_free = self._score_content_free(needs) if "content-free" in priors else None
        self._training = self._score_training() if "training" in priors else References().training
        self.rule, chosen_on = rules[0], None
        figures: list[dict[str, Any]] = []
        if len(rules) > 1:
            validation = self.validation()
            self.rule, figures = self._choose(validation, rules)
            chosen_on = "validation"
        num_validation = len(splits.validation) if chosen_on else None
        self.facts: dict[str, Any] = {
            **self.rule._asdict(), "chosen_on": chosen_on, "num_validation": num_validation, "candidates": figures,
        }  # fmt: skip

    def validation(self) -> Answers:
        """The validation split's scores, computed once."""
        if self._validation is None:
            self._validation = self.asker.ask("validation", self.splits.validation, "validation")
        return self._validation

    def table(self, answers: Answers) -> PredictionTable:
        """The table of predictions under the chosen rule."""
        if answers.form_scores is None:
            return self.asker.table(answers)
        log_probs = label_log_probs(answers.form_scores, self.forms, self.rule, self._references(answers))
        names: list[str | None] = [
            None if error is not None else self.labels.stored[best]
            for best, error in zip(np.nan_to_num(log_probs).argmax(axis=1), answers.errors, strict=True)
        ]
        return self.asker.table(answers, names, log_probs=log_probs.astype(np.float32))

    def _choose(self, validation: Answers, rules: list[ScoreRule]) -> tuple[ScoreRule, list[dict[str, Any]]]:
        if validation.form_scores is None:
            raise DataError("evaluate.scoring: auto needs validation images, found none that can be read.")
        plain = self.asker.table(validation).closed
        assert plain is not None

        def score_of(predicted: Ints) -> Floats:
            names = [self.labels.stored[label] if label >= 0 else None for label in predicted]
            return self.asker.table(validation, names).score

        return choose(validation.form_scores, plain.truth, score_of, self.forms, rules, self._references(validation))

    def _references(self, answers: Answers) -> References:
        if self._content_free is None:
            return References(training=self._training)
        question_of = np.asarray([self._questions[question_key(example)] for example in answers.examples])
        return References(self._content_free, question_of, self._training)

    def _score_content_free(self, examples: Sequence[Example]) -> Floats:
        """float64[Q, 3, F]: images without content, of the first readable image's size, with each distinct question."""
        distinct = {question_key(example): example for example in examples}
        self._questions = {key: number for number, key in enumerate(distinct)}
        for example in examples:
            try:
                size = example.image.open().size
            except UnreadableImageError:
                continue  # counted and listed as a wrong answer
            images = [
                Example(f"content-free/{number}/{source.name}", source, (), original.question, image_id=source.name,
                        history=original.history, question_id=original.question_id)
                for number, original in enumerate(distinct.values())
                for source in content_free_images(size)
            ]  # fmt: skip
            scores = self.asker.ask("content-free", images, "content-free images").form_scores
            assert scores is not None
            return scores.reshape(len(distinct), -1, scores.shape[1])
        raise DataError("None of the images to evaluate can be read. See: vlmtune data check CONFIG")

    def _score_training(self) -> Floats:
        """float64[n, F]: scores of a random sample of readable training images."""
        train = self.splits.train
        order = stratified_order([example.id for example in train], [""] * len(train), TEST_SEED, "prior")
        drawn = [train[position] for position in sorted(order[:NUM_PRIOR_IMAGES])]
        scores = self.asker.ask("prior", drawn, "training images for the prior").form_scores
        if scores is None:
            raise DataError("evaluate.scoring needs training images for the prior, found none that can be read.")
        return scores[~np.isnan(scores).any(axis=1)]
