"""Images of one letter or digit, printed in many fonts or written with a pen."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image, ImageFilter

from tiny.drawn.finish import coarse_mask, finish
from tiny.drawn.fonts import character_mask, font_files
from tiny.drawn.ink import any_color, color_pair, contrast, noise_field, place
from tiny.drawn.strokes import strokes
from tiny.drawn.vocabulary import DIGITS, LETTERS
from vlmtune.data.drawn.ink import COLORS, Array, blend, pen_mask, plain, vary
from vlmtune.data.drawn.scenes import Facts, Thing


def draw_glyph(kind: str, rng: Random, size: int) -> tuple[Image.Image, Facts]:
    """`kind` is "digit" or "letter". Most digits and half of the letters are handwritten; many are coarse."""
    character = rng.choice(DIGITS if kind == "digit" else LETTERS)
    handwritten = rng.random() < (0.7 if kind == "digit" else 0.5)
    canvas = 3 * size
    is_coarse = rng.random() < (0.55 if kind == "digit" else 0.3)
    mask = _written(character, rng, canvas, is_coarse) if handwritten else _printed(character, rng, canvas)
    if is_coarse:
        mask = coarse_mask(mask, rng, size)
        x, y = 0.5, 0.5
    else:
        box = mask.getbbox() or (0, 0, canvas, canvas)
        x, y = (box[0] + box[2]) / 2 / canvas, (box[1] + box[3]) / 2 / canvas
    back, front, color, background = _colors(rng, mask.width, is_coarse)
    pixels = blend(back, front, mask)
    # The coarse images are mostly left alone: their degradation is the one being imitated.
    image = finish(pixels, rng, size, strength=0.25 if is_coarse else 1.0)
    things = (Thing(character, color, x, y),)
    return image, Facts(kind, character, things, background, "handwritten" if handwritten else "printed", color)


def _written(character: str, rng: Random, canvas: int, is_coarse: bool) -> Image.Image:
    lines = strokes(character, rng, wildness=rng.uniform(0.4, 1.3))
    stretch = rng.uniform(0.55, 1.05)
    scale = rng.uniform(0.5, 0.85)
    points = np.concatenate(lines)
    low, high = points.min(axis=0), points.max(axis=0)
    span = float(max(high - low)) or 1.0
    middle = (low + high) / 2
    slack = (1 - scale) / 2
    shift = np.array([0.5 + rng.uniform(-slack, slack) * 0.8, 0.5 + rng.uniform(-slack, slack) * 0.8])
    placed = [(line - middle) / span * scale * np.array([stretch, 1.0]) + shift for line in lines]
    # Coarse images stand for old scanned forms, which were filled in with a felt pen.
    thin = rng.uniform(0.07, 0.13) if is_coarse else rng.uniform(0.04, 0.1)
    width = canvas * scale * rng.choice((thin, rng.uniform(0.1, 0.2)))
    mask = pen_mask(placed, canvas, width)
    if width > 0.08 * canvas and rng.random() < 0.4:
        mask = _ragged(mask, rng)
    return mask


def _ragged(mask: Image.Image, rng: Random) -> Image.Image:
    """Ink that varies in width: blurred together with noise, then cut again."""
    noise = noise_field(mask.width, rng.choice((10, 16, 24)), np.random.default_rng(rng.getrandbits(64)))
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(2.5)), dtype=np.float32) / 255.0
    return Image.fromarray((255 * (soft + 0.5 * (noise - 0.5) > 0.45)).astype(np.uint8))


def _printed(character: str, rng: Random, canvas: int) -> Image.Image:
    mask = character_mask(rng.randrange(len(font_files())), character)
    height = canvas * rng.uniform(0.5, 0.95)
    width = min(height * mask.width / mask.height * rng.uniform(0.75, 1.3), canvas * 0.98)
    slack_x, slack_y = (canvas - width) / 2, (canvas - height) / 2
    center = (canvas / 2 + rng.uniform(-slack_x, slack_x) * 0.7, canvas / 2 + rng.uniform(-slack_y, slack_y) * 0.7)
    return place(mask, canvas, center, (width, height), rng.gauss(0, 0.12))


def _colors(rng: Random, size: int, is_coarse: bool) -> tuple[Array, Array, str, str]:
    """Background and ink as float32[size, size, 3], and both colors' names."""
    choice = rng.random()
    if choice < (0.6 if is_coarse else 0.3):
        return plain(size, (0, 0, 0)), plain(size, (255, 255, 255)), "white", "black"
    if choice < (0.8 if is_coarse else 0.5):
        return plain(size, (255, 255, 255)), plain(size, (0, 0, 0)), "black", "white"
    back_name, front_name = color_pair(rng)
    back_color, front_color = vary(COLORS[back_name], rng), vary(COLORS[front_name], rng)
    back, front = plain(size, back_color), plain(size, front_color)
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(64))
        other = any_color(rng)
        if contrast(other, front_color) > 60:
            back = blend(back, other, noise_field(size, rng.choice((2, 3, 5, 8)), noise) * rng.uniform(0.2, 0.9))
    return back, front, front_name, back_name
