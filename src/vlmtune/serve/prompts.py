"""Prompts that persist across requests: what requests with the same prompt share is computed once.

In: the wording of a request. Out: a `PromptState` with its tokens, its labels' trie, and the decoder's cache after
the shared prefix. Called by `service.py` and `chat.py`; the model's thread runs what belongs to the model.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, Literal

from vlmtune.config.defaults import apply
from vlmtune.config.schema import Experiment, ModelSection, TaskSection
from vlmtune.errors import UserError
from vlmtune.inference.batch import Request, run_prefix
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.inference.predictor import Predictor
from vlmtune.models.cache import Cache
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.records import LabelSet
from vlmtune.serve.errors import RefusedError

_Kind = Literal["classification", "closed", "open"]


class PromptState:
    """What the jobs of one batch share.

    Attributes:
        prefix: the tokens that every prompt begins with.
        num_label_tokens: tokens of the labels' trie, run for every image.
    """

    def __init__(self, opened: OpenedModel, prefix: list[int], num_label_tokens: int = 0) -> None:
        self.prefix = prefix
        self.num_label_tokens = num_label_tokens
        self._opened = opened
        self._cache: Cache | None = None

    def prefix_cache(self) -> Cache | None:
        """The decoder's cache after the prefix, run at the first call; None without one. For the model's thread."""
        if self._cache is None and self.prefix:
            self._cache = run_prefix(self._opened.model, self.prefix)
        return self._cache


class TaskPrompt(PromptState):
    """A task's prompt, with or without a closed set of labels.

    Attributes:
        labels: the closed set; None for open answers.
        asks_question: whether every image needs a question.
    """

    def __init__(self, opened: OpenedModel, section: TaskSection, labels: Sequence[str] | None) -> None:
        self.labels = None if labels is None else tuple(labels)
        label_set = None if labels is None else LabelSet.build(labels, section.label_names)
        self._predictor = Predictor(opened, section, label_set)
        self._scorer = None
        if labels is not None:
            self._scorer = LabelScorer(opened.model, self._predictor.prefix, self._predictor.trie)
        super().__init__(opened, self._predictor.prefix, 0 if labels is None else len(self._predictor.trie))
        self.asks_question = self._predictor.prompt.asks_question
        self._lock = Lock()

    def tokens(self, image: ProcessedImage, question: str | None) -> list[int]:
        """The prompt's tokens after the prefix. Safe to call from any thread.

        Raises UserError for an invalid question.
        """
        with self._lock:
            return self._predictor.rest_of_prompt(image, question)

    def label_log_probs(self, requests: Sequence[Request]) -> list[list[float]]:
        """float64[B][L], normalized over the labels. For the model's thread."""
        assert self._scorer is not None
        log_probs: list[list[float]] = self._scorer.log_probs(requests).tolist()
        return log_probs


class ConversationPrompt(PromptState):
    """Several turns, several images, or none, as the client sent them: no prefix is known beforehand."""

    def __init__(self, opened: OpenedModel) -> None:
        super().__init__(opened, [])
        self._tokenizer = opened.tokenizer
        self._control_token = re.compile("|".join(map(re.escape, sorted(opened.tokenizer.control_tokens))))

    def tokens(self, messages: Sequence[dict[str, Any]], images: Sequence[ProcessedImage]) -> list[int]:
        """The whole prompt. Safe to call from any thread.

        Args:
            messages: {"role", "content"} with content as text or a list of {"type": "image"} and {"type": "text"}.
            images: prepared, in the order of the messages.

        Raises:
            RefusedError: for a special token in a message. UserError: if the chat template refuses the messages.
        """
        for message in messages:
            content = message["content"]
            for text in [content] if isinstance(content, str) else [part.get("text", "") for part in content]:
                if match := self._control_token.search(text):
                    raise RefusedError(
                        400,
                        "special_token",
                        f"A message holds the special token '{match[0]}'. Write it in another way.",
                        param="messages",
                    )
        rendered = self._tokenizer.render(messages, add_generation_prompt=True)
        parts = rendered.split(self._tokenizer.image_token)
        if len(parts) != len(images) + 1:
            raise RefusedError(
                400,
                "too_many_images",
                f"This model's chat template has room for {len(parts) - 1} images, but {len(images)} were sent.",
                param="messages",
            )
        text = parts[0] + "".join(p.text + after for p, after in zip(images, parts[1:], strict=True))
        return self._tokenizer.encode(text)


class PromptCache:
    """Finds or makes the prompt of a request, and keeps the most recently used ones. Thread-safe.

    Args:
        opened: the model.
        section, labels: the model's trained task; labels None if it has none.
        base: the model under an adapter, which decides defaults.
        size: number of prompts kept.
    """

    def __init__(
        self, opened: OpenedModel, section: TaskSection, labels: Sequence[str] | None, *, base: str, size: int
    ) -> None:
        self.section = section
        self.labels = None if labels is None else tuple(labels)
        self.conversation = ConversationPrompt(opened)
        self._opened = opened
        self._base = base
        self._size = size
        self._prompts: OrderedDict[tuple[_Kind, str | None, tuple[str, ...] | None], TaskPrompt] = OrderedDict()
        self._lock = Lock()

    def classification(self, labels: Sequence[str] | None, system: str | None = None) -> TaskPrompt:
        """The trained classification prompt, with these labels or its own. Raises RefusedError without labels."""
        labels = self.labels if labels is None else labels
        if labels is None:
            raise RefusedError(
                400,
                "no_labels",
                "This model knows no labels of its own. Say which ones there are, for example labels: ['cat', 'dog'].",
                param="labels",
            )
        return self._find("classification", system, labels)

    def closed_question(self, labels: Sequence[str], system: str | None) -> TaskPrompt:
        """A question in the user's words with a closed set of answers; ``system`` replaces the task's own."""
        return self._find("closed", system, labels)

    def open_question(self, system: str | None) -> TaskPrompt:
        """A question in the user's words, answered freely, in the trained prompt if there is one."""
        return self._find("open", system, None)

    def _find(self, kind: _Kind, system: str | None, labels: Sequence[str] | None) -> TaskPrompt:
        key = (kind, system, None if labels is None else tuple(labels))
        with self._lock:
            if key not in self._prompts:
                try:
                    self._prompts[key] = TaskPrompt(self._opened, self._section(kind, system, labels), labels)
                except UserError as error:
                    raise RefusedError(400, "invalid_task", str(error)) from error
                if len(self._prompts) > self._size:
                    self._prompts.popitem(last=False)
            self._prompts.move_to_end(key)
            return self._prompts[key]

    def _section(self, kind: _Kind, system: str | None, labels: Sequence[str] | None) -> TaskSection:
        # A model trained on questions keeps its prompt even if the request lists the answers.
        is_question = kind == "open" or (kind == "closed" and self.section.asks_from_data)
        other = TaskSection(type="text" if is_question else "choice")
        section = self.section if self.section.asks_from_data == is_question else other
        if kind == "closed" and not is_question:
            section = section.model_copy(update={"user_prompt": "{question}"})
        if system is not None:
            section = section.model_copy(update={"system_prompt": system})
        if labels is None:
            return section
        # Whether a prompt lists the labels is decided as for training.
        undecided = Experiment(model=ModelSection(base=self._base), task=section)
        return apply(undecided, num_train=1, num_labels=len(labels)).task
