"""The predictor: several questions about one image, and images that cannot be read."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.tiny_model import write_tiny_folder
from vlmtune.config.schema import TaskSection
from vlmtune.errors import UnreadableImageError
from vlmtune.inference.generation import Sampling
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import open_model
from vlmtune.records import ImageSource

pytestmark = pytest.mark.unit


def source(color: str) -> ImageSource:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return ImageSource(data=file.getvalue(), name=color)


RED, BLUE, BROKEN = source("red"), source("blue"), ImageSource(data=b"no image", name="broken")
ASKED = [Query(RED, "what?"), Query(RED, "why?"), Query(BROKEN, "what?"), Query(BROKEN, "why?"), Query(BLUE, "what?"),
         Query(RED, "how?")]  # fmt: skip


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = write_tiny_folder(tmp_path_factory.mktemp("base"))
    return Predictor(open_model(str(folder)), TaskSection(type="text"))


def test_consecutive_questions_prepare_an_image_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_new_tokens=4)
    prepared: list[ImageSource] = []

    def process(query: Query) -> ProcessedImage:
        prepared.append(query.image)
        return Predictor.process(predictor, query)

    monkeypatch.setattr(predictor, "process", process)
    together = list(predictor.answer(ASKED, sampling))
    assert sorted(prepared, key=lambda image: image.name) == sorted(
        [RED, BROKEN, BLUE, RED], key=lambda image: image.name
    )
    alone = [next(predictor.answer([query], sampling)) for query in ASKED]
    assert [isinstance(answer, UnreadableImageError) for answer in together] == [
        query.image is BROKEN for query in ASKED
    ]
    for first, second in zip(together, alone, strict=True):
        assert str(first) == str(second)
