"""The built-in question and caption sets: the same texts and pixels everywhere, and splits that share no image."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from vlmtune.data.read.builtin import (
    NUM_CAPTIONS,
    NUM_VQA_IMAGES,
    DrawnImageSource,
    read_drawn_captions,
    read_drawn_vqa,
)
from vlmtune.data.read.source import Source
from vlmtune.records import Example

pytestmark = pytest.mark.unit

NUM_PIXEL_IMAGES = 20


def built_in(name: str) -> Source:
    return read_drawn_vqa() if name == "vqa" else read_drawn_captions("Describe the picture.")


def texts_digest(rows: list[Example]) -> str:
    lines = [
        "\t".join((r.id, r.image.name, r.question or "", "|".join(r.answers), r.answer_type or "", r.image_id or ""))
        for r in rows
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def pixels_digest(rows: list[Example]) -> str:
    images = list({row.image.name: row.image for row in rows}.values())[:NUM_PIXEL_IMAGES]
    digest = hashlib.sha256()
    for image in images:
        assert isinstance(image, DrawnImageSource) and image.scene is not None
        digest.update(image.scene.draw().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "split", "num", "texts", "pixels"),
    [
        ("vqa", "train", 62526, "0d16e317889975a5", "ebeeb20e18c8ef71"),
        ("vqa", "validation", 642, "ca49a96fecdc0b8e", "af23057701fe5302"),
        ("vqa", "test", 1906, "d387b0b7a40efa96", "7926f2b6bafaa92d"),
        ("captions", "train", 6000, "d2ad390eb57c383b", "1c087acc619f86ca"),
        ("captions", "validation", 200, "76de36b584f3a42c", "b55cc9eb2ae8d66a"),
        ("captions", "test", 200, "db942649b65bc515", "f1fe44324acc115f"),
    ],
)
def test_built_in_sets_keep_their_texts_and_pixels(name: str, split: str, num: int, texts: str, pixels: str) -> None:
    rows = built_in(name).splits[split]()
    assert (len(rows), texts_digest(rows), pixels_digest(rows)) == (num, texts, pixels)


def test_splits_and_sets_share_no_image() -> None:
    questions, captions = built_in("vqa"), built_in("captions")
    assert list(questions.splits) == list(NUM_VQA_IMAGES) and list(captions.splits) == list(NUM_CAPTIONS)
    digests = [
        {row.image.digest() for row in source.splits[split]()[:400]}
        for source in (questions, captions)
        for split in source.splits
    ]
    assert len(set().union(*digests)) == sum(map(len, digests))


def test_drawn_questions_are_of_every_type_with_one_answer() -> None:
    rows = built_in("vqa").splits["test"]()
    assert {row.question_type for row in rows} == {"color", "count", "position", "yes/no", "letter", "shape"}
    assert all(len(set(row.answers)) == 1 and len(row.answers) == 10 for row in rows)


def test_yes_and_no_are_equally_often_right() -> None:
    answers = Counter(r.answers[0] for r in built_in("vqa").splits["train"]() if r.answer_type == "yes/no")
    assert set(answers) == {"yes", "no"} and abs(answers["yes"] / answers.total() - 0.5) < 0.03


def test_a_caption_answers_the_configured_question() -> None:
    row = read_drawn_captions("What is there?").splits["train"]()[0]
    assert row.question == "What is there?" and " on " in row.answers[0]
