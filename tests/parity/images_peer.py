"""Runs transformers' LFM2-VL processor in a process of its own and writes what it made of some images.

Why apart: transformers' image processors need torchvision, whose wheels are built for CUDA. Beside a CPU torch it has
to be imported with its missing operators declared first, before transformers is; and merely being installed next to
transformers it would break every other import of it. So it is installed in a folder that only this process sees:

    python -m pip install --no-deps --target "$(python -c 'import sys; print(sys.prefix)')/peers" torchvision==0.28.0

Usage: python images_peer.py FOLDER. FOLDER holds a tokenizer; `results.safetensors` is written there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PEERS = Path(sys.prefix) / "peers"

# Name: (height, width), settings that differ from the defaults. TINY is the built-in model's shape.
TINY = {"encoder_patch_size": 4, "min_image_tokens": 16, "max_image_tokens": 16, "do_image_splitting": False}
CASES: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "one_pixel": ((1, 1), {}),
    "strip": ((3, 500), {}),
    "long_strip": ((1, 3000), {}),
    "small_square": ((32, 32), {}),
    "exact": ((512, 512), {}),
    "one_less": ((511, 512), {}),
    "portrait": ((640, 333), {}),
    "not_yet_tiled": ((720, 724), {}),
    "photo": ((1500, 2000), {}),
    "panorama": ((500, 2600), {}),
    "tower": ((3100, 420), {}),
    "exact_tiles": ((1024, 1024), {}),
    "huge": ((3000, 4000), {}),
    "no_splitting": ((1500, 2000), {"do_image_splitting": False}),
    "no_thumbnail": ((1000, 1000), {"use_thumbnail": False}),
    "few_tokens": ((300, 400), {"min_image_tokens": 4, "max_image_tokens": 32}),
    "few_tokens_tiled": ((300, 400), {"min_image_tokens": 4, "max_image_tokens": 32, "tile_size": 64}),
    "many_tiles": ((900, 300), {"min_image_tokens": 4, "max_image_tokens": 16, "tile_size": 96, "max_tiles": 24}),
    "tolerant": ((1000, 1000), {"max_pixels_tolerance": 8.0}),
    "bicubic": ((333, 444), {"resample": 3}),
    "imagenet_statistics": ((100, 90), {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "not_normalized": ((100, 90), {"do_normalize": False}),
    "not_rescaled": ((100, 90), {"do_rescale": False}),
    "no_factor": ((100, 90), {"downsample_factor": 1, "min_image_tokens": 16, "max_image_tokens": 64}),
    "tiny_as_it_is": ((32, 32), TINY),
    "tiny_smaller": ((8, 8), TINY),
    "tiny_odd": ((29, 31), TINY),
    "tiny_large": ((480, 640), TINY),
}


def make_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise over gradients: every level occurs, and neither resampling nor rounding goes unseen."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)], -1)
    noise = generator.integers(-128, 128, (height, width, 3))
    return Image.fromarray(np.clip(smooth + noise * (columns % 64 < 24)[..., None], 0, 255).astype(np.uint8))


def cases() -> dict[str, tuple[tuple[int, int], dict[str, Any]]]:
    """The named cases, and 40 seeded sizes under settings small enough to reach every branch of the layout."""
    generator = np.random.default_rng(7)
    small = {"encoder_patch_size": 8, "min_image_tokens": 6, "max_image_tokens": 24, "tile_size": 64}
    sizes = generator.integers(1, 400, (40, 2)).tolist()
    return CASES | {f"random_{h}x{w}": ((h, w), small) for h, w in sizes}


def declare_torchvision() -> None:
    """Declare the operators that a torchvision built for CUDA misses beside a CPU torch; before it is imported."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []
"""Definitions last as long as their library."""


def main(folder: Path) -> None:
    sys.path.append(str(PEERS))
    declare_torchvision()
    from safetensors.torch import save_file
    from transformers import AutoTokenizer
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor
    from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    results = {}
    for name, ((height, width), settings) in cases().items():
        # A processor made anew for each: transformers caches the normalization of the first settings it sees.
        processor = Lfm2VlProcessor(Lfm2VlImageProcessor(**settings), tokenizer)
        made = processor(images=[make_image(height, width)], text=["<image>"], return_tensors="pt")
        for key in ("pixel_values", "pixel_attention_mask", "spatial_shapes", "input_ids"):
            results[f"{name}.{key}"] = made[key].contiguous()
    save_file(results, folder / "results.safetensors")
    import transformers

    (folder / "versions.json").write_text(json.dumps({"transformers": transformers.__version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
