"""Image features of a frozen tower, computed once and kept on disk between epochs and runs.

In: an image's digest. Out: the connector's output for it, or, where the connector learns, the tower's; and
the placeholder text its prompt needs, so that a hit neither decodes nor encodes the image. The loop asks
`open_feature_cache`, which refuses, with a reason, where features would not stay the same, or where storing them costs
more than computing them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlmtune.adapters.plan import AdapterPlan
from vlmtune.config.schema import Experiment
from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.models.fingerprint import features_key
from vlmtune.models.images import ProcessedImage, VisionFeatures
from vlmtune.models.registry import OpenedModel
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.records import Example, ImageSource
from vlmtune.train.device import autocast
from vlmtune.train.feature_files import CachedImage, FeatureCache, Level

_NUM_PROBES = 8
# Share of the disk's free space that the cache may fill.
_SHARE_OF_DISK = 0.5


@dataclass(frozen=True)
class Refusal:
    """Why features are not cached."""

    reason: str

    @property
    def note(self) -> str:
        """The reason in words, for the log and `run.json`."""
        return f"image features are not cached: {self.reason}"


def encode(model: VisionLanguageModel, level: Level, images: Sequence[ProcessedImage]) -> list[CachedImage]:
    """What a cache of this level stores of each image, still on the model's device."""
    if level == "connector":
        return [CachedImage(out, image.text) for out, image in zip(model.encode_images(images), images, strict=True)]
    pairs = zip(model.tower_features(images), images, strict=True)
    return [CachedImage(out.patches, image.text, out.grids) for out, image in pairs]


def connect(model: VisionLanguageModel, level: Level, images: Sequence[CachedImage]) -> list[Tensor]:
    """From stored features to the decoder's input: float[T, D] of each image."""
    if level == "connector":
        return [image.features.to(model.device) for image in images]
    return model.connect([VisionFeatures(image.features.to(model.device), image.grids) for image in images])


def open_feature_cache(
    folder: Path,
    opened: OpenedModel,
    plan: AdapterPlan,
    experiment: Experiment,
    examples: Sequence[Example] = (),
    changes: str | None = None,
) -> FeatureCache | Refusal:
    """The cache of a training run, or why there is none.

    Args:
        folder: of the cache, shared by runs over the same base model.
        opened: the base model.
        plan: what learns in it.
        experiment: resolved. With `train.feature_cache: auto`, a few images are timed to see whether caching pays.
        examples: the training examples; several may be about one image.
        changes: why images differ from one epoch to the next, if they do.

    Raises UserError where `train.feature_cache` is on and features cannot be cached.
    """
    cache = _open(folder, opened, plan, experiment, list(dict.fromkeys(e.image for e in examples)), changes)
    if isinstance(cache, Refusal) and experiment.train.feature_cache == "on":
        raise UserError(f"train.feature_cache is on, but features cannot be cached: {cache.reason}")
    return cache


def _open(
    folder: Path,
    opened: OpenedModel,
    plan: AdapterPlan,
    experiment: Experiment,
    images: Sequence[ImageSource],
    changes: str | None,
) -> FeatureCache | Refusal:
    mode, precision, num_epochs = experiment.train.feature_cache, experiment.model.dtype, experiment.train.epochs
    if mode == "off":
        return Refusal("train.feature_cache is off.")
    tower, connector = (f"{plan.module_map.towers[part]}." for part in ("vision tower", "connector"))
    learning = [name for name in plan.parameters if name.startswith(tower)]
    if learning:
        return Refusal(
            f"{len(learning)} parameters of the vision tower learn ({learning[0]}, …), so features change with every "
            "step."
        )
    connector_learns = any(name.startswith(connector) for name in plan.parameters)
    level: Level = "tower" if connector_learns else "connector"
    frozen = (tower,) if connector_learns else (tower, connector)
    if changes is not None:
        return Refusal(changes)
    assert num_epochs is not None
    try:
        cache = FeatureCache(folder / level, features_key(opened, frozen, precision), level)
    except BlockingIOError:
        return Refusal(f"another process is using {folder / level}.")
    except OSError as error:
        return Refusal(f"{folder / level} cannot be written ({error.strerror or error}).")
    refusal = _judge(cache, opened, images, num_epochs, precision, mode)
    if refusal is not None:
        cache.close()
        return refusal
    return cache


def _judge(
    cache: FeatureCache,
    opened: OpenedModel,
    images: Sequence[ImageSource],
    num_epochs: float,
    precision: str,
    mode: Literal["auto", "on"],
) -> Refusal | None:
    """Whether there is room and, for ``auto``, whether it pays. Features that were measured stay in the cache."""
    known = len(cache)  # what an earlier run left
    measured = _measure(cache, opened, images, precision)
    if measured is None:
        return Refusal("there is no image to measure with.") if mode == "auto" else None
    encode_s, write_s, read_s, image_bytes = measured
    needed, free = image_bytes * len(images) - cache.num_bytes, shutil.disk_usage(cache.folder).free
    if needed > _SHARE_OF_DISK * free:
        return Refusal(
            f"the features of {len(images)} images need {needed / 2**30:.1f} GiB more at {cache.folder}, where "
            f"{free / 2**30:.1f} GiB are free."
        )
    if mode == "on":
        return None
    without = num_epochs * encode_s
    new = max(0.0, 1 - known / len(images))
    with_cache = new * (encode_s + write_s) + (num_epochs - new) * read_s
    if with_cache >= without:
        return Refusal(
            f"it would not pay: encoding takes {encode_s * 1000:.2f} ms an image, keeping it {write_s * 1000:.2f} ms "
            f"and reading it back {read_s * 1000:.2f} ms, with {num_epochs:g} epochs to run."
        )
    return None


def _measure(
    cache: FeatureCache, opened: OpenedModel, images: Sequence[ImageSource], precision: str
) -> tuple[float, float, float, int] | None:
    """Seconds per image to encode, to write and to read (digest included), and bytes per image."""
    readable: list[tuple[str, ProcessedImage, ImageSource]] = []
    for source in images[: 4 * _NUM_PROBES]:
        if len(readable) == _NUM_PROBES:
            break
        try:
            readable.append((source.digest(), opened.processor.process(source.open()), source))
        except UnreadableImageError:
            continue  # the loop counts and reports it
    if not readable:
        return None
    processed = [image for _, image, _ in readable]

    def make() -> list[CachedImage]:
        with torch.no_grad(), autocast(opened.model.device, precision):
            return encode(opened.model, cache.level, processed)

    make()  # the first call allocates
    start = time.perf_counter()
    made = make()
    for cached in made:
        cached.features.cpu()  # waits for an accelerator
    encoded = time.perf_counter()
    for (digest, _, _), cached in zip(readable, made, strict=True):
        cache.put(digest, cached)
    written = time.perf_counter()
    for _, _, source in readable:
        stored = cache.get(source.digest())
        if stored is not None:
            stored.features.to(opened.model.device)
    read = time.perf_counter()
    count = len(readable)
    num_bytes = sum(cached.features.numel() * cached.features.element_size() for cached in made) // count
    return (encoded - start) / count, (written - encoded) / count, (read - written) / count, num_bytes
