"""The built-in question set: plain drawn scenes with questions about color, count, place, letter, and yes or no.

Train, validation and test are drawn from seeds of their own, so they are the same on every machine and share no
image. Nothing is read from disk or network; an image is drawn when it is opened. The one true answer stands for
all ten annotators, so the official accuracy is whether it was met to the letter.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random

from vlmtune.data.drawn.plain_questions import plain_questions
from vlmtune.data.drawn.plain_scenes import PlainScene, plain_scene
from vlmtune.data.read.rows import Row, Source
from vlmtune.data.read.vqa_rows import NUM_ANNOTATORS
from vlmtune.records import ImageSource

NUM_IMAGES = {"train": 10_000, "validation": 100, "test": 300}
MOST_QUESTIONS = 8
"""Questions about one image."""
_ANSWER_TYPES = {"yes/no": "yes/no", "count": "number"}
"""VQA's third is "other"."""
_NUMBERING = {"train": 1_000_000, "validation": 2_000_000, "test": 3_000_000}


@dataclass(frozen=True, slots=True)
class DrawnImageSource(ImageSource):
    """An image that is drawn when it is read."""

    scene: PlainScene | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The image as PNG."""
        assert self.scene is not None
        return _encoded(self.scene)

    def num_bytes(self) -> int:
        """Length of the encoded image."""
        return len(self.read())


def read_drawn_vqa() -> Source:
    """The built-in question set, ids as COCO numbers them: a question's id is its image's, and two more digits."""
    splits: dict[str, Callable[[], list[Row]]] = {
        split: partial(_rows, split, num) for split, num in NUM_IMAGES.items()
    }
    return Source("builtin:drawn-vqa", "built-in drawn questions", splits, revision="1")


def _rows(split: str, num_images: int) -> list[Row]:
    rows = []
    for number in range(num_images):
        scene = plain_scene(Random(f"drawn-vqa {split} {number}"))
        image_id = _NUMBERING[split] + number
        image = DrawnImageSource(name=f"drawn-vqa/{image_id}", scene=scene)
        asked = plain_questions(scene.facts, Random(f"drawn-vqa questions {image_id}"))
        for place, question in enumerate(asked[:MOST_QUESTIONS]):
            rows.append(
                Row(
                    id=f"{image_id}{place:02d}",
                    image=image,
                    answers=(question.answer,) * NUM_ANNOTATORS,
                    origin=f"builtin:drawn-vqa, {split} image {number}, question {place}",
                    question=question.question,
                    question_type=question.type,
                    answer_type=_ANSWER_TYPES.get(question.type, "other"),
                    image_id=str(image_id),
                )
            )
    return rows


@lru_cache(maxsize=sum(NUM_IMAGES.values()))
def _encoded(scene: PlainScene) -> bytes:
    file = io.BytesIO()
    scene.draw().save(file, "PNG", compress_level=1)
    return file.getvalue()
