"""Random changes of training images: repeatable, within bounds, and never against the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vlmtune.config.augmentation import CHAINS, CHANGES, find_mistakes
from vlmtune.config.schema import TrainSection
from vlmtune.data.augment import pipeline as augment
from vlmtune.data.augment.label_safety import colored_labels, has_colors, has_sides, refuse_flips, sided_labels
from vlmtune.data.augment.mix import Mixing, cut_mix
from vlmtune.data.augment.pipeline import Augmentation
from vlmtune.data.augment.policies import RAND_AUGMENT, TRIVIAL_AUGMENT, affine, rand_augment
from vlmtune.errors import UserError
from vlmtune.records import Example, ImageSource, LabelSet

pytestmark = pytest.mark.unit

NAMES = sorted({*CHANGES, *CHAINS})


def make_image(width: int = 30, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def chain(*steps: object) -> Augmentation:
    return Augmentation(TrainSection(augment=list(steps)).augment or [])


def label_set(*names: str) -> LabelSet:
    return LabelSet(names, tuple((name,) for name in names))


def question(text: str, *answers: str) -> Example:
    return Example("q", ImageSource(data=b"", name="q"), answers or ("yes",), text)


def test_the_schema_and_the_images_know_the_same_changes() -> None:
    assert set(CHANGES) == set(augment._CHANGES)
    assert all(set(parts) <= set(CHANGES) for parts in CHAINS.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_decides_the_image_and_keeps_its_size(name: str) -> None:
    first = Augmentation.named(name)(make_image(), np.random.default_rng(5))
    assert first.size == (30, 20)
    assert first.mode == "RGB"
    assert np.array_equal(first, Augmentation.named(name)(make_image(), np.random.default_rng(5)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none"}))
def test_other_draws_give_other_images(name: str) -> None:
    drawn = {Augmentation.named(name)(make_image(), np.random.default_rng(seed)).tobytes() for seed in range(12)}
    assert len(drawn) >= (2 if name == "flip" else 8)


def test_none_leaves_the_image_alone() -> None:
    assert np.array_equal(Augmentation.named("none")(make_image(), np.random.default_rng(0)), make_image())
    assert not Augmentation.named("none").changes


def test_older_names_and_lists_say_the_same() -> None:
    assert TrainSection(augment="flip-crop").augment == ["flip", "random-crop", "color"]
    assert TrainSection(augment=["flip", "crop"]).augment == ["flip", "random-crop", "color"]
    assert TrainSection(augment="none").augment == []
    assert TrainSection().augment is None


def test_mistakes_name_the_known_changes_settings_and_bounds() -> None:
    steps = ["flipcrop", {"randaugment": {"magnitud": 3}}, {"color": {"strength": 2}}, {"flip": {}, "color": {}}]
    messages = dict(find_mistakes(TrainSection(augment=steps).augment or []))
    assert "Did you mean 'flip-crop'" in messages[0] and "trivialaugment" in messages[0]
    assert "magnitude" in messages[1]
    assert messages[2] == "found strength: 2, expected a number from 0 to 1."
    assert "2 names in one step" in messages[3]


@pytest.mark.parametrize("table", [RAND_AUGMENT, TRIVIAL_AUGMENT], ids=["rand", "trivial"])
def test_strength_zero_changes_nothing_where_an_operation_has_a_strength(table) -> None:
    for name, operation in table.items():
        if operation.amounts != (0.0, 0.0):
            # An affine map of amount 0 still interpolates: by rounding, at the border only.
            inner = np.s_[1:-1, 1:-1]
            unchanged = np.array(operation.apply(make_image(), operation.amounts[0]))[inner]
            assert np.array_equal(unchanged, np.array(make_image())[inner]), name


def test_affine_moves_and_turns_the_way_it_says() -> None:
    image = Image.new("RGB", (21, 21))
    image.putpixel((10, 5), (255, 0, 0))  # above the center

    def bright(changed: Image.Image) -> tuple[int, ...]:
        red = np.array(changed)[:, :, 0]
        row, column = np.unravel_index(red.argmax(), red.shape)
        return int(column), int(row)

    assert bright(affine(image, shift=(3, 2))) == (13, 7)
    assert bright(affine(image, degrees=90)) == (15, 10)  # clockwise: what was above is now on the right
    assert bright(affine(image, scale=1.6)) == (10, 2)


def test_rand_augment_applies_as_many_operations_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    monkeypatch.setattr("vlmtune.data.augment.policies._apply", lambda op, image, draw, s: applied.append(s) or image)
    rand_augment(make_image(), np.random.default_rng(0), ops=3, magnitude=7)
    assert applied == [7, 7, 7]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (("cat", "dog"), None),
        (("turn left", "go on"), "names a side"),
        (("left_lung", "right_lung"), "names a side"),
        (tuple("bdpq"), "letters or digits"),
        (("digit 3", "digit 7"), "letters or digits"),
        (("letter b", "letter d", "nothing"), "letters or digits"),
        (("bright", "leftover"), None),
    ],
)
def test_labels_that_a_mirror_would_turn_into_others_are_found(labels: tuple[str, ...], reason: str | None) -> None:
    found = sided_labels(label_set(*labels))
    assert found is None if reason is None else reason in (found or "")
    if reason is None:
        refuse_flips(["flip"], label_set(*labels))
    else:
        with pytest.raises(UserError, match=r"train\.augment: flip.*anyway"):
            refuse_flips(["color", "flip"], label_set(*labels))
        refuse_flips([{"flip": {"anyway": 1}}], label_set(*labels))


def test_questions_about_sides_and_writing_are_told_from_others() -> None:
    sided = ["Is the dog left of the cat?", "Which letter is this?", "What does the sign say?"]
    assert all(has_sides(question(text)) for text in sided)
    assert has_sides(question("Where is the dog?", "on the left"))
    assert not has_sides(question("How many dogs are there?"))
    later = replace(question("What color is it?"), history=(("What is there?", "A dog on the right."),))
    assert has_sides(later)
    assert not has_sides(Example("e", ImageSource(data=b"", name="e"), ("left",)))


def test_an_image_with_sides_is_never_mirrored() -> None:
    mirrored = ImageOps.mirror(make_image())
    flipping = chain({"flip": {"probability": 1}})
    assert np.array_equal(flipping(make_image(), np.random.default_rng(0)), mirrored)
    assert np.array_equal(flipping(make_image(), np.random.default_rng(0), keep_sides=True), make_image())
    anyway = chain({"flip": {"probability": 1, "anyway": True}})
    assert np.array_equal(anyway(make_image(), np.random.default_rng(0), keep_sides=True), mirrored)


def test_an_image_with_sides_is_not_turned_far(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []

    def note(image: Image.Image, *, degrees: float = 0.0, **_: object) -> Image.Image:
        turns.append(abs(degrees))
        return image

    monkeypatch.setattr("vlmtune.data.augment.policies.affine", note)
    trivial = chain("trivialaugment")
    for is_sided, most in ((True, 30), (False, 135)):
        turns.clear()
        for seed in range(600):
            trivial(make_image(), np.random.default_rng(seed), keep_sides=is_sided)
        assert most * 0.8 < max(turns) <= most


def test_questions_and_labels_of_colors_are_told_from_others() -> None:
    assert has_colors(question("What color is the ball?", "odd"))
    assert has_colors(question("What is this?", "a red ball"))
    assert not has_colors(question("What is covered here?", "redder than most"))
    assert "2 of 3 labels name a color" in (colored_labels(label_set("red car", "blue car", "bike")) or "")
    assert colored_labels(label_set("red panda", "cat", "dog")) is None


@pytest.mark.parametrize("name", ["color", "randaugment", "trivialaugment", "crop", "flip-crop"])
def test_where_colors_matter_none_is_changed(name: str) -> None:
    """On an image of one color, only a change of color shows."""
    plain = Image.new("RGB", (24, 24), (200, 90, 30))
    kept = [Augmentation.named(name)(plain, np.random.default_rng(s), keep_colors=True) for s in range(60)]
    assert all(np.array_equal(image, plain) for image in kept)
    changed = [Augmentation.named(name)(plain, np.random.default_rng(s)) for s in range(60)]
    assert not all(np.array_equal(image, plain) for image in changed)


@given(share=st.floats(0, 1), seed=st.integers(0, 1000), width=st.integers(1, 40), height=st.integers(1, 40))
def test_cutmix_says_the_share_of_pixels_that_stayed(share: float, seed: int, width: int, height: int) -> None:
    black, white = Image.new("RGB", (width, height)), Image.new("RGB", (width, height), "white")
    mixed, stayed = cut_mix(black, white, share, np.random.default_rng(seed))
    assert mixed.size == (width, height)
    assert stayed == pytest.approx(1 - np.array(mixed)[:, :, 0].mean() / 255, abs=1e-9)


def test_mixup_blends_by_the_share_it_says_whatever_the_sizes() -> None:
    black, white = Image.new("RGB", (9, 5)), Image.new("RGB", (30, 40), "white")
    for seed in range(5):
        mixed, share = Mixing(mixup=1.0)(black, white, np.random.default_rng(seed))
        assert mixed.size == (9, 5)
        assert np.array(mixed).mean() == pytest.approx(255 * (1 - share), abs=1)


def _is_cut(mixing: Mixing, seed: int) -> bool:
    black, white = Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), "white")
    mixed, _ = mixing(black, white, np.random.default_rng(seed))
    return set(np.unique(np.array(mixed))) <= {0, 255}


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (Mixing(mixup=1.0), lambda cut: cut < 5),
        (Mixing(cutmix=1.0), lambda cut: cut > 195),
        (Mixing(mixup=1.0, cutmix=1.0), lambda cut: 70 < cut < 130),
    ],
)
def test_each_kind_is_drawn_where_it_is_on(mixing: Mixing, expected: Callable[[int], bool]) -> None:
    assert mixing.is_on
    assert expected(sum(_is_cut(mixing, seed) for seed in range(200)))


def test_mixing_is_drawn_with_its_probability() -> None:
    draw = np.random.default_rng(0)
    often = sum(Mixing(mixup=1.0, probability=0.3).is_drawn(draw) for _ in range(1000))
    assert 230 < often < 370
    assert not Mixing(probability=1.0).is_drawn(draw)
