"""Finished blocks of an evaluation on disk: a killed evaluation resumes where it stopped, with identical results.

In: examples, and a function from a block of them to one record each. Out: all records as one Arrow table. Every
evaluation of a whole split runs through here. No torch.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from vlmtune.files import new_file, write_json
from vlmtune.records import Example

BLOCK_SIZE = 256
"""Examples in a block: at most this many are repeated after an interruption."""
_KEY_FILE = "key.json"

Work = Callable[[Sequence[Example]], Iterable[Mapping[str, Any]]]


class Progress(Protocol):
    """Receives the progress of an evaluation; `cli.console.ProgressBar` is one."""

    def start_at(self, done: float) -> None: ...

    def advance(self, num: float = 1) -> None: ...

    def message(self, text: str) -> None: ...


Watch = Callable[[str, int], AbstractContextManager[Progress]]
"""(description, number of examples) -> the progress of that part."""


class _Silent:
    def start_at(self, done: float) -> None: ...

    def advance(self, num: float = 1) -> None: ...

    def message(self, text: str) -> None: ...


def unwatched(description: str, total: int) -> AbstractContextManager[Progress]:
    """A `Watch` that shows nothing."""
    return nullcontext(_Silent())


class BlockCache:
    """A folder beside the evaluation with its key and one parquet file for each finished block.

    A block is always one call of the work function on the same examples, however often the evaluation was
    interrupted, so batches are the same and results are bit-identical. A block's file is renamed into place
    when it is whole; one with a wrong checksum is computed again.

    Args:
        evaluation: the folder that the evaluation will be written to.
        key: everything records depend on besides the examples: model, task, mode… Blocks with another key
            are removed.
        say: called with the reason when older blocks are removed.
        block_size: rounded up to whole batches by the caller, where the batch size is known.
    """

    def __init__(
        self,
        evaluation: Path,
        key: Mapping[str, Any],
        *,
        say: Callable[[str], None] = lambda text: None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.folder = evaluation.with_name(f".{evaluation.name}.blocks")
        self.block_size = block_size
        key = json.loads(json.dumps({**key, "block_size": block_size}))
        stored = _read_key(self.folder / _KEY_FILE)
        if self.folder.exists() and stored != key:
            changed = sorted(name for name in {*key, *(stored or {})} if (stored or {}).get(name) != key.get(name))
            why = "it is damaged" if stored is None else f"it was made with another {', '.join(changed)}"
            say(f"{self.folder}: the unfinished evaluation there cannot be resumed ({why}). Starting over.")
            self.discard()
        write_json(self.folder / _KEY_FILE, key)

    def run(
        self,
        part: str,
        examples: Sequence[Example],
        work: Work,
        schema: pa.Schema,
        watch: Watch = unwatched,
        description: str | None = None,
    ) -> pa.Table:
        """The records of all examples: stored ones are reused, the others computed and stored.

        Args:
            part: names these records within the evaluation: a split, for instance.
            examples: in the order that decides the blocks.
            work: called with one block; yields one record per example, in order.
            schema: of a record, ``id`` and ``seconds`` aside.
            watch: shows the progress, under ``description`` (default: the part).

        Returns:
            Columns ``id``, those of the schema, and ``seconds``: float32, each image's share of its block's time.

        Raises:
            RunFolderError: the disk is full or not writable.
        """
        whole = pa.schema([pa.field("id", pa.string()), *schema, pa.field("seconds", pa.float32())])
        blocks = [examples[start : start + self.block_size] for start in range(0, len(examples), self.block_size)]
        names = [f"{part}-{number:06d}.parquet" for number in range(len(blocks))]
        tables = [self._read(name, block, whole) for name, block in zip(names, blocks, strict=True)]
        num_done = sum(len(table) for table in tables if table is not None)
        with watch(description or part, len(examples)) as progress:
            if num_done:
                progress.start_at(num_done)
                progress.message(f"{num_done} of {len(examples)} images were finished before an interruption.")
            for number, (name, block) in enumerate(zip(names, blocks, strict=True)):
                if tables[number] is None:
                    tables[number] = table = _table(block, work, whole, progress)
                    with new_file(self.folder / name) as path:
                        pq.write_table(table, path, write_page_checksum=True)
        return pa.concat_tables([table for table in tables if table is not None] or [whole.empty_table()])

    def discard(self) -> None:
        """Remove the blocks: the evaluation is written, or they cannot be used."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str, block: Sequence[Example], schema: pa.Schema) -> pa.Table | None:
        path = self.folder / name
        try:
            table = pq.read_table(path, schema=schema, page_checksum_verification=True)
        except (OSError, pa.ArrowException):  # not there, or damaged
            return None
        return table if table["id"].to_pylist() == [example.id for example in block] else None


def _table(block: Sequence[Example], work: Work, schema: pa.Schema, progress: Progress) -> pa.Table:
    started = time.perf_counter()
    records = []
    for example, record in zip(block, work(block), strict=True):
        records.append({"id": example.id, **record})
        progress.advance()
    share = (time.perf_counter() - started) / len(block)
    return pa.Table.from_pylist([{**record, "seconds": share} for record in records], schema=schema)


def _read_key(path: Path) -> dict[str, Any] | None:
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return key if isinstance(key, dict) else None
