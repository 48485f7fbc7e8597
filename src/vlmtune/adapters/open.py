"""The one function that opens whatever a person names as MODEL: plain models, adapters, checkpoints, runs.

Evaluation, prediction, serving and export call it; it puts `models.registry`, the adapter's files and a run's
configuration together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.adapters.files import is_adapter_folder, load_adapter, read_adapter_config
from vlmtune.adapters.lora import AdapterPlan, fold
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import AdapterError, RunFolderError
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.models.source import BUILTIN_PREFIX, locate

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST = "best"


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
        keep_adapter: leave LoRA beside the weights, to go on training or to save it; otherwise it is merged for good
            and the model is plain.

    Raises:
        UserError: see `open_model`. RunFolderError: a run without a checkpoint. AdapterError: an adapter that does not
            belong to its base, or that names none.
    """
    folder = locate(source, revision)
    run = None if source.startswith(BUILTIN_PREFIX) else find_run(folder)
    adapter = find_checkpoint(folder) if run is not None and run == folder.resolve() else folder
    experiment = load_experiment(run / CONFIG_FILE, must_exist=False) if run is not None else None
    overrides = dict(image_overrides or {})
    if experiment is not None:
        for name in ("min_image_tokens", "max_image_tokens", "do_image_splitting"):
            if overrides.get(name) is None:
                overrides[name] = getattr(experiment.model, name)
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
    plan = load_adapter(adapter, opened.model)
    if not keep_adapter:
        fold(opened.model)
    opened.model.eval()
    return AdaptedModel(
        **{**vars(opened), "source": source}, plan=plan, adapter_folder=adapter, base=base, experiment=experiment
    )


def find_run(folder: Path) -> Path | None:
    """The run folder that a folder is, or that it is a checkpoint of; None for anything else."""
    resolved = folder.resolve()
    if (resolved / CONFIG_FILE).is_file() and not is_adapter_folder(resolved):
        return resolved
    parent = resolved.parent
    if parent.name == CHECKPOINTS and (parent.parent / CONFIG_FILE).is_file():
        return parent.parent
    return None


def find_checkpoint(run: Path) -> Path:
    """The checkpoint a run folder stands for: `best`, or the newest. Raises RunFolderError if there is none."""
    best = run / BEST
    if best.is_dir():
        return best.resolve()
    if best.is_symlink():
        raise RunFolderError(f"{best}: points to {best.readlink()}, which is gone. Name a checkpoint folder instead.")
    steps = sorted(path for path in (run / CHECKPOINTS).glob("step-*") if is_adapter_folder(path))
    if not steps:
        raise RunFolderError(
            f"{run}: this run has no checkpoint yet. Train it first (vlmtune train), or wait for its first checkpoint."
        )
    return steps[-1]
