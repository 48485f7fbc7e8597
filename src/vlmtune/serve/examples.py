"""Images to try on the page: digits where the model reads digits, else what the tiny model was raised on."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from vlmtune.data.drawn import draw
from vlmtune.data.read.digits import LABELS as DIGITS
from vlmtune.data.read.digits import read_digits
from vlmtune.data.read.image_folder import is_image_name
from vlmtune.errors import UserError

_NUM = 6
_MAX_FILE_BYTES = 2**20
_DRAWN = (("shapes", 3), ("shapes", 8), ("thing", 1), ("thing", 4), ("letter", 2), ("digit", 5))
_SIDE = 64


def example_images(labels: Sequence[str] | None, folder: Path | None = None) -> list[str]:
    """Up to six data URIs.

    Args:
        labels: what the model tells apart.
        folder: images of a person's own, taken by name. Raises UserError if there is none in it.
    """
    if folder is not None:
        return _from_folder(folder)
    if labels is not None and set(labels) <= set(DIGITS):
        rows = read_digits().splits["all"]()
        return [_data_uri(next(row.image.read() for row in rows[number * 40 :] if row.answers[0] == label))
                for number, label in enumerate(labels[:_NUM])]  # fmt: skip
    drawn = []
    for kind, seed in _DRAWN:
        file = io.BytesIO()
        draw(kind, seed, _SIDE)[0].save(file, "PNG")
        drawn.append(_data_uri(file.getvalue()))
    return drawn


def _from_folder(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"--examples {folder}: no such folder.")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and is_image_name(path.name))
    small = [path for path in paths if path.stat().st_size <= _MAX_FILE_BYTES]
    if not small:
        raise UserError(f"--examples {folder}: no image of up to 1 MiB in it; found {len(paths)} larger ones.")
    kinds = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".gif": "gif"}
    return [_data_uri(path.read_bytes(), kinds.get(path.suffix.lower(), "png")) for path in small[:_NUM]]


def _data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
