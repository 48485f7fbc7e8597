"""A journal gives the records back as they were made, does only what is missing, and trusts nothing stale or torn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlmtune.errors import RunFolderError
from vlmtune.evaluate.block_cache import Journal
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


def journal(folder: Path, said: list[str] | None = None, **key: str) -> Journal:
    return Journal(
        folder / "test", {"model": "a", "task": "b", **key}, say=(said if said is not None else []).append, block_size=4
    )


def test_an_interrupted_run_does_only_the_unfinished_blocks_and_ends_with_the_same_records(tmp_path: Path) -> None:
    whole = journal(tmp_path / "whole").run("test", EXAMPLES, Worker(), SCHEMA)
    with pytest.raises(KeyboardInterrupt):
        journal(tmp_path / "cut").run("test", EXAMPLES, Worker(until=6), SCHEMA)
    rest = Worker()
    resumed = journal(tmp_path / "cut").run("test", EXAMPLES, rest, SCHEMA)
    assert rest.blocks == [[f"test/{n}" for n in range(4, 8)], ["test/8", "test/9"]]
    assert resumed.drop_columns("seconds").equals(whole.drop_columns("seconds"))
    assert resumed["scores"].to_pylist()[7] == [7 / 3, -1e-300]


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_damaged_block_is_done_again(tmp_path: Path, harm: str) -> None:
    whole = journal(tmp_path).run("test", EXAMPLES, Worker(), SCHEMA)
    path = tmp_path / ".test.journal" / "test-000001.parquet"
    content = bytearray(path.read_bytes())
    if harm == "bit":
        content[content.index(b"answer 4")] ^= 1
    path.write_bytes(bytes(content[: {"cut": -7, "bit": None, "empty": 0}[harm]]))
    again = Worker()
    found = journal(tmp_path).run("test", EXAMPLES, again, SCHEMA)
    assert again.blocks == [[f"test/{n}" for n in range(4, 8)]]
    assert found.drop_columns("seconds").equals(whole.drop_columns("seconds"))


def test_a_journal_of_another_model_is_removed_with_a_message(tmp_path: Path) -> None:
    journal(tmp_path).run("test", EXAMPLES, Worker(), SCHEMA)
    said: list[str] = []
    again = Worker()
    journal(tmp_path, said, model="other").run("test", EXAMPLES, again, SCHEMA)
    assert len(again.blocks) == 3
    assert len(said) == 1 and "another model" in said[0] and "task" not in said[0]
    (tmp_path / ".test.journal" / "key.json").write_text('{"mod')
    journal(tmp_path, said, model="other")
    assert "damaged" in said[1]


def test_blocks_of_other_examples_are_not_taken(tmp_path: Path) -> None:
    journal(tmp_path).run("test", EXAMPLES, Worker(), SCHEMA)
    again = Worker()
    other = [*EXAMPLES[:5], EXAMPLES[9], *EXAMPLES[6:9]]
    table = journal(tmp_path).run("test", other, again, SCHEMA)
    assert [block[0] for block in again.blocks] == ["test/4", "test/8"]
    assert table["id"].to_pylist() == [example.id for example in other]


def test_parts_do_not_mix_and_discarding_leaves_nothing(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    kept.run("validation", EXAMPLES[:3], Worker(), SCHEMA)
    again = Worker()
    kept.run("test", EXAMPLES[:3], again, SCHEMA)
    assert len(again.blocks) == 1
    assert len(kept.run("train", [], again, SCHEMA)) == 0
    kept.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"Cannot write .*key\.json"):
        journal(tmp_path / "file")
