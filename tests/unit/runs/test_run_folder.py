"""Which checkpoints stay, when a run stops, and what forbids to continue it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmtune.config.load import dump
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.runs.checkpoints import average_checkpoints, mark_best, prune
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.record import Progress, RunRecord
from vlmtune.runs.resume import differing_images, differing_keys

pytestmark = pytest.mark.unit


def progress(*accuracies: float) -> Progress:
    return Progress(history=[(10 * (place + 1), accuracy) for place, accuracy in enumerate(accuracies)])


@pytest.mark.parametrize(
    ("accuracies", "min_gain", "expected"),
    [
        ((), 0.0, 0),
        ((0.5,), 0.0, 0),
        ((0.5, 0.5, 0.5), 0.0, 2),
        ((0.5, 0.4, 0.6), 0.0, 0),
        ((0.5, 0.52, 0.54), 0.03, 0),  # two small steps make one gain
        ((0.5, 0.52, 0.53), 0.03, 2),
        ((0.6, 0.5, 0.55), 0.0, 2),  # above the last, not above the best
    ],
)
def test_validations_without_a_gain_are_counted_from_the_last_gain(
    accuracies: tuple[float, ...], min_gain: float, expected: int
) -> None:
    assert progress(*accuracies).num_without_gain(min_gain) == expected


def test_of_equally_good_steps_the_later_is_better() -> None:
    assert progress(0.5, 0.7, 0.7, 0.6).best_steps(3) == [30, 20, 40]


def write(run: Path, step: int, value: float) -> Path:
    folder = RunLayout(run).checkpoint(step)
    folder.mkdir(parents=True)
    save_file({"weight": torch.full((3,), value)}, folder / "adapter_model.safetensors")
    for name in ("adapter_config.json", "state.json", "optimizer.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_the_newest_the_best_ones_and_the_linked_one_stay(tmp_path: Path) -> None:
    for step in range(1, 9):
        write(tmp_path, step, step)
    mark_best(tmp_path, RunLayout(tmp_path).checkpoint(2))
    prune(tmp_path, 2, [4, 3])
    assert [path.name[-1] for path in RunLayout(tmp_path).list_checkpoints()] == ["2", "3", "4", "7", "8"]


def test_an_average_is_no_place_to_resume_from(tmp_path: Path) -> None:
    average = average_checkpoints(tmp_path, [write(tmp_path, step, value) for step, value in ((1, 1.0), (2, 4.0))])
    assert average.name == "average-of-2"
    assert load_file(average / "adapter_model.safetensors")["weight"].tolist() == [2.5] * 3
    assert {path.name for path in average.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "average.json")
    }
    assert average not in RunLayout(tmp_path).list_checkpoints()


def experiment(tmp_path: Path, **train: object) -> Experiment:
    return Experiment.model_validate({"name": "run", "output_dir": str(tmp_path), "train": train})


def test_a_run_is_continued_only_as_the_same_experiment(tmp_path: Path) -> None:
    stored = experiment(tmp_path, max_steps=8)
    folder = RunFolder.claim(stored, resume=False)
    folder.begin(stored)
    changed = experiment(tmp_path, max_steps=12, keep_checkpoints=7)
    changed.adapter.rank = 8
    with pytest.raises(RunFolderError, match=r"max_steps: 8 in the run, 12 now") as error:
        RunFolder.claim(changed, resume=True)
    assert "adapter.rank: nothing in the run, 8 now" in str(error.value)
    assert "keep_checkpoints" not in str(error.value)
    RunFolder.claim(experiment(tmp_path, max_steps=8, keep_checkpoints=7, patience=3), resume=True)


def test_earlier_measurements_do_not_block_a_run(tmp_path: Path) -> None:
    stored = experiment(tmp_path)
    for name in ("evaluation/test-base", "baselines", "charts"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "baselines.json").write_text("{}")
    folder = RunFolder.claim(stored, resume=False)
    folder.begin(stored)
    with pytest.raises(RunFolderError, match="this run exists"):
        RunFolder.claim(stored, resume=False)


def test_a_foreign_folder_is_refused_by_content(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"in use, it holds thesis\.tex"):
        RunFolder.claim(experiment(tmp_path), resume=False)


def test_a_run_is_continued_only_on_the_same_images(tmp_path: Path) -> None:
    def description(fingerprint: str) -> dict[str, object]:
        return {"splits": {"train": {"fingerprint": fingerprint, "used": 9}, "validation": {"fingerprint": "v"}}}

    assert differing_images(description("a"), description("a")) == []
    assert differing_images(description("a"), description("b")) == [
        "train images: 9 in the run, 9 now, and not the same"
    ]
    stored = experiment(tmp_path)
    folder = RunFolder.claim(stored, resume=False)
    folder.begin(stored)
    RunRecord(data=description("a")).write(folder)
    with pytest.raises(RunFolderError, match="train images"):
        RunFolder.claim(stored, resume=True, data=description("b"))


def test_a_written_experiment_reads_back_without_a_difference(tmp_path: Path) -> None:
    from vlmtune.config.load import load_experiment

    stored = experiment(tmp_path, augment=["flip", {"randaugment": {"magnitude": 5}}], betas=[0.9, 0.95])
    (tmp_path / "config.yaml").write_text(dump(stored))
    assert differing_keys(load_experiment(tmp_path / "config.yaml"), stored) == []


def test_a_run_without_checkpoints_resumes_from_the_start(tmp_path: Path) -> None:
    from vlmtune.runs.checkpoints import RunCheckpoints

    nothing: Any = None  # what a keeper of an empty run never looks at
    assert RunCheckpoints(tmp_path, nothing, nothing, nothing, nothing, []).resume() == Progress()
