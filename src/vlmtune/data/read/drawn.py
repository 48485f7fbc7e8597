"""The two built-in sets of drawn scenes: questions (color, count, position, letter, yes or no), and captions.

Train, validation and test are drawn from seeds of their own, so they are the same on every machine and share no
image. Nothing is read from disk or network; an image is drawn when it is opened. The one true answer stands for
all ten annotators, so the official accuracy is whether it was met to the letter. The captions are for the first
stage of `vlmtune pretrain`, which teaches a connector before anything is asked.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random

from vlmtune.data.drawn.questions import caption, scene_questions
from vlmtune.data.drawn.scenes import Scene, compose_scene
from vlmtune.data.read.rows import Row, Source
from vlmtune.data.read.vqa_rows import NUM_ANNOTATORS
from vlmtune.records import ImageSource

NUM_VQA_IMAGES = {"train": 10_000, "validation": 100, "test": 300}
NUM_CAPTIONS = {"train": 6_000, "validation": 200, "test": 200}
MAX_QUESTIONS = 8
"""Questions about one image."""
_ANSWER_TYPES = {"yes/no": "yes/no", "count": "number"}
"""VQA's third is "other"."""
_NUMBERING = {"train": 1_000_000, "validation": 2_000_000, "test": 3_000_000}


@dataclass(frozen=True, slots=True)
class DrawnImageSource(ImageSource):
    """An image that is drawn when it is read."""

    scene: Scene | None = field(default=None, repr=False)

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
        split: partial(_questions, split, num) for split, num in NUM_VQA_IMAGES.items()
    }
    return Source("builtin:drawn-vqa", "built-in drawn questions", splits, revision="1")


def _questions(split: str, num_images: int) -> list[Row]:
    rows = []
    for number in range(num_images):
        scene = compose_scene(Random(f"drawn-vqa {split} {number}"))
        image_id = _NUMBERING[split] + number
        image = DrawnImageSource(name=f"drawn-vqa/{image_id}", scene=scene)
        questions = scene_questions(scene.facts, Random(f"drawn-vqa questions {image_id}"))
        for i, question in enumerate(questions[:MAX_QUESTIONS]):
            rows.append(
                Row(
                    id=f"{image_id}{i:02d}",
                    image=image,
                    answers=(question.answer,) * NUM_ANNOTATORS,
                    origin=f"builtin:drawn-vqa, {split} image {number}, question {i}",
                    question=question.question,
                    question_type=question.type,
                    answer_type=_ANSWER_TYPES.get(question.type, "other"),
                    image_id=str(image_id),
                )
            )
    return rows


def read_drawn_captions(question: str) -> Source:
    """The built-in captions as answers to ``question``: other scenes, each with one line that says what it shows."""
    splits: dict[str, Callable[[], list[Row]]] = {
        split: partial(_captions, split, num, question) for split, num in NUM_CAPTIONS.items()
    }
    return Source("builtin:drawn-captions", "built-in drawn captions", splits, revision="1")


def _captions(split: str, num_images: int, question: str) -> list[Row]:
    rows = []
    for number in range(num_images):
        name = f"drawn-captions/{split}/{number}"
        scene = compose_scene(Random(name))
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


@lru_cache(maxsize=sum(NUM_VQA_IMAGES.values()))
def _encoded(scene: Scene) -> bytes:
    file = io.BytesIO()
    scene.draw().save(file, "PNG", compress_level=1)
    return file.getvalue()
