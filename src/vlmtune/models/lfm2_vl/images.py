"""LFM2-VL's image processing with Pillow and torch: an image to patches and placeholder text.

In: an RGB image. Out: `ProcessedImage`. Equal, bit for bit, to transformers' `Lfm2VlImageProcessor` and to the
placeholder text of its `Lfm2VlProcessor`, which need torchvision. Called for every image, in training too, from
several threads at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmtune.errors import UserError
from vlmtune.files import write_json
from vlmtune.models.images import (
    RESAMPLING,
    Grid,
    ProcessedImage,
    normalization,
    read_settings,
    resize,
    to_image,
    to_pixels,
)

_IMAGE, _START, _END = "<image>", "<|image_start|>", "<|image_end|>"
_THUMBNAIL = "<|img_thumbnail|>"


@dataclass(frozen=True)
class Lfm2VlImageSettings:
    """The fields of the checkpoint's preprocessor_config.json that matter, under their own names."""

    downsample_factor: int = 2
    """Patches that the pixel-unshuffle merges along each side: one image token is factor² patches."""
    do_image_splitting: bool = True
    min_tiles: int = 2
    max_tiles: int = 10
    use_thumbnail: bool = True
    min_image_tokens: int = 64
    max_image_tokens: int = 256
    encoder_patch_size: int = 16
    tile_size: int = 512
    max_pixels_tolerance: float = 2.0
    """An image is cut into tiles when it has more than this many times the pixels of `max_image_tokens`."""
    resample: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    use_image_special_tokens: bool = True
    """From processor_config.json: whether start, end, tile and thumbnail tokens stand around the image tokens."""

    def __post_init__(self) -> None:
        least, most, patch = self.min_image_tokens, self.max_image_tokens, self.encoder_patch_size
        problems = []
        if least > most:
            problems.append(f"min_image_tokens {least} exceeds max_image_tokens {most}")
        if self.do_image_splitting and self.min_tiles > self.max_tiles:
            problems.append(f"min_tiles {self.min_tiles} exceeds max_tiles {self.max_tiles}")
        if self.do_image_splitting and self.tile_size % patch:
            problems.append(f"tile_size {self.tile_size} is no multiple of encoder_patch_size {patch}")
        if self.resample not in RESAMPLING:
            problems.append(f"resample {self.resample} is not known; known: 2 (bilinear), 3 (bicubic)")
        if problems:
            raise UserError(
                "The image settings do not go together: " + "; ".join(problems) + ". They come from the checkpoint's "
                "preprocessor_config.json and from model.min_image_tokens, model.max_image_tokens and "
                "model.do_image_splitting of the experiment."
            )


@dataclass(frozen=True)
class _Layout:
    """How images of one size are cut: sizes in pixels as (height, width), tiles as (rows, columns)."""

    size: tuple[int, int]
    tiles: tuple[int, int] | None
    text: str
    num_tokens: int


class Lfm2VlImageProcessor:
    """Cuts images into patches. Holds no state but its settings.

    Args:
        settings: the checkpoint's; the defaults are those of transformers.
    """

    def __init__(self, settings: Lfm2VlImageSettings | None = None) -> None:
        self.settings = settings or Lfm2VlImageSettings()
        patch = self.settings.encoder_patch_size
        mean, std = normalization(self.settings)
        self._mean, self._std = mean.repeat(patch * patch), std.repeat(patch * patch)

    @classmethod
    def from_folder(cls, folder: Path | str, **overrides: Any) -> Lfm2VlImageProcessor:
        """Read a checkpoint's settings.

        Args:
            folder: holds `preprocessor_config.json`, or `processor_config.json` with the key "image_processor".
            **overrides: settings by name, such as ``max_image_tokens=64``; None leaves the checkpoint's value.

        Raises:
            WeightsError: if neither file is there, or one is not readable.
            UserError: if the settings contradict each other.
        """
        processor, values = read_settings(Path(folder))
        special = processor.get("use_image_special_tokens")
        values |= {} if special is None else {"use_image_special_tokens": special}
        values |= {key: value for key, value in overrides.items() if value is not None}
        known = {field.name for field in fields(Lfm2VlImageSettings)}
        if unknown := overrides.keys() - known:
            raise TypeError(f"no such image settings: {', '.join(sorted(unknown))}")
        # Lists become tuples, which keeps the settings hashable. transformers' other keys mean nothing here.
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(Lfm2VlImageSettings(**settings))

    def with_overrides(self, **overrides: Any) -> Lfm2VlImageProcessor:
        """A copy with some settings changed; None leaves a value unchanged."""
        changed = {key: value for key, value in overrides.items() if value is not None}
        return Lfm2VlImageProcessor(replace(self.settings, **changed))

    def save(self, folder: Path | str) -> None:
        """Write `preprocessor_config.json` and `processor_config.json`, which transformers loads too."""
        folder = Path(folder)
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.settings).items()}
        special = values.pop("use_image_special_tokens")
        image_processor = {"image_processor_type": "Lfm2VlImageProcessor", "do_resize": True, "do_pad": True, **values}
        processor = {
            "processor_class": "Lfm2VlProcessor",
            "use_image_special_tokens": special,
            "image_processor": image_processor,
        }
        write_json(folder / "preprocessor_config.json", {"processor_class": "Lfm2VlProcessor", **image_processor}, 2)
        write_json(folder / "processor_config.json", processor, 2)

    def process(self, image: Image.Image) -> ProcessedImage:
        """Resize, cut and normalize one image. Thread-safe.

        Args:
            image: any mode; what is not RGB is converted by Pillow.

        Returns:
            One tile, or the tiles row by row and then the thumbnail. A patch is row by row, channels last.
        """
        layout = _layout(self.settings, image.height, image.width)
        pixels = to_pixels(image)
        tiles = []
        if layout.tiles is not None:
            rows, columns = layout.tiles
            side = self.settings.tile_size
            canvas = resize(pixels, (rows * side, columns * side), self.settings.resample)
            grid = canvas.view(rows, side, columns, side, 3)
            tiles = [self._patches(grid[row, :, column]) for row in range(rows) for column in range(columns)]
        if layout.tiles is None or self.settings.use_thumbnail:
            tiles.append(self._patches(resize(pixels, layout.size, self.settings.resample)))
        return ProcessedImage(tiles=tiles, text=layout.text, num_tokens=layout.num_tokens)

    def restore(self, patches: Tensor, grid: Grid) -> Image.Image:
        """A tile of `process` as an image again: what the network sees, for display."""
        (rows, columns), patch = grid, self.settings.encoder_patch_size
        pixels = patches.view(rows, columns, patch, patch, 3).transpose(1, 2)
        return to_image(pixels.reshape(rows * patch, columns * patch, 3), self.settings)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Image tokens of an image of this size in pixels, without looking at it."""
        return _layout(self.settings, height, width).num_tokens

    def _patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """uint8[H, W, 3] -> float32[P, patch * patch * 3] and its (rows, columns)."""
        patch = self.settings.encoder_patch_size
        height, width = pixels.shape[:2]
        rows, columns = height // patch, width // patch
        grid = pixels.reshape(rows, patch, columns, patch, 3).permute(0, 2, 1, 3, 4)
        # Cut as bytes, a quarter of the memory, and only then to float.
        patches = grid.reshape(rows * columns, patch * patch * 3).to(torch.float32)
        if self.settings.do_normalize:
            patches.sub_(self._mean).div_(self._std)
        elif self.settings.do_rescale:
            patches.mul_(self.settings.rescale_factor)
        return patches, (rows, columns)


@lru_cache(maxsize=4096)
def _layout(settings: Lfm2VlImageSettings, height: int, width: int) -> _Layout:
    """Plan an image of ``height`` × ``width`` pixels: pure arithmetic, in the reference's words."""
    size = smart_resize(settings, height, width)
    patch, factor = settings.encoder_patch_size, settings.downsample_factor
    whole = math.ceil(size[0] // patch / factor) * math.ceil(size[1] // patch / factor)
    # A single tile means no splitting, as in the reference.
    can_split = settings.do_image_splitting and not settings.min_tiles == settings.max_tiles == 1
    tiles = None
    parts: list[tuple[str, int]] = [("", whole)]
    if can_split and _is_too_large(settings, height, width):
        tiles = _tile_grid(settings, height, width)
        per_tile = math.ceil(settings.tile_size // patch / factor) ** 2
        rows, columns = tiles
        if rows * columns == 1:
            # Possible with min_tiles 1: the tile alone, without thumbnail or name. The reference spells out as many
            # tokens as the thumbnail would have, which its model then refuses; this counts the tile's.
            size, tiles, parts = (settings.tile_size,) * 2, None, [("", per_tile)]
        else:
            names = [f"<|img_row_{r + 1}_col_{c + 1}|>" for r in range(rows) for c in range(columns)]
            parts = [(name, per_tile) for name in names]
            if settings.use_thumbnail:
                parts.append((_THUMBNAIL, whole))
    special = settings.use_image_special_tokens
    text = "".join((name if special else "") + _IMAGE * count for name, count in parts)
    return _Layout(size, tiles, _START + text + _END if special else text, sum(count for _, count in parts))


def smart_resize(settings: Lfm2VlImageSettings, height: int, width: int) -> tuple[int, int]:
    """The (height, width) in pixels that one tile of the whole image gets.

    A whole number of image tokens along both sides, within the limits, as close to the image's shape as possible.
    A strip much longer than wide is at least one token wide, and may thus exceed the limit, as in the reference.
    """
    factor = settings.encoder_patch_size * settings.downsample_factor
    least, most = settings.min_image_tokens * factor**2, settings.max_image_tokens * factor**2
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > most:
        beta = math.sqrt((height * width) / most)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < least:
        beta = math.sqrt(least / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


def _is_too_large(settings: Lfm2VlImageSettings, height: int, width: int) -> bool:
    factor = settings.encoder_patch_size * settings.downsample_factor
    new_height = max(settings.encoder_patch_size, round(height / factor) * factor)
    new_width = max(settings.encoder_patch_size, round(width / factor) * factor)
    return new_height * new_width > settings.max_image_tokens * factor**2 * settings.max_pixels_tolerance


def _tile_grid(settings: Lfm2VlImageSettings, height: int, width: int) -> tuple[int, int]:
    """The (rows, columns) of tiles closest in shape; among ties, the largest that the image half fills."""
    candidates = _tile_grids(settings.min_tiles, settings.max_tiles)
    best, least = (1, 1), float("inf")
    for rows, columns in candidates:
        difference = abs(width / height - columns / rows)
        if difference < least:
            best, least = (rows, columns), difference
        elif difference == least and height * width > 0.5 * settings.tile_size**2 * rows * columns:
            best = (rows, columns)
    return best


@lru_cache(maxsize=64)
def _tile_grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """Every grid of ``fewest`` to ``most`` tiles, fewest tiles first.

    Grids of equally many tiles keep the order of a set of (columns, rows), as in the reference, since the order
    decides between two that are equally near.
    """
    ratios = {
        (columns, rows)
        for count in range(fewest, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if fewest <= columns * rows <= most
    }
    return [(rows, columns) for columns, rows in sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])]
