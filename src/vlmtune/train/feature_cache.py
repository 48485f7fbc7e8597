"""Picture features of a frozen tower, computed once and kept on disk between epochs and runs.

In: a picture's digest. Out: what the connector gave for it, or, where the connector learns, what the tower gave; and
the placeholder text its prompt needs, so that a hit neither decodes nor encodes the picture. The loop asks
`open_feature_cache`, which refuses, with a reason, where features would not stay the same, or where keeping them costs
more than making them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor

from vlmtune.adapters.lora import AdapterPlan
from vlmtune.data.augment import Augmentation
from vlmtune.errors import UnreadableImageError
from vlmtune.models.images import Grid, ProcessedImage, VisionFeatures
from vlmtune.models.interface import VisionLanguageModel
from vlmtune.models.registry import OpenedModel
from vlmtune.records import ImageSource
from vlmtune.train.precision import autocast

Level = Literal["tower", "connector"]
"""Whose output is kept: the connector's is smaller and needs no more work, the tower's serves a learning connector."""

_FORMAT = 2
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_NUM_PROBES = 8
# The cache may fill this much of what is free on its disk.
_SHARE_OF_DISK = 0.5


@dataclass(frozen=True)
class Refusal:
    """Why features are not cached, in words for the log and `run.json`."""

    reason: str


@dataclass(frozen=True)
class CachedPicture:
    """What a prompt and the decoder need of a picture.

    Attributes:
        features: the connector's float[T, D] or the tower's float[P, C], of the type it was put in, on the CPU.
        text: the placeholder string of the whole picture (`ProcessedImage.text`).
        grids: of the tower's patches (`VisionFeatures.grids`); empty for the connector's output.
    """

    features: Tensor
    text: str
    grids: tuple[Grid, ...] = ()


def encode(model: VisionLanguageModel, level: Level, images: Sequence[ProcessedImage]) -> list[CachedPicture]:
    """What a cache of this level keeps of each picture, still where the model computed it."""
    if level == "connector":
        return [CachedPicture(own, image.text) for own, image in zip(model.encode_images(images), images, strict=True)]
    found = zip(model.tower_features(images), images, strict=True)
    return [CachedPicture(own.patches, image.text, own.grids) for own, image in found]


def connect(model: VisionLanguageModel, level: Level, pictures: Sequence[CachedPicture]) -> list[Tensor]:
    """From what is kept to what the decoder takes: float[T, D] of each picture."""
    if level == "connector":
        return [picture.features.to(model.device) for picture in pictures]
    return model.connect([VisionFeatures(picture.features.to(model.device), picture.grids) for picture in pictures])


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
    carries a checksum of its own. So whatever is torn by a crash is at the end of either file and is cut off when the
    cache is opened next; a record damaged later fails its checksum and is made again. Safe to use from several
    threads; a second process is refused.

    Args:
        folder: made if it is not there. A cache of other features there is thrown away.
        key: identifies what the features are of.
        level: whose output is kept; part of the key.
    """

    def __init__(self, folder: Path, key: str, level: Level = "connector") -> None:
        self.folder, self.key, self.level = folder, key, level
        self.num_repaired = 0
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._claim = _claim(folder)
        if not _has_header(folder, key):
            for name in ("header.json", "features.bin", "index.jsonl"):
                (folder / name).unlink(missing_ok=True)
            _write_atomically(folder / "header.json", json.dumps({"format": _FORMAT, "key": key}) + "\n")
        self._features = (folder / "features.bin").open("a+b")
        self._index = (folder / "index.jsonl").open("a+b")
        self._entries = self._read_index()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    @property
    def num_bytes(self) -> int:
        """Of the features kept."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def get(self, digest: str) -> CachedPicture | None:
        """What was put under a digest (`ImageSource.digest`); None if nothing was, or if it is damaged."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            content = self._read(entry)
            if zlib.crc32(content) != entry.checksum:
                # Forgotten: the caller makes it again, and its new line supersedes the old one.
                del self._entries[digest]
                self.num_repaired += 1
                return None
        features = torch.frombuffer(content, dtype=_DTYPES[entry.dtype]).view(entry.shape)
        return CachedPicture(features, entry.text, entry.grids)

    def put(self, digest: str, picture: CachedPicture) -> None:
        """Keep a picture. A second put of a digest is ignored."""
        on_cpu = picture.features.detach().to("cpu").contiguous()
        content = on_cpu.view(torch.uint8).numpy().tobytes()
        with self._lock:
            if digest in self._entries:
                return
            offset = self._features.seek(0, os.SEEK_END)
            shape = (on_cpu.shape[0], on_cpu.shape[1])
            checksum = zlib.crc32(content)
            entry = _Entry(offset, shape, str(on_cpu.dtype), checksum, picture.text, picture.grids)
            self._features.write(content)
            self._features.flush()
            self._index.write(_to_line(digest, entry))
            self._index.flush()
            self._entries[digest] = entry

    def close(self) -> None:
        """Give the folder back to other processes."""
        if self._map is not None:
            self._map.close()
            self._map = None
        for file in (self._features, self._index, self._claim):
            file.close()

    def _read(self, entry: _Entry) -> bytearray:
        end = entry.offset + entry.num_bytes
        if self._map is None or len(self._map) < end:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._features.fileno(), 0, access=mmap.ACCESS_READ)
        return bytearray(self._map[entry.offset : end])

    def _read_index(self) -> dict[str, _Entry]:
        """The entries whose line is whole and whose record is all there; both files are cut behind the last."""
        size = self._features.seek(0, os.SEEK_END)
        self._index.seek(0)
        entries: dict[str, _Entry] = {}
        good_lines = good_bytes = 0
        for line in self._index:
            found = _from_line(line)
            if found is None or found[1].offset + found[1].num_bytes > size:
                self.num_repaired += 1
                break
            entries[found[0]] = found[1]
            good_lines += len(line)
            good_bytes = max(good_bytes, found[1].offset + found[1].num_bytes)
        self._index.truncate(good_lines)
        self._features.truncate(good_bytes)
        return entries


def open_feature_cache(
    folder: Path,
    opened: OpenedModel,
    plan: AdapterPlan,
    augmentation: Augmentation,
    mode: Literal["auto", "on", "off"],
    *,
    pictures: Sequence[ImageSource] = (),
    num_epochs: float = 2.0,
    precision: str = "auto",
) -> FeatureCache | Refusal:
    """The cache of a training run, or why there is none.

    Args:
        folder: of the cache, shared by runs over the same base model.
        opened: the base model.
        plan: what learns in it.
        augmentation: what changes pictures at random.
        mode: `train.feature_cache`. ``auto`` measures on a few of the pictures whether it pays.
        pictures: those the run will learn from.
        num_epochs: how often each will be seen.
        precision: `model.dtype` of the experiment, under which the features are made.
    """
    if mode == "off":
        return Refusal("train.feature_cache is off.")
    tower, connector = (f"{plan.anatomy.towers[part]}." for part in ("vision tower", "connector"))
    learning = [name for name in plan.parameters if name.startswith(tower)]
    if learning:
        return Refusal(
            f"{len(learning)} parameters of the vision tower learn ({learning[0]}, …), so features change with every "
            "step."
        )
    connector_learns = any(name.startswith(connector) for name in plan.parameters)
    level: Level = "tower" if connector_learns else "connector"
    frozen = (tower,) if connector_learns else (tower, connector)
    if augmentation.changes:
        return Refusal(
            f"train.augment is '{augmentation.name}', which makes a new picture each time. Set it to none to cache."
        )
    try:
        cache = FeatureCache(folder / level, features_key(opened, frozen, precision), level)
    except BlockingIOError:
        return Refusal(f"another process is using {folder / level}.")
    except OSError as error:
        return Refusal(f"{folder / level} cannot be written ({error.strerror or error}).")
    refusal = _judge(cache, opened, pictures, num_epochs, precision, mode)
    if refusal is not None:
        cache.close()
        return refusal
    return cache


def features_key(opened: OpenedModel, frozen: tuple[str, ...], precision: str) -> str:
    """SHA-256 of everything features depend on but the picture: weights, preprocessing, number format."""
    digest = hashlib.sha256(f"{_FORMAT} {opened.family.name} {precision}".encode())
    for name, tensor in sorted(opened.model.state_dict().items()):
        if name.startswith(frozen):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().data)
    # The processor's own file says every setting, whatever the family.
    with tempfile.TemporaryDirectory() as folder:
        opened.processor.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.read_bytes())
    digest.update(json.dumps(opened.model.config_dict(), sort_keys=True, default=str).encode())
    digest.update(repr(opened.model.connector.shape).encode())  # which layers of the tower it reads
    return digest.hexdigest()


def _judge(
    cache: FeatureCache,
    opened: OpenedModel,
    pictures: Sequence[ImageSource],
    num_epochs: float,
    precision: str,
    mode: Literal["auto", "on"],
) -> Refusal | None:
    """Whether there is room and, for ``auto``, whether it pays. What was measured is kept in the cache."""
    known = len(cache)  # what an earlier run left
    measured = _measure(cache, opened, pictures, precision)
    if measured is None:
        return Refusal("there is no picture to measure with.") if mode == "auto" else None
    encode_s, write_s, read_s, picture_bytes = measured
    needed, free = picture_bytes * len(pictures) - cache.num_bytes, shutil.disk_usage(cache.folder).free
    if needed > _SHARE_OF_DISK * free:
        return Refusal(
            f"the features of {len(pictures)} pictures need {needed / 2**30:.1f} GiB more at {cache.folder}, where "
            f"{free / 2**30:.1f} GiB are free."
        )
    if mode == "on":
        return None
    without = num_epochs * encode_s
    new = max(0.0, 1 - known / len(pictures))
    with_cache = new * (encode_s + write_s) + (num_epochs - new) * read_s
    if with_cache >= without:
        return Refusal(
            f"it would not pay: encoding takes {encode_s * 1000:.2f} ms a picture, keeping it {write_s * 1000:.2f} ms "
            f"and reading it back {read_s * 1000:.2f} ms, with {num_epochs:g} epochs to run."
        )
    return None


def _measure(
    cache: FeatureCache, opened: OpenedModel, pictures: Sequence[ImageSource], precision: str
) -> tuple[float, float, float, int] | None:
    """Seconds a picture to encode, to write and to read (digest included), and bytes a picture."""
    readable: list[tuple[str, ProcessedImage, ImageSource]] = []
    for source in pictures[: 4 * _NUM_PROBES]:
        if len(readable) == _NUM_PROBES:
            break
        try:
            readable.append((source.digest(), opened.processor.process(source.open()), source))
        except UnreadableImageError:
            continue  # the loop counts and reports it
    if not readable:
        return None
    processed = [image for _, image, _ in readable]

    def make() -> list[CachedPicture]:
        with torch.no_grad(), autocast(opened.model.device, precision):
            return encode(opened.model, cache.level, processed)

    make()  # the first call allocates
    start = time.perf_counter()
    made = make()
    for own in made:
        own.features.cpu()  # waits for an accelerator
    encoded = time.perf_counter()
    for (digest, _, _), own in zip(readable, made, strict=True):
        cache.put(digest, own)
    written = time.perf_counter()
    for _, _, source in readable:
        found = cache.get(source.digest())
        if found is not None:
            found.features.to(opened.model.device)
    read = time.perf_counter()
    count = len(readable)
    num_bytes = sum(own.features.numel() * own.features.element_size() for own in made) // count
    return (encoded - start) / count, (written - encoded) / count, (read - written) / count, num_bytes


def _has_header(folder: Path, key: str) -> bool:
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(header == {"format": _FORMAT, "key": key})


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _claim(folder: Path) -> IO[bytes]:
    """Hold the folder for this process until the file is closed. Raises BlockingIOError where another holds it."""
    file = (folder / "lock").open("ab")
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are the user's affair there
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
