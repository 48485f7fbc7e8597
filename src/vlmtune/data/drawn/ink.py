"""Colors, gray masks and flat grounds that a drawn image is put together from: arrays in, arrays out."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vlmtune.data.drawn.strokes import Points

Array = npt.NDArray[np.float32]
Color = tuple[int, int, int]
Corners = list[tuple[float, float]]

COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 84, 214),
    "yellow": (240, 212, 40),
    "orange": (242, 132, 30),
    "purple": (134, 52, 178),
    "pink": (246, 142, 182),
    "brown": (128, 78, 40),
    "black": (18, 18, 18),
    "white": (244, 244, 244),
    "gray": (128, 128, 128),
}


def polar(steps: int, radii: tuple[float, ...], start: float = -math.pi / 2) -> Corners:
    """Corners at equal angles, their distances from the center repeating `radii`."""
    angles = [start + 2 * math.pi * i / steps for i in range(steps)]
    return [(radii[i % len(radii)] * math.cos(t), radii[i % len(radii)] * math.sin(t)) for i, t in enumerate(angles)]


def _heart(t: float) -> tuple[float, float]:
    height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 1.05 * math.sin(t) ** 3, -height / 16


# fmt: off
OUTLINES: dict[str, Corners] = {
    "circle": polar(32, (1.0,)),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": polar(3, (1.1,)),
    "star": polar(10, (1.15, 0.48)),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "heart": [_heart(2 * math.pi * i / 32) for i in range(32)],
}
# fmt: on
"""Shape -> its corners around (0, 0), about 1 away; the round ones have many."""


def outline_mask(corners: Corners, size: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    """An "L" image of `size` pixels with one outline filled, turned by `angle` (radians) around (x, y), in pixels."""
    cos, sin = math.cos(angle), math.sin(angle)
    mask = Image.new("L", (size, size))
    xy = [(x + radius * (cos * a - sin * b), y + radius * (sin * a + cos * b)) for a, b in corners]
    ImageDraw.Draw(mask).polygon(xy, fill=255)
    return mask


def pen_mask(lines: list[Points], size: int, width: float) -> Image.Image:
    """Polylines of the unit square in ink on an "L" image of `size` pixels, with round ends. `width` in pixels."""
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


def vary(color: Color, rng: Random, spread: float = 22.0) -> Color:
    """A neighbor of a color."""
    red, green, blue = (min(255, max(0, int(c + rng.gauss(0, spread)))) for c in color)
    return red, green, blue


def blend(back: Array, front: Array | Color, mask: Image.Image | Array) -> Array:
    """`front` over `back` where the mask is: float32[size, size, 3] in 0..255."""
    alpha = np.asarray(mask, dtype=np.float32) / 255.0 if isinstance(mask, Image.Image) else mask
    return back + alpha[..., None] * (np.asarray(front, dtype=np.float32) - back)


def plain(size: int, color: Color) -> Array:
    """One color: float32[size, size, 3] in 0..255."""
    return np.full((size, size, 3), color, dtype=np.float32)
