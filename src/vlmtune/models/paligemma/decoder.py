"""Gemma's decoders of both generations.

Sources: Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118); parameter names are those of `transformers`'
`GemmaModel` and `Gemma2Model`. Read bottom-up: embedding, attention, layer, decoder.

Gemma 2 is Gemma with five changes: scores and logits are capped by a tanh, every other layer sees a sliding window,
what a layer adds is normalized too, queries are scaled by a separate constant, and keys have more heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmtune.models.attention import attend
from vlmtune.models.cache import AttentionCache, LayerCache
from vlmtune.models.decoder import Decoder, DecoderLayer
from vlmtune.models.layers import GluMLP, Linear, RMSNorm, Rope, rotate
from vlmtune.models.paligemma.config import GemmaConfig
from vlmtune.models.plan import DecodePlan, TokenSet


class GemmaEmbedding(nn.Embedding):
    """Token embeddings times √D: the table is also the head's, which needs it smaller than the residual stream."""

    def forward(self, ids: Tensor) -> Tensor:
        # Rounded to the table's type first, as in training: √3072 = 55.43 is 55.5 in bfloat16.
        scale = torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype)
        return super().forward(ids) * scale.item()


class GemmaAttention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: GemmaConfig, kind: str, first_position: int) -> None:
        super().__init__()
        self.head_dim, self.scale = config.head_dim, config.attention_scale
        self.softcap = config.attn_logit_softcapping
        self.window = config.sliding_window if kind == "sliding_attention" else None
        self.rope = Rope(config.head_dim, config.rope_theta, first_position)
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = Linear(config.num_attention_heads * self.head_dim, width, bias=bias)

    def forward(
        self, x: Tensor, plan: DecodePlan, tokens: TokenSet, cache: AttentionCache
    ) -> tuple[Tensor, AttentionCache]:
        """Keys and values of all tokens; queries, and so outputs, of ``tokens`` only: float[R', D]."""
        heads = (-1, self.head_dim)
        k = rotate(self.k_proj(x).unflatten(-1, heads), plan.angles(self.rope, plan.all, x.dtype))  # [R, KV, d]
        v = self.v_proj(x).unflatten(-1, heads)
        q = self.q_proj(plan.narrow(x, tokens)).unflatten(-1, heads)  # [R', H, d]
        q = rotate(q, plan.angles(self.rope, tokens, x.dtype))
        mixed, cache = attend(q, k, v, plan, tokens, cache, scale=self.scale, softcap=self.softcap, window=self.window)
        out: Tensor = self.o_proj(mixed)
        return out, cache


class GemmaLayer(DecoderLayer):
    """Pre-norm block; in Gemma 2 with norms after attention and MLP as well.

    `post_attention_layernorm` is what it says in Gemma 2 only: in Gemma 1 it precedes the MLP.
    """

    def __init__(self, config: GemmaConfig, kind: str, first_position: int) -> None:
        super().__init__()
        self.config = config
        self.self_attn = GemmaAttention(config, kind, first_position)
        self.mlp = GluMLP(
            config.hidden_size, config.intermediate_size, "gelu_tanh", names=("gate_proj", "up_proj", "down_proj")
        )
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)
        if config.is_gemma2:
            self.pre_feedforward_layernorm = _norm(config)
            self.post_feedforward_layernorm = _norm(config)

    def empty_cache(self, dtype: torch.dtype, device: torch.device) -> LayerCache:
        return AttentionCache.empty(self.config.num_key_value_heads, self.config.head_dim, dtype, device)

    def forward(self, x: Tensor, plan: DecodePlan, tokens: TokenSet, cache: LayerCache) -> tuple[Tensor, LayerCache]:
        assert isinstance(cache, AttentionCache)
        mixed, cache = self.self_attn(self.input_layernorm(x), plan, tokens, cache)
        x = plan.narrow(x, tokens)
        if self.config.is_gemma2:
            x = x + self.post_attention_layernorm(mixed)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))), cache
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class GemmaModel(Decoder):
    """The decoder of either generation, with its tied head, capped in Gemma 2.

    Args:
        config: which generation, and its sizes.
        first_position: of a path's first token.
    """

    def __init__(self, config: GemmaConfig, first_position: int = 0) -> None:
        super().__init__(
            embed_tokens=GemmaEmbedding(config.vocab_size, config.hidden_size),
            layers=(GemmaLayer(config, kind, first_position) for kind in config.layer_types),
            norm_name="norm",
            norm=_norm(config),
            logit_softcap=config.final_logit_softcapping,
        )


def _norm(config: GemmaConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, one_offset=True)
