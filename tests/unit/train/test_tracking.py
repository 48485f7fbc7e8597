"""Trackers watch what a run writes: they are told all of it, and nothing that they do reaches the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlmtune.config.load import InvalidExperimentError, load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import MissingExtraError
from vlmtune.runs.folder import RunFolder
from vlmtune.train import tracking
from vlmtune.train.tracking import Tracking, check_installed

pytestmark = pytest.mark.unit


def experiment(*to: str) -> Experiment:
    return Experiment.model_validate({"name": "run", "tracking": {"to": list(to)} if to else None})


def write_steps(folder: RunFolder, steps: range) -> None:
    for step in steps:
        folder.append_metrics(kind="train", step=step, epoch=step / 10, loss=1 / (step + 1), note="text")
    folder.append_metrics(kind="validation", step=steps[-1], epoch=steps[-1] / 10, accuracy=0.5, loss=None)


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return found


# ── in YAML ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["wandb", "[wandb]", "{to: wandb}", "{to: [wandb]}"])
def test_a_text_a_list_and_a_section_say_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.yaml").write_text(f"tracking: {text}\n")
    found = load_experiment(tmp_path / "e.yaml").tracking
    assert found is not None and found.to == ["wandb"]


def test_an_override_switches_tracking_on(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("seed: 1\n")
    found = load_experiment(tmp_path / "e.yaml", ["tracking=tensorboard"]).tracking
    assert found is not None and found.to == ["tensorboard"]


@pytest.mark.parametrize(("text", "words"), [("wanbd", "did you mean 'wandb'?"), ("{to: []}", "tracking.to")])
def test_an_unknown_service_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "e.yaml").write_text(f"tracking: {text}\n")
    with pytest.raises(InvalidExperimentError, match="tracking") as caught:
        load_experiment(tmp_path / "e.yaml")
    assert words in str(caught.value)


# ── what reaches the run ────────────────────────────────────────────────────────────────────────────────────────────


class Broken:
    """Fails at the n-th call of any kind."""

    def __init__(self, good_calls: int) -> None:
        self.left = good_calls

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the network is gone")

    def log(self, record: Mapping[str, Any]) -> None:
        self._call()

    def rewind(self, step: int) -> None:
        self._call()

    def finish(self, run: Path, result: Mapping[str, Any] | None) -> None:
        self._call()


@pytest.mark.parametrize("good_calls", [0, 1, 4, 5])
def test_a_tracker_that_fails_at_any_call_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_calls: int
) -> None:
    monkeypatch.setitem(tracking._KINDS, "wandb", lambda *_: Broken(good_calls))
    warnings: list[str] = []
    folder = RunFolder(tmp_path)
    with Tracking(folder, experiment("wandb"), warnings.append) as tracked:
        folder.truncate_metrics(0)
        write_steps(folder, range(3))
        tracked.finish({"steps": 3})
    assert len(warnings) == 1 and "wandb is lost (the network is gone)" in warnings[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert folder.watchers == []


def test_a_failing_tracker_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("no account")

    monkeypatch.setitem(tracking._KINDS, "wandb", refuse)
    warnings: list[str] = []
    folder = RunFolder(tmp_path)
    with Tracking(folder, experiment("wandb", "tensorboard"), warnings.append):
        write_steps(folder, range(3))
    assert len(warnings) == 1 and "no account" in warnings[0]
    assert len(events(tmp_path).Scalars("train/loss")) == 3


def test_a_tracker_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    class Hanging(Broken):
        def log(self, record: Mapping[str, Any]) -> None:
            never.wait()

    monkeypatch.setitem(tracking._KINDS, "wandb", lambda *_: Hanging(9))
    monkeypatch.setattr(tracking, "_GIVE_UP_S", 0.1)
    warnings: list[str] = []
    folder = RunFolder(tmp_path)
    with Tracking(folder, experiment("wandb"), warnings.append):
        write_steps(folder, range(3))
    assert len(warnings) == 1 and "no answer for" in warnings[0]
    never.set()


def test_without_a_section_nothing_is_tracked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with Tracking(folder, experiment(), pytest.fail):
        assert folder.watchers == []
        write_steps(folder, range(2))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'wandb'.*pip install 'vlmtune\[track\]'"):
        check_installed(experiment("wandb").tracking)
    check_installed(None)


# ── TensorBoard ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tensorboard_reads_every_figure_and_the_report(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "report.md").write_text("# A run\n")
    with Tracking(folder, experiment("tensorboard"), pytest.fail) as tracked:
        write_steps(folder, range(3))
        tracked.finish({"steps": 3, "test_accuracy": 0.9, "run": "text", "is_stopped": False, "base_accuracy": None})
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        (step, pytest.approx(1 / (step + 1))) for step in range(3)
    ]
    tags = found.Tags()
    assert set(tags["scalars"]) == {"train/loss", "validation/accuracy", "result/steps", "result/test_accuracy"}
    assert tags["tensors"] == ["report/text_summary"]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_takes_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with Tracking(folder, experiment("tensorboard"), pytest.fail):
        write_steps(folder, range(6))
    folder = RunFolder(tmp_path)
    with Tracking(folder, experiment("tensorboard"), pytest.fail):
        folder.truncate_metrics(3)
        write_steps(folder, range(4, 6))
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == [0, 1, 2, 3, 4, 5]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3, 4, 5]
