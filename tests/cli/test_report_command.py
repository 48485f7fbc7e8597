"""`vlmtune report` and `vlmtune compare` as a person runs them: results on stdout, one message on error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic_runs import demo, random_table, write_evaluation, write_run

pytestmark = pytest.mark.cli


def vlmtune(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmtune.cli.main", *map(str, args)]
    environment = {**os.environ, "COLUMNS": "140"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    demo(root, num=80)
    run = write_run(root / "run", "run", num_steps=20)
    write_evaluation(run / "evaluation" / "test-fine-tuned", "fine-tuned", random_table(num=80, skill=5, seed=9))
    return root


def test_report_prints_the_path_of_the_page(root: Path) -> None:
    done = vlmtune("report", root / "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).read_text().startswith("<!doctype html>")


def test_report_takes_a_baseline_from_elsewhere(root: Path) -> None:
    done = vlmtune("report", root / "run", "--baseline", root / "evaluation" / "baseline", "--json")
    page = json.loads(done.stdout)["report"]
    assert "baseline → fine-tuned" in Path(page).read_text()


def test_report_of_no_run_says_what_to_give(tmp_path: Path) -> None:
    done = vlmtune("report", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and "not a run folder" in done.stderr
    assert not list(tmp_path.iterdir())


def test_compare_prints_runs_and_pairs(root: Path) -> None:
    done = vlmtune("compare", *(root / "evaluation" / name for name in ("baseline", "tuned_10", "tuned_100")))
    assert (done.returncode, done.stderr) == (0, "")
    assert "baseline → tuned_100" in done.stdout
    assert "95% interval" in done.stdout
    assert "baseline → tuned_100 gained most: " in done.stdout


def test_compare_takes_runs_writes_a_report_and_prints_json(root: Path, tmp_path: Path) -> None:
    done = vlmtune("compare", root / "evaluation" / "baseline", root / "run", "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [run["name"] for run in result["runs"]] == ["baseline", "fine-tuned"]
    assert {"p_value", "p_exact", "p_holm", "flipped_to_right", "classes_lost"} <= set(result["pairs"][0])
    assert Path(result["report"]).exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root, tmp: [root / "evaluation" / "baseline"], "two or more"),
        (lambda root, tmp: [root / "evaluation" / "baseline", tmp], "not an evaluation folder"),
    ],
)
def test_compare_refuses_what_it_cannot_pair(root: Path, tmp_path: Path, make, words: str) -> None:
    done = vlmtune("compare", *make(root, tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and words in done.stderr


def test_compare_says_which_images_differ(root: Path, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "short", "short", random_table(num=75))
    done = vlmtune("compare", root / "evaluation" / "baseline", tmp_path / "short")
    assert done.returncode == 1
    assert "5 only in 'baseline'" in done.stderr and "test/000075" in done.stderr
