"""Images drawn by the program, with all facts about them: the tiny model's pretraining data.

`draw(kind, seed)` gives an image and its `Facts`; `questions` turns facts into questions with answers. No torch.
"""

from __future__ import annotations

from random import Random

from PIL import Image

from tiny.drawn.glyphs import draw_glyph
from tiny.drawn.scenes import draw_invented, draw_texture, draw_thing
from tiny.drawn.shapes import draw_shapes
from vlmtune.data.drawn.scenes import Facts, Thing
from vlmtune.errors import ConfigError, unknown_name

KINDS = ("digit", "letter", "shapes", "thing", "texture", "invented")

__all__ = ["KINDS", "Facts", "Thing", "draw"]


def draw(kind: str, seed: int, size: int = 32) -> tuple[Image.Image, Facts]:
    """Draw one image.

    Args:
        kind: one of `KINDS`.
        seed: the same seed, kind and size (and the same fonts installed) give the same image.
        size: its side in pixels.

    Returns:
        An RGB image of `size` by `size` pixels and its facts. Raises ConfigError for an unknown kind.
    """
    rng = Random(f"{kind} {seed}")
    if kind in ("digit", "letter"):
        return draw_glyph(kind, rng, size)
    drawers = {"shapes": draw_shapes, "thing": draw_thing, "texture": draw_texture, "invented": draw_invented}
    if kind not in drawers:
        raise ConfigError(unknown_name("kind of drawn image", kind, KINDS))
    return drawers[kind](rng, size)
