"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): SigLIP tower, linear connector, Gemma decoder.

A prefix-LM: image and prompt see each other in both directions, the answer follows causally. Parameter names are
those of `transformers`' `PaliGemmaForConditionalGeneration`; the head is tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlmtune.errors import WeightsError
from vlmtune.models.cache import Cache
from vlmtune.models.configuration import ModelConfig
from vlmtune.models.connectors import ConnectorShape, build_connector
from vlmtune.models.images import ProcessedImage, VisionFeatures
from vlmtune.models.interface import Decoded, VisionLanguageModel
from vlmtune.models.paligemma.decoder import GemmaConfig, GemmaModel
from vlmtune.models.paligemma.vision import SiglipConfig, SiglipVisionModel
from vlmtune.models.tree import Level


@dataclass(frozen=True)
class PaliGemmaConfig(ModelConfig):
    """Field names are the checkpoint's."""

    vision_config: SiglipConfig
    text_config: GemmaConfig
    model_type: str = "paligemma"  # of both generations
    image_token_index: int = 256_000
    projection_dim: int = 2048  # the decoder's width

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads `image_token_id`. Raises WeightsError for a decoder that is not Gemma, or of another width."""
        values = {"vision_config": {}, "text_config": {}, **values}
        if "image_token_id" in values:
            values.setdefault("image_token_index", values["image_token_id"])
        for part, known in (("text_config", ("gemma", "gemma2")), ("vision_config", ("siglip_vision_model",))):
            found = values[part].get("model_type", known[0])
            if found not in known:
                raise WeightsError(f"config.json: {part}.model_type is '{found}'; PaliGemma's is {' or '.join(known)}.")
        config = super().from_dict(values)
        if config.projection_dim != config.text_config.hidden_size:
            raise WeightsError(
                f"config.json: projection_dim {config.projection_dim} is not the decoder's hidden_size "
                f"{config.text_config.hidden_size}. Is config.json that of these weights?"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["text_config"] = self.text_config.to_dict()
        # The pooling head is neither built nor saved.
        values["vision_config"]["vision_use_head"] = False
        return values | {"architectures": ["PaliGemmaForConditionalGeneration"], "tie_word_embeddings": True}


class PaliGemmaModel(nn.Module):
    """The three parts, under the names the checkpoint gives them."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.vision_tower = SiglipVisionModel(config.vision_config)
        # Its outputs enter as they are, beside embeddings times √D: no scale of their own. (transformers once divided
        # them by √D, for its decoder to multiply all inputs by it.)
        self.multi_modal_projector = build_connector(
            ConnectorShape("linear", channels=config.vision_config.hidden_size, width=config.projection_dim)
        )
        # Positions count from one. Attention reads differences alone, but bfloat16 rounds each position's angle.
        self.language_model = GemmaModel(config.text_config, first_position=1)


class PaliGemma(VisionLanguageModel):
    """The whole model behind the one interface."""

    bidirectional_prompt = True

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = config.image_token_index
        self.vocab_size = config.text_config.vocab_size
        self.num_tower_layers = config.vision_config.num_hidden_layers
        self.model = PaliGemmaModel(config)

    def tower_features(self, images: Sequence[ProcessedImage]) -> list[VisionFeatures]:
        # Every image has the one size, so all are one batch.
        patches = torch.stack([image.tiles[0][0] for image in images]).to(self.device, non_blocking=True)
        encoded = self.model.vision_tower.read(patches, self.connector.shape.groups)
        return [
            VisionFeatures(features, (image.tiles[0][1],))
            for features, image in zip(encoded.unbind(0), images, strict=True)
        ]

    def connect(self, features: Sequence[VisionFeatures]) -> list[Tensor]:
        patches = torch.stack([image.patches for image in features])
        return list(self.connector(patches, features[0].grids[0]).unbind(0))

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
        return self.model.language_model.logits(hidden)

    @property
    def device(self) -> torch.device:
        return self.model.language_model.embed_tokens.weight.device

    def activation_bytes_per_row(self) -> int:
        text = self.config.text_config
        # Norms, projections and residuals: about ten vectors of the width a layer, and three of the MLP's.
        per_layer = 10 * text.hidden_size + 3 * text.intermediate_size
        return per_layer * text.num_hidden_layers * self.model.language_model.embed_tokens.weight.element_size()

    def checkpoint_activations(self, enabled: bool) -> None:
        self.model.language_model.checkpoint_activations = enabled

    def config_dict(self) -> dict[str, Any]:
        return self.config.to_dict()
