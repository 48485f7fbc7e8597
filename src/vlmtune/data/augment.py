"""Random changes of a training picture that keep its label true. The same draw gives the same picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vlmtune.errors import UserError, unknown_name

Draw = np.random.Generator
Change = Callable[[Image.Image, Draw], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    """A named chain of random changes; `none` leaves pictures as they are (and features cacheable)."""

    name: str
    changes: tuple[Change, ...]

    @classmethod
    def named(cls, name: str) -> Augmentation:
        """Raises UserError for an unknown name, listing the known."""
        if name not in AUGMENTATIONS:
            raise UserError(f"train.augment: {unknown_name('augmentation', name, AUGMENTATIONS)}")
        return cls(name, AUGMENTATIONS[name])

    def __call__(self, image: Image.Image, draw: Draw) -> Image.Image:
        for change in self.changes:
            image = change(image, draw)
        return image


def random_flip(image: Image.Image, draw: Draw) -> Image.Image:
    """Left and right exchanged, half of the time. Wrong for text and for left/right questions."""
    return ImageOps.mirror(image) if draw.random() < 0.5 else image


def random_crop(image: Image.Image, draw: Draw) -> Image.Image:
    """A crop of 64 to 100 % of the area, at most a quarter off the picture's aspect ratio, in the original size."""
    area, stretch = draw.uniform(0.64, 1.0), np.exp(draw.uniform(-0.22, 0.22))
    width = min(1.0, float(np.sqrt(area * stretch))) * image.width
    height = min(1.0, float(np.sqrt(area / stretch))) * image.height
    left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def random_colour(image: Image.Image, draw: Draw) -> Image.Image:
    """Brightness, contrast and saturation each changed by up to 30 %."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draw.uniform(0.7, 1.3))
    return image


def random_affine(image: Image.Image, draw: Draw) -> Image.Image:
    """Turned by up to 12°, moved by up to 8 % and scaled by up to 10 %; the corner's colour fills what is uncovered."""
    angle, scale = np.deg2rad(draw.uniform(-12, 12)), draw.uniform(0.9, 1.1)
    shift_x, shift_y = draw.uniform(-0.08, 0.08, size=2) * image.size
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = image.width / 2, image.height / 2
    # Pillow maps output to input: rotate about the centre, then move.
    matrix = (
        *(cos, sin, x - cos * (x + shift_x) - sin * (y + shift_y)),
        *(-sin, cos, y + sin * (x + shift_x) - cos * (y + shift_y)),
    )
    corner = image.getpixel((0, 0))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=corner)


AUGMENTATIONS: dict[str, tuple[Change, ...]] = {
    "none": (),
    "crop": (random_crop, random_colour),
    "flip-crop": (random_flip, random_crop, random_colour),
    "shift-rotate": (random_affine,),
}
