"""Opens whatever the user names as MODEL, and its task: plain models, adapters, checkpoints, runs.

Evaluation, prediction, serving and export call it; it puts `models.registry`, the adapter's files and a run's
configuration together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmtune.adapters.connector_swap import follow_connector, install_connector, wanted_shape
from vlmtune.adapters.peft_files import is_adapter_folder, load_adapter, load_connector, read_adapter_config, read_shape
from vlmtune.adapters.plan import AdapterPlan, fold
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import ConnectorSection, Experiment, TaskSection
from vlmtune.errors import AdapterError, ConfigError, RunFolderError
from vlmtune.models.connectors import start_equal, start_random
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.models.source import BUILTIN_PREFIX, locate
from vlmtune.runs.layout import RunLayout, layout_of
from vlmtune.runs.manifest import read_manifest
from vlmtune.runs.record import read_record


@dataclass
class AdaptedModel(OpenedModel):
    """An opened model that may carry an adapter.

    Attributes:
        plan: what the adapter holds; None for a plain model. After folding, its layers are no longer in the model.
        adapter_folder: where the adapter's files are.
        base: the source of the model underneath.
        experiment: of the run it belongs to.
    """

    plan: AdapterPlan | None = None
    adapter_folder: Path | None = None
    base: str | None = None
    experiment: Experiment | None = None


def open_adapted(
    source: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    image_overrides: Mapping[str, Any] | None = None,
    *,
    keep_adapter: bool = False,
) -> AdaptedModel:
    """Open MODEL: a run folder (its `best`), a checkpoint or adapter folder, or a plain model.

    Args:
        source: a folder, a hub id (of a model or of a PEFT adapter), or `builtin:tiny`.
        revision: of ``source`` on the hub.
        dtype, device, image_overrides: see `open_model`; image settings that are None come from the run.
        keep_adapter: leave LoRA beside the weights, to continue training or to save it; otherwise it is merged for good
            and the model is plain.

    Raises:
        UserError: see `open_model`. RunFolderError: a run without a checkpoint. AdapterError: an adapter that does not
            belong to its base, or that names none.
    """
    folder = locate(source, revision)
    run = None if source.startswith(BUILTIN_PREFIX) else find_run(folder)
    adapter = find_checkpoint(folder) if run is not None and run == folder.resolve() else folder
    experiment = load_experiment(run, must_exist=False) if run is not None else None
    overrides = dict(image_overrides or {})
    if experiment is not None:
        for name in ("min_image_tokens", "max_image_tokens", "do_image_splitting"):
            if overrides.get(name) is None:
                overrides[name] = getattr(experiment.model, name)
    elif (manifest := read_manifest(folder)) is not None:
        overrides = manifest.image | {name: value for name, value in overrides.items() if value is not None}
    if not is_adapter_folder(adapter):
        opened = open_model(source if adapter == folder else str(adapter), revision, dtype, device, overrides)
        return AdaptedModel(**vars(opened), base=source, experiment=experiment)

    base: str | None
    if experiment is not None:
        base, base_revision = experiment.model.base, experiment.model.revision
    else:
        config = read_adapter_config(adapter)
        base, base_revision = config.get("base_model_name_or_path"), config.get("revision")
        if not base:
            raise AdapterError(
                f"{adapter}: adapter_config.json names no base model. Set base_model_name_or_path there to a folder or "
                "hub id."
            )
    opened = open_model(base, base_revision, dtype, device, overrides)
    if (shape := read_shape(adapter)) is not None:
        before = opened.model.connector
        install_connector(opened.model, shape)
        follow_connector(opened, before)
    plan = load_adapter(adapter, opened.model)
    if not keep_adapter:
        fold(opened.model, plan)
    opened.model.eval()
    return AdaptedModel(
        **{**vars(opened), "source": source}, plan=plan, adapter_folder=adapter, base=base, experiment=experiment
    )


def read_task(model: str) -> tuple[TaskSection, tuple[str, ...] | None]:
    """The task MODEL was trained on, and its labels: (a plain classification, None) if unknown."""
    run = find_run(Path(model))
    if run is None:
        manifest = read_manifest(locate(model))  # an exported folder, here or on the hub
        return (TaskSection(), None) if manifest is None else (manifest.task, manifest.labels)
    task = load_experiment(run, must_exist=False).task.after_first_epoch()
    stored = read_record(run).labels
    return task, None if stored is None else tuple(stored)


def put_connector(opened: OpenedModel, section: ConnectorSection, seed: int = 0) -> None:
    """Give an opened base the connector that an experiment asks for, in place.

    Args:
        opened: a plain model, without an adapter.
        section: `start` says what it begins with. By default a trunk that the base has keeps its weights and new
            channels are zero: the model then computes, to the bit, what it did. The exception is STI, which adds
            tokens: they go through the pretrained trunk, but the decoder was not trained with as many.
        seed: of a random start.

    Raises:
        ConfigError: layers the tower does not have; a pretrained start where there are no such weights; a folder whose
            connector has another shape, or that has none.
    """
    base = opened.model.connector
    shape = wanted_shape(section, opened.model)
    has_weights = shape.trunk == base.shape.trunk and shape.factor == base.shape.factor
    start = section.start or ("pretrained" if has_weights else "random")
    if start == "pretrained" and not has_weights:
        raise ConfigError(
            f"model.connector.start: the base has a connector of the kind '{base.shape.trunk}', so there are no "
            f"pretrained weights for '{section.kind}'. Set start: random and align it first (vlmtune pretrain)."
        )
    if start == "pretrained" and shape == base.shape:
        return
    connector = install_connector(opened.model, shape)
    follow_connector(opened, base)
    if start == "pretrained":
        start_equal(connector, base)
    elif start == "random":
        start_random(connector, torch.Generator().manual_seed(seed))
    else:
        folder = locate(start)
        load_connector(find_checkpoint(folder) if find_run(folder) == folder.resolve() else folder, connector)


def find_run(folder: Path) -> Path | None:
    """The run folder that a folder is, or that it is a checkpoint of; None for anything else."""
    run = layout_of(folder)
    return None if run is None else run.path


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run folder: `best`, or the newest. Raises RunFolderError if there is none."""
    layout = RunLayout(run)
    if layout.best.is_dir():
        return layout.best.resolve()
    if layout.best.is_symlink():
        raise RunFolderError(
            f"{layout.best}: points to {layout.best.readlink()}, which is gone. Name a checkpoint folder instead."
        )
    checkpoints = layout.list_checkpoints()
    if not checkpoints:
        raise RunFolderError(
            f"{run}: this run has no checkpoint yet. Train it first (vlmtune train), or wait for its first checkpoint."
        )
    return checkpoints[-1]
