"""An evaluation folder reads back as written, replaces only its like, and says what is wrong with a damaged one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.synthetic_runs import answered, facts, random_table, table_of, write_evaluation
from vlmtune.errors import RunFolderError
from vlmtune.evaluate.files import Evaluation, read_evaluation, submission, thumbnail, thumbnail_rows
from vlmtune.evaluate.files import write_evaluation as write_folder
from vlmtune.evaluate.table import PredictionTable
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit


def questions(*answers: str) -> list[Example]:
    return [
        Example(str(n), ImageSource(data=b""), (answer,) * 10 if answer else (), f"{n}?", "is", None, str(n // 2))
        for n, answer in enumerate(answers, start=7)
    ]


def read_back(folder: Path, table: PredictionTable, **more: object) -> Evaluation:
    write_folder(folder, {**facts("test", table), **more}, table, {"test/000004": b"jpeg"})
    return read_evaluation(folder)


TABLES = {
    "choice": random_table(num=50, num_unreadable=3),
    "choice by arg-max": random_table(num=50, num_unreadable=3, has_probabilities=False),
    "bool": table_of(np.array([0, 1, 1]), np.array([1, 1, -1]), ("no", "yes"), "bool"),
    "score": table_of(np.array([0, 1, 2]), np.array([2, 1, -1]), ("1", "2", "3"), "score"),
    "text": answered(questions("yes", "red", ""), ["Yes.", "blue", "what"]),
    "closed list": answered(
        questions("yes", "red", "no"), ["yes", "no", None], ("yes", "no"),
        log_probs=np.log(np.array([[0.6, 0.4], [0.3, 0.7], [np.nan, np.nan]], np.float32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_folder_reads_back_as_written(tmp_path: Path, name: str) -> None:
    table = TABLES[name]
    read = read_back(tmp_path / "e", table, task={"type": table.space.type, "question_from": "data"})
    assert read.predictions.rows.equals(table.rows) and read.predictions.spaces == table.spaces
    np.testing.assert_array_equal(read.predictions.seconds, table.seconds)
    np.testing.assert_array_equal(read.predictions.score, table.score)
    if table.closed is not None:
        for field in ("labels", "truth", "prediction", "log_probs"):
            np.testing.assert_array_equal(getattr(read.predictions.closed, field), getattr(table.closed, field))
    assert read.facts["labels"] == (None if table.labels is None else list(table.labels))
    assert read.thumbnails == {"test/000004": b"jpeg"}
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_an_unreadable_image_has_no_prediction_and_no_probabilities(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", "test", random_table(num=20, num_unreadable=1), with_thumbnails=False)
    rows = pq.read_table(tmp_path / "e" / "predictions.parquet").to_pylist()
    assert rows[0]["prediction"] is None and rows[0]["log_probs"] is None and rows[0]["score"] == 0
    assert rows[0]["error"] == "truncated file" and len(rows[1]["log_probs"]) == 10


def test_the_results_file_has_every_question_once(tmp_path: Path) -> None:
    table = answered(questions("yes", "yes"), ["yes", None])
    read_back(tmp_path / "e", table, task={"type": "text", "question_from": "data"})
    found = json.loads((tmp_path / "e" / "submission.json").read_text())
    assert found == [{"question_id": 7, "answer": "yes"}, {"question_id": 8, "answer": ""}] == submission(table)
    read_back(tmp_path / "labels", random_table(num=5))
    assert not (tmp_path / "labels" / "submission.json").exists()


def test_writing_replaces_an_older_evaluation_and_nothing_else(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", "old", random_table(num=5))
    assert write_evaluation(tmp_path / "e", "new", random_table(num=7)).name == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="not an evaluation folder"):
        write_evaluation(tmp_path / "mine", "new", random_table(num=5))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_failed_write_leaves_the_older_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_evaluation(tmp_path / "e", "old", random_table(num=5))

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(RunFolderError, match="No space left"):
        write_evaluation(tmp_path / "e", "new", random_table(num=5))
    assert read_evaluation(tmp_path / "e").name == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def _damage(folder: Path, what: str) -> None:
    path = folder / "predictions.parquet"
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "column":
        pq.write_table(pq.read_table(path).drop_columns(["score"]), path)
    elif what == "label":
        found = json.loads((folder / "evaluation.json").read_text())
        (folder / "evaluation.json").write_text(json.dumps({**found, "labels": found["labels"][:-1]}))
    elif what == "key":
        (folder / "evaluation.json").write_text('{"name": "x"}')
    elif what == "json":
        (folder / "evaluation.json").write_text('{"name": ')
    elif what == "gone":
        path.unlink()
    elif what == "twice":
        rows = pq.read_table(path)
        pq.write_table(rows.take([0, 1, 1]), path)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("cut", ["predictions.parquet", "damaged"]),
        ("column", ["predictions.parquet", "no column score"]),
        ("label", ["predictions.parquet", "'nine'", "9 labels"]),
        ("key", ["evaluation.json", "missing", "labels"]),
        ("json", ["evaluation.json", "JSON"]),
        ("gone", ["predictions.parquet is missing"]),
        ("twice", ["predictions.parquet", "test/000001", "twice"]),
    ],
)
def test_damage_is_named_with_its_file(tmp_path: Path, what: str, words: list[str]) -> None:
    write_evaluation(tmp_path / "e", "test", random_table(num=40), with_thumbnails=False)
    _damage(tmp_path / "e", what)
    with pytest.raises(RunFolderError) as caught:
        read_evaluation(tmp_path / "e")
    assert all(word in str(caught.value) for word in words), caught.value


def test_thumbnails_are_of_the_surest_mistakes() -> None:
    table = random_table(num=400, skill=1.0, num_unreadable=4)
    wrong = set(np.flatnonzero(~table.correct & table.readable))
    rows = set(thumbnail_rows(table))
    assert wrong <= rows
    assert len(rows - wrong) == 20
    capped = [row for row in thumbnail_rows(table, max_wrong=10) if row in wrong]
    assert table.closed is not None and table.closed.log_probs is not None
    sure = table.closed.log_probs.max(axis=1)
    assert len(capped) == 10
    assert min(sure[capped]) >= max(sure[row] for row in wrong - set(capped))
    image = Image.open(io.BytesIO(thumbnail(Image.new("RGB", (600, 300), "red"))))
    assert (image.format, image.size) == ("JPEG", (96, 48))
