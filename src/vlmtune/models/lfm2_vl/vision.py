"""SigLIP2 NaFlex: images of any aspect ratio as a grid of patches. See `models/vision.py`.

Parameter names are those of `transformers`' `Siglip2VisionModel`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.images import Grid
from vlmtune.models.layers import Linear
from vlmtune.models.lfm2_vl.config import Siglip2Config
from vlmtune.models.vision import SiglipLayer, VisionTower


class Siglip2Embeddings(nn.Module):
    """Linear patch embedding plus position embeddings resized to the image's grid."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.side = round(config.num_patches**0.5)
        self.patch_embedding = Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def positions(self, grid: Grid) -> Tensor:
        """Position embeddings for a grid: float[P, D]."""
        table = self.position_embedding.weight
        square = table.view(self.side, self.side, -1).permute(2, 0, 1)[None]
        # fp32: antialiased interpolation has no bfloat16 kernel on the CPU.
        resized = F.interpolate(square.float(), size=grid, mode="bilinear", align_corners=False, antialias=True)
        return resized[0].flatten(1).T.to(table.dtype)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        embedded: Tensor = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        return embedded + self.positions(grid)


class Siglip2VisionModel(VisionTower):
    """The tower."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__(
            embeddings=Siglip2Embeddings(config),
            layers=(SiglipLayer(config) for _ in range(config.num_hidden_layers)),
            post_layernorm=nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
        )
