"""Every key of the experiment file, for every kind of task: it loads, or is refused by name. None is ignored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmtune.config.load import InvalidExperimentError, load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.config.yaml_loader import section_of

pytestmark = pytest.mark.unit

TASKS: dict[str, dict[str, Any]] = {
    "choice": {},
    "bool": {"type": "bool", "user_prompt": "Is it red?"},
    "score": {"type": "score"},
    "text": {"type": "text"},
    "choice of the data": {"question_from": "data", "labels": ["red", "blue"]},
}
CLOSED = {"choice", "bool", "score", "choice of the data"}
FROM_PROMPT = {"choice", "bool", "score"}
FROM_DATA = {"text", "choice of the data"}
EVERYWHERE = set(TASKS)

# Key -> (its value, or values of several keys where one needs another; the tasks in which it does something).
Sample = tuple[Any, set[str]]
KEYS: dict[str, Sample] = {
    "name": ("other", EVERYWHERE),
    "seed": (3, EVERYWHERE),
    "output_dir": ("elsewhere", EVERYWHERE),
    "model.base": ("owner/model", EVERYWHERE),
    "model.revision": ("v1", EVERYWHERE),
    "model.dtype": ("float32", EVERYWHERE),
    "model.device": ("cpu", EVERYWHERE),
    "model.min_image_tokens": (8, EVERYWHERE),
    "model.max_image_tokens": (8, EVERYWHERE),
    "model.do_image_splitting": (False, EVERYWHERE),
    "model.connector": ("dense", EVERYWHERE),
    "data.source": ("owner/data", EVERYWHERE),
    "data.revision": ("v1", EVERYWHERE),
    "data.subset": ("small", EVERYWHERE),
    "data.image_column": ("photo", EVERYWHERE),
    "data.label_column": ("make", FROM_PROMPT),
    "data.question_column": ("asked", FROM_DATA),
    "data.answer_column": ("said", FROM_DATA),
    "data.conversation_column": ("turns", FROM_DATA),
    "data.turns": ("first", FROM_DATA),
    "data.caption_column": ("text", FROM_DATA),
    "data.caption_question": ("What is it?", FROM_DATA),
    "data.image_folder": ("photos", EVERYWHERE),
    "data.train_split": ("train", EVERYWHERE),
    "data.validation_split": ("dev", EVERYWHERE),
    "data.test_split": ("test", EVERYWHERE),
    "data.validation_fraction": (0.2, EVERYWHERE),
    "data.test_fraction": (0.3, EVERYWHERE),
    "data.fraction": (0.5, EVERYWHERE),
    "data.limit": (5, EVERYWHERE),
    "data.limit_validation": (5, EVERYWHERE),
    "data.limit_test": (5, EVERYWHERE),
    "task.labels": (["red", "green"], {"choice", "choice of the data"}),
    "task.levels": (["low", "high"], {"score"}),
    "task.label_names": ({"yes": "aye", "red": "rouge", "blue": "bleu"}, CLOSED),
    "task.system_prompt": ("Look.", EVERYWHERE),
    "task.user_prompt": ("What is it?", EVERYWHERE),
    "task.list_labels": ("prompt", CLOSED),
    "task.image_position": ("last", EVERYWHERE),
    "task.max_answer_tokens": (5, {"text"}),
    "adapter.targets": (["mlp"], EVERYWHERE),
    "adapter.parts": (["connector"], EVERYWHERE),
    "adapter.rank": (4, EVERYWHERE),
    "adapter.alpha": (8.0, EVERYWHERE),
    "adapter.dropout": (0.1, EVERYWHERE),
    "adapter.rslora": (True, EVERYWHERE),
    "adapter.learning_rate_factors": ({"mlp": 0.5}, EVERYWHERE),
    "train.epochs": (2.0, EVERYWHERE),
    "train.max_steps": (2, EVERYWHERE),
    "train.batch_size": (2, EVERYWHERE),
    "train.gradient_accumulation": (2, EVERYWHERE),
    "train.learning_rate": (1e-3, EVERYWHERE),
    "train.warmup_ratio": (0.1, EVERYWHERE),
    "train.schedule": ("linear", EVERYWHERE),
    "train.weight_decay": (0.1, EVERYWHERE),
    "train.betas": ([0.8, 0.9], EVERYWHERE),
    "train.max_grad_norm": (2.0, EVERYWHERE),
    "train.answer": ("majority", FROM_DATA),
    "train.loss": ("all", EVERYWHERE),
    "train.eval_every": (2, EVERYWHERE),
    "train.save_every": (2, EVERYWHERE),
    "train.keep_checkpoints": (3, EVERYWHERE),
    "train.keep_best": (2, EVERYWHERE),
    "train.average_last": (2, EVERYWHERE),
    "train.patience": (2, EVERYWHERE),
    "train.min_gain": ({"train.min_gain": 0.01, "train.patience": 2}, EVERYWHERE),
    "train.augment": (["crop"], EVERYWHERE),
    "train.mixup": (0.2, CLOSED),
    "train.cutmix": (1.0, CLOSED),
    "train.mix_probability": ({"train.mix_probability": 0.5, "train.mixup": 0.2}, CLOSED),
    "train.label_smoothing": (0.1, CLOSED),
    "train.sampling": ("balanced", CLOSED),
    "train.class_weights": ("balanced", CLOSED),
    "train.feature_cache": ("on", EVERYWHERE),
    "train.checkpoint_activations": ("on", EVERYWHERE),
    "evaluate.split": ("train", EVERYWHERE),
    "evaluate.checkpoint": ("base", EVERYWHERE),
    "evaluate.mode": ("argmax", CLOSED),
    "evaluate.batch_size": (2, EVERYWHERE),
    "evaluate.limit": (5, EVERYWHERE),
    "evaluate.scoring": ("mean", CLOSED),
    "evaluate.calibrate": (True, CLOSED),
    "evaluate.wanted_coverage": (0.8, CLOSED),
    "evaluate.wanted_precision": (0.8, CLOSED),
}
# Engines and what stands around a run: the same for every task.
SECTIONS_OF_ENGINES = {"modal", "tracking", "search"}
NAMES_THE_TASK = {"task.type", "task.question_from"}


def keys() -> Iterator[str]:
    """Every key of a file, sections of engines left out."""
    for name, info in Experiment.model_fields.items():
        section = section_of(info.annotation)
        if section is None:
            yield name
        elif name not in SECTIONS_OF_ENGINES:
            yield from (f"{name}.{key}" for key in section.model_fields)


def test_the_table_knows_every_key() -> None:
    assert set(keys()) - NAMES_THE_TASK == set(KEYS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_taken_or_refused_by_name(key: str, task: str, tmp_path: Path) -> None:
    value, has_effect = KEYS[key]
    overrides = value if isinstance(value, dict) and key in value else {key: value}
    path = tmp_path / "e.yaml"
    sections: dict[str, Any] = {"task": TASKS[task]}
    path.write_text(json.dumps(sections))
    if key == "task.label_names":  # those of the task's own labels
        names = {"bool": ["yes"], "choice of the data": ["red", "blue"]}.get(task, list(value))
        overrides = {key: {name: value[name] for name in names}}
    texts = [f"{name}={json.dumps(setting)}" for name, setting in overrides.items()]
    if task in has_effect:
        assert load_experiment(path, texts, must_exist=False)
        return
    with pytest.raises(InvalidExperimentError) as refused:
        load_experiment(path, texts, must_exist=False)
    assert key in {problem.key for problem in refused.value.problems}


def test_a_key_without_the_one_it_belongs_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("train: {mix_probability: 0.5, min_gain: 0.1}\n")
    with pytest.raises(InvalidExperimentError) as refused:
        load_experiment(path)
    assert {problem.key for problem in refused.value.problems} == {"train.mix_probability", "train.min_gain"}
