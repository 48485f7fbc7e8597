"""`vlmtune evaluate` shows what limited it, what it could not read, what was chosen and how far to trust it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import write_class_folders
from tests.synthetic_runs import answered, facts, random_table, write_evaluation
from tests.tiny_model import write_tiny_folder
from vlmtune.evaluate.files import write_evaluation as write_folder
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.cli


def vlmtune(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmtune.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    base, images = write_tiny_folder(root / "base"), write_class_folders(root / "images", 10)
    (images / "test" / "dax" / "000.png").write_bytes(b"no image")
    path = root / "words.yaml"
    path.write_text(f"output_dir: {root / 'runs'}\nmodel: {base}\ndata:\n  source: {images}\n")
    return path


def test_the_table_shows_choice_calibration_cost_and_unreadable_images(config: Path) -> None:
    done = vlmtune("evaluate", config, "--calibrate", "--set", "evaluate.scoring=auto")
    assert done.returncode == 0, done.stderr
    shown = ("of 30", "unreadable (counted as wrong) │ 1", "had nothing been shared", "validation accuracy", "chosen")
    assert all(words in done.stdout for words in (*shown, "temperature", "LAC sets", "APS sets")), done.stdout
    assert "limited" not in done.stdout
    assert "unreadable: test/dax/000.png (not an image" in done.stderr
    assert "the base model is evaluated" in done.stderr


def test_every_table_shows_the_limit(config: Path) -> None:
    limited = vlmtune("evaluate", config, "--limit", 12, "--set", "name=limited")
    assert "limited to" in limited.stdout and "12 images, by request" in limited.stdout
    again = vlmtune("evaluate", config, "--limit", 12, "--set", "name=again", "--json")
    folders = [Path(json.loads(again.stdout)["folder"])]
    folders.append(folders[0].parents[2] / "limited" / "evaluation" / "test-base")
    compared = vlmtune("compare", *folders, "--flips")
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.count("12 (limit)") >= 2
    assert "not the whole split: again (12), limited (12)" in compared.stderr
    assert "points" in compared.stdout
    whole = vlmtune("evaluate", config, "--limit", 1000, "--json")
    assert json.loads(whole.stdout)["data"]["limit"] is None  # it limited nothing


def test_a_contradiction_is_one_readable_error(config: Path) -> None:
    done = vlmtune("evaluate", config, "--calibrate", "--set", "evaluate.mode=argmax")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and "evaluate.calibrate" in done.stderr and "mode: full" in done.stderr


def write_answers(folder: Path, name: str, answers: list[str]) -> Path:
    examples = [
        Example(str(n), ImageSource(data=b"x", name=str(n)), ("yes",) * 10, f"Question {n}?", image_id=str(n // 2))
        for n in range(len(answers))
    ]
    table = answered(examples, answers)
    return write_folder(folder / name, facts(name, table, task={"type": "text", "question_from": "data"}), table)


def test_answers_to_questions_are_compared_by_image(tmp_path: Path) -> None:
    before = write_answers(tmp_path, "before", ["no"] * 30 + ["yes"] * 30)
    after = write_answers(tmp_path, "after", ["yes"] * 58 + ["no"] * 2)
    done = vlmtune("compare", before, after, "--flips", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["pairs"][0]["difference"] == pytest.approx(28 / 60)
    assert result["pairs"][0]["is_significant"] and result["num_images"] == 30
    assert len(result["flips"]) == 32
    assert (
        result["flips"][0] | {"question": "Question 0?", "first": "no", "second": "yes", "change": 1.0}
        == result["flips"][0]
    )
    shown = vlmtune("compare", before, after)
    assert "before → after" in shown.stdout and "+46.7" in shown.stdout
    write_evaluation(tmp_path / "labels", "labels", random_table(num=60))
    mixed = vlmtune("compare", before, tmp_path / "labels")
    assert mixed.returncode == 1 and "different examples" in mixed.stderr
