"""Folders that are no runs are refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.synthetic_runs import random_table, write_evaluation
from vlmtune.errors import RunFolderError
from vlmtune.report.render import render
from vlmtune.report.sources import evaluation_folder

pytestmark = pytest.mark.unit


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        render(tmp_path)


def test_run_stands_for_its_newest_test_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    with pytest.raises(RunFolderError, match="no evaluation yet"):
        evaluation_folder(tmp_path / "run")
    write_evaluation(folder / "test-x", "x", random_table(num=20))
    assert evaluation_folder(tmp_path / "run") == folder / "test-x" == evaluation_folder(folder / "test-x")
