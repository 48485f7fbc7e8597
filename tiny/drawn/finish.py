"""The effects of a camera, a scanner or a thumbnail on an image: blur, coarse pixels, noise, light."""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from tiny.drawn.ink import noise_field
from vlmtune.data.drawn.ink import Array

_UPSCALING = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def coarse_mask(mask: Image.Image, rng: Random, size: int) -> Image.Image:
    """A character as an 8 by 8 image of 17 gray levels, scaled up again: as many old scanned data sets are stored.

    The ink is cut out, scaled to fill the height (and most of the width) of 32 by 32 black-or-white pixels, and counted
    in 4 by 4 blocks.
    """
    box = mask.getbbox()
    if box is None:
        return mask.resize((size, size))
    cut = mask.crop(box)
    height = rng.choice((32, 32, 32, 31, 30, 28))
    aspect = (box[2] - box[0]) / (box[3] - box[1])
    width = round(min(32.0, max(6.0, height * min(aspect * rng.uniform(0.85, 1.25), 1.0))))
    binary = cut.resize((width, height), Image.Resampling.BOX).point(lambda v: 255 * (v > 110))
    # The old sets were written with a felt pen: thin ink is thickened until it fills a good fifth of its box.
    least = rng.uniform(0.12, 0.3)
    for _ in range(2):
        if np.asarray(binary).mean() < 255 * least:
            binary = binary.filter(ImageFilter.MaxFilter(3))
    page = Image.new("L", (32, 32))
    page.paste(binary, ((32 - width) // 2 + rng.choice((-2, -1, 0, 0, 1, 2)), (32 - height) // 2))
    blocks = np.asarray(page, dtype=np.float32).reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 255.0
    levels = np.round(blocks * 16) / 16
    if rng.random() < 0.3:
        levels = np.minimum(levels * rng.uniform(1.0, 1.3), 1.0)
    small = Image.fromarray((levels * 255).astype(np.uint8))
    if rng.random() < 0.2:
        small = small.resize((rng.choice((16, 24, 64, 96)),) * 2, rng.choice(_UPSCALING))
    return small.resize((size, size), rng.choice(_UPSCALING))


def finish(pixels: Array, rng: Random, size: int, strength: float = 1.0) -> Image.Image:
    """Scale a float32[S, S, 3] image (0..255) to `size` pixels with some of: blur, coarse pixels, light, noise."""
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.25 * strength:
        small = rng.choice((10, 12, 16, 16, 20, 24))
        image = image.resize((small, small), Image.Resampling.BOX).resize((size, size), rng.choice(_UPSCALING))
    elif image.width != size:
        image = image.resize(
            (size, size), Image.Resampling.BOX if image.width % size == 0 else Image.Resampling.BICUBIC
        )
    if rng.random() < 0.2 * strength:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * size / 32))
    if rng.random() < 0.6 * strength:
        noise = np.random.default_rng(rng.getrandbits(64))
        values: npt.NDArray[np.floating] = np.asarray(image, dtype=np.float32)
        if rng.random() < 0.5:
            light = noise_field(size, rng.choice((2, 2, 3)), noise)
            values = values * (1.0 + (light[..., None] - 0.5) * rng.uniform(0.1, 0.7))
        if rng.random() < 0.5:
            values = (values - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-25, 25)
        if rng.random() < 0.7:
            values = values + noise.normal(0, rng.uniform(1, 14), (size, size, rng.choice((1, 3))))
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return image
