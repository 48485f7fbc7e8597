"""Plain data that passes between the packages: no torch, no I/O beyond opening one image."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vlmtune.errors import DataError, UnreadableImageError


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image that is opened when it is needed: a file, or encoded bytes (a parquet cell, an upload).

    Exactly one of ``path`` and ``data`` is set; ``name`` identifies the image in messages.
    """

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    name: str = ""

    def read(self) -> bytes:
        """The encoded bytes. Raises UnreadableImageError."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(self.path, error.strerror or str(error)) from error

    def open(self) -> Image.Image:
        """Decode to RGB, upright (EXIF orientation applied), transparency over white. Raises UnreadableImageError."""
        from PIL import ImageOps

        try:
            image: Image.Image = Image.open(io.BytesIO(self.read()))
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                # Pillow's own conversion clips 65,535 levels to 255, which makes nearly every image white.
                image = image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                canvas = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(canvas, image)
            return image.convert("RGB")
        except UnreadableImageError:
            raise
        except UnidentifiedImageError as error:
            # Pillow's message names a memory address, which would differ from run to run.
            reason = "not an image in a known format" if self.read() else "the file is empty"
            raise UnreadableImageError(self.name or self.path or "image", reason) from error
        # Pillow raises OSError, SyntaxError, ValueError, struct.error and more, by format, on damaged input.
        except Exception as error:
            raise UnreadableImageError(self.name or self.path or "image", str(error)) from error

    def num_bytes(self) -> int | None:
        """Length of the encoded image without reading it; None where there is no file."""
        if self.data is not None:
            return len(self.data)
        try:
            return None if self.path is None else self.path.stat().st_size
        except OSError:
            return None

    def digest(self) -> str:
        """SHA-256 of the encoded bytes: the identity of an image in caches and duplicate checks."""
        return hashlib.sha256(self.read()).hexdigest()


Turn = tuple[str, str]
"""A question about an image and the answer that was given, in a conversation."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image with its accepted answers, and with a question where the task asks one.

    ``answers`` holds the stored label (classification: exactly one) or every annotator's answer (VQA: up to ten, and
    none where a test set withholds them).
    ``id`` is unique and stable within a data set: a path relative to the source, or ``split/row``.
    """

    id: str
    image: ImageSource
    answers: tuple[str, ...]
    question: str | None = None
    question_type: str | None = None
    answer_type: str | None = None
    image_id: str | None = None
    """Equal for the questions about one image; None where there are no questions."""
    history: tuple[Turn, ...] = ()
    """Earlier questions and answers about the image, where the question is a later turn of a conversation."""
    question_id: str = ""
    """The id of the task's question."""
    origin: str = ""
    """Its place in the source: "labels.csv, line 12"."""
    has_image: bool = True
    """False if the source knows that the file is missing: then the example is not trained on."""

    @property
    def label(self) -> str:
        """The stored label of a classification example."""
        return self.answers[0]


def clean_label(text: str) -> str:
    """A label with single spaces inside and none around it, in composed Unicode (NFC).

    macOS writes 'é' in folder names decomposed.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def usable_answers(answers: Iterable[str], closed: Container[str] | None = None) -> list[str]:
    """The answers to learn from, cleaned: nonempty ones, in the closed set if there is one."""
    cleaned = map(clean_label, answers)
    return [answer for answer in cleaned if answer and (closed is None or answer in closed)]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The closed set of answers: stored names in a fixed order, and the surface forms the model is shown and scored on.

    ``shown[i]`` are the surface forms of ``stored[i]``: the first is listed in prompts and trained on, all are scored.
    """

    stored: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]

    @classmethod
    def build(cls, stored: Iterable[str], names: Mapping[str, str | Sequence[str]] | None = None) -> LabelSet:
        """Clean labels and names, and drop duplicate surface forms of a label.

        Args:
            stored: the labels in their order.
            names: stored label -> what the model is shown for it; a label without a name is shown unchanged.

        Raises:
            DataError: a label twice, an empty label or name, or two labels that share a surface form.
        """
        labels = tuple(clean_label(label) for label in stored)
        twice = [label for label in labels if labels.count(label) > 1] if len(set(labels)) < len(labels) else []
        if twice or not all(labels):
            problem = f"hold '{twice[0]}' twice. List every label once" if twice else "hold an empty one. Expected text"
            raise DataError(f"The labels {problem}.")
        cleaned = {
            clean_label(label): tuple(dict.fromkeys(map(clean_label, [name] if isinstance(name, str) else name)))
            for label, name in (names or {}).items()
        }
        owner: dict[str, str] = {}
        for label in labels:
            forms = cleaned.setdefault(label, (label,))
            if not forms or not all(forms):
                raise DataError(
                    f"task.label_names: the name of '{label}' is empty. Write the words the model is shown."
                )
            for form in forms:
                if owner.setdefault(form, label) != label:
                    raise DataError(
                        f"The labels '{owner[form]}' and '{label}' are both shown as '{form}', so no answer could tell "
                        f"them apart. Give them different names in task.label_names, or merge them in the data."
                    )
        return cls(labels, tuple(cleaned[label] for label in labels))

    def __len__(self) -> int:
        return len(self.stored)

    def index(self, label: str) -> int:
        """Position of a stored label. Raises ValueError if it is not in the set."""
        return self.stored.index(label)


@dataclass(frozen=True, slots=True)
class LabelScores:
    """One image's result of the closed-set scorer.

    ``log_probs[i]`` is log p(label i | image, prompt) normalized over the label set; ``scores[i]`` the
    unnormalized sum of token log-probabilities, end token included. ``log_probs`` and ``scores`` are None in
    arg-max mode, which proves the winner without scoring every label.
    """

    prediction: str
    log_prob: float
    log_probs: tuple[float, ...] | None = None
    scores: tuple[float, ...] | None = None
    form_scores: tuple[float, ...] | None = None
    """The score of each surface form by itself, in the order of `LabelTrie.forms`; full mode only."""
    num_prompt_tokens: int = 0
    """Tokens of the whole prompt, including image tokens and the shared prefix."""
    num_rows: int = 0
    """Token positions the decoder ran for this image alone: its own part of the prompt, and trie nodes."""
