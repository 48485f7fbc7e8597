"""`vlmtune pretrain`: which file is which, what is refused, and with which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cli

CONFIGS = Path(__file__).parents[2] / "configs"


def vlmtune(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmtune.cli.main", *args], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_mistakes_in_a_two_stage_file_have_lines(tmp_path: Path) -> None:
    assert vlmtune("config", "validate", str(CONFIGS / "connector_stages.yaml"), cwd=tmp_path).returncode == 0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("align:\n  data: nowhere.jsonl\ninstruct:\n  train: {epochs: many}\n")
    for command in (["config", "validate"], ["pretrain"]):
        found = vlmtune(*command, str(wrong), cwd=tmp_path)
        assert found.returncode == 1 and "Traceback" not in found.stderr
        assert "wrong.yaml:2: align.data.source" in found.stderr
        assert "wrong.yaml:4: instruct.train.epochs" in found.stderr


def test_an_existing_run_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "runs" / "connector_stages").mkdir(parents=True)
    (tmp_path / "runs" / "connector_stages" / "notes.txt").write_text("mine")
    found = vlmtune("pretrain", str(CONFIGS / "connector_stages.yaml"), cwd=tmp_path)
    assert found.returncode == 1
    assert "the run of stage 'instruct' exists" in found.stderr and "--resume" in found.stderr
    assert not (tmp_path / "runs" / "connector_stages-align").exists()


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    found = vlmtune("pretrain", str(CONFIGS / "connector_stages.yaml"), "--resume", cwd=tmp_path)
    assert found.returncode == 1 and "there is no run to resume" in found.stderr


def test_an_experiment_s_file_is_not_a_pretraining_file(tmp_path: Path) -> None:
    found = vlmtune("pretrain", str(CONFIGS / "digits.yaml"), cwd=tmp_path)
    assert found.returncode == 1 and "data: unknown key" in found.stderr
