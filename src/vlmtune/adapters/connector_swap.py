"""Another connector on an opened model: which one a file means, how it gets in, what it starts from, what can ship it.

In: `model.connector` of an experiment. Out: the model and its image processor changed in place. `open.py` calls it for
training (`put_connector`) and for what was trained (`open_adapted`).
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
"""Key of adapter_config.json under which a connector's shape stands."""
PEFT_TYPE = "LORA_WITH_VLMTUNE_CONNECTOR"
"""`peft_type` of an adapter with a connector that only vlmtune has: PEFT would load it with a warning, and without the
connector; this it refuses."""

_MLP_FACTOR = 2  # of a pixel-unshuffle that a model family has not decided itself


def wanted_shape(section: ConnectorSection, model: VisionLanguageModel) -> ConnectorShape:
    """The shape an experiment's connector has on a model. Raises ConfigError for layers the tower does not have."""
    own = model.connector.shape
    assert own.variant is None, "a connector is put on a plain model"
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
        return dataclasses.replace(own, variant=variant, groups=groups)
    if section.kind in ("own", own.trunk):
        return own
    if section.kind == "linear":
        return ConnectorShape("linear", own.channels, own.width, own.factor)
    return ConnectorShape("mlp", own.channels, own.width, _MLP_FACTOR, hidden_size=own.width)


def install_connector(model: VisionLanguageModel, shape: ConnectorShape) -> Connector:
    """Put a connector of a shape in the place of the base's own; its weights are to be set. Returns it."""
    own = model.connector
    with torch.device("meta"):
        connector = build_connector(shape)
    connector.replaced = own.shape
    place = next(own.parameters())
    model.replace_connector(connector.to(place.dtype).to_empty(device=place.device).train(own.training))
    return connector


def follow_connector(opened: OpenedModel, before: Connector) -> None:
    """Let the image processor write as many image tokens as the new connector makes."""
    after = opened.model.connector
    if after.shape.variant == "sti" or after.shape.factor != before.shape.factor:
        opened.processor = ConnectedProcessor(opened.processor, opened.tokenizer.image_token, before, after)


@dataclass(frozen=True)
class ConnectedProcessor:
    """A model's image processor whose placeholder text follows a connector that makes another number of tokens."""

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
    """Why no format outside vlmtune can hold this model's connector; None if each can.

    transformers, PEFT and GGUF know a family's own connector only: its weights may have been trained anew, its shape
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
