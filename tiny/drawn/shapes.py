"""Images of one to four flat shapes: what color, how many, where."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from tiny.drawn.finish import finish
from tiny.drawn.ink import any_color, contrast, noise_field
from tiny.drawn.vocabulary import SHAPES
from vlmtune.data.drawn.ink import COLORS, OUTLINES, blend, outline_mask, plain, polar, vary
from vlmtune.data.drawn.scenes import LAYOUTS, Facts, Thing

_LAYOUTS = LAYOUTS | {
    4: (((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)), ((0.5, 0.2), (0.2, 0.5), (0.8, 0.5), (0.5, 0.8)))
}
_OUTLINES = OUTLINES | {
    "ring": OUTLINES["circle"],
    "moon": OUTLINES["circle"],
    "rectangle": [(-1.05, -0.5), (1.05, -0.5), (1.05, 0.5), (-1.05, 0.5)],
    "diamond": [(0.0, -1.15), (0.72, 0.0), (0.0, 1.15), (-0.72, 0.0)],
    "hexagon": polar(6, (1.0,), 0.0),
    "arrow": [(-1.1, -0.3), (0.1, -0.3), (0.1, -0.85), (1.15, 0.0), (0.1, 0.85), (0.1, 0.3), (-1.1, 0.3)],
}


def shape_mask(shape: str, size: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    """An "L" image of `size` pixels with one shape on it."""
    mask = outline_mask(_OUTLINES[shape], size, x, y, radius, angle)
    if shape in ("ring", "moon"):
        hole = radius * (0.55 if shape == "ring" else 0.85)
        shift = 0.0 if shape == "ring" else radius * 0.5
        cx, cy = x + shift * math.cos(angle), y + shift * math.sin(angle)
        ImageDraw.Draw(mask).ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=0)
    return mask


def draw_shapes(rng: Random, size: int) -> tuple[Image.Image, Facts]:
    """One shape (half of the images), several of one kind, or several different ones."""
    canvas = 3 * size
    background = rng.choice(("white", "black", "gray", "white", *COLORS))
    back_color = vary(COLORS[background], rng, 10)
    image = plain(canvas, back_color)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(64))
        image = blend(image, any_color(rng), noise_field(canvas, rng.choice((2, 3, 5)), noise) * 0.25)
    inks = [name for name in COLORS if contrast(COLORS[name], COLORS[background]) > 35 or _hue_apart(name, background)]
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    if count == 1:
        positions: list[tuple[float, float]] = [(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))]
    else:
        positions = list(rng.choice(_LAYOUTS[count]))
        rng.shuffle(positions)
    is_uniform = count > 1 and rng.random() < 0.45
    kinds = [rng.choice(SHAPES)] * count if is_uniform else rng.sample(SHAPES, count)
    colors = (
        [rng.choice(inks)] * count
        if is_uniform
        else [inks[i] for i in rng.sample(range(len(inks)), min(count, len(inks)))]
    )
    radius = {1: 0.3, 2: 0.2, 3: 0.15, 4: 0.16}[count] * canvas
    things = []
    for name, color, (x, y) in zip(kinds, colors, positions, strict=False):
        x, y = x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)
        r = radius * rng.uniform(0.75, 1.1)
        angle = (
            rng.gauss(0, 0.2)
            if name in ("square", "diamond", "triangle", "cross", "rectangle")
            else rng.uniform(0, 6.3)
        )
        if name == "heart":
            angle = rng.gauss(0, 0.3)
        mask = shape_mask(name, canvas, x * canvas, y * canvas, r, angle)
        image = blend(image, vary(COLORS[color], rng, 12), mask)
        things.append(Thing(name, color, x, y))
    single = things[0] if len(things) == 1 else None
    facts = Facts(
        "shapes", single.name if single else None, tuple(things), background, "", single.color if single else ""
    )
    return finish(image, rng, size, strength=0.7), facts


def _hue_apart(first: str, second: str) -> bool:
    """Colors of equal lightness but different hue, such as red on green."""
    a, b = COLORS[first], COLORS[second]
    return sum(abs(p - q) for p, q in zip(a, b, strict=True)) > 200
