"""`vlmtune evaluate` shows what limited it, what it could not read, what was chosen and how far to trust it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import write_class_folders
from tests.tiny_model import write_tiny_folder

pytestmark = pytest.mark.cli


def vlmtune(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmtune.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    base, pictures = write_tiny_folder(root / "base"), write_class_folders(root / "pictures", 10)
    (pictures / "test" / "dax" / "000.png").write_bytes(b"no picture")
    path = root / "words.yaml"
    path.write_text(f"output_dir: {root / 'runs'}\nmodel: {base}\ndata:\n  source: {pictures}\n")
    return path


def test_the_table_tells_choice_calibration_cost_and_what_is_unreadable(config: Path) -> None:
    done = vlmtune("evaluate", config, "--calibrate", "--set", "evaluate.scoring=auto")
    assert done.returncode == 0, done.stderr
    shown = ("of 30", "unreadable (counted as wrong) │ 1", "had nothing been shared", "validation accuracy", "chosen")
    assert all(words in done.stdout for words in (*shown, "temperature", "LAC sets", "APS sets")), done.stdout
    assert "limited" not in done.stdout
    assert "unreadable: test/dax/000.png (not a picture" in done.stderr
    assert "the base model is evaluated" in done.stderr


def test_a_limit_stands_in_every_table_of_evaluate_and_compare(config: Path) -> None:
    limited = vlmtune("evaluate", config, "--limit", 12, "--set", "name=limited")
    assert "limited to" in limited.stdout and "12 pictures, by request" in limited.stdout
    again = vlmtune("evaluate", config, "--limit", 12, "--set", "name=again", "--json")
    folders = [Path(json.loads(again.stdout)["folder"])]
    folders.append(folders[0].parents[2] / "limited" / "evaluation" / "test-base")
    compared = vlmtune("compare", *folders, "--flips")
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.count("12 (limit)") >= 2
    assert "not the whole split: again (12), limited (12)" in compared.stderr
    assert "became" in compared.stdout
    whole = vlmtune("evaluate", config, "--limit", 1000, "--json")
    assert json.loads(whole.stdout)["data"]["limit"] is None  # it limited nothing


def test_a_contradiction_is_one_readable_error(config: Path) -> None:
    done = vlmtune("evaluate", config, "--calibrate", "--set", "evaluate.mode=argmax")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and "evaluate.calibrate" in done.stderr and "mode: full" in done.stderr
