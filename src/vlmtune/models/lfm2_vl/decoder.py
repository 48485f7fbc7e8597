"""LFM2's decoder: short convolutions mixed with grouped-query attention.

Parameter names are those of `transformers`' `Lfm2Model`. Read bottom-up: convolution, attention, layer, decoder. Linear
layers see one packed matrix float[R, D] of all tokens; only attention looks at levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmtune.models.attention import attend
from vlmtune.models.cache import AttentionCache, ConvCache, LayerCache
from vlmtune.models.decoder import Decoder, DecoderLayer
from vlmtune.models.layers import GluMLP, Linear, RMSNorm, Rope, rotate
from vlmtune.models.lfm2_vl.config import Lfm2Config
from vlmtune.models.packing import tree_conv
from vlmtune.models.plan import DecodePlan, TokenSet


class DepthwiseConv(nn.Module):
    """Holds the kernel under the checkpoint's name and shape: float[D, 1, K], taps oldest first."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, 1, config.conv_L_cache))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if config.conv_bias else None


class Lfm2ShortConv(nn.Module):
    """A gated depthwise convolution over each token's own path: out_gate ⊙ conv(in_gate ⊙ x)."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.conv = DepthwiseConv(config)
        self.in_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.conv_bias)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, bias=config.conv_bias)

    def forward(self, x: Tensor, tokens: TokenSet, cache: ConvCache) -> tuple[Tensor, ConvCache]:
        in_gate, out_gate, x = self.in_proj(x).chunk(3, dim=-1)  # [R', D] each
        # The cache is what the convolution reads: the *gated* input.
        gated = in_gate * x
        inputs = torch.cat([cache.inputs.flatten(0, 1).to(gated.dtype), gated])  # [G0 * (K-1) + R', D]
        mixed = tree_conv(inputs, tokens.previous, self.conv.weight.squeeze(1), self.conv.bias)
        out: Tensor = self.out_proj(out_gate * mixed)
        return out, ConvCache(inputs[tokens.ends])


class Lfm2Attention(nn.Module):
    """Grouped-query attention with normalized queries and keys."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.rope = Rope(config.head_dim, config.rope_theta)
        self.q_proj = Linear(width, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.out_proj = Linear(config.num_attention_heads * self.head_dim, width, bias=False)
        self.q_layernorm = RMSNorm(self.head_dim, config.norm_eps)
        self.k_layernorm = RMSNorm(self.head_dim, config.norm_eps)

    def forward(
        self, x: Tensor, plan: DecodePlan, tokens: TokenSet, cache: AttentionCache
    ) -> tuple[Tensor, AttentionCache]:
        """Keys and values of all tokens; queries, and so outputs, of ``tokens`` only: float[R', D]."""
        heads = (-1, self.head_dim)
        k = self.k_layernorm(self.k_proj(x).unflatten(-1, heads))  # [R, KV, d]
        v = self.v_proj(x).unflatten(-1, heads)
        q = self.q_layernorm(self.q_proj(plan.narrow(x, tokens)).unflatten(-1, heads))  # [R', H, d]
        k = rotate(k, plan.angles(self.rope, plan.all, x.dtype))
        q = rotate(q, plan.angles(self.rope, tokens, x.dtype))
        mixed, cache = attend(q, k, v, plan, tokens, cache)
        out: Tensor = self.out_proj(mixed)
        return out, cache


class Lfm2Layer(DecoderLayer):
    """Pre-norm block whose mixer is a short convolution or attention."""

    def __init__(self, config: Lfm2Config, kind: str) -> None:
        super().__init__()
        self.config = config
        self.is_attention = kind == "full_attention"
        self.num_inputs = 0 if self.is_attention else config.conv_L_cache - 1
        if self.is_attention:
            self.self_attn = Lfm2Attention(config)
        else:
            self.conv = Lfm2ShortConv(config)
        self.feed_forward = GluMLP(config.hidden_size, config.feed_forward_size, "silu", names=("w1", "w3", "w2"))
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def empty_cache(self, dtype: torch.dtype, device: torch.device) -> LayerCache:
        if self.is_attention:
            return AttentionCache.empty(self.config.num_key_value_heads, self.config.head_dim, dtype, device)
        return ConvCache.empty(self.num_inputs, self.config.hidden_size, dtype, device)

    def forward(self, x: Tensor, plan: DecodePlan, tokens: TokenSet, cache: LayerCache) -> tuple[Tensor, LayerCache]:
        normed = self.operator_norm(x)
        if isinstance(cache, AttentionCache):
            mixed, cache = self.self_attn(normed, plan, tokens, cache)
        else:
            mixed, cache = self.conv(normed, tokens, cache)
        x = plan.narrow(x, tokens) + mixed
        return x + self.feed_forward(self.ffn_norm(x)), cache


class Lfm2Model(Decoder):
    """The decoder, with its tied head."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__(
            embed_tokens=nn.Embedding(config.vocab_size, config.hidden_size),
            layers=(Lfm2Layer(config, kind) for kind in config.layer_types),
            norm_name="embedding_norm",
            norm=RMSNorm(config.hidden_size, config.norm_eps),
        )
