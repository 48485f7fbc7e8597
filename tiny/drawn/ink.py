"""Masks and colors that only the pretraining images need: placed masks, smooth noise, readable pairs of colors."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image

from vlmtune.data.drawn.ink import COLORS, Array, Color


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
    """Smooth noise in 0..1 with about `cells` bumps per side: float32[size, size]."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0


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
