"""Plain scenes: a few large, clean shapes on one color, or one written letter: what a tiny model sees in 32 pixels.

A scene is composed first and drawn when its image is read, so that thousands of them cost nothing to list. The
built-in question and caption sets are made of these. No fonts, no noise: the same pixels on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from vlmtune.data.drawn.ink import COLORS, OUTLINES, blend, outline_mask, pen_mask, plain, vary
from vlmtune.data.drawn.strokes import LETTER_STROKES, write

SIDE = 64
"""Pixels per side."""
BACKGROUNDS = ("white", "black", "gray")
FOREGROUNDS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = tuple(OUTLINES)
LETTERS = tuple(LETTER_STROKES)
MAX_SHAPES = 3
_RADII = {1: 0.3, 2: 0.23, 3: 0.18}
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
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object in an image; its center in 0..1 from the top left."""

    name: str
    color: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a scene. `label` names the image in one word; an image of several objects has none.

    ``writing`` is "printed" or "handwritten" for a character, else empty. ``background`` is one word: a place or a
    color.
    """

    kind: str
    label: str | None
    things: tuple[Thing, ...] = ()
    background: str = ""
    writing: str = ""
    color: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene's facts, and the seed of everything else: sizes, turns, shades, pen strokes."""

    facts: Facts
    seed: int

    def draw(self) -> Image.Image:
        """An RGB image of `SIDE` by `SIDE` pixels."""
        rng = Random(f"plain scene {self.seed}")
        canvas = 2 * SIDE
        pixels = plain(canvas, vary(COLORS[self.facts.background], rng, 4))
        for thing in self.facts.things:
            if self.facts.kind == "letter":
                mask = _letter_mask(thing, rng, canvas)
            else:
                radius = _RADII[len(self.facts.things)] * rng.uniform(0.85, 1.05) * canvas
                mask = outline_mask(
                    OUTLINES[thing.name], canvas, thing.x * canvas, thing.y * canvas, radius, rng.gauss(0, 0.12)
                )
            pixels = blend(pixels, vary(COLORS[thing.color], rng, 10), mask)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def compose_scene(rng: Random) -> Scene:
    """What a scene shows: a letter in one of four, else one to `MAX_SHAPES` shapes, each number equally likely."""
    background = rng.choice(BACKGROUNDS)
    if rng.random() < 0.25:
        letter, color = rng.choice(LETTERS), rng.choice(FOREGROUNDS)
        thing = Thing(letter, color, 0.5 + rng.uniform(-0.1, 0.1), 0.5 + rng.uniform(-0.1, 0.1))
        return Scene(Facts("letter", letter, (thing,), background, "handwritten", color), rng.getrandbits(48))
    count = rng.randint(1, MAX_SHAPES)
    centers = [(rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))] if count == 1 else list(rng.choice(LAYOUTS[count]))
    rng.shuffle(centers)
    names, colors = rng.sample(SHAPES, count), rng.sample(FOREGROUNDS, count)
    things = tuple(Thing(name, color, x, y) for name, color, (x, y) in zip(names, colors, centers, strict=True))
    single = things[0] if count == 1 else None
    facts = Facts("shapes", single.name if single else None, things, background, "", single.color if single else "")
    return Scene(facts, rng.getrandbits(48))


def _letter_mask(thing: Thing, rng: Random, canvas: int) -> Image.Image:
    lines = write(LETTER_STROKES[thing.name], rng, wildness=0.5)
    points = np.concatenate(lines)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = rng.uniform(0.55, 0.7) / (float(max(high - low)) or 1.0)
    center = np.array([thing.x, thing.y])
    return pen_mask(
        [(line - (low + high) / 2) * scale + center for line in lines], canvas, canvas * rng.uniform(0.08, 0.12)
    )
