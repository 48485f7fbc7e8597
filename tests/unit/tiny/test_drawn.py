"""Drawn images: repeatable, and their facts, questions and class lists agree with each other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tiny.drawn import KINDS, Facts, Thing, draw
from tiny.drawn.corpus import draw_corpus, open_corpus
from tiny.drawn.finish import coarse_mask
from tiny.drawn.fonts import character_mask, font_files
from tiny.drawn.questions import caption, class_list, questions
from tiny.drawn.silhouettes import THINGS, parts
from tiny.drawn.strokes import VARIANTS, strokes
from tiny.drawn.vocabulary import CLASSES, DIGITS
from vlmtune.data.drawn.ink import COLORS, pen_mask
from vlmtune.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_the_image(kind: str) -> None:
    first, facts = draw(kind, 3)
    again, facts_again = draw(kind, 3)
    other, _ = draw(kind, 4)
    assert first.tobytes() == again.tobytes() and facts == facts_again
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_images_have_the_given_size_and_are_not_blank(kind: str) -> None:
    for seed in range(20):
        image, facts = draw(kind, seed, size=48)
        assert image.size == (48, 48) and image.mode == "RGB"
        assert facts.kind == kind
        assert np.asarray(image).std() > 2, f"{kind} {seed} is blank"


def test_an_unknown_kind_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'digit'"):
        draw("digits", 0)


def test_every_label_is_a_class_and_classes_are_distinct() -> None:
    assert len(CLASSES) == len(set(CLASSES))
    for kind in KINDS:
        for seed in range(30):
            label = draw(kind, seed)[1].label
            assert label is None or label in CLASSES


def test_words_of_common_photo_sets_are_answers() -> None:
    photo_words = "airplane automobile bird cat deer dog frog horse ship truck"
    assert set(photo_words.split()) <= set(THINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_list_holds_its_answer_once(kind: str) -> None:
    for seed in range(60):
        _, facts = draw(kind, seed)
        listed = class_list(facts, Random(seed))
        if listed is not None:
            labels, answer = listed
            assert labels.count(answer) == 1 and len(set(labels)) == len(labels) >= 2


def test_most_digit_lists_hold_all_ten_in_order() -> None:
    facts = draw("digit", 0)[1]
    lists = [class_list(facts, Random(seed)) for seed in range(200)]
    assert sum(item is not None and item[0] == list(DIGITS) for item in lists) > 100


def two(first: Thing, second: Thing) -> Facts:
    return Facts("shapes", None, (first, second), "white")


def test_answers_agree_with_where_things_are() -> None:
    facts = two(Thing("star", "red", 0.2, 0.2), Thing("circle", "blue", 0.8, 0.8))
    truth = {
        "Is the star left or right of the circle?": "left",
        "Is the circle left or right of the star?": "right",
        "Is the star above or below the circle?": "above",
        "Is the circle above or below the star?": "below",
        "Is the star left of the circle?": "yes",
        "Is the circle above the star?": "no",
        "What color is the star?": "red",
        "Which shape is blue?": "circle",
        "How many shapes are there?": "2",
    }
    met = {}
    for seed in range(40):
        met |= {q.question: q.answer for q in questions(facts, seed)}
    for question, answer in truth.items():
        assert met[question] == answer, question


def test_half_of_the_yes_no_answers_are_yes() -> None:
    answers = []
    things = [draw("thing", seed)[1] for seed in range(20)]
    for seed in range(300):
        facts = things[seed % 20]
        answers += [q.answer for q in questions(facts, seed) if q.type == "yes/no"]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_captions_say_what_there_is() -> None:
    assert caption(two(Thing("star", "red", 0, 0), Thing("arrow", "orange", 1, 1))) == (
        "a red star and an orange arrow on white"
    )
    same = (Thing("star", "red", 0, 0),) * 3
    assert caption(Facts("shapes", None, same, "black")) == "3 red stars on black"


@pytest.mark.parametrize("character", sorted(VARIANTS))
def test_every_character_leaves_ink_inside_the_page(character: str) -> None:
    for seed in range(8):
        lines = strokes(character, Random(seed))
        assert all(line.ndim == 2 and line.shape[1] == 2 and len(line) >= 2 for line in lines)
        assert np.concatenate(lines).min() > -0.5 and np.concatenate(lines).max() < 1.5
        assert pen_mask(lines, 64, 4).getbbox() is not None


def test_without_wildness_the_template_is_written_exactly() -> None:
    assert any(np.allclose(strokes("L", Random(seed), wildness=0.0)[0][0], [0.2, 0.0]) for seed in range(10))


def test_every_thing_has_drawings_with_known_roles() -> None:
    for name in THINGS:
        for drawing in parts(name):
            for role, form, width, points in drawing:
                assert role in "abdwk" and form in "pel"
                assert len(points) == 2 if form == "e" else len(points) >= 2
                assert (width > 0) == (form == "l")


def test_every_font_has_every_digit() -> None:
    assert len(font_files()) >= 10
    for index in range(len(font_files())):
        masks = {character_mask(index, digit).tobytes() for digit in DIGITS}
        assert len(masks) == len(DIGITS), font_files()[index].name


def test_coarse_characters_have_blocks_of_17_levels() -> None:
    class NearestOnly(Random):
        """Takes the first choice offered, and skips what happens with some probability."""

        def choice(self, options):  # type: ignore[no-untyped-def]
            return options[0]

        def random(self) -> float:
            return 0.99

    coarse = np.asarray(coarse_mask(character_mask(0, "3"), NearestOnly(0), 32))
    blocks = coarse.reshape(8, 4, 8, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()
    levels = np.unique(coarse) * 16 / 255
    assert np.abs(levels - np.round(levels)).max() < 0.07


def test_colors_are_named_once() -> None:
    assert len(set(COLORS.values())) == len(COLORS)


def test_a_corpus_opens_again_and_is_reused(tmp_path: Path) -> None:
    mixture = {"digit": 1.0, "shapes": 2.0}
    progress: list[int] = []
    one = draw_corpus(tmp_path / "one", mixture, 30, seed=5, processes=1, on_progress=progress.append)
    digest = hashlib.sha256(one.pixels.tobytes()).hexdigest()
    again = open_corpus(tmp_path / "one")
    assert progress == [30] and len(again) == 30
    assert hashlib.sha256(again.pixels.tobytes()).hexdigest() == digest and again.facts == one.facts
    # The same request reuses what is there; another seed draws anew.
    before = (tmp_path / "one" / "pixels.npy").stat().st_mtime_ns
    draw_corpus(tmp_path / "one", mixture, 30, seed=5)
    assert (tmp_path / "one" / "pixels.npy").stat().st_mtime_ns == before
    other = draw_corpus(tmp_path / "one", mixture, 30, seed=6, processes=1)
    assert hashlib.sha256(other.pixels.tobytes()).hexdigest() != digest


def test_the_number_of_processes_does_not_change_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny.drawn.corpus._CHUNK", 4)
    one = draw_corpus(tmp_path / "one", {"texture": 1.0}, 8, seed=1, processes=1)
    two = draw_corpus(tmp_path / "two", {"texture": 1.0}, 8, seed=1, processes=2)
    assert one.facts == two.facts and (one.pixels == two.pixels).all()
