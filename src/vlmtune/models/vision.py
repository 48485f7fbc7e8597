"""The vision tower's loop, and SigLIP's transformer block, which both generations of SigLIP share.

In: patches of one grid. Out: a feature for every patch. A family adds its embeddings (and its layers, where they
differ) in its `vision.py`. Sources: SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786); parameter names are those
of `transformers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from vlmtune.models.attention import attention
from vlmtune.models.images import Grid
from vlmtune.models.layers import Linear


class SiglipSizes(Protocol):
    """What the block reads of a tower's configuration; names are the checkpoint's."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...


class SiglipAttention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, config: SiglipSizes) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        B, P, D = x.shape
        heads = (B, P, self.num_heads, D // self.num_heads)
        q, k, v = (project(x).view(heads).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj))
        mixed = attention(q, k, v)  # [B, H, P, d]
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(B, P, D))
        return out


class SiglipMLP(nn.Module):
    def __init__(self, config: SiglipSizes) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(x, gelu="tanh"))
        return out


class SiglipLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: SiglipSizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    """Holds the layers under the checkpoint's name."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionTower(nn.Module):
    """Embeddings, layers, last norm.

    Args:
        embeddings: (float32[B, P, channels * patch * patch] patches, grid) -> float[B, P, D].
        layers: float[B, P, D] -> float[B, P, D] each.
        post_layernorm: of the output.
    """

    def __init__(self, embeddings: nn.Module, layers: Iterable[nn.Module], post_layernorm: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = Encoder(layers)
        self.post_layernorm = post_layernorm

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    def forward(self, patches: Tensor, grid: Grid, intermediates: list[Tensor] | None = None) -> Tensor:
        """Encode images that share one grid, so that nothing is padded.

        Args:
            patches: float32[B, P, channels * patch * patch], row-major over the grid.
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
