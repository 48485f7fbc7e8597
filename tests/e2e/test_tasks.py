"""Each type of question is trained, validated and checked before training, on a data set of a few images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_model import write_tiny_folder
from vlmtune.config.schema import Experiment
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.prepare import load_data, open_base
from vlmtune.tasks.validation import Validation
from vlmtune.train.loop import Trainer
from vlmtune.train.preflight import preflight

pytestmark = pytest.mark.e2e

LEVELS = ["new", "light", "heavy", "broken"]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {"type": "choice"},
    "choice of the data": {"type": "choice", "question_from": "data"},
    "bool": {"type": "bool", "user_prompt": "Is it dark?"},
    "bool of the data": {"type": "bool", "question_from": "data"},
    "score": {"type": "score", "levels": LEVELS, "user_prompt": "How worn is it?"},
    "text": {"type": "text", "question_from": "prompt", "max_answer_tokens": 3},
    "text of the data": {"type": "text", "max_answer_tokens": 3},
}
COLUMNS = {"choice": "color", "bool": "dark", "score": "wear", "text": "caption"}
CLOSED = [name for name, task in TASKS.items() if task["type"] != "text"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares in eight shades, with an answer of each type."""
    root = tmp_path_factory.mktemp("squares")
    with (root / "squares.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "question", "color", "dark", "wear", "caption"])
        for number in range(40):
            level = number % 4
            Image.new("RGB", (32, 32), (60 * level, 255 - 60 * level, number)).save(root / f"{number}.png")
            color, dark = ("green", "red")[level > 1], ("TRUE", "False")[level % 2]
            row = [
                f"{number}.png",
                f"Is it {('big', 'odd')[number % 2]}?",
                color,
                dark,
                LEVELS[level],
                f"a {color} one",
            ]
            writer.writerow(row)
    return root / "squares.csv"


def start(base: Path, table: Path, output: Path, task: dict[str, Any], **train: Any) -> tuple[Trainer, RunFolder]:
    column = COLUMNS[task["type"]]
    key = (
        "answer_column"
        if task.get("question_from", "data" if task["type"] == "text" else "") == "data"
        else "label_column"
    )
    experiment = Experiment.model_validate(
        {
            "name": "run",
            "output_dir": str(output),
            "model": {"base": str(base), "dtype": "float32", "do_image_splitting": False},
            "data": {"source": str(table), key: column},
            "task": task,
            "train": {"batch_size": 4, "max_steps": 2, "eval_every": 2, "save_every": 2, **train},
        }
    )
    resolved, splits = load_data(experiment)
    folder = RunFolder.claim(resolved, resume=False)
    folder.begin(resolved)
    return Trainer(resolved, open_base(resolved.model), splits), folder


@pytest.mark.parametrize("name", TASKS)
def test_every_type_trains_and_validates(base: Path, table: Path, tmp_path: Path, name: str) -> None:
    trainer, folder = start(base, table, tmp_path, TASKS[name])
    preflight(trainer).raise_errors()
    progress = trainer.run(folder)
    assert progress.step == 2
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    (measured,) = [line for line in lines if line["kind"] == "validation"]
    assert 0 <= measured["accuracy"] <= 1
    assert (measured["loss"] is not None) == (name in CLOSED)
    assert ("level_distance" in measured) == (name == "score")


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1, "class_weights": "balanced"}, {"sampling": "balanced", "mixup": 0.4}],
    ids=["weighted", "mixed"],
)
def test_every_closed_type_takes_the_options_of_labels(
    base: Path, table: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    trainer, folder = start(base, table, tmp_path, TASKS[name], **options)
    assert trainer.run(folder).step == 2


def test_a_bool_is_no_or_yes_whatever_the_data_writes(base: Path, table: Path, tmp_path: Path) -> None:
    trainer, _ = start(base, table, tmp_path, TASKS["bool"])
    assert trainer.splits.labels is not None and trainer.splits.labels.stored == ("no", "yes")
    assert {example.label for example in trainer.splits.train} == {"no", "yes"}


def test_levels_keep_the_order_that_they_are_given_in(base: Path, table: Path, tmp_path: Path) -> None:
    trainer, _ = start(base, table, tmp_path, TASKS["score"])
    assert trainer.splits.labels is not None and list(trainer.splits.labels.stored) == LEVELS
    assert isinstance(trainer.validator and trainer.validator.measure(), Validation)
