"""Random changes of training pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmtune.data.augment import AUGMENTATIONS, Augmentation
from vlmtune.errors import UserError

pytestmark = pytest.mark.unit


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_the_same_draw_gives_the_same_picture_in_the_same_size(name: str) -> None:
    augmentation = Augmentation.named(name)
    first = augmentation(picture(), np.random.default_rng(5))
    assert first.size == (30, 20)
    assert np.array_equal(first, augmentation(picture(), np.random.default_rng(5)))


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"none"}))
def test_another_draw_gives_another_picture(name: str) -> None:
    augmentation = Augmentation.named(name)
    drawn = {augmentation(picture(), np.random.default_rng(seed)).tobytes() for seed in range(4)}
    assert len(drawn) == 4


def test_none_leaves_the_picture_alone() -> None:
    assert np.array_equal(Augmentation.named("none")(picture(), np.random.default_rng(0)), picture())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"flip-crop.*Known: crop, flip-crop, none, shift-rotate"):
        Augmentation.named("flipcrop")
