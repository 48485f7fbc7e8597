"""The original CIFAR-100 in its binary version: `train.bin`, `test.bin` and the files of names. No pickle is read.

A record is the coarse label, the fine label and 3,072 bytes of pixels: 1,024 red, green and blue ones, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html). `data.label_column` may be fine_label (the default) or coarse_label.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlmtune.data.read.columns import ColumnMapper, find_column
from vlmtune.data.read.source import Source
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.records import Example, ImageSource, clean_label

SIDE = 32
LABEL_COLUMNS = ("coarse_label", "fine_label")
"""In the order of a record's first bytes."""
RECORD_BYTES = len(LABEL_COLUMNS) + 3 * SIDE * SIDE
_SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class CifarImageSource(ImageSource):
    """Record ``record`` of the file at ``path``, as a PNG image."""

    record: int = 0

    def read(self) -> bytes:
        """The image as PNG. Raises UnreadableImageError."""
        import numpy as np
        from PIL import Image

        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                file.seek(self.record * RECORD_BYTES + len(LABEL_COLUMNS))
                pixels = file.read(3 * SIDE * SIDE)
        except OSError as error:
            raise UnreadableImageError(self.name, error.strerror or str(error)) from error
        if len(pixels) < 3 * SIDE * SIDE:
            raise UnreadableImageError(self.name, "the file ends within this record")
        planes = np.frombuffer(pixels, dtype=np.uint8).reshape(3, SIDE, SIDE)
        png = io.BytesIO()
        Image.fromarray(planes.transpose(1, 2, 0)).save(png, "PNG", compress_level=1)
        return png.getvalue()


def is_cifar_binary(folder: Path) -> bool:
    """Whether a folder holds the binary version of CIFAR-100."""
    return (folder / "train.bin").is_file() and (folder / "fine_label_names.txt").is_file()


def read_cifar_binary(folder: Path, mapper: ColumnMapper) -> Source:
    """Open the unpacked `cifar-100-binary`. Raises DataError: a file of another size, or names that are missing."""
    column = find_column("label", mapper.data.label_column or "fine_label", LABEL_COLUMNS, str(folder))
    names_file = folder / f"{column}_names.txt"
    try:
        names = [clean_label(line) for line in names_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names_file}: cannot be read ({error}). It belongs to cifar-100-binary.tar.gz.") from error
    files = {split: folder / f"{split}.bin" for split in _SPLITS if (folder / f"{split}.bin").is_file()}
    return Source(
        str(folder),
        "CIFAR-100, binary version",
        {split: partial(_examples, file, split, LABEL_COLUMNS.index(column), names) for split, file in files.items()},
        class_names=tuple(names),
    )


def _examples(file: Path, split: str, label_byte: int, names: list[str]) -> list[Example]:
    import numpy as np

    size = file.stat().st_size
    if size == 0 or size % RECORD_BYTES:
        raise DataError(
            f"{file}: {size:,} bytes, expected a multiple of {RECORD_BYTES:,} (one record). Download and unpack "
            "cifar-100-binary.tar.gz again."
        )
    labels = np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, RECORD_BYTES)[:, label_byte]
    rows = []
    for record, label in enumerate(labels.tolist()):
        origin = f"{file}, record {record}"
        if label >= len(names):
            raise DataError(f"{origin}: the label is {label}, and there are {len(names)} names. The file is damaged.")
        rows.append(
            Example(
                f"{split}/{record}",
                CifarImageSource(file, name=origin, record=record),
                (names[label],),
                origin=origin,
            )
        )
    return rows
