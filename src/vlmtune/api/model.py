"""A trained or plain model as an object: images in, predictions out."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vlmtune.api.results import Prediction, Predictions
from vlmtune.config.schema import TaskSection
from vlmtune.data.image_inputs import image_inputs
from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.inference.open import open_predictor
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.records import ImageSource, LabelScores
from vlmtune.runs.open import read_task

ImageLike = Any
"""A path (file, folder or glob), a PIL image, encoded bytes, or a uint8 array: [H, W], [H, W, 1 | 3 | 4]."""

_ACCEPTED = "a path, a PIL image, encoded bytes, a uint8 array of [height, width, 3], or a list of these"


class Model:
    """A model with its task, ready to predict. Made by `load`.

    Args:
        source: what it was opened from.
        predictor: the model with its task and labels.
        is_trained: whether it has a task of its own; a plain model without labels has to be asked a question.
    """

    def __init__(self, source: str, predictor: Predictor, *, is_trained: bool = True) -> None:
        self.source = source
        self._predictor = predictor
        self._is_trained = is_trained

    @property
    def task(self) -> TaskSection:
        """The model's task: see `task` in an experiment."""
        return self._predictor.task

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The closed set of labels; None where answers are generated."""
        return None if self._predictor.labels is None else self._predictor.labels.stored

    def predict(self, images: ImageLike, question: str | None = None) -> Prediction | Predictions:
        """Ask the model what it was trained for.

        Args:
            images: one image or several: paths, folders, globs, PIL images, bytes, uint8 arrays; a list of these, or a
                four-dimensional array.
            question: needed by a model that was trained on questions, and only there.

        Returns:
            A `Prediction` for one image, `Predictions` for a list, a folder or a glob.

        Raises:
            UserError: not images, a question too many or missing. UnreadableImageError: the only image cannot be read;
                of several, an unreadable one has its `Prediction.error` set.
        """
        if not self._is_trained:
            raise UserError(
                f"{self.source} has no task, and nothing says which labels there are. Name them, as in "
                f"load({self.source!r}, labels=['cat', 'dog']), or ask a question: model.ask(image, 'What is it?')"
            )
        if self.task.asks_from_data and question is None:
            raise UserError(f"{self.source} was trained on questions. Ask one: model.ask(image, 'What is it?')")
        if question is not None and not self.task.asks_from_data:
            raise UserError(
                f"{self.source} has one question of its own. Ask it another with model.ask(image, question)"
            )
        return self._run(self._predictor, images, question)

    def classify(self, images: ImageLike) -> Prediction | Predictions:
        """The probability of every label; `predict` for a model with a closed set of labels. Raises UserError."""
        if self.labels is None:
            raise UserError(f"{self.source} has no closed set of labels. Open it with some: load(source, labels=[…])")
        return self.predict(images)

    def ask(self, images: ImageLike, question: str) -> Prediction | Predictions:
        """Ask a question about each image; arguments and errors as for `predict`.

        A model that was trained with a closed list of answers chooses among those, any other generates its answer.
        """
        return self._run(self._predictor if self.task.asks_from_data else self._open_answers, images, question)

    def __repr__(self) -> str:
        what = f"{len(self.labels)} labels" if self.labels is not None else "open answers"
        return f"Model({self.source!r}, {what})"

    @cached_property
    def _open_answers(self) -> Predictor:
        """The same model, generating text."""
        return Predictor(self._predictor.opened, TaskSection(type="text"), None, self._predictor.batch_size)

    def _run(self, predictor: Predictor, images: ImageLike, question: str | None) -> Prediction | Predictions:
        sources, is_single = image_sources(images)
        predictions = list(predict_each(predictor, sources, question))
        if not is_single:
            return Predictions(predictions)
        if predictions[0].error is not None:
            raise UnreadableImageError(predictions[0].image, predictions[0].error)
        return predictions[0]


def load(source: str | PathLike[str], *, labels: Sequence[str] | None = None, batch_size: int | None = None) -> Model:
    """Open a model with its task.

    Args:
        source: a run folder (stands for its best checkpoint), a checkpoint, an exported or model folder, a hub id, or
            `builtin:tiny`.
        labels: the closed set to choose among; default: the one the model was trained with, or open answers if it
            has none.
        batch_size: images at once; default: from the length of the prompt.

    Raises UserError: source not found, files that do not fit.
    """
    name = str(Path(source)) if isinstance(source, PathLike) else source
    task, stored = read_task(name)
    is_trained = labels is not None or stored is not None or not task.is_closed
    predictor = open_predictor(name, labels=labels, is_question=not is_trained, batch_size=batch_size)
    return Model(name, predictor, is_trained=is_trained)


def predict_each(predictor: Predictor, images: Iterable[ImageSource], question: str | None) -> Iterator[Prediction]:
    """A prediction for every image, lazily: images are read ahead and computed in batches."""
    waiting: deque[ImageSource] = deque()

    def queries() -> Iterator[Query]:
        for image in images:
            waiting.append(image)
            yield Query(image, question)

    is_closed = predictor.labels is not None
    results: Iterable[LabelScores | str | UnreadableImageError] = (
        predictor.classify(queries()) if is_closed else predictor.answer(queries())
    )
    for result in results:
        source = waiting.popleft()
        if isinstance(result, UnreadableImageError):
            yield Prediction(source.name, None, {}, question, result.reason, source)
        elif isinstance(result, str):
            yield Prediction(source.name, result, {}, question, None, source)
        else:
            assert predictor.labels is not None and result.log_probs is not None
            shares = zip(predictor.labels.stored, map(math.exp, result.log_probs), strict=True)
            ranked = dict(sorted(shares, key=lambda item: -item[1]))
            yield Prediction(source.name, result.prediction, ranked, question, None, source)


def image_sources(images: ImageLike) -> tuple[list[ImageSource], bool]:
    """The images as sources, and whether a single one was given. Raises UserError for anything else."""
    if isinstance(images, str | PathLike):
        path = str(images)
        return list(image_inputs([path], allow_urls=False)), Path(path).expanduser().is_file()
    if _is_one(images):
        return [_source(images, "image")], True
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(
            f"found an array of shape {images.shape}; expected [height, width, 3] or [num, height, width, 3]."
        )
    if not isinstance(images, Iterable):
        raise UserError(f"found {type(images).__name__}; expected {_ACCEPTED}.")
    sources: list[ImageSource] = []
    for index, image in enumerate(images):
        if isinstance(image, str | PathLike):
            sources += image_inputs([str(image)], allow_urls=False)
        else:
            sources.append(_source(image, f"image {index}"))
    return sources, False


def _is_one(image: object) -> bool:
    is_array = isinstance(image, np.ndarray) and image.ndim in (2, 3)
    return is_array or isinstance(image, Image.Image | bytes | bytearray | memoryview | ImageSource)


def _source(image: object, name: str) -> ImageSource:
    """One image in memory, encoded without loss."""
    if isinstance(image, ImageSource):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return ImageSource(data=bytes(image), name=name)
    if isinstance(image, np.ndarray):
        image = _from_array(image, name)
    if not isinstance(image, Image.Image):
        raise UserError(f"{name}: found {type(image).__name__}; expected {_ACCEPTED}.")
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return ImageSource(data=buffer.getvalue(), name=str(getattr(image, "filename", "") or name))


def _from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    """Raises UserError: floats are not accepted, since white could be 1 or 255."""
    if array.dtype != np.uint8:
        raise UserError(
            f"{name}: found an array of {array.dtype}; expected uint8, 0 to 255. Of floats from 0 to 1: "
            "(array * 255).round().astype('uint8')"
        )
    squeezed = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if squeezed.ndim != 2 and (squeezed.ndim != 3 or squeezed.shape[2] not in (3, 4)):
        raise UserError(
            f"{name}: found an array of shape {array.shape}; expected [height, width] or [height, width, 3]."
        )
    return Image.fromarray(np.ascontiguousarray(squeezed))
