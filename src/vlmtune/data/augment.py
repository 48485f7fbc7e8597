"""Random changes of a training picture that keep its answer true. The same draw gives the same picture.

Pillow on the reading threads: pictures of any size are changed before the processor cuts them, and every draw comes
from a generator of the picture's own. (kornia's and torchvision's transforms draw from torch's global generator, which
the threads and the dropout of the step would share: pictures would depend on timing.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vlmtune.config.augmentation import CHAINS, AugmentStep, settings_of
from vlmtune.data.auto_augment import affine, rand_augment, trivial_augment

Draw = np.random.Generator
Change = Callable[[Image.Image, Draw], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    """A chain of random changes; without any, pictures stay as they are (and features cacheable).

    Attributes:
        changes: for any picture.
        changes_with_sides: for a picture whose answer depends on left and right or on writing: no flips, no far turns.
    """

    name: str
    changes: tuple[Change, ...]
    changes_with_sides: tuple[Change, ...] = field(default=())

    @classmethod
    def of(cls, steps: Sequence[AugmentStep]) -> Augmentation:
        """The chain that `train.augment` describes (its names and settings have been checked)."""
        changes: list[Change] = []
        sided: list[Change] = []
        for name, settings in map(settings_of, steps):
            anyway = settings.pop("anyway", 0)
            change = partial(_CHANGES[name], **settings)
            changes.append(change)
            if name == "trivialaugment":
                sided.append(partial(change, max_turn=30.0))
            elif name != "flip" or anyway:
                sided.append(change)
        return cls(", ".join(name for name, _ in map(settings_of, steps)) or "none", tuple(changes), tuple(sided))

    @classmethod
    def named(cls, name: str) -> Augmentation:
        """A chain by its short name."""
        return replace(cls.of(CHAINS.get(name, (name,))), name=name)

    def __call__(self, image: Image.Image, draw: Draw, *, has_sides: bool = False) -> Image.Image:
        """The changed picture, in the size of the original.

        Args:
            has_sides: whether the answer depends on left and right or on writing (see `data/sides.py`).
        """
        for change in self.changes_with_sides if has_sides else self.changes:
            image = change(image, draw)
        return image


def random_flip(image: Image.Image, draw: Draw, probability: float = 0.5) -> Image.Image:
    """Left and right exchanged. Wrong for text and for left/right questions."""
    return ImageOps.mirror(image) if draw.random() < probability else image


def random_crop(image: Image.Image, draw: Draw, min_area: float = 0.64) -> Image.Image:
    """A crop of ``min_area`` to all of the area, at most a quarter off the picture's aspect ratio, in its size."""
    area, stretch = draw.uniform(min_area, 1.0), np.exp(draw.uniform(-0.22, 0.22))
    width = min(1.0, float(np.sqrt(area * stretch))) * image.width
    height = min(1.0, float(np.sqrt(area / stretch))) * image.height
    left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def random_colour(image: Image.Image, draw: Draw, strength: float = 0.3) -> Image.Image:
    """Brightness, contrast and saturation each multiplied by 1 - strength to 1 + strength."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draw.uniform(1 - strength, 1 + strength))
    return image


def random_affine(
    image: Image.Image, draw: Draw, degrees: float = 12, shift: float = 0.08, scale: float = 0.1
) -> Image.Image:
    """Turned by up to so many degrees, moved by up to a share of its sides, scaled by up to a share of its size."""
    angle, factor = draw.uniform(-degrees, degrees), draw.uniform(1 - scale, 1 + scale)
    right, down = draw.uniform(-shift, shift, size=2) * image.size
    return affine(image, degrees=angle, scale=factor, shift=(right, down))


_CHANGES: dict[str, Callable[..., Image.Image]] = {
    "random-crop": random_crop,
    "colour": random_colour,
    "flip": random_flip,
    "shift-rotate": random_affine,
    "randaugment": rand_augment,
    "trivialaugment": trivial_augment,
}
