"""SigLIP: square images of one fixed size as a grid of patches. See `models/vision.py`.

Parameter names are those of `transformers`' `SiglipVisionModel`. Its transformer is the one that SigLIP 2 kept.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.images import Grid
from vlmtune.models.paligemma.config import SiglipConfig
from vlmtune.models.vision import SiglipLayer, VisionTower


class SiglipEmbeddings(nn.Module):
    """Patch embedding plus one learned position for each patch of the one grid."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        # The checkpoint holds a convolution, float[D, 3, p, p]; on patches cut beforehand it is a linear layer.
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.side**2, config.hidden_size)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        weight = self.patch_embedding.weight
        embedded = F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)
        return embedded + self.position_embedding.weight


class SiglipVisionModel(VisionTower):
    """The tower."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(
            embeddings=SiglipEmbeddings(config),
            layers=(SiglipLayer(config) for _ in range(config.num_hidden_layers)),
            post_layernorm=nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
        )
