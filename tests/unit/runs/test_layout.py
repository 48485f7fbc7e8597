"""A run is found by its layout, from the folder itself or from one of its checkpoints; its record survives JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmtune.errors import RunFolderError
from vlmtune.files import read_json
from vlmtune.runs.layout import RunLayout, layout_of
from vlmtune.runs.record import Progress, RunRecord, RunResult, read_record, read_record_if_exists

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    run = RunLayout(tmp_path / "run")
    for folder in (run.checkpoint(20), run.checkpoint(3), run.average(10), run.average(2), run.evaluations):
        folder.mkdir(parents=True)
    run.config.write_text("")
    return run


def test_run_is_found_from_itself_and_its_checkpoints(run: RunLayout) -> None:
    run.best.symlink_to(run.checkpoint(20))
    for folder in (run.path, run.checkpoint(3), run.average(2), run.best):
        found = layout_of(folder)
        assert found is not None and found.path == run.path.resolve()
    for folder in (run.evaluations, run.checkpoints, run.path.parent):
        assert layout_of(folder) is None


def test_adapter_with_a_foreign_config_is_no_run(run: RunLayout) -> None:
    (run.path / "adapter_config.json").write_text("{}")
    assert not run.is_run and layout_of(run.path) is None


def test_checkpoints_are_listed_by_number_and_unfinished_ones_left_out(run: RunLayout) -> None:
    (run.checkpoints / ".step-000004.tmp").mkdir()
    assert run.list_checkpoints() == [run.checkpoint(3), run.checkpoint(20)]
    assert run.list_averages() == [run.average(2), run.average(10)]


def test_record_reads_back_as_written(run: RunLayout) -> None:
    record = RunRecord(name="run", labels=["a"], progress=Progress(step=3, history=[(3, 0.5)]))
    record.result = RunResult(str(run.path), 3, 1.5, False, 0.5, 3)
    record.write(run)
    assert read_record(run.path) == record
    assert read_json(run.record)["result"]["best_accuracy"] == 0.5


def test_missing_record_is_an_error_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run\.json: no such file"):
        read_record(tmp_path)
    assert read_record_if_exists(tmp_path) == RunRecord()
