"""LFM2-VL: SigLIP2 NaFlex tower, pixel-unshuffle connector, LFM2 decoder.

Parameter names are those of `transformers`' `Lfm2VlForConditionalGeneration`; the head is tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.cache import Cache
from vlmtune.models.configuration import ModelConfig
from vlmtune.models.connectors import ConnectorShape, build_connector
from vlmtune.models.images import ProcessedImage, VisionFeatures, group_by_grid
from vlmtune.models.interface import Decoded, VisionLanguageModel
from vlmtune.models.lfm2_vl.decoder import Lfm2Config, Lfm2Model
from vlmtune.models.lfm2_vl.vision import Siglip2Config, Siglip2VisionModel, encode_tiles
from vlmtune.models.tree import Level


@dataclass(frozen=True)
class Lfm2VlConfig(ModelConfig):
    """Field names are the checkpoint's."""

    vision_config: Siglip2Config
    text_config: Lfm2Config
    model_type: str = "lfm2_vl"
    image_token_id: int = 396
    projector_hidden_act: str = "gelu"
    projector_hidden_size: int = 2560
    projector_bias: bool = True
    projector_use_layernorm: bool = True
    downsample_factor: int = 2  # side of the square of patches that becomes one image token

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads the older spelling `model_type: lfm2-vl`, and `image_token_index`."""
        values = {"vision_config": {}, "text_config": {}, **values, "model_type": "lfm2_vl"}
        if "image_token_index" in values:
            values.setdefault("image_token_id", values["image_token_index"])
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["text_config"] = self.text_config.to_dict()
        # The pooling head is neither built nor saved.
        values["vision_config"]["vision_use_head"] = False
        return values | {"architectures": ["Lfm2VlForConditionalGeneration"], "tie_word_embeddings": True}


class Lfm2VlModel(nn.Module):
    """The three parts, under the names the checkpoint gives them."""

    def __init__(self, config: Lfm2VlConfig) -> None:
        super().__init__()
        self.vision_tower = Siglip2VisionModel(config.vision_config)
        self.multi_modal_projector = build_connector(
            ConnectorShape(
                trunk="mlp",
                channels=config.vision_config.hidden_size,
                width=config.text_config.hidden_size,
                factor=config.downsample_factor,
                hidden_size=config.projector_hidden_size,
                bias=config.projector_bias,
                layer_norm=config.projector_use_layernorm,
            )
        )
        self.language_model = Lfm2Model(config.text_config)


class Lfm2Vl(VisionLanguageModel):
    """The whole model behind the one interface."""

    def __init__(self, config: Lfm2VlConfig) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = config.image_token_id
        self.vocab_size = config.text_config.vocab_size
        self.num_tower_layers = config.vision_config.num_hidden_layers
        self.model = Lfm2VlModel(config)

    def tower_features(self, images: Sequence[ProcessedImage]) -> list[VisionFeatures]:
        every = [tile for image in images for tile in image.tiles]
        tiles = iter(encode_tiles(self.model.vision_tower, every, self.connector.shape.groups))
        return [
            VisionFeatures(torch.cat(list(islice(tiles, len(image.tiles)))), tuple(grid for _, grid in image.tiles))
            for image in images
        ]

    def connect(self, features: Sequence[VisionFeatures]) -> list[Tensor]:
        tiles = [tile for image in features for tile in image.tiles()]
        tokens: list[Tensor] = [torch.empty(0)] * len(tiles)
        for grid, members in group_by_grid(grid for _, grid in tiles).items():
            projected = self.model.multi_modal_projector(torch.stack([tiles[i][0] for i in members]), grid)
            for tile, own in zip(members, projected.unbind(0), strict=True):
                tokens[tile] = own
        by_tile = iter(tokens)
        return [torch.cat(list(islice(by_tile, len(image.grids)))) for image in features]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.language_model.embed_tokens(ids)
        return embedded

    def decode(
        self,
        embeddings: Tensor,
        levels: Sequence[Level],
        cache: Cache | None = None,
        *,
        want_cache: bool = False,
    ) -> Decoded:
        decoded: Decoded = self.model.language_model(embeddings, levels, cache, want_cache)
        return decoded

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.language_model.embed_tokens.weight).float()

    @property
    def device(self) -> torch.device:
        return self.model.language_model.embed_tokens.weight.device

    def activation_bytes_per_row(self) -> int:
        text = self.config.text_config
        # Norms, gates, projections and residuals: about ten vectors of the width a layer, and three of the MLP's.
        per_layer = 10 * text.hidden_size + 3 * text.feed_forward_size
        return per_layer * len(text.layer_types) * self.model.language_model.embed_tokens.weight.element_size()

    def checkpoint_activations(self, enabled: bool) -> None:
        self.model.language_model.checkpoint_activations = enabled

    def config_dict(self) -> dict[str, Any]:
        return self.config.to_dict()
