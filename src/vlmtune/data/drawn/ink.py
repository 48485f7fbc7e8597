"""Gray masks and backgrounds that every kind of image is put together from: arrays in, arrays out."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vlmtune.data.drawn.strokes import Points
from vlmtune.data.drawn.vocabulary import COLORS, Color

Array = npt.NDArray[np.float32]


def pen_mask(lines: list[Points], size: int, width: float) -> Image.Image:
    """Ink polylines of the unit square on an "L" image of `size` pixels, with round ends. `width` in pixels."""
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    radius = width / 2
    for line in lines:
        xy = [(float(x) * size, float(y) * size) for x, y in line]
        pen.line(xy, fill=255, width=max(1, round(width)), joint="curve")
        if width > 2:
            for x, y in (xy[0], xy[-1]):
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def place(
    mask: Image.Image, size: int, center: tuple[float, float], extent: tuple[float, float], angle: float
) -> Image.Image:
    """Put a mask on `size` pixels: its whole area at `center`, `extent` wide and high, turned by `angle` (radians)."""
    width, height = mask.size
    cos, sin = math.cos(angle), math.sin(angle)
    sx, sy = width / max(extent[0], 1.0), height / max(extent[1], 1.0)
    a, b = cos * sx, sin * sx
    d, e = -sin * sy, cos * sy
    c = width / 2 - a * center[0] - b * center[1]
    f = height / 2 - d * center[0] - e * center[1]
    return mask.transform((size, size), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)


def noise_field(size: int, cells: int, rng: np.random.Generator) -> Array:
    """Smooth noise in 0..1 with about `cells` bumps a side: float32[size, size]."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0


def vary(color: Color, rng: Random, spread: float = 22.0) -> Color:
    """A neighbor of a color."""
    red, green, blue = (min(255, max(0, int(c + rng.gauss(0, spread)))) for c in color)
    return red, green, blue


def any_color(rng: Random) -> Color:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def contrast(first: Color, second: Color) -> float:
    """Difference in lightness, 0..255."""
    weights = (0.3, 0.59, 0.11)
    return abs(sum(w * (a - b) for w, a, b in zip(weights, first, second, strict=True)))


def color_pair(rng: Random, least: float = 60.0) -> tuple[str, str]:
    """Two named colors, the second readable on the first."""
    names = list(COLORS)
    while True:
        back, front = rng.sample(names, 2)
        if contrast(COLORS[back], COLORS[front]) >= least:
            return back, front


def blend(back: Array, front: Array | Color, mask: Image.Image | Array) -> Array:
    """`front` over `back` where the mask is: float32[size, size, 3] in 0..255."""
    alpha = np.asarray(mask, dtype=np.float32) / 255.0 if isinstance(mask, Image.Image) else mask
    return back + alpha[..., None] * (np.asarray(front, dtype=np.float32) - back)


def plain(size: int, color: Color) -> Array:
    return np.full((size, size, 3), color, dtype=np.float32)
