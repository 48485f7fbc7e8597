"""Random changes of a training image that keep its answer true. The same draw gives the same image.

Pillow on the reading threads: images of any size are changed before the processor cuts them, and every draw comes
from a generator of the image's own. (kornia's and torchvision's transforms draw from torch's global generator, which
the threads and the dropout of the step would share: images would depend on timing.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vlmtune.config.augmentation import CHAINS, AugmentStep, settings_of
from vlmtune.data.augment.policies import COLOR_OPERATIONS, affine, rand_augment, trivial_augment

Draw = np.random.Generator
Change = Callable[[Image.Image, Draw], Image.Image]


class Augmentation:
    """A chain of random changes; without any, images stay as they are (and features cacheable).

    Args:
        steps: what `train.augment` says (its names and settings have been checked).
        name: for messages; default: the names of the steps.

    Attributes:
        alters_sides: whether left and right, or up and down, may change; alters_colors: whether colors may.
    """

    def __init__(self, steps: Sequence[AugmentStep], name: str = "") -> None:
        names = {step for step, _ in map(settings_of, steps)}
        self.alters_sides = bool(names & {"flip", "trivialaugment"})
        self.alters_colors = bool(names & {"color", "randaugment", "trivialaugment"})
        self.name = name or ", ".join(step for step, _ in map(settings_of, steps)) or "none"
        self._chains = {(s, c): _chain(steps, s, c) for s in (False, True) for c in (False, True)}

    @classmethod
    def named(cls, name: str) -> Augmentation:
        """A chain by its short name."""
        return cls(CHAINS.get(name, (name,)), name)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes for an image without restrictions."""
        return self._chains[False, False]

    def __call__(
        self, image: Image.Image, draw: Draw, *, keep_sides: bool = False, keep_colors: bool = False
    ) -> Image.Image:
        """The changed image, in the size of the original.

        Args:
            keep_sides: the answer depends on left and right or on writing: no flips, no large rotations.
            keep_colors: the answer names a color: none is changed.
        """
        for change in self._chains[keep_sides, keep_colors]:
            image = change(image, draw)
        return image


def _chain(steps: Sequence[AugmentStep], keep_sides: bool, keep_colors: bool) -> tuple[Change, ...]:
    """The changes of the steps without those that an answer forbids (see `label_safety`)."""
    changes: list[Change] = []
    for name, settings in map(settings_of, steps):
        anyway = settings.pop("anyway", 0)
        if (name == "flip" and keep_sides and not anyway) or (name == "color" and keep_colors):
            continue
        change = partial(_CHANGES[name], **settings)
        if name == "trivialaugment" and keep_sides:
            change = partial(change, max_turn=30.0)
        if name in ("trivialaugment", "randaugment") and keep_colors:
            change = partial(change, without=COLOR_OPERATIONS)
        changes.append(change)
    return tuple(changes)


def random_flip(image: Image.Image, draw: Draw, probability: float = 0.5) -> Image.Image:
    """Left and right exchanged. Wrong for text and for left/right questions."""
    return ImageOps.mirror(image) if draw.random() < probability else image


def random_crop(image: Image.Image, draw: Draw, min_area: float = 0.64) -> Image.Image:
    """A crop of ``min_area`` to all of the area, at most a quarter off the image's aspect ratio, in its size."""
    area, stretch = draw.uniform(min_area, 1.0), np.exp(draw.uniform(-0.22, 0.22))
    width = min(1.0, float(np.sqrt(area * stretch))) * image.width
    height = min(1.0, float(np.sqrt(area / stretch))) * image.height
    left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def random_color(image: Image.Image, draw: Draw, strength: float = 0.3) -> Image.Image:
    """Brightness, contrast and saturation each multiplied by 1 - strength to 1 + strength."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draw.uniform(1 - strength, 1 + strength))
    return image


def random_affine(
    image: Image.Image, draw: Draw, degrees: float = 12, shift: float = 0.08, scale: float = 0.1
) -> Image.Image:
    """Rotated by up to ``degrees``, moved by up to a share of its sides, scaled by up to a share of its size."""
    angle, factor = draw.uniform(-degrees, degrees), draw.uniform(1 - scale, 1 + scale)
    right, down = draw.uniform(-shift, shift, size=2) * image.size
    return affine(image, degrees=angle, scale=factor, shift=(right, down))


_CHANGES: dict[str, Callable[..., Image.Image]] = {
    "random-crop": random_crop,
    "color": random_color,
    "flip": random_flip,
    "shift-rotate": random_affine,
    "randaugment": rand_augment,
    "trivialaugment": trivial_augment,
}
