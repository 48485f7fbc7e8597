"""Prediction, evaluation, validation, serving and the export gate give an image the same probabilities."""

from __future__ import annotations

from pathlib import Path
from queue import Queue

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.tiny_model import write_tiny_folder
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits
from vlmtune.evaluate.run import evaluate_checkpoint
from vlmtune.export.gate import ClosedComparison
from vlmtune.export.runtime import GateItem, OwnRuntime
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.records import Example, ImageSource, LabelScores, LabelSet
from vlmtune.runs.prepare import load_data
from vlmtune.serve.batching import ModelThread, ScoreJob
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.prompts import TaskPrompt
from vlmtune.serve.settings import ServeSettings
from vlmtune.tasks.question import Task
from vlmtune.tasks.validation import Validator

pytestmark = pytest.mark.e2e

LABELS = ["ca", "cat", "cat tail", "dog"]  # each of the first three begins the next
NAMES = {"cat": ["cat", "cat ", "kitty", " cat"], "dog": ["dog", "a dog"]}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    root = tmp_path_factory.mktemp("one")
    write_tiny_folder(root / "base")
    for split in ("train", "test"):
        for number, label in enumerate(LABELS * 3):
            folder = root / "images" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (20 * number, 90, 250 - 20 * number)).save(folder / f"{split}{number}.png")
    return Experiment.model_validate(
        {
            "name": "one",
            "output_dir": str(root),
            "model": {"base": str(root / "base"), "dtype": "float32", "do_image_splitting": False},
            "data": {"source": str(root / "images")},
            "task": {"labels": LABELS, "label_names": NAMES},
        }
    )


def evaluated(experiment: Experiment, splits: Splits, example: Example, folder: Path) -> np.ndarray:
    evaluate_checkpoint(experiment, splits, checkpoint=None, folder=folder)
    (path,) = folder.rglob("predictions.parquet")
    rows = {row["id"]: row for row in pq.read_table(path).to_pylist()}
    return np.exp(rows[example.id]["log_probs"])


def validated(predictor: Predictor, labels: LabelSet, image: ImageSource) -> np.ndarray:
    """One validation a label, each of which tells the loss of that label."""
    task = Task.of(predictor.task, labels)
    losses = [Validator(task, {"": predictor}, [Example("1", image, (label,))]).measure().loss for label in LABELS]
    return np.exp([-loss for loss in losses if loss is not None])


def served(opened: OpenedModel, experiment: Experiment, predictor: Predictor, image: ImageSource) -> np.ndarray:
    prompt = TaskPrompt(opened, experiment.task, LABELS)
    processed, answers = predictor.process(Query(image)), Queue[list[float]]()
    thread = ModelThread(opened.model, ServeSettings(), Metrics(), lambda: None)
    thread.start()
    thread.expect()
    ids = prompt.tokens(processed, None)
    thread.submit(ScoreJob(prompt=prompt, ids=ids, images=[processed], deliver=answers.put, fail=lambda error: None))
    thread.close()
    return np.exp(answers.get_nowait())


def gated(opened: OpenedModel, predictor: Predictor, image: ImageSource) -> np.ndarray:
    processed = predictor.process(Query(image))
    item = GateItem("1", image.open(), processed, predictor.prompt.build(None, processed.text).ids, "", "")
    return ClosedComparison(predictor).probabilities(OwnRuntime(opened, "the model"), item)


def test_five_ways_give_one_posterior(experiment: Experiment, tmp_path: Path) -> None:
    resolved, splits = load_data(experiment)
    assert splits.labels is not None and splits.labels.shown[1] == ("cat", "kitty")
    opened = open_model(resolved.model.base, dtype="float32", image_overrides={"do_image_splitting": False})
    predictor = Predictor(opened, resolved.task, splits.labels)
    example = splits.test[0]
    (scores,) = predictor.classify([Query.of(example)])
    assert isinstance(scores, LabelScores) and scores.log_probs is not None
    predicted = np.exp(scores.log_probs)
    assert predicted.sum() == pytest.approx(1)
    with torch.inference_mode():
        ways = {
            "evaluate": evaluated(resolved, splits, example, tmp_path),
            "validation": validated(predictor, splits.labels, example.image),
            "serve": served(opened, resolved, predictor, example.image),
            "gate": gated(opened, predictor, example.image),
        }
    for way, probabilities in ways.items():
        assert probabilities == pytest.approx(predicted, abs=1e-6), way
