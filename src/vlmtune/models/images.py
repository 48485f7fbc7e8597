"""One image on its way to the network and through the tower, and what the families' image processors share.

Pixels, resizing as torchvision does it, and settings files: called by each family's `images.py`, for every image and
from several threads at once.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlmtune.errors import WeightsError
from vlmtune.files import read_json_if_exists

Grid = tuple[int, int]
"""Rows and columns of patches."""

RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which a checkpoint's `resample` uses, and torch's names."""


@dataclass(frozen=True)
class ProcessedImage:
    """An image in the form the tower takes.

    Attributes:
        tiles: for each tile, float32[P, patch * patch * 3] patches and their grid.
        text: the placeholder string of the whole image, every image token spelled out.
        num_tokens: image tokens in `text`.
    """

    tiles: list[tuple[Tensor, Grid]]
    text: str
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Memory of the patches."""
        return sum(patches.nbytes for patches, _ in self.tiles)


@dataclass(frozen=True)
class VisionFeatures:
    """The tower's output for one image, which the connector reads.

    Attributes:
        patches: float[P, C], the patches of all tiles, tile after tile. C is the tower's width, or several times it
            where the connector reads several groups of the tower's layers.
        grids: each tile's grid; P is the sum of their products.
    """

    patches: Tensor
    grids: tuple[Grid, ...]

    def tiles(self) -> list[tuple[Tensor, Grid]]:
        """float[P', C] of each tile, with its grid."""
        sizes = [rows * columns for rows, columns in self.grids]
        return list(zip(torch.split(self.patches, sizes), self.grids, strict=True))


def run_by_grid(tiles: Sequence[tuple[Tensor, Grid]], run: Callable[[Tensor, Grid], Tensor]) -> list[Tensor]:
    """Run tiles in one batch for each grid, in which nothing is padded.

    Args:
        tiles: [P, C] each, with its grid.
        run: ([B, P, C], grid) -> [B, ...].

    Returns:
        The results of each tile, in order.
    """
    members: dict[Grid, list[int]] = {}
    for index, (_, grid) in enumerate(tiles):
        members.setdefault(grid, []).append(index)
    results: dict[int, Tensor] = {}
    for grid, indices in members.items():
        batch = run(torch.stack([tiles[index][0] for index in indices]), grid)
        results.update(zip(indices, batch.unbind(0), strict=True))
    return [results[index] for index in range(len(tiles))]


class Normalization(Protocol):
    """How levels 0 to 255 become the network's input; names are the checkpoint's."""

    @property
    def do_normalize(self) -> bool: ...
    @property
    def do_rescale(self) -> bool: ...
    @property
    def rescale_factor(self) -> float: ...
    @property
    def image_mean(self) -> tuple[float, ...]: ...
    @property
    def image_std(self) -> tuple[float, ...]: ...


def to_pixels(image: Image.Image) -> Tensor:
    """An image of any mode as uint8[H, W, 3]; what is not RGB is converted by Pillow."""
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))


def resize(pixels: Tensor, size: tuple[int, int], resample: int) -> Tensor:
    """uint8[H, W, 3] -> uint8[height, width, 3], as torchvision resizes: antialiased, on whole levels."""
    if pixels.shape[:2] == size:
        return pixels
    mode = RESAMPLING[resample]
    batch = pixels.permute(2, 0, 1)[None]
    if _resizes_bytes(mode):
        resized = F.interpolate(batch, size, mode=mode, antialias=True, align_corners=False)
    else:
        resized = F.interpolate(batch.float(), size, mode=mode, antialias=True, align_corners=False)
        resized = resized.clamp_(0, 255).round_().to(torch.uint8)
    return resized[0].permute(1, 2, 0).contiguous()


def normalization(settings: Normalization) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel in levels 0 to 255, float32[3] each.

    The rescaling is folded into them in transformers' order of operations: another would differ in the last bit.
    """
    mean, std = torch.tensor(settings.image_mean), torch.tensor(settings.image_std)
    if settings.do_rescale:
        mean, std = mean * (1.0 / settings.rescale_factor), std * (1.0 / settings.rescale_factor)
    return mean, std


def to_image(levels: Tensor, settings: Normalization) -> Image.Image:
    """float32[H, W, 3] as the network takes it -> the image, normalization undone, for display."""
    if settings.do_normalize:
        mean, std = normalization(settings)
        levels = levels * std + mean
    elif settings.do_rescale:
        levels = levels / settings.rescale_factor
    return Image.fromarray(levels.round().clamp(0, 255).to(torch.uint8).contiguous().numpy())


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's (`processor_config.json`, image settings); those nested in it come first, as in transformers.

    Raises:
        WeightsError: if neither it nor `preprocessor_config.json` holds image settings, or one is not readable.
    """
    advice = "Download the file again."
    processor = read_json_if_exists(folder / "processor_config.json", WeightsError, advice)
    settings = read_json_if_exists(folder / "preprocessor_config.json", WeightsError, advice)
    values = processor.get("image_processor") or settings
    if not values:
        raise WeightsError(
            f"{folder}: no image settings. Expected preprocessor_config.json, or processor_config.json with the key "
            "'image_processor'."
        )
    return processor, values


@cache
def _resizes_bytes_bilinearly() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def _resizes_bytes(mode: str) -> bool:
    """Whether torchvision resizes uint8 directly: bicubic always, bilinear where the CPU has a kernel for it."""
    return mode == "bicubic" or _resizes_bytes_bilinearly()
