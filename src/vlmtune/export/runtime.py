"""What the export gate needs from a runtime, and our own runtime: the trained model's, and the fallback for an export.

In: a held-out image with its prompt. Out: log-probabilities of given answers, or a greedy answer. The other runtimes
are in `transformers_runtime.py` and `llama_runtime.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from PIL import Image

from vlmtune import __version__
from vlmtune.inference.batch import Request
from vlmtune.inference.generation import Sampling, generate
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.text.trie import LabelTrie


@dataclass(frozen=True)
class GateItem:
    """One held-out image with its whole prompt, as each runtime takes it.

    Attributes:
        id: the example's.
        image: RGB, upright.
        processed: the image as the network takes it.
        ids: the prompt's tokens, one for every image feature.
        before, after: the prompt's text around the image.
    """

    id: str
    image: Image.Image = field(repr=False)
    processed: ProcessedImage = field(repr=False)
    ids: list[int] = field(repr=False)
    before: str
    after: str


class Runtime(Protocol):
    """A model that scores and writes answers about an image.

    Attributes:
        name: what computes, with its version; for the card.
        notes: its deviations from the trained model, in sentences; complete after the last image.
    """

    name: str

    @property
    def notes(self) -> list[str]: ...

    def score(self, item: GateItem, answers: Sequence[Sequence[int]]) -> list[float]:
        """Each answer's log-probability: the sum over its tokens, given image and prompt."""
        ...

    def greedy(self, item: GateItem, end: int, max_new_tokens: int) -> list[int]:
        """A greedy answer, up to the end token, which is left out."""
        ...

    def close(self) -> None:
        """Release what Python's memory management does not."""
        ...


class OwnRuntime:
    """vlmtune itself, through the scorer that evaluation and serving use.

    Args:
        opened: the model.
        origin: what it is, for the name: "the trained model", "the exported folder".
    """

    def __init__(self, opened: OpenedModel, origin: str) -> None:
        self.opened = opened
        self.opened.model.eval()
        self.name = f"vlmtune {__version__}, from {origin}"
        self.notes: list[str] = []

    def score(self, item: GateItem, answers: Sequence[Sequence[int]]) -> list[float]:
        scorer = LabelScorer(self.opened.model, [], LabelTrie.build([[list(answer)] for answer in answers]))
        return [float(score) for score in scorer.score([self._question(item)])[0]]

    def greedy(self, item: GateItem, end: int, max_new_tokens: int) -> list[int]:
        sampling = Sampling(max_new_tokens=max_new_tokens)
        (tokens,) = generate(self.opened.model, None, [self._question(item)], [end], sampling)
        return list(tokens)

    def close(self) -> None:
        pass

    def _question(self, item: GateItem) -> Request:
        with torch.inference_mode():
            return Request(item.ids, self.opened.model.encode_images([item.processed]))
