"""Run folders without training: a base model, an adapter of random values, the files that an export reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vlmtune.adapters.peft_files import save_adapter
from vlmtune.adapters.plan import apply_adapter
from vlmtune.config.load import dump
from vlmtune.config.schema import AdapterSection, Experiment, ModelSection
from vlmtune.data.splits import load_splits
from vlmtune.runs.open import put_connector
from vlmtune.runs.prepare import open_base

EVERY_LINEAR_LAYER = ("attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp")


def write_run(
    folder: Path,
    base: str = "builtin:tiny",
    *,
    source: str = "builtin:digits",
    targets: tuple[str, ...] = EVERY_LINEAR_LAYER,
    noise: float = 0.02,
    parts: tuple[str, ...] = (),
    **changes: object,
) -> Path:
    """A run whose one checkpoint moves every adapted layer by a random update; returns the folder.

    Args:
        noise: of LoRA's factors. The update is their product: large enough to change answers, small enough to keep
            most of what the base can do.
        changes: sections of the experiment, such as ``task``.
    """
    experiment = Experiment.model_validate({"name": folder.name, "output_dir": str(folder.parent), **changes})
    experiment.model = ModelSection.model_validate({**experiment.model.model_dump(), "base": base})
    experiment.data.source = source
    experiment.adapter = AdapterSection(targets=list(targets), parts=list(parts), rank=4)
    splits = load_splits(experiment.data, experiment.task, experiment.seed)
    opened = open_base(experiment.model)
    if experiment.model.connector is not None:
        put_connector(opened, experiment.model.connector, experiment.seed)
    model = opened.model
    plan = apply_adapter(model, experiment.adapter)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in plan.parameters.items():
            scale = noise if "lora" in name else 0.1 * noise
            parameter.add_(torch.randn_like(parameter) * scale)
    checkpoint = folder / "checkpoints" / "step-000001"
    save_adapter(checkpoint, model, plan, base)
    (folder / "best").symlink_to(Path("checkpoints") / "step-000001")
    (folder / "config.yaml").write_text(dump(experiment), encoding="utf-8")
    labels = None if splits.labels is None else list(splits.labels.stored)
    (folder / "run.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    return folder


def write_evaluation_facts(run: Path, accuracy: float) -> None:
    """What `vlmtune evaluate` leaves, as far as a card reads it."""
    folder = run / "evaluation" / "test-fine-tuned"
    folder.mkdir(parents=True)
    facts = {
        "name": "fine-tuned",
        "task": {"type": "choice", "question_from": "prompt"},
        "labels": ["0"],
        "checkpoint": "step-000001",
        "created": "2026-11-21T00:00:00+00:00",
        "data": {"source": "builtin:digits", "split": "test", "num_examples": 360},
        "metrics": {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.02, accuracy + 0.02], "macro_f1": 0.97},
    }
    (folder / "evaluation.json").write_text(json.dumps(facts), encoding="utf-8")
