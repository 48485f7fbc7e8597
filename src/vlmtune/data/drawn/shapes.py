"""Images of one to four flat shapes: what color, how many, where."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from vlmtune.data.drawn.facts import Facts, Thing
from vlmtune.data.drawn.finish import finish
from vlmtune.data.drawn.ink import any_color, blend, contrast, noise_field, plain, vary
from vlmtune.data.drawn.vocabulary import COLORS, SHAPES

# Where objects go, as centers in 0..1, by how many there are: far enough apart not to touch.
LAYOUTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    2: (
        ((0.25, 0.5), (0.75, 0.5)),
        ((0.5, 0.25), (0.5, 0.75)),
        ((0.28, 0.28), (0.72, 0.72)),
        ((0.72, 0.28), (0.28, 0.72)),
    ),
    3: (
        ((0.2, 0.25), (0.75, 0.3), (0.5, 0.75)),
        ((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)),
        ((0.25, 0.75), (0.75, 0.75), (0.5, 0.25)),
        ((0.5, 0.18), (0.5, 0.5), (0.5, 0.82)),
    ),
    4: (((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)), ((0.5, 0.2), (0.2, 0.5), (0.8, 0.5), (0.5, 0.8))),
}


Corners = list[tuple[float, float]]


def _polar(steps: int, radii: tuple[float, ...], start: float = -math.pi / 2) -> Corners:
    """Corners at equal angles, their distances from the center repeating `radii`."""
    angles = [start + 2 * math.pi * i / steps for i in range(steps)]
    return [(radii[i % len(radii)] * math.cos(t), radii[i % len(radii)] * math.sin(t)) for i, t in enumerate(angles)]


def _heart(t: float) -> tuple[float, float]:
    height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 1.05 * math.sin(t) ** 3, -height / 16


# fmt: off
_OUTLINES: dict[str, Corners] = {
    "circle": _polar(32, (1.0,)),
    "ring": _polar(32, (1.0,)),
    "moon": _polar(32, (1.0,)),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "rectangle": [(-1.05, -0.5), (1.05, -0.5), (1.05, 0.5), (-1.05, 0.5)],
    "triangle": _polar(3, (1.1,)),
    "star": _polar(10, (1.15, 0.48)),
    "diamond": [(0.0, -1.15), (0.72, 0.0), (0.0, 1.15), (-0.72, 0.0)],
    "hexagon": _polar(6, (1.0,), 0.0),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "arrow": [(-1.1, -0.3), (0.1, -0.3), (0.1, -0.85), (1.15, 0.0), (0.1, 0.85), (0.1, 0.3), (-1.1, 0.3)],
    "heart": [_heart(2 * math.pi * i / 32) for i in range(32)],
}
# fmt: on


def outline(shape: str, x: float, y: float, radius: float, angle: float) -> Corners:
    """A shape's corners around (x, y), in pixels. The round ones have many."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + radius * (cos * a - sin * b), y + radius * (sin * a + cos * b)) for a, b in _OUTLINES[shape]]


def shape_mask(shape: str, size: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    """An "L" image of `size` pixels with one shape on it."""
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    pen.polygon(outline(shape, x, y, radius, angle), fill=255)
    if shape in ("ring", "moon"):
        hole = radius * (0.55 if shape == "ring" else 0.85)
        shift = 0.0 if shape == "ring" else radius * 0.5
        cx, cy = x + shift * math.cos(angle), y + shift * math.sin(angle)
        pen.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=0)
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
        positions = list(rng.choice(LAYOUTS[count]))
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
    """Colors as light as each other but of another hue, such as red on green."""
    a, b = COLORS[first], COLORS[second]
    return sum(abs(p - q) for p, q in zip(a, b, strict=True)) > 200
