"""Small data sets of drawn pictures for tests: squares of one colour a class, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 210)}


def write_class_folders(root: Path, num: int, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """`root`/split/colour/number.png, ``num`` pictures a class and split; returns root."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(num):
                noise = rng.integers(-25, 25, (16, 16, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root
