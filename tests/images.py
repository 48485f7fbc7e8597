"""Small data sets of drawn images for tests: squares of one color a class, with noise and an invented name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"wug": (200, 30, 30), "blick": (30, 180, 40), "dax": (40, 40, 210)}


def write_class_folders(root: Path, num: int, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """`root`/split/name/number.png, ``num`` images a class and split; returns root."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(num):
                noise = rng.integers(-25, 25, (16, 16, 3))
                pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root
