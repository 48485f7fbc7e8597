"""PaliGemma's image processing: every image resized to the checkpoint's one square size, and cut into patches.

In: an image. Out: `ProcessedImage`, one tile. Equal, bit for bit, to transformers' `SiglipImageProcessor`, which needs
torchvision. Levels go to [-1, 1]: ImageNet statistics would be wrong here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmtune.errors import UserError, WeightsError
from vlmtune.files import read_json_if_exists, write_json
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

_IMAGE = "<image>"


@dataclass(frozen=True)
class PaliGemmaImageSettings:
    """The fields of the checkpoint's preprocessor_config.json that matter, under their own names."""

    size: int = 224
    """Pixels per side; the file holds {"height": …, "width": …}."""
    image_seq_length: int = 256
    """Image tokens of an image: its patches."""
    resample: int = 3
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def side(self) -> int:
        """Patches per side."""
        return isqrt(self.image_seq_length)

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch."""
        return self.size // self.side


class PaliGemmaImageProcessor:
    """Resizes and cuts images. Holds no state but its settings; safe to use from several threads.

    Args:
        settings: the checkpoint's; the defaults are those of the 224-pixel ones.

    Raises:
        WeightsError: settings that contradict each other.
    """

    def __init__(self, settings: PaliGemmaImageSettings | None = None) -> None:
        self.settings = settings or PaliGemmaImageSettings()
        if self.settings.side**2 != self.settings.image_seq_length or not self.settings.patch_size:
            raise WeightsError(
                f"preprocessor_config.json: image_seq_length {self.settings.image_seq_length} is not the number of "
                f"patches of a square of {self.settings.size} pixels a side."
            )
        if self.settings.resample not in RESAMPLING:
            raise WeightsError(
                f"preprocessor_config.json: resample {self.settings.resample} is not known; known: 2 (bilinear), "
                "3 (bicubic)."
            )
        self._mean, self._std = normalization(self.settings)

    @classmethod
    def from_folder(cls, folder: Path | str, **overrides: Any) -> PaliGemmaImageProcessor:
        """Read a checkpoint's settings.

        Args:
            folder: holds `preprocessor_config.json`, or `processor_config.json` with the key "image_processor".
            **overrides: LFM2-VL's choices, which this family does not have; None is ignored.

        Raises:
            WeightsError: if neither file is there, one is not readable, or they contradict config.json.
            UserError: if an override is given.
        """
        folder = Path(folder)
        given = sorted(f"model.{key}" for key, value in overrides.items() if value is not None)
        if given:
            raise UserError(
                f"{', '.join(given)}: a PaliGemma takes every image at the one size it was trained at. Leave "
                "it out; for more detail choose a checkpoint of 448 or 896 pixels as model.base."
            )
        _, values = read_settings(folder)
        size = values.get("size", {"height": 224, "width": 224})
        if not isinstance(size, dict) or size.get("height") is None or size["height"] != size.get("width"):
            raise WeightsError(f"{folder}: image size {size!r}; expected equal 'height' and 'width' in pixels.")
        known = {field.name for field in fields(PaliGemmaImageSettings)}
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        processor = cls(PaliGemmaImageSettings(**{**settings, "size": int(size["height"])}))
        vision = read_json_if_exists(folder / "config.json", WeightsError).get("vision_config", {})
        expected = (vision.get("image_size", 224), vision.get("patch_size", 16))
        if (processor.settings.size, processor.settings.patch_size) != expected:
            raise WeightsError(
                f"{folder}: preprocessor_config.json makes {processor.settings.size} pixels a side in patches of "
                f"{processor.settings.patch_size}, config.json expects {expected[0]} in patches of {expected[1]}. "
                "Take both files from one checkpoint."
            )
        return processor

    def save(self, folder: Path | str) -> None:
        """Write `preprocessor_config.json`, which transformers loads too."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.settings).items()}
        values["size"] = {"height": self.settings.size, "width": self.settings.size}
        kind = {"image_processor_type": "SiglipImageProcessor", "processor_class": "PaliGemmaProcessor"}
        write_json(Path(folder) / "preprocessor_config.json", {**kind, "do_resize": True, **values}, 2)

    def process(self, image: Image.Image) -> ProcessedImage:
        """Resize (whatever its shape: nothing is cropped or padded), normalize and cut one image of any mode."""
        size, side, patch = self.settings.size, self.settings.side, self.settings.patch_size
        pixels = resize(to_pixels(image), (size, size), self.settings.resample)
        used = self._levels(pixels[: side * patch, : side * patch])
        grid = used.reshape(side, patch, side, patch, 3).permute(0, 2, 4, 1, 3)  # channels first within a patch
        patches = grid.reshape(side * side, 3 * patch * patch)
        return ProcessedImage(tiles=[(patches, (side, side))], text=_IMAGE * side**2, num_tokens=side**2)

    def restore(self, patches: Tensor, grid: Grid) -> Image.Image:
        """A tile of `process` as an image again: what the network sees, for display."""
        (rows, columns), patch = grid, self.settings.patch_size
        pixels = patches.view(rows, columns, 3, patch, patch).permute(0, 3, 1, 4, 2)
        return to_image(pixels.reshape(rows * patch, columns * patch, 3), self.settings)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Image tokens of an image of this size in pixels: the same for all."""
        return self.settings.image_seq_length

    def _levels(self, pixels: Tensor) -> Tensor:
        """uint8[H, W, 3] -> float32[H, W, 3]."""
        levels = pixels.to(torch.float32)
        if self.settings.do_normalize:
            return levels.sub_(self._mean).div_(self._std)
        return levels.mul_(self.settings.rescale_factor) if self.settings.do_rescale else levels
