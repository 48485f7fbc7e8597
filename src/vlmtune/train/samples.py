"""Training examples on their way into a step: read ahead, prepared or cached, tokenized, grouped to trees.

In: the examples and the order of a run. Out: micro-batches of `Shown` examples, and from each the prefix trees that
`step.sample_loss` runs. Everything random about an example follows from the run's seed and the example's place in the
order: neither reading threads nor resuming change what is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from vlmtune.config.schema import Experiment
from vlmtune.data.augment.label_safety import colored_labels, has_colors, has_sides, refuse_flips, sided_labels
from vlmtune.data.augment.mix import Mixing
from vlmtune.data.augment.pipeline import Augmentation
from vlmtune.data.prefetch import read_ahead
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import ImageProcessor, OpenedModel
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.records import Example, ImageSource, LabelSet
from vlmtune.tasks.question import Task
from vlmtune.tasks.targets import Targets, mix
from vlmtune.train.feature_cache import connect, encode
from vlmtune.train.feature_files import CachedImage, FeatureCache
from vlmtune.train.schedule import Order, Place
from vlmtune.train.step import Answer, Sample


@dataclass(frozen=True)
class Shown:
    """An example as one micro-batch shows it.

    Attributes:
        image: prepared, or with its features from the cache.
        digest: of the image's file, where features are cached; else empty.
        answers: what it teaches, answer text -> weight of its loss.
        mixed_with: the other example of a mixed image, and this one's share λ in it.
    """

    example: Example
    epoch: int
    image: ProcessedImage | CachedImage
    digest: str
    answers: dict[str, float]
    mixed_with: tuple[Example, float] | None = None


@dataclass(frozen=True)
class SampleTree:
    """Examples under one prompt prefix: what one call of the decoder learns from.

    Attributes:
        prefix: tokens that all of them begin with.
        shown: the examples.
        samples: their tokens; the images' features are filled in when the tree is run.
    """

    prefix: list[int]
    shown: list[Shown]
    samples: list[Sample]

    @property
    def num_rows(self) -> int:
        """Level that the decoder will run."""
        own = sum(len(s.ids) + sum(len(answer.ids) for answer in s.answers) for s in self.samples)
        return len(self.prefix) + own


class Prompts:
    """The predictors of a run, which make its prompts: one, or two where the class list goes after the first epoch.

    Attributes:
        first: of the first epoch.
        later: of every other epoch, of validation, and of everything after training.
    """

    def __init__(self, opened: OpenedModel, experiment: Experiment, labels: LabelSet | None) -> None:
        task, batch_size = experiment.task, experiment.evaluate.batch_size
        self.later = Predictor(opened, task.after_first_epoch(), labels, batch_size)
        self.first = self.later
        if task.list_labels == "drop-after-first-epoch":
            self.first = Predictor(opened, task.model_copy(update={"list_labels": "prompt"}), labels)

    def of_epoch(self, epoch: int) -> Predictor:
        return self.first if epoch == 0 else self.later

    def trees(self, batch: Sequence[Shown]) -> list[SampleTree]:
        """A micro-batch as trees: one, or two where it holds examples of two epochs with different prompts."""
        trees = []
        for predictor in {id(p): p for p in (self.first, self.later)}.values():
            shown = [item for item in batch if self.of_epoch(item.epoch) is predictor]
            if shown:
                samples = [_sample(predictor, item) for item in shown]
                trees.append(SampleTree(predictor.prefix, shown, samples))
        return trees


def _sample(predictor: Predictor, shown: Shown) -> Sample:
    answers = [Answer(predictor.prompt.answer_tokens(text), weight) for text, weight in shown.answers.items()]
    return Sample(predictor.rest_of_prompt(shown.image, shown.example.question, shown.example.history), [], answers)


class SampleReader:
    """Reads the examples of a run in its order.

    Args:
        experiment: how examples are ordered, changed, mixed and answered.
        processor: prepares images for the tower.
        examples: the training split.
        labels: the closed set, if any.

    Attributes:
        order: which example comes when; its seed also draws what is random about an example.
        targets: what an example teaches.
        augmentation: changes images at random. mixing: makes one of two.
        cache: if set, features are taken from there, and images are not changed.
        unreadable: example id -> reason, of the images that could not be read so far.

    Raises UserError for random changes under which the labels would not stay true.
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

    def micro_batches(self, batch_size: int, first: int, count: int) -> Iterator[list[Shown]]:
        """``count`` micro-batches from number ``first`` on, their images read ahead on other threads.

        An unreadable image is left out of its batch and noted. Raises DataError where a whole batch, or every
        image there is, cannot be read.
        """
        batch: list[Shown] = []
        places = self.order.places(first * batch_size, count * batch_size)
        for number, (place, result) in enumerate(read_ahead(self.show, places), start=1):
            if isinstance(result, UnreadableImageError):
                self.unreadable[self.examples[place.example].id] = result.reason
                if len(self.unreadable) == len(self.examples):
                    raise DataError(f"No training image can be read. The last one: {result}")
            else:
                batch.append(result)
            if number % batch_size == 0:
                if not batch:
                    raise DataError(f"None of {batch_size} training images in a row can be read: {result}")
                yield batch if self.augmentation.changes or self.mixing.is_on else _share_images(batch)
                batch = []

    def show(self, place: Place) -> Shown:
        """One example as it is shown at one place of the order. Raises UnreadableImageError. Thread-safe."""
        example = self.examples[place.example]
        draw = np.random.default_rng((self.order.seed, place.epoch, place.slot))
        answers = self.targets.of(example, place.epoch, draw)
        if self.cache is not None:
            digest = example.image.digest()
            image = self.cache.get(digest) or self.processor.process(example.image.open())
            return Shown(example, place.epoch, image, digest, answers)
        shown = self._changed(example, draw)
        mixed_with = None
        if self.mixing.is_drawn(draw):
            other = self.examples[self.order.partner(place, draw)]
            try:
                shown, share = self.mixing(shown, self._changed(other, draw), draw)
            except UnreadableImageError as error:  # noted under its own name; this image is shown as it is
                self.unreadable[other.id] = error.reason
            else:
                answers = mix(answers, self.targets.of(other, place.epoch, draw), share)
                mixed_with = (other, share)
        return Shown(example, place.epoch, self.processor.process(shown), "", answers, mixed_with)

    def _changed(self, example: Example, draw: np.random.Generator) -> Image.Image:
        return self.augmentation(
            example.image.open(),
            draw,
            keep_sides=self.has_sided_labels or has_sides(example),
            keep_colors=self.has_colored_labels or has_colors(example),
        )


def _share_images(batch: list[Shown]) -> list[Shown]:
    """The same examples; those about one image hold it once, so that it is encoded once."""
    first: dict[ImageSource, Shown] = {}
    return [replace(item, image=first.setdefault(item.example.image, item).image) for item in batch]


def image_features(
    model: VisionLanguageModel, shown: Sequence[Shown], cache: FeatureCache | None = None
) -> list[Tensor]:
    """float[T, D] of each image: encoded, or from the cache, which is given what it did not have.

    Examples that show one image (several questions about it) share its features, as one tensor. A graph is kept
    only where something before the decoder learns.
    """
    unique: dict[int, ProcessedImage | CachedImage] = {id(item.image): item.image for item in shown}
    if cache is None:
        prepared = [image for image in unique.values() if isinstance(image, ProcessedImage)]
        encoded = dict(zip(unique, model.encode_images(prepared), strict=True))
        return [encoded[id(item.image)] for item in shown]
    digests = {id(item.image): item.digest for item in shown}
    new = {key: image for key, image in unique.items() if isinstance(image, ProcessedImage)}
    for key, made in zip(new, encode(model, cache.level, list(new.values())) if new else [], strict=True):
        cache.put(digests[key], made)
        unique[key] = made
    found = [image for image in unique.values() if isinstance(image, CachedImage)]
    connected = dict(zip(unique, connect(model, cache.level, found), strict=True))
    return [connected[id(item.image)] for item in shown]
