"""What an example teaches: answer texts with weights, each of which becomes a branch of the prefix tree.

In: an example and the epoch it is seen in. Out: `{answer text: weight}`. The one place where labels, annotators'
answers or captions are turned into what is learned; training's item reader and preflight call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

import numpy as np

from vlmtune.config.checks import closed_only_keys
from vlmtune.config.schema import TrainSection
from vlmtune.errors import DataError, UserError
from vlmtune.records import Example
from vlmtune.tasks.question import Closed, Question, Task

Draw = np.random.Generator
AnswerRule = Literal["sample", "majority"]

EXACT_LABELS = 16
"""Label sets up to this size are smoothed exactly, with every label a branch under each image."""
NUM_DRAWN = 4
"""For larger sets, this many other labels are drawn for each sample."""


class Targets:
    """The targets of a run's examples. The same arguments give the same targets: resuming a run changes nothing.

    A closed question teaches a label's first surface form, with label smoothing and class weights. Smoothing ε makes
    the target (1 - ε)·[true label] + ε·uniform over all L labels (arXiv 1512.00567). Up to `EXACT_LABELS` labels,
    every one is a branch of the tree and the loss is exact. Beyond, `NUM_DRAWN` of the other labels are drawn without
    replacement for each sample and share their whole weight: the same loss in expectation. Class weights multiply a
    label's part of the loss, as those of torch's `cross_entropy` do for soft targets.

    Args:
        task: the questions that the examples ask.
        train: smoothing, class weights, and which of several answers is learned.
        seed: of the run.
        examples: the training split, whose label frequencies balance the class weights.

    Raises:
        UserError: an option of closed answers, and a question whose answers are open.
    """

    def __init__(self, task: Task, train: TrainSection, seed: int, examples: Sequence[Example]) -> None:
        has_open = any(question.labels is None for question in task.questions)
        if has_open and (keys := closed_only_keys(train)):
            listed = ", ".join(f"train.{key}" for key in keys)
            raise UserError(f"{listed}: needs a closed set of answers, and those of task.type: text are open.")
        self.task, self.rule, self.smoothing, self.seed = task, train.answer, train.label_smoothing, seed
        is_balanced = train.class_weights == "balanced"
        self.class_weights = balanced_weights(task, examples, train.answer) if is_balanced else {}
        """Question id -> stored label -> factor on its losses; a label that is missing has 1."""

    def of(self, example: Example, epoch: int, draw: Draw) -> dict[str, float]:
        """The answers an example teaches in an epoch (from 0), with the weights of their losses.

        Args:
            example: from the training split.
            epoch: how often the example was seen before.
            draw: source of randomness; depends on the run's seed and the example's slot in it alone.

        Raises DataError for an example without a usable answer.
        """
        question = self.task.question(example)
        space, answer = question.space, choose_answer(question, example, self.rule, self.seed, epoch)
        if not isinstance(space, Closed):
            return {space.text(answer): 1.0}
        shares = self._smoothed(space, answer, draw) if self.smoothing else {answer: 1.0}
        weights = self.class_weights.get(question.id, {})
        return {space.text(label): share * weights.get(label, 1.0) for label, share in shares.items()}

    def strata(self, examples: Sequence[Example]) -> list[str]:
        """The strata of balanced sampling: each example's question with its most frequent answer."""
        questions = [self.task.question(example) for example in examples]
        return [f"{q.id}\0{q.truth(example)}" for q, example in zip(questions, examples, strict=True)]

    def _smoothed(self, space: Closed, label: str, draw: Draw) -> dict[str, float]:
        """Label -> its share of the target; the shares sum to 1."""
        num = len(space.labels)
        others = [other for other in space.labels.stored if other != label]
        if num > EXACT_LABELS:
            others = [others[index] for index in draw.choice(len(others), NUM_DRAWN, replace=False)]
        each = self.smoothing * (num - 1) / num / len(others)
        return {label: 1 - self.smoothing * (num - 1) / num, **dict.fromkeys(others, each)}


def choose_answer(question: Question, example: Example, rule: AnswerRule, seed: int, epoch: int) -> str:
    """The answer that is learned in an epoch.

    ``sample`` draws from the annotators' answers without replacement over epochs, each round of as many epochs as
    there are answers in a new order (PaliGemma's VQAv2 recipe): in a round every annotator is used once.
    ``majority`` takes the most frequent answer, the first given among ties.

    Raises:
        DataError: if no answer is left to learn.
    """
    answers = question.space.usable(example.answers)
    if not answers:
        expected = "with any text" if question.labels is None else "in the label set"
        raise DataError(
            f"{example.id}: none of its {len(example.answers)} answers is {expected}. Leave the question out."
        )
    if rule == "majority":
        return question.truth(example) or answers[0]
    round_, index = divmod(epoch, len(answers))
    order = list(range(len(answers)))
    Random(f"answer {seed} {example.id} {round_}").shuffle(order)
    return answers[order[index]]


def balanced_weights(task: Task, examples: Sequence[Example], rule: AnswerRule) -> dict[str, dict[str, float]]:
    """Question id -> label -> N / (L · n): the inverse of its frequency, with a mean of 1 over the question's examples.

    If an example has several answers, each counts as often as it is learned: its share, or only the most frequent.
    """
    counts: dict[str, dict[str, float]] = {}
    totals: dict[str, int] = {}
    for example in examples:
        question = task.question(example)
        answers = question.space.usable(example.answers)
        if rule == "majority":
            answers = [question.truth(example) or answers[0]] if answers else []
        of_question = counts.setdefault(question.id, {})
        for answer in answers:
            of_question[answer] = of_question.get(answer, 0.0) + 1 / len(answers)
        totals[question.id] = totals.get(question.id, 0) + bool(answers)
    return {
        id_: {label: totals[id_] / (len(of_question) * count) for label, count in of_question.items()}
        for id_, of_question in counts.items()
    }


def mix(first: Mapping[str, float], second: Mapping[str, float], share: float) -> dict[str, float]:
    """The targets of a mixed image: ``share`` of the first one's weights and the rest of the second one's."""
    mixed = {answer: share * weight for answer, weight in first.items()}
    for answer, weight in second.items():
        mixed[answer] = mixed.get(answer, 0.0) + (1 - share) * weight
    return {answer: weight for answer, weight in mixed.items() if weight > 0}
