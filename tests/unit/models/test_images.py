"""LFM2-VL image processing where no peer is at hand: values written down from transformers, settings, threads."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmtune.errors import UserError, WeightsError
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings

pytestmark = pytest.mark.unit

TINY: dict[str, Any] = {
    "encoder_patch_size": 4,
    "min_image_tokens": 16,
    "max_image_tokens": 16,
    "do_image_splitting": False,
}
SMALL: dict[str, Any] = {"encoder_patch_size": 8, "min_image_tokens": 4, "max_image_tokens": 16, "tile_size": 64}

# From transformers 5.23: (grid, mean level, every seventh part's first level) of each tile of `pattern(height, width)`.
GOLDEN: list[tuple[tuple[int, int], dict[str, Any], list[tuple[tuple[int, int], float, list[int]]]]] = [
    ((29, 31), TINY, [((8, 8), 81.4548, [0, 100, 158, 118, 59, 160, 217, 62])]),
    ((32, 32), TINY, [((8, 8), 84.7744, [0, 106, 167, 17, 78, 184, 245, 95])]),
    ((3, 500), {}, [((2, 208), 63.1966, [0, 0, 73, 199, 0, 88, 28, 0])]),
    ((40, 30), SMALL, [((4, 4), 87.6836, [2, 237, 154, 135, 197, 227, 145, 124])]),
    (
        (200, 330),
        SMALL,
        [
            ((8, 8), 116.787, [9, 51, 92, 138, 180, 225, 54, 56]),
            ((8, 8), 125.4781, [157, 201, 202, 32, 74, 120, 161, 206]),
            ((8, 8), 124.8417, [51, 95, 136, 182, 224, 54, 55, 98]),
            ((8, 8), 123.784, [196, 221, 27, 70, 112, 158, 199, 211]),
            ((8, 8), 128.9259, [88, 133, 174, 220, 49, 52, 93, 137]),
            ((8, 8), 126.1544, [231, 27, 68, 114, 156, 202, 196, 29]),
            ((6, 10), 124.4474, [40, 135, 167, 163, 131, 177, 57, 123]),
        ],
    ),
    ((600, 600), {"resample": 3}, [((32, 32), 125.9212, [2, 220, 215, 176, 28, 255, 242, 202])]),
]


def pattern(height: int, width: int) -> Image.Image:
    """An image from integer arithmetic alone."""
    row, column = np.mgrid[:height, :width]
    channels = [row * 7 + column * 13, row * column // 3, (row // 5) * (column // 7) * 11]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize(("size", "settings", "tiles"), GOLDEN)
def test_patches_have_the_values_that_transformers_gave(
    size: tuple[int, int], settings: dict[str, Any], tiles: list[tuple[tuple[int, int], float, list[int]]]
) -> None:
    made = Lfm2VlImageProcessor(Lfm2VlImageSettings(**settings)).process(pattern(*size))
    assert [grid for _, grid in made.tiles] == [grid for grid, _, _ in tiles]
    for (patches, _), (_, mean, probes) in zip(made.tiles, tiles, strict=True):
        levels = (patches * 127.5 + 127.5).round().flatten()
        # A CPU without a kernel for bytes resizes in float, as torchvision does there: one level more or less.
        assert float(levels.double().mean()) == pytest.approx(mean, abs=0.1)
        assert levels[:: levels.numel() // 7][:8].tolist() == pytest.approx(probes, abs=1)


def test_the_placeholder_names_tiles_and_thumbnail() -> None:
    made = Lfm2VlImageProcessor(Lfm2VlImageSettings(**SMALL)).process(pattern(200, 330))
    tiles = "".join(f"<|img_row_{row}_col_{column}|>" + "<image>" * 16 for row in (1, 2) for column in (1, 2, 3))
    thumbnail = "<|img_thumbnail|>" + "<image>" * 15
    assert made.text == "<|image_start|>" + tiles + thumbnail + "<|image_end|>"
    assert made.num_tokens == 6 * 16 + 15


def test_without_special_tokens_the_placeholder_is_image_tokens_only() -> None:
    settings = Lfm2VlImageSettings(**TINY, use_image_special_tokens=False)
    assert Lfm2VlImageProcessor(settings).process(pattern(32, 32)).text == "<image>" * 16


sides = st.integers(1, 300)


@given(sides, sides, st.booleans(), st.integers(1, 3))
def test_tokens_equal_the_unshuffled_patches_for_any_size(height: int, width: int, split: bool, fewest: int) -> None:
    settings = Lfm2VlImageSettings(**SMALL | {"do_image_splitting": split, "min_tiles": fewest})
    made = Lfm2VlImageProcessor(settings).process(Image.new("RGB", (width, height), (200, 100, 0)))
    tokens = sum(-(-rows // 2) * -(-columns // 2) for _, (rows, columns) in made.tiles)
    assert made.num_tokens == made.text.count("<image>") == tokens
    color = (torch.tensor([200.0, 100.0, 0.0]) - 127.5) / 127.5
    for patches, (rows, columns) in made.tiles:
        assert patches.shape == (rows * columns, 8 * 8 * 3)
        assert torch.allclose(patches.view(-1, 3), color, atol=1.01 / 127.5)


def test_a_patch_is_row_by_row_with_channels_last() -> None:
    pixels = np.arange(32 * 32 * 3).reshape(32, 32, 3) % 251
    made = Lfm2VlImageProcessor(Lfm2VlImageSettings(**TINY)).process(Image.fromarray(pixels.astype(np.uint8)))
    patches, (rows, columns) = made.tiles[0]
    assert (rows, columns) == (8, 8)
    expected = torch.from_numpy(pixels[4:8, 8:12].reshape(-1) / 127.5 - 1).float()  # second row, third column
    assert torch.allclose(patches[1 * 8 + 2], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_any_mode_gives_the_patches_of_its_rgb_conversion(mode: str) -> None:
    image = pattern(20, 30).convert("L").convert("I").convert(mode) if mode == "I;16" else pattern(20, 30).convert(mode)
    processor = Lfm2VlImageProcessor(Lfm2VlImageSettings(**TINY))
    assert torch.equal(processor.process(image).tiles[0][0], processor.process(image.convert("RGB")).tiles[0][0])


def test_threads_and_copies_give_the_same_patches() -> None:
    processor = Lfm2VlImageProcessor(Lfm2VlImageSettings(**SMALL))
    images = [pattern(20 + 9 * i, 150 - 7 * i) for i in range(16)]
    expected = [processor.process(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(pickle.loads(pickle.dumps(processor)).process, images))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.text == theirs.text
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(ours.tiles, theirs.tiles, strict=True))


def test_overrides_beat_nested_settings_beat_the_older_file(tmp_path: Path) -> None:
    older = {"max_image_tokens": 99, "image_processor_type": "Lfm2VlImageProcessorFast", "size": {"height": 512}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    assert Lfm2VlImageProcessor.from_folder(tmp_path).settings.max_image_tokens == 99
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Lfm2VlProcessor"}))
    assert Lfm2VlImageProcessor.from_folder(tmp_path).settings.max_image_tokens == 99
    nested = {"use_image_special_tokens": False, "image_processor": {"max_image_tokens": 77, "image_mean": [0, 0, 0]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    settings = Lfm2VlImageProcessor.from_folder(tmp_path, do_image_splitting=False, min_image_tokens=None).settings
    assert (settings.max_image_tokens, settings.do_image_splitting, settings.min_image_tokens) == (77, False, 64)
    assert settings.image_mean == (0, 0, 0)
    assert not settings.use_image_special_tokens


def test_saved_settings_read_back_equal(tmp_path: Path) -> None:
    processor = Lfm2VlImageProcessor(Lfm2VlImageSettings(**TINY, image_std=(0.1, 0.2, 0.3)))
    processor.save(tmp_path)
    assert Lfm2VlImageProcessor.from_folder(tmp_path).settings == processor.settings


def test_missing_and_damaged_settings_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Expected preprocessor_config\.json"):
        Lfm2VlImageProcessor.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json: not readable as JSON"):
        Lfm2VlImageProcessor.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_image_tokens": 32}, "min_image_tokens 64 exceeds max_image_tokens 32"),
        ({"min_tiles": 4, "max_tiles": 2}, "min_tiles 4 exceeds max_tiles 2"),
        ({"tile_size": 500}, "tile_size 500 is no multiple of encoder_patch_size 16"),
        ({"resample": 1}, "resample 1 is not known; known: 2"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Lfm2VlImageSettings(**settings)


def test_an_override_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    Lfm2VlImageProcessor().save(tmp_path)
    with pytest.raises(TypeError, match="max_image_token"):
        Lfm2VlImageProcessor.from_folder(tmp_path, max_image_token=3)
