"""A search for real: killed and continued, trials that are runs, a best configuration that trains."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlmtune.cli.main import main
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import DataError, UserError
from vlmtune.workflows.search import run_search
from vlmtune.workflows.trial import train_trial

pytestmark = pytest.mark.e2e

SPACE = {
    "adapter.targets": [["attention"], ["attention", "mlp"]],
    "train.learning_rate": {"low": 5e-4, "high": 8e-3, "log": True},
    "train.augment": None,
}


def write(folder: Path, **changes: Any) -> Path:
    """Sixty drawn digits, a step or four a trial."""
    values = {
        "output_dir": str(folder / "runs"),
        "data": {"source": "builtin:digits", "limit": 24, "limit_validation": 30, "limit_test": 10},
        "model": {"base": "builtin:tiny", "dtype": "float32"},
        "adapter": {"targets": ["attention"]},
        "train": {"batch_size": 6, "max_steps": 4, "eval_every": 1},
        "search": {"space": SPACE},
        **changes,
    }
    path = folder / "digits.yaml"
    path.write_text(json.dumps(values))
    return path


def searched(config: Path, trials: int, jobs: int, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return vlmtune(["search", str(config), "--trials", str(trials), "--jobs", str(jobs), "--json"], capsys)


def vlmtune(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command prints as JSON; run in this process, which has torch loaded already."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def processes_of(folder: Path) -> list[int]:
    """Processes at work in the folder's logs: trials."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if str(link.readlink()).startswith(str(folder / "logs")):
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found


def test_a_killed_search_resumes_and_repeats_the_cut_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    folder = tmp_path / "runs" / "digits-search"
    command = [sys.executable, "-m", "vlmtune.cli.main", "search", str(config), "--trials", "3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not (folder / "trials" / "trial-001" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:  # a trial does not outlive its search
        time.sleep(0.1)
    assert processes_of(folder) == []
    first = (folder / "trials" / "trial-000" / "run.json").stat().st_mtime_ns

    found = searched(config, 3, 2, capsys)
    assert (folder / "trials" / "trial-000" / "run.json").stat().st_mtime_ns == first
    by_number = {trial["number"]: trial for trial in found["trials"]}
    assert sorted(by_number) == [0, 1, 2, 3]
    assert [by_number[number]["outcome"] for number in range(4)] == ["finished", "killed", "finished", "finished"]
    repeat = next(trial for trial in found["trials"] if trial["repeat_of"] == 1)
    assert repeat["point"] == by_number[1]["point"]

    best = by_number[found["best"]]
    assert best["accuracy"] == max(trial["accuracy"] for trial in found["trials"] if trial["outcome"] == "finished")
    assert found["against"]["runner_up"] != found["best"]
    assert by_number[0]["point"]["adapter.targets"] == "attention"  # the experiment as it was
    run = json.loads((Path(best["folder"]) / "run.json").read_text())
    assert run["result"]["best_accuracy"] == best["accuracy"]
    for chart in ("trials", "importance"):
        path = folder / "charts" / f"{chart}.svg"
        assert path.exists() == (chart == "trials" or bool(found["importance"]))

    # Validation decided: no trial looked at the test split.
    assert not list(folder.rglob("evaluation/test-*"))
    results = [json.loads(path.read_text()).get("result") for path in folder.rglob("run.json")]
    assert [result["test_accuracy"] for result in results if result] == [None] * 3  # the killed one has none at all

    # The best configuration is an experiment, and gives what the trial gave.
    again = load_experiment(folder / "best.yaml")
    assert again.search is None and again.name == "digits-best"
    assert vlmtune(["train", str(folder / "best.yaml"), "--json"], capsys)["best_accuracy"] == best["accuracy"]

    # The same command again has nothing left to do; more trials go on.
    assert searched(config, 3, 1, capsys)["trials"] == found["trials"]
    assert (folder / "trials" / "trial-004").exists() is False


class Verdict:
    """A trial's handle on a search that ends it at a validation."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.num_expected = 0
        self.accuracies: list[float] = []
        self.outcome: dict[str, Any] = {}

    def expect(self, num_validations: int) -> None:
        self.num_expected = num_validations

    def report(self, accuracy: float) -> bool:
        self.accuracies.append(accuracy)
        return len(self.accuracies) == self.last

    def finish(self, accuracy: float, details: dict[str, Any], *, is_pruned: bool) -> None:
        self.outcome = {"accuracy": accuracy, "is_pruned": is_pruned, **details}


@pytest.mark.parametrize(("last", "steps", "is_pruned"), [(2, 2, True), (4, 4, False)])
def test_a_trial_that_falls_behind_ends_at_once(tmp_path: Path, last: int, steps: int, is_pruned: bool) -> None:
    """And one that has come to its end anyway is not called pruned."""
    handle = Verdict(last)
    train_trial(handle, load_experiment(write(tmp_path, search=None)).model_dump())  # type: ignore[arg-type]
    assert (handle.outcome["steps"], handle.outcome["is_pruned"]) == (steps, is_pruned)
    assert handle.outcome["accuracy"] == max(handle.accuracies) and len(handle.accuracies) == last
    assert handle.outcome["loss"] > 0 and handle.num_expected == 4


def test_an_experiment_that_cannot_train_stops_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmtune.workflows.search.MOST_FAILURES_IN_A_ROW", 1)
    config = write(tmp_path, adapter={"targets": ["q_projj"]}, search={"space": {"adapter.targets": None}})
    with pytest.raises(UserError, match=r"trials failed, the last with: .*q_projj"):
        run_search(load_experiment(config), num_trials=5)
    assert not list((tmp_path / "runs").rglob("run.json"))


def test_a_search_without_validation_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate(json.loads(write(tmp_path).read_text()) | {"name": "digits"})
    monkeypatch.setattr("vlmtune.runs.prepare.load_splits", _without_validation)
    with pytest.raises(DataError, match="needs validation images"):
        run_search(experiment, num_trials=1)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.yaml"]


def _without_validation(*arguments: Any) -> Any:
    from vlmtune.data.splits import load_splits

    splits = load_splits(*arguments)
    splits.validation.clear()
    return splits
