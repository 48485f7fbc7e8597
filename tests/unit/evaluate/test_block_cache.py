"""A block cache gives records back as computed, computes only what is missing, and trusts nothing stale or torn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlmtune.errors import RunFolderError
from vlmtune.evaluate.block_cache import BlockCache
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit

EXAMPLES = [Example(f"test/{number}", ImageSource(data=b""), ("yes",)) for number in range(10)]
SCHEMA = pa.schema([("answer", pa.string()), ("scores", pa.list_(pa.float64()))])


class Worker:
    """Counts its calls; stops with an error after ``until`` examples, as a killed process does."""

    def __init__(self, until: int = 99) -> None:
        self.blocks: list[list[str]] = []
        self.left = until

    def __call__(self, block: Sequence[Example]) -> Iterator[dict[str, Any]]:
        self.blocks.append([example.id for example in block])
        for example in block:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            number = int(example.id.split("/")[1])
            yield {"answer": None if number == 3 else f"answer {number}", "scores": [number / 3, -1e-300]}


def cache(folder: Path, messages: list[str] | None = None, **key: str) -> BlockCache:
    say = (messages if messages is not None else []).append
    return BlockCache(folder / "test", {"model": "a", "task": "b", **key}, say=say, block_size=4)


def test_a_resumed_run_computes_only_unfinished_blocks(tmp_path: Path) -> None:
    whole = cache(tmp_path / "whole").run("test", EXAMPLES, Worker(), SCHEMA)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path / "cut").run("test", EXAMPLES, Worker(until=6), SCHEMA)
    rest = Worker()
    resumed = cache(tmp_path / "cut").run("test", EXAMPLES, rest, SCHEMA)
    assert rest.blocks == [[f"test/{n}" for n in range(4, 8)], ["test/8", "test/9"]]
    assert resumed.drop_columns("seconds").equals(whole.drop_columns("seconds"))
    assert resumed["scores"].to_pylist()[7] == [7 / 3, -1e-300]


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_damaged_block_is_computed_again(tmp_path: Path, harm: str) -> None:
    whole = cache(tmp_path).run("test", EXAMPLES, Worker(), SCHEMA)
    path = tmp_path / ".test.blocks" / "test-000001.parquet"
    content = bytearray(path.read_bytes())
    if harm == "bit":
        content[content.index(b"answer 4")] ^= 1
    path.write_bytes(bytes(content[: {"cut": -7, "bit": None, "empty": 0}[harm]]))
    again = Worker()
    found = cache(tmp_path).run("test", EXAMPLES, again, SCHEMA)
    assert again.blocks == [[f"test/{n}" for n in range(4, 8)]]
    assert found.drop_columns("seconds").equals(whole.drop_columns("seconds"))


def test_blocks_of_another_model_are_removed_with_a_message(tmp_path: Path) -> None:
    cache(tmp_path).run("test", EXAMPLES, Worker(), SCHEMA)
    messages: list[str] = []
    again = Worker()
    cache(tmp_path, messages, model="other").run("test", EXAMPLES, again, SCHEMA)
    assert len(again.blocks) == 3
    assert len(messages) == 1 and "another model" in messages[0] and "task" not in messages[0]
    (tmp_path / ".test.blocks" / "key.json").write_text('{"mod')
    cache(tmp_path, messages, model="other")
    assert "damaged" in messages[1]


def test_blocks_of_other_examples_are_not_used(tmp_path: Path) -> None:
    cache(tmp_path).run("test", EXAMPLES, Worker(), SCHEMA)
    again = Worker()
    other = [*EXAMPLES[:5], EXAMPLES[9], *EXAMPLES[6:9]]
    table = cache(tmp_path).run("test", other, again, SCHEMA)
    assert [block[0] for block in again.blocks] == ["test/4", "test/8"]
    assert table["id"].to_pylist() == [example.id for example in other]


def test_parts_do_not_mix_and_discarding_leaves_nothing(tmp_path: Path) -> None:
    stored = cache(tmp_path)
    stored.run("validation", EXAMPLES[:3], Worker(), SCHEMA)
    again = Worker()
    stored.run("test", EXAMPLES[:3], again, SCHEMA)
    assert len(again.blocks) == 1
    assert len(stored.run("train", [], again, SCHEMA)) == 0
    stored.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"key\.json: cannot write"):
        cache(tmp_path / "file")
