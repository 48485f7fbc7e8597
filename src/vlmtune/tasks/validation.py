"""How well a model does on held-out images while it trains. Called by the loop between steps.

Asks through the same `Predictor` as evaluation, so that a validation accuracy means what a test accuracy means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmtune.data.sampling import image_order
from vlmtune.inference.predictor import Mode, Predictor
from vlmtune.records import Example
from vlmtune.tasks.question import Question, Task

MOST_SCORED = 1_024
"""Largest label set that validation scores in full, for the loss; in larger ones it finds the best, which is faster."""


@dataclass(frozen=True)
class Validation:
    """One measurement of a whole validation split.

    Attributes:
        accuracy: mean score in [0, 1]; an unreadable image scores 0.
        loss: mean negative log-probability of the true answer; None where answers are generated and not scored.
        num: examples; num_unreadable: those among them whose image could not be read.
        level_distance: of scores, how many levels predictions are away from the truth on average.
    """

    accuracy: float
    loss: float | None
    num: int
    num_unreadable: int
    level_distance: float | None = None


class Validator:
    """Measures the current model on every question of a task; the caller has merged the adapter.

    Args:
        task: the questions.
        predictors: question id -> its predictor.
        examples: with known answers; at least one.
    """

    def __init__(self, task: Task, predictors: Mapping[str, Predictor], examples: Sequence[Example]) -> None:
        self.predictors = predictors
        # Image by image, so that each is encoded once for all questions about it.
        ordered = [examples[position] for position in image_order(examples)]
        members: dict[str, list[Example]] = {question.id: [] for question in task.questions}
        for example in ordered:
            members[example.question_id].append(example)
        self._parts: list[tuple[Question, list[Example]]] = [(q, members[q.id]) for q in task.questions]

    def measure(self) -> Validation:
        scores: list[float] = []
        losses: list[float] = []
        distances: list[int] = []
        num_unreadable = 0
        for question, examples in self._parts:
            labels = question.labels
            mode: Mode = "full" if labels is not None and len(labels) <= MOST_SCORED else "argmax"
            outcomes = question.ask(self.predictors[question.id], examples, mode)
            for example, outcome in zip(examples, outcomes, strict=True):
                num_unreadable += outcome.error is not None
                scores.append(question.score(outcome.prediction, example) or 0.0)
                distance, truth = question.level_distance(outcome.prediction, example), question.truth(example)
                if distance is not None:
                    distances.append(distance)
                log_probs = None if outcome.scores is None else outcome.scores.log_probs
                if labels is not None and log_probs is not None and truth is not None:
                    losses.append(-log_probs[labels.index(truth)])
        return Validation(
            accuracy=_mean(scores) or 0.0,
            loss=_mean(losses),
            num=len(scores),
            num_unreadable=num_unreadable,
            level_distance=_mean(distances),
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
