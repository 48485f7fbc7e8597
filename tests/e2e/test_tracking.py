"""Runs that are tracked for real: they equal untracked ones, and leave what `wandb sync` would upload."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.images import write_class_folders
from tests.tiny_model import write_tiny_folder
from tests.wandb_files import items, read_records
from vlmtune.cli.console import ConsoleObserver
from vlmtune.config.schema import Experiment
from vlmtune.train import tracking
from vlmtune.workflows.train import train

pytestmark = pytest.mark.e2e

MEASURED = ("seconds", "samples_per_s")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tracked")
    write_tiny_folder(root / "base")
    write_class_folders(root / "images", 12)
    return root


def experiment(root: Path, name: str, **tracking: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": name,
            "output_dir": str(root / "runs"),
            "model": {"base": str(root / "base"), "dtype": "float32"},
            "data": {"source": str(root / "images")},
            "train": {"batch_size": 6, "learning_rate": 5e-3, "max_steps": 6, "eval_every": 2, "save_every": 2},
            "tracking": tracking or None,
        }
    )


@pytest.fixture(scope="module")
def plain(root: Path) -> Path:
    return Path(train(experiment(root, "plain"), with_base=False).run)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_equal_runs(first: Path, second: Path) -> None:
    assert metrics(first) == metrics(second)
    one, other = (load_file(run / "checkpoints/step-000006/adapter_model.safetensors") for run in (first, second))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def wandb_files(run: Path) -> list[Path]:
    return sorted(path for path in (run / "wandb").glob("offline-run-*/*.wandb"))


def test_an_offline_run_keeps_figures_report_and_id(root: Path, plain: Path) -> None:
    wanted = experiment(root, "offline", to=["wandb", "tensorboard"], project="squares", mode="offline")

    def stop(trainer: object, report: Any) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, with_base=False, on_step=stop)
    run = Path(train(wanted, with_base=False, resume=True).run)
    assert_equal_runs(plain, run)

    first, second = ([*read_records(path)] for path in wandb_files(run))
    begun = [next(record for kind, record in records if kind == "run") for records in (first, second)]
    stored = json.loads((run / "tracking.json").read_text())["wandb"]
    assert [record.run_id for record in begun] == [stored, stored]
    assert begun[0].project == "squares" and begun[0].display_name == "offline"
    config = {entry.key: json.loads(entry.value_json) for entry in begun[0].config.update}
    assert config["train"]["max_steps"] == 6 and config["adapter"]["rank"] == 16

    told = [items(record) for records in (first, second) for kind, record in records if kind == "history"]
    losses = {line["step"]: line["train/loss"] for line in told if "train/loss" in line}
    assert losses == {line["step"]: line["loss"] for line in metrics(run) if line["kind"] == "train"}
    accuracies = {line["step"]: line["validation/accuracy"] for line in told if "validation/accuracy" in line}
    assert accuracies == {line["step"]: line["accuracy"] for line in metrics(run) if line["kind"] == "validation"}

    (report,) = (record for kind, record in second if kind == "artifact")
    assert report.type == "report"
    names = {entry.path for entry in report.manifest.contents}
    assert {"report.html", "report.md", "config.yaml", "metrics.jsonl", "charts/loss.svg"} <= names
    assert [record.exit_code for kind, record in first if kind == "exit"] == [1]
    assert [record.exit_code for kind, record in second if kind == "exit"] == [0]

    dry = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *(str(path.parent) for path in wandb_files(run))],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert dry.returncode == 0 and dry.stderr.count(f"run-{stored}.wandb") == 2, dry.stderr


def test_a_service_that_dies_mid_run_changes_nothing(
    root: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = experiment(root, "killed", to="wandb", mode="offline")

    def kill(trainer: object, report: Any) -> None:
        if report.step == 3:
            while not wandb_files(Path(wanted.output_dir) / "killed"):
                time.sleep(0.1)
            for process in children("wandb-core"):
                os.kill(process, signal.SIGKILL)

    run = Path(train(wanted, with_base=False, on_step=kill, observer=ConsoleObserver()).run)
    assert_equal_runs(plain, run)
    assert capsys.readouterr().err.count("Warning: wandb is lost") == 1
    assert (run / "report.html").exists()


def test_an_address_where_nobody_answers_leaves_an_offline_run(
    root: Path, plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "_INIT_TIMEOUT_S", 3.0)
    run = Path(train(experiment(root, "alone", to="wandb"), with_base=False, observer=ConsoleObserver()).run)
    assert_equal_runs(plain, run)
    told = capsys.readouterr().err
    assert told.count("Warning: wandb cannot be reached") == 1 and "wandb sync" in told
    (kept,) = wandb_files(run)
    assert sum(kind == "history" for kind, _ in read_records(kept)) >= 9


def children(name: str) -> list[int]:
    """Ids of this process's children of that name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = entry.read_text().rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        number, _, command = head.partition(" (")
        if command == name and int(tail.split()[1]) == os.getpid():
            found.append(int(number))
    return found
