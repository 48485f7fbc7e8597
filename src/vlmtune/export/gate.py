"""The export gate: the trained model and the exported files score the same held-out images, and are compared.

In: a `TrainedRun`, and the exported artifact in its own runtime. Out: a `Verdict`. For a closed set of labels both
score every label; for open answers both answer greedily and score the trained model's answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.export.runtime import GateItem, Runtime
from vlmtune.export.trained_run import TrainedRun
from vlmtune.inference.posterior import SurfaceForms, label_log_probs
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import OpenedModel
from vlmtune.text.prompt import PromptBuilder

MAX_NEW_TOKENS = 32
# Marks the image's position while a prompt is cut in two. Not text, so no prompt contains it.
_PLACE = "\x00"


@dataclass(frozen=True)
class Bounds:
    """What the gate accepts.

    Attributes:
        agreement: the minimum share of images on which both name the same label, or give the same answer.
        difference: the largest difference in probability allowed for any image. Labels alone would let a model
            pass whose winners happen to stay (two weights swapped: every label the same, probabilities 0.49 apart).
            Four-bit weights differ by up to 0.15.
    """

    agreement: float = 0.995
    difference: float = 0.3


@dataclass(frozen=True)
class Difference:
    """An image on which the two disagree."""

    id: str
    trained: str
    exported: str
    probability_difference: float


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        runtime: what ran the exported artifact.
        judged: "labels" or "answers".
        num_images: compared. num_unreadable: held-out images that could not be opened, which neither scored.
        num_agree: images on which both name the same label, or give the same answer.
        max_probability_difference: the largest difference in probability, over all images and labels; for open
            answers in the probability of the trained model's whole answer.
        bounds: the limits that applied.
        differences: the images on which they disagree.
        notes: known deviations of the runtime.
    """

    runtime: str
    judged: str
    num_images: int
    num_unreadable: int
    num_agree: int
    max_probability_difference: float
    bounds: Bounds
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def agreement(self) -> float:
        return self.num_agree / self.num_images

    @property
    def is_accepted(self) -> bool:
        return self.agreement >= self.bounds.agreement and self.max_probability_difference <= self.bounds.difference

    def as_dict(self) -> dict[str, Any]:
        """For `vlmtune.json`, `--json` and the card."""
        return {**asdict(self), "agreement": self.agreement, "accepted": self.is_accepted}

    def sentence(self) -> str:
        """Agreement and difference in words."""
        return (
            f"{self.num_agree} of {self.num_images} {self.judged} agree ({100 * self.agreement:.2f} %), largest "
            f"probability difference {self.max_probability_difference:.2g}"
        )


def judge(
    run: TrainedRun,
    trained: Runtime,
    exported: Runtime,
    opened: OpenedModel,
    bounds: Bounds,
    on_image: Callable[[], None] = lambda: None,
) -> Verdict:
    """Ask both about every held-out image.

    Args:
        trained: the reference. exported: the artifact in its own runtime.
        opened: whose tokenizer and image processor make the prompts.
        bounds: the limits to pass.
        on_image: called after each.

    Raises:
        DataError: none of the images can be opened.
    """
    predictor = Predictor(opened, run.task, run.labels)
    compare = ClosedComparison(predictor) if run.labels is not None else OpenComparison(opened)
    differences: list[Difference] = []
    largest, num_agree, num_images, num_unreadable = 0.0, 0, 0, 0
    for item in held_out_prompts(run, opened, predictor.prompt):
        if item is None:
            num_unreadable += 1
            continue
        of_trained, of_exported, difference = compare(item, trained, exported)
        num_images += 1
        largest = max(largest, difference)
        if of_trained == of_exported:
            num_agree += 1
        else:
            differences.append(Difference(item.id, of_trained, of_exported, difference))
        on_image()
    if not num_images:
        raise DataError(f"None of the {num_unreadable} held-out images can be opened, so the export is not judged.")
    return Verdict(
        runtime=exported.name,
        judged="labels" if run.labels is not None else "answers",
        num_images=num_images,
        num_unreadable=num_unreadable,
        num_agree=num_agree,
        max_probability_difference=largest,
        bounds=bounds,
        differences=tuple(differences),
        notes=tuple(exported.notes),
    )


def held_out_prompts(run: TrainedRun, opened: OpenedModel, prompt: PromptBuilder) -> Iterator[GateItem | None]:
    """Every held-out image with its prompt; None for one that cannot be opened."""
    for example in run.held_out:
        try:
            image = example.image.open()
        except UnreadableImageError:
            yield None
            continue
        processed = opened.processor.process(image)
        before, after = prompt.text(example.question, _PLACE, example.history).split(_PLACE)
        ids = prompt.build(example.question, processed.text, example.history).ids
        yield GateItem(example.id, image, processed, ids, before, after)


class ClosedComparison:
    """(label of the trained model, label of the export, largest difference over the labels' probabilities)."""

    def __init__(self, predictor: Predictor) -> None:
        assert predictor.labels is not None
        self._names = predictor.labels.stored
        self._answers = predictor.trie.sequences
        self._forms = SurfaceForms.of(predictor.trie.forms)

    def __call__(self, item: GateItem, trained: Runtime, exported: Runtime) -> tuple[str, str, float]:
        first, second = (self.probabilities(runtime, item) for runtime in (trained, exported))
        return self._names[int(first.argmax())], self._names[int(second.argmax())], float(np.abs(first - second).max())

    def probabilities(self, runtime: Runtime, item: GateItem) -> NDArray[np.float64]:
        """float64[L], as a runtime scores the labels' surface forms."""
        form_scores = np.asarray(runtime.score(item, self._answers), dtype=np.float64)
        return np.exp(label_log_probs(form_scores, self._forms))


class OpenComparison:
    """(answer of the trained model, answer of the export, difference in the probability of the trained one's)."""

    def __init__(self, opened: OpenedModel) -> None:
        self._tokenizer = opened.tokenizer

    def __call__(self, item: GateItem, trained: Runtime, exported: Runtime) -> tuple[str, str, float]:
        end = self._tokenizer.end_id
        first, second = (runtime.greedy(item, end, MAX_NEW_TOKENS) for runtime in (trained, exported))
        whole = [[*first, end]]
        difference = abs(math.exp(trained.score(item, whole)[0]) - math.exp(exported.score(item, whole)[0]))
        texts = [self._tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in (first, second)]
        return texts[0], texts[1], difference
