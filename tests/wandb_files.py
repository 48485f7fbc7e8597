"""Reads the file that W&B keeps of a run (and that `wandb sync` uploads), by its own protocol buffers."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32_768, 7
_FULL, _LAST = 1, 4


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(kind, record) of a .wandb file: LevelDB's log format after seven bytes of W&B's own.

    Raises ValueError for a record whose checksum is wrong, or a file that is none.
    """
    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is no .wandb file")
    position, record = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:  # padding at a block's end
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        body = data[position + _HEADER : position + _HEADER + length]
        if checksum != zlib.crc32(body, zlib.crc32(bytes([kind]))):
            raise ValueError(f"{path}: a damaged record at byte {position}")
        position += _HEADER + length
        record += body
        if kind in (_FULL, _LAST):
            parsed = Record()
            parsed.ParseFromString(record)
            record = b""
            name = parsed.WhichOneof("record_type")
            yield name, getattr(parsed, name)


def items(record: Any) -> dict[str, Any]:
    """The keys and values of a history or summary record."""
    entries = [*getattr(record, "item", ()), *getattr(record, "update", ())]
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}
