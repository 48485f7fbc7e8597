"""The files of the feature cache: written by a run, read by the next epoch and the next run. `feature_cache.py` decides
what is kept in them.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self

import torch
from torch import Tensor

from vlmtune.models.images import Grid

Level = Literal["tower", "connector"]
"""The output stored: the connector's is smaller and needs no more work, the tower's serves a learning connector."""

FORMAT = 2
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class CachedImage:
    """What a prompt and the decoder need of an image.

    Attributes:
        features: the connector's float[T, D] or the tower's float[P, C], in the type it was stored as, on the CPU.
        text: the placeholder string of the whole image (`ProcessedImage.text`).
        grids: of the tower's patches (`VisionFeatures.grids`); empty for the connector's output.
    """

    features: Tensor
    text: str
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class _Entry:
    offset: int
    shape: tuple[int, int]
    dtype: str
    checksum: int
    text: str
    grids: tuple[Grid, ...]

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * _DTYPES[self.dtype].itemsize


class FeatureCache:
    """A folder of three files: `header.json` (what the features are of), `features.bin`, `index.jsonl`.

    Records are appended to `features.bin` and only then named, with their checksum, by a line of the index, which
    carries a checksum of its own. So whatever a crash leaves torn is at the end of either file and is cut off when the
    cache is next opened; a record damaged later fails its checksum and is recomputed. Once its disk is full nothing
    more is stored. Safe to use from several threads; a second process is refused.

    Args:
        folder: created if missing. A cache of other features there is deleted.
        key: identifies the model and settings of the features.
        level: whose output is stored; part of the key.

    Attributes:
        num_repaired: torn or damaged records that were found and recomputed.
        write_error: why nothing more is stored; None while all is well.
    """

    def __init__(self, folder: Path, key: str, level: Level = "connector") -> None:
        self.folder, self.key, self.level = folder, key, level
        self.num_repaired = 0
        self.write_error: str | None = None
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._claim = claim(folder)
        if not _has_header(folder, key):
            for name in ("header.json", "features.bin", "index.jsonl"):
                (folder / name).unlink(missing_ok=True)
            _write_atomically(folder / "header.json", json.dumps({"format": FORMAT, "key": key}) + "\n")
        self._features = (folder / "features.bin").open("a+b")
        self._index = (folder / "index.jsonl").open("a+b")
        self._entries = self._read_index()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored features."""
        return sum(entry.num_bytes for entry in self._entries.values())

    @property
    def note(self) -> str:
        """What a run reports about its cache."""
        note = "image features are cached"
        if self.num_repaired:
            note += f"; {self.num_repaired} torn or damaged records were made again"
        if self.write_error is not None:
            note += f", but only {len(self)} of them: {self.folder} could not be written ({self.write_error})"
        return note

    def get(self, digest: str) -> CachedImage | None:
        """The image stored under a digest (`ImageSource.digest`); None if there is none, or it is damaged."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            content = self._read(entry)
            if zlib.crc32(content) != entry.checksum:
                # Removed from the index: the caller recomputes it, and its new line supersedes the old one.
                del self._entries[digest]
                self.num_repaired += 1
                return None
        features = torch.frombuffer(content, dtype=_DTYPES[entry.dtype]).view(entry.shape)
        return CachedImage(features, entry.text, entry.grids)

    def put(self, digest: str, image: CachedImage) -> None:
        """Store an image. A second put of a digest is ignored, and so is one after the disk is full."""
        on_cpu = image.features.detach().to("cpu").contiguous()
        content = on_cpu.view(torch.uint8).numpy().tobytes()
        with self._lock:
            if digest in self._entries or self.write_error is not None:
                return
            offset = self._features.seek(0, os.SEEK_END)
            shape = (on_cpu.shape[0], on_cpu.shape[1])
            checksum = zlib.crc32(content)
            entry = _Entry(offset, shape, str(on_cpu.dtype), checksum, image.text, image.grids)
            try:
                self._features.write(content)
                self._features.flush()
                self._index.write(_to_line(digest, entry))
                self._index.flush()
            except OSError as error:  # what is torn now is cut off when the cache is opened next
                self.write_error = error.strerror or str(error)
            else:
                self._entries[digest] = entry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder to other processes."""
        if self._map is not None:
            self._map.close()
            self._map = None
        for file in (self._features, self._index, self._claim):
            with suppress(OSError):  # of what a full disk did not take, which close() would write once more
                file.close()

    def _read(self, entry: _Entry) -> bytearray:
        end = entry.offset + entry.num_bytes
        if self._map is None or len(self._map) < end:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._features.fileno(), 0, access=mmap.ACCESS_READ)
        return bytearray(self._map[entry.offset : end])

    def _read_index(self) -> dict[str, _Entry]:
        """The entries whose line and record are complete; both files are truncated after the last."""
        size = self._features.seek(0, os.SEEK_END)
        self._index.seek(0)
        entries: dict[str, _Entry] = {}
        good_lines = good_bytes = 0
        for line in self._index:
            record = _from_line(line)
            if record is None or record[1].offset + record[1].num_bytes > size:
                self.num_repaired += 1
                break
            entries[record[0]] = record[1]
            good_lines += len(line)
            good_bytes = max(good_bytes, record[1].offset + record[1].num_bytes)
        self._index.truncate(good_lines)
        self._features.truncate(good_bytes)
        return entries


def _has_header(folder: Path, key: str) -> bool:
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(header == {"format": FORMAT, "key": key})


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def claim(folder: Path) -> IO[bytes]:
    """Hold the folder for this process until the file is closed. Raises BlockingIOError where another holds it."""
    file = (folder / "lock").open("ab")
    try:
        import fcntl
    except ImportError:  # Windows: no protection against two runs at once
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _to_line(digest: str, entry: _Entry) -> bytes:
    content = json.dumps([digest, entry.offset, *entry.shape, entry.dtype, entry.checksum, entry.text, entry.grids])
    return f"{zlib.crc32(content.encode()):08x} {content}\n".encode()


def _from_line(line: bytes) -> tuple[str, _Entry] | None:
    checksum, _, content = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(content):08x}".encode():
        return None
    digest, offset, rows, width, dtype, record, text, grids = json.loads(content)
    return digest, _Entry(offset, (rows, width), dtype, record, text, tuple((r, c) for r, c in grids))
