"""The built-in set: scikit-learn's 1,797 handwritten digits (UCI ML hand-written digits, 8×8 gray), upscaled."""

from __future__ import annotations

import io
from functools import partial

from vlmtune.data.read.rows import Row, Source
from vlmtune.records import ImageSource

SIDE = 64
"""Pixels a side after upscaling."""
LABELS = tuple("0123456789")


def read_digits() -> Source:
    """All digits as RGB PNG images, white ink on black, in scikit-learn's order: `digits/0000` … `digits/1796`."""
    return Source(
        "builtin:digits", "built-in digits", {"all": partial(_rows)}, class_names=LABELS, revision="scikit-learn"
    )


def _rows() -> list[Row]:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    # Ink has 17 levels, 0 to 16. Pillow's bicubic is integer arithmetic: the same pixels on every machine.
    gray = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rows = []
    for number, (pixels, target) in enumerate(zip(gray, targets, strict=True)):
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        name = f"digits/{number:04d}"
        rows.append(Row(name, ImageSource(data=file.getvalue(), name=name), (LABELS[target],), f"builtin:{name}"))
    return rows
