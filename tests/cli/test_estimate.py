"""`vlmtune estimate` with the data and the base at hand, and without either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cli


def estimate(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmtune.cli.main", "estimate", *map(str, args)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_the_built_in_model_is_estimated_by_measuring(tmp_path: Path) -> None:
    config = tmp_path / "digits.yaml"
    config.write_text("data: builtin:digits\nadapter: {targets: [attention, mlp], parts: []}\n")
    done = estimate(config, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_samples"] == 1293 and found["shape"]["tiles"] == [[8, 8]]
    here = found["machines"][0]
    assert here["name"] == "this machine (cpu)" and here["hours"] > 0


def test_an_unreachable_model_is_estimated_by_its_shape(tmp_path: Path) -> None:
    config = tmp_path / "cifar100.yaml"
    config.write_text(
        "model: LiquidAI/LFM2-VL-3B\ndata: someone/cifar100\n"
        "task: {labels: [apple, baby, bear]}\n"
        "adapter: {targets: [q_proj, k_proj, v_proj], parts: [], rank: 16}\ntrain: {epochs: 3, batch_size: 16}\n"
    )
    done = estimate(config, "--samples", "45000", "--no-measure", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trainable_parameters"], found["num_steps"]) == (4_165_632, 8_439)
    assert any("known shape" in line and "512" in line for line in found["assumptions"])

    table = estimate(config, "--samples", "45000", "--no-measure")
    assert "4,165,632" in table.stdout and "0.14 %" in table.stdout and "H100" in table.stdout


def test_without_data_and_number_it_says_how_to_give_one(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("model: LiquidAI/LFM2-VL-3B\ndata: nowhere/at-all\n")
    done = estimate(config)
    assert done.returncode == 1 and "--samples" in done.stderr and "Traceback" not in done.stderr
