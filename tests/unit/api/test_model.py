"""Images of every accepted kind, one or many, become the same predictions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmtune
from vlmtune.api.model import Model, image_sources
from vlmtune.errors import UnreadableImageError, UserError

pytestmark = pytest.mark.unit

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> Model:
    return vlmtune.load("builtin:tiny", labels=["circle", "square"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_one_image_gives_equal_probabilities(model: Model, path: Path) -> None:
    kinds: list[Any] = [path, str(path), Image.fromarray(PIXELS), encoded(), bytearray(encoded()), PIXELS]
    expected = model.predict(path)
    assert isinstance(expected, vlmtune.Prediction) and sum(expected.probabilities.values()) == pytest.approx(1)
    for image in kinds:
        prediction = model.predict(image)
        assert isinstance(prediction, vlmtune.Prediction)
        assert prediction.probabilities == expected.probabilities
    for prediction in model.predict(kinds):  # type: ignore[union-attr]
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_list_folder_glob_and_stack_give_many(model: Model, path: Path) -> None:
    for images in ([path], path.parent, str(path.parent / "*.png"), np.stack([PIXELS]), (image for image in [PIXELS])):
        predictions = model.predict(images)
        assert isinstance(predictions, vlmtune.Predictions) and len(predictions) == 1


def test_gray_and_transparent_arrays_are_images() -> None:
    for array in (PIXELS[:, :, 0], PIXELS[:, :, :1], np.dstack([PIXELS, PIXELS[:, :, 0]])):
        (source,), is_single = image_sources(array)
        assert is_single and source.open().size == (24, 20)


def test_image_turned_by_exif_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        (source,), _ = image_sources(image)
    assert source.open().size == (20, 24)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / 255, r"array of float64; expected uint8.*\* 255"),
        (PIXELS[0, 0], r"shape \(3,\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        ([PIXELS, 3], "image 1: found int; expected a path, a PIL image"),
        (3, "found int; expected a path"),
        ("nowhere.png", "nowhere.png: not found"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_sources(images)


def test_unreadable_image_raises_alone_and_is_marked_in_a_list(model: Model, path: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        model.predict(tmp_path / "broken.png")
    good, bad = model.predict([path, tmp_path / "broken.png"])  # type: ignore[misc]
    assert good.error is None and bad.answer is None and "not an image" in (bad.error or "")


def test_question_is_answered_in_words(model: Model) -> None:
    prediction = model.ask(PIXELS, "What is it?")
    assert isinstance(prediction, vlmtune.Prediction)
    assert isinstance(prediction.answer, str) and prediction.label is None and prediction.question == "What is it?"
    with pytest.raises(UserError, match="question of its own"):
        model.predict(PIXELS, question="What is it?")


def test_plain_model_without_labels_has_to_be_asked() -> None:
    plain = vlmtune.load("builtin:tiny")
    assert plain.labels is None
    with pytest.raises(UserError, match=r"load\('builtin:tiny', labels="):
        plain.predict(PIXELS)
    with pytest.raises(UserError, match="no closed set"):
        plain.classify(PIXELS)
    assert isinstance(plain.ask(PIXELS, "What is it?"), vlmtune.Prediction)
