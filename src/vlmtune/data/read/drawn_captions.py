"""The built-in caption set: plain scenes as in `drawn_vqa`, but others, each with one line that says what it shows.

For the first stage of `vlmtune pretrain`, which teaches a connector before anything is asked.
"""

from __future__ import annotations

from functools import partial
from random import Random

from vlmtune.data.drawn.plain_scenes import plain_scene
from vlmtune.data.drawn.questions import caption
from vlmtune.data.read.drawn_vqa import DrawnImageSource
from vlmtune.data.read.rows import Row, Source
from vlmtune.data.read.vqa_rows import NUM_ANNOTATORS

NUM_IMAGES = {"train": 6_000, "validation": 200, "test": 200}


def read_drawn_captions(question: str) -> Source:
    """The built-in captions as answers to ``question``."""
    splits = {split: partial(_rows, split, num, question) for split, num in NUM_IMAGES.items()}
    return Source("builtin:drawn-captions", "built-in drawn captions", dict(splits), revision="1")


def _rows(split: str, num_images: int, question: str) -> list[Row]:
    rows = []
    for number in range(num_images):
        name = f"drawn-captions/{split}/{number}"
        scene = plain_scene(Random(name))
        rows.append(
            Row(
                id=f"{split}/{number}",
                image=DrawnImageSource(name=name, scene=scene),
                answers=(caption(scene.facts),) * NUM_ANNOTATORS,
                origin=f"builtin:drawn-captions, {split} image {number}",
                question=question,
                answer_type="caption",
                image_id=f"{split}/{number}",
            )
        )
    return rows
