"""Files of the older repos on the command line: converted, estimated, refused; `data prepare` and `make`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import miniatures, older_files
from vlmtune.config.load import load_experiment

pytestmark = pytest.mark.cli

REPO = Path(__file__).parents[2]


def vlmtune(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "vlmtune.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=cwd)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    path = tmp_path / "finetune_lfm_3B_full.yaml"
    path.write_text(older_files.cifar_fine_tuning())
    return path


def test_text_000_s_figures_come_out_of_its_file(cifar: Path) -> None:
    """4.2M parameters, 0.14 % of the model, "~8,400 steps": from the older file's own numbers, with no data at hand."""
    done = vlmtune("estimate", cifar, "--faithful", "--no-measure", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["num_samples"], found["num_steps"], found["samples_per_step"]) == (45_000, 8_439, 16)
    assert found["trainable_parameters"] == 4_165_632
    assert round(100 * found["trainable_parameters"] / found["total_parameters"], 2) == 0.14
    assert "is a file of an older repo" in done.stderr


def test_convert_writes_our_file_with_notes_as_comments(cifar: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    done = vlmtune("config", "convert", cifar, "--output", ours)
    assert (done.returncode, done.stdout) == (0, f"{ours}\n"), done.stderr
    text = ours.read_text()
    assert text.startswith("# From finetune_lfm_3B_full.yaml of an older repo.\n# - ")
    assert "match nothing in LFM2-VL" in text
    assert load_experiment(ours) == load_experiment(cifar)
    assert vlmtune("config", "validate", ours, cifar).stdout == f"{ours}: valid\n{cifar}: valid\n"
    again = vlmtune("config", "convert", ours)
    assert again.returncode == 1 and "nothing to convert" in again.stderr
    existing = vlmtune("config", "convert", cifar, "--output", ours)
    assert existing.returncode == 1 and "exists already" in existing.stderr


def test_an_older_volume_checkpoint_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cars.yaml"
    path.write_text(older_files.cars_evaluation())
    done = vlmtune("evaluate", path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{path}:2: evaluate.checkpoint: found '/model_checkpoints/" in done.stderr


def test_cars_are_prepared_with_an_account_of_every_image(tmp_path: Path) -> None:
    hub = miniatures.stanford_cars(tmp_path / "hub", each=2)
    done = vlmtune("data", "prepare", "stanford-cars", "--source", hub, "--output", tmp_path / "cars", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["splits"]["train"]["formats"] == {"JPEG": 15, "PNG": 1} and found["splits"]["train"]["images"] == 16
    assert "Aston Martin" in found["makes"] and len(found["classes"]) == len(miniatures.CARS)
    wrong = vlmtune("data", "prepare", "stanford_cars")
    assert wrong.returncode == 1 and "Did you mean 'stanford-cars'?" in wrong.stderr


@pytest.mark.parametrize(("target", "command"), [("fine-tune", "train"), ("evaluate", "evaluate")])
def test_make_runs_an_older_file_by_its_path(target: str, command: str, cifar: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / ".installed").write_text("")
    stub = environment / "bin" / "vlmtune"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    make = ["make", "-C", str(REPO), "--no-print-directory", "-o", str(environment / ".installed"), target]
    for config_file, expected in ((str(cifar), str(cifar)), ("cifar100", "configs/cifar100.yaml")):
        options = [f"VENV={environment}", f"CONFIG_FILE={config_file}", "ARGS=--faithful"]
        done = subprocess.run([*make, *options], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == f"{command} {expected} --faithful", done.stderr
