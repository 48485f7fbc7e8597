"""How well a model in training does on images it does not learn from. Called by the loop between steps.

Asks through the same `Predictor` as evaluation, so that a validation accuracy means what a test accuracy means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlmtune.data.vqa_splits import image_order
from vlmtune.inference.generation import Sampling
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.records import Example, LabelScores
from vlmtune.text.vqa_accuracy import vqa_accuracy


@dataclass(frozen=True)
class Validation:
    """One measurement of a whole validation split.

    Attributes:
        accuracy: an unreadable image counts as wrong.
        loss: mean negative log-probability of the true answer; None where answers are generated and not scored.
        num: examples; num_unreadable: those among them whose image could not be read.
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


class QuestionValidator:
    """The official VQA accuracy, of answers that are generated, or scored where there is a closed list of them."""

    def __init__(self, predictor: Predictor, examples: Sequence[Example]) -> None:
        self.predictor = predictor
        # Image by image, so that each is encoded once.
        self.examples = [examples[position] for position in image_order(examples)]

    def measure(self) -> Validation:
        total, num_read = 0.0, 0
        for example, answer in zip(self.examples, self._answers(), strict=True):
            if answer is not None:
                total += vqa_accuracy(answer, example.answers)
                num_read += 1
        num = len(self.examples)
        return Validation(total / num, None, num, num - num_read)

    def _answers(self) -> Iterator[str | None]:
        """An answer a question; None where the image cannot be read."""
        queries = map(Query.of, self.examples)
        if self.predictor.labels is None:
            sampling = Sampling(max_new_tokens=self.predictor.task.max_answer_tokens)
            for answer in self.predictor.answer(queries, sampling):
                yield answer if isinstance(answer, str) else None
        else:
            for scores in self.predictor.classify(queries, mode="argmax"):
                yield scores.prediction if isinstance(scores, LabelScores) else None


def choose_validator(predictor: Predictor, examples: Sequence[Example]) -> Validator | None:
    """The validator of a run; None without validation images."""
    if not examples:
        return None
    is_label = predictor.task.is_closed and not predictor.task.asks_from_data
    return LabelValidator(predictor, examples) if is_label else QuestionValidator(predictor, examples)
