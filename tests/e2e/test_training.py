"""Training for real, on a random model small enough for seconds: it learns, resumes, and repeats bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pictures import write_class_folders
from tests.tiny_model import write_tiny_folder
from vlmtune.cli.train import run_training
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.models.source import locate
from vlmtune.models.weights import read_checkpoint
from vlmtune.train.checkpoints import list_checkpoints
from vlmtune.train.loop import Trainer
from vlmtune.train.prepare import load_data, open_base
from vlmtune.train.run_folder import RunFolder

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("pictures"), 12)


def experiment(base: Path, pictures: Path, output: Path, name: str, **train: object) -> Experiment:
    settings = {"batch_size": 6, "learning_rate": 5e-3, "max_steps": 8, "eval_every": 4, "save_every": 4}
    return Experiment.model_validate(
        {
            "name": name,
            "output_dir": str(output),
            "model": {"base": str(base), "dtype": "float32"},
            "data": {"source": str(pictures)},
            "adapter": {"dropout": 0.1},
            "train": settings | train,
        }
    )


def start(wanted: Experiment, *, resume: bool = False, stop_after: int | None = None) -> tuple[Trainer, RunFolder]:
    resolved, splits = load_data(wanted)
    folder = RunFolder.claim(resolved, resume=resume)
    folder.begin(resolved)
    trainer = Trainer(resolved, open_base(resolved.model), splits)

    def watch(report: object) -> None:
        if stop_after is not None and trainer.progress.step == stop_after:
            raise KeyboardInterrupt

    trainer.watch = watch
    return trainer, folder


def adapter_tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(base: Path, pictures: Path, tmp_path: Path) -> None:
    whole, folder = start(experiment(base, pictures, tmp_path, "whole"))
    whole.run(folder)
    stopped, cut = start(experiment(base, pictures, tmp_path, "cut"), stop_after=6)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(cut)
    again, cut = start(experiment(base, pictures, tmp_path, "cut"), resume=True)
    again.run(cut, resume=True)
    expected, found = adapter_tensors(folder.path, 8), adapter_tensors(cut.path, 8)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [
        [line["loss"] for line in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())]
        for run in (folder, cut)
    ]
    assert losses[0] == losses[1]


def test_accumulated_micro_batches_learn_what_one_batch_learns(base: Path, pictures: Path, tmp_path: Path) -> None:
    tensors = []
    for name, train in (("one", {}), ("three", {"batch_size": 2, "gradient_accumulation": 3})):
        wanted = experiment(base, pictures, tmp_path, name, max_steps=2, eval_every=2, **train)
        wanted.adapter.dropout = 0.0
        trainer, folder = start(wanted)
        trainer.run(folder)
        tensors.append(adapter_tensors(folder.path, 2))
    for name, expected in tensors[0].items():
        assert torch.allclose(expected, tensors[1][name], atol=2e-5), name


def test_the_base_weights_do_not_move(base: Path, pictures: Path, tmp_path: Path) -> None:
    trainer, folder = start(experiment(base, pictures, tmp_path, "frozen", max_steps=2))
    trainer.run(folder)
    saved = read_checkpoint(locate(str(base)))
    frozen = {name: p for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen
    for name, parameter in frozen.items():
        assert torch.equal(parameter, saved[name]), name


def test_only_the_best_and_the_newest_checkpoints_stay(base: Path, pictures: Path, tmp_path: Path) -> None:
    trainer, folder = start(
        experiment(base, pictures, tmp_path, "kept", save_every=1, eval_every=4, keep_checkpoints=2)
    )
    trainer.run(folder)
    kept = {path.name for path in list_checkpoints(folder.path)}
    assert {"step-000007", "step-000008", (folder.path / "best").resolve().name} == kept


def test_the_whole_command_teaches_new_words_and_writes_a_report(pictures: Path, tmp_path: Path) -> None:
    wanted = Experiment(name="words", output_dir=str(tmp_path))
    wanted.data.source = str(pictures)
    wanted.train.max_steps = 40
    result = run_training(wanted)
    # No picture of the pretraining was called wug, blick or dax.
    assert result["test_accuracy"] >= 0.9 > result["base_accuracy"]
    run = tmp_path / "words"
    assert {"config.yaml", "run.json", "preflight.json", "metrics.jsonl", "best", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    with pytest.raises(RunFolderError, match=r"this run exists.*--resume"):
        run_training(wanted)
