"""Images to try on the page: digits where the model reads digits, else scenes of the built-in question set."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from random import Random

from vlmtune.data.drawn.scenes import compose_scene
from vlmtune.data.read.builtin import DIGITS, read_digits
from vlmtune.data.read.image_folder import is_image_name
from vlmtune.errors import UserError

_NUM = 6
_MAX_FILE_BYTES = 2**20


def example_images(labels: Sequence[str] | None, folder: Path | None = None) -> list[str]:
    """Up to six data URIs.

    Args:
        labels: the model's labels.
        folder: the user's images, in order of name. Raises UserError if it has none.
    """
    if folder is not None:
        return _from_folder(folder)
    if labels is not None and set(labels) <= set(DIGITS):
        rows = read_digits().splits["all"]()
        return [_data_uri(next(row.image.read() for row in rows[number * 40 :] if row.answers[0] == label))
                for number, label in enumerate(labels[:_NUM])]  # fmt: skip
    scenes = []
    for number in range(_NUM):
        file = io.BytesIO()
        compose_scene(Random(f"example {number}")).draw().save(file, "PNG")
        scenes.append(_data_uri(file.getvalue()))
    return scenes


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
