"""One column mapper for every kind of table: the same columns, the same examples, the same refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmtune.config.schema import DataSection
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.open import open_source
from vlmtune.data.read.rows import Captions, Conversations, Labels, Questions, RowMapping, read_label
from vlmtune.records import Example

pytestmark = pytest.mark.unit

TABLES: dict[str, list[dict[str, Any]]] = {
    "labels": [{"image": "a.png", "label": "cat"}, {"image": "b.png", "label": "dog"}],
    "questions": [
        {"image": "a.png", "question": "Which color?", "answer": "red", "question_id": 1},
        {"image": "b.png", "question": "How many?", "answer": "two", "question_id": 2},
    ],
    "captions": [{"image": "a.png", "caption": "a red square"}, {"image": "b.png", "caption": "two squares"}],
}


def write(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Path]:
    """The table as CSV, JSONL and parquet, with its images beside it."""
    import datasets

    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), (ord(name[0]), 0, 0)).save(folder / name)
    files = {kind: folder / f"table.{kind}" for kind in ("csv", "jsonl", "parquet")}
    with files["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files["jsonl"].write_text("\n".join(map(json.dumps, rows)))
    datasets.Dataset.from_list(rows).to_parquet(files["parquet"])
    return files


def content(example: Example) -> tuple[Any, ...]:
    return example.image.digest(), example.answers, example.question, example.answer_type


@pytest.mark.parametrize("kind", TABLES)
def test_every_file_format_gives_the_same_examples(kind: str, tmp_path: Path) -> None:
    results = []
    for file in write(tmp_path, TABLES[kind]).values():
        source = open_source(DataSection(source=str(file)), has_questions=kind != "labels")
        (read,) = source.splits.values()
        results.append([content(example) for example in read()])
    assert len(results[0]) == 2 and results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("columns", "keys", "has_questions", "expected"),
    [
        (["class", "answer"], {}, False, Labels({"label": "class"})),
        (["question", "answers"], {}, True, Questions({"question": "question", "answer": "answers"})),
        (["text", "id"], {}, True, Captions({"caption": "text", "id": "id"}, question="Describe the picture.")),
        (["messages", "question"], {}, True, Conversations({"conversation": "messages"})),
        (["messages", "question"], {"question_column": "question"}, True, Questions({"question": "question"})),
        (["Question", "caption"], {"caption_column": "caption"}, True, Captions({"caption": "caption"})),
    ],
)
def test_columns_decide_what_rows_are(
    columns: list[str], keys: dict[str, str], has_questions: bool, expected: RowMapping
) -> None:
    mapping = ColumnMapper(DataSection(**keys), has_questions).choose(columns, "here")
    assert type(mapping) is type(expected) and mapping.columns == expected.columns


@pytest.mark.parametrize(
    ("value", "class_names", "label"),
    [(" a  b ", None, "a b"), (True, None, "true"), (3, None, "3"), (3.0, None, "3"), (1, ("x", "y"), "y")],
)
def test_cells_become_labels(value: Any, class_names: tuple[str, ...] | None, label: str) -> None:
    assert read_label(value, "label", class_names) == label


@pytest.mark.parametrize(
    ("value", "class_names", "message"),
    [
        (None, None, r"the label \(column 'kind'\) is empty"),
        (float("nan"), None, "is empty"),
        (2.5, None, r"2\.5, a float .*Expected text or a whole number"),
        (float("inf"), None, "Expected text or a whole number"),
        (["a"], None, "a list"),
        (-1, ("x", "y"), "unlabeled"),
        (2, ("x", "y"), "names for 0 to 1 only"),
    ],
)
def test_cells_that_are_no_labels_are_refused(value: Any, class_names: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label(value, "kind", class_names)
