"""Training for real, on a random model small enough for seconds: it learns, resumes, and repeats bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.images import write_class_folders
from tests.tiny_model import write_tiny_folder
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.source import locate
from vlmtune.models.weights import read_checkpoint
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import load_data, open_base, open_checkpoint
from vlmtune.tasks.question import Task
from vlmtune.tasks.validation import Validation, Validator
from vlmtune.train.loop import StepEvent, Trainer
from vlmtune.workflows.train import train

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("images"), 12)


def experiment(base: Path, images: Path, output: Path, name: str, **train: object) -> Experiment:
    settings = {"batch_size": 6, "learning_rate": 5e-3, "max_steps": 8, "eval_every": 4, "save_every": 4}
    return Experiment.model_validate(
        {
            "name": name,
            "output_dir": str(output),
            "model": {"base": str(base), "dtype": "float32"},
            "data": {"source": str(images)},
            "adapter": {"dropout": 0.1},
            "train": settings | train,
        }
    )


def start(wanted: Experiment, *, resume: bool = False) -> tuple[Trainer, RunFolder]:
    resolved, splits = load_data(wanted)
    folder = RunFolder.claim(resolved, resume=resume)
    folder.begin(resolved)
    return Trainer(resolved, open_base(resolved.model), splits), folder


def cut_off(wanted: Experiment, after: int) -> RunFolder:
    """A run that is interrupted after a step."""
    trainer, folder = start(wanted)

    def on_step(event: StepEvent) -> None:
        if event.step == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(folder, on_step=on_step)
    return folder


def adapter_tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(base: Path, images: Path, tmp_path: Path) -> None:
    whole, folder = start(experiment(base, images, tmp_path, "whole"))
    whole.run(folder)
    cut_off(experiment(base, images, tmp_path, "cut"), after=6)
    again, cut = start(experiment(base, images, tmp_path, "cut"), resume=True)
    again.run(cut, resume=True)
    expected, found = adapter_tensors(folder.path, 8), adapter_tensors(cut.path, 8)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [
        [line["loss"] for line in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())]
        for run in (folder, cut)
    ]
    assert losses[0] == losses[1]


def gradients(wanted: Experiment) -> dict[str, torch.Tensor]:
    """What the optimizer gets in the first step, from LoRA factors that are both different from zero."""
    wanted.adapter.dropout = 0.0
    trainer, folder = start(wanted)
    draw = torch.Generator().manual_seed(0)
    for layer in trainer.plan.lora.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05, generator=draw)
    taken: dict[str, torch.Tensor] = {}

    def take(*_: object) -> None:
        taken.update({name: p.grad.clone() for name, p in trainer.plan.parameters.items() if p.grad is not None})

    trainer.optimizer.adamw.register_step_pre_hook(take)
    trainer.run(folder)
    return taken


def test_accumulated_micro_batches_have_the_gradients_of_one_batch(base: Path, images: Path, tmp_path: Path) -> None:
    # Gradients, not weights: where one is nearly zero, AdamW's first step follows the sign of its rounding.
    whole = gradients(experiment(base, images, tmp_path, "one", max_steps=1))
    parts = gradients(experiment(base, images, tmp_path, "three", max_steps=1, batch_size=2, gradient_accumulation=3))
    assert whole and whole.keys() == parts.keys()
    for name, expected in whole.items():
        assert expected.norm() > 0, name
        assert (parts[name] - expected).norm() < 1e-3 * expected.norm(), name


def test_an_interrupted_run_releases_its_feature_cache(base: Path, images: Path, tmp_path: Path) -> None:
    stopped, cut = start(experiment(base, images, tmp_path, "cut", feature_cache="on"))

    def interrupt(event: StepEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(cut, on_step=interrupt)
    # While the first trainer still stands, as it does in a search whose trial was pruned.
    other, folder = start(experiment(base, images, tmp_path, "other", feature_cache="on", max_steps=1))
    other.run(folder)
    assert other.features.note == "image features are cached"


def test_the_base_weights_do_not_move(base: Path, images: Path, tmp_path: Path) -> None:
    trainer, folder = start(experiment(base, images, tmp_path, "frozen", max_steps=2))
    trainer.run(folder)
    saved = read_checkpoint(locate(str(base)))
    frozen = {name: p for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen
    for name, parameter in frozen.items():
        assert torch.equal(parameter, saved[name]), name


def test_only_the_best_and_the_newest_checkpoints_stay(base: Path, images: Path, tmp_path: Path) -> None:
    trainer, folder = start(experiment(base, images, tmp_path, "kept", save_every=1, eval_every=4, keep_checkpoints=2))
    trainer.run(folder)
    kept = {path.name for path in RunLayout(folder.path).list_checkpoints()}
    assert {"step-000007", "step-000008", (folder.path / "best").resolve().name} == kept


def metrics(folder: RunFolder, kind: str) -> list[dict[str, float]]:
    lines = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_a_resumed_run_with_random_images_equals_an_uninterrupted_one(base: Path, images: Path, tmp_path: Path) -> None:
    """Mixed and augmented images, smoothed targets and balanced order included."""
    settings = {
        "augment": ["flip-crop", "trivialaugment"],
        "mixup": 0.4,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "sampling": "balanced",
    }
    whole, folder = start(experiment(base, images, tmp_path, "whole-random", **settings))
    whole.run(folder)
    cut_off(experiment(base, images, tmp_path, "cut-random", **settings), after=6)
    again, cut = start(experiment(base, images, tmp_path, "cut-random", **settings), resume=True)
    again.run(cut, resume=True)
    expected, found = adapter_tensors(folder.path, 8), adapter_tensors(cut.path, 8)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [line["loss"] for line in metrics(folder, "train")] == [line["loss"] for line in metrics(cut, "train")]


def test_a_run_without_a_gain_stops_and_stays_stopped(base: Path, images: Path, tmp_path: Path) -> None:
    settings = {"eval_every": 1, "save_every": 1, "patience": 2, "min_gain": 1.0, "max_steps": 8}
    trainer, folder = start(experiment(base, images, tmp_path, "patient", **settings))
    progress = trainer.run(folder)
    # No accuracy exceeds the first by 1: after it, two validations are waited for.
    assert (progress.step, progress.is_stopped, trainer.is_finished) == (3, True, True)
    again, folder = start(experiment(base, images, tmp_path, "patient", **settings), resume=True)
    assert again.run(folder, resume=True).step == 3
    assert len(metrics(folder, "train")) == 3


def test_the_average_is_validated_and_opens_as_a_checkpoint(base: Path, images: Path, tmp_path: Path) -> None:
    wanted = experiment(base, images, tmp_path, "averaged", max_steps=6, eval_every=2, save_every=2, average_last=3)
    trainer, folder = start(wanted)
    progress = trainer.run(folder)
    average = folder.path / "checkpoints" / "average-of-3"
    steps = [adapter_tensors(folder.path, step) for step in (2, 4, 6)]
    for name, found in load_file(average / "adapter_model.safetensors").items():
        assert torch.allclose(found, torch.stack([step[name] for step in steps]).mean(0), atol=1e-6), name
    (line,) = metrics(folder, "average")
    assert line["accuracy"] == progress.average_accuracy
    is_better = line["accuracy"] > progress.best_accuracy
    assert ((folder.path / "best").resolve() == average.resolve()) == is_better
    # Opened as `evaluate --checkpoint` does, it scores what training measured.

    predictor = Predictor(open_checkpoint(wanted.model, average), trainer.experiment.task, trainer.splits.labels)
    task = Task.of(trainer.experiment.task, trainer.splits.labels)
    again = Validator(task, {"": predictor}, trainer.splits.validation).measure()
    assert again.accuracy == line["accuracy"]
    assert again.loss == pytest.approx(line["loss"], rel=1e-4)
    # The model itself stands where the run ended.
    kept = {name: tensor for name, tensor in adapter_tensors(folder.path, 6).items() if "lora_A" in name}
    own = {f"base_model.model.{name}.lora_A.weight": layer.lora_A for name, layer in trainer.plan.lora.items()}
    assert all(torch.equal(kept[name], own[name]) for name in kept)


def test_an_average_that_is_better_becomes_the_best(
    base: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = experiment(base, images, tmp_path, "better", max_steps=4, eval_every=2, save_every=2, average_last=2)
    trainer, folder = start(wanted)
    accuracies = iter([0.5, 0.4, 0.6])
    monkeypatch.setattr(trainer.validator, "measure", lambda: Validation(next(accuracies), 1.0, 10, 0))
    assert trainer.run(folder).average_accuracy == 0.6
    assert (folder.path / "best").resolve().name == "average-of-2"


def test_so_many_of_the_best_stay_as_asked(
    base: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = experiment(
        base, images, tmp_path, "best", max_steps=6, eval_every=1, save_every=1, keep_best=3, keep_checkpoints=1
    )
    trainer, folder = start(wanted)
    accuracies = iter([0.5, 0.9, 0.6, 0.8, 0.7, 0.1])
    monkeypatch.setattr(trainer.validator, "measure", lambda: Validation(next(accuracies), 1.0, 10, 0))
    trainer.run(folder)
    assert [int(path.name[-6:]) for path in RunLayout(folder.path).list_checkpoints()] == [2, 4, 5, 6]
    assert (folder.path / "best").resolve().name == "step-000002"


def test_the_whole_command_teaches_new_words_and_writes_a_report(images: Path, tmp_path: Path) -> None:
    wanted = Experiment(name="words", output_dir=str(tmp_path))
    wanted.data.source = str(images)
    wanted.train.max_steps = 40
    result = train(wanted)
    # No image of the pretraining was called wug, blick or dax.
    assert result.test_accuracy >= 0.9 > result.base_accuracy
    run = tmp_path / "words"
    assert {"config.yaml", "run.json", "preflight.json", "metrics.jsonl", "best", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    # Finished: `train` says so, and --resume gives the same result without touching anything.
    with pytest.raises(RunFolderError, match=r"this run is finished.*report\.html"):
        train(wanted)
    before = (run / "metrics.jsonl").read_text()
    assert train(wanted, resume=True) == result
    assert (run / "metrics.jsonl").read_text() == before
    wanted.train.max_steps = 50
    with pytest.raises(RunFolderError, match=r"train\.max_steps: 40 in the run, 50 now"):
        train(wanted, resume=True)
