"""Another connector on an opened model: its shape, its installation, and which formats can hold it.

In: `model.connector` of an experiment. Out: the model and its image processor changed in place. Called by `runs.open`,
for training (`put_connector`) and for what was trained (`open_adapted`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmtune.config.schema import ConnectorSection
from vlmtune.errors import AdapterError, ConfigError
from vlmtune.models.connectors import (
    Connector,
    ConnectorShape,
    build_connector,
    default_groups,
    respell,
)
from vlmtune.models.images import Grid, ProcessedImage
from vlmtune.models.registry import ImageProcessor, OpenedModel
from vlmtune.models.vlm import VisionLanguageModel

CONFIG_KEY = "vlmtune_connector"
"""Key of a connector's shape in adapter_config.json."""
PEFT_TYPE = "LORA_WITH_VLMTUNE_CONNECTOR"
"""`peft_type` of an adapter with a connector that only vlmtune has: PEFT would load it with a warning, and without the
connector; this it refuses."""

_MLP_FACTOR = 2  # for pixel-unshuffle where the model family does not set one


def wanted_shape(section: ConnectorSection, model: VisionLanguageModel) -> ConnectorShape:
    """The shape of an experiment's connector on a model. Raises ConfigError for layers the tower does not have."""
    base = model.connector.shape
    assert base.variant is None, "a connector is put on a plain model"
    if section.kind == "dense":
        variant = section.variant or "dci"
        groups = (
            default_groups(variant, model.num_tower_layers)
            if section.groups is None
            else tuple(_layers(group) for group in section.groups)
        )
        for group, (_, last) in zip(section.groups or (), groups, strict=False):
            if last > model.num_tower_layers:
                raise ConfigError(
                    f"model.connector.groups: found '{group}', but this tower has {model.num_tower_layers} layers: "
                    f"expected 0 (the embeddings' output) to {model.num_tower_layers} (the last layer's)."
                )
        return dataclasses.replace(base, variant=variant, groups=groups)
    if section.kind in ("own", base.trunk):
        return base
    if section.kind == "linear":
        return ConnectorShape("linear", base.channels, base.width, base.factor)
    return ConnectorShape("mlp", base.channels, base.width, _MLP_FACTOR, hidden_size=base.width)


def install_connector(model: VisionLanguageModel, shape: ConnectorShape) -> Connector:
    """Replace the base's connector by one of another shape, whose weights are yet to be set. Returns it."""
    base = model.connector
    with torch.device("meta"):
        connector = build_connector(shape)
    connector.replaced = base.shape
    like = next(base.parameters())
    model.replace_connector(connector.to(like.dtype).to_empty(device=like.device).train(base.training))
    return connector


def follow_connector(opened: OpenedModel, before: Connector) -> None:
    """Make the image processor write as many image tokens as the new connector outputs."""
    after = opened.model.connector
    if after.shape.variant == "sti" or after.shape.factor != before.shape.factor:
        opened.processor = ConnectedProcessor(opened.processor, opened.tokenizer.image_token, before, after)


@dataclass(frozen=True)
class ConnectedProcessor:
    """A model's image processor whose placeholder text matches the number of tokens the new connector makes."""

    inner: ImageProcessor
    image_token: str
    before: Connector
    after: Connector

    def process(self, image: Image.Image) -> ProcessedImage:
        return respell(self.inner.process(image), self.image_token, self.before, self.after)

    def restore(self, patches: Tensor, grid: Grid) -> Image.Image:
        return self.inner.restore(patches, grid)

    def save(self, folder: Path) -> None:
        """The base's own settings: the connector is saved with the adapter."""
        self.inner.save(folder)


def connector_is_exportable(model: VisionLanguageModel) -> str | None:
    """Why no other program's format can hold this model's connector; None if each can.

    transformers, PEFT and GGUF know only a family's own connector: its weights may be retrained, its shape
    must be the same.
    """
    connector = model.connector
    if connector.replaced is None or connector.replaced == connector.shape:
        return None
    return (
        f"this model has a {connector.shape}, and the format only knows the base's own, a {connector.replaced}. "
        "vlmtune opens, evaluates and serves the run folder itself; to export, train without model.connector."
    )


def shape_to_json(shape: ConnectorShape) -> dict[str, Any]:
    """For adapter_config.json."""
    return dataclasses.asdict(shape)


def shape_from_json(values: Mapping[str, Any], origin: Path) -> ConnectorShape:
    """What `shape_to_json` wrote. Raises AdapterError."""
    try:
        groups = tuple((int(first), int(last)) for first, last in values["groups"])
        return ConnectorShape(**{**values, "groups": groups})
    except (TypeError, ValueError, KeyError) as error:
        raise AdapterError(
            f"{origin}: '{CONFIG_KEY}' is not a connector that this version knows ({error}). "
            "Open it with the version of vlmtune that wrote it."
        ) from error


def _layers(group: str) -> tuple[int, int]:
    """`7` or `0-12`, checked by the schema."""
    first, _, last = group.partition("-")
    return int(first), int(last or first)
