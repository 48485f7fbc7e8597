"""SigLIP2 NaFlex vision tower: images of any aspect ratio as a grid of patches.

In: patches of one grid shape. Out: a feature for every patch. Source: SigLIP 2 (arXiv 2502.14786);
parameter names are those of `transformers`' `Siglip2VisionModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.attention import attention
from vlmtune.models.configuration import ModelConfig
from vlmtune.models.connectors import LayerGroup, side_by_side
from vlmtune.models.images import Grid, group_by_grid
from vlmtune.models.kernels import fused_linear


@dataclass(frozen=True)
class Siglip2Config(ModelConfig):
    """Field names are the checkpoint's."""

    model_type: str = "siglip2_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    num_patches: int = 256  # of the square grid that the position embeddings were trained on
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = False  # a pooling head: no VLM here reads it, so it is never built


class Siglip2Embeddings(nn.Module):
    """Linear patch embedding plus position embeddings resized to the image's grid."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.side = round(config.num_patches**0.5)
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid: float[P, D]."""
        table = self.position_embedding.weight
        square = table.view(self.side, self.side, -1).permute(2, 0, 1)[None]
        # fp32: antialiased interpolation has no bfloat16 kernel on the CPU.
        resized = F.interpolate(square.float(), size=grid, mode="bilinear", align_corners=False, antialias=True)
        return resized[0].flatten(1).T.to(table.dtype)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        embedded: Tensor = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        return embedded + self.positions(grid)


class Siglip2Attention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        B, P, D = x.shape
        heads = (B, P, self.num_heads, D // self.num_heads)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (fused_linear(project, x).view(heads).transpose(1, 2) for project in projections)
        mixed = attention(q, k, v)  # [B, H, P, d]
        return fused_linear(self.out_proj, mixed.transpose(1, 2).reshape(B, P, D))


class Siglip2MLP(nn.Module):
    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return fused_linear(self.fc2, fused_linear(self.fc1, x, gelu="tanh"))


class Siglip2Layer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Siglip2Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Siglip2MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Siglip2Encoder(nn.Module):
    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Siglip2Layer(config) for _ in range(config.num_hidden_layers))


class Siglip2VisionModel(nn.Module):
    """The tower."""

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Siglip2Embeddings(config)
        self.encoder = Siglip2Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, grid: tuple[int, int], intermediates: list[Tensor] | None = None) -> Tensor:
        """Encode images that share one grid shape, so that nothing is padded.

        Args:
            patches: float32[B, P, patch * patch * channels], row-major over the grid.
            grid: rows and columns of patches; P is their product.
            intermediates: filled with float[B, P, D] after the embedding and after every layer, if given
                (dense connectors and layer-by-layer parity read them).

        Returns:
            float[B, P, D].
        """
        x: Tensor = self.embeddings(patches, grid)
        for layer in self.encoder.layers:
            if intermediates is not None:
                intermediates.append(x)
            x = layer(x)
        if intermediates is not None:
            intermediates.append(x)
        out: Tensor = self.post_layernorm(x)
        return out


def encode_tiles(
    tower: Siglip2VisionModel, tiles: Sequence[tuple[Tensor, Grid]], groups: Sequence[LayerGroup] = ()
) -> list[Tensor]:
    """Run tiles through the tower, one batch a grid shape.

    Args:
        tiles: float32[P, C] patches with their grid.
        groups: of layers, whose means a dense connector reads beside the output.

    Returns:
        float[P, D * (1 + number of groups)] of each tile, in order.
    """
    device = tower.post_layernorm.weight.device
    features: list[Tensor] = [torch.empty(0)] * len(tiles)
    for grid, members in group_by_grid(grid for _, grid in tiles).items():
        patches = torch.stack([tiles[i][0] for i in members]).to(device, non_blocking=True)
        states: list[Tensor] | None = [] if groups else None
        encoded = tower(patches, grid, states)
        if states is not None:
            encoded = side_by_side(encoded, states, groups, tower.post_layernorm)
        for tile, own in zip(members, encoded.unbind(0), strict=True):
            features[tile] = own
    return features
