"""Question tasks on the command line: data check, evaluate, compare and predict on a miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vqa_sets import NUM_QUESTIONS, write_official

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("work")
    write_official(root / "vqa", {"train2014": 4, "val2014": 4, "test2015": 2})
    (root / "mini.yaml").write_text(
        "data: {source: vqa, train_split: train, test_split: validation}\ntask: {type: text, max_answer_tokens: 4}\n"
    )
    return root


def run(workplace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmtune.cli.main", *arguments], cwd=workplace, capture_output=True, text=True
    )


def test_data_check_counts_images_and_questions(workplace: Path) -> None:
    found = run(workplace, "data", "check", "mini.yaml", "--json")
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["num_questions"] == 8 * NUM_QUESTIONS and report["num_images"] == 8


def test_evaluations_of_questions_are_compared_and_leave_a_results_file(workplace: Path) -> None:
    for name, tokens in (("first", 4), ("second", 1)):
        done = run(
            workplace, "evaluate", "mini.yaml", "--checkpoint", "base", "--set", f"output_dir={name}",
            "--set", f"task.max_answer_tokens={tokens}",
        )  # fmt: skip
        assert done.returncode == 0 and "official accuracy" in done.stdout, done.stderr
    folders = [f"{name}/mini/evaluation/test-base" for name in ("first", "second")]
    assert len(json.loads((workplace / folders[0] / "submission.json").read_text())) == 4 * NUM_QUESTIONS
    compared = run(workplace, "compare", *folders, "--json")
    assert compared.returncode == 0, compared.stderr
    (pair,) = json.loads(compared.stdout)["pairs"]
    assert pair["num_better"] + pair["num_worse"] <= 4 * NUM_QUESTIONS and "difference_interval" in pair


def test_unknown_answers_give_a_file_for_the_server(workplace: Path) -> None:
    done = run(workplace, "evaluate", "mini.yaml", "--checkpoint", "base", "--set", "data.test_split=test")
    assert done.returncode == 0 and "submission.json is the results file" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["task.type=choice", "task.question_from=data", "task.labels=['yes', 'no', '2']", "task.max_answer_tokens=32"],
    ],
)
def test_baselines_of_questions_are_measured_and_the_rest_named(workplace: Path, keys: list[str]) -> None:
    changes = [part for key in keys for part in ("--set", key)]
    done = run(workplace, "baselines", "mini.yaml", "--set", f"name=baselines-{len(keys)}", *changes)
    assert done.returncode == 0, done.stderr
    assert "Most frequent answer" in done.stdout and "k-NN on vision features: not measured" in done.stdout


def test_one_image_one_question(workplace: Path) -> None:
    image = next((workplace / "vqa" / "val2014").iterdir())
    done = run(workplace, "predict", "builtin:tiny", str(image), "--question", "What color is the background?")
    assert done.returncode == 0 and image.name in done.stdout, done.stderr


def test_a_closed_list_limits_what_is_answered(workplace: Path) -> None:
    done = run(workplace, "train", "mini.yaml", "--set", "name=closed", "--set", "task.labels=['yes', 'no', '2']",
               "--set", "task.type=choice", "--set", "task.question_from=data",
               "--set", "task.max_answer_tokens=32",
               "--set", "train.max_steps=1", "--set", "adapter.targets=[q_proj]")  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = str(next((workplace / "vqa" / "val2014").iterdir()))
    done = run(workplace, "predict", "runs/closed", image, "--question", "Is it red?", "--json")
    (result,) = json.loads(done.stdout)
    assert set(result["probabilities"]) == {"yes", "no", "2"} and result["label"] in result["probabilities"]
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    done = run(workplace, "predict", "runs/closed", image)
    assert done.returncode == 1 and "trained to answer questions" in done.stderr and not done.stdout


def test_a_bad_row_is_one_message_with_its_place(workplace: Path) -> None:
    table = workplace / "asked.csv"
    table.write_text("image,question,answer\nvqa/missing.jpg,What?,red\n")
    done = run(workplace, "data", "check", "mini.yaml", "--set", "data.source=asked.csv",
               "--set", "data.train_split=null", "--set", "data.test_split=null")  # fmt: skip
    assert done.returncode == 1 and "asked.csv, line 2: there is no image file" in done.stderr
    assert "Traceback" not in done.stderr
