"""Plain scenes: a few large, clean shapes on one color, or one written letter: what a tiny model sees in 32 pixels.

A scene is decided first and drawn when its image is wanted, so that thousands of them cost nothing to list. The
built-in VQA set is made of these. No fonts, no noise: the same pixels on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from vlmtune.data.drawn.facts import Facts, Thing
from vlmtune.data.drawn.ink import blend, pen_mask, plain, vary
from vlmtune.data.drawn.shapes import LAYOUTS, shape_mask
from vlmtune.data.drawn.strokes import strokes
from vlmtune.data.drawn.vocabulary import COLORS

SIDE = 64
"""Pixels a side."""
BACKGROUNDS = ("white", "black", "gray")
PLAIN_COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
PLAIN_SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
PLAIN_LETTERS = tuple("ABCEHKLNPSTUXZ")
MOST_SHAPES = 3
_RADII = {1: 0.3, 2: 0.23, 3: 0.18}


@dataclass(frozen=True, slots=True)
class PlainScene:
    """What is true of the scene, and the seed of everything that is not said: sizes, turns, shades, pen strokes."""

    facts: Facts
    seed: int

    def draw(self) -> Image.Image:
        """An RGB image of `SIDE` by `SIDE` pixels."""
        rng = Random(f"plain scene {self.seed}")
        canvas = 2 * SIDE
        pixels = plain(canvas, vary(COLORS[self.facts.place], rng, 4))
        for thing in self.facts.things:
            if self.facts.kind == "letter":
                mask = _letter_mask(thing, rng, canvas)
            else:
                radius = _RADII[len(self.facts.things)] * rng.uniform(0.85, 1.05) * canvas
                mask = shape_mask(thing.name, canvas, thing.x * canvas, thing.y * canvas, radius, rng.gauss(0, 0.12))
            pixels = blend(pixels, vary(COLORS[thing.color], rng, 10), mask)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def plain_scene(rng: Random) -> PlainScene:
    """Decide a scene: a letter in one of four, else one to `MOST_SHAPES` shapes, each number equally likely."""
    place = rng.choice(BACKGROUNDS)
    if rng.random() < 0.25:
        letter, color = rng.choice(PLAIN_LETTERS), rng.choice(PLAIN_COLORS)
        thing = Thing(letter, color, 0.5 + rng.uniform(-0.1, 0.1), 0.5 + rng.uniform(-0.1, 0.1))
        return PlainScene(Facts("letter", letter, (thing,), place, "handwritten", color), rng.getrandbits(48))
    count = rng.randint(1, MOST_SHAPES)
    centers = [(rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))] if count == 1 else list(rng.choice(LAYOUTS[count]))
    rng.shuffle(centers)
    names, colors = rng.sample(PLAIN_SHAPES, count), rng.sample(PLAIN_COLORS, count)
    things = tuple(Thing(name, color, x, y) for name, color, (x, y) in zip(names, colors, centers, strict=True))
    single = things[0] if count == 1 else None
    facts = Facts("shapes", single.name if single else None, things, place, "", single.color if single else "")
    return PlainScene(facts, rng.getrandbits(48))


def _letter_mask(thing: Thing, rng: Random, canvas: int) -> Image.Image:
    lines = strokes(thing.name, rng, wildness=0.5)
    points = np.concatenate(lines)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = rng.uniform(0.55, 0.7) / (float(max(high - low)) or 1.0)
    center = np.array([thing.x, thing.y])
    return pen_mask(
        [(line - (low + high) / 2) * scale + center for line in lines], canvas, canvas * rng.uniform(0.08, 0.12)
    )
