"""The built-in sets: scikit-learn's handwritten digits, and drawn scenes with questions or captions.

The splits of the scenes are drawn from separate seeds, so they are the same on every machine and share no image.
Nothing is read from disk or network; an image is drawn when it is opened. The one true answer is repeated for all ten
annotators, so the official accuracy is an exact match. The captions are for the first stage of
`vlmtune pretrain`, which trains a connector before any question.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random

from vlmtune.data.drawn.questions import caption, scene_questions
from vlmtune.data.drawn.scenes import Scene, compose_scene
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.rows import NUM_ANNOTATORS
from vlmtune.data.read.source import Source
from vlmtune.errors import DataError, unknown_name
from vlmtune.records import Example, ImageSource

BUILT_IN = {"builtin:digits": False, "builtin:drawn-vqa": True, "builtin:drawn-captions": True}
"""Name -> whether each image comes with questions of its own (`task.question_from: data`)."""
DIGITS = tuple("0123456789")
NUM_VQA_IMAGES = {"train": 10_000, "validation": 100, "test": 300}
NUM_CAPTIONS = {"train": 6_000, "validation": 200, "test": 200}
MAX_QUESTIONS = 8
"""Questions about one image."""
_ANSWER_TYPES = {"yes/no": "yes/no", "count": "number"}
"""VQA's third is "other"."""
_DIGIT_SIDE = 64  # pixels per side after upscaling
_NUMBERING = {"train": 1_000_000, "validation": 2_000_000, "test": 3_000_000}


def read_built_in(name: str, mapper: ColumnMapper) -> Source:
    """Open a built-in set by name. Raises DataError for an unknown one, or one that does not fit the task."""
    if name not in BUILT_IN:
        raise DataError(unknown_name("built-in data set", name, BUILT_IN))
    if BUILT_IN[name] != mapper.has_questions:
        fitting = ", ".join(other for other, has_questions in BUILT_IN.items() if has_questions == mapper.has_questions)
        needed, given = ("data", "prompt") if BUILT_IN[name] else ("prompt", "data")
        raise DataError(
            f"data.source: {name} is made for task.question_from: {needed}, found {given} (the "
            f"default of text is data, of the other types prompt). Set task.question_from: {needed}, or use {fitting}."
        )
    if name == "builtin:drawn-captions":
        return read_drawn_captions(mapper.data.caption_question)
    return read_drawn_vqa() if name == "builtin:drawn-vqa" else read_digits()


def read_digits() -> Source:
    """scikit-learn's 1,797 digits (UCI ML hand-written digits, 8×8 gray), as RGB images, white on black."""
    return Source("builtin:digits", "built-in digits", {"all": _digits}, class_names=DIGITS, revision="scikit-learn")


def _digits() -> list[Example]:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    # Ink has 17 levels, 0 to 16. Pillow's bicubic is integer arithmetic: the same pixels on every machine.
    gray = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    examples = []
    for number, (pixels, target) in enumerate(zip(gray, targets, strict=True)):
        image = Image.fromarray(pixels).resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC).convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        name = f"digits/{number:04d}"
        source = ImageSource(data=file.getvalue(), name=name)
        examples.append(Example(name, source, (DIGITS[target],), origin=f"builtin:{name}"))
    return examples


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
    """The built-in question set with COCO's numbering: a question's id is its image's plus two digits."""
    splits: dict[str, Callable[[], list[Example]]] = {
        split: partial(_questions, split, num) for split, num in NUM_VQA_IMAGES.items()
    }
    return Source("builtin:drawn-vqa", "built-in drawn questions", splits, revision="1")


def _questions(split: str, num_images: int) -> list[Example]:
    examples = []
    for number in range(num_images):
        scene = compose_scene(Random(f"drawn-vqa {split} {number}"))
        image_id = _NUMBERING[split] + number
        image = DrawnImageSource(name=f"drawn-vqa/{image_id}", scene=scene)
        questions = scene_questions(scene.facts, Random(f"drawn-vqa questions {image_id}"))
        for i, question in enumerate(questions[:MAX_QUESTIONS]):
            examples.append(
                Example(
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
    return examples


def read_drawn_captions(question: str) -> Source:
    """The built-in captions as answers to ``question``: other scenes, each with one line that says what it shows."""
    splits: dict[str, Callable[[], list[Example]]] = {
        split: partial(_captions, split, num, question) for split, num in NUM_CAPTIONS.items()
    }
    return Source("builtin:drawn-captions", "built-in drawn captions", splits, revision="1")


def _captions(split: str, num_images: int, question: str) -> list[Example]:
    examples = []
    for number in range(num_images):
        name = f"drawn-captions/{split}/{number}"
        scene = compose_scene(Random(name))
        examples.append(
            Example(
                id=f"{split}/{number}",
                image=DrawnImageSource(name=name, scene=scene),
                answers=(caption(scene.facts),) * NUM_ANNOTATORS,
                origin=f"builtin:drawn-captions, {split} image {number}",
                question=question,
                answer_type="caption",
                image_id=f"{split}/{number}",
            )
        )
    return examples


@lru_cache(maxsize=sum(NUM_VQA_IMAGES.values()))
def _encoded(scene: Scene) -> bytes:
    file = io.BytesIO()
    scene.draw().save(file, "PNG", compress_level=1)
    return file.getvalue()
