"""Files and folders are whole or absent; damaged JSON is reported with its path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmtune.errors import RunFolderError, UserError, WeightsError
from vlmtune.files import (
    append_json_line,
    new_file,
    new_folder,
    read_json,
    read_json_if_exists,
    read_json_lines,
    write_json,
    write_text,
)

pytestmark = pytest.mark.unit


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "deep" / "a.txt", "old")
    with pytest.raises(KeyError), new_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and names(path.parent) == ["a.txt"]


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert names(tmp_path) == ["out"] and names(target) == ["a"]


def test_failed_folder_leaves_the_older_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(KeyError), new_folder(target, replace=True) as temporary:
        (temporary / "b").write_text("half")
        raise KeyError
    assert names(tmp_path) == ["out"] and names(target) == ["a"]


def test_folder_replaces_an_older_one_and_leftovers(tmp_path: Path) -> None:
    target, leftover = tmp_path / "out", tmp_path / ".out.tmp"
    for folder in (target, leftover):
        folder.mkdir()
        (folder / "old").write_text("")
    with new_folder(target, replace=True) as temporary:
        (temporary / "new").write_text("")
    assert names(tmp_path) == ["out"] and names(target) == ["new"]


def test_folder_with_content_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"out: exists and is not empty"), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"a\.json: cannot write \(Permission denied\)"):
        write_json(tmp_path / "a.json", {})


def test_file_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.json: cannot write \(Not a directory\)|\(File exists\)"):
        write_json(tmp_path / "file" / "a.json", {})


def test_json_that_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"loss": float("nan"), "rates": (1.5, float("inf")), "name": "é"})
    assert read_json(path) == {"loss": None, "rates": [1.5, None], "name": "é"}
    assert "é" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "not readable as JSON"), ("[1]", "expected a JSON object, found list")],
)
def test_unusable_json_names_file_and_remedy(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WeightsError, match=rf"a\.json: {message}.*Download it again\."):
        read_json(path, WeightsError, "Download it again.")


def test_missing_json_may_stand_for_an_empty_object(tmp_path: Path) -> None:
    assert read_json_if_exists(tmp_path / "none.json") == {}


def test_unfinished_last_line_is_ignored_and_damage_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    for step in (1, 2):
        append_json_line(path, {"step": step, "loss": float("nan")})
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "lo')
    assert read_json_lines(path) == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]
    path.write_text('{"step\n' + whole)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:1: not readable"):
        read_json_lines(path)
