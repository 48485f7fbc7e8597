"""What requests of one kind share: prompt, label trie and the decoder's cache after the shared prefix.

A task lives across requests, so the class list in front of every image is run once and not once a request. The last
few tasks are kept; a request with a label list of its own makes another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Literal, Protocol

from vlmtune.config.defaults import apply
from vlmtune.config.schema import Experiment, ModelSection, TaskSection
from vlmtune.errors import UserError
from vlmtune.inference.batch import run_prefix
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.inference.open import label_set
from vlmtune.inference.predictor import Predictor
from vlmtune.models.cache import Cache
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.serve.errors import RefusedError

_Kind = Literal["classification", "closed", "open"]


class Task(Protocol):
    """What a job needs of its task: see `ServedTask`."""

    @property
    def prefix(self) -> list[int]: ...

    @property
    def scorer(self) -> LabelScorer | None: ...

    @property
    def num_label_rows(self) -> int: ...

    def prefix_cache(self) -> Cache | None: ...


class ServedTask:
    """One way of asking: a prompt with or without a closed set of labels.

    `tokens` may be called from any thread; the scorer and the cache belong to the thread that runs the model.
    """

    def __init__(self, opened: OpenedModel, section: TaskSection, labels: Sequence[str] | None) -> None:
        self.labels = None if labels is None else tuple(labels)
        self._predictor = Predictor(opened, section, None if labels is None else label_set(labels, section))
        self.prefix = self._predictor.prefix
        self.scorer = None if labels is None else LabelScorer(opened.model, self.prefix, self._predictor.trie)
        self.num_label_rows = 0 if labels is None else len(self._predictor.trie)
        self.asks_question = self._predictor.prompt.asks_question
        self._cache: Cache | None = None
        self._has_state = False
        self._lock = Lock()

    def tokens(self, image: ProcessedImage, question: str | None) -> list[int]:
        """The prompt's tokens after the shared prefix. Raises UserError for a question that cannot be asked."""
        with self._lock:
            return self._predictor.rest_of_prompt(image, question)

    def prefix_cache(self) -> Cache | None:
        """The decoder's cache after the shared prefix; run when it is first wanted."""
        if self.scorer is not None:
            return self.scorer.prefix_cache()
        if not self._has_state:
            self._cache = run_prefix(self._predictor.opened.model, self.prefix)
            self._has_state = True
        return self._cache


class TaskShelf:
    """Finds or makes the task of a request. Thread-safe.

    Args:
        opened: the model.
        section, labels: what the model was trained to be asked; no labels where nothing says so.
        size: tasks that are kept.
    """

    def __init__(
        self, opened: OpenedModel, section: TaskSection, labels: Sequence[str] | None, *, base: str, size: int
    ) -> None:
        self.opened = opened
        self.section = section
        self.labels = None if labels is None else tuple(labels)
        self._base = base
        self._size = size
        self._kept: OrderedDict[tuple[_Kind, str | None, tuple[str, ...] | None], ServedTask] = OrderedDict()
        self._lock = Lock()

    def classification(self, labels: Sequence[str] | None, system: str | None = None) -> ServedTask:
        """As the model was trained to classify; other labels in the same prompt. Raises RefusedError without any."""
        labels = self.labels if labels is None else labels
        if labels is None:
            raise RefusedError(
                400,
                "no_labels",
                "This model knows no labels of its own. Say which ones there are, for example labels: ['cat', 'dog'].",
                param="labels",
            )
        return self._find("classification", system, labels)

    def closed_question(self, labels: Sequence[str], system: str | None) -> ServedTask:
        """A question in the user's words with a closed set of answers; ``system`` replaces the task's own."""
        return self._find("closed", system, labels)

    def open_question(self, system: str | None) -> ServedTask:
        """A question in the user's words, answered freely: as trained if it was trained on questions."""
        return self._find("open", system, None)

    def _find(self, kind: _Kind, system: str | None, labels: Sequence[str] | None) -> ServedTask:
        key = (kind, system, None if labels is None else tuple(labels))
        with self._lock:
            if key not in self._kept:
                try:
                    self._kept[key] = ServedTask(self.opened, self._section(kind, system, labels), labels)
                except UserError as error:
                    raise RefusedError(400, "invalid_task", str(error)) from error
                if len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _section(self, kind: _Kind, system: str | None, labels: Sequence[str] | None) -> TaskSection:
        # A model that was trained on questions is asked in its own words also where the answers are given.
        is_question = kind == "open" or (kind == "closed" and self.section.asks_from_data)
        other = TaskSection(type="text" if is_question else "choice")
        section = self.section if self.section.asks_from_data == is_question else other
        if kind == "closed" and not is_question:
            section = section.model_copy(update={"user_prompt": "{question}"})
        if system is not None:
            section = section.model_copy(update={"system_prompt": system})
        if labels is None:
            return section
        # Whether a prompt lists the labels is decided as it is for training.
        undecided = Experiment(model=ModelSection(base=self._base), task=section)
        return apply(undecided, num_train=1, num_labels=len(labels)).task
