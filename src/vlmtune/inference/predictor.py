"""The one way to ask a model about images: evaluation, validation inside training, prediction and serving.

In: images (and questions). Out: label scores or answers, in order. An image's prompt is built, tokenized and
encoded here and nowhere else; training takes its samples from here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from vlmtune.config.schema import TaskSection
from vlmtune.data.prefetch import read_ahead
from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.inference.batch import Request, run_prefix
from vlmtune.inference.generation import Sampling, generate
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.inference.posterior import label_log_probs, label_scores
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example, ImageSource, LabelScores, LabelSet, Turn
from vlmtune.text.prompt import PromptBuilder
from vlmtune.text.trie import LabelTrie

Mode = Literal["full", "argmax"]
Result = TypeVar("Result")

# Decoder tokens in one batch: large enough that matrix products run at full rate, small enough for a laptop.
_BATCH_TOKENS = 4096
# Approximate tokens of a label trie that the search for the best label runs per image.
_SEARCH_TOKENS = 8


@dataclass(frozen=True)
class Query:
    """An image, and the question about it where the task asks one."""

    image: ImageSource
    question: str | None = None
    history: tuple[Turn, ...] = ()

    @classmethod
    def of(cls, example: Example) -> Query:
        """The query for an example."""
        return cls(example.image, example.question, example.history)


class HasText(Protocol):
    """An image that knows its placeholder text: prepared, or taken from a cache."""

    @property
    def text(self) -> str: ...


class Predictor:
    """A model with a task: what to ask, and the closed set of answers if there is one.

    Args:
        opened: the model with its tokenizer and image processor; put in evaluation mode by each call.
        task: prompts and how labels are listed.
        labels: the closed set, or None for open answers.
        batch_size: images per batch; None decides from the length of prompt and labels.
    """

    def __init__(
        self, opened: OpenedModel, task: TaskSection, labels: LabelSet | None = None, batch_size: int | None = None
    ) -> None:
        self.opened = opened
        self.task = task
        self.labels = labels
        self.batch_size = batch_size
        self.prompt = PromptBuilder(opened.tokenizer, task, labels)

    @property
    def prefix(self) -> list[int]:
        """The tokens every prompt of this task begins with; run once for all images."""
        return self.prompt.prefix

    @cached_property
    def trie(self) -> LabelTrie:
        """The labels' tokens. Raises UserError if there is no label set, or if two labels have the same tokens."""
        if self.labels is None:
            raise UserError("This task has no label set: give task.labels, or ask open questions.")
        sequences = [[self.prompt.answer_tokens(form) for form in forms] for forms in self.labels.shown]
        try:
            return LabelTrie.build(sequences)
        except ValueError as error:
            raise UserError(f"task.labels: {error}. Labels must differ in the text the model is shown.") from error

    def process(self, query: Query) -> ProcessedImage:
        """Open and prepare one image. Raises UnreadableImageError. Safe to call from several threads."""
        return self.opened.processor.process(query.image.open())

    def rest_of_prompt(
        self, processed: HasText, question: str | None = None, history: tuple[Turn, ...] = ()
    ) -> list[int]:
        """The prompt's tokens after the shared prefix, image placeholders included."""
        return self.prompt.rest(question, processed.text, history)

    def encode(self, processed: list[ProcessedImage]) -> list[Tensor]:
        """float[T, D] features of each image."""
        return self.opened.model.encode_images(processed)

    def classify(self, queries: Iterable[Query], mode: Mode = "full") -> Iterator[LabelScores | UnreadableImageError]:
        """The closed-set result of every image, in order; an unreadable one yields its error.

        Args:
            queries: images.
            mode: ``full`` gives every label's log-probability; ``argmax`` the exact winner only, faster, with its
                unnormalized score as `log_prob`.
        """
        assert self.labels is not None
        scorer = LabelScorer(self.opened.model, self.prefix, self.trie)
        # A search runs a few tokens of the trie, not all of it.
        for outcomes, requests in self._batches(queries, len(self.trie) if mode == "full" else _SEARCH_TOKENS):
            results: list[LabelScores] = []
            if requests and mode == "full":
                form_scores = scorer.score_forms(requests).numpy()
                scores = label_scores(form_scores, scorer.forms)
                log_probs = label_log_probs(form_scores, scorer.forms)
                for row, request in enumerate(requests):
                    best = int(log_probs[row].argmax())
                    results.append(
                        LabelScores(
                            prediction=self.labels.stored[best],
                            log_prob=float(log_probs[row, best]),
                            log_probs=tuple(log_probs[row].tolist()),
                            scores=tuple(scores[row].tolist()),
                            form_scores=tuple(form_scores[row].tolist()),
                            num_prompt_tokens=len(self.prefix) + len(request.ids),
                            num_rows=len(request.ids) + self.trie.num_inner,
                        )
                    )
            elif requests:
                results = [
                    LabelScores(
                        prediction=self.labels.stored[winner.label],
                        log_prob=winner.score,
                        num_prompt_tokens=len(self.prefix) + len(request.ids),
                        num_rows=len(request.ids) + winner.num_tokens,
                    )
                    for request, winner in zip(requests, scorer.best(requests), strict=True)
                ]
            yield from _fill(outcomes, results)

    def answer(
        self, queries: Iterable[Query], sampling: Sampling | None = None
    ) -> Iterator[str | UnreadableImageError]:
        """An open answer to every question, in order; an unreadable image yields its error."""
        tokenizer, model = self.opened.tokenizer, self.opened.model
        prefix_cache = run_prefix(model.eval(), self.prefix)
        for outcomes, requests in self._batches(queries, 0):
            tokens = generate(model, prefix_cache, requests, [tokenizer.end_id], sampling) if requests else []
            yield from _fill(
                outcomes, [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in tokens]
            )

    def _batches(
        self, queries: Iterable[Query], tokens_per_image: int
    ) -> Iterator[tuple[list[UnreadableImageError | None], list[Request]]]:
        """Batches of images: for each, its error or None, and the questions of those without."""
        self.opened.model.eval()
        outcomes: list[UnreadableImageError | None] = []
        prepared: list[tuple[ImageSource, ProcessedImage, list[int]]] = []
        for query, result in self._prepared(queries):
            if isinstance(result, UnreadableImageError):
                outcomes.append(result)
            else:
                outcomes.append(None)
                prepared.append((query.image, result, self.rest_of_prompt(result, query.question, query.history)))
            size = self.batch_size
            if size is None:
                longest = max((len(prompt) for _, _, prompt in prepared), default=1) + tokens_per_image
                size = max(1, min(128, _BATCH_TOKENS // longest))
            if len(outcomes) >= size:
                yield outcomes, self._requests(prepared)
                outcomes, prepared = [], []
        if outcomes:
            yield outcomes, self._requests(prepared)

    def _prepared(self, queries: Iterable[Query]) -> Iterator[tuple[Query, ProcessedImage | UnreadableImageError]]:
        """Every query with its image, which is opened and prepared once for the questions about it in a row."""
        groups = (list(group) for _, group in groupby(queries, key=lambda query: query.image))
        for group, result in read_ahead(lambda group: self.process(group[0]), groups, size_of=lambda p: p.num_bytes):
            for query in group:
                yield query, result

    def _requests(self, prepared: list[tuple[ImageSource, ProcessedImage, list[int]]]) -> list[Request]:
        """Encode each image once, however many questions there are about it."""
        distinct = {source: image for source, image, _ in prepared}
        with torch.inference_mode():
            encoded = self.encode(list(distinct.values())) if prepared else []
        number = {source: image for image, source in enumerate(distinct)}
        return [Request(prompt, [encoded[number[source]]], number[source]) for source, _, prompt in prepared]


def _fill(
    outcomes: list[UnreadableImageError | None], results: list[Result]
) -> Iterator[Result | UnreadableImageError]:
    """Results back in the order of the images, errors in their places."""
    remaining = iter(results)
    for outcome in outcomes:
        yield next(remaining) if outcome is None else outcome
