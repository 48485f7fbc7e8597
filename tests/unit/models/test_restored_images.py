"""A processed image can be looked at again: what `vlmtune data show` draws is what the network is given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings
from vlmtune.models.paligemma.images import PaliGemmaImageProcessor, PaliGemmaImageSettings
from vlmtune.models.registry import ImageProcessor

pytestmark = pytest.mark.unit

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.mark.parametrize(
    "processor",
    [
        Lfm2VlImageProcessor(Lfm2VlImageSettings(min_image_tokens=1, image_mean=MEAN, image_std=STD)),
        Lfm2VlImageProcessor(Lfm2VlImageSettings(min_image_tokens=1, do_normalize=False)),
        PaliGemmaImageProcessor(PaliGemmaImageSettings(size=64, image_seq_length=16, image_mean=MEAN, image_std=STD)),
    ],
    ids=["lfm2", "lfm2-rescaled", "paligemma"],
)
def test_a_tile_is_the_image_that_was_processed(processor: ImageProcessor) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    ((patches, grid),) = processor.process(image).tiles  # of a size that needs no resizing
    assert np.array_equal(processor.restore(patches, grid), image)


def test_a_wide_tile_keeps_its_rows_and_columns() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 96, 3), dtype=np.uint8))
    processor = Lfm2VlImageProcessor(Lfm2VlImageSettings(min_image_tokens=1))
    ((patches, grid),) = processor.process(image).tiles
    assert np.array_equal(processor.restore(patches, grid), image)
