"""What an example teaches: answer texts with weights, each of which becomes a branch of the prefix tree.

In: an example and the epoch it is seen in. Out: `{answer text: weight}`. The one place where a label set, annotators'
answers or captions are turned into what is learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from vlmtune.config.schema import Experiment
from vlmtune.data.vqa_targets import AnswerRule, choose_target
from vlmtune.errors import UserError
from vlmtune.records import Example, LabelSet

Draw = np.random.Generator

EXACT_LABELS = 16
"""Label sets up to this size are smoothed exactly, with every label a branch under each image."""
NUM_DRAWN = 4
"""Of larger sets, so many other labels are drawn for each sample."""


class Targets(Protocol):
    """A way to make targets. The same arguments give the same targets: resuming a run must change nothing."""

    def of(self, example: Example, epoch: int, draw: Draw) -> dict[str, float]:
        """The answers an example teaches in an epoch (from 0), with the weights of their losses.

        Args:
            example: from the training split.
            epoch: how often the example was seen before.
            draw: for whatever is drawn at random; depends on the run's seed and the example's place in it alone.
        """
        ...


class LabelTargets:
    """A label's first surface form, with label smoothing and class weights.

    Smoothing ε makes the target (1 - ε)·[true label] + ε·uniform over all L labels (arXiv 1512.00567). Up to
    `EXACT_LABELS` labels, every one is a branch of the tree and the loss is exact. Beyond, `NUM_DRAWN` of the other
    labels are drawn without replacement for each sample and share their whole weight: the same loss in expectation.
    Weights multiply a label's part of the loss, as those of torch's `cross_entropy` do for soft targets.

    Args:
        labels: the closed set.
        smoothing: ε, from 0 to below 1.
        class_weights: stored label -> factor on its losses; a label that is not there has 1.
    """

    def __init__(
        self, labels: LabelSet, smoothing: float = 0.0, class_weights: Mapping[str, float] | None = None
    ) -> None:
        self.labels, self.smoothing = labels, smoothing
        self.weights = class_weights or {}
        self.names = dict(zip(labels.stored, (forms[0] for forms in labels.shown), strict=True))

    def of(self, example: Example, epoch: int, draw: Draw) -> dict[str, float]:
        shares = self._smoothed(example.label, draw) if self.smoothing else {example.label: 1.0}
        return {self.names[label]: share * self.weights.get(label, 1.0) for label, share in shares.items()}

    def _smoothed(self, label: str, draw: Draw) -> dict[str, float]:
        """Label -> its share of the target; the shares sum to 1."""
        num = len(self.labels)
        others = [other for other in self.labels.stored if other != label]
        if num > EXACT_LABELS:
            others = [others[place] for place in draw.choice(len(others), NUM_DRAWN, replace=False)]
        each = self.smoothing * (num - 1) / num / len(others)
        return {label: 1 - self.smoothing * (num - 1) / num, **dict.fromkeys(others, each)}


class AnnotatorTargets:
    """One annotator's answer to a question; of a closed list, in the words the model is shown for it.

    Args:
        rule: see `data.vqa_targets.choose_target`. seed: of the run, for the draw.
        labels: the closed list, if any.
    """

    def __init__(self, rule: AnswerRule, seed: int, labels: LabelSet | None) -> None:
        self.rule, self.seed = rule, seed
        shown = [] if labels is None else [forms[0] for forms in labels.shown]
        self.names = dict(zip(labels.stored, shown, strict=True)) if labels is not None else {}
        self.closed = None if labels is None else frozenset(labels.stored)

    def of(self, example: Example, epoch: int, draw: Draw) -> dict[str, float]:
        answer = choose_target(example, self.rule, self.seed, epoch, self.closed)
        return {self.names.get(answer, answer): 1.0}


def choose_targets(experiment: Experiment, labels: LabelSet | None, examples: Sequence[Example]) -> Targets:
    """The targets of a run, by its task. Raises UserError for options that only labels have."""
    train = experiment.train
    if experiment.task.asks_from_data or not experiment.task.is_closed:
        asked = {
            "mixup": train.mixup > 0,
            "cutmix": train.cutmix > 0,
            "label_smoothing": train.label_smoothing > 0,
            "class_weights: balanced": train.class_weights == "balanced",
            "sampling: balanced": train.sampling == "balanced",
        }
        if wrong := [f"train.{key}" for key, is_set in asked.items() if is_set]:
            raise UserError(f"{', '.join(wrong)}: made for labels that every image has one of. Leave it away.")
        return AnnotatorTargets(train.answer, experiment.seed, labels)
    assert labels is not None
    weights = balanced_weights(examples) if train.class_weights == "balanced" else None
    return LabelTargets(labels, train.label_smoothing, weights)


def balanced_weights(examples: Sequence[Example]) -> dict[str, float]:
    """Label -> N / (L · n): the inverse of its frequency, with a mean of 1 over the examples."""
    counts = Counter(example.label for example in examples)
    return {label: len(examples) / (len(counts) * count) for label, count in counts.items()}


def mix(first: Mapping[str, float], second: Mapping[str, float], share: float) -> dict[str, float]:
    """The targets of a mixed image: ``share`` of the first one's weights and the rest of the second one's."""
    mixed = {answer: share * weight for answer, weight in first.items()}
    for answer, weight in second.items():
        mixed[answer] = mixed.get(answer, 0.0) + (1 - share) * weight
    return {answer: weight for answer, weight in mixed.items() if weight > 0}
