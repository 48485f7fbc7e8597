"""LFM2 decoder: short convolutions mixed with grouped-query attention, run over prefix trees.

In: embeddings of new rows, their tree, and a cache. Out: hidden states of the rows that are read, and the new cache.
Parameter names are those of `transformers`' `Lfm2Model`. Read bottom-up: norm, convolution, attention, MLP, layer,
decoder. All linear layers see one packed matrix float[R, D] of every new row; only attention looks at levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmtune.errors import WeightsError
from vlmtune.models.cache import AttentionCache, Cache, ConvCache
from vlmtune.models.configuration import ModelConfig
from vlmtune.models.decoder_attention import attend, rope_angles, rotate
from vlmtune.models.interface import Decoded
from vlmtune.models.kernels import fused_linear, rms_norm, swiglu, tree_conv
from vlmtune.models.plan import DecodePlan, TokenSet, gather_rows
from vlmtune.models.tree import Level


@dataclass(frozen=True)
class Lfm2Config(ModelConfig):
    """Field names are the checkpoint's."""

    model_type: str = "lfm2"
    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288  # before the adjustment in `feed_forward_size`
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    layer_types: tuple[str, ...] = ()  # "full_attention" or "conv", one a layer
    norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    conv_L_cache: int = 3  # noqa: N815  kernel size K of the short convolutions
    conv_bias: bool = False
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: float = 1.0
    block_multiple_of: int = 256
    max_position_embeddings: int = 128_000
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads the older spellings: `full_attn_idxs`, `block_*` names, and `rope_parameters`."""
        values = dict(values)
        num_layers = values.get("num_hidden_layers", cls.num_hidden_layers)
        if values.get("layer_types") is None:
            attention = values.get("full_attn_idxs")
            attention = range(num_layers) if attention is None else attention
            values["layer_types"] = ["full_attention" if i in attention else "conv" for i in range(num_layers)]
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise WeightsError(f"config.json: rope_type '{rope['rope_type']}' is not supported; LFM2 uses 'default'.")
        values["rope_theta"] = float(rope.get("rope_theta") or values.get("rope_theta") or cls.rope_theta)
        values["block_ffn_dim_multiplier"] = float(values.get("block_ffn_dim_multiplier") or 1.0)
        unknown = set(values["layer_types"]) - {"full_attention", "conv"}
        if unknown or len(values["layer_types"]) != num_layers:
            raise WeightsError(
                f"config.json: layer_types {values['layer_types']} must name 'full_attention' or 'conv' for each of "
                f"{num_layers} layers."
            )
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["rope_parameters"] = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
        values["layer_types"] = list(self.layer_types)
        values["full_attn_idxs"] = [i for i, kind in enumerate(self.layer_types) if kind == "full_attention"]
        return values | {"tie_word_embeddings": True}

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def feed_forward_size(self) -> int:
        """Width of the MLP: two thirds of `intermediate_size`, rounded up, unless the checkpoint says exactly."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        size = int(self.block_ffn_dim_multiplier * int(2 * self.intermediate_size / 3))
        return -(-size // self.block_multiple_of) * self.block_multiple_of


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class DepthwiseConv(nn.Module):
    """Holds the kernel under the checkpoint's name and shape: float[D, 1, K], taps oldest first."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, 1, config.conv_L_cache))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if config.conv_bias else None


class Lfm2ShortConv(nn.Module):
    """A gated depthwise convolution over each row's own path: y = C ⊙ conv(B ⊙ x)."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.conv = DepthwiseConv(config)
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.conv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.conv_bias)

    def forward(self, x: Tensor, rows: TokenSet, cache: ConvCache) -> tuple[Tensor, ConvCache]:
        B, C, x = fused_linear(self.in_proj, x).chunk(3, dim=-1)
        # The cache is what the convolution reads: the *gated* input, after B.
        gated = B * x
        inputs = torch.cat([cache.inputs.flatten(0, 1).to(gated.dtype), gated])  # [G0 * (K-1) + R, D]
        mixed = tree_conv(inputs, rows.previous, self.conv.weight.squeeze(1), self.conv.bias)
        out: Tensor = fused_linear(self.out_proj, C * mixed)
        return out, ConvCache(inputs[rows.ends])


class Lfm2Attention(nn.Module):
    """Grouped-query attention with normalized queries and keys, level by level of the tree."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_layernorm = RMSNorm(self.head_dim, config.norm_eps)
        self.k_layernorm = RMSNorm(self.head_dim, config.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], tree: DecodePlan, queries: TokenSet, cache: AttentionCache
    ) -> tuple[Tensor, AttentionCache]:
        """Keys and values of every row of the tree; queries, and so outputs, of the rows in ``queries`` only."""
        k = rotate(self.k_layernorm(fused_linear(self.k_proj, x).view(-1, self.num_kv_heads, self.head_dim)), *rope)
        v = fused_linear(self.v_proj, x).view(-1, self.num_kv_heads, self.head_dim)
        if queries is not tree.full:
            assert tree.kept is not None
            x, rope = gather_rows(x, tree.kept), (rope[0][tree.kept], rope[1][tree.kept])
        q = rotate(self.q_layernorm(fused_linear(self.q_proj, x).view(-1, self.num_heads, self.head_dim)), *rope)
        mixed, cache = attend(q, k, v, tree, queries, cache)
        out: Tensor = fused_linear(self.out_proj, mixed)
        return out, cache


class Lfm2MLP(nn.Module):
    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.w2 = nn.Linear(config.feed_forward_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = fused_linear(self.w2, swiglu(fused_linear(self.w1, x), fused_linear(self.w3, x)))
        return out


class Lfm2Layer(nn.Module):
    """Pre-norm block whose mixer is a short convolution or attention."""

    def __init__(self, config: Lfm2Config, kind: str) -> None:
        super().__init__()
        if kind == "full_attention":
            self.self_attn = Lfm2Attention(config)
        else:
            self.conv = Lfm2ShortConv(config)
        self.is_attention = kind == "full_attention"
        self.feed_forward = Lfm2MLP(config)
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        tree: DecodePlan,
        rows: TokenSet,
        cache: AttentionCache | ConvCache,
    ) -> tuple[Tensor, AttentionCache | ConvCache]:
        """``rows`` are the rows that come out. An attention layer may drop rows that nothing above it reads."""
        normed = self.operator_norm(x)
        if self.is_attention:
            assert isinstance(cache, AttentionCache)
            mixed, new_cache = self.self_attn(normed, rope, tree, rows, cache)
        else:
            assert isinstance(cache, ConvCache)
            mixed, new_cache = self.conv(normed, rows, cache)
        if len(mixed) < len(x):
            x = gather_rows(x, tree.kept)
        x = x + mixed
        return x + self.feed_forward(self.ffn_norm(x)), new_cache


class Lfm2Model(nn.Module):
    """The decoder, without its (tied) head."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Lfm2Layer(config, kind) for kind in config.layer_types)
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)
        attention = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        self.last_attention = max(attention, default=-1)
        self.checkpoint_activations = False

    def empty_cache(self, dtype: torch.dtype, device: torch.device) -> Cache:
        """The cache before any token: one empty path."""
        config = self.config
        nothing = torch.zeros(1, config.num_key_value_heads, 0, config.head_dim, dtype=dtype, device=device)
        no_inputs = torch.zeros(1, config.conv_L_cache - 1, config.hidden_size, dtype=dtype, device=device)
        return Cache(
            layers=[
                AttentionCache(nothing, nothing) if kind == "full_attention" else ConvCache(no_inputs)
                for kind in config.layer_types
            ],
            valid=torch.zeros(1, 0, dtype=torch.bool),
            positions=torch.zeros(1, 0, dtype=torch.int64),
            lengths=torch.zeros(1, dtype=torch.int64),
        )

    def forward(self, embeddings: Tensor, levels: Sequence[Level], cache: Cache | None, want_cache: bool) -> Decoded:
        """See `VisionLanguageModel.decode`."""
        cache = cache or self.empty_cache(embeddings.dtype, embeddings.device)
        tree = DecodePlan(
            levels,
            cache,
            num_inputs=self.config.conv_L_cache - 1,
            num_convs_above=len(self.layers) - 1 - self.last_attention,
            want_cache=want_cache,
            device=embeddings.device,
        )
        rope = rope_angles(tree.full.positions, self.config.head_dim, self.config.rope_theta, embeddings.dtype)
        x, layer_states = embeddings, []
        for index, (layer, layer_cache) in enumerate(zip(self.layers, cache.layers, strict=True)):
            # From the last attention layer on, only rows that something reads are computed.
            rows = tree.full if index < self.last_attention else tree.narrow
            if index == 0 and self.last_attention < 0:
                x = gather_rows(x, tree.kept)
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, new_cache = checkpoint(layer, x, rope, tree, rows, layer_cache, use_reentrant=False)
            else:
                x, new_cache = layer(x, rope, tree, rows, layer_cache)
            if want_cache:
                layer_states.append(new_cache)  # otherwise a layer's keys and values go with the layer
        hidden = self.embedding_norm(x[tree.read])
        if not want_cache:
            return Decoded(hidden, None)
        return Decoded(hidden, Cache(layer_states, tree.end_valid, tree.end_positions, tree.end_lengths))
