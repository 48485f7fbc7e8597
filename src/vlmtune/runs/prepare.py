"""From an experiment file to what a run needs: the data, every decision made, and the opened model.

`train`, `evaluate`, `preflight` and `demo` all begin here.
"""

from __future__ import annotations

from pathlib import Path

from vlmtune.config import defaults
from vlmtune.config.schema import Experiment, ModelSection, ResolvedExperiment
from vlmtune.data.splits import Splits, load_splits
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.runs.open import open_adapted


def load_data(experiment: Experiment) -> tuple[ResolvedExperiment, Splits]:
    """The splits, and the experiment with every left-out key decided. Raises DataError."""
    splits = load_splits(experiment.data, experiment.task, experiment.seed)
    num_labels = len(splits.labels) if splits.labels else 0
    return defaults.apply(experiment, num_train=len(splits.train), num_labels=num_labels), splits


def open_base(model: ModelSection) -> OpenedModel:
    """The base model of an experiment, unadapted. Raises UserError."""
    return open_model(model.base, model.revision, model.dtype, model.device, image_overrides(model))


def open_checkpoint(model: ModelSection, checkpoint: Path | None) -> OpenedModel:
    """The base model, or what a checkpoint or run folder made of it, with adapters merged."""
    if checkpoint is None:
        return open_base(model)
    return open_adapted(str(checkpoint), dtype=model.dtype, device=model.device, image_overrides=image_overrides(model))


def image_overrides(model: ModelSection) -> dict[str, int | bool | None]:
    """What the experiment changes about image preparation."""
    return {
        "min_image_tokens": model.min_image_tokens,
        "max_image_tokens": model.max_image_tokens,
        "do_image_splitting": model.do_image_splitting,
    }


def run_path(experiment: Experiment) -> Path:
    """Where the experiment's run folder is, or would be."""
    assert experiment.name is not None
    return Path(experiment.output_dir) / experiment.name
