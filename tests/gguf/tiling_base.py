"""A base with LFM2-VL's own image settings (patches of 16, tiles of 512, thumbnail), small enough for a CPU, and
images of many shapes for it. It starts random and learns to name a color in a minute (`train`)."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from tiny.tokenizer import train_tokenizer
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings
from vlmtune.models.weights import save_hf

COLORS = ("red", "amber", "lime", "green", "cyan", "blue", "violet", "pink")

# (width, height): small ones to learn from; one tile; tiles in a grid of the image's shape; tiles of another shape.
SMALL = ((224, 224), (256, 256), (320, 192))
WHOLE = ((512, 512), (320, 256), (640, 480), (97, 211))
TILED = ((1024, 1024), (1152, 576), (768, 1536))
LETTERBOXED = ((1200, 700), (900, 1000), (1500, 700))


def write_tiling_base(folder: Path, seed: int = 0) -> Path:
    """Save the model as the hub would hold it; returns the folder."""
    tokenizer = train_tokenizer([f"{color} image of {color}, choose what it shows" for color in COLORS] * 4, 900, 10)
    config = {
        "model_type": "lfm2_vl",
        "text_config": {
            "model_type": "lfm2",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "max_position_embeddings": 8192,
            "bos_token_id": 1,
            "eos_token_id": tokenizer.end_id,
            "pad_token_id": tokenizer.pad_id,
        },
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_patches": 64,  # 8 × 8 positions: every image's are interpolated
            "patch_size": 16,
        },
        "projector_hidden_size": 96,
        "image_token_id": tokenizer.image_token_id,
    }
    torch.manual_seed(seed)
    model = Lfm2Vl(Lfm2VlConfig.from_dict(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # vectors keep their start: norms one, biases zero
                parameter.normal_(std=(parameter[0].numel()) ** -0.5)
    processor = Lfm2VlImageProcessor(Lfm2VlImageSettings())
    save_hf(folder, model, model.config_dict(), tokenizer=tokenizer, processor=processor)
    return folder


def write_images(root: Path, splits: Mapping[str, tuple[int, tuple[tuple[int, int], ...]]]) -> Path:
    """`root`/split/color/number.png for each split's (number of images, sizes to go round); returns root."""
    rng = np.random.default_rng(0)
    for split, (num, sizes) in splits.items():
        for number in range(num):
            color = number % len(COLORS)
            folder = root / split / COLORS[color]
            folder.mkdir(parents=True, exist_ok=True)
            size = sizes[number // len(COLORS) % len(sizes)]
            _draw(rng, color, size).save(folder / f"{number:04d}.png", compress_level=1)
    return root


def write_photographs(root: Path, num: int) -> Path:
    """Cuttings of scikit-learn's two photographs in the same folders (which color they get says nothing): as they are,
    and every third enlarged until it is cut into tiles; returns root."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(num + len(COLORS)):
        split = "test" if number < num else "train"
        folder = root / split / COLORS[number % len(COLORS)]
        folder.mkdir(parents=True, exist_ok=True)
        photograph = photographs[number % 2]
        width, height = (int(rng.integers(9, side // 32) * 32) for side in photograph.size)
        x, y = int(rng.integers(0, photograph.width - width)), int(rng.integers(0, photograph.height - height))
        image = photograph.crop((x, y, x + width, y + height))
        if number % 3 == 0:
            image = image.resize(TILED[number // 3 % len(TILED)], Image.Resampling.LANCZOS)
        image.save(folder / f"{number:04d}.png", compress_level=1)
    return root


def _draw(rng: np.random.Generator, color: int, size: tuple[int, int]) -> Image.Image:
    """Most of it in one eighth of the circle of hues, up to its edges; gray shapes and noise over it."""
    width, height = size
    hue = (color + rng.random()) / len(COLORS)
    ends = [[int(255 * level) for level in colorsys.hsv_to_rgb(hue, *rng.uniform(0.5, 1, 2))] for _ in range(4)]
    image = Image.fromarray(np.array(ends, np.uint8).reshape(2, 2, 3)).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 6))):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        side = int(rng.integers(8, max(9, min(size) // 3)))
        gray = (int(rng.integers(0, 256)),) * 3
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)([x, y, x + side, y + side], fill=gray)
    pixels = np.asarray(image).astype(np.int16) + rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
