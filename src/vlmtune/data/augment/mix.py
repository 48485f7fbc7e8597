"""MixUp and CutMix: one training image made of two, and the share of each in it.

The two answers become two branches of the one image in the prefix tree, with the losses λ·NLL(a) + (1-λ)·NLL(b)
(`train/items.py`). Images are mixed after their own random changes and before the processor, at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

Draw = np.random.Generator


@dataclass(frozen=True)
class Mixing:
    """How pairs are mixed. With both kinds on, each image draws one of the two with equal chance, as in timm.

    Attributes:
        mixup: α of MixUp's Beta(α, α); 0 is off (arXiv 1710.09412).
        cutmix: α of CutMix's; 0 is off (arXiv 1905.04899).
        probability: of an image to be mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def is_drawn(self, draw: Draw) -> bool:
        """Whether this image is mixed with another."""
        return self.is_on and bool(draw.random() < self.probability)

    def __call__(self, first: Image.Image, second: Image.Image, draw: Draw) -> tuple[Image.Image, float]:
        """The mixed image, in the size of the first, and the first's share λ in it."""
        second = second.resize(first.size, Image.Resampling.BILINEAR) if second.size != first.size else second
        is_cut = not self.mixup or (self.cutmix > 0 and draw.random() < 0.5)
        if is_cut:
            return cut_mix(first, second, float(draw.beta(self.cutmix, self.cutmix)), draw)
        share = float(draw.beta(self.mixup, self.mixup))
        return Image.blend(second, first, share), share


def cut_mix(first: Image.Image, second: Image.Image, share: float, draw: Draw) -> tuple[Image.Image, float]:
    """``first`` with a rectangle of about 1 - ``share`` of the area from ``second``, in the same place.

    The rectangle's center is anywhere in the image, so that it may be cut off at the border; the share that is
    returned is that of the remaining pixels.
    """
    side = np.sqrt(1 - share)
    width, height = first.size
    x, y = draw.integers(width), draw.integers(height)
    half_width, half_height = round(side * width) / 2, round(side * height) / 2
    box = (
        max(0, round(x - half_width)),
        max(0, round(y - half_height)),
        min(width, round(x + half_width)),
        min(height, round(y + half_height)),
    )
    mixed = first.copy()
    mixed.paste(second.crop(box), box[:2])
    return mixed, 1 - (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
