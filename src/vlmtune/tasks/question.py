"""A task is a set of questions about an image, each with a prompt and an answer space.

In: the `task` section of an experiment and its label set. Out: a `Task`, which training, validation, evaluation and
the report ask what a question teaches, how a prediction scores, and which results belong to one image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from vlmtune.config.schema import TaskSection, TaskType
from vlmtune.errors import UnreadableImageError
from vlmtune.inference.generation import Sampling
from vlmtune.inference.predictor import Mode, Predictor, Query
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example, LabelScores, LabelSet, usable_answers
from vlmtune.text.vqa_accuracy import vqa_accuracy

NUM_ANNOTATORS = 10
"""VQA's. Its accuracy is designed for ten answers and gives 0 for a single one, which thus counts as ten equal ones."""


@dataclass(frozen=True)
class Closed:
    """A known set of answers, each of which gets a probability.

    Attributes:
        labels: the set, in its order.
        is_ordered: whether the order is a scale, from low to high.
    """

    labels: LabelSet
    is_ordered: bool = False

    def usable(self, answers: Sequence[str]) -> list[str]:
        """The answers in the set, cleaned."""
        return usable_answers(answers, self._stored)

    def text(self, answer: str) -> str:
        """What the model is taught to write for an answer: the label's first surface form."""
        return self.labels.shown[self.labels.index(answer)][0]

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """0 or 1 where all answers agree, else the official VQA accuracy."""
        given = set(usable_answers(answers))
        return float(prediction in given) if len(given) == 1 else vqa_accuracy(prediction, answers)

    def distance(self, prediction: str, truth: str) -> int:
        """How many levels lie between two labels."""
        return abs(self.labels.index(prediction) - self.labels.index(truth))

    @cached_property
    def _stored(self) -> frozenset[str]:
        return frozenset(self.labels.stored)


@dataclass(frozen=True)
class Open:
    """Any words, up to a number of tokens."""

    max_tokens: int = 32

    def usable(self, answers: Sequence[str]) -> list[str]:
        """The answers that are not empty, cleaned."""
        return usable_answers(answers)

    def text(self, answer: str) -> str:
        """What the model is taught to write for an answer: the answer."""
        return answer

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """The official VQA accuracy."""
        return vqa_accuracy(prediction, answers if len(answers) > 1 else [*answers] * NUM_ANNOTATORS)


@dataclass(frozen=True)
class Outcome:
    """The result of asking about one example.

    Attributes:
        prediction: the label, or the open answer; None for an unreadable image.
        scores: of a closed question: the probabilities and counts behind the label.
        error: why the image could not be read.
    """

    prediction: str | None
    scores: LabelScores | None = None
    error: str | None = None


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        section: the prompt's settings.
        space: the possible answers.
        id: unique within a task; examples refer to it.
    """

    section: TaskSection
    space: Closed | Open
    id: str = ""

    @property
    def type(self) -> TaskType:
        return self.section.type

    @property
    def labels(self) -> LabelSet | None:
        """The closed set; None for open answers."""
        return self.space.labels if isinstance(self.space, Closed) else None

    @property
    def is_ordered(self) -> bool:
        return isinstance(self.space, Closed) and self.space.is_ordered

    def predictor(self, opened: OpenedModel, batch_size: int | None = None) -> Predictor:
        """A predictor that asks a model this question."""
        return Predictor(opened, self.section, self.labels, batch_size)

    def ask(self, predictor: Predictor, examples: Sequence[Example], mode: Mode = "full") -> Iterator[Outcome]:
        """Ask about examples, in their order; those about one image in a row encode it once.

        Args:
            predictor: see `predictor`.
            mode: of a closed question; see `Predictor.classify`. Open answers are generated greedily.
        """
        queries = map(Query.of, examples)
        if isinstance(self.space, Open):
            for answer in predictor.answer(queries, Sampling(max_new_tokens=self.space.max_tokens)):
                yield Outcome(answer) if isinstance(answer, str) else Outcome(None, error=answer.reason)
            return
        for scores in predictor.classify(queries, mode):
            if isinstance(scores, UnreadableImageError):
                yield Outcome(None, error=scores.reason)
            else:
                yield Outcome(scores.prediction, scores)

    def truth(self, example: Example) -> str | None:
        """The most frequent usable answer, the first given among ties; None where there is none."""
        # Counter keeps the order of first occurrence, and max returns the first of ties.
        counts = Counter(self.space.usable(example.answers))
        return max(counts, key=counts.__getitem__) if counts else None

    def score(self, prediction: str | None, example: Example) -> float | None:
        """Score of a prediction, in [0, 1].

        A closed answer is right or wrong where all annotators agree; otherwise it has the official VQA accuracy, as
        open answers have. An unreadable image (None) scores 0; an example whose answers are not known has no score.
        """
        if not example.answers:
            return None
        return 0.0 if prediction is None else self.space.score(prediction, example.answers)

    def level_distance(self, prediction: str | None, example: Example) -> int | None:
        """For ordered labels: levels between prediction and truth; None where one of them is missing."""
        truth = self.truth(example)
        if not isinstance(self.space, Closed) or not self.space.is_ordered or prediction is None or truth is None:
            return None
        return self.space.distance(prediction, truth)

    @staticmethod
    def cluster(example: Example) -> str:
        """The image: results about one image are not independent, so statistics resample whole images."""
        return example.image_id or example.id


@dataclass(frozen=True)
class Task:
    """The questions of an experiment; ids are distinct."""

    questions: tuple[Question, ...]

    @classmethod
    def of(cls, section: TaskSection, labels: LabelSet | None) -> Task:
        """The task of an experiment's section.

        Args:
            section: as resolved.
            labels: the closed set that the data gave; None for open answers.

        A `text` with labels, as when a caller lists the answers to choose from, is closed.
        """
        space = Open(section.max_answer_tokens) if labels is None else Closed(labels, section.is_ordered)
        return cls((Question(section, space),))

    def question(self, example: Example) -> Question:
        """The question of an example."""
        return self._by_id[example.question_id]

    @cached_property
    def _by_id(self) -> dict[str, Question]:
        return {question.id: question for question in self.questions}
