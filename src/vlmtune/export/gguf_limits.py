"""What llama.cpp's LFM2-VL cannot express: refused before anything is written, or told.

llama.cpp reads the network from the files, but its image preparation is code with LiquidAI's settings in it
(`tools/mtmd/mtmd-image.h`, `clip.cpp`): tiles of 512 in grids of 2 to 10, a thumbnail, a tolerance of 2, bilinear.
Only the least and the most image tokens can be set, by whoever runs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings, smart_resize

# The values in llama.cpp's source, by the names of our settings.
_FIXED_ALWAYS: Mapping[str, object] = {
    "resample": 2,
    "do_rescale": True,
    "do_normalize": True,
    "use_image_special_tokens": True,
}
_FIXED_WHEN_SPLITTING: Mapping[str, object] = {
    "tile_size": 512,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "max_pixels_tolerance": 2.0,
}
_TOLERANCE = 2.0
_IMAGE_TOKENS = (64, 256)
_RESCALE = 1 / 255
_TILE = re.compile(r"<\|img_row_(\d+)_col_(\d+)\|>")


@dataclass(frozen=True)
class ImageRules:
    """How images must be given to llama.cpp, so that it prepares them as the model was trained.

    Attributes:
        settings: the model's own.
    """

    settings: Lfm2VlImageSettings

    @property
    def min_tokens(self) -> int:
        return self.settings.min_image_tokens

    @property
    def max_tokens(self) -> int:
        return self.settings.max_image_tokens

    @property
    def max_pixels(self) -> int:
        """Of an image that is one tile, in whole image tokens."""
        return self.max_tokens * self._token_side**2

    @property
    def _token_side(self) -> int:
        """Pixels along a side of one image token."""
        return self.settings.encoder_patch_size * self.settings.downsample_factor

    def size_for(self, height: int, width: int) -> tuple[int, int] | None:
        """The (height, width) that an image must be scaled to first; None if it can be given as it is."""
        rounded = [round(length / self._token_side) * self._token_side for length in (height, width)]
        area = max(self.settings.encoder_patch_size, rounded[0]) * max(self.settings.encoder_patch_size, rounded[1])
        if self.settings.do_image_splitting or area <= self.max_pixels * _TOLERANCE:
            return None
        return smart_resize(self.settings, height, width)

    def is_letterboxed(self, height: int, width: int, text: str) -> bool:
        """Whether llama.cpp fills an image's tiles up with black, where the model was trained on it stretched.

        Args:
            text: the placeholder text of our own preparation, in which the tiles' names tell the grid.
        """
        places = [(int(row), int(column)) for row, column in _TILE.findall(text)]
        if not places:
            return False
        sides = [max(side) * self.settings.tile_size for side in zip(*places, strict=True)]
        scale = min(sides[0] / height, sides[1] / width)
        return [min(ceil(height * scale), sides[0]), min(ceil(width * scale), sides[1])] != sides

    def sentences(self) -> list[str]:
        """What whoever runs the files must do."""
        said = []
        if (self.min_tokens, self.max_tokens) != _IMAGE_TOKENS:
            said.append(
                f"run llama.cpp with --image-min-tokens {self.min_tokens} --image-max-tokens {self.max_tokens}: GGUF "
                f"has no key for them, and its own are {_IMAGE_TOKENS[0]} and {_IMAGE_TOKENS[1]}"
            )
        if not self.settings.do_image_splitting:
            said.append(
                f"scale images to at most {self.max_pixels:,} pixels first (bilinear): the model was trained without "
                f"tiles, and llama.cpp cuts what has more than {int(self.max_pixels * _TOLERANCE):,} pixels into tiles "
                "of 512 and cannot be told not to"
            )
        return said


def unsupported(model: Lfm2Vl, processor: Lfm2VlImageProcessor) -> list[str]:
    """Every reason why llama.cpp could not run this model as it was trained; empty if it can."""
    settings, config = processor.settings, model.config
    fixed = {**_FIXED_ALWAYS, **(_FIXED_WHEN_SPLITTING if settings.do_image_splitting else {})}
    reasons = [
        f"{name} is {getattr(settings, name)!r}; llama.cpp's is {value!r} and cannot be set"
        for name, value in fixed.items()
        if getattr(settings, name) != value
    ]
    if settings.do_rescale and abs(settings.rescale_factor - _RESCALE) > 1e-9:
        reasons.append(f"rescale_factor is {settings.rescale_factor}; llama.cpp's is 1/255 and cannot be set")
    if config.text_config.conv_bias:
        reasons.append("conv_bias is true; llama.cpp's short convolution has no bias")
    if config.downsample_factor < 2:
        reasons.append(f"downsample_factor is {config.downsample_factor}; llama.cpp merges at least 2 × 2 patches")
    if round(config.vision_config.num_patches**0.5) ** 2 != config.vision_config.num_patches:
        reasons.append(f"num_patches {config.vision_config.num_patches} is no square, as llama.cpp takes it to be")
    return reasons
