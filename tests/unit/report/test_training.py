"""Curves of training, also of a run that was resumed or diverged."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.synthetic_runs import write_run
from vlmtune.report.sources import read_run
from vlmtune.report.training import Curves, draw_loss, draw_validation

pytestmark = pytest.mark.unit


def test_one_step_or_infinite_loss_is_drawn() -> None:
    one = Curves("run", "s2", [(1, 2.0), (2, float("inf"))], [(1, 0.5)])
    for chart in (draw_loss([one]).render(), draw_validation([one]).render()):
        assert "nan" not in chart and "inf" not in chart
        ElementTree.fromstring(str(chart))


def test_resumed_run_has_each_step_once_as_last_measured(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "loss": 9.5}\n')
    steps = {line["step"]: line["loss"] for line in read_run(folder).train}
    assert sorted(steps) == list(range(1, 21))
    assert steps[5] == 9.5
