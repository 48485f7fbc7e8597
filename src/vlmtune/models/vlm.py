"""The one wrapper: images to features, tokens to embeddings, a prefix tree to hidden states.

`inference/`, `train/` and `serve/` see only this. A family builds it from its tower, its decoder and a configuration
that says which connector joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vlmtune.models.cache import Cache
from vlmtune.models.config import VlmConfig
from vlmtune.models.connectors import Connector, build_connector, side_by_side
from vlmtune.models.decoder import Decoded, Decoder
from vlmtune.models.images import Grid, ProcessedImage, VisionFeatures, run_by_grid
from vlmtune.models.tree import Level
from vlmtune.models.vision import VisionTower

CONNECTOR = "model.multi_modal_projector"
"""Name of the connector's module."""


class VlmParts(nn.Module):
    """The three parts, under the names that `transformers` gives them in every family."""

    def __init__(self, vision_tower: VisionTower, connector: Connector, language_model: Decoder) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.multi_modal_projector = connector
        self.language_model = language_model


class VisionLanguageModel(nn.Module):
    """A vision tower, a connector and a decoder that runs prefix trees.

    Args:
        config: of the whole model.
        vision_tower, decoder: built from its parts.
    """

    def __init__(self, config: VlmConfig, vision_tower: VisionTower, decoder: Decoder) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = config.image_placeholder
        self.bidirectional_prompt = config.bidirectional_prompt
        self.model = VlmParts(vision_tower, build_connector(config.connector), decoder)

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary."""
        return self.model.language_model.embed_tokens.num_embeddings

    @property
    def num_tower_layers(self) -> int:
        return self.model.vision_tower.num_layers

    @property
    def device(self) -> torch.device:
        return self.model.language_model.embed_tokens.weight.device

    @property
    def connector(self) -> Connector:
        """The module between tower and decoder."""
        return self.model.multi_modal_projector

    def replace_connector(self, connector: Connector) -> None:
        """Replace the connector."""
        self.model.multi_modal_projector = connector

    def tower_features(self, images: Sequence[ProcessedImage]) -> list[VisionFeatures]:
        """The vision tower's output for each image, which `connect` reads. Tiles of one grid are one batch."""
        tiles = iter(run_by_grid([tile for image in images for tile in image.tiles], self._run_tower))
        return [
            VisionFeatures(_join(list(islice(tiles, len(image.tiles)))), tuple(grid for _, grid in image.tiles))
            for image in images
        ]

    def _run_tower(self, patches: Tensor, grid: Grid) -> Tensor:
        """float32[B, P, C] -> float[B, P, D * (1 + G)]: the output, and the means of the G groups a connector reads."""
        tower, groups = self.model.vision_tower, self.connector.shape.groups
        states: list[Tensor] | None = [] if groups else None
        output: Tensor = tower(patches.to(self.device, non_blocking=True), grid, states)
        return output if states is None else side_by_side(output, states, groups, tower.post_layernorm)

    def connect(self, features: Sequence[VisionFeatures]) -> list[Tensor]:
        """The connector: one float[T, D] per image, T its image tokens, in the decoder's embedding space."""
        tiles = iter(run_by_grid([tile for image in features for tile in image.tiles()], self.connector))
        return [_join(list(islice(tiles, len(image.grids)))) for image in features]

    def encode_images(self, images: Sequence[ProcessedImage]) -> list[Tensor]:
        """Tower and connector: one float[T, D] per image."""
        return self.connect(self.tower_features(images))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """int64[R] -> float[R, D], scaled as the decoder expects."""
        embedded: Tensor = self.model.language_model.embed_tokens(ids)
        return embedded

    def embed(self, ids: Tensor, image_features: Sequence[Tensor]) -> Tensor:
        """Embed tokens, and put the features of images where their placeholder tokens are, in order.

        Args:
            ids: int64[R], holding `image_token_id` wherever a token is an image's.
            image_features: float[T, D] each; in total one per placeholder.

        Returns:
            float[R, D].
        """
        is_image = ids == self.image_token_id
        num_placeholders, num_features = int(is_image.sum()), sum(len(features) for features in image_features)
        assert num_placeholders == num_features, f"{num_placeholders} image tokens for {num_features} image features"
        embeddings = self.embed_tokens(torch.where(is_image, 0, ids))
        if not num_placeholders:
            return embeddings
        features = torch.cat(list(image_features)).to(embeddings.dtype)
        return embeddings.masked_scatter(is_image[:, None].expand_as(embeddings), features)

    def decode(
        self, embeddings: Tensor, levels: Sequence[Level], cache: Cache | None = None, *, want_cache: bool = False
    ) -> Decoded:
        """Run new tokens on top of a cache: the one operation of a decoder.

        Args:
            embeddings: float[R, D], the tokens of all levels in packed order (level by level, segment by segment).
            levels: the tree; the first level continues ``cache``.
            cache: what was run before; None starts from one empty segment.
            want_cache: also return the cache after the last level, to be continued later.

        Returns:
            The hidden states of the tokens marked `read`. Gradients flow to the embeddings and into ``cache``.
        """
        decoded: Decoded = self.model.language_model(embeddings, levels, cache, want_cache)
        return decoded

    def logits(self, hidden: Tensor) -> Tensor:
        """float[N, D] -> float32[N, V]."""
        return self.model.language_model.logits(hidden)

    def activation_bytes_per_token(self) -> int:
        """Approximate bytes that a decoder token keeps for the backward pass, without checkpointing."""
        return self.model.language_model.activation_bytes_per_token()

    def checkpoint_activations(self, enabled: bool) -> None:
        """Keep only each layer's input for the backward pass and compute the layer again there, or not."""
        self.model.language_model.checkpoint_activations = enabled

    def config_dict(self) -> dict[str, Any]:
        """The configuration as the checkpoint's `config.json` holds it (what `transformers` reads)."""
        return self.config.to_dict()


def _join(tiles: list[Tensor]) -> Tensor:
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)
