"""What every model family offers: images to features, tokens to embeddings, a prefix tree to hidden states.

`inference/`, `train/` and `serve/` see only this. A family adds a subclass, an image processor and a rename table
(`registry.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmtune.models.cache import Cache
from vlmtune.models.connectors import Connector
from vlmtune.models.images import ProcessedImage, VisionFeatures
from vlmtune.models.tree import Level

CONNECTOR = "model.multi_modal_projector"
"""Name of the connector's module."""


@dataclass
class Decoded:
    """What a decoder call gives back.

    Attributes:
        hidden: float[N, D], the final (normalized) hidden states of the rows that were marked `read`, in packed order.
        cache: the cache after the last level, if it was asked for.
    """

    hidden: Tensor
    cache: Cache | None


class VisionLanguageModel(nn.Module, ABC):
    """A vision tower, a connector and a decoder that runs prefix trees."""

    image_token_id: int
    vocab_size: int
    """V, the size of the vocabulary."""
    num_tower_layers: int

    bidirectional_prompt: bool = False
    """Whether all rows of a prompt see each other (a prefix-LM). Two such prompts share nothing, for each token of the
    first part sees the second: the tree begins at the end of each prompt."""

    @abstractmethod
    def tower_features(self, images: Sequence[ProcessedImage]) -> list[VisionFeatures]:
        """The vision tower: what `connect` reads of each image."""

    @abstractmethod
    def connect(self, features: Sequence[VisionFeatures]) -> list[Tensor]:
        """The connector: one float[T, D] an image, T its `num_tokens`, in the decoder's embedding space."""

    def encode_images(self, images: Sequence[ProcessedImage]) -> list[Tensor]:
        """Tower and connector: one float[T, D] an image."""
        return self.connect(self.tower_features(images))

    @property
    def connector(self) -> Connector:
        """What stands between tower and decoder, in every family under the name that `transformers` gives it."""
        connector = self.get_submodule(CONNECTOR)
        assert isinstance(connector, Connector)
        return connector

    def replace_connector(self, connector: Connector) -> None:
        """Put another connector in its place."""
        owner, _, leaf = CONNECTOR.rpartition(".")
        setattr(self.get_submodule(owner), leaf, connector)

    @abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """int64[R] -> float[R, D], scaled as the decoder wants its inputs."""

    @abstractmethod
    def decode(
        self,
        embeddings: Tensor,
        levels: Sequence[Level],
        cache: Cache | None = None,
        *,
        want_cache: bool = False,
    ) -> Decoded:
        """Run new rows on top of a cache: the one operation of a decoder.

        Args:
            embeddings: float[R, D], the rows of all levels in packed order (level by level, segment by segment).
            levels: the tree; the first level hangs on ``cache``.
            cache: what was run before; None starts from nothing, as one empty segment.
            want_cache: also return the cache after the last level, to be continued later.

        Returns:
            The hidden states of the rows marked `read`. Gradients flow to the embeddings and into ``cache``.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """float[N, D] -> float32[N, V]."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def activation_bytes_per_row(self) -> int:
        """About what a decoder row keeps for the backward pass, without checkpointing, in bytes."""

    @abstractmethod
    def checkpoint_activations(self, enabled: bool) -> None:
        """Keep only each layer's input for the backward pass and compute the layer again there, or not."""

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """The configuration as the checkpoint's `config.json` holds it (what `transformers` reads)."""

    def embed(self, ids: Tensor, image_features: Sequence[Tensor]) -> Tensor:
        """Embed tokens, with the features of images in the place of their placeholder tokens, in order.

        Args:
            ids: int64[R], holding `image_token_id` wherever a row is an image's.
            image_features: float[T, D] each; together as many rows as there are placeholders.

        Returns:
            float[R, D].
        """
        is_image = ids == self.image_token_id
        num_places, num_features = int(is_image.sum()), sum(len(features) for features in image_features)
        assert num_places == num_features, f"{num_places} image tokens for {num_features} image features"
        embeddings = self.embed_tokens(torch.where(is_image, 0, ids))
        if not num_places:
            return embeddings
        features = torch.cat(list(image_features)).to(embeddings.dtype)
        return embeddings.masked_scatter(is_image[:, None].expand_as(embeddings), features)
