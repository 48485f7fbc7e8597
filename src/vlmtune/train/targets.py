"""What an example teaches: answer texts with weights, each of which becomes a branch of the prefix tree.

In: an example and the epoch it is seen in. Out: `{answer text: weight}`. The one place where a label set, annotators'
answers or captions are turned into what is learned.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from vlmtune.config.schema import Experiment
from vlmtune.records import Example, LabelSet

Draw = np.random.Generator


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
    """A label's first surface form."""

    def __init__(self, labels: LabelSet) -> None:
        self.names = dict(zip(labels.stored, (forms[0] for forms in labels.shown), strict=True))

    def of(self, example: Example, epoch: int, draw: Draw) -> dict[str, float]:
        return {self.names[example.label]: 1.0}


class FirstAnswer:
    """The first of an example's answers: a caption, or the one answer of a question."""

    def of(self, example: Example, epoch: int, draw: Draw) -> dict[str, float]:
        return {example.answers[0]: 1.0}


def choose_targets(experiment: Experiment, labels: LabelSet | None) -> Targets:
    """The targets of a run: by its task, and by whether there is a closed set of answers."""
    return FirstAnswer() if labels is None else LabelTargets(labels)
