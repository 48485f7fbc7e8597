"""How well a model in training does on pictures it does not learn from. Called by the loop between steps.

Asks through the same `Predictor` as evaluation, so that a validation accuracy means what a test accuracy means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlmtune.inference.predictor import Predictor, Query
from vlmtune.records import Example, LabelScores


@dataclass(frozen=True)
class Validation:
    """One measurement of a whole validation split.

    Attributes:
        accuracy: an unreadable picture counts as wrong.
        loss: mean negative log-probability of the true answer; None where answers are generated and not scored.
        num: examples; num_unreadable: those among them whose picture could not be read.
    """

    accuracy: float
    loss: float | None
    num: int
    num_unreadable: int


class Validator(Protocol):
    """Measures the model as it stands; the caller has merged its adapter."""

    def measure(self) -> Validation: ...


class LabelValidator:
    """Label accuracy by the closed-set scorer."""

    def __init__(self, predictor: Predictor, examples: Sequence[Example]) -> None:
        self.predictor, self.examples = predictor, examples

    def measure(self) -> Validation:
        labels = self.predictor.labels
        assert labels is not None
        num_right, nll, num_read = 0, 0.0, 0
        queries = map(Query.of, self.examples)
        for example, result in zip(self.examples, self.predictor.classify(queries), strict=True):
            if isinstance(result, LabelScores):
                assert result.log_probs is not None
                num_right += result.prediction == example.label
                nll -= result.log_probs[labels.index(example.label)]
                num_read += 1
        num = len(self.examples)
        return Validation(num_right / num, nll / max(1, num_read), num, num - num_read)


class AnswerValidator:
    """The share of open answers that are one of the accepted ones, but for case and outer space."""

    def __init__(self, predictor: Predictor, examples: Sequence[Example]) -> None:
        self.predictor, self.examples = predictor, examples

    def measure(self) -> Validation:
        num_right, num_read = 0, 0
        queries = map(Query.of, self.examples)
        for example, answer in zip(self.examples, self.predictor.answer(queries), strict=True):
            if isinstance(answer, str):
                accepted = {text.strip().casefold() for text in example.answers}
                num_right += answer.strip().casefold() in accepted
                num_read += 1
        num = len(self.examples)
        return Validation(num_right / num, None, num, num - num_read)


def choose_validator(predictor: Predictor, examples: Sequence[Example]) -> Validator | None:
    """The validator of a run; None without validation pictures."""
    if not examples:
        return None
    return AnswerValidator(predictor, examples) if predictor.labels is None else LabelValidator(predictor, examples)
