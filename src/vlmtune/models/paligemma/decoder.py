"""Gemma and Gemma 2 decoders, run over prefix trees.

In: embeddings of new rows, their tree, and a cache. Out: hidden states of the rows that are read, and the new cache.
Sources: Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118); parameter names are those of `transformers`'
`GemmaModel` and `Gemma2Model`. Read bottom-up: norm, embedding, attention, MLP, the two generations' layers, decoder.

Gemma 2 is Gemma with five changes: scores and logits are capped by a tanh, every other layer sees a sliding window,
what a layer adds is normalized too, queries are scaled by a number of their own, and keys have more heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmtune.errors import WeightsError
from vlmtune.models.cache import AttentionCache, Cache
from vlmtune.models.configuration import ModelConfig
from vlmtune.models.decoder_attention import attend, rope_angles, rotate
from vlmtune.models.interface import Decoded
from vlmtune.models.kernels import geglu, rms_norm
from vlmtune.models.plan import DecodePlan, TokenSet, gather_rows
from vlmtune.models.tree import Level

# What a Gemma 2 checkpoint means by a field that it leaves out, where Gemma means something else.
_GEMMA2: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}


@dataclass(frozen=True)
class GemmaConfig(ModelConfig):
    """Field names are the checkpoint's. A field that is None is a thing that Gemma 1 does not have."""

    model_type: str = "gemma"  # or "gemma2"
    vocab_size: int = 256_000
    hidden_size: int = 3072
    intermediate_size: int = 24_576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256  # of its own: heads together may be wider than the model
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    attention_bias: bool = False
    max_position_embeddings: int = 8192
    bos_token_id: int = 2
    eos_token_id: int | tuple[int, ...] = 1
    pad_token_id: int = 0
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: head_dim
    attn_logit_softcapping: float | None = None  # scores stay within ± this
    final_logit_softcapping: float | None = None  # logits likewise
    sliding_window: int | None = None  # positions that a "sliding_attention" layer sees
    layer_types: tuple[str, ...] = ()  # "full_attention" or "sliding_attention", one a layer

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads `rope_parameters`. Raises WeightsError for what this network does not compute."""
        is_gemma2 = values.get("model_type") == "gemma2"
        # A null is a file's way to leave a field out, except where it switches a cap off.
        values = {key: value for key, value in values.items() if value is not None or key.endswith("softcapping")}
        values = {**(_GEMMA2 if is_gemma2 else {}), **values}
        num_layers = values.get("num_hidden_layers", cls.num_hidden_layers)
        kinds = ("sliding_attention", "full_attention") if is_gemma2 else ("full_attention",)
        values.setdefault("layer_types", [kinds[index % len(kinds)] for index in range(num_layers)])
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        values["rope_theta"] = float(rope.get("rope_theta") or values.get("rope_theta") or cls.rope_theta)
        if problems := list(_unsupported(values, num_layers, rope.get("rope_type", "default"))):
            raise WeightsError("config.json: not supported in a Gemma decoder: " + "; ".join(problems))
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        caps = ("attn_logit_softcapping", "final_logit_softcapping") if self.is_gemma2 else ()
        values = {key: value for key, value in super().to_dict().items() if value is not None or key in caps}
        values["rope_parameters"] = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
        values["layer_types"] = list(self.layer_types)
        if not self.is_gemma2:
            del values["layer_types"]  # transformers' Gemma knows one type
        activation = "hidden_activation" if self.is_gemma2 else "hidden_act"
        return values | {activation: "gelu_pytorch_tanh", "tie_word_embeddings": True}

    @property
    def is_gemma2(self) -> bool:
        """Whether this is Gemma 2."""
        return self.model_type == "gemma2"

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        return 1.0 / math.sqrt(self.query_pre_attn_scalar or self.head_dim)


def _unsupported(values: dict[str, Any], num_layers: int, rope_type: str) -> Iterator[str]:
    """What a configuration asks for that is not computed here."""
    if rope_type != "default":
        yield f"rope_type '{rope_type}' (known: default)"
    if len(values["layer_types"]) != num_layers:
        yield f"{len(values['layer_types'])} layer_types for {num_layers} layers"
    for kind in sorted(set(values["layer_types"]) - {"full_attention", "sliding_attention"}):
        yield f"layer type '{kind}' (known: full_attention, sliding_attention)"
    for key in ("hidden_act", "hidden_activation"):
        # The first files say "gelu" and mean its tanh approximation, as transformers knows.
        if values.get(key, "gelu") not in ("gelu", "gelu_pytorch_tanh"):
            yield f"{key} '{values[key]}' (known: gelu_pytorch_tanh)"


class GemmaRMSNorm(nn.Module):
    """Weights are stored as their difference from one, so that weight decay pulls toward the identity."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, one_offset=True)


class GemmaEmbedding(nn.Embedding):
    """Token embeddings times √D: the table is also the head's, which wants it smaller than the residual stream."""

    def forward(self, ids: Tensor) -> Tensor:
        # Rounded to the table's type first, as in training: √3072 = 55.43 is 55.5 in bfloat16.
        scale = torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype)
        return super().forward(ids) * scale.item()


class GemmaAttention(nn.Module):
    """Grouped-query attention, level by level of the tree."""

    def __init__(self, config: GemmaConfig, kind: str) -> None:
        super().__init__()
        self.head_dim, self.scale = config.head_dim, config.attention_scale
        self.softcap = config.attn_logit_softcapping
        self.window = config.sliding_window if kind == "sliding_attention" else None
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], tree: DecodePlan, queries: TokenSet, cache: AttentionCache
    ) -> tuple[Tensor, AttentionCache]:
        """Keys and values of every row of the tree; queries, and so outputs, of the rows in ``queries`` only."""
        heads = (-1, self.head_dim)
        k = rotate(self.k_proj(x).unflatten(-1, heads), *rope)
        v = self.v_proj(x).unflatten(-1, heads)
        if queries is not tree.full:
            assert tree.kept is not None
            x, rope = gather_rows(x, tree.kept), (rope[0][tree.kept], rope[1][tree.kept])
        q = rotate(self.q_proj(x).unflatten(-1, heads), *rope)
        mixed, cache = attend(q, k, v, tree, queries, cache, scale=self.scale, softcap=self.softcap, window=self.window)
        out: Tensor = self.o_proj(mixed)
        return out, cache


class GemmaMLP(nn.Module):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(geglu(self.gate_proj(x), self.up_proj(x)))
        return out


class GemmaLayer(nn.Module):
    """Pre-norm block. What the checkpoint calls `post_attention_layernorm` stands before the MLP."""

    def __init__(self, config: GemmaConfig, kind: str) -> None:
        super().__init__()
        self.self_attn = GemmaAttention(config, kind)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], tree: DecodePlan, rows: TokenSet, cache: AttentionCache
    ) -> tuple[Tensor, AttentionCache]:
        """``rows`` are the rows that come out: the last layer drops those that nothing reads."""
        mixed, cache = self.self_attn(self.input_layernorm(x), rope, tree, rows, cache)
        x = (x if rows is tree.full else gather_rows(x, tree.kept)) + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Gemma2Layer(nn.Module):
    """Norms before *and* after attention and MLP; here `post_attention_layernorm` is what it says."""

    def __init__(self, config: GemmaConfig, kind: str) -> None:
        super().__init__()
        self.self_attn = GemmaAttention(config, kind)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], tree: DecodePlan, rows: TokenSet, cache: AttentionCache
    ) -> tuple[Tensor, AttentionCache]:
        """As `GemmaLayer.forward`."""
        mixed, cache = self.self_attn(self.input_layernorm(x), rope, tree, rows, cache)
        x = (x if rows is tree.full else gather_rows(x, tree.kept)) + self.post_attention_layernorm(mixed)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))), cache


class GemmaModel(nn.Module):
    """The decoder of either generation, without its (tied) head.

    Args:
        config: which generation, and its sizes.
        first_position: of a path's first row.
    """

    def __init__(self, config: GemmaConfig, first_position: int = 0) -> None:
        super().__init__()
        self.config, self.first_position = config, first_position
        layer = Gemma2Layer if config.is_gemma2 else GemmaLayer
        self.embed_tokens = GemmaEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer(config, kind) for kind in config.layer_types)
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.checkpoint_activations = False

    def empty_cache(self, dtype: torch.dtype, device: torch.device) -> Cache:
        """The cache before any token: one empty path."""
        nothing = torch.zeros(1, self.config.num_key_value_heads, 0, self.config.head_dim, dtype=dtype, device=device)
        return Cache(
            layers=[AttentionCache(nothing, nothing) for _ in self.layers],
            valid=torch.zeros(1, 0, dtype=torch.bool),
            positions=torch.zeros(1, 0, dtype=torch.int64),
            lengths=torch.zeros(1, dtype=torch.int64),
        )

    def forward(self, embeddings: Tensor, levels: Sequence[Level], cache: Cache | None, want_cache: bool) -> Decoded:
        """See `VisionLanguageModel.decode`."""
        cache = cache or self.empty_cache(embeddings.dtype, embeddings.device)
        tree = DecodePlan(
            levels, cache, num_inputs=0, num_convs_above=0, want_cache=want_cache, device=embeddings.device
        )
        positions = tree.full.positions + self.first_position
        rope = rope_angles(positions, self.config.head_dim, self.config.rope_theta, embeddings.dtype)
        x, layer_states = embeddings, []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            # The last layer computes only rows that something reads.
            rows = tree.narrow if layer is self.layers[-1] else tree.full
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, new_cache = checkpoint(layer, x, rope, tree, rows, layer_cache, use_reentrant=False)
            else:
                x, new_cache = layer(x, rope, tree, rows, layer_cache)
            if want_cache:
                layer_states.append(new_cache)  # otherwise a layer's keys and values go with the layer
        hidden = self.norm(x[tree.read])
        if not want_cache:
            return Decoded(hidden, None)
        return Decoded(hidden, Cache(layer_states, tree.end_valid, tree.end_positions, tree.end_lengths))

    def logits(self, hidden: Tensor) -> Tensor:
        """float[N, D] -> float32[N, V], by the embedding table (unscaled), capped in Gemma 2."""
        logits = nn.functional.linear(hidden, self.embed_tokens.weight).float()
        cap = self.config.final_logit_softcapping
        return logits if cap is None else (logits / cap).tanh() * cap
