"""Checkpoints, baselines and learning curve for real, on a random model small enough for seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.images import write_class_folders
from tests.tiny_model import write_tiny_folder
from vlmtune.cli.main import main
from vlmtune.config.load import dump
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError
from vlmtune.evaluate.baselines import Baselines
from vlmtune.evaluate.files import read_evaluation
from vlmtune.files import read_json
from vlmtune.runs.layout import RunLayout
from vlmtune.workflows.learning_curve import measure_curve
from vlmtune.workflows.train import can_resume, train

pytestmark = pytest.mark.e2e


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def vlmtune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command in this process, which has torch loaded already."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str | Path) -> Done:
        capsys.readouterr()
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    root = tmp_path_factory.mktemp("experiment")
    images = write_class_folders(root / "images", 12)
    (images / "test" / "dax" / "000.png").write_bytes(b"no image")
    train = {"batch_size": 6, "learning_rate": 5e-3, "max_steps": 6, "eval_every": 2, "save_every": 2}
    return Experiment.model_validate(
        {
            "name": "run",
            "output_dir": str(root / "runs"),
            "model": {"base": str(write_tiny_folder(root / "base")), "dtype": "float32"},
            "data": {"source": str(images)},
            "train": {**train, "keep_checkpoints": 5},
        }
    )


@pytest.fixture(scope="module")
def run(experiment: Experiment) -> Path:
    return Path(train(experiment, with_base=False).run)


def facts_files(run: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (run / "checkpoint_curve").rglob("evaluation.json")}


def test_each_checkpoint_is_evaluated_once_as_evaluate_does(run: Path, vlmtune: Callable[..., Done]) -> None:
    done = vlmtune("checkpoints", run, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [point["step"] for point in found["checkpoints"]] == [2, 4, 6]
    by_training = {line["step"]: line["accuracy"] for line in found["during_training"]}
    assert {point["step"]: point["accuracy"] for point in found["checkpoints"]} == by_training
    alone = vlmtune(
        "evaluate",
        run,
        "--checkpoint",
        RunLayout(run).list_checkpoints()[1],
        "--set",
        "evaluate.split=validation",
        "--json",
    )
    assert json.loads(alone.stdout)["metrics"]["nll"] == pytest.approx(found["checkpoints"][1]["nll"], abs=1e-5)
    assert 'id="checkpoints"' in (run / "report.html").read_text()

    before = facts_files(run)
    again = vlmtune("checkpoints", run)
    assert "3 of 3 checkpoints are evaluated already" in again.stderr
    assert facts_files(run) == before
    assert "best" in again.stdout

    last = RunLayout(run).list_checkpoints()[-1]
    os.utime(last / "adapter_model.safetensors")  # as if it had been trained again
    assert "2 of 3 checkpoints are evaluated already" in vlmtune("checkpoints", run).stderr
    changed = {name for name, time in facts_files(run).items() if time != before[name]}
    assert changed == {f"validation-{last.name}"}


def test_checkpoints_on_test_warn_and_need_a_run(run: Path, tmp_path: Path, vlmtune: Callable[..., Done]) -> None:
    done = vlmtune("checkpoints", run, "--split", "test", "--limit", "6")
    assert done.returncode == 0, done.stderr
    assert "Choose on validation" in done.stderr and "(limit)" in done.stdout
    no_run = vlmtune("checkpoints", tmp_path)
    assert no_run.returncode == 1 and "not a run folder" in no_run.stderr
    (tmp_path / "config.yaml").write_text("data: builtin:digits\n")
    refused = vlmtune("checkpoints", tmp_path)
    assert refused.returncode == 1 and "no checkpoint yet" in refused.stderr


def test_baselines_are_evaluations_that_compare_takes(run: Path, vlmtune: Callable[..., Done]) -> None:
    done = vlmtune("baselines", run, "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["key"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {"majority", "prompt-only-tuned", "prompt-only", "base", "neighbors", "linear-probe"}
    # Squares of three colors: any features tell them apart; the image that cannot be read counts as wrong.
    assert rows["linear-probe"]["num_correct"] == 35 and rows["linear-probe"]["num_unreadable"] == 1
    assert rows["majority"]["accuracy"] == pytest.approx(1 / 3)
    gray = read_evaluation(run / rows["prompt-only"]["folder"]).predictions
    assert len({answer for answer in gray.texts("prediction") if answer is not None}) == 1
    compared = vlmtune("compare", run / rows["majority"]["folder"], run / rows["linear-probe"]["folder"], "--json")
    assert json.loads(compared.stdout)["pairs"][0]["is_significant"]
    page = (run / "report.html").read_text()
    assert 'id="baselines"' in page and "vlmtune baselines" not in page


def test_a_report_says_which_command_would_measure_what_is_missing(experiment: Experiment, tmp_path: Path) -> None:
    own = experiment.model_copy(update={"output_dir": str(tmp_path)}, deep=True)
    run = Path(train(own, with_base=False).run)
    assert f"vlmtune baselines {run}" in (run / "report.html").read_text()


def test_baselines_need_images(experiment: Experiment, run: Path) -> None:
    with pytest.raises(DataError, match="training and test images"):
        Baselines(run, experiment.task, Splits([], [], [], None), [], {})


def test_a_killed_learning_curve_ends_the_same(experiment: Experiment, tmp_path: Path) -> None:
    own = experiment.model_copy(update={"output_dir": str(tmp_path)}, deep=True)
    expected, page = measure_curve(own, [0.5, 1.0], [0])
    first, second = (tmp_path / "run-learning-curve" / f"fraction-{share}-seed-0" for share in ("0.5", "1"))
    before = (first / "run.json").stat().st_mtime_ns
    # As a kill between steps 4 and 6 of the second run leaves it.
    shutil.rmtree(second / "evaluation")
    shutil.rmtree(RunLayout(second).list_checkpoints()[-1])
    described = read_json(second / "run.json")
    del described["result"]
    (second / "run.json").write_text(json.dumps({**described, "finished": None}))
    page.unlink()
    base = tmp_path / "run-learning-curve" / "evaluation" / "test-base" / "evaluation.json"
    base.write_text(json.dumps({**read_json(base), "data": {"fingerprint": "of other images"}}))

    found, page = measure_curve(own, [0.5, 1.0], [0])
    assert (first / "run.json").stat().st_mtime_ns == before
    assert [[run["accuracy"] for run in point["runs"]] for point in found["points"]] == [
        [run["accuracy"] for run in point["runs"]] for point in expected["points"]
    ]
    assert [point["num_train"] for point in found["points"]] == [16, 32]
    assert read_json(base)["data"]["fingerprint"] != "of other images"
    assert page.exists() and read_json(page.with_suffix(".json"))["num_planned"] == 2
    assert len(list(page.parent.glob("fraction-*/report.html"))) == 2

    # Killed before its first checkpoint, a run has nothing to go on from.
    shutil.rmtree(second / "checkpoints")
    assert not can_resume(second) and not second.exists()
    assert can_resume(first)


def test_the_learning_curve_command_reads_several_fractions_after_one_option(
    experiment: Experiment, tmp_path: Path, vlmtune: Callable[..., Done]
) -> None:
    config = tmp_path / "colors.yaml"
    short = experiment.model_copy(update={"output_dir": str(tmp_path / "runs"), "name": None}, deep=True)
    short.train.max_steps = 2
    config.write_text(dump(short))
    done = vlmtune("learning-curve", config, "--fractions", "0.5", "1.0", "--seeds", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [point["fraction"] for point in found["points"]] == [0.5, 1.0]
    assert found["page"] == str(tmp_path / "runs" / "colors-learning-curve" / "learning_curve.html")
    for arguments, words in ((["--fractions", "0.5", "2"], "found 2"), (["0.5"], "without --fractions")):
        refused = vlmtune("learning-curve", config, *arguments)
        assert refused.returncode == 1 and words in refused.stderr
