"""Photograph-like images: a thing in its place, textures, and invented things that carry many ordinary words."""

from __future__ import annotations

import math
import zlib
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from tiny.drawn.finish import finish
from tiny.drawn.ink import any_color, color_pair, noise_field
from tiny.drawn.silhouettes import THINGS, parts
from tiny.drawn.vocabulary import INVENTED, PLACES, TEXTURES
from vlmtune.data.drawn.ink import COLORS, Array, Color, blend, plain, vary
from vlmtune.data.drawn.scenes import Facts, Thing

_GROUND: dict[str, tuple[tuple[Color, Color], tuple[Color, Color] | None]] = {
    "sky": (((110, 165, 230), (200, 220, 240)), None),
    "sea": (((150, 190, 225), (210, 220, 230)), ((30, 80, 130), (70, 130, 160))),
    "road": (((170, 190, 210), (210, 210, 205)), ((90, 90, 95), (140, 138, 135))),
    "grass": (((150, 190, 230), (200, 220, 220)), ((60, 120, 40), (120, 160, 70))),
    "forest": (((40, 70, 30), (90, 110, 60)), ((70, 60, 35), (90, 100, 50))),
    "home": (((150, 130, 110), (215, 205, 190)), ((120, 80, 50), (170, 140, 110))),
    "sand": (((150, 190, 230), (220, 220, 220)), ((200, 170, 120), (225, 200, 150))),
    "snow": (((170, 190, 215), (225, 230, 240)), ((215, 222, 232), (245, 247, 250))),
    "night": (((8, 10, 30), (30, 34, 70)), ((12, 14, 18), (36, 36, 40))),
    "plain": (((200, 200, 200), (245, 245, 245)), None),
}


def background(place: str, rng: Random, noise: np.random.Generator, size: int) -> Array:
    """Sky over ground, with gradients, patches and grain: float32[size, size, 3]."""
    above, below = _GROUND[place]
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    top, bottom = (np.asarray(vary(c, rng, 18), dtype=np.float32) for c in above)
    image = np.broadcast_to(top + ramp * (bottom - top), (size, size, 3)).copy()
    image += (noise_field(size, rng.choice((3, 5, 8)), noise)[..., None] - 0.5) * rng.uniform(5, 60)
    if below is not None:
        horizon = int(size * rng.uniform(0.3, 0.85))
        near, far = (np.asarray(vary(c, rng, 18), dtype=np.float32) for c in below)
        ground = np.broadcast_to(near + ramp * (far - near), (size, size, 3)).copy()
        grain = noise_field(size, rng.choice((6, 12, 24)), noise) - 0.5
        ground += grain[..., None] * rng.uniform(10, 70)
        image[horizon:] = ground[horizon:]
    return image


def draw_thing(rng: Random, size: int) -> tuple[Image.Image, Facts]:
    """One of `silhouettes.THINGS` in a place, mostly its own."""
    name = rng.choice(list(THINGS))
    home, palette, _ = THINGS[name]
    place = home if rng.random() < 0.75 else rng.choice(PLACES)
    noise = np.random.default_rng(rng.getrandbits(64))
    canvas = 2 * size
    image = background(place, rng, noise, canvas)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        image = _clutter(image, rng, canvas)
    color = rng.choice(palette.split() if palette and rng.random() < 0.85 else list(COLORS))
    scale = canvas * rng.uniform(0.55, 1.05)
    slack = max(canvas - scale, 0.15 * canvas) / 2
    x, y = canvas / 2 + rng.uniform(-slack, slack), canvas / 2 + rng.uniform(-slack, slack)
    layer, mask = _silhouette(name, color, rng, canvas, x, y, scale)
    body = np.asarray(layer, dtype=np.float32)
    # Light from one side, and a coat or a grain: a photographed thing is never flat.
    shade = noise_field(canvas, rng.choice((2, 3, 6, 12, 20)), noise)[..., None] - 0.5
    slope = np.linspace(-0.5, 0.5, canvas, dtype=np.float32)
    slope = slope[:, None, None] if rng.random() < 0.7 else slope[None, :, None]
    body = body * (1 + shade * rng.uniform(0.1, 0.9)) + slope * rng.uniform(-90, 40)
    image = blend(image, body, mask)
    facts = Facts("thing", name, (Thing(name, color, x / canvas, y / canvas),), place, "", color)
    return finish(image, rng, size, strength=0.8), facts


def _silhouette(
    name: str, color: str, rng: Random, canvas: int, x: float, y: float, scale: float
) -> tuple[Image.Image, Image.Image]:
    """Colors (RGB) and coverage (L) of one bent, turned, possibly mirrored thing."""
    main = vary(COLORS[color], rng, 18)
    inks = {
        "a": main,
        "b": vary(COLORS[rng.choice(list(COLORS))], rng) if rng.random() < 0.6 else vary(main, rng, 45),
        "d": vary((70, 50, 40), rng, 18),
        "w": vary((225, 228, 232), rng, 14),
        "k": vary((22, 22, 24), rng, 10),
    }
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    angle, shear = rng.gauss(0, 0.14), rng.gauss(0, 0.12)
    wide, high = rng.uniform(0.8, 1.15), rng.uniform(0.8, 1.15)
    cos, sin = math.cos(angle), math.sin(angle)
    bend, phase = rng.uniform(0, 0.5), rng.uniform(0, 6.3)

    def move(px: float, py: float) -> tuple[float, float]:
        u, v = px - 5, py - 5
        u, v = u + bend * math.sin(v * 0.6 + phase), v + bend * math.sin(u * 0.6 + phase)
        u, v = mirror * wide * (u + shear * v), high * v
        return x + scale / 10 * (cos * u - sin * v), y + scale / 10 * (sin * u + cos * v)

    layer, mask = Image.new("RGB", (canvas, canvas)), Image.new("L", (canvas, canvas))
    pens = (ImageDraw.Draw(layer), ImageDraw.Draw(mask))
    for role, form, width, points in rng.choice(parts(name)):
        if form == "e":
            (x0, y0), (x1, y1) = points
            points = tuple(
                ((x0 + x1) / 2 + (x1 - x0) / 2 * math.cos(t), (y0 + y1) / 2 + (y1 - y0) / 2 * math.sin(t))
                for t in (i * math.pi / 8 for i in range(16))
            )
        xy = [move(px + rng.gauss(0, 0.08), py + rng.gauss(0, 0.08)) for px, py in points]
        colors: tuple[Color | int, ...] = (inks[role], 255)
        for pen, ink in zip(pens, colors, strict=True):
            if form == "l":
                pen.line(xy, fill=ink, width=max(1, round(width * scale / 10)), joint="curve")
            else:
                pen.polygon(xy, fill=ink)
    return layer, mask


def _clutter(image: Array, rng: Random, canvas: int) -> Array:
    """A soft patch, a bar or a blob behind the thing."""
    mask = Image.new("L", (canvas, canvas))
    pen = ImageDraw.Draw(mask)
    x, y = rng.uniform(0, canvas), rng.uniform(0, canvas)
    if rng.random() < 0.5:
        w, h = rng.uniform(0.05, 0.5) * canvas, rng.uniform(0.05, 0.6) * canvas
        pen.rectangle((x - w, y - h, x + w, y + h), fill=rng.randrange(90, 255))
    else:
        pen.polygon(_blob(rng, x, y, rng.uniform(0.08, 0.35) * canvas, 0.3), fill=rng.randrange(90, 255))
    return blend(image, any_color(rng), mask)


def _blob(rng: Random, x: float, y: float, radius: float, roughness: float) -> list[tuple[float, float]]:
    waves = [(rng.gauss(0, roughness) / k, rng.uniform(0, 6.3), k) for k in (1, 2, 3, 5)]
    corners = []
    for i in range(28):
        t = 2 * math.pi * i / 28
        r = radius * max(0.15, 1 + sum(a * math.cos(k * t + p) for a, p, k in waves))
        corners.append((x + r * math.cos(t), y + r * math.sin(t)))
    return corners


def texture_field(name: str, rng: Random, noise: np.random.Generator, size: int) -> Array:
    """A pattern in 0..1: float32[size, size]."""
    angle = rng.uniform(0, math.pi)
    period = size * rng.uniform(0.12, 0.34)
    v, u = np.mgrid[0:size, 0:size].astype(np.float32)
    u, v = u + rng.uniform(0, size), v + rng.uniform(0, size)
    if name == "rings":
        distance = np.hypot(u - u.mean() + rng.uniform(-8, 8), v - v.mean() + rng.uniform(-8, 8))
        return _soft(np.sin(2 * math.pi * distance / period))
    if name == "bricks":
        row = np.floor(v / (period * 0.6))
        above, beside = np.mod(v, period * 0.6), np.mod(u + row * period * 0.6, period * 1.2)
        bricks: Array = ((above > period * 0.1) & (beside > period * 0.1)).astype(np.float32)
        return bricks
    if name == "noise":
        return noise.random((size, size), dtype=np.float32)
    if name == "clouds":
        return 0.6 * noise_field(size, 4, noise) + 0.4 * noise_field(size, 9, noise)
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = cos * u + sin * v, -sin * u + cos * v
    if name == "gradient":
        field = cos * u + sin * v
        ramp: Array = (field - field.min()) / (field.max() - field.min())
        return ramp
    if name == "stripes":
        return _soft(np.sin(2 * math.pi * a / period))
    if name == "waves":
        return _soft(np.sin(2 * math.pi * (a + 0.25 * period * np.sin(2 * math.pi * b / (1.6 * period))) / period))
    if name == "checks":
        return _soft(np.sin(2 * math.pi * a / period) * np.sin(2 * math.pi * b / period) * 2)
    if name == "dots":
        return _soft(np.sin(2 * math.pi * a / period) + np.sin(2 * math.pi * b / period) - 0.9)
    assert name == "grid"
    lines = (np.mod(a, period) < period * 0.22) | (np.mod(b, period) < period * 0.22)
    grid: Array = lines.astype(np.float32)
    return grid


def _soft(wave: Array) -> Array:
    soft: Array = np.clip(wave * 2.5 + 0.5, 0, 1).astype(np.float32)
    return soft


def draw_texture(rng: Random, size: int) -> tuple[Image.Image, Facts]:
    """A pattern of two colors over the whole image."""
    name = rng.choice(TEXTURES)
    noise = np.random.default_rng(rng.getrandbits(64))
    canvas = 2 * size
    back, front = color_pair(rng, 45)
    image = blend(
        plain(canvas, vary(COLORS[back], rng)), vary(COLORS[front], rng), texture_field(name, rng, noise, canvas)
    )
    return finish(image, rng, size, strength=0.6), Facts("texture", name, (), back, "", front)


def draw_invented(rng: Random, size: int) -> tuple[Image.Image, Facts]:
    """A thing that only exists here: the word fixes its outline, palette, coat and place; the rest varies."""
    word = rng.choice(INVENTED)
    recipe = Random(zlib.crc32(word.encode()))
    noise = np.random.default_rng(rng.getrandbits(64))
    canvas = 2 * size
    place, texture = recipe.choice(PLACES), recipe.choice(TEXTURES)
    main, second = (COLORS[name] for name in recipe.sample(list(COLORS), 2))
    outline_seed, roughness, lobes = (
        recipe.getrandbits(32),
        recipe.choice((0.15, 0.35, 0.55)),
        recipe.choice((1, 1, 2, 3)),
    )
    tall = recipe.uniform(0.6, 1.7)
    image = background(place if rng.random() < 0.85 else rng.choice(PLACES), rng, noise, canvas)
    for _ in range(rng.choice((0, 0, 1))):
        image = _clutter(image, rng, canvas)
    coat = texture_field(texture, rng, noise, canvas)
    body = blend(plain(canvas, vary(main, rng, 20)), vary(second, rng, 20), coat * 0.8)
    body *= 1 + (noise_field(canvas, 3, noise)[..., None] - 0.5) * rng.uniform(0.1, 0.7)
    mask = Image.new("L", (canvas, canvas))
    pen = ImageDraw.Draw(mask)
    x, y = canvas * rng.uniform(0.4, 0.6), canvas * rng.uniform(0.4, 0.6)
    angle, mirror, reach = rng.gauss(0, 0.2), rng.choice((-1.0, 1.0)), canvas * rng.uniform(0.25, 0.4)
    cos, sin = math.cos(angle), math.sin(angle)
    shape = Random(outline_seed)
    for lobe in range(lobes):
        cx, cy = (shape.uniform(-0.7, 0.7), shape.uniform(-0.7, 0.7)) if lobe else (0.0, 0.0)
        corners = _blob(shape, cx, cy, 1.0 if not lobe else 0.6, roughness)
        placed = []
        for px, py in corners:
            u, v = mirror * (px + rng.gauss(0, 0.03)) / math.sqrt(tall), (py + rng.gauss(0, 0.03)) * math.sqrt(tall)
            placed.append((x + reach * (cos * u - sin * v), y + reach * (sin * u + cos * v)))
        pen.polygon(placed, fill=255)
    image = blend(image, body, mask)
    facts = Facts("invented", word, (Thing(word, "", x / canvas, y / canvas),), place, "", "")
    return finish(image, rng, size, strength=0.7), facts
