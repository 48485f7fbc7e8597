"""SigLIP vision tower: square images of one fixed size as a grid of patches.

In: patches. Out: a feature for every patch. Source: SigLIP (arXiv 2303.15343); parameter names are those of
`transformers`' `SiglipVisionModel`. Its transformer is the one that SigLIP 2 kept, and is taken from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.configuration import ModelConfig
from vlmtune.models.connectors import LayerGroup, side_by_side
from vlmtune.models.lfm2_vl.vision import Siglip2Config, Siglip2Encoder


@dataclass(frozen=True)
class SiglipConfig(ModelConfig):
    """Field names and defaults are the checkpoint's."""

    model_type: str = "siglip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224  # pixels a side
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = False  # a pooling head: no VLM here reads it, so it is never built

    @property
    def side(self) -> int:
        """Patches a side; pixels that fill no whole patch are left out, as by a strided convolution."""
        return self.image_size // self.patch_size

    @property
    def encoder(self) -> Siglip2Config:
        """The transformer's part, in the words of the file that builds it."""
        return Siglip2Config(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            layer_norm_eps=self.layer_norm_eps,
        )


class SiglipEmbeddings(nn.Module):
    """Patch embedding plus one learned position for each patch of the one grid."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        # The checkpoint holds a convolution, float[D, 3, p, p]; on patches cut beforehand it is a linear layer.
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.side**2, config.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.patch_embedding.weight
        embedded = F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)
        return embedded + self.position_embedding.weight


class SiglipVisionModel(nn.Module):
    """The tower."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = Siglip2Encoder(config.encoder)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, intermediates: list[Tensor] | None = None) -> Tensor:
        """Encode images.

        Args:
            patches: float32[B, P, channels * patch * patch], row-major over the grid, channels first in a patch.
            intermediates: filled with float[B, P, D] after the embedding and after every layer, if given
                (dense connectors and layer-by-layer parity read them).

        Returns:
            float[B, P, D].
        """
        x: Tensor = self.embeddings(patches)
        for layer in self.encoder.layers:
            if intermediates is not None:
                intermediates.append(x)
            x = layer(x)
        if intermediates is not None:
            intermediates.append(x)
        out: Tensor = self.post_layernorm(x)
        return out

    def read(self, patches: Tensor, groups: Sequence[LayerGroup]) -> Tensor:
        """What a connector reads: the output, and beside it the means of groups of layers, float[B, P, D * (1 + G)]."""
        states: list[Tensor] | None = [] if groups else None
        output: Tensor = self(patches, states)
        return output if states is None else side_by_side(output, states, groups, self.post_layernorm)
