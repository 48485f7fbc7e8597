"""An evaluation folder reads back as written, replaces only its like, and says what is wrong with a damaged one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.synthetic_runs import facts, in_memory, make_image, random_table, write_evaluation
from vlmtune.errors import DataError, RunFolderError
from vlmtune.evaluate.compare import compare, figures_of
from vlmtune.evaluate.files import read_evaluation, thumbnail, thumbnail_rows
from vlmtune.evaluate.files import write_evaluation as write_folder
from vlmtune.evaluate.metrics import FIGURES, measure
from vlmtune.evaluate.predictions import PredictionTable, top_positions
from vlmtune.records import Prediction

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("has_probabilities", [True, False])
def test_a_folder_reads_back_as_written(tmp_path: Path, has_probabilities: bool) -> None:
    table = random_table(num=50, num_unreadable=3, has_probabilities=has_probabilities)
    written = {"test/000004": make_image(table, 4)}
    write_folder(tmp_path / "e", facts("test", table), table, written)
    found = read_evaluation(tmp_path / "e")
    assert found.facts == facts("test", table)
    assert found.thumbnails == written
    for name in PredictionTable.__slots__:
        np.testing.assert_array_equal(getattr(found.predictions, name), getattr(table, name))
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_the_parquet_file_holds_names_and_the_five_most_probable(tmp_path: Path) -> None:
    table = random_table(num=20, num_unreadable=1)
    write_evaluation(tmp_path / "e", "test", table, with_thumbnails=False)
    rows = pq.read_table(tmp_path / "e" / "predictions.parquet").to_pylist()
    assert rows[0]["prediction"] is None and rows[0]["log_probs"] is None and rows[0]["top"] == []
    best = np.argsort(-table.log_probs[1])[:5]
    assert rows[1]["top"] == [table.labels[i] for i in best]
    assert rows[1]["truth"] == table.labels[table.truth[1]]


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
        pq.write_table(pq.read_table(path).drop_columns(["truth"]), path)
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
        ("column", ["predictions.parquet", "no column truth"]),
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


def test_a_folder_of_another_version_with_less_in_it_still_has_all_its_figures(tmp_path: Path) -> None:
    table = random_table(num=60, num_unreadable=2)
    write_evaluation(tmp_path / "e", "older", table)
    path = tmp_path / "e" / "predictions.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["image", "top", "num_tokens", "error"]), path)
    (tmp_path / "e" / "timing.parquet").unlink()
    stored = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    few = {key: stored["metrics"][key] for key in ("accuracy", "num_examples", "per_class")}
    (tmp_path / "e" / "evaluation.json").write_text(json.dumps({**stored, "metrics": few}))
    found = read_evaluation(tmp_path / "e")
    assert found.predictions.num_tokens is None and found.predictions.images.tolist() == [None] * 60
    assert figures_of(found) == {**measure(table), "seconds_per_example": None}
    again = compare([found, in_memory("newer", table)])
    assert [run["accuracy"] for run in again["runs"]] == [measure(table)["accuracy"]] * 2


def test_records_become_columns_and_bad_ones_are_refused() -> None:
    good = Prediction("a", ("x",), "y", (-1.0, -0.5), 0.1)
    unread = Prediction("b", ("y",), None, error="truncated")
    table = PredictionTable.from_records([good, unread], ["x", "y"])
    assert table.prediction.tolist() == [1, -1]
    assert table.correct.tolist() == [False, False]
    assert np.isnan(table.log_probs[1]).all()
    for bad, words in [
        (Prediction("c", ("z",), "x", (-1.0, -0.5)), "truth 'z' of 'c'"),
        (Prediction("a", ("x",), "x", (-1.0, -0.5)), "'a' stands twice"),
        (Prediction("c", ("x",), "x"), "'c' has no label probabilities"),
        (Prediction("c", ("x",), "x", (-1.0,)), "1 log-probabilities for 2 labels"),
    ]:
        with pytest.raises(DataError, match=words):
            PredictionTable.from_records([good, bad], ["x", "y"])


def test_thumbnails_are_small_and_taken_of_all_mistakes_up_to_the_cap() -> None:
    table = random_table(num=400, skill=1.0, num_unreadable=4)
    wrong = set(np.flatnonzero(~table.correct & table.readable))
    rows = set(thumbnail_rows(table))
    assert wrong <= rows
    assert len(rows - wrong) == 20
    capped = [row for row in thumbnail_rows(table, max_wrong=10) if row in wrong]
    sure = table.log_probs.max(axis=1)
    assert len(capped) == 10
    assert min(sure[capped]) >= max(sure[row] for row in wrong - set(capped))
    image = Image.open(io.BytesIO(thumbnail(Image.new("RGB", (600, 300), "red"))))
    assert (image.format, image.size) == ("JPEG", (96, 48))


def test_the_list_of_figures_names_what_is_measured() -> None:
    assert set(measure(random_table(num=20))) == FIGURES


def test_top_positions_break_ties_by_label_order() -> None:
    log_probs = np.log(np.array([[0.2, 0.4, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]], dtype=np.float32))
    assert top_positions(log_probs, 2).tolist()[0][0] == 1
    assert top_positions(log_probs, 9).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]
