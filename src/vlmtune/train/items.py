"""Training examples on their way into a step: read ahead, prepared or cached, and planned as prefix trees.

In: the examples and the order of a run. Out: micro-batches of `TrainItem`, and from each the `StepPlan` of every prompt
prefix in it. Everything random about an item follows from the run's seed and the item's slot: neither reading threads
nor resuming change it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from vlmtune.config.schema import Experiment
from vlmtune.data.augment.label_safety import colored_labels, has_colors, has_sides, refuse_flips, sided_labels
from vlmtune.data.augment.mix import Mixing
from vlmtune.data.augment.pipeline import Augmentation
from vlmtune.data.prefetch import read_ahead
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import ImageProcessor, OpenedModel
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.records import Example, LabelSet
from vlmtune.tasks.question import Task
from vlmtune.tasks.targets import Targets, mix
from vlmtune.text.prompt import PromptBuilder
from vlmtune.train.feature_cache import connect, encode
from vlmtune.train.feature_files import CachedImage, FeatureCache
from vlmtune.train.order import Order, Slot
from vlmtune.train.step import Answer, Sample, StepPlan, plan_step


@dataclass(frozen=True)
class TrainItem:
    """An example as a micro-batch presents it.

    Attributes:
        slot: its position in the run.
        image: prepared, or with its features from the cache.
        image_index: its number among the micro-batch's images; several questions may be about one.
        answers: what it teaches, answer text -> weight of its loss.
        digest: of the image's file, where features are cached; else empty.
        mixed_with: the other example of a mixed image, and this one's share λ in it.
    """

    example: Example
    slot: Slot
    image: ProcessedImage | CachedImage
    answers: dict[str, float]
    digest: str = ""
    mixed_with: tuple[Example, float] | None = None
    image_index: int = 0


class EpochPrompts:
    """The prompts of a run: one, or two where the class list is dropped after the first epoch.

    Attributes:
        first: of the first epoch.
        later: of every other epoch, of validation, and of everything after training.
    """

    def __init__(self, opened: OpenedModel, experiment: Experiment, labels: LabelSet | None) -> None:
        task = experiment.task
        self.first = self.later = PromptBuilder(opened.tokenizer, task.after_first_epoch(), labels)
        if task.list_labels == "drop-after-first-epoch":
            listing = task.model_copy(update={"list_labels": "prompt"})
            self.first = PromptBuilder(opened.tokenizer, listing, labels)

    def of_epoch(self, epoch: int) -> PromptBuilder:
        return self.first if epoch == 0 else self.later

    def plan(
        self, model: VisionLanguageModel, batch: Sequence[TrainItem], loss: Literal["answer", "all"]
    ) -> list[tuple[list[TrainItem], StepPlan]]:
        """A micro-batch as step plans: one, or two where items of two epochs have different prompts.

        Returns:
            Each plan with its items; `StepPlan.images` are their `image_index`.
        """
        by_prompt: dict[PromptBuilder, list[TrainItem]] = {}
        for item in batch:
            by_prompt.setdefault(self.of_epoch(item.slot.epoch), []).append(item)
        return [_plan(model, prompt, items, loss) for prompt, items in by_prompt.items()]


def _plan(
    model: VisionLanguageModel, prompt: PromptBuilder, items: list[TrainItem], loss: Literal["answer", "all"]
) -> tuple[list[TrainItem], StepPlan]:
    samples = []
    for item in items:
        answers = [Answer(prompt.answer_tokens(text), weight) for text, weight in item.answers.items()]
        ids = prompt.rest(item.example.question, item.image.text, item.example.history)
        samples.append(Sample(ids, item.image_index, answers))
    return items, plan_step(model, prompt.prefix, samples, loss)


class ItemReader:
    """Reads the examples of a run in its order.

    Args:
        experiment: how examples are ordered, changed, mixed and answered.
        processor: prepares images for the tower.
        examples: the training split.
        labels: the closed set, if any.

    Attributes:
        order: the order of the examples; its seed also draws what is random about an example.
        targets: what an example teaches.
        augmentation: changes images at random. mixing: makes one image of two.
        cache: if set, features are taken from there, and images are not changed.
        unreadable: example id -> reason, of the images that could not be read so far.

    Raises UserError for random changes that would make labels false.
    """

    def __init__(
        self,
        experiment: Experiment,
        processor: ImageProcessor,
        examples: Sequence[Example],
        labels: LabelSet | None,
    ) -> None:
        train = experiment.train
        refuse_flips(train.augment or [], labels)
        self.processor, self.examples = processor, examples
        task, asks_from_data = Task.of(experiment.task, labels), experiment.task.asks_from_data
        self.targets = Targets(task, train, experiment.seed, examples)
        is_balanced = train.sampling == "balanced"
        self.order = Order(
            len(examples),
            experiment.seed,
            strata=self.targets.strata(examples) if is_balanced else None,
            groups=[e.image_id or e.id for e in examples] if asks_from_data and not is_balanced else None,
            alike=[(e.question_id, e.question, e.history) for e in examples] if asks_from_data else None,
        )
        self.augmentation = Augmentation(train.augment or [])
        self.mixing = Mixing(train.mixup, train.cutmix, train.mix_probability)
        self.has_sided_labels = labels is not None and sided_labels(labels) is not None
        self.has_colored_labels = labels is not None and colored_labels(labels) is not None
        self.cache: FeatureCache | None = None
        self.unreadable: dict[str, str] = {}

    def micro_batches(self, batch_size: int, first: int, count: int) -> Iterator[list[TrainItem]]:
        """``count`` micro-batches from number ``first`` on, their images read ahead on other threads.

        An unreadable image is left out of its batch and noted. Raises DataError where a whole batch, or every
        image there is, cannot be read.
        """
        batch: list[TrainItem] = []
        slots = self.order.slots(first * batch_size, count * batch_size)
        for number, (slot, result) in enumerate(read_ahead(self.item, slots), start=1):
            if isinstance(result, UnreadableImageError):
                self.unreadable[self.examples[slot.example].id] = result.reason
                if len(self.unreadable) == len(self.examples):
                    raise DataError(f"No training image can be read. The last one: {result}")
            else:
                batch.append(result)
            if number % batch_size == 0:
                if not batch:
                    raise DataError(f"None of {batch_size} training images in a row can be read: {result}")
                yield _number_images(batch, share=self.changes is None)
                batch = []

    def item(self, slot: Slot) -> TrainItem:
        """The example of a slot as training presents it. Raises UnreadableImageError. Thread-safe."""
        example = self.examples[slot.example]
        draw = np.random.default_rng((self.order.seed, slot.epoch, slot.position))
        answers = self.targets.of(example, slot.epoch, draw)
        if self.cache is not None:
            digest = example.image.digest()
            image = self.cache.get(digest) or self.processor.process(example.image.open())
            return TrainItem(example, slot, image, answers, digest)
        changed = self._changed(example, draw)
        mixed_with = None
        if self.mixing.is_drawn(draw):
            other = self.examples[self.order.partner(slot, draw)]
            try:
                changed, share = self.mixing(changed, self._changed(other, draw), draw)
            except UnreadableImageError as error:  # recorded under its own id; this image stays unmixed
                self.unreadable[other.id] = error.reason
            else:
                answers = mix(answers, self.targets.of(other, slot.epoch, draw), share)
                mixed_with = (other, share)
        return TrainItem(example, slot, self.processor.process(changed), answers, mixed_with=mixed_with)

    @property
    def changes(self) -> str | None:
        """Why an example's image differs from one epoch to the next; None if it does not."""
        if self.mixing.is_on:
            return "train.mixup or train.cutmix makes a new image each time."
        if self.augmentation.changes:
            return (
                f"train.augment is '{self.augmentation.name}', which makes a new image each time. Set it to none to "
                "cache."
            )
        return None

    def _changed(self, example: Example, draw: np.random.Generator) -> Image.Image:
        return self.augmentation(
            example.image.open(),
            draw,
            keep_sides=self.has_sided_labels or has_sides(example),
            keep_colors=self.has_colored_labels or has_colors(example),
        )


def _number_images(batch: Sequence[TrainItem], *, share: bool) -> list[TrainItem]:
    """The items with their `image_index`; with ``share``, items of the same image get the same one."""
    index: dict[Hashable, int] = {}
    return [
        replace(item, image_index=index.setdefault(item.example.image if share else item.slot, len(index)))
        for item in batch
    ]


def image_features(
    model: VisionLanguageModel, items: Sequence[TrainItem], cache: FeatureCache | None = None
) -> dict[int, Tensor]:
    """float[T, D] of each image by its `image_index`: encoded, or from the cache, to which missing ones are added.

    A graph is kept only where something before the decoder learns.
    """
    first: dict[int, TrainItem] = {}
    for item in items:
        first.setdefault(item.image_index, item)
    prepared = {index: item.image for index, item in first.items() if isinstance(item.image, ProcessedImage)}
    if cache is None:
        return dict(zip(prepared, model.encode_images(list(prepared.values())), strict=True))
    made = dict(zip(prepared, encode(model, cache.level, list(prepared.values())) if prepared else [], strict=True))
    for index, image in made.items():
        cache.put(first[index].digest, image)
    # In the order of the batch whatever was cached: a learning connector draws its dropout along it.
    cached = [item.image if isinstance(item.image, CachedImage) else made[index] for index, item in first.items()]
    return dict(zip(first, connect(model, cache.level, cached), strict=True))
